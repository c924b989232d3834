"""Training classifiers: the command end to end, each setting against its formula, other runs, killing and resuming."""

import contextlib
import io
import json
import math
import multiprocessing
import os
import pathlib
import signal

import h5py
import numpy as np
import pytest

import small_runs
from nnlite import evaluate, report_labels, train, weights
from nnlite.data import images, synthetic_images
from nnlite.errors import NnliteError
from nnlite.experiments import LabelExperiment
from nnlite.experiments import label_options as label_options_
from nnlite.experiments import micro_batches
from nnlite.experiments.labels import balanced
from nnlite.ops import get_ops, memory
from nnlite.ops.reference import ReferenceOps
from nnlite.presets import BEST, LATER, PRESETS
from nnlite.runs import open_run
from nnlite.settings import KNOWN
from small_runs import NET, SIDE, begun, contents, image_file, image_set, label_options, metrics, outcome, quiet

FOUR = "cross", "star", "round", "square"   # three old classes in another order, and a new one


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_file(tmp_path_factory.mktemp("data") / "images.h5")


@pytest.fixture()
def evaluated(monkeypatch):
    """The runs that would have been evaluated."""
    found = []
    monkeypatch.setattr(report_labels, "evaluate", found.append)
    return found


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run with everything on the fast ops: folder, standard output, standard error."""
    out, err, run = io.StringIO(), io.StringIO(), tmp_path_factory.mktemp("whole") / "run"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert train.main(label_options(data, run, device="cpu", epochs=6, learning_rate=0.01)) == 0
    return run, out.getvalue(), err.getvalue()


def fitted(words, out):
    """A Run trained to its end, not evaluated."""
    run = begun(words, out)
    with quiet():
        train.fit(run, lambda: False)
    return run


def experiment(model="cnn4", ops="reference", set_=None, dtype="float64", seed=3, **settings):
    """A LabelExperiment on a few images, as its preset but for small layers."""
    wanted = {**PRESETS[BEST[model, "faces"]], **NET[model], "batch_size": 10, "iterations": 100, **settings}
    return LabelExperiment(wanted, set_ or image_set(side=SIDE[model]), get_ops(ops), dtype=dtype, seed=seed)


# -- the command -------------------------------------------------------------------------------------------------------


def test_what_lies_in_the_run_folder(whole):
    assert {"best.h5", "config.json", "last.h5", "metrics.jsonl", "report"} == {p.name for p in whole[0].iterdir()}
    assert (whole[0] / "report" / "metrics.json").exists()


def test_the_lines_of_metrics(whole):
    lines = metrics(whole[0])
    assert [line["iteration"] for line in lines] == [4, 8, 12, 16, 20, 24]   # 36 images, batches of 10
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert list(line) == ["iteration", "epoch", "loss", "training_accuracy", "learning_rate",
                              "iterations_per_second", "validation_loss", "validation_accuracy", "validation_f1"]
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in line.values())
        assert line["learning_rate"] == pytest.approx(0.01 * 0.95 ** (line["epoch"] - 1))
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["training_accuracy"] > lines[0]["training_accuracy"]


def test_best_is_the_first_with_the_highest_accuracy(whole):
    best, lines = contents(whole[0] / "best.h5"), metrics(whole[0])
    top = max(lines, key=lambda line: line["validation_accuracy"])   # the first of several
    assert (best["@iteration"], best["@validation_accuracy"]) == (top["iteration"], top["validation_accuracy"])


def test_the_validation_can_be_had_again_from_best(whole):
    run = open_run(whole[0], "reference")
    best = run.load_best()
    line = next(line for line in metrics(whole[0]) if line["iteration"] == best["iteration"])
    assert run.experiment.validate() == pytest.approx({key: line[key] for key in line if key[:4] == "vali"}, rel=1e-4)


def test_config_holds_every_setting(whole, data):
    config = json.loads((whole[0] / "config.json").read_text())
    assert (config["model"], config["preset"], config["seed"]) == ("cnn4", "cnn4", 0)
    assert config["data"] == str(data.resolve()) and config["images"] == 60 and config["shape"] == [8, 8, 1]
    assert config["classes"] == ["round", "square", "cross"] and config["iterations"] == 24
    assert set(KNOWN["cnn4"]) <= set(config["settings"]) and config["settings"]["checkpoint_every"] == 4
    assert config["init_from"] is config["add_class"] is config["teacher"] is None


def test_what_is_printed(whole, data):
    run, out, err = whole
    lines = out.splitlines()
    assert lines[0] == f"nnlite: cnn4, preset cnn4, 24 iterations, run {run}"
    assert lines[1].startswith("device: cpu, ") and lines[1].endswith("float32")
    assert lines[2] == f"data: {data}: images 8x8x1 of 3 classes (36 train, 12 validation, 12 test)"
    assert lines[3] == "training: 6 epochs of 4 batches of 10, adam, learning rate 0.01"
    assert any(line.startswith("evaluating iteration ") and "(validation accuracy " in line for line in lines)
    assert "24/24" in err and "accuracy " in err and "it/s" in err


def test_evaluate_again_and_on_other_images(whole, tmp_path, capsys):
    before = (whole[0] / "report" / "metrics.json").read_bytes()
    assert evaluate.main([str(whole[0]), "--device", "cpu"]) == 0
    assert (whole[0] / "report" / "metrics.json").read_bytes() == before
    image_file(tmp_path / "other.h5", classes=("cross", "round", "square"), seed=5)
    assert evaluate.main([str(whole[0]), "--device", "cpu", "--data", str(tmp_path / "other.h5")]) == 0
    assert json.loads((whole[0] / "report" / "metrics.json").read_text())["production"]["images"] == 60
    (whole[0] / "report" / "metrics.json").write_bytes(before)


@pytest.mark.parametrize("channels, other, said", [
    (1, 3, "colour made grey, as the run's images are"), (3, 1, "grey repeated in three channels, as the run's images"),
    (1, 1, None)])
def test_the_production_check_on_image_files(channels, other, said, tmp_path, monkeypatch, capsys):
    """Of other sizes and channels: as Pillow resizes and converts them."""
    image, given = pytest.importorskip("PIL.Image"), []
    run = fitted(label_options(image_file(tmp_path / "own.h5", channels=channels), tmp_path / "run", epochs=1),
                 tmp_path / "run")
    few, folder, wanted = image_set(side=13, channels=other), tmp_path / "files", {}
    for number, (pixels_, label) in enumerate(zip(few.images, few.labels)):
        path = folder / few.classes[label] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = image.fromarray(pixels_ if other == 3 else pixels_[..., 0])
        picture.save(path)
        small = picture.resize((8, 8), image.Resampling.BILINEAR).convert("L" if channels == 1 else "RGB")
        wanted[np.asarray(small).tobytes()] = label
    monkeypatch.setattr(report_labels, "evaluate", lambda run, data: given.append(data))
    capsys.readouterr()
    assert evaluate.main([str(run.path), "--device", "reference", "--data", str(folder)]) == 0
    data, = given
    assert data.images.shape == (60, 8, 8, channels) and len(wanted) == 60
    found = {pixels_.tobytes(): few.classes.index(data.classes[k]) for pixels_, k in zip(data.images, data.labels)}
    assert found == wanted
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "nnlite" in line] == ([] if said is None else [
        line for line in lines if line.startswith(f"nnlite: {folder}: {said}")])
    assert len(lines) == (said is not None)


@pytest.mark.parametrize("model", ["mlp", "cnn3", "cnn4", "cnn5"])
def test_every_model_learns(model, tmp_path):
    """The classes differ by one bright column."""
    data = image_file(tmp_path / "images.h5", side=SIDE[model], n=150)
    wide = {"hidden": "[30,30]", "keep_prob": 1.0} if model in ("mlp", "cnn5") else {}
    run = fitted(label_options(data, tmp_path / "run", model, epochs=15, learning_rate=0.005, optimiser="adam", l2=0.0,
                               flip=False, **wide), tmp_path / "run")
    lines = metrics(run.path)
    assert max(line["validation_accuracy"] for line in lines) > 0.8 and lines[-1]["loss"] < 0.5 * lines[0]["loss"]


def test_color_images_and_the_other_optimisers(tmp_path):
    data = image_file(tmp_path / "images.h5", channels=3)
    found = {}
    for name in ("sgd", "adagrad", "rmsprop", "adam", "adamw"):
        run = fitted(label_options(data, tmp_path / name, epochs=1, optimiser=name, momentum=0.9), tmp_path / name)
        found[name] = run.model.parameters.values.tobytes()
        assert type(run.experiment.optimiser).__name__.lower() == name
    assert len(set(found.values())) == 5


def test_the_built_in_faces_and_the_first_free_folder(evaluated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(label_options_.BUILT_IN, "built-in faces", lambda: synthetic_images.faces(persons=10))
    config = train.resolve(train.parser().parse_args(["--model", "cnn4"]))[0]
    assert config["data"] == "built-in faces" and 3 <= config["settings"]["epochs"] < 40
    assert config["shape"] == [48, 48, 1] and len(config["classes"]) == 7
    with quiet():
        assert train.main(["--preset", "mlp-raw", "--iterations", "2", "--set", "hidden=[4]"]) == 0
    assert evaluated[0].path.name == "mlp-raw-1" and evaluated[0].config["settings"]["epochs"] == 1


def test_data_decides_between_the_presets(tmp_path):
    def preset(side, channels):
        image_file(tmp_path / "images.h5", side=side, channels=channels)
        options = train.parser().parse_args(["--model", "mlp", "--data", str(tmp_path / "images.h5")])
        return train.resolve(options)[0]["preset"]
    assert preset(32, 3) == "mlp-cifar" and preset(48, 1) == "mlp-fer2013" and preset(10, 3) == "mlp-fer2013"


# -- how long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, iterations, epochs, every", [
    ("--epochs 5", 20, 5, 4), ("--iterations 9", 9, 3, 4), ("--iterations 3", 3, 1, 3), ("", 160, 40, 4),
    ("--set epochs=2", 8, 2, 4), ("--set iterations=6", 6, 2, 4), ("--quick", 400, 100, 100),
    ("--quick --epochs 5", 20, 5, 100), ("--epochs 5 --set validate_every=3", 20, 5, 3),
    ("--epochs 3 --set batch_size=36", 3, 3, 1)])
def test_epochs_and_iterations(words, iterations, epochs, every, data):
    options = train.parser().parse_args([*label_options(data), *words.split()])
    settings = train.resolve(options)[0]["settings"]
    assert (settings["iterations"], settings["epochs"], settings["validate_every"]) == (iterations, epochs, every)


def test_early_stopping(data, evaluated, tmp_path, monkeypatch, capsys):
    """Best in the second epoch, then three epochs of patience; the run is at its end, also when resumed."""
    accuracies = {4: 0.3, 8: 0.5, 12: 0.5, 16: 0.4, 20: 0.5}

    def validate(self):
        return {"validation_accuracy": accuracies[int(self.optimiser.steps)], "validation_f1": 0.5}
    monkeypatch.setattr(LabelExperiment, "validate", validate)
    assert train.main(label_options(data, tmp_path / "run", epochs=9, patience=3)) == 0
    assert "evaluating iteration 8 (validation accuracy 0.5)" in capsys.readouterr().out
    assert [line["iteration"] for line in metrics(tmp_path / "run")] == [4, 8, 12, 16, 20]
    before = contents(tmp_path / "run" / "last.h5")
    assert before["@iteration"] == 20 and len(evaluated) == 1
    assert train.main(["--resume", str(tmp_path / "run"), "--device", "reference"]) == 0
    assert contents(tmp_path / "run" / "last.h5") == before and len(evaluated) == 2


def test_patience_0_never_stops(data, tmp_path, monkeypatch):
    monkeypatch.setattr(LabelExperiment, "validate", lambda self: dict.fromkeys(
        ("validation_accuracy", "validation_f1"), 0.5))
    assert fitted(label_options(data, tmp_path / "run", epochs=7, patience=0), tmp_path / "run").load_last()[
        "iteration"] == 28


# -- each setting against its formula ----------------------------------------------------------------------------------


def test_learning_rates():
    plain = experiment(learning_rate=0.2, lr_decay=0.5, inverse_decay=0.0)
    assert [plain.rate(i) for i in range(9)] == [0.2] * 4 + [0.1] * 4 + [0.05]   # 4 steps an epoch
    falling = experiment(learning_rate=0.2, lr_decay=1.0, inverse_decay=0.25)
    assert [falling.rate(i) for i in range(5)] == pytest.approx([0.2, 0.16, 0.2 / 1.5, 0.2 / 1.75, 0.1])
    both = experiment(learning_rate=0.2, lr_decay=0.5, inverse_decay=0.25)
    assert both.rate(4) == pytest.approx(0.05)
    both.step(4)
    assert float(both.optimiser.lr) == pytest.approx(0.05)


def pixels(e, rows):
    return e.data.images[rows].astype(float)


@pytest.mark.parametrize("kind", ["standard", "centred", "raw"])
def test_normalisation(kind):
    few = image_set(channels=3)
    e = experiment(set_=few, normalise=kind)
    train_part = few.images[few.split["train"]].astype(float)
    mean, std = train_part.mean((0, 1, 2)), train_part.std((0, 1, 2))
    rows = few.split["test"]
    wanted = {"standard": (pixels(e, rows) - mean) / std, "centred": pixels(e, rows) - mean, "raw": pixels(e, rows)}
    np.testing.assert_allclose(e.normalise(few.images[rows]), wanted[kind], rtol=1e-5, atol=1e-5)


def batch_of(e, iteration):
    """What the first layer sees in that step."""
    seen, forward = [], e.model.forward
    e.model.forward = lambda x, train=False: seen.append(x.copy()) or forward(x, train=train)
    e.prepare(iteration)
    e.forward_backward()
    del e.model.forward
    return seen[0]


def test_flips_are_counted_randomness():
    e = experiment(flip=True, normalise="raw")
    flipped = []
    for iteration in range(40):
        x = batch_of(e, iteration)
        rows = e.train_rows[e.batches.rows(iteration)]
        as_they_are = (x == pixels(e, rows)).all((1, 2, 3))
        mirrored = (x == pixels(e, rows)[:, :, ::-1]).all((1, 2, 3))
        assert (as_they_are ^ mirrored).all()
        flipped.append(mirrored)
    assert 0.4 < np.mean(flipped) < 0.6
    again = experiment(flip=True, normalise="raw")
    np.testing.assert_array_equal(batch_of(again, 17), batch_of(e, 17))
    # the words of the stream of that name, from the model's own generator
    e.model.rng.set_step(17)
    words = e.ops.random_words(1, 10, e.model.rng.key("flips"))[0]
    np.testing.assert_array_equal(words < 2 ** 31, flipped[17])


def test_without_flips():
    e = experiment(flip=False, normalise="raw")
    for iteration in range(5):
        np.testing.assert_array_equal(batch_of(e, iteration), pixels(e, e.train_rows[e.batches.rows(iteration)]))


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def training_logits(e, iteration):
    """Logits and labels of that step, from the parameters as they are."""
    x = batch_of(e, iteration)
    labels = e.data.labels[e.train_rows[e.batches.rows(iteration)]]
    return e.model.forward(x, train=True), labels


@pytest.mark.parametrize("settings", [{}, {"smoothing": 0.3}, {"class_weights": "balanced"},
                                      {"class_weights": "balanced", "smoothing": 0.1}])
def test_the_loss(settings):
    few = image_set()
    labels = np.where(np.arange(60) % 4 == 1, 1, few.labels).astype(np.int32)   # uneven
    e = experiment(set_=images.ImageSet(few.images, labels, few.classes, few.split, few.source), **settings)
    z, truth = training_logits(e, 3)
    e.prepare(3)
    terms = e.forward_backward()
    epsilon = settings.get("smoothing", 0.0)
    target = np.eye(3)[truth] * (1 - epsilon) + epsilon / 3
    counts = np.bincount(labels[few.split["train"]], minlength=3)
    weight = (1 / counts)[truth] if "class_weights" in settings else np.ones(10)
    rows = -(target * np.log(softmax(z))).sum(1)
    assert float(terms["loss"]) == pytest.approx((weight * rows).sum() / weight.sum(), rel=1e-12)
    assert int(terms["hits"]) == (z.argmax(1) == truth).sum()


def test_balanced_weights():
    labels = np.array([0] * 6 + [1] * 3 + [3])
    weights = balanced(labels, 5)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[0] * 6 == pytest.approx(weights[1] * 3) == pytest.approx(weights[3])


def test_first_weights():
    plain, small = experiment("mlp"), experiment("mlp", init_scale=0.1)
    for again in (False, True):
        for entry in plain.model.parameters.table:
            one, other = (e.model.parameters.value(entry) for e in (plain, small))
            np.testing.assert_allclose(other, 0.1 * one if entry.attribute == "W" else one, rtol=1e-15)
        if not again:
            small.step(0)
            small.restart()


def test_restart_forgets_everything():
    e, fresh = experiment(), experiment()
    e.step(0)
    e.restart()
    for one, two in ((e.model.parameters.values, fresh.model.parameters.values),
                     *zip(e.model.state.values(), fresh.model.state.values()),
                     *zip(e.optimiser.state().values(), fresh.optimiser.state().values())):
        np.testing.assert_array_equal(one, two)


def test_l2_on_weights_alone():
    """A step of SGD with decay moves weights by -lr l2 W more; biases, scales and shifts not."""
    settings = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.1, "flip": False}
    plain, decayed = experiment(l2=0.0, **settings), experiment(l2=0.5, **settings)
    for entry in plain.model.parameters.table:
        plain.model.parameters.value(entry)[...] += 0.01 * (entry.attribute == "b")
    before = plain.model.parameters.values.copy()
    decayed.model.parameters.values[...] = before
    plain.step(0), decayed.step(0)
    for entry in plain.model.parameters.table:
        part = slice(entry.start, entry.stop)
        moved = decayed.model.parameters.values[part] - plain.model.parameters.values[part]
        wanted = -0.1 * 0.5 * before[part] if entry.attribute == "W" else 0
        np.testing.assert_allclose(moved, wanted, atol=1e-14)


def test_validation_against_plain_numbers():
    e = experiment()
    e.step(0)
    rows = e.data.split["validation"]
    p = softmax(np.asarray(e.model.forward(e.normalise(e.data.images[rows]))))
    truth, called = e.data.labels[rows], p.argmax(1)
    f1 = [2 * ((truth == k) & (called == k)).sum() / ((truth == k).sum() + (called == k).sum()) for k in range(3)]
    assert e.validate() == pytest.approx({"validation_loss": -np.log(p[np.arange(12), truth]).mean(),
                                          "validation_accuracy": (truth == called).mean(),
                                          "validation_f1": np.mean(f1)}, rel=1e-9)
    np.testing.assert_allclose(e.probabilities(e.data.images[rows]), p, rtol=1e-6)


def test_validation_in_chunks(monkeypatch):
    e = experiment()
    whole = e.validate()
    monkeypatch.setattr("nnlite.experiments.labels.CHUNK", 5)
    assert e.validate() == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("size, channels, batch, micro_batch, wanted", [
    ([48, 48], 0, 10, 0, 200), ([48, 48], 3, 10, 0, 200), ([64, 64], 3, 10, 0, 200), ([128, 128], 3, 10, 0, 50),
    ([224, 224], 3, 4, 0, 16), ([224, 224], 3, 30, 0, 30), ([224, 224], 3, 300, 0, 200), ([224, 224], 3, 30, 8, 8),
    ([48, 48], 0, 10, 4, 4)])
def test_how_many_images_are_evaluated_at_once(size, channels, batch, micro_batch, wanted):
    e = experiment("mlp", size=size, channels=channels, batch_size=batch, micro_batch=micro_batch)
    found = [part.stop - part.start for part in e._chunks(500)]
    assert found[0] == wanted and sum(found) == 500 and set(found[:-1]) == {wanted}


def test_training_accuracy_is_a_running_count(data, tmp_path, monkeypatch):
    """Over all steps since the last validation, also where a kill lies between them."""
    run, hits = begun(label_options(data, tmp_path / "run", epochs=2, checkpoint_every=1), tmp_path / "run"), []
    sums = LabelExperiment.sums
    monkeypatch.setattr(LabelExperiment, "sums",
                        lambda self, terms: hits.append(int(terms["hits"])) or sums(self, terms))
    with quiet():
        train.fit(run, lambda: len(hits) == 6)
        train.fit(open_run(run.path, "reference"), lambda: False)
    assert [line["training_accuracy"] for line in metrics(run.path)] == pytest.approx(
        [sum(hits[:4]) / 40, sum(hits[4:]) / 40])
    assert len(hits) == 8


def test_subset(data, tmp_path):
    run = fitted(label_options(data, tmp_path / "run", "mlp", subset=[20, 1], epochs=3), tmp_path / "run")
    parts = run.experiment.data.split
    whole = images.read(data).split
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 20, "validation": 1, "test": 12}
    assert set(parts["train"]) < set(whole["train"]) and set(parts["validation"]) < set(whole["validation"])
    np.testing.assert_array_equal(open_run(run.path, "reference").experiment.data.split["train"], parts["train"])
    assert metrics(run.path)[-1]["iteration"] == 6


VALUES = {"rotate": 20.0, "shift": 0.3, "zoom": 0.3, "contrast": 0.3, "brightness": 0.3, "size": [9, 9],
          "channels": 3, "split": [0.5, 0.3, 0.2], "freeze": ["0.*"], "micro_batch": 5,
          "filters": [4, 6], "hidden": 7, "batch_norm": False, "init_scale": 0.5, "optimiser": "rmsprop",
          "learning_rate": 0.003, "l2": 0.02, "lr_decay": 0.5, "inverse_decay": 0.1, "batch_size": 9, "epochs": 3,
          "normalise": "centred", "flip": False, "move": 2, "keep_prob": 0.5,
          "class_weights": "balanced", "smoothing": 0.1, "subset": [30, 6], "validate_every": 3, "checkpoint_every": 5}
# with SGD, with a teacher, in tests of their own
ELSEWHERE = {"momentum", "alpha", "patience", "iterations", "watch", "f1_decay"}


def test_every_setting_is_used(tmp_path):
    """Each one alone changes what is trained, or when something is written."""
    few = image_set()
    uneven = images.ImageSet(few.images, np.where(np.arange(60) % 4 == 1, 1, few.labels).astype(np.int32), few.classes,
                             few.split, few.source)
    images.write(tmp_path / "images.h5", uneven)

    def outcome(**changes):
        words = label_options(tmp_path / "images.h5", **{"epochs": 2, "micro_batch": 10, **changes})
        run = train.runs.Run(tmp_path / "run", *train.resolve(train.parser().parse_args(words)), get_ops("reference"))
        saved = []
        run.save_last, run.save_best, run.add_metrics = saved.append, lambda **_: None, saved.append
        run.load_last = lambda: None
        with quiet():
            train.fit(run, lambda: False)
        lines = [{key: value for key, value in line.items() if key != "iterations_per_second"} for line in saved]
        return lines, run.model.parameters.values.tobytes()

    plain = outcome()
    assert outcome() == plain
    assert set(VALUES) | ELSEWHERE == set(KNOWN["cnn4"])
    for key, value in VALUES.items():
        assert outcome(**{key: value}) != plain, key
    assert outcome(optimiser="sgd", momentum=0.5) != outcome(optimiser="sgd")


# -- other runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def older(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("older") / "run"
    return fitted(label_options(data, out, epochs=3, learning_rate=0.01), out)


def best_of(run):
    with h5py.File(run.path / "best.h5") as file:
        return file["parameters"][()], {name: file[f"state/{name}"][()] for name in file["state"]}


def test_init_from(data, older, tmp_path):
    run = begun([*label_options(data, tmp_path / "run", learning_rate=0.01, epochs=1), "--init-from", older.path,
                 "--seed", 9], tmp_path / "run")
    run.experiment.restart()
    values, state = best_of(older)
    np.testing.assert_array_equal(run.model.parameters.values, values)
    for name, array in run.model.state.items():
        np.testing.assert_array_equal(array, state[name])
    assert int(run.experiment.optimiser.steps) == 0 and not run.experiment.optimiser.m.any()
    with quiet():
        train.fit(run, lambda: False)
    started = metrics(run.path)[0]
    assert started["loss"] < metrics(older.path)[0]["loss"]


def test_classes_in_another_order_follow_the_older_run(older, tmp_path):
    """The same images with the classes listed otherwise are the same data."""
    few = image_set()
    order = ("cross", "round", "square")
    numbers = np.array([order.index(name) for name in few.classes], np.int32)
    images.write(tmp_path / "images.h5", images.ImageSet(few.images, numbers[few.labels], order, few.split, "others"))
    run = begun([*label_options(tmp_path / "images.h5", tmp_path / "run"), "--init-from", older.path], tmp_path / "run")
    assert run.experiment.classes == few.classes == tuple(run.config["classes"])
    np.testing.assert_array_equal(run.experiment.data.labels, few.labels)
    run.experiment.restart()
    older.load_best()
    assert run.experiment.validate() == older.experiment.validate()


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_add_class_keeps_every_other_weight(device, older, tmp_path):
    data = image_file(tmp_path / "four.h5", classes=FOUR, n=80)
    words = [*label_options(data, tmp_path / "run", device=device, epochs=1), "--init-from", str(older.path),
             "--add-class", "star"]
    run = begun(words, tmp_path / "run")
    run.experiment.restart()
    assert run.experiment.classes == ("round", "square", "cross", "star")
    values, state = best_of(older)
    old = {e.name: values[e.start:e.stop].reshape(e.shape) for e in older.model.parameters.table}
    fresh = experiment("cnn4", set_=run.experiment.data, dtype="float32", seed=0).model
    for entry in run.model.parameters.table:
        value = run.model.parameters.value(entry)
        kept = value[..., :3] if entry.owner is run.model.layers[-1] else value
        np.testing.assert_array_equal(kept, old[entry.name])
    np.testing.assert_array_equal(run.model.layers[-1].W[:, 3], fresh.layers[-1].W[:, 3])   # as a new layer begins
    assert run.model.layers[-1].b[3] == 0 and run.model.layers[-1].W.shape == (9, 4)
    for name, array in run.model.state.items():
        np.testing.assert_array_equal(array, state[name])
    few = run.experiment.data
    assert [FOUR[i] for i in images.read(data).labels] == [few.classes[i] for i in few.labels]
    with quiet():
        train.fit(run, lambda: False)
    again = open_run(run.path, "reference")
    again.load_best()
    assert again.experiment.classes[3] == "star" and again.experiment.probabilities(few.images[:2]).shape == (2, 4)


def test_the_teachers_loss(data, older, tmp_path):
    """alpha CE(label, p) + (1 - alpha) KL(teacher || p), the teacher seeing the image unflipped."""
    run = begun([*label_options(data, tmp_path / "run", alpha=0.7, flip=True), "--teacher", older.path, "--dtype",
                 "float64"], tmp_path / "run")
    e = run.experiment
    older.load_best()
    for iteration in (0, 5):
        rows = e.train_rows[e.batches.rows(iteration)]
        soft = older.experiment.probabilities(e.data.images[rows]).astype(float)
        z, truth = training_logits(e, iteration)
        e.prepare(iteration)
        log_p = np.log(softmax(z))
        hard = -log_p[np.arange(10), truth]
        kl = (soft * (np.log(soft) - log_p)).sum(1)
        assert float(e.forward_backward()["loss"]) == pytest.approx((0.7 * hard + 0.3 * kl).mean(), rel=1e-6)


def test_a_taught_run_and_alpha_1(data, older, tmp_path, evaluated, capsys):
    def trained(name, *words, **settings):
        with quiet():
            assert train.main([*label_options(data, tmp_path / name, epochs=2, **settings), *map(str, words)]) == 0
        return contents(tmp_path / name / "last.h5")["parameters"]
    plain, taught = trained("plain"), trained("taught", "--preset", "cnn4-distilled", "--teacher", older.path)
    assert taught != plain
    assert trained("alpha1", "--teacher", older.path, alpha=1.0) == plain
    config = json.loads((tmp_path / "taught" / "config.json").read_text())
    assert config["teacher"] == str(older.path) and "distilled" not in config["settings"]
    (tmp_path / "taught" / "last.h5").unlink()   # begin again, from config.json alone
    assert train.main(["--resume", str(tmp_path / "taught"), "--device", "reference"]) == 0
    assert contents(tmp_path / "taught" / "last.h5")["parameters"] == taught
    assert f"teacher: {older.path}, with weight 0.2" in capsys.readouterr().out


def test_a_run_can_be_evaluated_without_its_parents(data, older, tmp_path, evaluated):
    moved = fitted(label_options(data, tmp_path / "a", epochs=1), tmp_path / "a")
    with quiet():
        words = [*label_options(data, tmp_path / "b", epochs=1), "--init-from", str(moved.path), "--teacher",
                 str(moved.path)]
        assert train.main(words) == 0
        moved.path.rename(tmp_path / "elsewhere")
        assert evaluate.main([str(tmp_path / "b"), "--device", "reference"]) == 0
    assert len(evaluated) == 2


# -- micro-batches -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven():
    """Images of which one class is rare."""
    few = image_set()
    labels = np.where(np.arange(60) % 4 == 1, 1, few.labels).astype(np.int32)
    return images.ImageSet(few.images, labels, few.classes, few.split, few.source)


@pytest.mark.parametrize("size", [1, 4, 5])   # 4: the last is smaller
@pytest.mark.parametrize("model, settings", [
    ("mlp", {}), ("mlp", {"class_weights": "balanced", "smoothing": 0.1}),
    ("cnn4", {"batch_norm": False, "class_weights": "balanced", "rotate": 10.0, "flip": True})])
def test_micro_batches_add_up_to_the_batch(model, settings, size, uneven):
    whole, parted = (experiment(model, set_=uneven, micro_batch=n, **settings) for n in (0, size))
    for iteration in range(2):
        sums = []
        for e in (whole, parted):
            e.prepare(iteration)
            sums.append(e.sums(e.forward_backward()))
        assert sums[0]["hits"] == sums[1]["hits"]
        assert sums[0]["loss_sum"] == pytest.approx(sums[1]["loss_sum"], rel=1e-12)
        np.testing.assert_allclose(parted.model.parameters.grads, whole.model.parameters.grads, rtol=1e-11, atol=1e-14)
        for e in (whole, parted):
            e.optimiser.step()


def test_a_taught_batch_in_micro_batches(older):
    taught = {"teacher": older.path, "alpha": 0.6, "batch_norm": False}
    found = []
    for size in (0, 3):
        settings = {**PRESETS["cnn4"], **NET["cnn4"], "batch_size": 10, "iterations": 1, "micro_batch": size, **taught}
        e = LabelExperiment(settings, image_set(), get_ops("reference"), dtype="float64", teacher=str(older.path))
        e.prepare(0)
        found.append((e.sums(e.forward_backward())["loss_sum"], e.model.parameters.grads.copy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-11, atol=1e-14)


def test_every_micro_batch_draws_its_own_dropout():
    e = experiment("mlp", keep_prob=0.5, micro_batch=5)
    e.data.images[:] = e.data.images[0]
    seen, forward = [], e.model.forward
    e.model.forward = lambda x, train=False: seen.append(forward(x, train=train)) or seen[-1]
    for iteration in range(2):
        e.prepare(iteration)
        e.forward_backward()
    assert len(seen) == 4 and len({logits.tobytes() for logits in seen}) == 4


class Memory:
    """Ops with so many bytes free, of which a step of n images takes fixed + each n."""

    def __init__(self, free, fixed=0, each=100):
        self.free, self.fixed, self.each, self.done = free, fixed, each, []

    def free_bytes(self):
        return self.free

    def bytes_of(self, step):
        step()
        return self.fixed + self.each * self.done[-1]


@pytest.mark.parametrize("free, fixed, batch, size", [
    (10 ** 6, 0, 256, 256), (None, 0, 256, 256), (256 * 150, 0, 256, 256), (256 * 149, 0, 256, 128),
    (256 * 150, 12, 256, 128), (150 * 40, 0, 256, 32), (150 * 40, 150, 60, 30), (150 * 6, 0, 7, 3), (10, 0, 8, 1),
    (150 * 257, 0, 257, 257), (150 * 171, 0, 257, 86), (150 * 170, 0, 257, 65)])   # 86 + 86 + 85, 65 + 65 + 65 + 62
def test_the_largest_micro_batch_that_fits(free, fixed, batch, size):
    """What a smaller last one takes comes on top."""
    ops = Memory(free, fixed)
    found, reason = micro_batches.largest(batch, ops, ops.done.append)
    wanted = f"all {batch} images of a batch at once" if size == batch else f"{size} of the {batch} images of a batch"
    assert found == size and ("micro-batches of one image, although a step with one takes" if free == 10 else
                              wanted) in reason


def groups(root, version, limits, path="job/mine", meminfo="MemAvailable:    8000000 kB\n"):
    """/proc and /sys/fs/cgroup of a process in the group `path`; limits: folder -> (limit, usage, cache)."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text("MemTotal:       9000000 kB\n" + meminfo)
    line = f"0::/{path}" if version == 2 else f"7:cpuset:/elsewhere\n4:memory:/{path}"
    (root / "proc" / "self" / "cgroup").write_text(line + "\n")
    names = ("memory.max", "memory.current", "inactive_file") if version == 2 else \
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for folder, (limit, usage, cache) in limits.items():
        group = root / "groups" / ("" if version == 2 else "memory") / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / names[0]).write_text(f"{limit}\n")
        (group / names[1]).write_text(f"{usage}\n")
        (group / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limits, wanted", [
    ({}, 8_192_000_000),
    ({"job/mine": (10 ** 9, 4 * 10 ** 8, 10 ** 8)}, 7 * 10 ** 8),
    ({"job/mine": ("max", 5, 0), "job": (10 ** 9, 4 * 10 ** 8, 0)}, 6 * 10 ** 8),
    ({"": (10 ** 9, 10 ** 9, 3000)}, 3000),        # a container, which does not see the group by its name outside
    ({"job": (2 ** 63, 5, 0)}, 8_192_000_000),     # no limit, as the older version says it
    ({"job/mine": (10, 20, 0)}, 0), ({"other": (10, 5, 0)}, 8_192_000_000)])
