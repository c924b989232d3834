"""Search for settings: `python -m nnlite.search --model cnn4 --trials 30`.

Every trial is a short training with settings of its own, judged by its best validation accuracy (or by what the setting
`watch` says). Random: a second, fine stage draws from ranges narrowed around the best trials of the first (see
nnlite.space). TPE: each trial is drawn from what those before have shown (see nnlite.study), and several processes may
share the work: `--out FOLDER --resume` joins.
"""

import argparse
import shlex
import sys

from . import __version__, command, search_options as common, space as space_, study, trials
from .errors import NnliteError, expected
from .experiments import EXPERIMENTS
from .experiments.options import check_count, whole_path
from .ops import get_ops

# What --space is where it is not given. The source of cnn4 drew learning rate, L2 and decay in log space without saying
# the ranges; these are wide ones around what it found. That of the EfficientNets gives its own.
SPACE = "learning_rate=log:1e-5:1e-1", "l2=log:1e-5:1e-2", "lr_decay=log:0.85:1"
SCALED = ("learning_rate=log:5e-6:1e-2", "width=0.2:1.4:step0.05", "depth=0.2:1.4:step0.05",
          "keep_prob=0.5:1:step0.05", "top_filters=16:160:step8")
SPACES = {"effnetv2s": SCALED, "effnetv2s-small": SCALED}
GRID = "learning_rate=log:1e-4:1e-2:3", "l2=log:1e-4:1e-2:3"
DEFAULTS = {"method": "random", "epochs": 2, "keep": 0.25, "fine": 0, "fine_epochs": 8, "seed": 0}
TRIALS = {"random": 30, "tpe": 50}   # a grid is done in full


def parser():
    p = argparse.ArgumentParser(prog="python -m nnlite.search", description="Search for a classifier's settings.")
    common.add_options(p, "search")
    p.add_argument("--method", choices=trials.METHODS, help="draw settings, take all points of a grid, or learn from "
                                                            "the trials before where to draw (default: "
                                                            f"{DEFAULTS['method']})")
    p.add_argument("--space", action="append", metavar="KEY=VALUES",
                   help=f"a setting to search: {space_.FORMS}; for a grid {space_.GRID_FORMS} (default: "
                        f"{' '.join(SPACE)}, for EfficientNets {' '.join(SCALED)}, for a grid {' '.join(GRID)})")
    p.add_argument("--trials", type=int, help="how many (default: " +
                   ", ".join(f"{method} {count}" for method, count in TRIALS.items()) + ", of a grid all points)")
    p.add_argument("--epochs", type=int, help=f"of a trial (default: {DEFAULTS['epochs']})")
    p.add_argument("--fine", type=int, metavar="N", help="then N trials from ranges around the best (default: none)")
    p.add_argument("--fine-epochs", type=int, help=f"of a fine trial (default: {DEFAULTS['fine_epochs']})")
    p.add_argument("--keep", type=float, metavar="SHARE", help="of the coarse trials, the best of which the fine "
                                                               f"ranges hold (default: {DEFAULTS['keep']})")
    p.add_argument("--storage", metavar="FILE", help="of --method tpe: the study (default: study.journal in --out); "
                                                     "one that is there is joined")
    p.add_argument("--resume", action="store_true", help="go on with the search in --out, also with more trials; what "
                                                         "else is given has to be as it was begun. Of --method tpe "
                                                         "also while other processes work on it")
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
            common.train_all(found, stage, interrupts, trials.validation)
    left = any(map(found.open_numbers, trials.STAGES))
    if found.trials:
        found.report()
    if left and interrupts.asked:
        print(f"stopped; go on with: {resume_command(found)}")
        return 130
    if left:
        print(f"nothing is left to begin; other processes train {found.study.running()} trials, and the last one to end"
              " makes the whole report")
        return 0
    if common.all_failed(found):
        return 1
    print(f"train the best: {common.train_command(found)}")
    return 0


# -- options -----------------------------------------------------------------------------------------------------------


