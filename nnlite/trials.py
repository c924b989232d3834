"""The trials of a search: how one is trained, which there are, and the folder that keeps them.

    search.json      model, preset, data, method, space, numbers of trials, settings that are not searched
    trials.jsonl     one JSON object a line for every trial that came to its end
    trials.csv       the same as a table, the best first
    search.png       the same as a picture
"""

import csv
import gc
import json
import math
import os
import pathlib
import time
from typing import NamedTuple

import numpy as np

from . import plots, plots_search, report_labels, space as space_
from .errors import expected
from .experiments import EXPERIMENTS
from .experiments.label_options import steps_per_epoch
from .experiments.options import check_batch_size
from .files import remove_leftovers, replacing
from .models import MODELS
from .report import aligned, three_digits, write
from .runs import is_a
from .settings import KNOWN, SHAPES, check

LOOK_EVERY = 50   # iterations between looks at the loss where that means waiting for a GPU
SHOWN = 20        # rows of the table that is printed
LEAST_KEPT = 2    # trials that a range is narrowed around
STAGES = "coarse", "fine"
METHODS = "random", "grid"


class Trial(NamedTuple):
    """A trial that came to its end.

    stage: one of STAGES; number: from 1 in its stage; settings: those drawn; score: the best validation accuracy, None
    where loss or validation became NaN or infinite; accuracy, loss: lists, of each epoch the validation accuracy and
    the mean training loss; seconds: how long it took.
    """

    stage: str
    number: int
    settings: dict
    score: float
    accuracy: list
    loss: list
    seconds: float

    def is_whole(self):
        """Whether every field is of its kind, as in a line that was not damaged."""
        kinds = str, int, dict, (float, type(None)), list, list, float
        return all(map(isinstance, self, kinds)) and self.stage in STAGES

    @property
    def best_epoch(self):
        """The first epoch with the score, counted from 1; None for a failed trial."""
        return None if self.score is None else self.accuracy.index(self.score) + 1


def train(experiment, stop, show):
    """(finite, accuracy, loss) of a whole training, lists with an entry for each epoch; None where stop() was true.

    finite: whether loss and validation stayed so; the training ends where they do not. show(iterations done) is called
    behind each step.
    """
    every, look = experiment.settings["validate_every"], LOOK_EVERY if experiment.ops.name == "cuda" else 1
    accuracy, losses, some = [], [], []   # some: losses of the present epoch
    done, best = 0, 0                     # best: the iteration of the best validation
    experiment.restart()
    while not experiment.over(done, best):
        terms = experiment.step(done)
        done += 1
        if done % look == 0 or done % every == 0:
            some.append(experiment.sums(terms)["loss_sum"])
            if not math.isfinite(some[-1]):
                return False, accuracy, losses
        if done % every == 0:
            values = experiment.validate()
            if not all(map(math.isfinite, values.values())):
                return False, accuracy, losses
            accuracy.append(values[experiment.criterion])
            losses.append(math.fsum(some) / len(some))
            some = []
            best = done if accuracy[-1] > max(accuracy[:-1], default=-math.inf) else best
        show(done)
        if stop():
            return None
    return True, accuracy, losses


