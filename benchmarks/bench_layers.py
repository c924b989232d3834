"""Every layer, loss and optimiser of the face VAEs by itself, forward and backward, nnlite beside PyTorch.

    python benchmarks/bench_layers.py [NAME ...] [--device cpu|cuda] [--json FILE]

The sizes are those of a posed-m3-kl-7 step. See benchmarks/README.md for what is measured.
"""

import argparse
import sys

import common
from counting import product

sys.path.insert(0, str(common.ROOT))

B, L, V, M, D, K = 200, 3, 10, 10, 249, 30
KEEP = 0.9
PARAMETERS = 794_449

# name -> floating-point operations of the matrix products, forward and backward; None where there are none.
LAYERS = {
    "Linear 600x300 -> 249": (product(600, 300, 249, 1), product(600, 300, 249, 2)),
    "Dense 230x498 -> 480": (product(230, 498, 480, 1), product(230, 498, 480, 2)),
    "Dense 600x300 -> 400": (product(600, 300, 400, 1), product(600, 300, 400, 2)),
    "ConditionalDense 600x30, 200x249 -> 300": (product(600, K, 300, 1) + product(200, D, 300, 1),
                                                product(600, K, 300, 2) + product(200, D, 300, 1)),
    "ELU 600x400": (None, None),
    "GELU 600x400": (None, None),
    "Dropout 600x400": (None, None),
    "GaussianSample 200x60 -> 600x30": (None, None),
}
WHOLE = ["squared_error 600x249", "gaussian_kl 200x60", "triplet_softplus 300x30", "Adam 794449",
         "Adam 794449, default of PyTorch"]


def shapes(name):
    """Shapes of the inputs, of y and of the gradient that backward is given."""
    if name.startswith("ConditionalDense"):
        return [(600, K), (200, D)], (600, 300)
    first, _, second = name.partition(" ")[2].partition(" -> ")
    x = tuple(map(int, first.split("x")))
    y = x if not second else tuple(map(int, second.split("x"))) if "x" in second else (x[0], int(second))
    return [x], y


# -- contestants: name -> {direction: (before, work)}; work(before()) is timed without before() ------------------------

def nothing():
    return None


def nnlite_layer(name, device):
    from nnlite import layers as nl
    from nnlite.ops import get_ops
    ops, (x_shapes, y_shape) = get_ops(device), shapes(name)
    make = {"Linear": lambda: nl.Linear(x_shapes[0][1], y_shape[1]),
            "Dense": lambda: nl.Dense(x_shapes[0][1], y_shape[1], keep_prob=KEEP),
            "ConditionalDense": lambda: nl.ConditionalDense(K, D, y_shape[1], keep_prob=KEEP),
            "ELU": nl.ELU, "GELU": nl.GELU, "Dropout": lambda: nl.Dropout(KEEP),
            "GaussianSample": lambda: nl.GaussianSample(L)}
    layer = make[name.partition(" ")[0]]().build(ops)
    xs, dy = [nnlite_normal(ops, shape) for shape in x_shapes], nnlite_normal(ops, y_shape)

    def forward(_=None):
        layer.zero_grad()
        y = layer.forward(*xs, train=True)
        ops.synchronize()
        return y

    def backward(_):
        dx = layer.backward(dy)
        ops.synchronize()
        return dx
    return {"forward": (nothing, forward), "backward": (forward, backward)}


def nnlite_normal(ops, shape):
    import numpy as np
    return ops.asarray(np.random.default_rng(sum(shape)).normal(size=shape), "float32")


