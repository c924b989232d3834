"""Train a model: `python -m nnlite.train --model vae3`.

The loop is `fit`; everything else here reads options and prints.
"""

import argparse
import contextlib
import gc
import math
import pathlib
import signal
import sys
import time

from tqdm import tqdm

from . import command, presets, report, runs, settings as settings_
from .diagnose import first_not_finite
from .errors import expected
from .files import remove_leftovers
from .models import MODELS
from .ops import NAMES, get_ops

BUILT_IN_ITERATIONS = 20_000   # without a data file: a few minutes on two cores instead of the presets' 100 000
QUICK = {"iterations": 400, "validate_every": 100, "checkpoint_every": 100}
MOST_PASSES = 10               # through the training faces in one batch; more is a slip of the hand
LOOK_EVERY = 50                # iterations between looks at the loss where that means waiting for a GPU


class NotFinite(Exception):
    """The loss, or a parameter, became NaN or infinite; `iteration` counts from 0."""

    def __init__(self, iteration):
        self.iteration = iteration


def fit(run, stop):
    """Train to the run's end, or until stop() is true. Returns the number of iterations done.

    run: a Run, begun, or killed at any moment: everything goes on from last.h5 as if nothing had happened.
    """
    experiment, options = run.experiment, run.config["settings"]
    progress = run.load_last() or {"iteration": 0, "best": -math.inf, "best_iteration": 0, "loss_sum": 0.0, "steps": 0}
    begin, iterations = int(progress["iteration"]), options["iterations"]
    look_every = LOOK_EVERY if experiment.ops.name == "cuda" else 1
    clock, clocked = 0.0, begin

    with ProgressBar(begin, iterations) as bar:
        for iteration in range(begin, iterations):
            terms = experiment.step(iteration)
            done = iteration + 1
            if done % look_every == 0 or done == iterations:
                loss = math.fsum(float(value) for value in terms.values())
                if not math.isfinite(loss):
                    raise NotFinite(iteration)
                progress["loss_sum"] += loss
                progress["steps"] += 1
                bar.show(done, loss, progress["best"])

            if done == begin + 1:   # the pace counts from here: the first step may have compiled kernels
                clock, clocked = time.perf_counter(), done

            if done % options["validate_every"] == 0 or done == iterations:
                experiment.ops.synchronize()
                rate = (done - clocked) / (time.perf_counter() - clock) if done > clocked else 0.0
                values = experiment.validate()
                if not math.isfinite(values["validation_elbo"]):
                    raise NotFinite(iteration)
                if values["validation_elbo"] > progress["best"]:
                    progress.update(best=values["validation_elbo"], best_iteration=done)
                    run.save_best(iteration=done, validation_elbo=values["validation_elbo"])
                run.add_metrics({"iteration": done, "loss": progress["loss_sum"] / max(progress["steps"], 1),
                                 "iterations_per_second": rate, **values})
                progress.update(loss_sum=0.0, steps=0)
                clock, clocked = time.perf_counter(), done

            stopping = stop()   # asked once: what is left here has been saved
            if done % options["checkpoint_every"] == 0 or done == iterations or stopping:
                arrays = [experiment.model.parameters.values, *experiment.optimiser.state().values()]
                if not all(experiment.ops.all_finite(array) for array in arrays):
                    raise NotFinite(iteration)   # a finite loss may have had a gradient that was not
                run.save_last({**progress, "iteration": done})
            if stopping:
                return done
    return iterations


class ProgressBar(contextlib.AbstractContextManager):
    """tqdm with the loss and the best ELBO, on standard error; rarely where that is no terminal."""

    def __init__(self, begin, iterations):
        self.begin, self.iterations, self.bar = begin, iterations, None

    def show(self, done, loss, best):
        if self.bar is None:   # only now: the first step may have compiled kernels, which is not its pace
            terminal = sys.stderr.isatty()
            self.bar = tqdm(initial=self.begin, total=self.iterations, unit="it", mininterval=0.2 if terminal else 20,
                            maxinterval=1 if terminal else 60, dynamic_ncols=True)
        bar = self.bar
        if bar.update(done - bar.n) or done == bar.total:
            bar.set_postfix_str(f"loss {loss:.4g}" + (f", ELBO {best:.4g}" if best > -math.inf else ""), refresh=False)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def explain(run, iteration):
    """One sentence on where the first NaN came from: the run is done again from its last good checkpoint, watched."""
    path = run.path / "last.h5"
    if path.exists():
        begin, kept = int(run.load_last()["iteration"]), f"{path} keeps iteration"
    else:
        run.experiment.restart()
        begin, kept = 0, "no checkpoint was due yet: the run began with iteration"
    finding = first_not_finite(run.experiment, range(begin, iteration + 2))
    return (f"{run.path}: expected a finite loss, got NaN or infinity; the first was "
            f"{finding or 'not found again'} ({kept} {begin})")


