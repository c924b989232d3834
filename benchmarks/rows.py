"""Single layers side by side, a row of the table for each direction: what bench_layers.py and bench_images.py share.

A script gives its rows, and make(contestant, row's name, device) -> Work, which runs in the contestant's process.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import common

TOLERANCE = 1e-3   # of the largest number of a result
VALUES = "min", "median"


class Row(NamedTuple):
    """flop: direction -> floating-point operations of its products (None: it has none), in the order of the report;
    group: the rows whose ratios are averaged together."""

    name: str
    flop: dict
    group: str = ""


class Work(NamedTuple):
    """directions: name -> (before, work); work(before()) is timed without before(). results() -> {name: NumPy array},
    in nnlite's layout, what this contestant finds for numbers that are everybody's; None where they are random."""

    directions: dict
    results: object = None


def nothing():
    return None


# -- the contestant's side --------------------------------------------------------------------------------------------

def worker(name, device, make):
    def prepare():
        if name == "sgemm":
            return common.sgemm_worker(device)
        made = {}

        def answer(item, seconds=None, results=None):
            if item not in made:
                made.clear()
                made[item] = make(name, item, device)
            return save_results(made[item], results) if results else {"times": times(made[item], seconds)}
        return facts(name, device), answer
    common.serve(prepare)


def facts(name, device):
    if name == "nnlite":
        from nnlite.ops import get_ops
        return {"what": get_ops(device).device_line()}
    import peers
    return peers.facts(device)


def times(item, seconds):
    """Seconds of every call: the directions in turn, so that a slow moment of the machine meets all of them."""
    found = {direction: [] for direction in item.directions}
    for before, work in item.directions.values():
        for _ in range(3):
            work(before())
    end = time.perf_counter() + seconds * len(found)
    while len(next(iter(found.values()))) < 5 or time.perf_counter() < end:
        for direction, (before, work) in item.directions.items():
            found[direction] += common.times_of(work, count=1, before=before)
    return found


def save_results(item, path):
    import numpy as np
    found = item.results() if item.results else {}
    np.savez(path, **found)
    return {"saved": sorted(found)}


# -- the comparison ---------------------------------------------------------------------------------------------------

def main(script, description, rows, make, peers_, arguments=None):
    """The whole command of `script`; peers_: the contestants beside nnlite, PyTorch's ways to do the same.

    Returns the rows of the report, or None in a contestant's process.
    """
    options = parse(description, arguments)
    if options.worker:
        return worker(options.worker, options.device, make)
    chosen = [row for row in rows if not options.names or any(part in row.name for part in options.names)]
    result = {"machine": common.machine(options.threads), "device": options.device, "layers": []}
    common.print_machine(result["machine"])
    start = lambda name: common.Contestant(script, name, ["--device", options.device], options.threads)
    contestants, sgemm, rates = {name: start(name) for name in ("nnlite", *peers_)}, start("sgemm"), []
    for name, c in contestants.items():
        print(f"{name}: left out ({c.problem})" if c.problem else f"{name}: {c.hello['what']}", flush=True)
    for row in chosen:
        if not sgemm.problem:
            rates += sgemm.ask(seconds=0.1)["gflops"]
        agreement = differences(contestants, row)
        result["layers"] += [{**found, "difference": agreement}
                             for found in measure(contestants, row, peers_, options)]
    for c in [*contestants.values(), sgemm]:
        c.close()
    rate = result["sgemm_gflops"] = max(rates, default=None)
    print(f"matrix products: {rate:.0f} GFLOP/s" if rate else "matrix products: not measured")
    add_rates(result["layers"], rate)
    report(result["layers"])
    result["averages"] = averages(result["layers"])
    report_averages(result["averages"])
    if options.json:
        common.write_json(options.json, result)
    return result["layers"]


def parse(description, arguments):
    p = argparse.ArgumentParser(description=description.splitlines()[0])
    p.add_argument("names", nargs="*", metavar="NAME", help="only rows whose name holds one of these")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=0.2, help="of each contestant, direction and round")
    p.add_argument("--threads", type=int, default=common.available_cores(), help="of all contestants alike")
    p.add_argument("--json", metavar="FILE", help="the result for machines")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    return p.parse_args(arguments)


def ask(contestant, row, **question):
    answer = contestant.ask(item=row.name, **question)
    if "problem" in answer:
        sys.exit(f"{contestant.name}, {row.name}: {answer['problem']}")
    return answer


def differences(contestants, row):
    """The largest difference between nnlite's results and a peer's, in units of the peer's largest number; None where
    there is nothing to compare. Ends the command where nnlite and a peer do not do the same."""
    import numpy as np
    with tempfile.TemporaryDirectory() as folder:
        saved = {}
        for name, c in contestants.items():
            path = Path(folder) / f"{name}.npz"
            if not c.problem and ask(c, row, results=str(path))["saved"]:
                with np.load(path) as file:
                    saved[name] = {key: file[key] for key in file.files}
    ours, worst = saved.pop("nnlite", None), None
    for name, theirs in saved.items() if ours else ():
        if ours.keys() != theirs.keys():
            sys.exit(f"{row.name}: nnlite gives {sorted(ours)}, {name} {sorted(theirs)}")
        for key in ours:
            difference = relative_difference(ours[key], theirs[key])
            if not difference <= TOLERANCE:
                sys.exit(f"{row.name}: {key} of nnlite and of {name} differ by {difference:.1e} of the largest number")
            worst = max(difference, worst or 0.0)
    return worst


def relative_difference(ours, theirs):
    """max |ours - theirs| / max |theirs|; infinite where the shapes differ."""
    import numpy as np
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def measure(contestants, row, peers_, options):
    """The report's rows of one layer: all contestants in each round."""
    samples = {name: {} for name, c in contestants.items() if not c.problem}
    for _ in range(options.rounds):
        for name, found in samples.items():
            for direction, some in ask(contestants[name], row, seconds=options.seconds)["times"].items():
                found.setdefault(direction, []).extend(some)
    found = {name: summaries(directions) for name, directions in samples.items()}
    rows = []
    for direction, flop in row.flop.items():
        ways = {name: of_way[direction] for name, of_way in found.items()}
        rows.append({"name": row.name, "group": row.group, "direction": direction, "gflop": flop and 1e-9 * flop,
                     **ways, "torch": fastest({name: ways[name] for name in peers_ if name in ways})})
    return rows


