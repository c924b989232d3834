"""`python -m nnlite.train` on small data: what it prints, what lies in the run folder, every option."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import small_runs
from nnlite import evaluate, report, train
from nnlite.data import landmarks, synthetic
from nnlite.data import triplets as triplet_files
from nnlite.experiments import FaceExperiment
from nnlite.experiments.face_options import load_faces
from nnlite.runs import free_folder, open_run
from nnlite.settings import FACES
from small_runs import contents, metrics, options, posed_file, snapshot


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return posed_file(tmp_path_factory.mktemp("data") / "faces.h5")


@pytest.fixture()
def evaluated(monkeypatch):
    """The runs that would have been evaluated."""
    found = []
    monkeypatch.setattr(report, "evaluate", found.append)
    return found


@pytest.fixture(scope="module")
def faces68(tmp_path_factory):
    return posed_file(tmp_path_factory.mktemp("data68") / "faces.h5", points=68)


@pytest.fixture(scope="module")
def whole(faces68, tmp_path_factory):
    """A run with everything, of 68 points on the fast ops: folder, standard output, standard error."""
    out, err, run = io.StringIO(), io.StringIO(), tmp_path_factory.mktemp("whole") / "run"
    arguments = options(faces68, run, device="cpu", iterations=30, validate_every=10, checkpoint_every=10,
                        encoder="[408,12,10,4]", decoder="[208,10,12,204]")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert train.main(arguments) == 0
    return run, out.getvalue(), err.getvalue()


def test_what_lies_in_the_run_folder(whole):
    run = whole[0]
    assert sorted(path.name for path in run.iterdir()) == ["best.h5", "config.json", "last.h5", "metrics.jsonl",
                                                            "report"]
    names = {path.name for path in (run / "report").iterdir()}
    assert "metrics.json" in names
    assert len([name for name in names if name.endswith(".png")]) >= 5


def test_the_lines_of_metrics(whole):
    lines = metrics(whole[0])
    assert [line["iteration"] for line in lines] == [10, 20, 30]
    for line in lines:
        assert {"loss", "iterations_per_second", "validation_elbo", "validation_reconstruction", "validation_kl",
                "validation_triplets"} <= set(line)
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in line.values())
        # ELBO = -(D/2) ln(2 pi s^2) - the three terms, s^2 1e-3 in posed-m3-kl-7
        constant = -204 / 2 * math.log(2 * math.pi * 1e-3)
        terms = sum(line[f"validation_{name}"] for name in ("reconstruction", "kl", "triplets"))
        assert line["validation_elbo"] == pytest.approx(constant - terms)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_best_is_the_highest_elbo(whole):
    best = contents(whole[0] / "best.h5")
    top = max(metrics(whole[0]), key=lambda line: line["validation_elbo"])
    assert best["@iteration"] == top["iteration"]
    assert best["@validation_elbo"] == top["validation_elbo"]


def test_the_validation_elbo_can_be_had_again_from_best(whole):
    run = open_run(whole[0], "reference")
    elbo = run.load_best()["validation_elbo"]
    assert run.experiment.validate()["validation_elbo"] == pytest.approx(elbo, rel=1e-5)


def test_config_holds_every_setting(whole, faces68):
    config = json.loads((whole[0] / "config.json").read_text())
    assert config["model"] == "vae3" and config["preset"] == "posed-m3-kl-7" and config["seed"] == 0
    assert config["data"] == str(faces68.resolve()) and config["dtype"] == "float32" and config["iterations"] == 30
    assert set(FACES) <= set(config["settings"])
    assert config["settings"]["encoder"] == [408, 12, 10, 4] and config["settings"]["checkpoint_every"] == 10


def test_what_is_printed(whole, faces68):
    run, out, err = whole
    lines = out.splitlines()
    assert lines[0] == f"nnlite: vae3, preset posed-m3-kl-7, 30 iterations, run {run}"
    assert lines[1].startswith("device: cpu, ") and lines[1].endswith("float32")
    assert lines[2] == f"data: {faces68}: posed faces of 204 numbers (75 train, 25 validation, 25 test)"
    assert lines[3] == "triplets: artificial (300 train, 100 validation, 100 test)"
    total = sum(m * n + n for sizes in ((408, 12, 10, 8), (208, 10, 12, 204)) for m, n in zip(sizes, sizes[1:]))
    assert f"total{total:69,}" in lines   # columns of 14 + 20 + 28 + 12
    assert any(line.startswith("evaluating iteration ") for line in lines)
    table = out[out.index("evaluating iteration"):]
    for name in ("raw", "PCA-20", "vae3, mu", "validation", "test"):
        assert name in table
    assert "30/30" in err and "loss " in err and "ELBO " in err and "it/s" in err
    assert max(map(len, lines)) <= 120 + len(str(run))   # paths are as long as they are


def test_evaluate_again_gives_the_same_numbers(whole, capsys):
    before = (whole[0] / "report" / "metrics.json").read_bytes()
    last = (whole[0] / "last.h5").read_bytes()
    (whole[0] / "report" / "metrics.json").unlink()
    assert evaluate.main([str(whole[0]), "--device", "cpu"]) == 0
    assert (whole[0] / "report" / "metrics.json").read_bytes() == before
    assert (whole[0] / "last.h5").read_bytes() == last
    assert "vae3, mu" in capsys.readouterr().out


def test_best_h5_is_what_is_evaluated(data, evaluated, tmp_path, monkeypatch, capsys):
    """The parameters with the highest ELBO, not the last ones."""
    validate = FaceExperiment.validate

    def rising_then_falling(self):
        return {**validate(self), "validation_elbo": -abs(int(self.optimiser.steps) - 10.0)}

    stopped = small_runs.make_run(data, tmp_path / "stopped", iterations=20, validate_every=5)
    with small_runs.quiet():
        train.fit(stopped, lambda: int(stopped.experiment.optimiser.steps) == 10)
    monkeypatch.setattr(FaceExperiment, "validate", rising_then_falling)
    assert train.main(options(data, tmp_path / "run", iterations=20, validate_every=5)) == 0
    assert "evaluating iteration 10 (validation ELBO -0)" in capsys.readouterr().out
    best = contents(tmp_path / "run" / "best.h5")["parameters"]
    assert best == contents(tmp_path / "stopped" / "last.h5")["parameters"]
    assert best != contents(tmp_path / "run" / "last.h5")["parameters"]
    assert evaluated[0].model.parameters.values.tobytes() == best[2]


# -- options -----------------------------------------------------------------------------------------------------------


def settings_of(*words, data):
    """The settings that a command line comes to."""
    arguments = train.parser().parse_args(["--data", str(data), *words])
    return train.resolve(arguments)[0]["settings"]


VALUES = {"encoder": [498, 6, 5], "decoder": [254, 7, 249], "reconstruction_variance": 0.02,
          "topological_variance": 0.5, "anneal": 17, "anneal_mode": "prior", "learning_rate": 0.003, "keep_prob": 0.75,
          "batch_size": 9, "triplet_batch": 3, "samples": 4, "triplet_samples": 5, "iterations": 123,
          "validate_every": 11, "checkpoint_every": 13}


def test_set_reaches_every_setting(data):
    assert set(VALUES) == set(FACES)
    words = [word for key, value in VALUES.items() for word in ("--set", f"{key}={value}")]
    found = settings_of("--model", "vae3", *words, data=data)
    assert {key: found[key] for key in VALUES} == VALUES
    assert settings_of("--model", "vae3", "--quick", *words, data=data) == found


def test_every_setting_is_used(data, tmp_path):
    """Each one alone changes what is trained, or when something is written."""
    def outcome(**changes):
        sizes = {key: changes.pop(key) for key in ("encoder", "decoder") if key in changes}
        base = dict(iterations=4, validate_every=2, checkpoint_every=2, anneal=8, keep_prob=0.9)
        words = options(data, **{**base, **changes})
        words += [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
        config, faces = train.resolve(train.parser().parse_args(words))
        run = train.runs.Run(tmp_path / "run", config, faces, train.get_ops("reference"))
        saved = []
        run.save_last, run.save_best, run.add_metrics = saved.append, lambda **_: None, saved.append
        run.load_last = lambda: None
        with small_runs.quiet():
            train.fit(run, lambda: False)
        lines = [{key: value for key, value in line.items() if key != "iterations_per_second"} for line in saved]
        return lines, run.model.parameters.values.tobytes()

    plain = outcome()
    assert outcome() == plain
    changes = {**VALUES, "encoder": [498, 6, 10, 4], "decoder": [253, 7, 12, 249], "iterations": 5,
               "validate_every": 1, "checkpoint_every": 1}
    for key, value in changes.items():
        assert outcome(**{key: value}) != plain, key


def test_a_preset_as_it_stands_on_a_file(data):
    found = settings_of("--preset", "posed-m2-5", data=data)
    assert found["iterations"] == 100_000 and found["anneal"] == 50_000 and found["validate_every"] == 2500
    assert found["checkpoint_every"] == 2500 and found["reconstruction_variance"] == 5e-4


def test_fewer_iterations_shorten_annealing(data):
    for words in (["--iterations", "1000"], ["--set", "iterations=1000"]):
        found = settings_of("--preset", "posed-m2-5", *words, data=data)
        assert found["iterations"] == 1000 and found["anneal"] == 500
        assert 1000 % found["validate_every"] == 0
    found = settings_of("--preset", "posed-m2-5", "--iterations", "1000", "--set", "anneal=7", data=data)
    assert found["anneal"] == 7


def test_several_settings(data):
    words = "--set", "keep_prob=0.5", "samples=3", "--quick", "--set", "batch_size=60"
    found = settings_of("--preset", "posed-m2-5", *words, data=data)
    assert (found["keep_prob"], found["samples"], found["batch_size"]) == (0.5, 3, 60)


def test_quick(data):
    found = settings_of("--model", "vae3", "--quick", data=data)
    assert found["iterations"] <= 1000 and found["anneal"] == found["iterations"]
    assert found["checkpoint_every"] <= found["iterations"]
    assert settings_of("--model", "vae3", "--quick", "--iterations", "50", data=data)["iterations"] == 50
    assert settings_of("--model", "vae3", "--quick", "--set", "iterations=60", data=data)["iterations"] == 60


def test_the_published_best_is_the_default(data):
    for model, preset in (("vae1", "posed-m1-5"), ("vae2", "posed-m2-3"), ("vae3", "posed-m3-kl-7")):
        arguments = train.parser().parse_args(["--data", str(data), "--model", model])
        assert train.resolve(arguments)[0]["preset"] == preset


def test_without_a_file(evaluated, tmp_path, monkeypatch, capsys):
    """The built-in sets, and a run folder of its own each time."""
    monkeypatch.chdir(tmp_path)
    small = [word for key, value in {**small_runs.SMALL, "encoder": "[498,8,4]", "decoder": "[253,8,249]"}.items()
             for word in ("--set", f"{key}={value}")]
    for number in (1, 2):
        assert train.main(["--model", "vae3", "--iterations", "2", "--device", "reference", *small]) == 0
        assert f"run runs/posed-m3-kl-7-{number}" in capsys.readouterr().out
        assert evaluated[-1].faces.x.shape == (2500, 249)
    assert free_folder("posed-m3-kl-7").name == "posed-m3-kl-7-3"


def test_default_run_of_the_built_in_set():
    arguments = train.parser().parse_args(["--model", "vae3"])
    config = train.resolve(arguments)[0]
    assert config["data"] == "built-in posed" and 10_000 <= config["iterations"] <= 100_000
    assert config["settings"]["anneal"] == config["iterations"]


def test_spontaneous_data_and_its_triplets(evaluated, tmp_path, capsys):
    landmarks.write(tmp_path / "faces.h5", synthetic.spontaneous(persons=6, frames=30))
    assert train.main(options(tmp_path / "faces.h5", tmp_path / "run", iterations=3)) == 0
    out = capsys.readouterr().out
    assert "preset spontaneous-m3-prior-3" in out and "answered by simulated workers" in out


def test_triplets_from_a_file(data, evaluated, tmp_path, capsys):
    made = triplet_files.artificial_splits(load_faces(str(data)), seed=3)
    triplet_files.write(tmp_path / "triplets.h5", made)
    arguments = [*options(data, tmp_path / "run", iterations=3), "--triplets", str(tmp_path / "triplets.h5")]
    assert train.main(arguments) == 0
    assert f"triplets: from {tmp_path / 'triplets.h5'}" in capsys.readouterr().out
    np.testing.assert_array_equal(evaluated[0].triplets["train"].rows, made["train"].rows)
    np.testing.assert_array_equal(open_run(tmp_path / "run", "reference").triplets["test"].rows, made["test"].rows)


@pytest.mark.parametrize("model", ["vae1", "vae2", "vae3"])
@pytest.mark.parametrize("points", [68, 20])
def test_other_numbers_of_points(points, model, evaluated, tmp_path):
    data = posed_file(tmp_path / "faces.h5", points=points)
    words = ["--model", model, "--data", str(data), "--out", str(tmp_path / "run"), "--iterations", "3", "--device",
             "reference", "--set", "batch_size=8"]
    assert train.main(words) == 0
    features, conditional = 3 * points, model != "vae1"
    config = evaluated[0].config["settings"]
    assert config["encoder"][0] == features * (2 if conditional else 1)
    assert config["decoder"][0] == 30 + features * conditional and config["decoder"][-1] == features
    assert evaluated[0].model.encode(np.zeros((2, features), "f4"), np.zeros((2, features), "f4"))[0].shape == (2, 30)


def test_float64(data, evaluated, tmp_path):
    assert train.main([*options(data, tmp_path / "run", iterations=3), "--dtype", "float64"]) == 0
    with h5py.File(tmp_path / "run" / "last.h5") as file:
        assert file["parameters"].dtype == file["optimiser/m"].dtype == np.float64


def test_the_seed_decides(data, evaluated, tmp_path):
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train.main([*options(data, tmp_path / name, iterations=5), "--seed", str(seed)]) == 0
        files.append(contents(tmp_path / name / "last.h5")["parameters"])
    assert files[0] == files[1] != files[2]


def test_the_same_on_reference_and_cpu(data, evaluated, tmp_path):
    """Counted randomness: the fast ops train the same model, up to rounding."""
    found = []
    for device in ("reference", "cpu"):
        words = options(data, tmp_path / device, device=device, iterations=20, validate_every=10)
        assert train.main([*words, "--dtype", "float64"]) == 0
        found.append(metrics(tmp_path / device))
    for one, two in zip(*found):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-9)
        assert one["validation_elbo"] == pytest.approx(two["validation_elbo"], rel=1e-9)


def test_summary_writes_nothing(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main([*options(data, tmp_path / "run"), "--summary"]) == 0
    assert "total" in capsys.readouterr().out.splitlines()[-1]
    assert snapshot(tmp_path) == {}


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--model --preset --data --iterations --device --dtype --seed --out --resume --set --quick "
                   "--summary --list-presets").split():
        assert option in text


def test_as_a_process(data, tmp_path):
    """`python -m`: exit codes, and nothing but the sentence on standard error."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}

    def process(*words):
        return subprocess.run([sys.executable, "-m", "nnlite.train", *words], env=environment, text=True,
                              capture_output=True)
    bad = process("--preset", "posed-m3-kl-12")
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.startswith("nnlite: --preset: expected a name that --list-presets prints, got 'posed-m3-kl-12'")
    assert bad.stderr.count("\n") == 1
    diverged = process(*options(data, tmp_path / "run", iterations=10, learning_rate=1e30))
    assert diverged.returncode == 1 and "Traceback" not in diverged.stderr
    assert "expected a finite loss" in diverged.stderr.splitlines()[-1]


def test_a_training_without_the_extra_says_so_first(monkeypatch, capsys):
    """The words come before the hours of training, not after them; where the extra is there nothing is said."""
    train.announce_missing_extra(FaceExperiment)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "sklearn", None)   # importing it now fails
    train.announce_missing_extra(FaceExperiment)
    error = capsys.readouterr().err
    assert error.startswith("nnlite: the run will be trained but not evaluated;") and error.count("\n") == 1
    assert "sklearn" in error and 'pip install -e ".[report]"' in error