class Search:
    """A search folder with its data: path, config, data (loaded once for all trials), space, trials.

    config: what search.json says; ops: where the trials are trained.
    """

    def __init__(self, path, config, data, ops):
        self.path, self.config, self.data, self.ops = pathlib.Path(path), config, data, ops
        self.space = space_.parse(config["model"], [f"{name}={text}" for name, text in config["space"].items()],
                                  grid=config["method"] == "grid")
        self.trials = []

    # -- which trials there are ----------------------------------------------------------------------------------

    def numbers(self, stage):
        """The numbers of a stage's trials."""
        config = self.config
        if stage == "fine":
            return list(range(1, config["fine"] + 1))
        if config["method"] == "grid":
            return space_.grid_numbers(self.space, config["trials"], config["seed"])
        return list(range(1, config["trials"] + 1))

    def open_numbers(self, stage):
        """Those of them that have not come to their end."""
        done = {trial.number for trial in self.trials if trial.stage == stage}
        return [number for number in self.numbers(stage) if number not in done]

    def draw(self, stage, number):
        """The settings of a trial. What a method has learnt from self.trials would enter here."""
        if self.config["method"] == "grid":
            return space_.grid_point(self.space, number)
        space = self.space if stage == "coarse" else self.fine_space()
        return space_.draw(space, number, seed=self.config["seed"], stage=stage)

    def kept(self):
        """The trials that the fine stage goes on from: the best share `keep` of the coarse ones (those that failed
        count as the worst), rounded up, at least LEAST_KEPT; [] where fewer have a score."""
        coarse = ranked(trial for trial in self.trials if trial.stage == "coarse")
        count = max(LEAST_KEPT, math.ceil(self.config["keep"] * len(coarse)))
        scored = [trial for trial in coarse[:count] if trial.score is not None]
        return scored if len(scored) >= LEAST_KEPT else []

    def fine_space(self):
        return space_.narrowed(self.space, [trial.settings for trial in self.kept()])

    # -- training ------------------------------------------------------------------------------------------------

    def settings(self, stage, drawn):
        """All settings of a trial, as the experiment takes them."""
        settings = {**self.config["settings"], **drawn}
        epochs = self.config["epochs" if stage == "coarse" else "fine_epochs"]
        every = steps_per_epoch(settings, len(self.data.split["train"]))
        return {**settings, "epochs": epochs, "iterations": epochs * every, "validate_every": every,
                "checkpoint_every": every}

    def check(self):
        """Raise NnliteError for a coarse trial whose model or batches do not fit the data."""
        checked = set()
        model, shape, classes = self.config["model"], self.data.images.shape[1:], len(self.data.classes)
        for number in self.numbers("coarse"):
            settings = self.settings("coarse", self.draw("coarse", number))
            check_batch_size(settings, len(self.data.split["train"]), "images")
            sizes = {key: settings[key] for key in SHAPES[model]}
            if str(sizes) not in checked:
                checked.add(str(sizes))
                MODELS[model](shape=shape, classes=classes, **sizes)

    def run(self, stage, number, stop, show):
        """Train a trial and keep it; returns the Trial, or None where stop() was true first.

        show(iterations done, iterations in all) is called behind each step.
        """
        drawn, begin = self.draw(stage, number), time.perf_counter()
        settings = self.settings(stage, drawn)
        experiment = EXPERIMENTS[self.config["model"]](settings, self.data, self.ops, seed=self.config["seed"])
        with np.errstate(over="ignore", invalid="ignore"):   # a learning rate far too high is said by the score
            found = train(experiment, stop, lambda done: show(done, settings["iterations"]))
        del experiment
        gc.collect()   # it is a ring, held by its own captured step; the collector would let several gather
        if found is None:
            return None
        finite, accuracy, loss = found
        trial = Trial(stage, number, drawn, max(accuracy) if finite else None, accuracy, loss,
                      round(time.perf_counter() - begin, 2))
        self.add(trial)
        return trial

    # -- the folder ----------------------------------------------------------------------------------------------

    def begin(self):
        """Make the folder and write search.json."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise expected(str(self.path), "a folder that can be made", error.strerror) from None
        self.save_config()

    def save_config(self):
        write(self.path / "search.json", (json.dumps(self.config, indent=1) + "\n").encode())

    def add(self, trial):
        """Keep a trial: one line, on the disk when this returns."""
        path = self.path / "trials.jsonl"
        try:
            with open(path, "a") as file:
                file.write(_line(trial))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise expected(path, "a place that can be written", error.strerror or str(error)) from error
        self.trials.append(trial)

    def read_trials(self):
        """Take up the trials of trials.jsonl; a damaged line, as a killed process may leave, does not count. Nothing is
        written."""
        path, found = self.path / "trials.jsonl", {}
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                trial = Trial(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if trial.is_whole() and [*trial.settings] == [*self.space]:
                found.setdefault((trial.stage, trial.number), trial)
        self.trials = list(found.values())

    def tidy(self):
        """Write the folder as it is after read_trials(): without what a killed process left half written."""
        remove_leftovers(self.path)
        self.save_config()
        write(self.path / "trials.jsonl", "".join(map(_line, self.trials)).encode())

    # -- what came out -------------------------------------------------------------------------------------------

    def best(self):
        """The trial with the highest score, or None."""
        first = ranked(self.trials)[:1]
        return first[0] if first and first[0].score is not None else None

    def write_table(self):
        """trials.csv: a line for each trial, the best first; a failed one has no accuracy."""
        with replacing(self.path / "trials.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["stage", "trial", "accuracy", "epoch", "epochs", "loss", "seconds", *self.space])
            for t in ranked(self.trials):
                writer.writerow([t.stage, t.number, t.score, t.best_epoch, len(t.accuracy), *(t.loss[-1:] or [None]),
                                 t.seconds, *(space_.spell(t.settings[name]) for name in self.space)])

    def draw_picture(self):
        """search.png; needs matplotlib."""
        fine = self.fine_space() if self.config["fine"] and not self.open_numbers("coarse") and self.kept() else None
        figure = plots_search.search(ranked(self.trials), self.space, fine, grid=self.config["method"] == "grid",
                                     title=self.title())
        write(self.path / "search.png", plots.png(figure))

    def name(self, trial):
        """A trial for people; the stage is worth a word where there are two."""
        return f"{trial.stage} trial {trial.number}" if self.config["fine"] else f"trial {trial.number}"

    def title(self):
        best = self.best()
        found = f"best validation accuracy {100 * best.score:.1f} %, {self.name(best)}" if best else "all failed"
        return f"{self.config['preset']}: {len(self.trials)} trials, {self.config['method']} search; {found}"

    def format_table(self):
        """The best SHOWN trials as aligned text."""
        rows = [["stage", "trial", "accuracy", "epoch", "loss", "seconds", *self.space]]
        for t in ranked(self.trials)[:SHOWN]:
            rows.append([t.stage, str(t.number), "failed" if t.score is None else three_digits(t.score),
                         str(t.best_epoch or "-"), f"{t.loss[-1]:.4g}" if t.loss else "-", f"{t.seconds:.1f}",
                         *(space_.spell(t.settings[name]) for name in self.space)])
        more = len(self.trials) - SHOWN
        return aligned(rows) + (f"\nand {more} more in {self.path / 'trials.csv'}" if more > 0 else "")

    def report(self, progress=print):
        """Table and picture of the trials there are."""
        self.write_table()
        progress(self.format_table())
        lacking = report_labels.missing_extra()
        if lacking is None:
            self.draw_picture()
        else:
            progress(f"no picture: {lacking}")
        progress(f"search: {self.path}")


def _line(trial):
    return json.dumps(trial._asdict(), allow_nan=False) + "\n"


def ranked(trials):
    """Trials from best to worst, failed ones last; of equal ones the first."""
    return sorted(trials, key=lambda t: (t.score is None, -(t.score or 0), STAGES.index(t.stage), t.number))


# -- a folder opened again ---------------------------------------------------------------------------------------------

KINDS = {"model": str, "preset": str, "data": str, "method": str, "space": dict, "set": dict, "settings": dict,
         "seed": int, "trials": int, "epochs": int, "keep": (int, float), "fine": int, "fine_epochs": int,
         **EXPERIMENTS["mlp"].config_kinds}


LEAST = {"seed": 0, "trials": 1, "epochs": 1, "keep": 1e-9, "fine": 0, "fine_epochs": 1}


def read_config(path):
    """What search.json in a folder says; raises NnliteError where there is none, or none of a search."""
    file = pathlib.Path(path) / "search.json"
    if not file.is_file():
        raise expected(path, "the folder of a search, with a search.json", "none")
    try:
        config = json.loads(file.read_text())
        absent = {*KINDS} - {*config}
        if not absent and config["model"] in SHAPES:
            absent = {*KNOWN[config["model"]], "model"} - {*config["settings"]}
    except (ValueError, TypeError) as error:
        raise expected(file, "the settings of a search", f"a file that cannot be read ({error})") from None
    if absent:
        raise expected(file, f"the settings of a search, '{min(absent)}' among them", "none")
    wrong = [key for key, kind in KINDS.items() if not is_a(config[key], kind)]
    wrong = wrong or [key for key, known in (("model", SHAPES), ("method", METHODS)) if config[key] not in known]
    wrong = wrong or [key for key, least in LEAST.items() if not least <= config[key]]
    wrong = wrong or [key for key in ("space",) if not config[key]] or [key for key in ("keep",) if config[key] > 1]
    if wrong:
        raise expected(file, f"a usable '{wrong[0]}'", repr(config[wrong[0]]))
    for key in KNOWN[config["model"]]:
        check(config["model"], key, config["settings"][key], f"{file}: {key}")
    return config
