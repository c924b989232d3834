"""A whole training step, nnlite beside PyTorch, in one run on one machine.

    python benchmarks/bench_models.py [--preset posed-m3-kl-7 | --model vae3] [--device cpu|cuda] [--json FILE]
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
from counting import vae_step

sys.path.insert(0, str(common.ROOT))
from nnlite.presets import BEST, PRESETS  # noqa: E402  light: loads neither numba nor numpy

# Contestants by device: name -> what it is. The first is nnlite.
WAYS = {
    "cpu": {"nnlite": "nnlite", "adam": "PyTorch, Adam", "fused": "PyTorch, fused Adam",
            "compiled": "PyTorch, compiled, fused Adam"},
    "cuda": {"nnlite": "nnlite", "adam": "PyTorch, Adam", "fused": "PyTorch, fused Adam",
             "compiled": "PyTorch, compiled, fused Adam",
             "graphs": "PyTorch, compiled to CUDA graphs, fused Adam"},
}
WARM_UP = 20
GPU_BLOCK = 10   # steps between two looks at the clock on a GPU, which runs behind


def gflop(settings):
    return 1e-9 * vae_step(settings["encoder"], settings["decoder"], conditional=settings["model"] != "vae1",
                           batch_size=settings["batch_size"], samples=settings["samples"],
                           triplet_batch=settings["triplet_batch"] if settings["model"] == "vae3" else 0)


# -- contestants ------------------------------------------------------------------------------------------------------

def make_experiment(preset, device):
    """The FaceExperiment that `python -m nnlite.train --preset ...` would run, on the built-in faces."""
    from nnlite import runs
    from nnlite.experiments import FaceExperiment
    from nnlite.ops import get_ops
    faces = runs.load_faces(f"built-in {PRESETS[preset]['kind']}")
    triplets = runs.load_triplets(None, faces) if PRESETS[preset]["model"] == "vae3" else {}
    return FaceExperiment(PRESETS[preset], faces, triplets, get_ops(device))


def nnlite_step(preset, device):
    """(facts, step): step(i) is what training does, and reading the loss."""
    experiment = make_experiment(preset, device)

    def step(i):
        return sum(float(value) for value in experiment.step(i).values())
    # On a GPU training looks at the loss only now and then.
    return {"what": experiment.ops.device_line()}, step if device == "cpu" else experiment.step


def torch_step(preset, device, way):
    """(facts, step): the same batches from the same experiment, trained by PyTorch."""
    import torch

    import peers
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU")
    settings, experiment = PRESETS[preset], make_experiment(preset, "reference")
    torch.manual_seed(0)
    options = {name: settings[name] for name in ("reconstruction_variance", "samples", "triplet_samples", "keep_prob")}
    conditional, B = settings["model"] != "vae1", settings["batch_size"]
    model = peers.Vae(settings["encoder"], settings["decoder"], conditional=conditional, **options).to(device)
    loss_of = {"compiled": torch.compile, "graphs": lambda m: torch.compile(m, mode="reduce-overhead")}.get(
        way, lambda m: m)(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"], fused=way != "adam")
    inputs, D = torch.tensor(experiment.inputs, device=device), experiment.model.features
    scales = torch.ones(2, device=device)   # tensors, so that a new value does not mean a new compilation

    def step(i):
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
        return loss.item() if device == "cpu" else loss
    return {"what": f"torch {torch.__version__}, {torch.get_num_threads()} threads"}, step


def worker(name, preset, device):
    def prepare():
        if name == "sgemm":
            return common.sgemm_worker(device)
        facts, step = nnlite_step(preset, device) if name == "nnlite" else torch_step(preset, device, name)
        wait = waiter(name, device)
        done = [0]

        def steps(count):
            for _ in range(count):
                loss = step(done[0])
                done[0] += 1
            wait()
            return loss

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
    import torch
    return torch.cuda.synchronize


# -- the comparison ---------------------------------------------------------------------------------------------------

def compare(options):
    preset, device, threads = options.preset, options.device, options.threads
    result = {"machine": common.machine(threads), "preset": preset, "device": device,
              "gflop": gflop(PRESETS[preset]), "rounds": options.rounds, "steps": options.steps, "ways": {}}
    common.print_machine(result["machine"])
    print(f"{preset}, batch {PRESETS[preset]['batch_size']}, {device}: {result['gflop']:.3f} GFLOP a step, "
          f"{options.rounds} rounds of {options.steps} steps each, in turn", flush=True)
    arguments = ["--preset", preset, "--device", device]
    labels = {name: label for name, label in WAYS[device].items() if name == "nnlite" or name in options.ways}
    contestants = [common.Contestant(__file__, name, arguments, threads) for name in labels]
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
    _, step = nnlite_step(options.preset, options.device)
    sizes = {}
    for done in range(1, steps + 1):
        step(done - 1)
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
from nnlite.experiments import FaceExperiment
step = FaceExperiment.step
def first(self, iteration):
    step(self, iteration)
    self.ops.synchronize()
    print("first iteration at", time.time(), flush=True)
    os._exit(0)
FaceExperiment.step = first
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
    choice.add_argument("--preset", choices=sorted(PRESETS), metavar="PRESET", help="default: posed-m3-kl-7")
    choice.add_argument("--model", choices=["vae1", "vae2", "vae3"], help="its published best on posed faces")
    p.add_argument("--device", choices=sorted(WAYS), default="cpu")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=100, help="steps of each contestant in each round")
    p.add_argument("--threads", type=int, default=common.available_cores(), help="of every contestant alike")
    p.add_argument("--ways", nargs="*", default=list(WAYS["cuda"]), help="PyTorch's ways to run: adam fused compiled "
                                                                        "graphs (default: all)")
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
