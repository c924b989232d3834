"""What the benchmarks compute with: the count of floating-point operations against products counted as they happen, the
summaries, the check that both sides do the same; and that the scripts run."""

import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnlite.errors import NnliteError
from nnlite.layers import Concat, Linear
from nnlite.models import MODELS
from nnlite.models.vae import Batch
from nnlite.ops import reference
from nnlite.ops.reference import ReferenceOps
from nnlite.presets import PRESETS

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench_images  # noqa: E402
import bench_models  # noqa: E402
import cases  # noqa: E402
import rows  # noqa: E402
import steps  # noqa: E402
from cases import gflop  # noqa: E402
from comparison import logits_differ, losses_differ, speedups  # noqa: E402
from counting import classifier_forward, classifier_step, products, vae_step  # noqa: E402


class CountingOps(ReferenceOps):
    """Adds up 2 m n k of every product of matrices (..., m, k) and (..., k, n)."""

    def __init__(self):
        self.count = 0
        self.xp = SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if not name.startswith("_")})
        self.xp.matmul = self.matmul

    def matmul(self, a, b):
        self.count += 2 * a.size * b.shape[-1]
        return np.matmul(a, b)

    def depthwise_conv2d(self, x, W, *options):
        y = super().depthwise_conv2d(x, W, *options)
        self.count += 2 * y.size * W.shape[0] * W.shape[1]
        return y

    def depthwise_conv2d_backward(self, dy, x, W, *options):
        self.count += 2 * 2 * dy.size * W.shape[0] * W.shape[1]
        return super().depthwise_conv2d_backward(dy, x, W, *options)


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
    assert classifier_step(model, (B, *shape)) == ops.count


SMALL = {"effnetv2s": {"width": 0.2, "depth": 0.2, "top_filters": 16}, "resnet-small": {}, "vit-tiny": {},
         "vit-tiny of kept inputs": {"recompute": True}}


@pytest.mark.parametrize("name", SMALL)
def test_count_of_blocks(name, monkeypatch):
    erf = reference._erf
    monkeypatch.setattr(reference, "_erf", lambda xp, x: erf(np, x))   # it asks whether xp is NumPy
    ops, x_shape = CountingOps(), (2, 36, 36, 2)
    model = MODELS[name.split()[0]](shape=x_shape[1:], classes=5, **SMALL[name]).build(ops)
    ops.count = 0
    y = model.forward(np.zeros(x_shape, "float32"))
    forward = ops.count
    assert classifier_forward(model, x_shape) == forward
    ops.count = 0
    model.forward(np.zeros(x_shape, "float32"), train=True)
    model.backward(np.zeros_like(y), need_dx=False)
    twice = 0   # q k^T in backward; with recompute all blocks'
    if name.startswith("vit"):
        T, D, blocks = 37, 128, model.layers[3]
        twice = len(blocks.layers) * 2 * 2 * T * T * D
        twice += sum(products(blocks, (2, T, D))) if SMALL[name] else 0
    assert classifier_step(model, x_shape) == ops.count - twice


@pytest.mark.parametrize("name, shape", [("resnet50", (224, 224, 3)), ("vit-b16", (224, 224, 3)),
                                         ("effnetv2s", (64, 64, 3)), ("effnetv2s-small", (48, 48, 1))])
def test_count_is_pytorchs(name, shape):
    torch = pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
    import torch_peers
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch_peers.NETS[name](channels=shape[2], classes=7)(torch.zeros(2, shape[2], *shape[:2]))
    assert classifier_forward(MODELS[name](shape=shape, classes=7), (2, *shape)) == counter.get_total_flops()


def test_layers_that_nobody_counts():
    with pytest.raises(TypeError, match="Concat"):
        products(Concat(Linear(3, 2), Linear(3, 2)), (4, 3))


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


faces = functools.cache(steps.many_faces)


def test_as_many_faces_as_fer2013_has():
    data = faces()
    assert data.images.shape == (28_709, 48, 48, 1) and len(data.split["train"]) == len(data.labels) == 28_709


