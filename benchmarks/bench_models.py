"""A whole training step, nnlite beside PyTorch, in one run on one machine.

    python benchmarks/bench_models.py [--preset posed-m3-kl-7 | --model vae3] [--device cpu|cuda] [--json FILE]
    python benchmarks/bench_models.py --preset cnn4 [--ways fused foreach]
    python benchmarks/bench_models.py --memory      resident size over 1000 steps
    python benchmarks/bench_models.py --startup     time of the import, and from the command to the first iteration

See benchmarks/README.md for what is measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from counting import classifier_step, vae_step

sys.path.insert(0, str(common.ROOT))
from nnlite.presets import BEST, PRESETS  # noqa: E402  light: loads neither numba nor numpy

PRESETS_HERE = sorted(name for name, p in PRESETS.items() if p["kind"] != "cifar" and "distilled" not in p)
SHAPE, CLASSES = (48, 48, 1), 7   # of FER2013, and of the built-in faces
FER2013_TRAINING = 28_709
MODES = {"eager": "PyTorch", "compiled": "PyTorch, compiled", "graphs": "PyTorch, compiled to CUDA graphs"}
FORMATS = {"channels_last": "channels last", "contiguous": "contiguous"}
NAMES = {"sgd": "SGD", "adam": "Adam", "adagrad": "Adagrad", "rmsprop": "RMSProp"}
WARM_UP = 20
GPU_BLOCK = 10   # steps between two looks at the clock on a GPU, which runs behind


CHECKED = 3        # steps whose losses are compared
TOLERANCE = 1e-3   # of a loss


def is_vae(preset):
    return PRESETS[preset]["model"].startswith("vae")


def ways(preset, device):
    """Contestants: name -> what it is. The first is nnlite."""
    modes = {name: label for name, label in MODES.items() if name != "graphs" or device == "cuda"}
    if is_vae(preset):
        return {"nnlite": "nnlite", "adam": "PyTorch, Adam", "fused": "PyTorch, fused Adam",
                **{name: f"{label}, fused Adam" for name, label in modes.items() if name != "eager"}}
    found, optimiser = {"nnlite": "nnlite"}, NAMES[PRESETS[preset]["optimiser"]]
    formats = {"contiguous": None} if PRESETS[preset]["model"] == "mlp" else FORMATS
    for mode, label in modes.items():
        for implementation in ("default", "foreach", "fused"):
            for memory, words in formats.items():
                how = optimiser if implementation == "default" else f"{implementation} {optimiser}"
                found[f"{mode}-{implementation}-{memory}"] = ", ".join(filter(None, [label, how, words]))
    return found


def gflop(settings):
    if not settings["model"].startswith("vae"):
        from nnlite.models import MODELS
        from nnlite.settings import SHAPES
        model = MODELS[settings["model"]](shape=SHAPE, classes=CLASSES,
                                          **{key: settings[key] for key in SHAPES[settings["model"]]})
        return 1e-9 * classifier_step(model.layers, SHAPE, settings["batch_size"])
    return 1e-9 * vae_step(settings["encoder"], settings["decoder"], conditional=settings["model"] != "vae1",
                           batch_size=settings["batch_size"], samples=settings["samples"],
                           triplet_batch=settings["triplet_batch"] if settings["model"] == "vae3" else 0)


# -- contestants: (facts, run, read); run(i) is a step of training, read(what it returns) gives its loss --------------

def make_experiment(settings, device):
    """What `python -m nnlite.train --preset ...` would run, on the built-in faces; for a classifier as many as FER2013
    has."""
    from nnlite.experiments import FaceExperiment, LabelExperiment, face_options
    from nnlite.ops import get_ops
    if not settings["model"].startswith("vae"):
        return LabelExperiment(settings, many_faces(), get_ops(device))
    faces = face_options.load_faces(f"built-in {settings['kind']}")
    triplets = face_options.load_triplets(None, faces) if settings["model"] == "vae3" else {}
    return FaceExperiment(settings, faces, triplets, get_ops(device))


def many_faces():
    """The built-in pictures, again and again: a training part of FER2013's size."""
    import numpy as np

    from nnlite.data.images import ImageSet
    from nnlite.data.synthetic_images import faces
    few = faces()
    rows = np.resize(few.split["train"], FER2013_TRAINING)
    everything = np.arange(len(rows), dtype=np.int32)
    return ImageSet(few.images[rows], few.labels[rows], few.classes, {"train": everything}, few.source)


def nnlite_step(settings, device):
    experiment = make_experiment(settings, device)
    return {"what": experiment.ops.device_line()}, experiment.step, lambda terms: experiment.sums(terms)["loss_sum"]


