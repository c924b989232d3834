"""Every layer, loss and optimiser of the face VAEs by itself, forward and backward, nnlite beside PyTorch.

    python benchmarks/bench_layers.py [NAME ...] [--device cpu|cuda] [--json FILE]

The sizes are those of a posed-m3-kl-7 step. See benchmarks/README.md for what is measured.
"""

import sys

import common
import rows
from counting import product
from rows import Row, Work, nothing

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
ROWS = [*(Row(name, {"forward": forward, "backward": backward}) for name, (forward, backward) in LAYERS.items()),
        *(Row(name, {"both": None}) for name in WHOLE)]


def shapes(name):
    """Shapes of the inputs, of y and of the gradient that backward is given."""
    if name.startswith("ConditionalDense"):
        return [(600, K), (200, D)], (600, 300)
    first, _, second = name.partition(" ")[2].partition(" -> ")
    x = tuple(map(int, first.split("x")))
    y = x if not second else tuple(map(int, second.split("x"))) if "x" in second else (x[0], int(second))
    return [x], y


# -- contestants ------------------------------------------------------------------------------------------------------

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
    return Work({"forward": (nothing, forward), "backward": (forward, backward)})


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
    return Work({"both": (nothing, work)})


def torch_layer(name, device):
    import torch
    from torch import nn

    import peers
    (x_shapes, y_shape), wait = shapes(name), peers.waiter(device)
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
    return Work({"forward": (nothing, forward), "backward": (forward, backward)})


def torch_whole(name, device):
    import torch
    from torch.nn import functional as F

    import peers
    wait = peers.waiter(device)
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
    return Work({"both": (nothing, work)})


WORK = {"nnlite": (nnlite_layer, nnlite_whole), "torch": (torch_layer, torch_whole)}


def make(contestant, name, device):
    return WORK[contestant][name in WHOLE](name, device)


if __name__ == "__main__":
    rows.main(__file__, __doc__, ROWS, make, ["torch"])
