"""What the benchmarks compute with: the count of floating-point operations against products counted as they happen, the
summaries, the check that both sides do the same; and that the scripts run."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnlite.models import MODELS
from nnlite.models.vae import Batch
from nnlite.ops.reference import ReferenceOps
from nnlite.presets import PRESETS

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench_images  # noqa: E402
import rows  # noqa: E402
from bench_models import gflop, losses_differ, many_faces, speedups, ways  # noqa: E402
from counting import classifier_step, vae_step  # noqa: E402


class CountingOps(ReferenceOps):
    """Adds up 2 m n k of every product of matrices (m, k), or (..., k), and (k, n)."""

    def __init__(self):
        self.count = 0
        self.xp = SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if not name.startswith("_")})
        self.xp.matmul = self.matmul

    def matmul(self, a, b):
        self.count += 2 * a.size * b.shape[1]
        return np.matmul(a, b)


@pytest.mark.parametrize("preset", ["posed-m1-5", "posed-m2-3", "posed-m3-kl-7", "posed-m3-kl-9", "spontaneous-m1-1"])
def test_count_of_a_step(preset):
    p, ops, V = PRESETS[preset], CountingOps(), 10
    model = MODELS[p["model"]](p["encoder"], p["decoder"], reconstruction_variance=1.0).build(ops)
    B, triplets = p["batch_size"], p["model"] == "vae3"
    draw = lambda *shape: np.zeros(shape, "float32")
    ops.count = 0
    model.terms(Batch(draw(B + 3 * V * triplets, p["encoder"][0]), draw(B, 249), draw(B, 249),
                      draw(V) if triplets else None), train=True)
    assert vae_step(p["encoder"], p["decoder"], conditional=p["model"] != "vae1", batch_size=B,
                    triplet_batch=V * triplets) == ops.count
    assert gflop(p) == pytest.approx(1e-9 * ops.count)


def test_count_of_the_main_preset():
    assert gflop(PRESETS["posed-m3-kl-7"]) == pytest.approx(1.66, abs=0.005)


def test_speedup_is_against_the_fastest_by_each_measure():
    ways = {"nnlite": {"min_ms": 2, "median_ms": 4}, "a": {"min_ms": 6, "median_ms": 20},
            "b": {"min_ms": 7, "median_ms": 10}, "c": {"problem": "not here"}}
    assert speedups(ways) == {"min": {"peer": "a", "ratio": 3}, "median": {"peer": "b", "ratio": 2.5}}
    assert speedups({"nnlite": {"problem": "x"}, "a": ways["a"]}) == {}


# -- classifiers ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, options", [("cnn3", {"filters": 4}), ("cnn4", {"filters": (4, 3, 5, 2)}),
                                           ("cnn4", {"batch_norm": False}), ("cnn5", {"keep_prob": 1.0})])
def test_count_of_a_classifier(name, options):
    ops, shape, B = CountingOps(), (24, 26, 2), 3
    model = MODELS[name](shape=shape, classes=5, **options).build(ops)
    ops.count = 0
    y = model.forward(np.zeros((B, *shape), "float32"), train=True)
    model.backward(np.zeros_like(y), need_dx=False)
    assert classifier_step(model.layers, shape, B) == ops.count


def test_count_of_a_fully_connected_net():
    assert gflop(PRESETS["mlp-fer2013"]) == pytest.approx(
        1e-9 * 2 * 10 * (2 * 2304 * 1000 + 3 * 1000 * 1000 + 3 * 1000 * 7))


def test_count_of_cnn4():
    pixels, channels = (48 ** 2, 24 ** 2, 12 ** 2, 6 ** 2), (1, 32, 64, 96, 128)
    forward = [9 * p * C * K for p, C, K in zip(pixels, channels, channels[1:])] + [9 * 128 * 200, 200 * 7]
    assert gflop(PRESETS["cnn4"]) == pytest.approx(1e-9 * 2 * 50 * (3 * sum(forward) - forward[0]))


@pytest.mark.parametrize("row, flop", [
    ("conv 3x3 50x24x24x32 -> 64", 2 * 50 * 24 ** 2 * 9 * 32 * 64),
    ("conv 5x5 32x48x48x1 -> 36", 2 * 32 * 46 ** 2 * 25 * 36),
    ("conv 7x7/2 8x224x224x3 -> 64", 2 * 8 * 112 ** 2 * 49 * 3 * 64),
    ("conv 1x1/2 8x56x56x256 -> 512", 2 * 8 * 28 ** 2 * 256 * 512),
    ("depthwise 3x3/2 32x24x24x96", 2 * 32 * 12 ** 2 * 9 * 96)])
def test_count_of_a_convolution(row, flop):
    found = {r.name: r.flop for r in bench_images.ROWS}[row]
    assert found["forward"] == found["weights"] == flop
    assert found.get("input", flop) == flop and found.get("backward", 2 * flop) == 2 * flop


def test_as_many_faces_as_fer2013_has():
    data = many_faces()
    assert data.images.shape == (28_709, 48, 48, 1) and len(data.split["train"]) == len(data.labels) == 28_709


def test_ways_of_pytorch():
    assert list(ways("posed-m3-kl-7", "cpu")) == ["nnlite", "adam", "fused", "compiled"]
    assert list(ways("mlp-fer2013", "cpu")) == ["nnlite"] + [
        f"{mode}-{way}-contiguous" for mode in ("eager", "compiled") for way in ("default", "foreach", "fused")]
    assert len(ways("cnn4", "cpu")) == 1 + 12 and len(ways("cnn4", "cuda")) == 1 + 18
    assert ways("cnn5", "cpu")["eager-fused-channels_last"] == "PyTorch, fused SGD, channels last"


@pytest.mark.parametrize("preset, count", [("mlp-fer2013", 3_313_007), ("cnn4", 417_575), ("cnn4-plain", 416_935)])
def test_parameters_of_the_peers(preset, count):
    pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
    import peers
    net = peers.classifier(PRESETS[preset], (48, 48, 1), 7)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


# -- the comparison ---------------------------------------------------------------------------------------------------

def test_input_is_what_the_whole_backward_takes_beyond_the_weights():
    found = rows.summaries({"weights": [.002, .003, .009], "backward": [.005, .005, .012]})
    assert found["input"] == pytest.approx({"min_ms": 3, "median_ms": 3})
    assert rows.summaries({"weights": [.005], "backward": [.004]})["input"] == {}
    assert rows.summaries({"weights": [.002], "backward": [.005], "input": [.001]})["input"]["min_ms"] == 1


def test_fastest_way_of_pytorch_by_each_measure():
    found = rows.fastest({"a": {"min_ms": 1, "median_ms": 9}, "b": {"min_ms": 2, "median_ms": 3}})
    assert found == {"min_ms": 1, "min_way": "a", "median_ms": 3, "median_way": "b"}


def test_averages_are_of_forward_and_both_gradients():
    def row(name, direction, torch, group="g"):
        return {"name": name, "group": group, "direction": direction, "nnlite": {"min_ms": 2.0},
                "torch": {"min_ms": torch}}

    found = rows.averages([row("a", "forward", 2), row("a", "weights", 4), row("a", "input", 6),
                           row("a", "backward", 99), row("b", "forward", 1), row("other", "forward", .1, ""),
                           {**row("c", "input", 9), "nnlite": {}}])
    assert found == [{"group": "g", "value": "min", "mean": (1 + 2 + 3 + .5) / 4, "smallest": .5,
                      "smallest_at": "b forward",
                      "directions": {"forward": .75, "weights": 2, "input": 3, "backward": 49.5}}]


class Saved:
    """A contestant whose results are given."""

    problem = None

    def __init__(self, name, **results):
        self.name, self.results = name, results

    def ask(self, item, results):
        np.savez(results, **self.results)
        return {"saved": sorted(self.results)}


def test_results_are_compared():
    row, y = rows.Row("a row", {}), np.array([1.0, -4.0])

    def difference(**theirs):
        return rows.differences({"nnlite": Saved("nnlite", y=y), "peer": Saved("peer", **theirs)}, row)

    assert difference(y=y + [0, 4e-4]) == pytest.approx(1e-4, rel=1e-3)
    for wrong in ({"y": y * 1.01}, {"y": y[:1]}, {"y": y * np.nan}, {"dx": y}):
        with pytest.raises(SystemExit, match="a row: .*nnlite"):
            difference(**wrong)
    assert rows.differences({"nnlite": Saved("nnlite"), "peer": Saved("peer")}, row) is None


def test_first_losses_are_compared():
    contestant = lambda name, *losses: SimpleNamespace(name=name, problem=None, hello={"losses": losses})
    ours = contestant("nnlite", 2.0, 1.0)
    near = [contestant("a", 2.0, 1.0), contestant("b", 2.0, 1.0005)]
    assert losses_differ([ours, *near]) == pytest.approx(5e-4, rel=.01)
    for other in (1.01, float("nan")):
        with pytest.raises(SystemExit, match="loss of step 2"):
            losses_differ([ours, contestant("a", 2.0, other)])
    assert losses_differ([SimpleNamespace(name="nnlite", problem=None, hello={})]) is None


@pytest.mark.slow
@pytest.mark.parametrize("script, arguments", [
    ("bench_models.py", ["--steps", "2", "--rounds", "1", "--ways", "fused"]),
    ("bench_models.py", ["--preset", "cnn4", "--steps", "2", "--rounds", "1", "--ways", "eager-fused-channels_last"]),
    ("bench_layers.py", ["gaussian_kl", "ELU", "--seconds", "0.01", "--rounds", "1"]),
    ("bench_images.py", ["conv 3x3 50x6", "ReLU 10x1000", "50x7", "--seconds", "0.01", "--rounds", "1"])])
def test_scripts_run(script, arguments, tmp_path):
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments, "--json", tmp_path / "result.json"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nnlite" in done.stdout and (tmp_path / "result.json").exists()