def test_free_memory_is_what_the_groups_leave(version, limits, wanted, tmp_path, monkeypatch):
    groups(tmp_path, version, limits)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    assert get_ops("reference").free_bytes() == wanted


def test_free_memory_that_cannot_be_known(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.free_bytes() is None
    groups(tmp_path / "broken", 2, {"": ("word", "2", "3")}, meminfo="")
    monkeypatch.setattr(memory, "PROC", tmp_path / "broken" / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "broken" / "groups")
    assert memory.free_bytes() is None


def test_gradients_and_moments_are_not_counted_as_free(monkeypatch):
    """When the memory is looked at, both have been written to."""
    e, seen = experiment(), []
    e.model.parameters.grads[...] = e.optimiser.m[...] = 7
    monkeypatch.setattr(type(e.ops), "free_bytes", lambda ops: seen.append(
        [array.any() for array in (e.model.parameters.grads, e.optimiser.m)]))
    e.restart()
    assert seen == [[False, False]]


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_measured_bytes_are_those_of_the_arrays(name):
    """Ten arrays held at a time, of twenty made."""
    ops = get_ops(name)

    def step():
        for _ in range(2):
            held = [ops.empty((1000, 100), "float64") for _ in range(10)]
            del held
    assert 8e6 <= ops.bytes_of(step) < 8.1e6
    assert ops.free_bytes() is None or ops.free_bytes() > 1e6


def test_a_run_in_little_memory(data, tmp_path, monkeypatch, evaluated, capsys):
    """What is chosen stands in config.json, so that more memory later changes nothing."""
    each = get_ops("reference").bytes_of(lambda: begin_step(experiment(dtype="float32", batch_size=40))) / 40
    monkeypatch.setattr(type(get_ops("reference")), "free_bytes", lambda ops: int(each * 15))
    assert train.main(label_options(data, tmp_path / "run", epochs=2, batch_size=36)) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["micro_batch"] in (6, 8, 9)
    out = capsys.readouterr().out
    assert "of the 36 images of a batch: an image takes " in out and "gradient accumulation: a batch is done in " in out
    monkeypatch.undo()
    assert len(open_run(tmp_path / "run", "reference").experiment.micro_batches) in (4, 5, 6)


def begin_step(e):
    e.prepare(0)
    e.forward_backward()


# -- what the validation decides -------------------------------------------------------------------------------------


def test_the_rate_falls_with_the_f1():
    e = experiment(f1_decay=0.5, learning_rate=0.2, lr_decay=1.0)
    found = []
    for f1 in (0.5, 0.46, 0.40, 0.41, 0.35, 0.2, 0.19):   # -8, -13, +2, -15, -43, -5 %
        e.validated({"validation_f1": f1})
        found.append(e.rate(0))
    assert found == [0.2, 0.2, 0.1, 0.1, 0.05, 0.025, 0.025]
    e.prepare(0)
    assert float(e.optimiser.lr) == 0.025
    e.restart()
    assert e.rate(0) == 0.2


@pytest.mark.parametrize("watch, name, told, best", [
    ("loss", "validation_minus_loss", "loss 0.5", 8), ("f1", "validation_f1", "f1 0.75", 12)])
def test_what_is_watched(watch, name, told, best, data, evaluated, tmp_path, monkeypatch, capsys):
    """The accuracy rises in every epoch, which neither the best nor the end follows."""
    losses_, f1s = {4: 0.9, 8: 0.5, 12: 0.6, 16: 0.5, 20: 0.4}, {4: 0.5, 8: 0.6, 12: 0.75, 16: 0.7, 20: 0.75}

    def validate(self):
        done = int(self.optimiser.steps)
        return {"validation_loss": losses_[done], "validation_accuracy": done / 100, "validation_f1": f1s[done],
                "validation_minus_loss": -losses_[done]}
    monkeypatch.setattr(LabelExperiment, "validate", validate)
    assert train.main(label_options(data, tmp_path / "run", epochs=5, patience=2, watch=watch)) == 0
    assert f"evaluating iteration {best} (validation {told})" in capsys.readouterr().out
    assert metrics(tmp_path / "run")[-1]["iteration"] == best + 8
    attributes = contents(tmp_path / "run" / "best.h5")
    assert attributes["@iteration"] == best and f"@{name}" in attributes


def test_the_watched_loss_is_the_negative():
    values = experiment(watch="loss").validate()
    assert values["validation_minus_loss"] == -values["validation_loss"] < 0


# -- what is frozen, what the images become --------------------------------------------------------------------------


def test_frozen_parameters_keep_their_bits(monkeypatch):
    asked, inner = [], ReferenceOps.conv2d_backward
    monkeypatch.setattr(ReferenceOps, "conv2d_backward", lambda ops, *given: asked.append(given[-1]) or inner(
        ops, *given))
    settings = {"learning_rate": 0.01, "l2": 0.1}
    e, free = experiment(freeze=["0.*", "1.*", "5.b"], **settings), experiment(**settings)
    before = e.model.parameters.values.copy()
    e.prepare(0)
    e.forward_backward()
    assert asked == [False]   # of the second convolution; below it nothing learns
    free.prepare(0)
    free.forward_backward()
    for entry in e.model.parameters.table:
        part = slice(entry.start, entry.stop)
        if entry.owner.name not in ("0", "1"):
            np.testing.assert_array_equal(e.model.parameters.grads[part], free.model.parameters.grads[part])
    e.optimiser.step()
    e.step(1)
    for entry in e.model.parameters.table:
        part = slice(entry.start, entry.stop)
        kept = (e.model.parameters.values[part] == before[part]).all()
        assert kept == (entry.name[:2] in ("0.", "1.") or entry.name == "5.b"), entry.name


def test_published_statistics_and_grey_in_three_channels():
    few = image_set()
    for kind, mean, std in (("half", 0.5, 0.5), ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])):
        e = experiment(set_=few, channels=3, normalise=kind)
        rows = few.split["test"]
        wanted = (pixels(e, rows).repeat(3, 3) / 255 - mean) / std
        np.testing.assert_allclose(e.normalise(few.images[rows]), wanted, rtol=1e-9)
        assert e.model.layers[0].W.shape[2] == 3
    e = experiment(set_=few, channels=3)
    once = experiment(set_=few).normalise(few.images)
    np.testing.assert_array_equal(e.normalise(few.images), np.repeat(once, 3, 3))


