"""The forward pass of a classifier in evaluation, batch by batch: nnlite beside PyTorch."""

import os
import tempfile

import common
import comparison
from cases import OURS, chosen, forward_gflop, inference_ways, make_model, seen_shape, steps_of
from steps import GPU_BLOCK, waiter

BATCHES = 1, 32
FORWARDS, IMAGES = 40, 8   # in training mode, of random images: the running statistics of the net that is measured
WARM_UP = 5


def random_images(settings, count, seed):
    import numpy as np
    return np.random.default_rng(seed).standard_normal((count, *seen_shape(settings)), dtype="float32")


def write_net(settings, device, path):
    """A net as training would leave it, into a file: with statistics of 0 and 1 the numbers of a deep net fade until
    the processor's slow way with the smallest ones is all that is measured."""
    from nnlite import weights
    from nnlite.ops import get_ops
    ops = get_ops(device)
    model = make_model(settings).build(ops)
    for i in range(FORWARDS if model.state else 0):
        model.forward(ops.asarray(random_images(settings, IMAGES, i)), train=True)
    weights.save(path, model, settings["model"])


# -- contestants: facts, and batch -> forward(images of that batch); a result is an array or a tensor -----------------

def nnlite_forwards(settings, device, name, path):
    from nnlite import weights
    from nnlite.ops import get_ops
    ops = get_ops(device)
    model = make_model(settings).build(ops)
    weights.load(path, model, settings["model"])

    def captured(batch):
        x = ops.zeros((batch, *seen_shape(settings)), "float32")
        forward = ops.capture(lambda: model.forward(x), frozen=True)

        def run(images):
            ops.copy_into(x, images)
            return forward()
        return run
    make = captured if name == "captured" else lambda batch: model.forward
    return {"what": ops.device_line()}, make, ops.asarray, ops.to_host


def torch_forwards(settings, device, name, path):
    import torch
    import torch_peers

    import peers
    from cases import CLASSES
    facts, (mode, memory) = peers.facts(device), name.split("-")
    memory = torch.channels_last if memory == "channels_last" else torch.contiguous_format
    net = torch_peers.net(settings, seen_shape(settings), CLASSES, depth_p=0.0).eval()
    peers.load_weights(net, path)
    forward = peers.compile_as(mode, net.to(device, memory_format=memory))
    place = lambda images: torch.from_numpy(images).permute(0, 3, 1, 2).to(device).contiguous(memory_format=memory)
    run = torch.inference_mode()(lambda images: forward(images))
    return facts, lambda batch: run, place, lambda logits: logits.cpu().numpy()


def worker(name, settings, device, path):
    def prepare():
        if name == "sgemm":
            return common.sgemm_worker(device)
        if name == "net":
            write_net(settings, device, path)
            return {}, None
        make = nnlite_forwards if name in OURS else torch_forwards
        facts, forward_of, place, to_host = make(settings, device, name, path)
        wait, each = waiter(name, device), 1 if device == "cpu" else GPU_BLOCK
        forwards = {batch: forward_of(batch) for batch in BATCHES}
        images = {batch: place(random_images(settings, batch, seed=batch)) for batch in BATCHES}
        logits = []
        for batch, forward in forwards.items():
            other = place(random_images(settings, batch, seed=0))
            for _ in range(WARM_UP):
                forward(other)
            logits += to_host(forward(images[batch])).ravel().tolist()   # not what an earlier call has left there

        def answer(batch, count):
            forward, x = forwards[batch], images[batch]

            def work(_):
                for _ in range(each):
                    forward(x)
                wait()
            return {"times": [t / each for t in common.times_of(work, count=-(-count // each))]}
        return {**facts, "logits": logits}, answer
    common.serve(prepare)


# -- the comparison ---------------------------------------------------------------------------------------------------

def compare(options, script, arguments):
    settings, device, threads = options.settings, options.device, options.threads
    labels = chosen(inference_ways(settings, device), options.ways)
    work = {batch: forward_gflop(settings, batch) for batch in BATCHES}
    steps = {batch: options.steps or steps_of(work[batch]) for batch in BATCHES}
    result = {"machine": common.machine(threads), "preset": options.preset, "settings": settings, "device": device,
              "rounds": options.rounds, "batches": {}}
    common.print_machine(result["machine"])
    passes = " and ".join(f"{steps[batch]} forward passes of batch {batch}" for batch in BATCHES)
    print(f"{options.preset}, inference, {device}: {options.rounds} rounds of {passes}, in turn", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*arguments, "--net", os.path.join(folder, "net.safetensors")]
        net = common.Contestant(script, "net", arguments, threads)
        if net.problem:
            raise SystemExit(f"no net to measure: {net.problem}")
        net.close()
        contestants = [common.Contestant(script, name, arguments, threads) for name in labels]
        sgemm = common.Contestant(script, "sgemm", arguments, threads)
    result["difference"] = comparison.logits_differ(contestants)
    found = {batch: comparison.measure(contestants, sgemm, options.rounds, batch=batch, count=steps[batch])
             for batch in BATCHES}
    comparison.close([*contestants, sgemm])
    rate = result["sgemm_gflops"] = max((r for _, rates in found.values() for r in rates), default=None)
    comparison.report_rate(rate)
    for batch, (times, _) in found.items():
        ways = comparison.results(contestants, labels, times, work[batch], rate)
        for way in ways.values():
            way.pop("logits", None)
        speedup = {name: comparison.speedups(ways, name) for name in OURS}
        result["batches"][batch] = {"gflop": work[batch], "ways": ways, "speedup": speedup}
        print(f"\nbatch {batch}, {work[batch]:.3f} GFLOP:")
        comparison.report(ways)
        for name, one in speedup.items():
            comparison.report_speedup(ways, one, name)
    print()
    comparison.report_ways(ways)
    return result
