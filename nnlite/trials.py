"""The trials of a search: how one is trained, which there are, and the folder that keeps them.

    search.json      model, preset, data, method, space, numbers of trials, settings that are not searched
    trials.jsonl     one JSON object a line for every trial that came to its end; of a TPE search instead:
    study.journal    the study, shared by several processes (or elsewhere, see nnlite.study)
    trials.csv       the trials as a table, the best first
    *.png            pictures: accuracy over each setting, learning curves, parallel coordinates, importances
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

from . import plots, plots_search, report_labels, space as space_, study as study_
from .errors import expected
from .experiments import EXPERIMENTS
from .experiments.label_images import seen_shape
from .experiments.label_options import steps_per_epoch
from .experiments.options import check_batch_size
from .files import remove_leftovers, replacing
from .models import MODELS
from .report import aligned, three_digits, write
from .runs import is_a
from .settings import KNOWN, SHAPES, check, complete

LOOK_EVERY = 50   # iterations between looks at the loss where that means waiting for a GPU
SHOWN = 20        # rows of the table that is printed
MEASURES = "accuracy", "f1", "loss"   # of a validation
LEAST_KEPT = 2    # trials that a range is narrowed around
STAGES = "coarse", "fine"
METHODS = "random", "grid", "tpe"
TITLES = {"random": "random search", "grid": "grid search", "tpe": "TPE search", "ablation": "ablation"}


class Trial(NamedTuple):
    """A trial that came to its end.

    stage: one of STAGES; number: from 1 in its stage; settings: those drawn; score: the best validation value of what
    the experiment watches, the larger the better, None where loss or validation became NaN or infinite; best_epoch: the
    first epoch with it, from 1; measures: {name: number} of that epoch, the validation values (and, of an ablation, the
    test values), {} for a failed trial; accuracy, loss: lists, of each epoch the validation accuracy and the mean
    training loss; seconds: how long it took.
    """

    stage: str
    number: int
    settings: dict
    score: float
    best_epoch: int
    measures: dict
    accuracy: list
    loss: list
    seconds: float

    def is_whole(self):
        """Whether every field is of its kind, as in a line that was not damaged."""
        kinds = str, int, dict, (float, type(None)), (int, type(None)), dict, list, list, float
        return all(map(isinstance, self, kinds)) and self.stage in STAGES


class Training(NamedTuple):
    """What `train` gives: finite: whether loss and validation stayed so; score, best_epoch, measures, accuracy, loss as
    of a Trial."""

    finite: bool
    score: float
    best_epoch: int
    measures: dict
    accuracy: list
    loss: list


def train(experiment, stop, show, keep=lambda: None):
    """The Training, from the first step to the end or to a value that is NaN or infinite; None where stop() was true.

    show(iterations done) is called behind each step, keep() at each epoch that is the best so far.
    """
    every, look = experiment.settings["validate_every"], LOOK_EVERY if experiment.ops.name == "cuda" else 1
    accuracy, losses, some = [], [], []       # some: losses of the present epoch
    done, best = 0, 0                         # best: the iteration of the best validation
    score, measures, finite = None, {}, True  # of the best validation
    experiment.restart()
    while finite and not experiment.over(done, best):
        terms = experiment.step(done)
        done += 1
        if done % look == 0 or done % every == 0:
            some.append(experiment.sums(terms)["loss_sum"])
            finite = math.isfinite(some[-1])
        if finite and done % every == 0:
            values = experiment.validate()
            finite = all(map(math.isfinite, values.values()))
        if finite and done % every == 0:
            accuracy.append(values["validation_accuracy"])
            losses.append(math.fsum(some) / len(some))
            some = []
            if score is None or values[experiment.criterion] > score:
                score, best, measures = values[experiment.criterion], done, values
                keep()
            experiment.validated(values)
        if finite:
            show(done)
            if stop():
                return None
    if not finite:
        return Training(False, None, None, {}, accuracy, losses)
    return Training(True, score, best // every, measures, accuracy, losses)


class Search:
    """A search folder with its data: path, config, data (loaded once for all trials), space, trials.

    config: what search.json says; ops: where the trials are trained. An ablation is a grid search whose axes may be
    epochs, and that measures the test part as well, with the parameters of the best epoch.
    """

    def __init__(self, path, config, data, ops):
        self.path, self.config, self.data, self.ops = pathlib.Path(path), config, data, ops
        self.ablation = config["method"] == "ablation"
        self.grid = config["method"] in ("grid", "ablation")
        self.space = space_.parse(config["model"], [f"{name}={text}" for name, text in config["space"].items()],
                                  grid=self.grid, free=("epochs",) if self.ablation else ())
        self.study = None
        if config["method"] == "tpe":
            about = {key: config[key] for key in ("model", "data", "images", "epochs", "seed", "space", "settings")}
            self.study = study_.Study(config["storage"] or self.path / "study.journal", about, self.space,
                                      config["seed"])
        self.trials = []

    # -- which trials there are ----------------------------------------------------------------------------------

    def numbers(self, stage):
        """The numbers of a stage's trials."""
        config = self.config
        if stage == "fine":
            return list(range(1, config["fine"] + 1))
        if self.grid:
            return space_.grid_numbers(self.space, config["trials"], config["seed"])
        return list(range(1, config["trials"] + 1))

    def open_numbers(self, stage):
        """Those of them that have not come to their end."""
        done = {trial.number for trial in self.trials if trial.stage == stage}
        return [number for number in self.numbers(stage) if number not in done]

    def next(self, stage):
        """(number, settings) of a trial to train, or None where there is none: all have come to their end, or, in a
        TPE search, other processes are training the last ones."""
        if self.study and stage == "coarse":
            return self.study.claim(self.config["trials"])
        number = next(iter(self.open_numbers(stage)), None)
        return None if number is None else (number, self.draw(stage, number))

    def draw(self, stage, number):
        """The settings of a trial of a search that does not learn from those before."""
        if self.grid:
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
        epochs = drawn.get("epochs", self.config["epochs" if stage == "coarse" else "fine_epochs"])
        every = steps_per_epoch(settings, len(self.data.split["train"]))
        return {**settings, "epochs": epochs, "iterations": epochs * every, "validate_every": every,
                "checkpoint_every": every}

    def check(self):
        """Raise NnliteError for a coarse trial whose model or batches do not fit the data; of a TPE search, whose
        draws are not known, for the ends of each range."""
        checked = set()
        model, classes = self.config["model"], len(self.data.classes)
        drawn = self._ends() if self.study else [self.draw("coarse", number) for number in self.numbers("coarse")]
        for some in drawn:
            settings = self.settings("coarse", some)
            check_batch_size(settings, len(self.data.split["train"]), "images")
            shape = seen_shape(settings, self.data.images.shape[1:])
            sizes = {key: settings[key] for key in SHAPES[model]}
            if str((shape, sizes)) not in checked:
                checked.add(str((shape, sizes)))
                MODELS[model](shape=shape, classes=classes, **sizes)

    def _ends(self):
        """Settings at the first values of all parts of the space, and with each part in turn at its others."""
        ends = {name: list(part.values) if isinstance(part, space_.Choice) else [part.low, part.high]
                for name, part in self.space.items()}
        first = {name: values[0] for name, values in ends.items()}
        return [{**first, name: value} for name, values in ends.items() for value in values]

    def run(self, stage, number, drawn, stop, show):
        """Train the trial with the drawn settings and keep it; returns the Trial, or None where stop() was true first.

        show(iterations done, iterations in all) is called behind each step.
        """
        begin, settings = time.perf_counter(), self.settings(stage, drawn)
        config = {**self.config, "settings": settings, "dtype": "float32"}
        experiment = EXPERIMENTS[config["model"]].from_config(config, self.data, self.ops)
        best = BestParameters(experiment.model) if self.ablation else None
        with np.errstate(over="ignore", invalid="ignore"):   # a learning rate far too high is said by the score
            found = train(experiment, stop, lambda done: show(done, settings["iterations"]),
                          best.keep if best else lambda: None)
        if found is not None and found.finite and best:
            best.put_back()
            found = found._replace(measures={**found.measures, **experiment.validate("test")})
        del experiment, best
        gc.collect()   # it is a ring, held by its own captured step; the collector would let several gather
        if found is None:
            return None
        trial = Trial(stage, number, drawn, *found[1:], round(time.perf_counter() - begin, 2))
        self.add(trial)
        return trial

    # -- the folder ----------------------------------------------------------------------------------------------

    def begin(self):
        """Make the folder, the study where there is none yet, and write search.json."""
        if self.study and self.study.path.exists():
            self.study.open()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise expected(str(self.path), "a folder that can be made", error.strerror) from None
        if self.study and not self.study.path.exists():
            self.study.create()
            self.study.open()
        self.save_config()
        if self.study:
            self.read_trials()

    def save_config(self):
        write(self.path / "search.json", (json.dumps(self.config, indent=1) + "\n").encode())

    def add(self, trial):
        """Keep a trial: one line, on the disk when this returns; of a TPE search in the study."""
        if self.study:
            self.study.tell(trial._asdict())
            self.trials = self._of_study()
            return
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
        if self.study:
            if self.study.study is None:
                self.study.open()
            self.trials = self._of_study()
            return
        path, found = self.path / "trials.jsonl", {}
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                trial = Trial(**_complete(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if trial.is_whole() and [*trial.settings] == [*self.space]:
                found.setdefault((trial.stage, trial.number), trial)
        self.trials = list(found.values())

    def _of_study(self):
        return [Trial(**record) for record in self.study.records()]

    def tidy(self):
        """Write the folder as it is after read_trials(): without what a killed process left half written. Of a TPE
        search such files stay: another process may be writing them."""
        self.save_config()
        if not self.study:
            remove_leftovers(self.path)
            write(self.path / "trials.jsonl", "".join(map(_line, self.trials)).encode())

    # -- what came out -------------------------------------------------------------------------------------------

    def best(self):
        """The trial with the highest score, or None."""
        first = ranked(self.trials)[:1]
        return first[0] if first and first[0].score is not None else None

    def write_table(self):
        """trials.csv: a line for each trial, the best first; a failed one has no validation values."""
        with replacing(self.path / "trials.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["stage", "trial", "accuracy", "f1", "validation_loss", "epoch", "epochs", "loss",
                             "seconds", *self.space])
            for t in ranked(self.trials):
                writer.writerow([t.stage, t.number, *(t.measures.get(f"validation_{name}") for name in MEASURES),
                                 t.best_epoch, len(t.accuracy), *(t.loss[-1:] or [None]), t.seconds,
                                 *(space_.spell(t.settings[name]) for name in self.space)])

    def draw_pictures(self):
        """search.png, curves.png and parallel.png, and importances.png where there is Optuna; need matplotlib."""
        trials, title = ranked(self.trials), self.title()
        fine = self.fine_space() if self.config["fine"] and not self.open_numbers("coarse") and self.kept() else None
        pictures = {"search": plots_search.search(trials, self.space, fine, grid=self.grid, title=title),
                    "curves": plots_search.curves(trials, fine, grid=self.grid, title=title),
                    "parallel": plots_search.parallel(trials, self.space, title=title)}
        shares = self.importances() if study_.missing_extra() is None else {}
        if shares:
            pictures["importances"] = plots_search.importances(
                shares, what=f"best validation {self.watched()}", preset=self.config["preset"])
        for name, figure in pictures.items():
            write(self.path / f"{name}.png", plots.png(figure))

    def importances(self):
        """See nnlite.study; of the coarse trials, which were drawn from all of the space and trained alike."""
        some = [t for t in self.trials if t.stage == "coarse" and t.score is not None]
        return study_.importances([t.settings for t in some], [t.score for t in some], self.space)

    def watched(self):
        """What the trials are judged by, for people."""
        watch = self.config["settings"]["watch"]
        return "macro F1" if watch == "f1" else watch

    def name(self, trial):
        """A trial for people; the stage is worth a word where there are two."""
        return f"{trial.stage} trial {trial.number}" if self.config["fine"] else f"trial {trial.number}"

    def title(self):
        best = self.best()
        by = "" if self.watched() == "accuracy" else f" by validation {self.watched()}"
        found = f"{self.name(best)} is best{by}, validation {validation(best)}" if best else "all failed"
        return f"{self.config['preset']}: {len(self.trials)} trials, {TITLES[self.config['method']]}; {found}"

    def format_table(self):
        """The best SHOWN trials as aligned text."""
        stage = ["stage"] if self.config["fine"] else []
        rows = [[*stage, "trial", "accuracy", "F1", "epoch", "loss", "seconds", *self.space]]
        for t in ranked(self.trials)[:SHOWN]:
            found = [three_digits(t.measures.get(f"validation_{name}")) for name in ("accuracy", "f1")]
            found = ["failed", "-"] if t.score is None else found
            rows.append([*([t.stage] if stage else []), str(t.number), *found,
                         str(t.best_epoch or "-"), f"{t.loss[-1]:.4g}" if t.loss else "-", f"{t.seconds:.1f}",
                         *(space_.spell(t.settings[name]) for name in self.space)])
        more = len(self.trials) - SHOWN
        return aligned(rows) + (f"\nand {more} more in {self.path / 'trials.csv'}" if more > 0 else "")

    def report(self, progress=print):
        """Table and pictures of the trials there are."""
        self.write_table()
        progress(self.format_table())
        lacking = report_labels.missing_extra()
        if lacking is None:
            self.draw_pictures()
        else:
            progress(f"no pictures: {lacking}")
        progress(f"search: {self.path}")


def validation(trial):
    """'accuracy 61.2 %': of the best epoch."""
    return f"accuracy {100 * trial.measures['validation_accuracy']:.1f} %"


class BestParameters:
    """A copy of a model's parameters and running statistics in the host's memory, to go back to."""

    def __init__(self, model):
        self.ops = model.ops
        self.arrays, self.kept = [model.parameters.values, *model.state.values()], []

    def keep(self):
        self.kept = [self.ops.to_host(array).copy() for array in self.arrays]

    def put_back(self):
        for array, kept in zip(self.arrays, self.kept):
            self.ops.copy_into(array, kept)


def _line(trial):
    return json.dumps(trial._asdict(), allow_nan=False) + "\n"


def _complete(fields):
    """The fields of a trial, also of one whose search knew but its accuracy."""
    if "measures" in fields or fields["score"] is None:
        return {"measures": {}, "best_epoch": None, **fields}
    return {**fields, "measures": {"validation_accuracy": fields["score"]},
            "best_epoch": fields["accuracy"].index(fields["score"]) + 1}


def ranked(trials):
    """Trials from best to worst, failed ones last; of equal ones the first."""
    return sorted(trials, key=lambda t: (t.score is None, -(t.score or 0), STAGES.index(t.stage), t.number))


# -- a folder opened again ---------------------------------------------------------------------------------------------

KINDS = {"model": str, "preset": str, "data": str, "method": str, "storage": (str, type(None)), "space": dict,
         "set": dict, "settings": dict, "seed": int, "trials": int, "epochs": int, "keep": (int, float), "fine": int,
         "fine_epochs": int, **EXPERIMENTS["mlp"].config_kinds}
FITS = {"model": SHAPES.__contains__, "space": bool, "seed": lambda v: v >= 0, "trials": lambda v: v >= 1,
        "epochs": lambda v: v >= 1, "keep": lambda v: 0 < v <= 1, "fine": lambda v: v >= 0,
        "fine_epochs": lambda v: v >= 1}


def read_config(path, methods=METHODS):
    """What search.json in a folder says; raises NnliteError where there is none, or none of a search by one of these
    methods."""
    file = pathlib.Path(path) / "search.json"
    if not file.is_file():
        raise expected(path, "the folder of a search, with a search.json", "none")
    try:
        config = {"storage": None, **EXPERIMENTS["mlp"].config_later, **json.loads(file.read_text())}
        if config.get("model") in SHAPES and isinstance(config.get("settings"), dict):
            config["settings"] = complete(config["model"], config["settings"])
        absent = {*KINDS} - {*config}
        if not absent and config["model"] in SHAPES:
            absent = {*KNOWN[config["model"]], "model"} - {*config["settings"]}
    except (ValueError, TypeError) as error:
        raise expected(file, "the settings of a search", f"a file that cannot be read ({error})") from None
    if absent:
        raise expected(file, f"the settings of a search, '{min(absent)}' among them", "none")
    for key, kind in KINDS.items():
        if not is_a(config[key], kind) or not FITS.get(key, lambda v: True)(config[key]):
            raise expected(file, f"a usable '{key}'", repr(config[key]))
    if config["method"] not in methods:
        raise expected(file, f"a 'method' among {', '.join(methods)}", repr(config["method"]))
    for key in KNOWN[config["model"]]:
        check(config["model"], key, config["settings"][key], f"{file}: {key}")
    return config
