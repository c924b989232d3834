"""Ablations: each cell against a training by hand, the table in all its forms, stopped and resumed, refused."""

import contextlib
import csv
import functools
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys

import numpy as np
import pytest

import small_runs
from nnlite import ablate, plots_ablate, search, train
from nnlite.experiments import LabelExperiment
from nnlite.ops import get_ops
from small_runs import image_file

refused = functools.partial(small_runs.refused, command=ablate.main)
context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
context.set_forkserver_preload(["test_ablate"])

OPTIMISERS, RATES = ["sgd", "adam"], [0.5, 0.05, 0.001]
TWO = ["--grid", "optimiser=sgd,adam", "--grid", "learning_rate=0.5,0.05,0.001"]


def words(data, out, *more, grid=TWO):
    return [str(word) for word in ("--model", "mlp", "--data", data, "--device", "reference", "--out", out, "--set",
                                   "hidden=[6]", *grid, *more)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_file(tmp_path_factory.mktemp("data") / "images.h5")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an ablation with two axes, and what it printed."""
    out = tmp_path_factory.mktemp("ablation") / "whole"
    with open(out.parent / "text", "w") as text, contextlib.redirect_stdout(text):
        assert ablate.main(words(data, out, "--epochs", 3)) == 0
    return out, (out.parent / "text").read_text()


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(ablate.report_labels, "missing_extra", lambda: "asked not to")


def summary(folder):
    return json.loads((folder / "table.json").read_text())


def by_hand(data, epochs, **settings):
    """Accuracy and macro F1 on the validation and the test part, with the parameters of the epoch that has the best
    validation accuracy: trained as nnlite.train does, measured by scikit-learn."""
    sk = pytest.importorskip("sklearn.metrics")
    config, images = train.resolve(train.parser().parse_args(
        ["--model", "mlp", "--data", str(data), "--epochs", str(epochs), "--device", "reference", "--set", "hidden=[6]",
         *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]))
    experiment = LabelExperiment.from_config(config, images, get_ops("reference"))
    experiment.restart()
    best = None
    for iteration in range(config["iterations"]):
        experiment.step(iteration)
        if (iteration + 1) % config["settings"]["validate_every"] == 0:
            found = {}
            for part in ("validation", "test"):
                rows = images.split[part]
                called = experiment.probabilities(images.images[rows]).argmax(axis=1)
                found[f"{part}_accuracy"] = sk.accuracy_score(images.labels[rows], called)
                present = np.union1d(images.labels[rows], called)
                found[f"{part}_f1"] = sk.f1_score(images.labels[rows], called, labels=present, average="macro")
            if best is None or found["validation_accuracy"] > best["validation_accuracy"]:
                best = {**found, "epoch": (iteration + 1) // config["settings"]["validate_every"]}
    return best


def test_each_cell_is_a_training_of_its_own(whole, data):
    cells = summary(whole[0])["cells"]
    assert [(c["optimiser"], c["learning_rate"]) for c in cells] == [(o, r) for o in OPTIMISERS for r in RATES]
    for cell in cells:
        wanted = by_hand(data, 3, optimiser=cell["optimiser"], learning_rate=cell["learning_rate"])
        assert {key: cell[key] for key in wanted} == pytest.approx(wanted)
    assert len({cell["epoch"] for cell in cells}) > 1   # the last epoch is not always the best


def test_the_best_is_chosen_on_validation(whole):
    cells = summary(whole[0])["cells"]
    best, = (cell for cell in cells if cell["best"])
    assert best == max(cells, key=lambda cell: cell["validation_accuracy"])
    assert summary(whole[0])["best_by"] == "accuracy"


def test_the_table_in_all_its_forms(whole):
    out, text = whole
    found = summary(out)
    assert found["axes"] == {"optimiser": OPTIMISERS, "learning_rate": RATES} and found["epochs"] == 3
    with open(out / "table.csv") as file:
        rows = list(csv.DictReader(file))
    for row, cell in zip(rows, found["cells"], strict=True):
        assert row == {key: str(value) for key, value in cell.items()}
    blocks = {"accuracy": "Accuracy, validation / test\n", "f1": "Macro F1, validation / test\n"}
    markdown = (out / "table.md").read_text()
    for measure, title in blocks.items():
        lines = text.partition(title)[2].splitlines()
        assert lines[0].split() == ["optimiser", "\\", "learning_rate", "0.5", "0.05", "0.001"]
        marked = markdown.partition(title + "\n")[2].splitlines()
        assert marked[1] == "| --- | ---: | ---: | ---: |"
        for place, optimiser in enumerate(OPTIMISERS):
            own = found["cells"][3 * place:3 * place + 3]
            cells = [f"{c[f'validation_{measure}']:.3f} / {c[f'test_{measure}']:.3f}" for c in own]
            stars = [cell + " *" * c["best"] for cell, c in zip(cells, own)]
            assert re.split("  +", lines[1 + place]) == [optimiser, *stars]
            bold = [f"**{cell}**" if c["best"] else cell for cell, c in zip(cells, own)]
            assert marked[2 + place] == "| " + " | ".join([optimiser, *bold]) + " |"
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_that_trains_the_best(whole):
    out, text = whole
    command = shlex.split(text[text.rindex("python -m nnlite.train"):])[3:]
    config, _ = train.resolve(train.parser().parse_args(command))
    best, = (cell for cell in summary(out)["cells"] if cell["best"])
    assert all(config["settings"][key] == best[key] for key in ("optimiser", "learning_rate"))


def test_epochs_as_an_axis(data, tmp_path, capsys, no_pictures):
    out = tmp_path / "a"
    assert ablate.main(words(data, out, "--set", "learning_rate=0.05", grid=["--grid", "epochs=1,2,4"])) == 0
    cells = summary(out)["cells"]
    assert [(cell["epochs"], cell["trained"]) for cell in cells] == [(1, 1), (2, 2), (4, 4)]
    for cell in cells:
        wanted = by_hand(data, cell["epochs"], learning_rate=0.05)
        assert {key: cell[key] for key in wanted} == pytest.approx(wanted)
    text = capsys.readouterr().out
    table = text.partition("\nepochs  ")[2].splitlines()
    assert re.split("  +", table[0]) == ["validation accuracy", "test accuracy", "validation F1", "test F1", "epoch",
                                         "seconds"]
    assert [line.split()[0] for line in table[1:4]] == ["1", "2", "4"]
    assert [line.split()[1] for line in table[1:4]] == [f"{cell['validation_accuracy']:.3f}" for cell in cells]
    assert [line.endswith("best") for line in table[1:4]] == [cell["best"] for cell in cells]
    assert text.rstrip().splitlines()[-1].startswith("train the best: ") and "--set epochs=" in text


def test_a_training_that_diverges(data, tmp_path, capsys):
    out = tmp_path / "a"
    grid = ["--grid", "optimiser=sgd,adam", "--grid", "learning_rate=0.05,1e30"]
    assert ablate.main(words(data, out, "--epochs", 2, grid=grid)) == 0
    text = capsys.readouterr().out
    cell = summary(out)["cells"][1]
    assert cell["epoch"] is None and cell["test_accuracy"] is None and not cell["best"]
    assert "failed" in text.partition("Accuracy, validation / test\n")[2].splitlines()[1]
    assert "| failed |" in (out / "table.md").read_text() and (out / "table.png").exists()


# -- stopped and resumed -----------------------------------------------------------------------------------------------


def work(arguments, output, number):
    """Runs the command in this process, killed in the step of that number."""
    stream = open(output, "w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    small_runs._around(LabelExperiment, "step", after=small_runs.Countdown(number))
    sys.exit(ablate.main(arguments))


def outcome(folder):
    return [{key: value for key, value in cell.items() if key != "seconds"} for cell in summary(folder)["cells"]]


def test_killed(data, whole, tmp_path, capsys, no_pictures):
    out = tmp_path / "a"
    process = context.Process(target=work, args=(words(data, out, "--epochs", 3), str(tmp_path / "text"), 30))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "text").read_text()
    before = (out / "trials.jsonl").read_text()
    assert 0 < before.count("\n") < 6 and not (out / "table.csv").exists()
    assert ablate.main(["--out", str(out), "--resume", "--device", "reference"]) == 0
    assert outcome(out) == outcome(whole[0])
    assert (out / "trials.jsonl").read_text().startswith(before)   # nothing was done again


def test_interrupted(data, whole, tmp_path, capsys, monkeypatch, no_pictures):
    """Ctrl-C ends it behind the step, with a table of what is there; the command that is printed goes on."""
    out, step, count = tmp_path / "a", LabelExperiment.step, iter(range(1000))

    def interrupting(experiment, iteration):
        if next(count) == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return step(experiment, iteration)
    monkeypatch.setattr(LabelExperiment, "step", interrupting)
    assert ablate.main(words(data, out, "--epochs", 3)) == 130
    assert 0 < len(summary(out)["cells"]) < 6 and " -" in capsys.readouterr().out.partition("Accuracy, ")[2]
    assert ablate.main(["--out", str(out), "--resume", "--device", "reference"]) == 0
    assert outcome(out) == outcome(whole[0])


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, wanted", [
    ("", ["--grid", "one or two settings", "none"]),
    ("--grid l2=0,1 --grid momentum=0,0.5 --grid smoothing=0,0.1", ["one or two settings", "3"]),
    ("--grid l2=0,1 --grid l2=0,2", ["--grid l2", "two"]),
    ("--grid optimizer=sgd,adam", ["--grid", "'optimizer' (nearest: optimiser)"]),
    ("--grid optimiser=sgd,magic", ["--grid optimiser", "'magic'"]),
    ("--grid epochs=0,1", ["--grid epochs", "at least 1"]),
    ("--grid epochs=2,3 --epochs 4", ["--epochs", "none beside --grid epochs"]),
    ("--grid iterations=20,30", ["--grid", "'iterations'"]),
    ("--grid watch=loss,f1", ["'watch'"]),
    ("--grid l2=0:1", ["--grid l2", "n points"]),
    ("--grid l2=0,1 --set l2=2", ["--set l2", "one of --grid l2"]),
    ("--grid l2=0,1 --set epochs=2", ["--set", "'epochs'"]),
    ("--grid l2=0,1 --epochs 0", ["--epochs", "at least 1"]),
    ("--grid l2=0,1 --seed -1", ["--seed", "-1"]),
    ("--grid batch_size=10,100000", ["--set batch_size", "100000"]),
    ("--grid l2=0,1 --data nothing.csv", ["nothing.csv"]),
    ("--grid l2=0,1 --preset cnn4", ["--preset", "'cnn4' of cnn4"]),
    ("--resume", ["search.json", "none"]),
])
def test_wrong_options(more, wanted, data, tmp_path, capsys):
    refused([*words(data, tmp_path / "a", grid=()), *more.split()], tmp_path, capsys, *wanted)


@pytest.mark.parametrize("more, wanted", [
    ("--grid l2=0,1", ["--grid", "optimiser=sgd,adam", "got l2=0"]), ("--epochs 4", ["--epochs", ", 3, got 4"]),
    ("--model cnn4", ["--model", "mlp", "got cnn4"]), ("--seed 2", ["--seed", "got 2"]),
    ("--set hidden=[7]", ["--set", "hidden=[6]", "got hidden=[7]"]), ("--weights w.pt", ["--weights", "w.pt"]),
])
def test_resumed_as_another(more, wanted, whole, capsys):
    refused(["--out", whole[0], "--resume", "--device", "reference", *more.split()], whole[0], capsys, *wanted)


def test_folders_of_the_other_command(data, whole, tmp_path, capsys, no_pictures):
    refused(["--out", whole[0], "--resume", "--device", "reference"], whole[0], capsys, "'method'", "'ablation'",
            command=search.main)
    refused(words(data, whole[0]), whole[0], capsys, "without a search")
    assert search.main(["--model", "mlp", "--data", str(data), "--device", "reference", "--trials", "1", "--out",
                        str(tmp_path / "s"), "--space", "l2=0,1", "--set", "hidden=[6]"]) == 0
    capsys.readouterr()
    refused(["--out", tmp_path / "s", "--resume"], tmp_path, capsys, "'method' among ablation", "'random'")


# -- pictures ----------------------------------------------------------------------------------------------------------


def cell(best=False, failed=False, **settings):
    values = dict.fromkeys(ablate.KEPT) if failed else {
        "validation_accuracy": 0.5, "test_accuracy": 0.25, "validation_f1": 0.4, "test_f1": 0.2}
    return {**settings, **values, "epoch": None if failed else 1, "best": best}


def test_the_heat_maps():
    pytest.importorskip("matplotlib")
    cells = [cell(optimiser="sgd", learning_rate=0.1), cell(optimiser="sgd", learning_rate=0.01, failed=True),
             cell(optimiser="adam", learning_rate=0.1, best=True)]   # the fourth has not come yet
    left, right = plots_ablate.table(cells, {"optimiser": ["sgd", "adam"], "learning_rate": [0.1, 0.01]},
                                     title="a title").axes
    shown = np.ma.filled(left.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[0.5, np.nan], [0.5, np.nan]])
    np.testing.assert_array_equal(np.ma.filled(right.images[0].get_array(), np.nan), [[0.25, np.nan], [0.25, np.nan]])
    assert sorted(text.get_text() for text in right.texts) == ["25.0 %", "25.0 %", "F1 0.200", "F1 0.200", "failed"]
    frame, = left.patches
    assert frame.get_xy() == (-0.5, 0.5)


def test_the_bars():
    pytest.importorskip("matplotlib")
    cells = [cell(epochs=2), cell(epochs=3, best=True), cell(epochs=4, failed=True)]
    left, right = plots_ablate.table(cells, {"epochs": [2, 3, 4]}, title="a title").axes
    assert [bar.get_height() for bar in left.patches] == [0.5, 0.25] * 2
    assert [text.get_text() for text in right.texts] == [".400", ".200", ".400", ".200", "failed"]
    assert [bar.get_alpha() for bar in left.patches] == [0.55, 0.55, 1, 1]