def summaries(samples):
    """Milliseconds of each direction. The gradient of the input by itself, where it was not timed so, is what the whole
    backward takes beyond the weights' part; nothing is said where noise is larger."""
    found = {direction: common.summary(some) for direction, some in samples.items()}
    if "weights" in samples and "input" not in samples and "backward" in samples:
        beyond = {"min_ms": found["backward"]["min_ms"] - found["weights"]["min_ms"],
                  "median_ms": 1e3 * statistics.median(
                      whole - part for whole, part in zip(samples["backward"], samples["weights"]))}
        found["input"] = {key: value for key, value in beyond.items() if value > 0}
    return found


def fastest(ways):
    """The times of PyTorch's fastest way, by the minimum and by the median, and which way that is."""
    found = {}
    for value in VALUES if ways else ():
        way = min(ways, key=lambda name: ways[name][f"{value}_ms"])
        found[f"{value}_ms"], found[f"{value}_way"] = ways[way][f"{value}_ms"], way
    return found


def add_rates(rows, rate):
    """GFLOP/s of the products and its share of the machine's rate."""
    for row in rows:
        for times_ in (row[name] for name in ("nnlite", "torch") if row["gflop"] and "min_ms" in row.get(name, {})):
            times_["min_gflops"] = 1e3 * row["gflop"] / times_["min_ms"]
            times_["min_share_of_sgemm"] = times_["min_gflops"] / rate if rate else None


def report(rows):
    several = len({row["torch"].get("min_way") for row in rows}) > 1
    table = []
    for row in rows:
        cells = [row["name"], row["direction"]]
        ours, theirs = row.get("nnlite", {}), row["torch"]
        for found in (ours, theirs):
            cells += [f"{found[key]:.3f}" if key in found else "-" for key in ("min_ms", "median_ms")]
            cells += [f"{found['min_gflops']:.0f}" if "min_gflops" in found else "-",
                      common.percent(found.get("min_share_of_sgemm"))]
        cells += [theirs.get("min_way", "-")] * several
        cells += [common.ratio(theirs, ours, f"{value}_ms") for value in VALUES]
        table.append([*cells, "-" if row["difference"] is None else f"{row['difference']:.0e}"])
    columns = ["ms min", "median", "GFLOP/s", "of sgemm"]
    common.print_table(["", "", *columns, *(f"torch {column}" for column in columns), *["fastest as"] * several,
                        "x nnlite", "median", "difference"], table)


# -- averages over groups ---------------------------------------------------------------------------------------------

PARTS = "forward", "weights", "input"   # of which a convolution's whole is made; its "backward" is the last two


def averages(rows):
    """For each group and value: the mean ratio of each direction, of all PARTS together, and the smallest of these."""
    found = []
    for group in dict.fromkeys(row["group"] for row in rows if row["group"]):
        for value in VALUES:
            key = f"{value}_ms"
            ratios = {(row["name"], row["direction"]): row["torch"][key] / row["nnlite"][key] for row in rows
                      if row["group"] == group and key in row["torch"] and key in row.get("nnlite", {})}
            parts = {place: ratio for place, ratio in ratios.items() if place[1] in PARTS}
            if not parts:
                continue
            means = {direction: mean([ratio for place, ratio in ratios.items() if place[1] == direction])
                     for direction in dict.fromkeys(direction for _, direction in ratios)}
            smallest = min(parts, key=parts.get)
            found.append({"group": group, "value": value, "directions": means, "mean": mean(list(parts.values())),
                          "smallest": parts[smallest], "smallest_at": " ".join(smallest)})
    return found


def mean(numbers):
    return sum(numbers) / len(numbers)


def report_averages(found):
    if not found:
        return
    directions = list(dict.fromkeys(direction for line in found for direction in line["directions"]))
    print()
    common.print_table(
        ["x nnlite, averages", "by", *directions, "mean", "smallest", "of"],
        [[line["group"], line["value"],
          *(f"{line['directions'][d]:.2f}" if d in line["directions"] else "-" for d in directions),
          f"{line['mean']:.2f}", f"{line['smallest']:.2f}", line["smallest_at"]] for line in found])