def ways(preset, device):
    return cases.ways(PRESETS[preset], device)


def test_ways_of_pytorch():
    assert list(ways("posed-m3-kl-7", "cpu")) == ["nnlite", "adam", "fused", "compiled"]
    for preset in ("mlp-fer2013", "vit-b16"):
        assert list(ways(preset, "cpu")) == ["nnlite"] + [
            f"{mode}-{way}-contiguous" for mode in ("eager", "compiled") for way in ("default", "foreach", "fused")]
    for preset in ("cnn4", "effnetv2s", "resnet50"):
        assert len(ways(preset, "cpu")) == 1 + 12 and len(ways(preset, "cuda")) == 1 + 18
    assert ways("cnn5", "cpu")["eager-fused-channels_last"] == "PyTorch, fused SGD, channels last"


def test_ways_of_inference():
    assert list(cases.inference_ways(PRESETS["vit-tiny"], "cpu")) == [
        "nnlite", "captured", "eager-contiguous", "compiled-contiguous", "frozen-contiguous"]
    labels = cases.inference_ways(PRESETS["effnetv2s"], "cuda")
    assert len(labels) == 2 + 8 and labels["eager-channels_last"] == "PyTorch, channels last"
    assert list(cases.chosen(labels, ["eager"])) == ["nnlite", "captured", "eager-channels_last", "eager-contiguous"]


def test_settings_over_a_preset():
    found = cases.settings_of("effnetv2s-small", ["width=1", "top_filters=1280"], 4)
    assert (found["width"], found["top_filters"], found["batch_size"]) == (1.0, 1280, 4)
    assert found["depth"] == PRESETS["effnetv2s-small"]["depth"] and PRESETS["effnetv2s-small"]["width"] == 1.3
    assert cases.settings_of("resnet50")["batch_size"] == cases.settings_of("vit-b16")["batch_size"] == 4
    assert cases.settings_of("resnet50", ["batch_size=8"])["batch_size"] == 8
    assert cases.seen_shape(found) == (48, 48, 1) and cases.seen_shape(PRESETS["resnet50"]) == (224, 224, 3)
    for wrong in (["widht=1"], ["width"], ["width=-1"], ["freeze=stem.*"], ["micro_batch=2"]):
        with pytest.raises(NnliteError, match="--set"):
            cases.settings_of("effnetv2s", wrong)
    with pytest.raises(NnliteError, match="--batch-size"):
        cases.settings_of("effnetv2s", [], 0)


@pytest.mark.parametrize("arguments", [["--preset", "effnetv2s", "--set", "widht=1"], ["--inference"],
                                       ["--preset", "cnn4", "--inference"], ["--peak"],
                                       ["--preset", "cnn4", "--peak", "--device", "cuda"]])
def test_what_cannot_be_measured_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        bench_models.main(arguments)
    assert end.value.code == 2 and "expected" in capsys.readouterr().err


def test_large_nets_have_few_steps():
    assert cases.steps_of(1.66) == cases.steps_of(7) == 100 and cases.steps_of(100) == 10 and cases.steps_of(500) == 3
    assert cases.warm_up_of(1.66) == 20 and cases.warm_up_of(10) == 10 and cases.warm_up_of(500) == 3


@pytest.mark.parametrize("preset, count", [("mlp-fer2013", 3_313_007), ("cnn4", 417_575), ("cnn4-plain", 416_935)])
def test_parameters_of_the_peers(preset, count):
    pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
    import peers
    net = peers.classifier(PRESETS[preset], (48, 48, 1), 7)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize("preset", cases.PUBLISHED)
def test_parameters_of_the_published_nets(preset):
    torch = pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
    import torch_peers
    with torch.device("meta"):
        net = torch_peers.net(PRESETS[preset], cases.seen_shape(PRESETS[preset]), 7, depth_p=0.2)
    specs = [layer.param_specs for _, layer in cases.make_model(PRESETS[preset]).walk()]
    assert sum(parameter.numel() for parameter in net.parameters()) == sum(
        int(np.prod(shape)) for spec in specs for shape, _ in spec.values())


