"""Searches: draws, grids, narrowing; the command, stopped in every way and resumed; what it writes and refuses."""

import collections
import contextlib
import csv
import functools
import itertools
import json
import math
import multiprocessing
import os
import shlex
import signal
import sys
import time

import numpy as np
import pytest
from scipy import stats

import small_runs
from nnlite import plots_search, search, space, study, train, trials
from nnlite.experiments import LabelExperiment
from nnlite.ops import get_ops
from small_runs import image_file

refused = functools.partial(small_runs.refused, command=search.main)
context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
context.set_forkserver_preload(["test_search", "optuna.samplers", "optuna.storages.journal"])

RATE = "learning_rate=log:0.01:1"
TWO = ["--space", RATE, "--space", "hidden=[6],[5,4]"]


draw_pictures = trials.Search.draw_pictures


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take most of the time of a small search; tests that look at them put draw_pictures back."""
    monkeypatch.setattr(trials.Search, "draw_pictures", lambda found: None)


def words(data, out, *more, trials=4, space=TWO):
    return [str(word) for word in ("--model", "mlp", "--data", data, "--device", "reference", "--out", out, "--trials",
                                   trials, *space, *more)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_file(tmp_path_factory.mktemp("data") / "images.h5")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a search with both stages, and what it printed."""
    out = tmp_path_factory.mktemp("search") / "whole"
    with open(out.parent / "text", "w") as text, contextlib.redirect_stdout(text):
        assert search.main(words(data, out, "--fine", 3, "--fine-epochs", 3, "--keep", 0.5)) == 0
    return out, (out.parent / "text").read_text()