def nnlite_whole(name, device):
    from nnlite import layers, losses, optim
    from nnlite.ops import get_ops
    ops = get_ops(device)
    f, x, h, z, weight = (nnlite_normal(ops, s) for s in ((B * L, D), (B, D), (B, 2 * K), (3 * V * M, K), (V,)))
    parameters = layers.Linear(PARAMETERS, 1, bias=False).build(ops).parameters
    parameters.settle()
    whole = {"squared_error": lambda: losses.squared_error(ops, f, x, 1.0),
             "gaussian_kl": lambda: losses.gaussian_kl(ops, h, 1.0),
             "triplet_softplus": lambda: losses.triplet_softplus(ops, z, weight, 1.0),
             "Adam": optim.Adam(parameters, lr=1e-4).step}
    run = whole[name.partition(" ")[0]]

    def work(_):
        result = run()
        ops.synchronize()
        return result
    return {"both": (nothing, work)}


def torch_layer(name, device):
    import torch
    from torch import nn

    import peers
    (x_shapes, y_shape), wait = shapes(name), torch_wait(device)
    xs, dy = [torch.randn(shape, device=device) for shape in x_shapes], torch.randn(y_shape, device=device)
    xs[0].requires_grad_()   # nobody asks for the gradient of ConditionalDense's second input, the neutral face
    inputs = sum(shape[1] for shape in x_shapes)
    dense = lambda: nn.Sequential(nn.Linear(inputs, y_shape[1]), nn.ELU(), nn.Dropout(1 - KEEP))
    sample = lambda h: peers.sample(*h.chunk(2, 1), L, torch.randn_like)
    make = {"Linear": lambda: nn.Linear(inputs, y_shape[1]), "Dense": dense, "ConditionalDense": dense,
            "ELU": nn.ELU, "GELU": nn.GELU, "Dropout": lambda: nn.Dropout(1 - KEEP), "GaussianSample": lambda: sample}
    net = make[name.partition(" ")[0]]()
    tensors = [xs[0]]
    if isinstance(net, nn.Module):
        tensors += net.to(device).parameters()

    def forward(_=None):
        for tensor in tensors:
            tensor.grad = None
        y = net(torch.cat([xs[0], xs[1].repeat_interleave(L, 0)], 1) if len(xs) > 1 else xs[0])
        wait()
        return y

    def backward(y):
        y.backward(dy)
        wait()
    return {"forward": (nothing, forward), "backward": (forward, backward)}


def torch_whole(name, device):
    import torch
    from torch.nn import functional as F
    wait = torch_wait(device)
    f, x, h, z, weight, p = (torch.randn(s, device=device) for s in (
        (B * L, D), (B, D), (B, 2 * K), (3 * V * M, K), (V,), (PARAMETERS,)))
    p.grad = torch.randn_like(p)
    optimiser = torch.optim.Adam([p], lr=1e-4, fused=None if "default" in name else True)

    def squared_error(f):
        return ((x.repeat_interleave(L, 0) - f) ** 2).sum()

    def gaussian_kl(h):
        mu, log_var = h.chunk(2, 1)
        return -0.5 * (1 + log_var - mu ** 2 - log_var.exp()).sum()

    def triplet_softplus(z):
        r, plus, minus = z.chunk(3)
        gap = (r - plus).norm(dim=1) - (r - minus).norm(dim=1)
        return (weight.repeat_interleave(M) * F.softplus(gap)).sum()

    def value_and_gradient(loss, tensor):
        tensor.requires_grad_()

        def run():
            tensor.grad = None
            loss(tensor).backward()
        return run

    run = {"squared_error": value_and_gradient(squared_error, f), "gaussian_kl": value_and_gradient(gaussian_kl, h),
           "triplet_softplus": value_and_gradient(triplet_softplus, z), "Adam": optimiser.step}[name.partition(" ")[0]]

    def work(_):
        run()
        wait()
    return {"both": (nothing, work)}


def torch_wait(device):
    import torch
    return torch.cuda.synchronize if device == "cuda" else nothing


WORK = {"nnlite": (nnlite_layer, nnlite_whole), "torch": (torch_layer, torch_whole)}


# -- the comparison ---------------------------------------------------------------------------------------------------

