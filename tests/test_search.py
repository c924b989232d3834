"""Searches: draws, grids, narrowing; the command, stopped in every way and resumed; what it writes and refuses."""

import collections
import contextlib
import csv
import itertools
import json
import math
import multiprocessing
import os
import shlex
import signal
import sys

import numpy as np
import pytest
from scipy import stats

import small_runs
from nnlite import search, space, train, trials
from nnlite.experiments import LabelExperiment
from nnlite.ops import get_ops
from small_runs import image_file, snapshot

context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
context.set_forkserver_preload(["test_search"])

RATE = "learning_rate=log:0.01:1"
TWO = ["--space", RATE, "--space", "hidden=[6],[5,4]"]


draw_picture = trials.Search.draw_picture


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take most of the time of a small search; tests that look at them put draw_picture back."""
    monkeypatch.setattr(trials.Search, "draw_picture", lambda found: None)


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


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("losses, accuracy, found, steps", [
    ([3, 1, 2, 4, 1, 0], [0.5, 0.75, 0.25], (True, [0.5, 0.75, 0.25], [2, 3, 0.5]), 6),
    ([3, 1, NAN, 4, 1, 0], [0.5], (False, [0.5], [2]), 3),
    ([INF, 1], [], (False, [], []), 1),
    ([3, 1, 2, 4], [0.5, NAN], (False, [0.5], [2]), 4),
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
    assert trials.train(told, lambda: False, lambda done: None)[1] == [0.1, 0.6, 0.5, 0.6]


# -- a whole search ----------------------------------------------------------------------------------------------------


def test_end_to_end(whole):
    out, text = whole
    assert sorted(path.name for path in out.iterdir()) == ["search.json", "search.png", "trials.csv", "trials.jsonl"]
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
    monkeypatch.setattr(trials.Search, "draw_picture", draw_picture)
    two = ["--space", "learning_rate=log:0.01:1:3", "--space", "momentum=0,0.5"]
    full = tmp_path / "full"
    assert search.main(words(data, full, "--method", "grid", trials=100, space=two)) == 0
    points = [tuple(line["settings"].values()) for line in lines(full)]
    assert points == list(itertools.product([0.01, 0.1, 1.0], [0.0, 0.5]))
    assert "--trials" not in capsys.readouterr().err
    some = tmp_path / "some"
    assert search.main(words(data, some, "--method", "grid", trials=4, space=two)) == 0
    assert "the grid has 6 points; --trials 4 takes 4 of them" in capsys.readouterr().err
    every = {line["number"]: line for line in lines(full)}
    assert len(lines(some)) == 4
    assert all(line["accuracy"] == every[line["number"]]["accuracy"] for line in lines(some))


def test_a_trial_that_diverges_counts_as_failed(data, tmp_path, capsys, monkeypatch):
    """SGD at a rate of 1e30 overflows in a few steps; the search goes on."""
    monkeypatch.setattr(trials.Search, "draw_picture", draw_picture)
    out = tmp_path / "s"
    both = ["--space", "learning_rate=0.05,1e30"]
    assert search.main(words(data, out, "--method", "grid", space=both)) == 0
    good, bad = lines(out)
    assert good["score"] is not None and bad["score"] is None and bad["settings"] == {"learning_rate": 1e30}
    assert outcome(out)[1][1]["accuracy"] == ""
    text = capsys.readouterr()
    assert "failed: the loss became NaN or infinite" in text.out and "Warning" not in text.err
    assert (out / "search.png").exists()


def test_nothing_but_failures(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials.Search, "draw_picture", draw_picture)
    worst = ["--space", "learning_rate=log:1e30:1e31"]
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
    assert "no picture: matplotlib is not here" in capsys.readouterr().out
    assert (tmp_path / "s" / "trials.csv").exists() and not (tmp_path / "s" / "search.png").exists()


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
    POINTS[place](small_runs.Countdown(number))
    sys.exit(search.main(arguments))


KILLS = [("in a step", 40), ("half a line", 1), ("half a line", 6), ("behind a line", 4), ("behind a line", 7),
         ("renaming", 2)]   # of 4 + 3 trials with 92 steps in all


@pytest.mark.parametrize("place, number", KILLS, ids=[f"{place} {number}" for place, number in KILLS])
def test_killed(place, number, data, whole, tmp_path, capsys):
    out = tmp_path / "s"
    arguments = words(data, out, "--fine", 3, "--fine-epochs", 3, "--keep", 0.5)
    process = context.Process(target=work, args=(arguments, str(tmp_path / "text"), place, number))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "text").read_text()
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


def test_resumed_when_all_is_done(whole, capsys):
    before = lines(whole[0])
    assert search.main(["--out", str(whole[0]), "--resume", "--device", "reference"]) == 0
    assert lines(whole[0]) == before and "train the best" in capsys.readouterr().out


def test_the_seed_decides(data, whole, tmp_path):
    assert search.main(words(data, tmp_path / "s", "--seed", 5)) == 0
    mine, others = lines(tmp_path / "s"), lines(whole[0])
    assert all(a["settings"] != b["settings"] for a, b in zip(mine, others))


# -- refused -----------------------------------------------------------------------------------------------------------


def refused(arguments, folder, capsys, *wanted):
    before = snapshot(folder)
    assert search.main([str(word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnlite: ") and error.count("\n") == 1, error
    assert ": expected " in error and ", got " in error, error
    for word in wanted:
        assert word in error, error
    assert snapshot(folder) == before


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
    ("--space learning_rate=1e-5:a", ["log:a:b, a:b or v1,v2,v3", "'1e-5:a'"]),
    ("--space learning_rate=log:1e-5", ["'log:1e-5'"]),
    ("--space learning_rate=log:1e-5:1e-2:4", ["'log:1e-5:1e-2:4'"]),
    ("--space learning_rate=1:nan", ["nan"]),
    ("--space learning_rate=1:1e999", ["inf"]),
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
