"""Compare settings: `python -m nnlite.ablate --model vit-tiny --grid optimiser=sgd,adam --grid learning_rate=0.1,0.01`.

Every point of one or two axes is a whole training from the beginning; the parameters of its best epoch are measured on
the validation and on the test part. The best point is the one with the best validation value: the test part chooses
nothing. The folder is that of a search (see nnlite.trials), with table.csv, table.json, table.md and table.png.
"""

import argparse
import csv
import io
import json
import shlex
import sys

from . import (__version__, command, plots, plots_ablate, report_labels, search_options as common, space as space_,
               trials)
from .errors import expected
from .experiments import EXPERIMENTS
from .ops import get_ops
from .report import aligned, three_digits, write

SHOWN = "validation_accuracy", "test_accuracy", "validation_f1", "test_f1"
KEPT = *SHOWN, "validation_loss", "test_loss"
WORDS = {"accuracy": "Accuracy", "f1": "Macro F1"}
UNUSED = {"keep": 1.0, "fine": 0, "fine_epochs": 1, "storage": None}   # of what else a search knows


def parser():
    p = argparse.ArgumentParser(prog="python -m nnlite.ablate", description="Train a classifier with every "
                                "combination of one or two settings' values and compare them in a table.")
    common.add_options(p, "ablation")
    p.add_argument("--grid", action="append", metavar="KEY=VALUES", help="the rows, and given again the columns: "
                                                                         f"{space_.GRID_FORMS}; epochs too")
    p.add_argument("--epochs", type=int, help="of each training (default: as for nnlite.train)")
    p.add_argument("--resume", action="store_true", help="go on with the ablation in --out; what else is given has to "
                                                         "be as it was begun")
    return p


def main(arguments=None):
    options = parser().parse_args(arguments)
    return command.run(lambda: ablate(options))


def ablate(options):
    common.check_options(options)
    found = reopened(options) if options.resume else begun(options)
    print(describe(found))
    with command.Interrupts() as interrupts:
        common.train_all(found, "coarse", interrupts, outcome)
    if found.trials:
        report(found)
    if found.open_numbers("coarse"):
        print(f"stopped; go on with: {resume_command(found)}")
        return 130
    if common.all_failed(found):
        return 1
    print(f"train the best: {common.train_command(found)}")
    return 0


def begun(options):
    """A new ablation, its folder made; raises NnliteError, with nothing written, for what does not fit together."""
    model = common.model_of(options)
    if not 1 <= len(options.grid or []) <= 2:
        raise expected("--grid", "one or two settings with their values", len(options.grid or []) or "none")
    space = space_.parse(model, options.grid, grid=True, option="--grid", free=("epochs",))
    if "epochs" in space and options.epochs is not None:
        raise expected("--epochs", "none beside --grid epochs", options.epochs)
    assigned = common.assignments(model, options.assignments or [], space, "--grid")
    preset, task, settings, data = common.resolve(options, model, epochs=options.epochs, seed=options.seed or 0)
    ops = get_ops(options.device)
    config = {"nnlite": __version__, "device": ops.identity(), "model": model, "preset": preset, **task,
              "method": "ablation", "trials": space_.grid_size(space), "epochs": settings["epochs"],
              "seed": options.seed or 0, **UNUSED, "space": {name: str(part) for name, part in space.items()},
              "set": assigned, "settings": settings}
    found = trials.Search(common.new_folder(options, f"ablation-{preset}"), config, data, ops)
    found.check()
    found.begin()
    return found


def reopened(options):
    """The ablation in --out with the trainings that came to their end."""
    config = trials.read_config(options.out, ("ablation",))
    common.agree(options, config, {}, options.grid, "--grid")
    found = trials.Search(options.out, config, EXPERIMENTS[config["model"]].load(config), get_ops(options.device))
    found.read_trials()
    found.tidy()
    return found


# -- what is printed ---------------------------------------------------------------------------------------------------


def describe(found):
    config = found.config
    parts = ", ".join(f"{len(rows)} {name}" for name, rows in found.data.split.items())
    epochs = "" if "epochs" in found.space else f" of at most {config['epochs']} epochs"
    done = f" ({len(found.trials)} done)" * bool(found.trials)
    axes = " x ".join(f"{name} ({', '.join(map(space_.spell, part.axis()))})" for name, part in found.space.items())
    return "\n".join([
        f"nnlite: ablation, preset {config['preset']}, {config['trials']} trainings{epochs}, folder {found.path}{done}",
        f"axes: {axes}", f"device: {found.ops.device_line()}",
        f"data: {config['data']}: {len(found.data.classes)} classes ({parts})",
        f"stopped by Ctrl-C or a kill, it goes on with: {resume_command(found)}"])