def test_another_size():
    """A ramp stays one; the model is built for that size; the set's own size changes nothing."""
    few = image_set()
    few.images[:] = 20 * np.arange(8)[None, :, None, None]
    e = experiment(set_=few, size=[16, 8], normalise="raw")
    x = e.normalise(few.images[:2])
    assert x.shape == (2, 16, 8, 1) and e.model.out_shape(x.shape) == (2, 3)
    np.testing.assert_allclose(x[0, :, 3, 0], (20 * (np.arange(16) / 2 - 0.25)).clip(0, 140), atol=1e-4)
    np.testing.assert_allclose(batch_of(e, 0)[0, :, 3, 0], x[0, :, 3, 0], atol=1e-4)
    few = image_set()
    own, same = experiment(set_=few), experiment(set_=few, size=[8, 8])
    np.testing.assert_allclose(same.normalise(few.images), own.normalise(few.images), atol=1e-5)


def test_an_image_is_augmented_once_an_epoch():
    """The same whatever batch it comes in, another in the next epoch; the validation sees it as it is."""
    settings = {"rotate": 20.0, "shift": 0.2, "zoom": 0.2, "contrast": 0.2, "brightness": 0.2, "flip": True}
    one, other = experiment(**settings), experiment(**settings, batch_size=9)

    def epoch(e, first, last):
        found = {}
        for iteration in range(first, last):
            rows = e.train_rows[e.batches.rows(iteration)]
            where = iteration * len(rows) + np.arange(len(rows))
            found.update({(i // 36, row): x for i, row, x in zip(where, rows, batch_of(e, iteration))})
        return found
    tens, nines = epoch(one, 0, 8), epoch(other, 0, 8)
    shared = set(tens) & set(nines)
    assert len(shared) == 72
    for key in shared:
        np.testing.assert_array_equal(tens[key], nines[key])
    assert not any(np.array_equal(tens[0, row], tens[1, row]) for row in one.train_rows)
    plain = experiment()
    np.testing.assert_array_equal(one.normalise(one.data.images), plain.normalise(plain.data.images))


def test_parts_drawn_anew(data, tmp_path):
    run = fitted(label_options(data, tmp_path / "run", "mlp", split=[0.5, 0.3, 0.2], epochs=1), tmp_path / "run")
    split = run.experiment.data.split
    assert {name: len(rows) for name, rows in split.items()} == {"train": 30, "validation": 18, "test": 12}
    labels = run.experiment.data.labels
    assert {tuple(np.bincount(labels[rows])) for rows in split.values()} == {(10,) * 3, (6,) * 3, (4,) * 3}
    for name, rows in open_run(run.path, "reference").experiment.data.split.items():
        np.testing.assert_array_equal(rows, split[name])


# -- the larger models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces():
    return synthetic_images.faces(persons=5)


@pytest.mark.parametrize("model, settings", [
    ("effnetv2s-small", {}), ("vit-tiny", {"size": [24, 24]}), ("resnet-small", {"size": [24, 24]}),
    pytest.param("effnetv2s", {"width": 0.2, "depth": 0.2}, marks=pytest.mark.slow),
    pytest.param("vit-b16", {"size": [16, 16], "optimiser": "sgd"}, marks=pytest.mark.slow),
    pytest.param("resnet50", {"size": [32, 32], "optimiser": "sgd"}, marks=pytest.mark.slow)])
def test_two_steps_of_every_model(model, settings, faces):
    """With the settings of its preset, but small."""
    wanted = {**PRESETS[BEST[model, "faces"]], **NET.get(model, {}), "batch_size": 4, "iterations": 2, **settings}
    e = LabelExperiment(wanted, faces, get_ops("reference"))
    e.restart()
    before = e.model.parameters.values.copy()
    losses_ = [e.sums(e.step(iteration))["loss_sum"] for iteration in range(2)]
    assert all(math.isfinite(loss) and 0.3 < loss < 10 for loss in losses_)
    moved = {entry.name for entry in e.model.parameters.table
             if (e.model.parameters.values != before)[entry.start:entry.stop].any()}
    assert moved == {entry.name for entry in e.model.parameters.table}


def test_weights_of_a_file(data, tmp_path, evaluated, monkeypatch, capsys):
    """Read before the first step, told, and not needed to resume."""
    calls = []

    def load(path, model, name, *, classes, pixels):
        calls.append((path, name, classes, pixels["normalise"]))
        model.parameters.values[...] = 0.125
        return weights.Report(path, "a test", loaded=["x"], initialised=["head.W"])
    monkeypatch.setattr(weights, "load", load)
    words = [*label_options(data, tmp_path / "run", epochs=1, learning_rate=1e-9, l2=0.0), "--weights", "some.pth"]
    assert train.main(words) == 0
    file = str(pathlib.Path("some.pth").resolve())
    assert calls == [(file, "cnn4", ("round", "square", "cross"), "standard")]
    out = capsys.readouterr().out
    assert f"begins with the parameters in {file}" in out and "newly initialised: head.W" in out
    run = open_run(tmp_path / "run", "reference")
    assert run.config["weights"] == file
    run.load_best()
    np.testing.assert_allclose(run.model.parameters.values, 0.125, atol=1e-6)
    calls.clear()
    assert train.main(["--resume", str(tmp_path / "run"), "--device", "reference"]) == 0 and not calls


def test_a_run_from_before_the_newer_settings(data, tmp_path):
    """It opens, and goes on to the same bits."""
    straight = fitted(label_options(data, tmp_path / "straight", epochs=3), tmp_path / "straight")
    old, steps = begun(label_options(data, tmp_path / "old", epochs=3), tmp_path / "old"), []
    with quiet():
        train.fit(old, lambda: steps.append(1) or len(steps) == 6)
    config = json.loads((old.path / "config.json").read_text())
    config["settings"] = {key: value for key, value in config["settings"].items() if key not in LATER}
    (old.path / "config.json").write_text(json.dumps(
        {key: value for key, value in config.items() if key not in ("weights", "skip_broken")}))
    with h5py.File(old.path / "last.h5", "r+") as file:
        for name in ("rate_factor", "last_f1"):
            del file.attrs[name]
    with quiet():
        train.fit(open_run(old.path, "reference"), lambda: False)
    assert outcome(old.path) == outcome(straight.path)


def test_a_run_from_before_micro_batches_begins_again_with_whole_batches(data, tmp_path, monkeypatch):
    """Without a checkpoint, and whatever memory there is."""
    old = begun(label_options(data, tmp_path / "old", epochs=1), tmp_path / "old")
    config = json.loads((old.path / "config.json").read_text())
    del config["settings"]["micro_batch"]
    (old.path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(ReferenceOps, "free_bytes", lambda ops: 1)
    again = open_run(old.path, "reference").experiment
    again.restart()
    assert len(again.micro_batches) == 1 and not again.told


# -- the fast ops, killing, resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model, settings", [("mlp", {}), ("cnn3", {}), ("cnn4", {}), ("cnn4", {"batch_norm": False}),
                                             ("cnn5", {}),
                                             ("cnn4", {"rotate": 9.0, "channels": 3, "freeze": ["0.*"]}),
                                             ("mlp", {"keep_prob": 0.5, "micro_batch": 4, "size": [5, 6]})])
def test_a_captured_step_is_the_step(model, settings, dtype):
    """Nothing in it is plain array code, which a list of kernel calls would leave out."""
    captured, plain = (experiment(model, "cpu", dtype=dtype, flip=True, learning_rate=0.01, **settings)
                       for _ in range(2))
    for iteration in range(5):
        got = {name: float(value) for name, value in captured.step(iteration).items()}
        plain.prepare(iteration)
        assert got == {name: float(value) for name, value in plain._forward_backward_update().items()}
        if iteration == 2:
            captured.validate()
        np.testing.assert_array_equal(captured.model.parameters.values, plain.model.parameters.values)
        for one, two in zip(captured.model.state.values(), plain.model.state.values()):
            np.testing.assert_array_equal(one, two)


def test_the_same_on_reference_and_cpu(data, tmp_path):
    """Counted randomness: the fast ops train the same model, up to rounding."""
    found = []
    for device in ("reference", "cpu"):
        with quiet():
            run = train.runs.Run(tmp_path / device, *train.resolve(train.parser().parse_args(
                [*label_options(data, epochs=3), "--dtype", "float64"])), get_ops(device))
            run.begin()
            train.fit(run, lambda: False)
        found.append(metrics(run.path))
    for one, two in zip(*found):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-9)
        assert one["training_accuracy"] == two["training_accuracy"]
        assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-9)