def worker(name, device):
    def prepare():
        if name == "sgemm":
            return common.sgemm_worker(device)
        made = {}

        def answer(item, direction, seconds):
            if item not in made:
                made.clear()
                made[item] = WORK[name][item in WHOLE](item, device)
            before, work = made[item][direction]
            for _ in range(3):
                work(before())
            return {"times": common.times_of(work, seconds=seconds, before=before)}
        if name == "nnlite":
            from nnlite.ops import get_ops
            return {"what": get_ops(device).device_line()}, answer
        import torch
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        return {"what": f"torch {torch.__version__}, {torch.get_num_threads()} threads"}, answer
    common.serve(prepare)


def compare(options):
    result = {"machine": common.machine(options.threads), "device": options.device, "layers": []}
    common.print_machine(result["machine"])
    contestants = {name: common.Contestant(__file__, name, ["--device", options.device], options.threads)
                   for name in ("nnlite", "torch", "sgemm")}
    for name, c in contestants.items():
        if name != "sgemm":
            print(f"{name}: left out ({c.problem})" if c.problem else f"{name}: {c.hello['what']}")
    sgemm, rates = contestants.pop("sgemm"), []
    for name in [n for n in (*LAYERS, *WHOLE) if not options.names or any(part in n for part in options.names)]:
        if not sgemm.problem:
            rates += sgemm.ask(seconds=0.1)["gflops"]
        directions = zip(("forward", "backward"), LAYERS[name]) if name in LAYERS else [("both", None)]
        for direction, flop in directions:
            result["layers"].append(measure(contestants, options, name, direction, flop))
    for c in [*contestants.values(), sgemm]:
        c.close()
    rate = result["sgemm_gflops"] = max(rates, default=None)
    print(f"matrix products: {rate:.0f} GFLOP/s" if rate else "matrix products: not measured")
    add_rates(result["layers"], rate)
    report(result["layers"])
    if options.json:
        common.write_json(options.json, result)


def measure(contestants, options, name, direction, flop):
    """One row: both contestants in each round."""
    times = {contestant: [] for contestant, c in contestants.items() if not c.problem}
    for _ in range(options.rounds):
        for contestant in times:
            answer = contestants[contestant].ask(item=name, direction=direction, seconds=options.seconds)
            if "problem" in answer:
                sys.exit(f"{contestant}, {name}: {answer['problem']}")
            times[contestant] += answer["times"]
    return {"name": name, "direction": direction, "gflop": flop and 1e-9 * flop,
            **{contestant: common.summary(samples) for contestant, samples in times.items()}}


def add_rates(layers, rate):
    """GFLOP/s of the products and its share of the machine's rate."""
    for row in layers:
        for times in (row[name] for name in ("nnlite", "torch") if name in row and row["gflop"]):
            times["min_gflops"] = 1e3 * row["gflop"] / times["min_ms"]
            times["min_share_of_sgemm"] = times["min_gflops"] / rate if rate else None


def report(layers):
    rows = []
    for row in layers:
        ours, theirs = row.get("nnlite", {}), row.get("torch", {})
        cells = [row["name"], row["direction"]]
        for times in (ours, theirs):
            cells += [f"{times[key]:.3f}" if key in times else "-" for key in ("min_ms", "median_ms")]
            cells += [f"{times['min_gflops']:.0f}" if "min_gflops" in times else "-",
                      common.percent(times.get("min_share_of_sgemm"))]
        rows.append([*cells, common.ratio(theirs, ours, "min_ms"), common.ratio(theirs, ours, "median_ms")])
    columns = ["ms min", "median", "GFLOP/s", "of sgemm"]
    common.print_table(["", "", *columns, *(f"torch {column}" for column in columns), "x nnlite", "median"], rows)


def main(arguments=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("names", nargs="*", metavar="NAME", help="only rows whose name holds one of these")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=0.2, help="of each contestant in each round")
    p.add_argument("--threads", type=int, default=common.available_cores(), help="of both contestants alike")
    p.add_argument("--json", metavar="FILE", help="the result for machines")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    options = p.parse_args(arguments)
    if options.worker:
        return worker(options.worker, options.device)
    compare(options)


if __name__ == "__main__":
    main()
