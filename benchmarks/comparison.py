"""Contestants in turn, round by round, and what came of it: tables, ratios, the check that all do the same."""

import sys

import numpy as np

import common
from cases import OURS

TOLERANCE = 1e-3   # of a loss, or of the largest logit


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
        print(f"the first {len(ours)} losses differ by at most {worst:.0e} (relative)", flush=True)
    return worst


def logits_differ(contestants):
    """The largest difference between nnlite's logits and another contestant's, in units of the largest logit; None
    where there are none. Ends the command where one does not compute the same."""
    found = {c.name: c.hello["logits"] for c in contestants if not c.problem}
    ours, worst = found.pop("nnlite", None), None
    for name, theirs in found.items() if ours else ():
        difference = float(np.abs(np.subtract(ours, theirs)).max() / np.abs(ours).max())
        if not difference <= TOLERANCE:
            sys.exit(f"logits: {name}'s differ from nnlite's by {difference:.1e} of the largest")
        worst = max(difference, worst or 0.0)
    if worst is not None:
        print(f"the logits differ by at most {worst:.0e} of the largest", flush=True)
    return worst


def measure(contestants, sgemm, rounds, **question):
    """Rounds: everybody once in each. Returns name -> times, and the rates of the matrix products."""
    times, rates = {c.name: [] for c in contestants}, []
    for _ in range(rounds):
        for c in contestants:
            if not c.problem:
                answer = c.ask(**question)
                c.problem = answer.get("problem")
                times[c.name] += answer.get("times", [])
        if not sgemm.problem:
            answer = sgemm.ask(seconds=0.5)
            sgemm.problem = answer.get("problem")
            rates += answer.get("gflops", [])
    return times, rates


def close(contestants):
    for c in contestants:
        c.close()


def results(contestants, labels, times, gflop, rate):
    """name -> label, what it is, times and rates, or the problem that it had."""
    found = {}
    for c in contestants:
        problem = c.problem or (None if times[c.name] else "ended before it was measured")
        way = found[c.name] = {"label": labels[c.name], **({"problem": problem} if problem else c.hello)}
        if times[c.name]:
            way.update(common.summary(times[c.name]))
            for value in ("min", "median"):
                way[f"{value}_gflops"] = 1e3 * gflop / way[f"{value}_ms"]
                if rate:
                    way[f"{value}_share_of_sgemm"] = way[f"{value}_gflops"] / rate
    return found


def speedups(ways, ours="nnlite"):
    """How many times as long as `ours` the fastest way of PyTorch takes: by the minimum and by the median."""
    peers = {name: way for name, way in ways.items() if name not in OURS and "min_ms" in way}
    if not peers or "min_ms" not in ways[ours]:
        return {}
    found = {}
    for value in ("min", "median"):
        fastest = min(peers, key=lambda name: peers[name][f"{value}_ms"])
        found[value] = {"peer": fastest, "ratio": peers[fastest][f"{value}_ms"] / ways[ours][f"{value}_ms"]}
    return found


def report_rate(rate):
    print(f"matrix products: {rate:.0f} GFLOP/s" if rate else "matrix products: not measured")


def report(ways):
    rows = []
    for way in (way for way in ways.values() if "min_ms" in way):
        rows.append([way["label"], f"{way['min_ms']:.2f}", f"{way['median_ms']:.2f}", f"{way['min_gflops']:.0f}",
                     f"{way['median_gflops']:.0f}", *(common.percent(way.get(f"{value}_share_of_sgemm"))
                                                      for value in ("min", "median")),
                     *(common.ratio(way, ways["nnlite"], f"{value}_ms") for value in ("min", "median"))])
    common.print_table(["", "ms min", "median", "GFLOP/s", "median", "of sgemm", "median", "x nnlite", "median"], rows)


def report_ways(ways):
    for way in ways.values():
        print(f"{way['label']}: " + (f"left out ({way['problem']})" if "problem" in way else way["what"]))


def report_speedup(ways, speedup, ours="nnlite"):
    for value, found in speedup.items():
        print(f"{ways[ours]['label']} is {found['ratio']:.2f} times as fast as {ways[found['peer']]['label']}, the "
              f"fastest way of PyTorch by the {'minimum' if value == 'min' else value}")