def outcome(trial):
    return f"{trials.validation(trial)}, test {100 * trial.measures['test_accuracy']:.1f} %"


def resume_command(found):
    return shlex.join(["python", "-m", "nnlite.ablate", "--out", str(found.path), "--resume"])


# -- the table ---------------------------------------------------------------------------------------------------------


def report(found, progress=print):
    """table.csv, table.json, table.md and table.png of the trainings that came to their end; the table is reported."""
    rows = cells(found)
    progress("\n\n".join(f"{title}\n{aligned(table)}".lstrip() for title, table in tables(found)) + "\n" + note(found))
    write(found.path / "table.csv", as_csv(rows).encode())
    summary = {**{key: found.config[key] for key in ("model", "preset", "data", "epochs", "seed", "set")},
               "axes": {name: part.axis() for name, part in found.space.items()}, "best_by": found.watched(),
               "cells": rows}
    write(found.path / "table.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    write(found.path / "table.md", as_markdown(found).encode())
    lacking = report_labels.missing_extra()
    if lacking is None:
        figure = plots_ablate.table(rows, summary["axes"], title=found.config["preset"])
        write(found.path / "table.png", plots.png(figure))
    else:
        progress(f"no picture: {lacking}")
    progress(f"ablation: {found.path}")


def cells(found):
    """A dict for each training that came to its end, in the order of the grid: its settings, the measures KEPT (None
    where it failed), epoch, epochs, seconds, best."""
    best = found.best()
    return [{**trial.settings, **{name: trial.measures.get(name) for name in KEPT}, "epoch": trial.best_epoch,
             "trained": len(trial.accuracy), "seconds": trial.seconds, "best": trial is best}
            for trial in sorted(found.trials, key=lambda trial: trial.number)]


def tables(found):
    """(title, rows of cells) of the tables for people: for one axis one, for two axes one of each measure."""
    rows, (first, *second) = cells(found), found.space
    if not second:
        table = [[first, "validation accuracy", "test accuracy", "validation F1", "test F1", "epoch", "seconds", ""]]
        for cell in rows:
            numbers = [three_digits(cell[name]) for name in SHOWN]
            table.append([space_.spell(cell[first]), *(["failed", "-", "-", "-"] if cell["epoch"] is None else numbers),
                          str(cell["epoch"] or "-"), f"{cell['seconds']:.1f}", "best" if cell["best"] else ""])
        return [("", table)]
    across, = second
    at = {(str(cell[first]), str(cell[across])): cell for cell in rows}
    columns = found.space[across].axis()
    found_tables = []
    for measure, word in WORDS.items():
        table = [[f"{first} \\ {across}", *map(space_.spell, columns)]]
        for value in found.space[first].axis():
            row = [_cell(at.get((str(value), str(other))), measure) for other in columns]
            table.append([space_.spell(value), *row])
        found_tables.append((f"{word}, validation / test", table))
    return found_tables


def _cell(cell, measure):
    """'0.612 / 0.598', and a star behind the best."""
    if cell is None:
        return "-"
    if cell["epoch"] is None:
        return "failed"
    pair = " / ".join(three_digits(cell[f"{part}_{measure}"]) for part in ("validation", "test"))
    return pair + " *" * cell["best"]


def note(found):
    return (f"best: by validation {found.watched()}" + (", marked *" if len(found.space) == 2 else "") +
            "; each with the parameters of its best epoch")


def as_csv(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for cell in rows:
        writer.writerow([space_.spell(value) if isinstance(value, list) else value for value in cell.values()])
    return text.getvalue()


def as_markdown(found):
    """The tables in Markdown, the best in bold."""
    blocks = []
    for title, (head, *body) in tables(found):
        lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
        for row in body:
            bold = "best" in row
            lines.append([f"**{cell.removesuffix(' *')}**" if cell and (bold or cell.endswith(" *")) else cell
                          for cell in row])
        blocks.append((f"{title}\n\n" if title else "") + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([*blocks, note(found).replace(", marked *", ", in bold")]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