context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
context.set_forkserver_preload(["small_runs"])


def finish(arguments, output, kill_at=None):
    process = context.Process(target=small_runs.work, args=([str(word) for word in arguments], str(output), kill_at))
    process.start()
    process.join(60)
    return process.exitcode


CADENCE = {"epochs": 3, "checkpoint_every": 3}   # 12 iterations, validated at 4, 8, 12


@pytest.fixture(scope="module")
def never_stopped(data, older, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    assert finish([*label_options(data, out, **CADENCE), "--teacher", older.path], f"{out}.txt") == 0
    return outcome(out)


@pytest.mark.parametrize("place, number", [
    ("before a step", 2), ("behind a step", 7), ("half a file", 4), ("half a line", 2), ("behind best", 1)])
def test_killed_and_resumed(place, number, data, older, never_stopped, tmp_path):
    """Flips, running statistics, the teacher's part, hits: everything goes on to the bit."""
    out, text = tmp_path / "run", tmp_path / "output.txt"
    words = [*label_options(data, out, **CADENCE), "--teacher", older.path]
    assert finish(words, text, (place, number)) == -signal.SIGKILL, text.read_text()
    assert finish(["--resume", out, "--device", "reference"], text) == 0, text.read_text()
    assert outcome(out) == never_stopped
    assert not list(out.glob("*.part"))


VARIED = {"epochs": 6, "checkpoint_every": 3, "f1_decay": 0.5, "learning_rate": 0.5, "inverse_decay": 0.0,
          "momentum": 0.0, "watch": "loss", "rotate": 10.0, "shift": 0.1, "zoom": 0.1, "contrast": 0.1,
          "brightness": 0.1, "size": "[9,9]", "micro_batch": 4}


@pytest.fixture(scope="module")
def never_stopped_varied(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("varied") / "run"
    assert finish(label_options(data, out, "mlp", **VARIED), f"{out}.txt") == 0
    return outcome(out)


@pytest.mark.parametrize("place, number", [("before a step", 8), ("behind a step", 14), ("behind metrics", 4)])
def test_killed_and_resumed_with_augmentation(place, number, data, never_stopped_varied, tmp_path):
    """What the F1 did to the learning rate goes on too."""
    rates = [line["learning_rate"] for line in never_stopped_varied[2]]
    assert rates[2] == rates[0] > rates[-1]   # it fell, behind some of the kills and before others
    out, text = tmp_path / "run", tmp_path / "output.txt"
    assert finish(label_options(data, out, "mlp", **VARIED), text, (place, number)) == -signal.SIGKILL
    assert finish(["--resume", out, "--device", "reference"], text) == 0, text.read_text()
    assert outcome(out) == never_stopped_varied


def test_a_grown_run_killed_before_its_first_checkpoint(older, tmp_path):
    image_file(tmp_path / "four.h5", classes=FOUR, n=80)
    found = []
    for name, kill in (("straight", None), ("killed", ("before a step", 2))):
        words = [*label_options(tmp_path / "four.h5", tmp_path / name, **CADENCE), "--init-from", older.path,
                 "--add-class", "star"]
        assert finish(words, tmp_path / "output.txt", kill) == (-signal.SIGKILL if kill else 0)
        if kill:
            assert finish(["--resume", tmp_path / name, "--device", "reference"], tmp_path / "output.txt") == 0
        found.append(outcome(tmp_path / name))
    assert found[0] == found[1]


def test_images_resized_where_asked(tmp_path):
    """A folder of pictures of two sizes is refused; resized, it is trained on, and opened again at that size."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, side in (("round", 9), ("square", 14)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (side, side)).astype("uint8")
            image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    words = [*label_options(tmp_path / "pictures", tmp_path / "run", epochs=1, batch_size=4)]
    with pytest.raises(NnliteError, match="a size to resize all to"):
        begun(words, tmp_path / "run")
    fitted([*words, "--resize", "8x10"], tmp_path / "run")
    again = open_run(tmp_path / "run", "reference")
    assert again.config["resized"] and again.experiment.data.images.shape == (24, 8, 10, 1)


def test_a_nan_is_found_in_its_layer(data, tmp_path, capsys):
    run = begun(label_options(data, tmp_path / "run", epochs=2), tmp_path / "run")
    layer = run.model.layers[2]

    class Broken(type(layer)):
        def backward(self, dy, **named):
            dx = super().backward(dy, **named)
            if int(self.rng.step) == 5:
                self.dW[0, 0, 0, 0] = math.nan
            return dx
    Broken.__name__ = type(layer).__name__
    layer.__class__ = Broken
    assert train.train_and_evaluate(run) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert "the gradient of W of Conv2d '2' in iteration 6" in sentence and "last.h5 keeps iteration 4" in sentence