def check_options(options):
    common.check_options(options)
    for name in ("trials", "fine_epochs"):
        check_count(getattr(options, name), f"--{name.replace('_', '-')}")
    if options.fine is not None and options.fine < 0:
        raise expected("--fine", "a number of trials, 0 for no fine stage", options.fine)
    if options.keep is not None and not 0 < options.keep <= 1:
        raise expected("--keep", "a share above 0 and at most 1", options.keep)
    if options.storage == "":
        raise expected("--storage", "the name of a file", "nothing")


def begun(options):
    """A new Search, its folder made; raises NnliteError, with nothing written, for what does not fit together."""
    model = common.model_of(options)
    given = {name: getattr(options, name) for name in DEFAULTS if getattr(options, name) is not None}
    chosen = {**DEFAULTS, **given}
    method, grid = chosen["method"], chosen["method"] == "grid"
    space = space_.parse(model, options.space or (GRID if grid else SPACES.get(model, SPACE)), grid=grid)
    check_fine(chosen, given)
    check_storage(options, method)
    assigned = common.assignments(model, options.assignments or [], space, "--space")
    preset, task, settings, data = common.resolve(options, model, epochs=chosen["epochs"], seed=chosen["seed"])
    points = space_.grid_size(space) if grid else None
    count = options.trials or points or TRIALS[method]
    if grid and count < points:
        print(f"nnlite: the grid has {points} points; --trials {count} takes {count} of them, all over it",
              file=sys.stderr)
    ops = get_ops(options.device)
    config = {"nnlite": __version__, "device": ops.identity(), "model": model, "preset": preset, **task, **chosen,
              "trials": min(count, points or count), "storage": whole_path(options.storage),
              "space": {name: str(part) for name, part in space.items()}, "set": assigned, "settings": settings}
    found = trials.Search(common.new_folder(options, f"search-{preset}"), config, data, ops)
    found.check()
    found.begin()
    return found


def check_fine(config, given):
    """Raise where the options given do not go together with a fine stage, or with none."""
    if config["fine"] and config["method"] != "random":
        raise expected("--fine", "--method random beside it", config["method"])
    for name in ("fine_epochs", "keep"):
        if name in given and not config["fine"]:
            raise expected(f"--{name.replace('_', '-')}", "--fine N beside it", "none")


def check_storage(options, method):
    """Raise where --storage does not belong to the method, or the method lacks its package."""
    if options.storage is not None and method != "tpe":
        raise expected("--storage", "--method tpe beside it", method)
    if method == "tpe" and study.missing_extra() is not None:
        raise NnliteError(study.missing_extra())


# -- going on ----------------------------------------------------------------------------------------------------------


def reopened(options):
    """The Search in --out with the trials that it holds; --trials, --fine and what belongs to it may have changed."""
    config = trials.read_config(options.out)
    check_storage(options, config["method"])
    common.agree(options, config, {"method": options.method, "storage": whole_path(options.storage)}, options.space,
                 "--space")
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
    how = f"study {found.study.path}; another process joins, and after Ctrl-C or a kill it goes on," if found.study \
        else "stopped by Ctrl-C or a kill, it goes on"
    return "\n".join([
        f"nnlite: {config['method']} search, preset {config['preset']}, {count} trials of {config['epochs']} epochs"
        f"{fine}, folder {found.path}" + f" ({done} done)" * bool(done),
        f"device: {ops.device_line()}", f"data: {config['data']}: {len(found.data.classes)} classes ({parts})",
        f"trials are judged by their best validation {found.watched()}", f"{how} with: {resume_command(found)}",
        *_lines(found.space)])


def describe_fine(found):
    config = found.config
    return "\n".join([
        f"fine: {config['fine']} trials of {config['fine_epochs']} epochs, from ranges around the best "
        f"{len(found.kept())} of {config['trials']} coarse trials:", *_lines(found.fine_space())])


def _lines(space):
    return [f"  {name:14} {part.describe()}" for name, part in space.items()]


def resume_command(found):
    return shlex.join(["python", "-m", "nnlite.search", "--out", str(found.path), "--resume"])


if __name__ == "__main__":
    sys.exit(main())