def torch_step(settings, device, way):
    """The same batches from the same experiment, trained by PyTorch."""
    import peers
    facts, experiment = peers.facts(device), make_experiment(settings, "reference")
    make = torch_vae if settings["model"].startswith("vae") else torch_classifier
    return facts, *make(settings, experiment, device, way)


def compile_as(mode, model):
    import torch
    return {"compiled": torch.compile, "graphs": lambda m: torch.compile(m, mode="reduce-overhead")}.get(
        mode, lambda m: m)(model)


def torch_vae(settings, experiment, device, way):
    import torch

    import peers
    torch.manual_seed(0)
    options = {name: settings[name] for name in ("reconstruction_variance", "samples", "triplet_samples", "keep_prob")}
    conditional, B = settings["model"] != "vae1", settings["batch_size"]
    model = peers.Vae(settings["encoder"], settings["decoder"], conditional=conditional, **options).to(device)
    loss_of = compile_as(way, model)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"], fused=way != "adam")
    inputs, D = torch.tensor(experiment.inputs, device=device), experiment.model.features
    scales = torch.ones(2, device=device)   # tensors, so that a new value does not mean a new compilation

    def run(i):
        experiment.prepare(i)
        rows = torch.from_numpy(experiment.rows).to(device, non_blocking=True)
        batch = inputs[rows]
        y = batch[:B, D:].contiguous() if conditional else None
        weight = None if experiment.weight is None else torch.from_numpy(experiment.weight).to(device)
        scales[0] = float(experiment.model.kl_scale)
        scales[1] = float(experiment.model.triplet_scale)
        optimiser.zero_grad()
        loss = loss_of(batch, batch[:B, :D].contiguous(), y, weight, *scales)
        loss.backward()
        optimiser.step()
        return loss
    return run, lambda loss: loss.item()


def torch_classifier(settings, experiment, device, way):
    import torch

    import peers
    mode, implementation, memory = way.split("-")
    torch.manual_seed(0)
    net = peers.classifier(settings, SHAPE, CLASSES)
    peers.copy_parameters(experiment.model.parameters, net)
    memory = torch.channels_last if memory == "channels_last" else torch.contiguous_format
    model = peers.Classifier(net, *(torch.tensor(part) for part in (experiment.shift, experiment.scale)))
    model = model.to(device, memory_format=memory)
    loss_of, optimiser = compile_as(mode, model), peers.optimiser(settings, model, implementation)
    images = torch.tensor(experiment.data.images).permute(0, 3, 1, 2).to(device, memory_format=memory)
    labels = torch.tensor(experiment.data.labels).long().to(device)

    def run(i):
        experiment.prepare(i)
        rows = torch.from_numpy(experiment.rows).to(device, non_blocking=True)
        flip = torch.from_numpy(experiment.flip).bool().to(device) if settings["flip"] else None
        for group in optimiser.param_groups:
            group["lr"] = experiment.rate(i)
        optimiser.zero_grad()
        loss, hits = loss_of(images[rows], labels[rows], flip)
        loss.backward()
        optimiser.step()
        return loss, hits

    def read(terms):
        loss, _ = (value.item() for value in terms)
        return loss
    return run, read


def make_step(settings, device, name):
    return nnlite_step(settings, device) if name == "nnlite" else torch_step(settings, device, name)


def first_losses(preset, device, name):
    """The first steps' losses, which every contestant must find. Without dropout, whose masks are everybody's own, and
    with small steps: the first ones of Adam are as long whatever the gradient, and rounding alone may turn them."""
    settings = PRESETS[preset]
    _, run, read = make_step({**settings, "keep_prob": 1.0, "learning_rate": settings["learning_rate"] / 10}, device,
                             name)
    return [read(run(i)) for i in range(CHECKED)]