class Interrupts:
    """Ctrl-C asks to stop behind the present step; a second one stops at once."""

    def __enter__(self):
        self.asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *error):
        signal.signal(signal.SIGINT, self._before)


# -- options ----------------------------------------------------------------------------------------------------------


def parser():
    p = argparse.ArgumentParser(prog="python -m nnlite.train", description="Train a model and evaluate it.")
    p.add_argument("--model", choices=sorted(MODELS), help="what to train (needed unless --preset names it)")
    p.add_argument("--preset", help="a documented experiment (default: the published best of the model)")
    p.add_argument("--list-presets", action="store_true", help="print all presets and stop")
    p.add_argument("--data", help="HDF5 file, OpenFace CSV, or folder of BU-3DFE, BP4D or OpenFace files "
                                  "(default: the built-in synthetic set)")
    p.add_argument("--triplets", help="HDF5 file of triplets (default: artificial ones, or simulated workers)")
    p.add_argument("--iterations", type=int, help="training steps; annealing is shortened in proportion")
    p.add_argument("--device", default="auto", choices=NAMES, help="default: a GPU if there is one")
    p.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", help="the run folder (default: runs/PRESET-1, -2, ...)")
    p.add_argument("--resume", metavar="RUN", help="go on with a run, to its own end")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                   help="any setting: " + ", ".join(settings_.KNOWN))
    p.add_argument("--quick", action="store_true", help=f"a trial of {QUICK['iterations']} iterations")
    p.add_argument("--summary", action="store_true", help="print the model and stop")
    return p


def resolve(options):
    """Options -> (config, faces, triplets); raises NnliteError for what does not fit together. Writes nothing."""
    if options.model is None and options.preset is None:
        raise expected("--model", "one of " + ", ".join(sorted(MODELS)), "none")
    wanted = presets.PRESETS.get(options.preset, {})
    data = f"built-in {wanted.get('kind', 'posed')}" if options.data is None else options.data
    if options.preset is not None and not wanted:
        settings_.choose_preset(options.preset, None, None)   # raises, with the nearest name
    model = options.model or wanted["model"]
    faces = runs.load_faces(data)
    preset, chosen = settings_.choose_preset(options.preset, model, faces.landmarks.kind)
    assigned = {}
    given = settings_.apply(assigned, options.assignments)
    shorten(chosen, iterations_asked(options, assigned, data))
    chosen["checkpoint_every"] = chosen["validate_every"]
    if options.quick:
        chosen.update(QUICK, iterations=chosen["iterations"])
    chosen.update(assigned)
    settings_.fit_to_data(chosen, faces.x.shape[1], given)
    most = MOST_PASSES * len(faces.split["train"])
    if chosen["batch_size"] > most:
        raise expected("--set batch_size", f"at most {most}, {MOST_PASSES} times the training faces",
                       chosen["batch_size"])
    if not 0 <= options.seed < 2 ** 64:
        raise expected("--seed", "a whole number from 0 to 2^64 - 1", options.seed)
    triplets = runs.load_triplets(options.triplets, faces)
    config = runs.new_config(model=model, preset=preset, data=whole_path(data), triplets=whole_path(options.triplets),
                             faces=len(faces.x), settings=chosen, seed=options.seed, dtype=options.dtype,
                             device=get_ops(options.device).identity())
    return config, faces, triplets


def whole_path(name):
    """A path that still holds when the run is opened from another folder; names of built-in sets and None stay."""
    return name if name is None or name in runs.BUILT_IN else str(pathlib.Path(name).resolve())


def iterations_asked(options, assigned, data):
    """The number of iterations that the options ask for; None: the preset's."""
    asked = assigned.get("iterations", options.iterations)
    if asked is not None and asked < 1:
        raise expected("--iterations", "at least 1", asked)
    if asked is None and options.quick:
        return QUICK["iterations"]
    if asked is None and data in runs.BUILT_IN:
        return BUILT_IN_ITERATIONS
    return asked


def shorten(chosen, iterations):
    """Fewer iterations than the preset's shorten annealing and validation in proportion."""
    if iterations is None:
        return
    share = iterations / chosen["iterations"]
    chosen["iterations"] = iterations
    if share < 1:
        chosen["anneal"] = round(chosen["anneal"] * share)
        chosen["validate_every"] = max(1, min(iterations, round(chosen["validate_every"] * max(share, 0.2))))


