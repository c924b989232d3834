"""Search for settings: `python -m nnlite.search --model cnn4 --trials 30`.

Every trial is a short training with settings of its own, judged by its best validation accuracy. A second, fine stage
draws from ranges narrowed around the best trials of the first (see nnlite.space).
"""

import argparse
import pathlib
import shlex
import sys

from tqdm import tqdm

from . import __version__, command, presets, runs, settings as settings_, space as space_, trials
from .errors import NnliteError, expected
from .experiments import EXPERIMENTS
from .experiments.label_options import BUILT_IN
from .experiments.options import check_count, whole_path
from .ops import NAMES, get_ops

# What --space is where it is not given. The source of cnn4 drew learning rate, L2 and decay in log space without saying
# the ranges; these are wide ones around what it found.
SPACE = "learning_rate=log:1e-5:1e-1", "l2=log:1e-5:1e-2", "lr_decay=log:0.85:1"
GRID = "learning_rate=log:1e-4:1e-2:3", "l2=log:1e-4:1e-2:3"
DEFAULTS = {"method": "random", "epochs": 2, "keep": 0.25, "fine": 0, "fine_epochs": 8, "seed": 0}
TRIALS = 30   # of a random search; a grid is done in full


def parser():
    p = argparse.ArgumentParser(prog="python -m nnlite.search", description="Search for a classifier's settings.")
    p.add_argument("--model", choices=sorted(settings_.SHAPES), help="what to train (needed unless --preset names it)")
    p.add_argument("--preset", help="where the settings that are not searched come from (default: the model's best)")
    p.add_argument("--data", help="as for nnlite.train (default: the built-in faces)")
    p.add_argument("--set", action="append", metavar="KEY=VALUE", dest="assignments", help="a setting of all trials")
    p.add_argument("--method", choices=trials.METHODS, help="draw settings, or take all points of a grid (default: "
                                                            f"{DEFAULTS['method']})")
    p.add_argument("--space", action="append", metavar="KEY=VALUES",
                   help=f"a setting to search: {space_.FORMS}; for a grid {space_.GRID_FORMS} (default: "
                        f"{' '.join(SPACE)}, for a grid {' '.join(GRID)})")
    p.add_argument("--trials", type=int, help=f"how many (default: {TRIALS}; of a grid all points)")
    p.add_argument("--epochs", type=int, help=f"of a trial (default: {DEFAULTS['epochs']})")
    p.add_argument("--fine", type=int, metavar="N", help="then N trials from ranges around the best (default: none)")
    p.add_argument("--fine-epochs", type=int, help=f"of a fine trial (default: {DEFAULTS['fine_epochs']})")
    p.add_argument("--keep", type=float, metavar="SHARE", help="of the coarse trials, the best of which the fine "
                                                               f"ranges hold (default: {DEFAULTS['keep']})")
    p.add_argument("--seed", type=int, help="of the draws, and of each training (default: 0)")
    p.add_argument("--device", default="auto", choices=NAMES, help="default: a GPU if there is one")
    p.add_argument("--out", metavar="FOLDER", help="the search's folder (default: runs/search-PRESET-1, -2, ...)")
    p.add_argument("--resume", action="store_true", help="go on with the search in --out, also with more trials; what "
                                                         "else is given has to be as it was begun")
    return p


def main(arguments=None):
    options = parser().parse_args(arguments)
    return command.run(lambda: search(options))


def search(options):
    check_options(options)
    found = reopened(options) if options.resume else begun(options)
    print(describe(found))
    with command.Interrupts() as interrupts:
        for stage in trials.STAGES:
            if stage == "fine" and found.config["fine"] and not interrupts.asked:
                if not found.kept():
                    found.report()
                    print(f"nnlite: no fine stage: expected at least {trials.LEAST_KEPT} coarse trials with a finite "
                          "loss among the best, got fewer", file=sys.stderr)
                    return 1
                print(describe_fine(found))
            for number in found.open_numbers(stage):
                if interrupts.asked:
                    break
                one_trial(found, stage, number, lambda: interrupts.asked)
    stopped = any(map(found.open_numbers, trials.STAGES))
    if found.trials:
        found.report()
    if stopped:
        print(f"stopped; go on with: {resume_command(found)}")
        return 130
    if found.best() is None:
        print("nnlite: expected a trial with a finite loss, got none: every one failed", file=sys.stderr)
        return 1
    print(f"train the best: {train_command(found)}")
    return 0


