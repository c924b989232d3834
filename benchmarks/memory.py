"""How much memory a training step needs: its growth over many steps, its peak beside PyTorch's."""

import os
from pathlib import Path

import common
from cases import CLASSES, PUBLISHED, chosen, seen_shape, ways
from steps import many_faces, nnlite_training

STEPS = 5   # whose peak is taken
GROWTH_STEPS = 1000


def resident_mib():
    """Memory of this process that is in RAM, in MiB; from Linux's /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def peak_mib():
    """The most that ever was, or was since forget_peak()."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2 ** 10


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")   # proc(5): the peak becomes what is resident now


def growth(options):
    """Resident size after the first step and at every hundredth."""
    training, sizes = nnlite_training(options.settings, options.device), {}
    for done in range(1, GROWTH_STEPS + 1):
        training.read(training.run(training.ready(done - 1)))
        if done in (1, 2, 10) or done % 100 == 0:
            sizes[done] = resident_mib()
    for done, size in sizes.items():
        print(f"after step {done:5}: {size:8.1f} MiB resident")
    grown = sizes[GROWTH_STEPS] - sizes[10]
    print(f"growth from step 10 to step {GROWTH_STEPS}: {grown:.2f} MiB")
    return {"resident_mib": sizes, "growth_mib": grown}


# -- peaks ------------------------------------------------------------------------------------------------------------

def nnlite_peak(settings, _):
    from nnlite.experiments import LabelExperiment
    from nnlite.ops import get_ops
    data, ops = many_faces(), get_ops("cpu")
    before = begin()
    experiment = LabelExperiment(settings, data, ops)
    for i in range(STEPS):
        experiment.sums(experiment.step(i))
    return before, peak_mib(), ops.device_line()


def torch_peak(settings, way):
    """The numbers do not matter to memory: random images, PyTorch's own first weights."""
    import torch

    import peers
    mode, implementation, memory = way.split("-")
    memory = torch.channels_last if memory == "channels_last" else torch.contiguous_format
    (H, W, C), B, facts, net = seen_shape(settings), settings["batch_size"], peers.facts("cpu"), net_maker(settings)
    weight = None if settings["class_weights"] == "none" else torch.ones(CLASSES)
    before = begin()
    model = peers.Classifier(net(), torch.zeros(C), torch.ones(C), class_weight=weight,
                             smoothing=settings["smoothing"]).to(memory_format=memory)
    loss_of, optimiser = peers.compile_as(mode, model), peers.optimiser(settings, model, implementation)
    for _ in range(STEPS):
        images, labels = torch.randn(B, C, H, W).contiguous(memory_format=memory), torch.randint(CLASSES, (B,))
        optimiser.zero_grad()
        loss, hits = loss_of(images, labels)
        loss.backward()
        optimiser.step()
        loss.item(), hits.item()
    return before, peak_mib(), facts["what"]


def net_maker(settings):
    """A function that makes PyTorch's net; all that it imports is there already."""
    shape = seen_shape(settings)
    if settings["model"] not in PUBLISHED:
        import peers
        return lambda: peers.classifier(settings, shape, CLASSES)
    import torch_peers
    from nnlite.models.efficientnet import DROPPED
    return lambda: torch_peers.net(settings, shape, CLASSES, DROPPED)


def begin():
    """MiB resident before the model is built."""
    forget_peak()
    return resident_mib()


def peak_worker(name, settings):
    def prepare():
        before, most, what = (nnlite_peak if name == "nnlite" else torch_peak)(settings, name)
        return {"what": what, "before_mib": before, "peak_mib": most, "step_mib": most - before}, None
    common.serve(prepare)


def compare_peaks(options, script, arguments):
    """Each contestant alone, one after the other; nnlite twice, the first time to compile kernels."""
    labels = ways(options.settings, "cpu")
    usual = next(name for name in labels if name.startswith("eager-fused"))   # channels last where the net has images
    labels = chosen(labels, options.ways or [usual])
    found = {}
    for name in ("nnlite", *labels):
        c = common.Contestant(script, name, arguments, options.threads)
        found[name] = {"label": labels[name], **c.hello}
        c.close()
    print(f"most memory over {STEPS} steps of {options.preset}, batch {options.settings['batch_size']}, less what was "
          "there before the model was built:")
    rows = [[way["label"], *(f"{way[key]:.1f}" for key in ("step_mib", "before_mib", "peak_mib")),
             common.ratio(way, found["nnlite"], "step_mib")] for way in found.values() if "step_mib" in way]
    common.print_table(["", "MiB", "before", "at most", "x nnlite"], rows)
    for way in found.values():
        print(f"{way['label']}: " + (f"left out ({way['problem']})" if "problem" in way else way["what"]))
    return found