@pytest.mark.parametrize("preset, assignments", [
    ("vit-tiny", []), ("cnn4-moved", ["batch_size=3"]),
    ("effnetv2s", ["width=0.2", "depth=0.2", "batch_size=6"]),
    ("effnetv2s", ["width=0.2", "depth=0.2", "batch_size=6", "rotate=0", "shift=0", "zoom=0", "contrast=0",
                   "brightness=0"])])
def test_first_losses_are_the_same(preset, assignments, monkeypatch):
    """Of nnlite's reference ops and of PyTorch, over three steps on warped, moved and mirrored images, with balanced
    classes."""
    pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
    pytest.importorskip("safetensors", reason="safetensors, of the extra weights, is missing")
    few = replace(faces(), split={"train": np.arange(0, 28_000, 997)})
    monkeypatch.setattr(steps, "many_faces", lambda: few)
    settings = cases.settings_of(preset, ["batch_size=4", *assignments])
    ours = steps.first_losses(settings, "reference", "nnlite")
    theirs = steps.first_losses(settings, "cpu", "eager-fused-channels_last")
    assert ours == pytest.approx(theirs, rel=1e-4) and len(set(ours)) == len(ours) == steps.CHECKED


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


def test_logits_are_compared():
    contestant = lambda name, *logits: SimpleNamespace(name=name, problem=None, hello={"logits": logits})
    ours = contestant("nnlite", 4.0, -1.0)
    assert logits_differ([ours, contestant("a", 4.0, -1.001)]) == pytest.approx(2.5e-4)
    for other in (-1.01, float("nan")):
        with pytest.raises(SystemExit, match="logits: a's"):
            logits_differ([ours, contestant("a", 4.0, other)])
    assert logits_differ([ours]) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak of a process")
def test_peak_is_that_since_it_was_forgotten():
    """In a process of its own: what other tests have left behind comes and goes."""
    found = subprocess.run([sys.executable, "-c", PEAK], cwd=BENCHMARKS, capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)})
    size, before, forgotten, after = map(float, found.stdout.split())
    assert forgotten == pytest.approx(before, abs=size / 2)
    assert size / 2 < after - before < 3 * size


PEAK = """
from memory import forget_peak, peak_mib, resident_mib
size = 64   # MiB
bytearray(b"x" * (4 * size << 20))
forget_peak()
before, forgotten = resident_mib(), peak_mib()
bytearray(b"x" * (size << 20))
print(size, before, forgotten, peak_mib())
"""


@pytest.mark.slow
@pytest.mark.parametrize("script, arguments", [
    ("bench_models.py", ["--steps", "2", "--rounds", "1", "--ways", "fused"]),
    ("bench_models.py", ["--preset", "cnn4", "--steps", "2", "--rounds", "1", "--ways", "eager-fused-channels_last"]),
    ("bench_models.py", ["--preset", "vit-tiny", "--batch-size", "4", "--steps", "1", "--rounds", "1", "--ways",
                         "eager-fused"]),
    ("bench_models.py", ["--preset", "effnetv2s", "--set", "width=0.2", "depth=0.2", "--inference", "--steps", "1",
                         "--rounds", "1", "--ways", "eager"]),
    ("bench_models.py", ["--preset", "effnetv2s", "--set", "width=0.2", "depth=0.2", "--batch-size", "4", "--peak"]),
    ("bench_layers.py", ["gaussian_kl", "ELU", "--seconds", "0.01", "--rounds", "1"]),
    ("bench_images.py", ["conv 3x3 50x6", "ReLU 10x1000", "50x7", "--seconds", "0.01", "--rounds", "1"])])
def test_scripts_run(script, arguments, tmp_path):
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments, "--json", tmp_path / "result.json"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nnlite" in done.stdout and (tmp_path / "result.json").exists()