def one_trial(found, stage, number, stop):
    """Train a trial with a progress bar, and print a line about it."""
    with tqdm(desc=f"{stage} trial {number}", unit="it", leave=False, disable=None, dynamic_ncols=True) as bar:
        def show(done, iterations):
            bar.total = iterations
            bar.update(done - bar.n)
        trial = found.run(stage, number, stop, show)
    if trial is None:
        return
    count = sum(t.stage == stage for t in found.trials)
    result = "failed: the loss became NaN or infinite" if trial.score is None else f"accuracy {trial.score:.3f}"
    drawn = ", ".join(f"{name} {space_.spell(value)}" for name, value in trial.settings.items())
    best = ", the best so far" if trial is found.best() else ""
    print(f"[{count}/{len(found.numbers(stage))}] {found.name(trial)}: {result} ({drawn}; {trial.seconds:.1f} s){best}",
          flush=True)


# -- options -----------------------------------------------------------------------------------------------------------


def check_options(options):
    for name in ("trials", "epochs", "fine_epochs"):
        check_count(getattr(options, name), f"--{name.replace('_', '-')}")
    if options.fine is not None and options.fine < 0:
        raise expected("--fine", "a number of trials, 0 for no fine stage", options.fine)
    if options.keep is not None and not 0 < options.keep <= 1:
        raise expected("--keep", "a share above 0 and at most 1", options.keep)
    if options.seed is not None and not 0 <= options.seed < 2 ** 64:
        raise expected("--seed", "a whole number from 0 to 2^64 - 1", options.seed)
    if options.out == "" or (options.resume and options.out is None):
        raise expected("--out", "the name of a folder", "nothing")


def begun(options):
    """A new Search, its folder made; raises NnliteError, with nothing written, for what does not fit together."""
    model, preset = model_of(options), options.preset
    given = {name: getattr(options, name) for name in DEFAULTS if getattr(options, name) is not None}
    chosen = {**DEFAULTS, **given}
    grid = chosen["method"] == "grid"
    space = space_.parse(model, options.space or (GRID if grid else SPACE), grid=grid)
    check_fine(chosen, given)
    assigned = assignments(model, options.assignments or [], space)
    preset, task, settings, data = EXPERIMENTS[model].resolve(argparse.Namespace(
        data=options.data, preset=preset, assignments=options.assignments or [], seed=chosen["seed"], resize=None,
        epochs=chosen["epochs"], iterations=None, quick=False, teacher=None, init_from=None, add_class=None), model)
    points = space_.grid_size(space) if grid else None
    count = options.trials or points or TRIALS
    if grid and count < points:
        print(f"nnlite: the grid has {points} points; --trials {count} takes {count} of them, all over it",
              file=sys.stderr)
    ops = get_ops(options.device)
    config = {"nnlite": __version__, "device": ops.identity(), "model": model, "preset": preset, **task, **chosen,
              "trials": min(count, points or count), "space": {name: str(part) for name, part in space.items()},
              "set": assigned, "settings": settings}
    path = pathlib.Path(options.out) if options.out is not None else runs.free_folder(f"search-{preset}")
    if (path / "search.json").exists():
        raise NnliteError(f"{path}: expected a folder without a search (--resume goes on with this one), got one that "
                          "holds search.json")
    runs.check_free(path)
    found = trials.Search(path, config, data, ops)
    found.check()
    found.begin()
    return found


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


def assignments(model, texts, space):
    """The settings that --set gives all trials."""
    assigned = {}
    for key in settings_.apply(model, assigned, texts):
        if key in space_.LENGTH:
            raise expected("--set", "a setting other than the length of a trial, which --epochs says", f"'{key}'")
        if key in space:
            raise expected(f"--set {key}", "a setting that is not searched", f"one of --space {key}")
    return assigned


def check_fine(config, given):
    """Raise where the options given do not go together with a fine stage, or with none."""
    if config["fine"] and config["method"] == "grid":
        raise expected("--fine", "--method random beside it", "grid")
    for name in ("fine_epochs", "keep"):
        if name in given and not config["fine"]:
            raise expected(f"--{name.replace('_', '-')}", "--fine N beside it", "none")


# -- going on ----------------------------------------------------------------------------------------------------------


