"""Run folders: what is in them, how one is begun and opened again.

    config.json      model, preset, data and what belongs to it, iterations, seed, dtype, settings
    metrics.jsonl    one JSON object a line: iteration, loss, iterations_per_second, validation values
    last.h5          the newest checkpoint, with the optimiser's state
    best.h5          the parameters with the best validation value
    report/          what evaluate writes
"""

import json
import pathlib
import sys

from . import __version__, checkpoint
from .errors import NnliteError, expected
from .experiments import EXPERIMENTS
from .files import remove_leftovers, replacing
from .ops import get_ops
from .settings import KNOWN, check, complete


class Run:
    """A run folder with its data and model: path, config, data, experiment, model."""

    def __init__(self, path, config, data, ops):
        self.path, self.config, self.data = pathlib.Path(path), config, data
        self.experiment = EXPERIMENTS[config["model"]].from_config(config, data, ops)
        self.model = self.experiment.model

    @property
    def faces(self):
        return self.data.faces

    @property
    def triplets(self):
        return self.data.triplets

    def announce_other_machine(self):
        """Say so where the run goes on with other ops or threads than it began with: sums are then cut otherwise."""
        before, now = self.config.get("device"), self.experiment.ops.identity()
        if before not in (None, now):
            print(f"nnlite: the run began on {before} and goes on on {now}: it will agree to rounding, not to the bit",
                  file=sys.stderr)

    def begin(self):
        """Make the folder and write config.json; it must not hold a run yet."""
        check_free(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise expected(str(self.path), "a folder that can be made", error.strerror) from None
        with replacing(self.path / "config.json") as temporary:
            pathlib.Path(temporary).write_text(json.dumps(self.config, indent=1) + "\n")

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_last(self, progress):
        """progress: {name: number} that training needs to go on, `iteration` among them."""
        checkpoint.save(self.path / "last.h5", self.model, self.experiment.optimiser, **progress,
                        **self.experiment.carried)

    def load_last(self):
        """The progress saved with last.h5, or None where there is none yet; metrics.jsonl is cut back to it."""
        path = self.path / "last.h5"
        needed = ("iteration", "best", "best_iteration", *self.experiment.zero_sums)
        progress = checkpoint.load(path, self.model, self.experiment.optimiser, needed) if path.exists() else None
        if progress:
            carried = self.experiment.carried   # an older run's file has none
            carried.update({name: float(progress.pop(name, value)) for name, value in carried.items()})
        remove_leftovers(self.path)   # only now: a file that cannot be read leaves the folder as it was
        self._cut_metrics(int(progress["iteration"]) if progress else 0)
        return progress

    def save_best(self, **attributes):
        checkpoint.save(self.path / "best.h5", self.model, **attributes)

    def load_best(self):
        return checkpoint.load(self.path / "best.h5", self.model, None, ("iteration", self.experiment.criterion))

    # -- metrics -------------------------------------------------------------------------------------------------

    def add_metrics(self, values):
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise expected(path, "a place that can be written", error.strerror or str(error)) from error

    def _cut_metrics(self, iteration):
        """Drop the lines of iterations that will be done again, and one that a killed process left half written."""
        path, kept = self.path / "metrics.jsonl", []
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                if json.loads(line)["iteration"] <= iteration:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        with replacing(path) as temporary:
            pathlib.Path(temporary).write_text("".join(kept))


def new_config(*, model, preset, task, settings, seed, dtype, device):
    """task: data, and what else the experiment wants to find again."""
    return {"nnlite": __version__, "device": device, "model": model, "preset": preset, **task,
            "iterations": settings["iterations"], "seed": seed, "dtype": dtype, "settings": settings}


def read_config(path):
    """The config of a run folder; raises NnliteError where there is none, or none of a run."""
    path = pathlib.Path(path) / "config.json"
    if not path.is_file():
        raise expected(str(path.parent), "a run folder with a config.json", "none")
    try:
        config = json.loads(path.read_text())
        model = config["model"]
        if model not in EXPERIMENTS:
            raise expected(str(path), "a model of " + ", ".join(EXPERIMENTS), f"'{model}'")
        config = {**EXPERIMENTS[model].config_later, **config}
        kinds = {"data": str, "preset": str, "seed": int, "dtype": str, "settings": dict,
                 **EXPERIMENTS[model].config_kinds}
        absent = {*kinds} - {*config}
        if not absent and isinstance(config["settings"], dict):
            found = config["settings"]   # an older run did its batches whole, whatever memory there was
            config["settings"] = complete(model, found, micro_batch=found.get("batch_size"))
            absent = {*KNOWN[model], "model"} - {*config["settings"]}
    except KeyError:
        raise expected(str(path), "the settings of a run, 'model' among them", "none") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, NnliteError):
            raise
        raise expected(str(path), "the settings of a run", f"a file that cannot be read ({error})") from None
    wrong = [key for key, kind in kinds.items() if not absent and not is_a(config[key], kind)]
    if wrong:
        raise expected(path, f"a usable '{wrong[0]}'", repr(config[wrong[0]]))
    if absent:
        raise expected(str(path), f"the settings of a run, '{min(absent)}' among them", "none")
    for key in KNOWN[model]:
        check(model, key, config["settings"][key], f"{path}: {key}")
    return config


def is_a(value, kind):
    """Whether a value read from JSON is of this kind: a type, types, or [type] for a list of such."""
    if type(kind) is list:
        return type(value) is list and all(type(part) is kind[0] for part in value)
    return isinstance(value, kind)


def open_run(path, device="auto", load=None):
    """The Run in a folder, with data and model as config.json says, parameters not yet loaded.

    load: config -> the data, where it shall not be all of the run's own.
    """
    config = read_config(path)
    ops = get_ops(device)
    return Run(path, config, (load or EXPERIMENTS[config["model"]].load)(config), ops)


def check_free(path):
    """Raise if a run folder already holds a run."""
    held = [name for name in ("config.json", "last.h5", "best.h5") if (pathlib.Path(path) / name).exists()]
    if held:
        raise NnliteError(f"{path}: expected a folder without a run (--resume {path} goes on with this one), got one "
                          f"that holds {held[0]}")
    if pathlib.Path(path).exists() and not pathlib.Path(path).is_dir():
        raise expected(str(path), "a folder for the run", "a file")


def free_folder(name, root="runs"):
    """runs/NAME-1, or the next number that is not taken."""
    number = 1
    while (pathlib.Path(root) / f"{name}-{number}").exists():
        number += 1
    return pathlib.Path(root) / f"{name}-{number}"