def worker(name, preset, device):
    def prepare():
        if name == "sgemm":
            return common.sgemm_worker(device)
        facts, run, read = make_step(PRESETS[preset], device, name)
        if not is_vae(preset):
            facts["losses"] = first_losses(preset, device, name)
        wait, done = waiter(name, device), [0]

        def steps(count):
            for _ in range(count):
                terms = run(done[0])
                if device == "cpu":   # on a GPU training looks at the loss only now and then
                    read(terms)
                done[0] += 1
            wait()

        def answer(count):
            each = 1 if device == "cpu" else GPU_BLOCK
            return {"times": [t / each for t in common.times_of(lambda _: steps(each), count=-(-count // each))]}
        steps(WARM_UP)
        return facts, answer
    common.serve(prepare)


def waiter(name, device):
    if device == "cpu":
        return lambda: None
    if name == "nnlite":
        from nnlite.ops import get_ops
        return get_ops("cuda").synchronize
    import peers
    return peers.waiter(device)


# -- the comparison ---------------------------------------------------------------------------------------------------

def compare(options):
    preset, device, threads = options.preset, options.device, options.threads
    result = {"machine": common.machine(threads), "preset": preset, "device": device,
              "gflop": gflop(PRESETS[preset]), "rounds": options.rounds, "steps": options.steps, "ways": {}}
    common.print_machine(result["machine"])
    print(f"{preset}, batch {PRESETS[preset]['batch_size']}, {device}: {result['gflop']:.3f} GFLOP a step, "
          f"{options.rounds} rounds of {options.steps} steps each, in turn", flush=True)
    arguments = ["--preset", preset, "--device", device]
    labels = {name: label for name, label in ways(preset, device).items()
              if name == "nnlite" or not options.ways or any(part in name for part in options.ways)}
    contestants = [common.Contestant(__file__, name, arguments, threads) for name in labels]
    result["difference"] = losses_differ(contestants)
    sgemm = common.Contestant(__file__, "sgemm", arguments, threads)
    times, rates = measure(contestants, sgemm, options)
    result["sgemm_gflops"] = max(rates) if rates else None
    for c in contestants:
        problem = c.problem or (None if times[c.name] else "ended before it was measured")
        way = {"label": labels[c.name], **({"problem": problem} if problem else c.hello)}
        if times[c.name]:
            way.update(common.summary(times[c.name]))
            for value in ("min", "median"):
                way[f"{value}_gflops"] = 1e3 * result["gflop"] / way[f"{value}_ms"]
                if rates:
                    way[f"{value}_share_of_sgemm"] = way[f"{value}_gflops"] / result["sgemm_gflops"]
        result["ways"][c.name] = way
    result["speedup"] = speedups(result["ways"])
    report(result)
    if options.json:
        common.write_json(options.json, result)


def losses_differ(contestants):
    """The largest relative difference between nnlite's first losses and a peer's; None where there are none. Ends the
    command where a peer does not train the same model."""
    found = {c.name: c.hello["losses"] for c in contestants if not c.problem and "losses" in c.hello}
    ours, worst = found.pop("nnlite", None), None
    for name, theirs in found.items() if ours else ():
        for step, (a, b) in enumerate(zip(ours, theirs), 1):
            difference = abs(a - b) / abs(b)
            if not difference <= TOLERANCE:
                sys.exit(f"loss of step {step}: {a:.6g} by nnlite, {b:.6g} by {name}")
            worst = max(difference, worst or 0.0)
    if worst is not None:
        print(f"the first {CHECKED} losses differ by at most {worst:.0e} (relative)", flush=True)
    return worst


def measure(contestants, sgemm, options):
    """Rounds: everybody once in each. Returns name -> times, and the rates of the matrix products."""
    times, rates = {c.name: [] for c in contestants}, []
    for _ in range(options.rounds):
        for c in contestants:
            if not c.problem:
                answer = c.ask(count=options.steps)
                c.problem = answer.get("problem")
                times[c.name] += answer.get("times", [])
        if not sgemm.problem:
            answer = sgemm.ask(seconds=0.5)
            sgemm.problem = answer.get("problem")
            rates += answer.get("gflops", [])
    for c in [*contestants, sgemm]:
        c.close()
    return times, rates


def speedups(ways):
    """How many times as long as nnlite the fastest way of PyTorch takes: by the minimum and by the median."""
    peers_ = {name: way for name, way in ways.items() if name != "nnlite" and "min_ms" in way}
    if not peers_ or "min_ms" not in ways["nnlite"]:
        return {}
    found = {}
    for value in ("min", "median"):
        fastest = min(peers_, key=lambda name: peers_[name][f"{value}_ms"])
        found[value] = {"peer": fastest, "ratio": peers_[fastest][f"{value}_ms"] / ways["nnlite"][f"{value}_ms"]}
    return found


def report(result):
    ways, rate = result["ways"].values(), result["sgemm_gflops"]
    measured = [way for way in ways if "min_ms" in way]
    print(f"matrix products: {rate:.0f} GFLOP/s" if rate else "matrix products: not measured")
    rows = []
    for way in measured:
        rows.append([way["label"], f"{way['min_ms']:.2f}", f"{way['median_ms']:.2f}", f"{way['min_gflops']:.0f}",
                     f"{way['median_gflops']:.0f}", *(common.percent(way.get(f"{value}_share_of_sgemm"))
                                                      for value in ("min", "median")),
                     *(common.ratio(way, result["ways"]["nnlite"], f"{value}_ms") for value in ("min", "median"))])
    common.print_table(["", "ms min", "median", "GFLOP/s", "median", "of sgemm", "median", "x nnlite", "median"], rows)
    for way in ways:
        print(f"{way['label']}: " + (f"left out ({way['problem']})" if "problem" in way else way["what"]))
    for value, found in result["speedup"].items():
        print(f"nnlite is {found['ratio']:.2f} times as fast as {result['ways'][found['peer']]['label']}, the fastest "
              f"way of PyTorch by the {'minimum' if value == 'min' else value}")


# -- memory and start -------------------------------------------------------------------------------------------------

def resident_mib():
    """Memory of this process that is in RAM, in MiB; from Linux's /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def memory(options, steps=1000):
    """Resident size after the first step and at every hundredth."""
    _, run, read = nnlite_step(PRESETS[options.preset], options.device)
    sizes = {}
    for done in range(1, steps + 1):
        read(run(done - 1))
        if done in (1, 2, 10) or done % 100 == 0:
            sizes[done] = resident_mib()
    for done, size in sizes.items():
        print(f"after step {done:5}: {size:8.1f} MiB resident")
    print(f"growth from step 10 to step {steps}: {sizes[steps] - sizes[10]:.2f} MiB")
    return {"resident_mib": sizes, "growth_mib": sizes[steps] - sizes[10]}


IMPORT = "import time; start = time.perf_counter(); import nnlite; print(time.perf_counter() - start)"
FIRST_ITERATION = """
import os, sys, time
from nnlite import train
from nnlite.experiments import FaceExperiment, LabelExperiment
def stop_after(step):
    def first(self, iteration):
        step(self, iteration)
        self.ops.synchronize()
        print("first iteration at", time.time(), flush=True)
        os._exit(0)
    return first
for experiment in (FaceExperiment, LabelExperiment):
    experiment.step = stop_after(experiment.step)
sys.exit(train.main(sys.argv[1:]))
"""


def startup(options, repetitions=5):
    """Seconds that `import nnlite` takes, and from the command to the end of the first iteration."""
    def python(code, *arguments, **variables):
        environment = {**os.environ, "PYTHONPATH": str(common.ROOT), **variables}
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, text=True,
                              capture_output=True, cwd=folder)
        if done.returncode:
            sys.exit(done.stderr)
        return float(done.stdout.split()[-1])

    def first_iteration(**variables):
        start = time.time()
        return python(FIRST_ITERATION, "--preset", options.preset, "--device", options.device, "--out",
                      tempfile.mkdtemp(dir=folder), **variables) - start

    with tempfile.TemporaryDirectory() as folder:
        result = {"import_s": min(python(IMPORT) for _ in range(repetitions)),
                  "first_run_s": first_iteration(NUMBA_CACHE_DIR=tempfile.mkdtemp(dir=folder))}
        first_iteration()   # fills the caches that the next ones find
        result["warm_s"] = min(first_iteration() for _ in range(repetitions))
    print(f"import nnlite: {1e3 * result['import_s']:.2f} ms (minimum of {repetitions})")
    print(f"command to the end of the first iteration: {result['warm_s']:.2f} s with warm caches (minimum of "
          f"{repetitions}), {result['first_run_s']:.1f} s with an empty cache of kernels")
    return result


def main(arguments=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choice = p.add_mutually_exclusive_group()
    choice.add_argument("--preset", choices=PRESETS_HERE, metavar="PRESET", help="default: posed-m3-kl-7")
    choice.add_argument("--model", choices=["vae1", "vae2", "vae3"], help="its published best on posed faces")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=100, help="steps of each contestant in each round")
    p.add_argument("--threads", type=int, default=common.available_cores(), help="of every contestant alike")
    p.add_argument("--ways", nargs="*", default=[], metavar="PART",
                   help="only PyTorch's ways to run whose name holds one of these: adam, fused, compiled, graphs; for "
                        "classifiers as eager-fused-channels_last")
    p.add_argument("--json", metavar="FILE", help="the result for machines")
    p.add_argument("--memory", action="store_true")
    p.add_argument("--startup", action="store_true")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    options = p.parse_args(arguments)
    options.preset = options.preset or BEST[options.model or "vae3", "posed"]
    if options.worker:
        return worker(options.worker, options.preset, options.device)
    if not (options.memory or options.startup):
        return compare(options)
    result = {"machine": common.machine(options.threads), "preset": options.preset, "device": options.device}
    common.print_machine(result["machine"])
    if options.memory:
        result["memory"] = memory(options)
    if options.startup:
        result["startup"] = startup(options)
    if options.json:
        common.write_json(options.json, result)


if __name__ == "__main__":
    main()
