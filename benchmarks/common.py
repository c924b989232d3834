"""What both benchmarks share: contestants in processes of their own, the machine in words, tables.

A contestant is a Python process that waits for one JSON line, works, answers with one JSON line, and sleeps again:
while one of them is measured, no thread pool of another runs.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTLE = 0.3   # seconds between contestants: thread pools stop spinning, the clock of the cores recovers


class Contestant:
    """A worker process: `SCRIPT --worker NAME ...`. Its first answer says that it is ready, or why it cannot be."""

    def __init__(self, script, name, arguments, threads):
        self.name, environment = name, dict(os.environ)
        for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[variable] = str(threads)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen([sys.executable, script, "--worker", name, *arguments], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.hello = self._answer()
        self.problem = self.hello.get("problem")

    def ask(self, **question):
        time.sleep(SETTLE)
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"problem": f"ended with code {self.process.wait()}"}

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(prepare):
    """The worker's side. prepare() -> (facts, answer), facts about this contestant, answer(**question) -> dict.

    What the work prints goes to standard error: standard output carries the answers alone.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        facts, answer = prepare()
    except Exception as error:   # a peer that this machine cannot run is a line of the report, not the end of it
        print(json.dumps({"problem": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}),
              file=answers, flush=True)
        return
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


def times_of(work, *, seconds=None, count=None, before=lambda: None):
    """Seconds that each call of work(before()) takes: `count` calls, or as many as fit into `seconds`, at least 5."""
    times, end = [], time.perf_counter() + (seconds or 0)
    while len(times) < count if count else len(times) < 5 or time.perf_counter() < end:
        given = before()
        start = time.perf_counter()
        work(given)
        times.append(time.perf_counter() - start)
    return times


# -- the machine's matrix products ------------------------------------------------------------------------------------

def sgemm_worker(device):
    """Products of 1024 x 1024 float32 matrices with all threads (4096 x 4096 on a GPU)."""
    n = 4096 if device == "cuda" else 1024
    if device == "cuda":
        import cupy as xp
        wait = xp.cuda.Device().synchronize
    else:
        import numpy as xp
        wait = lambda: None
    a, b = (xp.asarray(xp.random.default_rng(k).random((n, n), dtype="float32")) for k in (1, 2))
    c = xp.empty((n, n), "float32")

    def product(_):
        xp.matmul(a, b, out=c)
        wait()

    def answer(seconds):
        return {"gflops": [2e-9 * n ** 3 / t for t in times_of(product, seconds=seconds)]}
    product(None)
    return {"size": n}, answer


# -- words ------------------------------------------------------------------------------------------------------------

def versions(*packages):
    from importlib import metadata
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(threads):
    """What a figure depends on, for people and machines."""
    return {"cpu": _cpu_model(), "cores": available_cores(), "threads": threads, "load": os.getloadavg()[0],
            "system": platform.platform(), "versions": versions("numpy", "numba", "torch", "cupy-cuda12x",
                                                                "cupy-cuda13x")}


def _cpu_model():
    """The processor's name; where the system hides it, the numbers that identify it."""
    try:
        fields = dict(map(str.strip, line.split(":", 1)) for line in
                      Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    vector = [name for name in ("avx2", "avx512f", "amx_tile") if name in fields.get("flags", "").split()]
    identity = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name', platform.machine())} ({', '.join([identity, *vector])})"


def print_machine(facts):
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, load {facts['load']:.1f} at the start")
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + f"; {facts['system']}")


def summary(times):
    """Milliseconds: smallest and median."""
    return {"min_ms": 1e3 * min(times), "median_ms": 1e3 * statistics.median(times), "samples": len(times)}


def percent(share):
    return "-" if share is None else f"{100 * share:.0f} %"


def ratio(times, ours, value):
    """How many times as long as ours."""
    return f"{times[value] / ours[value]:.2f}" if value in ours and value in times else "-"


def print_table(header, rows):
    """Columns as wide as their widest cell; the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))))


def write_json(path, result):
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)
