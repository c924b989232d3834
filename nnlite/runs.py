"""Run folders: what is in them, how one is begun and opened again.

    config.json      model, preset, data, triplets, iterations, seed, dtype, settings
    metrics.jsonl    one JSON object a line: iteration, loss, iterations_per_second, validation values
    last.h5          the newest checkpoint, with the optimiser's state
    best.h5          the parameters with the best validation value
    report/          what evaluate writes
"""

import json
import pathlib
import sys

from . import __version__, checkpoint
from .data import collection, landmarks, synthetic, triplets
from .errors import NnliteError, expected
from .experiments import EXPERIMENTS
from .files import remove_leftovers, replacing
from .ops import get_ops
from .settings import KNOWN, check

BUILT_IN = {"built-in posed": synthetic.posed, "built-in spontaneous": synthetic.spontaneous}


def load_faces(data):
    """The prepared Faces of a file or folder, or of a name in BUILT_IN."""
    return landmarks.prepare(BUILT_IN[data]() if data in BUILT_IN else landmarks.read(pathlib.Path(data)), data)


def load_triplets(source, faces):
    """split -> Triplets: from a file; without one artificial triplets for posed faces, for spontaneous ones the
    collection with simulated workers."""
    if source:
        return triplets.read(pathlib.Path(source), faces)
    if faces.landmarks.kind == "posed":
        return triplets.artificial_splits(faces)
    return collection.collected_splits(faces)


PROGRESS = "iteration", "best", "best_iteration", "loss_sum", "steps"   # what training needs to go on


class Run:
    """A run folder with its data and model: path, config, faces, triplets, experiment, model."""

    def __init__(self, path, config, faces, triplets, ops):
        self.path, self.config, self.faces, self.triplets = pathlib.Path(path), config, faces, triplets
        self.experiment = EXPERIMENTS[config["model"]](
            config["settings"], faces, triplets, ops, dtype=config["dtype"], seed=config["seed"])
        self.model = self.experiment.model

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
        checkpoint.save(self.path / "last.h5", self.model, self.experiment.optimiser, **progress)

    def load_last(self):
        """The progress saved with last.h5, or None where there is none yet; metrics.jsonl is cut back to it."""
        path = self.path / "last.h5"
        progress = checkpoint.load(path, self.model, self.experiment.optimiser, PROGRESS) if path.exists() else None
        remove_leftovers(self.path)   # only now: a file that cannot be read leaves the folder as it was
        self._cut_metrics(int(progress["iteration"]) if progress else 0)
        return progress

    def save_best(self, **attributes):
        checkpoint.save(self.path / "best.h5", self.model, **attributes)

    def load_best(self):
        return checkpoint.load(self.path / "best.h5", self.model, None, ("iteration", "validation_elbo"))

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


def new_config(*, model, preset, data, triplets, faces, settings, seed, dtype, device):
    return {"nnlite": __version__, "device": device, "model": model, "preset": preset, "data": data, "faces": faces,
            "triplets": triplets, "iterations": settings["iterations"], "seed": seed, "dtype": dtype,
            "settings": settings}


def read_config(path):
    """The config of a run folder; raises NnliteError where there is none, or none of a run."""
    path = pathlib.Path(path) / "config.json"
    if not path.is_file():
        raise expected(str(path.parent), "a run folder with a config.json", "none")
    try:
        config = json.loads(path.read_text())
        absent = {"model", "data", "triplets", "seed", "dtype", "settings"} - {*config}
        absent = absent or {*KNOWN, "model"} - {*config["settings"]}
    except (ValueError, TypeError) as error:
        raise expected(str(path), "the settings of a run", f"a file that cannot be read ({error})") from None
    kinds = {"model": str, "preset": str, "data": str, "seed": int, "dtype": str, "triplets": (str, type(None))}
    wrong = [key for key, kind in kinds.items() if not absent and not isinstance(config.get(key), kind)]
    if wrong:
        raise expected(path, f"a usable '{wrong[0]}'", repr(config.get(wrong[0])))
    if absent:
        raise expected(str(path), f"the settings of a run, '{min(absent)}' among them", "none")
    if config["model"] not in EXPERIMENTS:
        raise expected(str(path), "a model of " + ", ".join(EXPERIMENTS), f"'{config['model']}'")
    for key in KNOWN:
        check(key, config["settings"][key], f"{path}: {key}")
    return config


def open_run(path, device="auto"):
    """The Run in a folder, with data and model as config.json says, parameters not yet loaded."""
    config = read_config(path)
    data, features = config["data"], config["settings"]["decoder"][-1]
    ops = get_ops(device)
    faces = load_faces(data)
    if len(faces.x) != config.get("faces", len(faces.x)):
        raise expected(data, f"the {config['faces']} faces that the run was begun with", f"{len(faces.x)}")
    if faces.x.shape[1] != features:
        raise expected(data, f"faces of {features} numbers, as the run was begun with", f"{faces.x.shape[1]}")
    return Run(path, config, faces, load_triplets(config["triplets"], faces), ops)


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
