"""A whole training step, nnlite beside PyTorch, in one run on one machine; a forward pass; the memory; the start.

    python benchmarks/bench_models.py [--preset posed-m3-kl-7 | --model vae3] [--device cpu|cuda] [--json FILE]
    python benchmarks/bench_models.py --preset cnn4 [--ways fused foreach]
    python benchmarks/bench_models.py --preset effnetv2s [--set width=1 depth=1 top_filters=1280] [--batch-size 16]
    python benchmarks/bench_models.py --preset vit-b16 --inference    forward passes of 1 and 32 images
    python benchmarks/bench_models.py --preset resnet50 --peak        most memory in 5 steps
    python benchmarks/bench_models.py --memory                        resident size over 1000 steps
    python benchmarks/bench_models.py --startup     time of the import, and from the command to the first iteration

See benchmarks/README.md for what is measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import common

sys.path.insert(0, str(common.ROOT))
import comparison  # noqa: E402
import inference  # noqa: E402
import memory  # noqa: E402
import steps  # noqa: E402
from cases import PRESETS_HERE, PUBLISHED, chosen, gflop, is_vae, settings_of, steps_of, ways  # noqa: E402

from nnlite.errors import NnliteError  # noqa: E402
from nnlite.presets import BEST  # noqa: E402


def compare(options, arguments):
    settings, device, threads = options.settings, options.device, options.threads
    work = gflop(settings)
    count = options.steps or steps_of(work)
    result = {"preset": options.preset, "settings": settings, "device": device, "gflop": work,
              "machine": common.machine(threads), "rounds": options.rounds, "steps": count}
    common.print_machine(result["machine"])
    print(f"{options.preset}, batch {settings['batch_size']}, {device}: {work:.3f} GFLOP a step, "
          f"{options.rounds} rounds of {count} steps each, in turn", flush=True)
    labels = chosen(ways(settings, device), options.ways)
    contestants = [common.Contestant(__file__, name, arguments, threads) for name in labels]
    result["difference"] = comparison.losses_differ(contestants)
    sgemm = common.Contestant(__file__, "sgemm", arguments, threads)
    times, rates = comparison.measure(contestants, sgemm, options.rounds, count=count)
    comparison.close([*contestants, sgemm])
    rate = result["sgemm_gflops"] = max(rates, default=None)
    result["ways"] = comparison.results(contestants, labels, times, work, rate)
    result["speedup"] = comparison.speedups(result["ways"])
    comparison.report_rate(rate)
    comparison.report(result["ways"])
    comparison.report_ways(result["ways"])
    comparison.report_speedup(result["ways"], result["speedup"])
    return result


# -- the start --------------------------------------------------------------------------------------------------------

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
                      tempfile.mkdtemp(dir=folder), *over_preset, **variables) - start

    over_preset = [f"--set={text}" for text in (*options.assignments, f"batch_size={options.settings['batch_size']}")]

    with tempfile.TemporaryDirectory() as folder:
        result = {"import_s": min(python(IMPORT) for _ in range(repetitions)),
                  "first_run_s": first_iteration(NUMBA_CACHE_DIR=tempfile.mkdtemp(dir=folder))}
        first_iteration()   # fills the caches that the next ones find
        result["warm_s"] = min(first_iteration() for _ in range(repetitions))
    print(f"import nnlite: {1e3 * result['import_s']:.2f} ms (minimum of {repetitions})")
    print(f"command to the end of the first iteration: {result['warm_s']:.2f} s with warm caches (minimum of "
          f"{repetitions}), {result['first_run_s']:.1f} s with an empty cache of kernels")
    return result


# -- the command ------------------------------------------------------------------------------------------------------

def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choice = p.add_mutually_exclusive_group()
    choice.add_argument("--preset", choices=PRESETS_HERE, metavar="PRESET", help="default: posed-m3-kl-7")
    choice.add_argument("--model", choices=["vae1", "vae2", "vae3"], help="its published best on posed faces")
    p.add_argument("--set", nargs="+", default=[], action="extend", dest="assignments", metavar="KEY=VALUE",
                   help="other settings than the preset's")
    p.add_argument("--batch-size", type=int, help="images of a step; default: the preset's, 4 for the largest nets")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, help="steps of each contestant in each round; default: by their GFLOP, from 3 "
                                             "to 100")
    p.add_argument("--threads", type=int, default=common.available_cores(), help="of every contestant alike")
    p.add_argument("--ways", nargs="*", default=[], metavar="PART",
                   help="only PyTorch's ways to run whose name holds one of these: adam, fused, compiled, graphs; for "
                        "classifiers as eager-fused-channels_last, in inference as eager-channels_last")
    p.add_argument("--json", metavar="FILE", help="the result for machines")
    for name in ("--inference", "--peak", "--memory", "--startup"):
        p.add_argument(name, action="store_true")
    for name in ("--worker", "--net"):
        p.add_argument(name, help=argparse.SUPPRESS)
    return p


def main(arguments=None):
    p = parser()
    options = p.parse_args(arguments)
    options.preset = options.preset or BEST[options.model or "vae3", "posed"]
    try:
        options.settings = settings_of(options.preset, options.assignments, options.batch_size)
    except NnliteError as error:
        p.error(str(error))
    if options.inference and options.settings["model"] not in PUBLISHED:
        p.error("--inference: expected a preset of " + ", ".join(PUBLISHED))
    if options.peak and (is_vae(options.settings) or options.device != "cpu"):
        p.error("--peak: expected a preset of a classifier, on the CPU")
    if options.worker:
        return work(options)
    result = measure(options)
    if options.json:
        common.write_json(options.json, result)


def work(options):
    """As a contestant."""
    if options.inference:
        return inference.worker(options.worker, options.settings, options.device, options.net)
    if options.peak:
        return memory.peak_worker(options.worker, options.settings)
    return steps.worker(options.worker, options.settings, options.device)


def measure(options):
    arguments = ["--preset", options.preset, "--device", options.device, "--batch-size",
                 str(options.settings["batch_size"])]
    if options.assignments:
        arguments += ["--set", *options.assignments]
    if options.inference:
        return inference.compare(options, __file__, [*arguments, "--inference"])
    if not (options.peak or options.memory or options.startup):
        return compare(options, arguments)
    result = {"machine": common.machine(options.threads), "preset": options.preset, "settings": options.settings,
              "device": options.device}
    common.print_machine(result["machine"])
    if options.peak:
        result["peak"] = memory.compare_peaks(options, __file__, [*arguments, "--peak"])
    if options.memory:
        result["memory"] = memory.growth(options)
    if options.startup:
        result["startup"] = startup(options)
    return result


if __name__ == "__main__":
    main()
