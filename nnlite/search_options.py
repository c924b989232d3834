"""What the commands search and ablate have in common: their options, what these become, the loop over the trials."""

import pathlib
import shlex
import sys
import types

from tqdm import tqdm

from . import presets, runs, settings as settings_, space as space_
from .errors import NnliteError, expected
from .experiments import EXPERIMENTS
from .experiments.label_options import BUILT_IN, size_of
from .experiments.options import check_count, check_seed, whole_path
from .ops import NAMES


def add_options(p, what):
    """The options of both commands; what: how the command calls itself."""
    p.add_argument("--model", choices=sorted(settings_.SHAPES), help="what to train (needed unless --preset names it)")
    p.add_argument("--preset", help="where the settings that do not vary come from (default: the model's best)")
    p.add_argument("--data", help="as for nnlite.train (default: the built-in faces)")
    p.add_argument("--resize", metavar="HxW", help="resize the images of class folders, e.g. 48x48")
    p.add_argument("--skip-broken", action="store_true", default=None,
                   help="leave files of image folders that are no images out, and name them")
    p.add_argument("--weights", metavar="FILE", help="begin each training with the parameters in this file")
    p.add_argument("--set", nargs="+", action="extend", metavar="KEY=VALUE", dest="assignments",
                   help="settings of all trials")
    p.add_argument("--seed", type=int, help="of the draws, and of each training (default: 0)")
    p.add_argument("--device", default="auto", choices=NAMES, help="default: a GPU if there is one")
    p.add_argument("--out", metavar="FOLDER", help=f"the {what}'s folder (default: runs/{what}-PRESET-1, -2, ...)")


def check_options(options):
    """Raise for what is wrong with the options of add_options, --resume and --epochs by themselves."""
    check_count(options.epochs, "--epochs")
    check_seed(options.seed or 0)
    if options.out == "" or (options.resume and options.out is None):
        raise expected("--out", "the name of a folder", "nothing")


def model_of(options):
    """The model that --model or --preset names."""
    preset = presets.PRESETS.get(options.preset, {})
    if options.model is None and options.preset is None:
        raise expected("--model", "one of " + ", ".join(sorted(settings_.SHAPES)), "none")
    model = options.model or preset.get("model")
    if options.preset is not None:
        settings_.choose_preset(options.preset, model)   # raises for an unknown name, or one of another model
    if model not in settings_.SHAPES:
        raise expected("--preset", "one of a classifier", f"'{options.preset}' of {model}")
    if preset.get("distilled"):
        raise expected("--preset", "one without a teacher", f"'{options.preset}'")
    return model


def assignments(model, texts, space, option):
    """The settings that --set gives all trials; option: the one that says the space."""
    assigned = {}
    for key in settings_.apply(model, assigned, texts):
        if key in space_.LENGTH:
            raise expected("--set", "a setting other than the length of a trial, which --epochs says", f"'{key}'")
        if key in space:
            raise expected(f"--set {key}", "a setting that is not searched", f"one of {option} {key}")
    return assigned


def resolve(options, model, *, epochs, seed):
    """What nnlite.train would make of the same options: (preset, task, settings, ImageSet)."""
    experiment = EXPERIMENTS[model]
    line = {**dict.fromkeys(experiment.options), "iterations": None, "quick": False, **vars(options),
            "assignments": options.assignments or [], "epochs": epochs, "seed": seed}
    return experiment.resolve(types.SimpleNamespace(**line), model)


def new_folder(options, name):
    """The folder of a new search, which must not hold one yet."""
    path = pathlib.Path(options.out) if options.out is not None else runs.free_folder(name)
    if (path / "search.json").exists():
        raise NnliteError(f"{path}: expected a folder without a search (--resume goes on with this one), got one that "
                          "holds search.json")
    runs.check_free(path)
    return path


def agree(options, config, given, texts, option):
    """Raise for an option that says something else than the search was begun with.

    given: {name: value} of its own options, beside those of add_options; texts: of the space; option: what said them.
    """
    model = config["model"]
    given = {"model": options.model, "preset": options.preset, "epochs": options.epochs, "seed": options.seed,
             "data": whole_path(options.data, BUILT_IN), "weights": whole_path(options.weights),
             "skip_broken": options.skip_broken, **given}
    for name, value in given.items():
        if value not in (None, config[name]):
            raise _other(options, f"--{name.replace('_', '-')}", config[name], value)
    shape = tuple(config["shape"][:2]) if config["resized"] else None
    if options.resize is not None and size_of(options.resize) != shape:
        raise _other(options, "--resize", "x".join(map(str, shape)) if shape else "none", options.resize)
    if texts is not None:
        space = space_.parse(model, texts, grid=config["method"] in ("grid", "ablation"), option=option,
                             free=("epochs",) if config["method"] == "ablation" else ())
        space = {name: str(part) for name, part in space.items()}
        if space != config["space"]:
            raise _other(options, option, _pairs(config["space"]), _pairs(space))
    if options.assignments is not None:
        assigned = assignments(model, options.assignments, config["space"], option)
        if assigned != config["set"]:
            raise _other(options, "--set", _pairs(config["set"]) or "none", _pairs(assigned))


def _other(options, name, own, given):
    return expected(name, f"what the search in {options.out} was begun with, {own}", given)


def _pairs(assigned):
    return " ".join(f"{key}={space_.spell(value)}" for key, value in assigned.items())


def train_command(found):
    """The command line that trains the preset with the settings of the best trial, for as long as nnlite.train does
    where nothing else is said."""
    config, words = found.config, []
    if config["data"] not in BUILT_IN:
        words += ["--data", config["data"]]
    if config["resized"]:
        words += ["--resize", "x".join(map(str, config["shape"][:2]))]
    words += ["--skip-broken"] * config["skip_broken"]
    if config["weights"]:
        words += ["--weights", config["weights"]]
    for key, value in {**config["set"], **found.best().settings}.items():
        words += ["--set", f"{key}={space_.spell(value)}"]
    if config["seed"]:
        words += ["--seed", str(config["seed"])]
    return shlex.join(["python", "-m", "nnlite.train", "--preset", config["preset"], *words])


def train_all(found, stage, interrupts, describe):
    """Train the trials of a stage that are left, each with a progress bar and a line that says what came out.

    describe(trial): the middle of that line.
    """
    while not interrupts.asked and (chosen := found.next(stage)):
        number, drawn = chosen
        with tqdm(desc=f"{stage} trial {number}", unit="it", leave=False, disable=None, dynamic_ncols=True) as bar:
            def show(done, iterations):
                bar.total = iterations
                bar.update(done - bar.n)
            trial = found.run(stage, number, drawn, lambda: interrupts.asked, show)
        if trial is None:
            return
        count = sum(t.stage == stage for t in found.trials)
        result = "failed: the loss became NaN or infinite" if trial.score is None else describe(trial)
        settings = ", ".join(f"{name} {space_.spell(value)}" for name, value in trial.settings.items())
        best = ", the best so far" if trial == found.best() else ""
        print(f"[{count}/{len(found.numbers(stage))}] {found.name(trial)}: {result} ({settings}; "
              f"{trial.seconds:.1f} s){best}", flush=True)


def all_failed(found):
    """Whether no trial has a score, which is then said."""
    if found.best() is None:
        print("nnlite: expected a trial with a finite loss, got none: every one failed", file=sys.stderr)
    return found.best() is None
