"""The count of floating-point operations that the benchmarks divide by, against products counted as they happen."""

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
from bench_models import gflop, speedups  # noqa: E402
from counting import vae_step  # noqa: E402


class CountingOps(ReferenceOps):
    """Adds up 2 m n k of every product of matrices (m, k) and (k, n)."""

    def __init__(self):
        self.count = 0
        self.xp = SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if not name.startswith("_")})
        self.xp.matmul = self.matmul

    def matmul(self, a, b):
        self.count += 2 * a.shape[0] * a.shape[1] * b.shape[1]
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


@pytest.mark.slow
@pytest.mark.parametrize("script, arguments", [
    ("bench_models.py", ["--steps", "2", "--rounds", "1", "--ways", "fused"]),
    ("bench_layers.py", ["gaussian_kl", "ELU", "--seconds", "0.01", "--rounds", "1"])])
def test_scripts_run(script, arguments, tmp_path):
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments, "--json", tmp_path / "result.json"],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nnlite" in done.stdout and (tmp_path / "result.json").exists()