def list_presets():
    lines = [f"{'preset':24}{'model':7}{'encoder':34}{'decoder':30}{'s^2':>8}{'lambda':>8}{'anneal':>8}  mode"]
    for name, p in presets.PRESETS.items():
        topological = f"{p['topological_variance']:g}" if p["model"] == "vae3" else "-"
        lines.append(f"{name:24}{p['model']:7}{_sizes(p['encoder']):34}{_sizes(p['decoder']):30}"
                     f"{p['reconstruction_variance']:8g}{topological:>8}{p['anneal']:8}  {p['anneal_mode']}")
    return "\n".join(lines)


def _sizes(sizes):
    return "-".join(map(str, sizes))


def summary(model):
    """The model as a table: a line for each layer with parameters, and the total."""
    rows, parameters = [], model.parameters
    for name, layer in model.walk():
        if layer.param_specs:
            own = [entry for entry in parameters.table if entry.owner is layer]
            shapes = ", ".join(f"{e.attribute} {'x'.join(map(str, e.shape))}" for e in own)
            rows.append((name, type(layer).__name__, shapes, sum(e.stop - e.start for e in own)))
    lines = [f"{'layer':14}{'kind':20}{'parameters':28}{'count':>12}"]
    lines += [f"{name:14}{kind:20}{shapes:28}{count:12,}" for name, kind, shapes, count in rows]
    lines.append(f"{'total':62}{parameters.size:12,}")
    return "\n".join(lines)


def main(arguments=None):
    options = parser().parse_args(arguments)
    return command.run(lambda: train(options))


def train(options):
    if options.list_presets:
        print(list_presets(), flush=True)
        return 0
    if options.resume is not None:
        refuse_beside_resume(options)
        run = runs.open_run(options.resume, options.device)
        run.announce_other_machine()
    else:
        config, faces, triplets = resolve(options)
        if options.out == "":
            raise expected("--out", "the name of a folder", "nothing")
        path = pathlib.Path(options.out) if options.out is not None else runs.free_folder(config["preset"])
        runs.check_free(path)
        run = runs.Run(path, config, faces, triplets, get_ops(options.device))
    print(describe(run))
    print(summary(run.model))
    if options.summary:
        return 0
    report.announce_missing_extra()
    if options.resume is None:
        run.begin()
    gc.freeze()   # what lives now lives to the end: the collector need not walk through it again and again
    return train_and_evaluate(run)


def refuse_beside_resume(options):
    defaults = parser().parse_args([])
    for name in ("model", "preset", "data", "triplets", "iterations", "dtype", "seed", "out", "assignments", "quick"):
        if getattr(options, name) != getattr(defaults, name):
            name = "set" if name == "assignments" else name
            raise expected("--resume", "no other option than --device: the run goes on to its own end", f"--{name}")


def describe(run):
    config, faces, ops = run.config, run.faces, run.experiment.ops
    s = config["settings"]
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in faces.split.items())
    lines = [f"nnlite: {config['model']}, preset {config['preset']}, {s['iterations']} iterations, run {run.path}",
             f"device: {ops.device_line()}, {config['dtype']}",
             f"data: {config['data']}: {faces.landmarks.kind} faces of {faces.x.shape[1]} numbers ({counts})"]
    if run.experiment.triplets:
        kind = "from " + config["triplets"] if config["triplets"] else \
            "artificial" if faces.landmarks.kind == "posed" else "answered by simulated workers"
        counts = ", ".join(f"{len(part.rows)} {name}" for name, part in run.triplets.items())
        lines.append(f"triplets: {kind} ({counts})")
    return "\n".join(lines)


def train_and_evaluate(run):
    with Interrupts() as interrupts:
        try:
            done = fit(run, lambda: interrupts.asked)
        except NotFinite as problem:
            remove_leftovers(run.path)
            print(f"nnlite: {explain(run, problem.iteration)}", file=sys.stderr)
            return 1
    if done < run.config["settings"]["iterations"]:
        print(f"stopped after {done} iterations, saved; go on with: python -m nnlite.train --resume {run.path}")
        return 130
    best = run.load_best()
    if report.missing_extra() is None:
        print(f"evaluating iteration {best['iteration']} (validation ELBO {best['validation_elbo']:.4g})")
        report.evaluate(run)
    else:
        print(f"not evaluated: {report.missing_extra()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