def lines(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def outcome(folder):
    """Everything of a search that must not depend on when it was stopped: the seconds are left out."""
    found = [{key: value for key, value in line.items() if key != "seconds"} for line in lines(folder)]
    with open(folder / "trials.csv") as file:
        table = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return sorted(found, key=lambda line: (line["stage"], line["number"])), table


# -- draws -------------------------------------------------------------------------------------------------------------


def drawn(text, count=4000, model="cnn4", seed=3, stage="coarse"):
    parts = space.parse(model, [text], grid=False)
    name = text.partition("=")[0]
    return [space.draw(parts, number, seed=seed, stage=stage)[name] for number in range(1, count + 1)]


def test_log_range():
    values = drawn("learning_rate=log:1e-5:1e-2")
    assert all(type(value) is float and 1e-5 <= value <= 1e-2 for value in values)
    assert stats.kstest(np.log10(values), "uniform", (-5, 3)).pvalue > 0.01
    assert stats.kstest(values, "uniform", (1e-5, 1e-2)).pvalue < 1e-9


def test_uniform_range():
    values = drawn("lr_decay=0.85:1.0")
    assert all(0.85 <= value <= 1 for value in values)
    assert stats.kstest(values, "uniform", (0.85, 0.15)).pvalue > 0.01


def test_whole_numbers():
    counts = collections.Counter(drawn("batch_size=3:7"))
    assert sorted(counts) == [3, 4, 5, 6, 7] and all(type(value) is int for value in counts)
    assert stats.chisquare([*counts.values()]).pvalue > 0.01


def test_whole_numbers_in_the_logarithm():
    counts = collections.Counter(drawn("batch_size=log:1:8"))
    shares = [math.log((k + 1) / k) / math.log(9) for k in range(1, 9)]
    assert stats.chisquare([counts[k] for k in range(1, 9)], 4000 * np.array(shares)).pvalue > 0.01


def test_choices():
    counts = collections.Counter(map(str, drawn("filters=[8],[8,16],[8,16,32]")))
    assert set(counts) == {"[8]", "[8, 16]", "[8, 16, 32]"}
    assert stats.chisquare([*counts.values()]).pvalue > 0.01
    assert set(drawn("flip=True,False", 50)) == {True, False}
    assert set(drawn("optimiser=adam,sgd", 50)) == {"adam", "sgd"}


def test_what_is_printed_is_what_is_trained():
    for value in drawn("learning_rate=log:1e-5:1e-2", 200):
        assert float(space.spell(value)) == value and len(f"{value:.3e}".rstrip("0")) <= len("1.234e-05")


def test_a_draw_depends_on_seed_stage_and_number_alone():
    two = space.parse("cnn4", ["learning_rate=log:1e-5:1e-2", "lr_decay=0.8:1"], grid=False)
    other = space.parse("cnn4", ["l2=log:1e-5:1e-2", "learning_rate=log:1e-5:1e-2"], grid=False)
    forth = [space.draw(two, number, seed=1, stage="coarse") for number in range(1, 30)]
    back = [space.draw(two, number, seed=1, stage="coarse") for number in range(29, 0, -1)]
    assert forth == back[::-1] and len({str(values) for values in forth}) == 29
    rates = [values["learning_rate"] for values in forth]
    assert rates == [space.draw(other, number, seed=1, stage="coarse")["learning_rate"] for number in range(1, 30)]
    assert rates != [space.draw(two, number, seed=2, stage="coarse")["learning_rate"] for number in range(1, 30)]
    assert rates != [space.draw(two, number, seed=1, stage="fine")["learning_rate"] for number in range(1, 30)]


def test_settings_are_drawn_independently():
    parts = space.parse("cnn4", ["learning_rate=log:1e-5:1e-2", "l2=log:1e-5:1e-2"], grid=False)
    pairs = [space.draw(parts, number, seed=0, stage="coarse").values() for number in range(1, 2001)]
    assert abs(stats.spearmanr(*np.array([[*pair] for pair in pairs]).T).statistic) < 0.06


def test_steps():
    counts = collections.Counter(drawn("keep_prob=0.5:1:step0.05"))
    assert sorted(counts) == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
    assert stats.chisquare([*counts.values()]).pvalue > 0.01
    counts = collections.Counter(drawn("hidden=16:160:step8"))
    assert sorted(counts) == list(range(16, 161, 8)) and all(type(value) is int for value in counts)


# -- grids -------------------------------------------------------------------------------------------------------------


def grid_of(*texts, model="cnn4"):
    return space.parse(model, texts, grid=True)


def test_points_of_a_grid():
    parts = grid_of("learning_rate=log:1e-4:1e-1:4", "lr_decay=0.8:1:3", "batch_size=log:16:256:5", "hidden=100,200")
    axes = [[1e-4, 1e-3, 1e-2, 1e-1], [0.8, 0.9, 1.0], [16, 32, 64, 128, 256], [100, 200]]
    assert [part.axis() for part in parts.values()] == axes
    assert space.grid_size(parts) == 120
    points = [tuple(space.grid_point(parts, number).values()) for number in range(1, 121)]
    assert points == list(itertools.product(*axes))


def test_whole_points_come_once():
    assert grid_of("batch_size=1:3:6")["batch_size"].axis() == [1, 2, 3]


def test_all_steps_are_points():
    part, = grid_of("keep_prob=0.2:0.5:step0.1").values()
    assert part.axis() == [0.2, 0.3, 0.4, 0.5] and str(part) == "0.2:0.5:step0.1"
    assert str(grid_of("batch_size=16:160:step8")["batch_size"]) == "16:160:step8"


def test_part_of_a_grid():
    parts = grid_of("learning_rate=log:1e-4:1e-1:10", "l2=log:1e-4:1e-1:10")
    some, more = space.grid_numbers(parts, 20, 0), space.grid_numbers(parts, 50, 0)
    assert len(set(some)) == 20 and set(some) < set(more) and some == sorted(some)
    assert space.grid_numbers(parts, 100, 0) == space.grid_numbers(parts, 1000, 0) == list(range(1, 101))
    assert len({(number - 1) // 10 for number in more}) == 10   # not the first rows alone


# -- narrowing ---------------------------------------------------------------------------------------------------------


def test_narrowing():
    parts = space.parse("cnn4", ["learning_rate=log:1e-6:1", "lr_decay=0.5:1.0", "batch_size=1:100",
                                 "filters=[8],[16],[32]"], grid=False)
    best = [{"learning_rate": 1e-3, "lr_decay": 0.9, "batch_size": 20, "filters": [16]},
            {"learning_rate": 1e-4, "lr_decay": 0.95, "batch_size": 33, "filters": [8]},
            {"learning_rate": 1e-2, "lr_decay": 0.99, "batch_size": 30, "filters": [16]}]
    narrow = space.narrowed(parts, best)
    rate, decay, size, filters = narrow.values()
    assert (rate.low, rate.high) == pytest.approx((1e-5, 1e-1)) and rate.log       # 1e-4 / 10, 1e-2 * 10
    assert (decay.low, decay.high) == pytest.approx((0.9 - 0.045, 1.0))            # cut at the end of the old range
    assert (size.low, size.high) == (13, 40) and size.whole                        # 20 - 6.5 and 33 + 6.5, outwards
    assert filters.values == ([8], [16])
    for number in range(1, 50):
        values = space.draw(narrow, number, seed=0, stage="fine")
        assert 1e-5 <= values["learning_rate"] <= 0.1 and 13 <= values["batch_size"] <= 40


def test_narrowed_steps():
    part, = space.parse("cnn4", ["keep_prob=0.2:1:step0.05"], grid=False).values()
    narrow = part.around([0.5, 0.6, 0.7])   # margin 0.1
    assert (narrow.low, narrow.high, narrow.step) == (0.4, 0.8, 0.05)
    assert (part.around([0.5, 0.55, 0.7]).axis()[0], part.around([0.9, 1.0]).high) == (0.4, 1.0)
    assert set(narrow.axis()) <= set(part.axis())


def test_narrowed_ranges_estimate_the_ends():
    """Over many draws of k values the mean ends are those of the range that the values came from."""
    wide, chance = space.parse("cnn4", ["lr_decay=0.1:1.0"], grid=False), np.random.default_rng(0)
    found = [wide["lr_decay"].around(chance.uniform(0.4, 0.6, 8)) for _ in range(2000)]
    assert np.mean([part.low for part in found]) == pytest.approx(0.4, abs=0.003)
    assert np.mean([part.high for part in found]) == pytest.approx(0.6, abs=0.003)


def test_values_that_agree_give_a_range_of_one_value():
    size = space.parse("cnn4", ["batch_size=1:100"], grid=False)["batch_size"].around([7, 7, 7])
    assert (size.low, size.high) == (7, 7) and size.at(0.99) == 7


@pytest.mark.parametrize("texts", [["learning_rate=log:1e-300:1e300"], ["l2=0:1e300"]])
def test_wide_ranges(texts):
    part, = space.parse("cnn4", texts, grid=False).values()
    narrow = part.around([part.at(0.001), part.at(0.999)])
    assert part.low <= narrow.low < narrow.high <= part.high


# -- a trial -----------------------------------------------------------------------------------------------------------


class Told:
    """An experiment of two steps an epoch that has these losses and validations."""

    criterion, settings, ops = "validation_accuracy", {"validate_every": 2}, get_ops("reference")

    def __init__(self, losses, accuracy, patience=None):
        self.losses, self.accuracy, self.patience, self.steps = losses, iter(accuracy), patience, None

    def restart(self):
        self.steps = 0

    def over(self, done, best):
        return done >= len(self.losses) or (self.patience is not None and done - best >= self.patience)

    def step(self, iteration):
        assert iteration == self.steps
        self.steps += 1
        return {"loss": self.losses[iteration]}

    def sums(self, terms):
        return {"loss_sum": terms["loss"], "steps": 1}

    def validate(self):
        return {"validation_loss": 1.0, "validation_accuracy": next(self.accuracy)}

    def validated(self, values):
        self.told = values


NAN, INF, VALUES = math.nan, math.inf, {"validation_loss": 1.0, "validation_accuracy": 0.75}


@pytest.mark.parametrize("losses, accuracy, found, steps", [
    ([3, 1, 2, 4, 1, 0], [0.5, 0.75, 0.25], (True, 0.75, 2, VALUES, [0.5, 0.75, 0.25], [2, 3, 0.5]), 6),
    ([3, 1, 2, 4], [0.75, 0.75], (True, 0.75, 1, VALUES, [0.75, 0.75], [2, 3]), 4),
    ([3, 1, NAN, 4, 1, 0], [0.5], (False, None, None, {}, [0.5], [2]), 3),
    ([INF, 1], [], (False, None, None, {}, [], []), 1),
    ([3, 1, 2, 4], [0.5, NAN], (False, None, None, {}, [0.5], [2]), 4),
])
def test_a_trial(losses, accuracy, found, steps):
    told, shown = Told(losses, accuracy), []
    assert trials.train(told, lambda: False, shown.append) == found
    assert told.steps == steps and shown == list(range(1, len(shown) + 1))


def test_a_trial_that_is_stopped():
    told = Told([1] * 8, [0.5] * 4)
    assert trials.train(told, lambda: told.steps == 3, lambda done: None) is None and told.steps == 3


def test_patience_counts_from_the_best_validation():
    told = Told([1] * 12, [0.1, 0.6, 0.5, 0.6, 0.9, 0.9], patience=4)
    assert trials.train(told, lambda: False, lambda done: None).accuracy == [0.1, 0.6, 0.5, 0.6]


def test_what_is_watched_decides_the_best_epoch():
    """By the loss, whose negative is to be largest; keep() is called at each epoch that is the best so far, and the
    experiment is told of every validation."""
    told, losses, kept, heard = Told([1] * 8, [0.1, 0.6, 0.5, 0.4]), iter([3.0, 2.0, 1.5, 1.8]), [], []
    told.criterion, accuracy = "validation_minus_loss", told.accuracy
    told.validate = lambda: {"validation_accuracy": next(accuracy), "validation_minus_loss": -next(losses)}
    told.validated = lambda values: heard.append(values["validation_accuracy"])
    found = trials.train(told, lambda: False, lambda done: None, lambda: kept.append(told.steps // 2))
    assert (found.score, found.best_epoch, found.measures["validation_accuracy"]) == (-1.5, 3, 0.5)
    assert kept == [1, 2, 3] and heard == [0.1, 0.6, 0.5, 0.4]


# -- a whole search ----------------------------------------------------------------------------------------------------


def test_end_to_end(whole):
    out, text = whole
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "parallel.png", "search.json", "search.png",
                                                           "trials.csv", "trials.jsonl"]
    found = lines(out)
    assert [(line["stage"], line["number"]) for line in found] == [("coarse", n) for n in (1, 2, 3, 4)] + [
        ("fine", n) for n in (1, 2, 3)]
    for line in found:
        epochs = 2 if line["stage"] == "coarse" else 3
        assert len(line["accuracy"]) == len(line["loss"]) == epochs and line["score"] == max(line["accuracy"])
        assert line["settings"]["hidden"] in ([6], [5, 4]) and 0.01 <= line["settings"]["learning_rate"] <= 1
    assert len({line["score"] for line in found}) > 1
    coarse = sorted(found[:4], key=lambda line: (-line["score"], line["number"]))[:2]
    rates = sorted(line["settings"]["learning_rate"] for line in coarse)
    low, high = max(0.01, rates[0] ** 2 / rates[1]), min(1, rates[1] ** 2 / rates[0])   # k = 2: as wide again each side
    assert all(low * 0.999 <= line["settings"]["learning_rate"] <= high * 1.001 for line in found[4:])
    assert f"{space.spell(float(f'{low:.4g}'))} to {space.spell(float(f'{high:.4g}'))}" in text
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_sorted(whole):
    out, text = whole
    table = outcome(out)[1]
    scores = [float(row["accuracy"]) for row in table]
    assert scores == sorted(scores, reverse=True) and len(table) == 7
    printed = [line.split() for line in text[text.index("\nstage "):].splitlines()[1:9]]
    assert [row[:2] for row in printed[1:]] == [[row["stage"], row["trial"]] for row in table]
    for row in table:
        line = next(line for line in lines(out) if [line["stage"], str(line["number"])] == [row["stage"], row["trial"]])
        assert line["accuracy"][int(row["epoch"]) - 1] == float(row["accuracy"]) == line["score"]
        assert [float(row["learning_rate"]), json.loads(row["hidden"])] == [*line["settings"].values()]


def test_the_command_that_trains_the_best(whole, data):
    """It is understood by nnlite.train, and a training of as many epochs validates as the trial did."""
    out, text = whole
    command = shlex.split(text[text.rindex("python -m nnlite.train"):])[3:]
    best = max(lines(out), key=lambda line: line["score"])
    config, images = train.resolve(train.parser().parse_args([*command, "--epochs", str(len(best["accuracy"])),
                                                              "--device", "reference"]))
    assert {key: config["settings"][key] for key in best["settings"]} == best["settings"]
    assert config["data"] == str(data)
    experiment = LabelExperiment.from_config(config, images, get_ops("reference"))
    experiment.restart()
    found = []
    for iteration in range(config["iterations"]):
        experiment.step(iteration)
        if (iteration + 1) % config["settings"]["validate_every"] == 0:
            found.append(experiment.validate()["validation_accuracy"])
    assert found == best["accuracy"]


def test_the_data_is_read_once(data, tmp_path, monkeypatch):
    from nnlite.data import images
    calls, read = [], images.read
    monkeypatch.setattr(images, "read", lambda *args, **named: calls.append(args) or read(*args, **named))
    assert search.main(words(data, tmp_path / "s", trials=3)) == 0
    assert len(calls) == 1


def test_grid_search(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials.Search, "draw_pictures", draw_pictures)
    two = ["--space", "learning_rate=log:0.01:1:3", "--space", "momentum=0,0.5", "--set", "hidden=[6]"]
    full = tmp_path / "full"
    assert search.main(words(data, full, "--method", "grid", trials=100, space=two)) == 0
    points = [tuple(line["settings"].values()) for line in lines(full)]
    assert points == list(itertools.product([0.01, 0.1, 1.0], [0.0, 0.5]))
    assert "--trials" not in capsys.readouterr().err
    monkeypatch.setattr(trials.Search, "draw_pictures", lambda found: None)
    some = tmp_path / "some"
    assert search.main(words(data, some, "--method", "grid", trials=4, space=two)) == 0
    assert "the grid has 6 points; --trials 4 takes 4 of them" in capsys.readouterr().err
    every = {line["number"]: line for line in lines(full)}
    assert len(lines(some)) == 4
    assert all(line["accuracy"] == every[line["number"]]["accuracy"] for line in lines(some))


def test_a_trial_that_diverges_counts_as_failed(data, tmp_path, capsys, monkeypatch):
    """SGD at a rate of 1e30 overflows in a few steps; the search goes on."""
    monkeypatch.setattr(trials.Search, "draw_pictures", draw_pictures)
    out = tmp_path / "s"
    both = ["--space", "learning_rate=0.05,1e30", "--set", "hidden=[6]"]
    assert search.main(words(data, out, "--method", "grid", space=both)) == 0
    good, bad = lines(out)
    assert good["score"] is not None and bad["score"] is None and bad["settings"] == {"learning_rate": 1e30}
    assert outcome(out)[1][1]["accuracy"] == ""
    text = capsys.readouterr()
    assert "failed: the loss became NaN or infinite" in text.out and "Warning" not in text.err
    assert (out / "search.png").exists()


def test_nothing_but_failures(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials.Search, "draw_pictures", draw_pictures)
    worst = ["--space", "learning_rate=log:1e30:1e31", "--set", "hidden=[6]"]
    assert search.main(words(data, tmp_path / "s", trials=2, space=worst)) == 1
    assert "every one failed" in capsys.readouterr().err
    assert search.main(words(data, tmp_path / "f", "--fine", 2, trials=2, space=worst)) == 1
    assert "no fine stage" in capsys.readouterr().err


def test_the_default_space(data, tmp_path):
    assert search.main(words(data, tmp_path / "s", space=(), trials=1)) == 0
    assert [*lines(tmp_path / "s")[0]["settings"]] == ["learning_rate", "l2", "lr_decay"]


def test_without_matplotlib(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials.report_labels, "missing_extra", lambda: "matplotlib is not here")
    assert search.main(words(data, tmp_path / "s", trials=1)) == 0
    assert "no pictures: matplotlib is not here" in capsys.readouterr().out
    assert (tmp_path / "s" / "trials.csv").exists() and not (tmp_path / "s" / "search.png").exists()


# -- TPE ---------------------------------------------------------------------------------------------------------------

RATES = ["--space", RATE, "--space", "hidden=[6],[5,4]", "--space", "keep_prob=0.5:1:step0.25"]


def tpe_words(data, out, *more, trials=12):
    return words(data, out, "--method", "tpe", *more, "--epochs", 1, trials=trials, space=RATES)


def study_of(path):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    return optuna.load_study(study_name="nnlite", storage=JournalStorage(JournalFileBackend(str(path))))


def told(folder, journal=None):
    """What a TPE search found, without how long it took, and without trials that were begun in vain."""
    done = [t for t in study_of(journal or folder / "study.journal").trials if t.state.name in ("COMPLETE", "PRUNED")]
    return sorted(({key: value for key, value in t.user_attrs["nnlite"].items() if key != "seconds"} for t in done),
                  key=lambda trial: trial["number"])


@pytest.fixture(scope="module")
def tpe(data, tmp_path_factory):
    pytest.importorskip("optuna")
    out = tmp_path_factory.mktemp("tpe") / "whole"
    assert search.main(tpe_words(data, out)) == 0
    return out


def test_tpe_end_to_end(tpe, data):
    """Optuna's own view of the file: it was told the best validation accuracy, to be made large, and drew from the
    space; what was trained is what it drew, to four digits."""
    names = {path.name for path in tpe.iterdir()}
    assert names == {"search.json", "study.journal", "study.journal.workers", "trials.csv", "search.png", "curves.png",
                     "parallel.png", "importances.png"}
    study = study_of(tpe / "study.journal")
    assert study.direction.name == "MAXIMIZE" and len(study.trials) == 12
    for trial in study.trials:
        record = trial.user_attrs["nnlite"]
        assert trial.value == record["score"] == max(record["accuracy"]) and record["number"] == trial.number + 1
        assert record["settings"]["hidden"] in ([6], [5, 4])
        assert trial.params["hidden"] == str(record["settings"]["hidden"]).replace(" ", "")
        assert record["settings"]["keep_prob"] == trial.params["keep_prob"] in (0.5, 0.75, 1.0)
        assert record["settings"]["learning_rate"] == pytest.approx(trial.params["learning_rate"], rel=1e-3)
    assert trial.distributions["learning_rate"].log and trial.distributions["keep_prob"].step == 0.25
    with open(tpe / "trials.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in table] == sorted((t.value for t in study.trials), reverse=True)
    assert len({row["learning_rate"] for row in table}) == 12


def test_a_trial_of_tpe_is_trained_as_any_other(tpe, data):
    record = told(tpe)[3]
    config, images = train.resolve(train.parser().parse_args(
        ["--model", "mlp", "--data", str(data), "--epochs", "1", "--device", "reference",
         *(word for key, value in record["settings"].items() for word in ("--set", f"{key}={space.spell(value)}"))]))
    experiment = LabelExperiment.from_config(config, images, get_ops("reference"))
    experiment.restart()
    for iteration in range(config["iterations"]):
        experiment.step(iteration)
    assert experiment.validate() == record["measures"]


def _half_a_journal_line(countdown):
    """A process that dies while it writes, with the lock in its hands."""
    from optuna.storages.journal import JournalFileBackend

    def append(backend, logs):
        if countdown.left == 1:
            backend._lock.acquire()
            with open(backend._file_path, "ab") as file:
                file.write(b'{"op_code":4,"worker')
        countdown()
        whole(backend, logs)
    whole, JournalFileBackend.append_logs = JournalFileBackend.append_logs, append


def _around_study(name, **when):
    from optuna.study import Study
    small_runs._around(Study, name, **when)


def sleep_at(countdown):
    """Like a process in the midst of a long step."""
    countdown.left -= 1
    if not countdown.left:
        print("asleep", flush=True)
        time.sleep(60)


TPE_POINTS = {
    "in a step": lambda countdown: small_runs._around(LabelExperiment, "step", after=countdown),
    "sleep in a step": lambda countdown: small_runs._around(LabelExperiment, "step", after=lambda: sleep_at(countdown)),
    "half a journal line": _half_a_journal_line,
    "before drawing": lambda countdown: _around_study("ask", before=countdown),
    "behind drawing": lambda countdown: _around_study("ask", after=countdown),
    "before telling": lambda countdown: _around_study("tell", before=countdown),
    "behind telling": lambda countdown: _around_study("tell", after=countdown),
}
TPE_KILLS = [("in a step", 30), ("half a journal line", 41), ("behind drawing", 11), ("before telling", 11)]
MORE_KILLS = [("half a journal line", 5), ("before drawing", 4), ("behind telling", 12)]


@pytest.mark.parametrize("place, number", [*TPE_KILLS, *(pytest.param(*kill, marks=pytest.mark.slow)
                                                         for kill in MORE_KILLS)])
def test_tpe_killed(place, number, data, tpe, tmp_path, capsys):
    """Wherever it is killed: gone on with, it draws and finds what it would have found at once; no trial is lost, and
    that which was running has the same settings again."""
    out = tmp_path / "s"
    run_until_killed(tpe_words(data, out), tmp_path / "text", place, number)
    before = {trial["number"]: trial for trial in told(out)}
    running = [t for t in study_of(out / "study.journal").trials if t.state.name == "RUNNING"]
    assert search.main(["--out", str(out), "--resume", "--device", "reference"]) == 0
    assert told(out) == told(tpe) and all(told(out)[n - 1] == trial for n, trial in before.items())
    trials_now = study_of(out / "study.journal").trials
    assert [t.state.name for t in trials_now if t.number in {r.number for r in running}] == ["FAIL"] * len(running)
    for one in running:
        if "number" in one.user_attrs:   # it had been drawn completely
            again = [t for t in trials_now if t.user_attrs["number"] == one.user_attrs["number"] and t is not one]
            assert [t.params for t in again] == [one.params] * 2


def run_until_killed(arguments, text, place, number):
    process = context.Process(target=work, args=(arguments, str(text), place, number))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, text.read_text()


def join(arguments, text):
    """Runs the command in this process, its output in a file."""
    stream = open(text, "w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    trials.Search.draw_pictures = lambda found: None
    sys.exit(search.main(arguments))


def test_two_processes_share_the_trials(data, tmp_path, capsys):
    pytest.importorskip("optuna")
    out = tmp_path / "s"
    assert search.main(tpe_words(data, out, trials=1)) == 0
    again = ["--out", str(out), "--resume", "--device", "reference", "--trials", "15"]
    processes = [context.Process(target=join, args=(again, str(tmp_path / f"text{n}"))) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    every = study_of(out / "study.journal").trials
    assert [t.state.name for t in every] == ["COMPLETE"] * 15
    assert sorted(t.user_attrs["number"] for t in every) == list(range(1, 16))
    assert len({t.params["learning_rate"] for t in every}) == 15
    texts = [(tmp_path / f"text{n}").read_text() for n in range(2)]
    assert sum(text.count("] trial ") for text in texts) == 14   # each was trained by one of them
    with open(out / "trials.csv") as file:
        assert len(list(csv.DictReader(file))) == 15


def test_what_another_process_trains_is_left_alone(data, tmp_path, capsys):
    """The other process hangs in the midst of trial 12, and is then killed: that trial comes again with its settings,
    though more is known by now."""
    pytest.importorskip("optuna")
    out, text = tmp_path / "s", tmp_path / "text"
    process = context.Process(target=work, args=(tpe_words(data, out), str(text), "sleep in a step", 46))
    process.start()
    try:
        for _ in range(600):
            if text.exists() and "asleep" in text.read_text():
                break
            time.sleep(0.1)
        again = ["--out", str(out), "--resume", "--device", "reference", "--trials", "14"]
        assert search.main(again) == 0
        assert "other processes train 1 trials" in capsys.readouterr().out
        before = study_of(out / "study.journal").trials
        assert [t.state.name for t in before] == ["COMPLETE"] * 11 + ["RUNNING"] + ["COMPLETE"] * 2
    finally:
        process.kill()
        process.join(60)
    assert search.main(again) == 0
    after = study_of(out / "study.journal").trials
    assert [t.state.name for t in after[11:]] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert after[14].params == before[11].params and after[14].user_attrs["number"] == 12
    assert "train the best" in capsys.readouterr().out


def test_tpe_interrupted(data, tpe, tmp_path, capsys, monkeypatch):
    out, step, count = tmp_path / "s", LabelExperiment.step, itertools.count(1)

    def interrupting(experiment, iteration):
        if next(count) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return step(experiment, iteration)
    monkeypatch.setattr(LabelExperiment, "step", interrupting)
    assert search.main(tpe_words(data, out)) == 130
    assert next(count) == 21
    text = capsys.readouterr().out
    command = shlex.split(text[text.rindex("python -m nnlite.search"):])[3:]
    assert search.main([*command, "--device", "reference"]) == 0
    assert told(out) == told(tpe)


def test_more_trials_of_tpe(data, tpe, tmp_path):
    """Fewer first, then more, with the study elsewhere: the same as all at once."""
    out, journal = tmp_path / "s", tmp_path / "elsewhere" / "study"
    assert search.main(tpe_words(data, out, "--storage", journal, trials=5)) == 0
    assert search.main(tpe_words(data, out, "--storage", journal, "--resume")) == 0
    assert told(out, journal) == told(tpe) and not (out / "study.journal").exists()


def test_a_new_folder_joins_a_study(data, tpe, tmp_path):
    journal = tmp_path / "study"
    journal.write_bytes((tpe / "study.journal").read_bytes())
    assert search.main(tpe_words(data, tmp_path / "s", "--storage", journal, trials=13)) == 0
    assert told(tmp_path, journal)[:12] == told(tpe) and len(told(tmp_path, journal)) == 13


def test_the_seed_decides_tpe(data, tpe, tmp_path):
    assert search.main(tpe_words(data, tmp_path / "s", "--seed", 5, trials=3)) == 0
    assert all(a["settings"] != b["settings"] for a, b in zip(told(tmp_path / "s"), told(tpe)))


def test_a_trial_of_tpe_that_diverges(data, tmp_path, capsys):
    """Counted, and to TPE worse than all that did not."""
    pytest.importorskip("optuna")
    out = tmp_path / "s"
    both = ["--space", "learning_rate=0.05,1e30", "--epochs", 1, "--set", "hidden=[6]"]
    assert search.main(words(data, out, "--method", "tpe", space=both, trials=8)) == 0
    study = study_of(out / "study.journal")
    for trial in study.trials:
        bad = trial.params["learning_rate"] == "1e+30"
        assert trial.state.name == ("PRUNED" if bad else "COMPLETE")
        assert (trial.user_attrs["nnlite"]["score"] is None) == bad
    assert len(study.trials) == 8 and {t.state.name for t in study.trials} == {"PRUNED", "COMPLETE"}


def test_the_space_of_the_efficientnets():
    """MODELS: learning rate 5e-6 to 1e-2, width and depth 0.2 to 1.4, dropout 0 to 0.5, 16 to 160 filters."""
    parts = space.parse("effnetv2s-small", search.SPACES["effnetv2s-small"], grid=False)
    assert [*parts] == ["learning_rate", "width", "depth", "keep_prob", "top_filters"]
    rate, width, depth, keep, top = parts.values()
    assert (rate.low, rate.high, rate.log) == (5e-6, 1e-2, True)
    assert len(width.axis()) == len(depth.axis()) == 25 and width.axis()[:3] == [0.2, 0.25, 0.3]
    assert keep.axis()[0] == 0.5 and keep.axis()[-1] == 1 and len(keep.axis()) == 11
    assert top.axis() == list(range(16, 161, 8))


def sqlite(path):
    sqlite3 = pytest.importorskip("sqlite3")
    connection = sqlite3.connect(path)
    connection.execute("create table studies (study_id integer)")
    connection.commit()
    connection.close()


def foreign_study(path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    optuna.create_study(study_name="theirs", storage=JournalStorage(JournalFileBackend(str(path))))


@pytest.mark.parametrize("make, wanted", [
    (lambda path: path.write_text("no study\nat all"), "cannot be read"),
    (lambda path: path.write_text(""), "no study"),
    (lambda path: path.write_text("[1, 2]\n"), "cannot be read"), (lambda path: path.mkdir(), "a folder"),
    (lambda path: path.write_bytes(bytes(range(256)) * 9), "cannot be read"),
    (sqlite, "no study"), (foreign_study, "without a trace of nnlite (theirs)"),
])
def test_no_study(make, wanted, data, tmp_path, capsys):
    pytest.importorskip("optuna")
    make(tmp_path / "study")
    refused(tpe_words(data, tmp_path / "s", "--storage", tmp_path / "study"), tmp_path, capsys, "study: expected",
            wanted)


@pytest.mark.parametrize("change, wanted", [
    (["--space", "learning_rate=log:0.01:2"],
     ["a study of space learning_rate=log:0.01:2", "one of learning_rate=log:0.01:1"]),
    (["--model", "cnn3", "--set", "filters=3", "hidden=9"], ["a study of model cnn3, got one of mlp"]),
    (["--epochs", "3"], ["a study of epochs 3, got one of 1"]),
    (["--set", "momentum=0.75"], ["a study of settings momentum=0.75", "one of momentum=0.5"]),
    (["--seed", "3"], ["a study of seed 3, got one of 0"]),
])
def test_a_study_of_something_else(change, wanted, data, tpe, tmp_path, capsys):
    journal = tmp_path / "study"
    journal.write_bytes((tpe / "study.journal").read_bytes())
    model = [] if "--model" in change else ["--model", "mlp"]
    space = RATES if "--space" not in change and model else [] if "--space" in change else ["--space", RATE]
    epochs = [] if "--epochs" in change else ["--epochs", 1]
    refused([*model, "--data", data, "--out", tmp_path / "s", "--device", "reference", "--method", "tpe", *space,
             *epochs, "--storage", journal, *change], tmp_path, capsys, *wanted)


def test_a_study_that_is_gone(data, tmp_path, capsys):
    pytest.importorskip("optuna")
    assert search.main(tpe_words(data, tmp_path / "s", trials=1)) == 0
    (tmp_path / "s" / "study.journal").unlink()
    capsys.readouterr()
    refused(["--out", tmp_path / "s", "--resume", "--device", "reference"], tmp_path, capsys, "study.journal", "none")


def test_without_optuna(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(tpe_words(data, tmp_path / "s"), tmp_path, capsys, "the package optuna", 'pip install -e ".[search]"')
    monkeypatch.setattr(trials.Search, "draw_pictures", draw_pictures)
    assert search.main(words(data, tmp_path / "s", trials=6)) == 0
    assert (tmp_path / "s" / "parallel.png").exists() and not (tmp_path / "s" / "importances.png").exists()


# -- pictures ----------------------------------------------------------------------------------------------------------


def some_trials(space_, scores, settings):
    return [trials.Trial("coarse", n, drawn, score, None if score is None else 2,
                         {} if score is None else {"validation_accuracy": score},
                         [0.1, 0.1 if score is None else score], [2.0, 1.0], 1.0)
            for n, (score, drawn) in enumerate(zip(scores, settings), 1)]


def test_importances_of_a_known_function():
    """3 u + v with u, v uniform: 9/10 and 1/10 of the variance; u is the logarithm of a rate."""
    pytest.importorskip("optuna")
    pytest.importorskip("sklearn")
    parts = space.parse("cnn4", ["learning_rate=log:1e-5:1e-1", "keep_prob=0.5:1:step0.05", "flip=True,False"],
                        grid=False)
    drawn = [space.draw(parts, n, seed=0, stage="coarse") for n in range(1, 201)]
    scores = [3 * (math.log10(d["learning_rate"]) + 5) / 4 + 2 * d["keep_prob"] - 1 for d in drawn]
    found = study.importances(drawn, scores, parts)
    assert [*found][0] == "learning_rate" and found["learning_rate"] == pytest.approx(0.9, abs=0.06)
    assert found["keep_prob"] == pytest.approx(0.1, abs=0.05) and found["flip"] < 0.01
    assert study.importances(drawn, scores, parts) == found
    assert study.importances(drawn[:4], scores[:4], parts) == {} == study.importances(drawn, [0.5] * 200, parts)


def test_parallel_coordinates():
    pytest.importorskip("matplotlib")
    parts = space.parse("cnn4", ["learning_rate=log:1e-5:1e-1", "keep_prob=0.5:1:step0.25", "flip=True,False"],
                        grid=False)
    some = some_trials(parts, [0.8, 0.4, None], [
        {"learning_rate": 1e-3, "keep_prob": 0.5, "flip": True},
        {"learning_rate": 1e-1, "keep_prob": 0.75, "flip": False},
        {"learning_rate": 1e-5, "keep_prob": 1.0, "flip": False}])
    figure = plots_search.parallel(some, parts, title="a title")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*parts, "accuracy"]
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
    at = [[line.get_ydata()[[*line.get_xdata()].index(place)] for place in range(4)] for line in lines]   # worst first
    assert np.allclose([[y[0], y[1], y[3]] for y in at[1:]], [[1, 0.5, 0], [0.5, 0, 1]])
    assert at[0][:2] == [0, 1] and at[0][3] < 0
    assert 0 < at[2][2] < 0.5 < at[1][2] < 1   # the two values of a choice
    assert {"1e-05", "0.001", "0.1", "True", "False", "80 %", "40 %", "failed"} <= {t.get_text() for t in axes.texts}


def test_learning_curves_and_the_best_so_far():
    pytest.importorskip("matplotlib")
    parts = space.parse("cnn4", ["keep_prob=0.5:1"], grid=False)
    some = trials.ranked(some_trials(parts, [0.3, None, 0.2, 0.5], [{"keep_prob": 0.6}] * 4))
    left, right = plots_search.curves(some, None, grid=False, title="a title").axes
    assert sorted(tuple(line.get_ydata()) for line in left.lines) == [(0.1, 0.1), (0.1, 0.2), (0.1, 0.3), (0.1, 0.5)]
    assert [*right.lines[0].get_ydata()] == [0.3, 0.3, 0.3, 0.5]
    assert len(plots_search.curves(some, None, grid=True, title="a title").axes) == 1


# -- stopped and resumed -----------------------------------------------------------------------------------------------


def _half_a_line(countdown):
    def add(found, trial):
        with open(found.path / "trials.jsonl", "a") as file:
            file.write(json.dumps(trial._asdict())[:40])
            file.flush()
            countdown()
            file.truncate(file.tell() - 40)
        whole_add(found, trial)
    whole_add, trials.Search.add = trials.Search.add, add


POINTS = {
    "in a step": lambda countdown: small_runs._around(LabelExperiment, "step", after=countdown),
    "half a line": _half_a_line,
    "behind a line": lambda countdown: small_runs._around(trials.Search, "add", after=countdown),
    "renaming": lambda countdown: small_runs._around(os, "replace", before=countdown),
}


def work(arguments, output, place, number):
    """Runs the command in this process, killed where `place` is passed for the n-th time."""
    stream = open(output, "w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    {**POINTS, **TPE_POINTS}[place](small_runs.Countdown(number))
    sys.exit(search.main(arguments))


KILLS = [("in a step", 40), ("half a line", 1), ("half a line", 6), ("behind a line", 4), ("behind a line", 7),
         ("renaming", 2)]   # of 4 + 3 trials with 92 steps in all


@pytest.mark.parametrize("place, number", KILLS, ids=[f"{place} {number}" for place, number in KILLS])
def test_killed(place, number, data, whole, tmp_path, capsys):
    out = tmp_path / "s"
    arguments = words(data, out, "--fine", 3, "--fine-epochs", 3, "--keep", 0.5)
    run_until_killed(arguments, tmp_path / "text", place, number)
    before = (out / "trials.jsonl").read_text().splitlines() if (out / "trials.jsonl").exists() else []
    assert search.main(["--out", str(out), "--resume", "--device", "reference"]) == 0
    assert outcome(out) == outcome(whole[0]) and not list(out.glob("*.part"))
    kept = len(before) - (place == "half a line")
    assert (out / "trials.jsonl").read_text().splitlines()[:kept] == before[:kept]   # none of them done again


def test_interrupted(data, whole, tmp_path, capsys, monkeypatch):
    """Ctrl-C ends the search behind the step; the command that is printed goes on with it."""
    out, step, count = tmp_path / "s", LabelExperiment.step, itertools.count(1)

    def interrupting(experiment, iteration):
        if next(count) == 20:   # of 8 steps a trial
            os.kill(os.getpid(), signal.SIGINT)
        return step(experiment, iteration)
    monkeypatch.setattr(LabelExperiment, "step", interrupting)
    assert search.main(words(data, out, "--fine", 3, "--fine-epochs", 3, "--keep", 0.5)) == 130
    assert next(count) == 21 and len(lines(out)) == 2
    text = capsys.readouterr().out
    command = shlex.split(text[text.rindex("python -m nnlite.search"):])[3:]
    assert search.main([*command, "--device", "reference"]) == 0
    assert outcome(out) == outcome(whole[0])


def test_resumed_with_more_trials(data, whole, tmp_path):
    """Fewer trials first, then more, then a fine stage: the same as all at once."""
    out = tmp_path / "s"
    assert search.main(words(data, out, trials=2)) == 0
    assert search.main(words(data, out, "--resume", trials=4)) == 0
    assert len(lines(out)) == 4
    again = ["--out", str(out), "--resume", "--device", "reference", "--fine", "3", "--fine-epochs", "3", "--keep"]
    assert search.main([*again, "0.5"]) == 0
    assert outcome(out) == outcome(whole[0])


def test_an_older_search_goes_on(data, whole, tmp_path):
    """Begun when a trial knew no measures, and search.json no study, no weights and fewer settings."""
    out = tmp_path / "s"
    assert search.main(words(data, out, trials=3)) == 0
    config, older = json.loads((out / "search.json").read_text()), lines(out)
    for key in ("storage", "weights", "skip_broken"):
        del config[key]
    del config["settings"]["watch"]
    (out / "search.json").write_text(json.dumps(config))
    for line in older:
        del line["measures"], line["best_epoch"]
    (out / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    assert search.main(words(data, out, "--resume", trials=4)) == 0
    assert [line["accuracy"] for line in lines(out)] == [line["accuracy"] for line in lines(whole[0])[:4]]
    assert [line["best_epoch"] for line in lines(out)] == [line["best_epoch"] for line in lines(whole[0])[:4]]


def test_resumed_when_all_is_done(whole, capsys):
    before = lines(whole[0])
    assert search.main(["--out", str(whole[0]), "--resume", "--device", "reference"]) == 0
    assert lines(whole[0]) == before and "train the best" in capsys.readouterr().out


def test_the_seed_decides(data, whole, tmp_path):
    assert search.main(words(data, tmp_path / "s", "--seed", 5)) == 0
    mine, others = lines(tmp_path / "s"), lines(whole[0])
    assert all(a["settings"] != b["settings"] for a, b in zip(mine, others))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, wanted", [
    ("--space learning_rat=log:1e-5:1e-2", ["'learning_rat' (nearest: learning_rate)"]),
    ("--space filters=[8]", ["a setting of mlp", "'filters'"]),
    ("--space subset=[3,2]", ["'subset'"]),
    ("--space epochs=1:5", ["--epochs says", "'epochs'"]),
    ("--space learning_rate", ["setting=log:a:b", "'learning_rate'"]),
    ("--space learning_rate=log:0:1", ["log range above 0", "'log:0:1'"]),
    ("--space learning_rate=log:-1:1", ["log range above 0"]),
    ("--space learning_rate=0:1", ["--space learning_rate", "above 0", "0.0"]),
    ("--space learning_rate=1e-2:1e-5", ["from a smaller number to a larger"]),
    ("--space learning_rate=1:1", ["from a smaller number to a larger"]),
    ("--space learning_rate=1e-5:a", ["log:a:b, a:b, a:b:stepS or v1,v2,v3", "'1e-5:a'"]),
    ("--space learning_rate=log:1e-5", ["'log:1e-5'"]),
    ("--space learning_rate=log:1e-5:1e-2:4", ["'log:1e-5:1e-2:4'"]),
    ("--space learning_rate=1:nan", ["nan"]),
    ("--space learning_rate=1:1e999", ["inf"]),
    ("--space momentum=0:0.9:step0.4", ["--space momentum", "whole steps"]),
    ("--space momentum=0:0.8:step0", ["steps above 0"]),
    ("--space momentum=0.8:0:step0.4", ["from a smaller number to a larger"]),
    ("--space momentum=0:0.8:step", ["a:b:stepS", "'0:0.8:step'"]),
    ("--space momentum=log:0.1:0.8:step0.1", ["a:b:stepS"]),
    ("--space batch_size=10:20:step2.5", ["steps above 0"]),
    ("--space hidden=1:3:step1", ["a:b:stepS, for a setting that is a number"]),
    ("--space watch=loss,f1", ["'watch'"]),
    ("--space momentum=0:1", ["--space momentum", "below 1", "1.0"]),
    ("--space batch_size=1.5:4", ["--space batch_size", "whole number", "1.5"]),
    ("--space batch_size=10,x", ["--space batch_size", "'x'"]),
    ("--space batch_size=10,10", ["10 twice"]),
    ("--space batch_size=", ["--space batch_size", "none of them empty", "''"]),
    ("--space batch_size=10,,20", ["none of them empty"]),
    ("--space hidden=10:20", ["values v1,v2,v3"]),
    ("--space hidden=10,20", ["--space hidden", "list of sizes"]),
    ("--space l2=0:1 --space l2=0:1", ["--space l2", "two"]),
    ("--space l2=0:1 --set l2=0.1", ["--set l2", "not searched"]),
    ("--space batch_size=10,100000", ["--set batch_size", "100000"]),
    ("--set epochs=3", ["--set", "'epochs'"]),
    ("--set momentum=2", ["--set momentum"]),
    ("--method grid --space learning_rate=log:1e-5:1e-2", ["n points", "'log:1e-5:1e-2'"]),
    ("--method grid --space learning_rate=log:1e-5:1e-2:1", ["n points"]),
    ("--method grid --space learning_rate=log:1e-5:1e-2:2.5", ["n points"]),
    ("--method grid --space learning_rate=1e-5:1e-2:400 --space l2=0:1:400", ["at most 100000 points", "160000"]),
    ("--method grid --space l2=0,1 --fine 3", ["--fine", "--method random"]),
    ("--method tpe --space l2=0:1 --fine 3", ["--fine", "--method random", "got tpe"]),
    ("--storage study", ["--storage", "--method tpe", "got random"]),
    ("--trials 0", ["--trials", "at least 1", "0"]),
    ("--epochs 0", ["--epochs", "at least 1"]),
    ("--fine -1", ["--fine", "-1"]),
    ("--fine-epochs 3", ["--fine-epochs", "--fine N"]),
    ("--fine 2 --fine-epochs 0", ["--fine-epochs", "at least 1"]),
    ("--fine 2 --keep 0", ["--keep", "0"]),
    ("--seed -1", ["--seed", "-1"]),
    ("--preset cnn4", ["--preset", "'cnn4' of cnn4"]),
    ("--preset mlp-ra", ["nearest: mlp-raw"]),
    ("--resume", ["search.json", "none"]),
])
def test_wrong_options(more, wanted, data, tmp_path, capsys):
    space = [] if "--space" in more else TWO
    refused([*words(data, tmp_path / "s", space=space), *more.split()], tmp_path, capsys, *wanted)


@pytest.mark.parametrize("arguments, wanted", [
    ("", ["--model", "none"]),
    ("--preset posed-m1-1", ["--preset", "a classifier", "vae1"]),
    ("--preset cnn4-distilled", ["--preset", "without a teacher"]),
    ("--preset mlp-cifar", ["--data", "CIFAR-10"]),
    ("--model mlp --data nothing.csv", ["nothing.csv"]),
    ("--model mlp --resume", ["--out"]),
])
def test_nothing_to_search(arguments, wanted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(arguments.split(), tmp_path, capsys, *wanted)


def test_a_model_that_does_not_fit_the_images(data, tmp_path, capsys):
    """Found before the first trial, whichever trial it is."""
    refused(["--model", "cnn4", "--data", data, "--out", tmp_path / "s", "--device", "reference", "--method", "grid",
             "--space", "filters=[4],[4,4],[4,4,4,4]"], tmp_path, capsys, "cnn4", "8x8")


def test_a_folder_that_is_taken(data, whole, tmp_path, capsys):
    refused(words(data, whole[0]), whole[0], capsys, "without a search", "search.json")
    (tmp_path / "config.json").write_text("{}")
    refused(words(data, tmp_path), tmp_path, capsys, "config.json")


@pytest.mark.parametrize("more, wanted", [
    ("--model cnn4", ["--model", "mlp", "got cnn4"]),
    ("--preset mlp-raw", ["--preset", "mlp-fer2013", "got mlp-raw"]),
    ("--method grid", ["--method", "random", "got grid"]),
    ("--epochs 3", ["--epochs", ", 2, got 3"]),
    ("--seed 1", ["--seed", ", 0, got 1"]),
    ("--data other.h5", ["--data", "other.h5"]),
    (f"--space {RATE}", ["--space", "hidden=[6],[5,4]"]),
    ("--space learning_rate=log:0.01:2 --space hidden=[6],[5,4]", ["log:0.01:1", "log:0.01:2"]),
    ("--set momentum=0.9", ["--set", "got momentum=0.9"]),
    ("--trials 5", ["--trials", "fine trials are done", "got 5"]),
    ("--keep 0.3", ["--keep", "fine trials are done"]),
    ("--fine-epochs 4", ["--fine-epochs", "fine trials are done"]),
    ("--fine 2", ["--fine", "at least the 3 that are done", "got 2"]),
])
def test_resumed_as_another_search(more, wanted, whole, capsys):
    refused(["--out", whole[0], "--resume", "--device", "reference", *more.split()], whole[0], capsys, *wanted)


def test_resumed_with_all_that_it_was_begun_with(whole, data):
    same = ["--space", "learning_rate=log:1e-2:1.0", "--space", "hidden=[6],[5, 4]"]
    assert search.main(words(data, whole[0], "--resume", "--seed", 0, "--epochs", 2, space=same)) == 0


def test_resumed_on_other_images(data, tmp_path, capsys):
    mine = image_file(tmp_path / "images.h5")
    assert search.main(words(mine, tmp_path / "s", trials=1)) == 0
    image_file(mine, n=90)
    capsys.readouterr()
    refused(["--out", tmp_path / "s", "--resume", "--device", "reference"], tmp_path, capsys, "the 60 images")


@pytest.mark.parametrize("change, wanted", [
    (lambda config: config.pop("space"), ["'space'"]), (lambda config: config.update(method="magic"), ["'method'"]),
    (lambda config: config.update(trials="many"), ["'trials'"]),
    (lambda config: config.update(space={"learning_rate": "log:0:1"}), ["log range above 0"]),
    (lambda config: config["settings"].update(momentum=3), ["momentum"]),
])
def test_a_spoilt_search_json(change, wanted, data, tmp_path, capsys):
    assert search.main(words(data, tmp_path / "s", trials=1)) == 0
    path = tmp_path / "s" / "search.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    capsys.readouterr()
    refused(["--out", tmp_path / "s", "--resume", "--device", "reference"], tmp_path, capsys, *wanted)
    path.write_text("{")
    refused(["--out", tmp_path / "s", "--resume", "--device", "reference"], tmp_path, capsys, "search.json")