def reopened(options):
    """The Search in --out with the trials that it holds; --trials, --fine and what belongs to it may have changed."""
    config = trials.read_config(options.out)
    agree(options, config)
    ops = get_ops(options.device)
    found = trials.Search(options.out, config, EXPERIMENTS[config["model"]].load(config), ops)
    found.read_trials()
    changed = {name: getattr(options, name) for name in ("trials", "fine", "fine_epochs", "keep")
               if getattr(options, name) not in (None, config[name])}
    check_changes(changed, found.trials)
    config.update(changed)
    check_fine(config, changed)
    if config["method"] == "grid":
        config["trials"] = min(config["trials"], space_.grid_size(found.space))
    found.check()
    found.tidy()
    return found


def agree(options, config):
    """Raise for an option that says something else than the search was begun with."""
    model = config["model"]
    given = {"model": options.model, "preset": options.preset, "method": options.method, "epochs": options.epochs,
             "seed": options.seed, "data": whole_path(options.data, BUILT_IN)}
    for name, value in given.items():
        if value not in (None, config[name]):
            raise _other(options, name, config[name], value)
    if options.space is not None:
        space = space_.parse(model, options.space, grid=config["method"] == "grid")
        space = {name: str(part) for name, part in space.items()}
        if space != config["space"]:
            raise _other(options, "space", _pairs(config["space"]), _pairs(space))
    if options.assignments is not None:
        assigned = assignments(model, options.assignments, config["space"])
        if assigned != config["set"]:
            raise _other(options, "set", _pairs(config["set"]) or "none", _pairs(assigned))


def _other(options, name, own, given):
    return expected(f"--{name}", f"what the search in {options.out} was begun with, {own}", given)


def _pairs(assigned):
    return " ".join(f"{key}={space_.spell(value)}" for key, value in assigned.items())


def check_changes(changed, done):
    """Raise where trials that came to their end would not belong to the changed search. done: the trials."""
    fine = [trial for trial in done if trial.stage == "fine"]
    for name in changed:
        if fine and name != "fine":
            raise expected(f"--{name.replace('_', '-')}", "what the search was begun with, as fine trials are done",
                           changed[name])
    for name, some in (("trials", len(done) - len(fine)), ("fine", len(fine))):
        if changed.get(name, some) < some:
            raise expected(f"--{name}", f"at least the {some} that are done", changed[name])


# -- what is printed ---------------------------------------------------------------------------------------------------


def describe(found):
    config, ops = found.config, found.ops
    count, done = len(found.numbers("coarse")), sum(trial.stage == "coarse" for trial in found.trials)
    fine = f", then {config['fine']} of {config['fine_epochs']}" if config["fine"] else ""
    parts = ", ".join(f"{len(rows)} {name}" for name, rows in found.data.split.items())
    return "\n".join([
        f"nnlite: {config['method']} search, preset {config['preset']}, {count} trials of {config['epochs']} epochs"
        f"{fine}, folder {found.path}" + f" ({done} done)" * bool(done),
        f"device: {ops.device_line()}", f"data: {config['data']}: {len(found.data.classes)} classes ({parts})",
        f"stopped by Ctrl-C or a kill, it goes on with: {resume_command(found)}", *_lines(found.space)])


def describe_fine(found):
    config = found.config
    return "\n".join([
        f"fine: {config['fine']} trials of {config['fine_epochs']} epochs, from ranges around the best "
        f"{len(found.kept())} of {config['trials']} coarse trials:", *_lines(found.fine_space())])


def _lines(space):
    return [f"  {name:14} {part.describe()}" for name, part in space.items()]


def resume_command(found):
    return shlex.join(["python", "-m", "nnlite.search", "--out", str(found.path), "--resume"])


def train_command(found):
    """The command line that trains the preset with the settings of the best trial, for as long as the preset says."""
    config = found.config
    words = ["--preset", config["preset"]]
    if config["data"] not in BUILT_IN:
        words += ["--data", config["data"]]
    for key, value in {**config["set"], **found.best().settings}.items():
        words += ["--set", f"{key}={space_.spell(value)}"]
    if config["seed"]:
        words += ["--seed", str(config["seed"])]
    return shlex.join(["python", "-m", "nnlite.train", *words])


if __name__ == "__main__":
    sys.exit(main())
