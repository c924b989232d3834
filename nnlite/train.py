"""Train a model: `python -m nnlite.train --model vae3`.

The loop is `fit`; everything else here reads options and prints.
"""

import argparse
import contextlib
import gc
import math
import pathlib
import sys
import time

from tqdm import tqdm

from . import command, presets, runs, settings as settings_
from .diagnose import first_not_finite
from .errors import expected
from .experiments import EXPERIMENTS
from .experiments.options import QUICK, check_seed
from .files import remove_leftovers
from .ops import NAMES, get_ops

LOOK_EVERY = 50   # iterations between looks at the loss where that means waiting for a GPU


class NotFinite(Exception):
    """The loss, or a parameter, became NaN or infinite; `iteration` counts from 0."""

    def __init__(self, iteration):
        self.iteration = iteration


def fit(run, stop, *, restarted=False):
    """Train to the run's end, or until stop() is true. Returns the number of iterations done.

    run: a Run, begun, or killed at any moment: everything goes on from last.h5 as if nothing had happened. restarted:
    whether its experiment is as restart() leaves it.
    """
    experiment, options, criterion = run.experiment, run.config["settings"], run.experiment.criterion
    progress, iterations = run.load_last(), options["iterations"]
    if progress is None:
        if not restarted:   # it may read a large file
            experiment.restart()
        progress = {"iteration": 0, "best": -math.inf, "best_iteration": 0, **experiment.zero_sums}
    done, stopping = int(progress["iteration"]), False
    look_every = LOOK_EVERY if experiment.ops.name == "cuda" else 1
    begin, clock, clocked = done, 0.0, done

    with ProgressBar(begin, iterations, experiment) as bar:
        while not (stopping or experiment.over(done, progress["best_iteration"])):
            terms = experiment.step(done)
            done += 1
            if done % look_every == 0 or done == iterations:
                sums = experiment.sums(terms)
                if not math.isfinite(sums["loss_sum"]):
                    raise NotFinite(done - 1)
                progress.update({name: progress[name] + value for name, value in sums.items()})
                bar.show(done, sums["loss_sum"], progress["best"])

            if done == begin + 1:   # the pace counts from here: the first step may have compiled kernels
                clock, clocked = time.perf_counter(), done

            if done % options["validate_every"] == 0 or done == iterations:
                experiment.ops.synchronize()
                rate = (done - clocked) / (time.perf_counter() - clock) if done > clocked else 0.0
                values = experiment.validate()
                if not all(map(math.isfinite, values.values())):
                    raise NotFinite(done - 1)
                if values[criterion] > progress["best"]:
                    progress.update(best=values[criterion], best_iteration=done)
                    run.save_best(iteration=done, **{criterion: values[criterion]})
                run.add_metrics({**experiment.line(done, progress), "iterations_per_second": rate, **values})
                experiment.validated(values)
                progress.update(experiment.zero_sums)
                clock, clocked = time.perf_counter(), done

            stopping = stop()   # asked once: what is left here has been saved
            over = experiment.over(done, progress["best_iteration"])
            if done % options["checkpoint_every"] == 0 or over or stopping:
                arrays = [experiment.model.parameters.values, *experiment.model.state.values(),
                          *experiment.optimiser.state().values()]
                if not all(experiment.ops.all_finite(array) for array in arrays):
                    raise NotFinite(done - 1)   # a finite loss may have had a gradient that was not
                run.save_last({**progress, "iteration": done})
    return done


class ProgressBar(contextlib.AbstractContextManager):
    """tqdm with the loss and the best value of the criterion, on standard error; rarely where that is no terminal."""

    def __init__(self, begin, iterations, experiment):
        self.begin, self.iterations, self.experiment, self.bar = begin, iterations, experiment, None

    def show(self, done, loss, best):
        if self.bar is None:   # only now: the first step may have compiled kernels, which is not its pace
            terminal = sys.stderr.isatty()
            self.bar = tqdm(initial=self.begin, total=self.iterations, unit="it", mininterval=0.2 if terminal else 20,
                            maxinterval=1 if terminal else 60, dynamic_ncols=True)
        bar = self.bar
        if bar.update(done - bar.n) or done == bar.total:
            found = f", best {best_words(self.experiment, best)}" if best > -math.inf else ""
            bar.set_postfix_str(f"loss {loss:.4g}{found}", refresh=False)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def best_words(experiment, best):
    """The best value of the criterion for people, as 'accuracy 0.66'."""
    return f"{experiment.criterion_label} {experiment.criterion_sign * best:.4g}"


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


# -- options ----------------------------------------------------------------------------------------------------------


def parser():
    p = argparse.ArgumentParser(prog="python -m nnlite.train", description="Train a model and evaluate it.")
    p.add_argument("--model", choices=sorted(EXPERIMENTS), help="what to train (needed unless --preset names it)")
    p.add_argument("--preset", help="a documented experiment (default: the published best of the model)")
    p.add_argument("--list-presets", action="store_true", help="print all presets and stop")
    p.add_argument("--data", help="for classifiers fer2013.csv, CIFAR-10's batches, AffectNet or a folder a class; for "
                                  "face VAEs an HDF5 file, OpenFace CSV, or folder of BU-3DFE, BP4D or OpenFace files "
                                  "(default: a built-in synthetic set)")
    p.add_argument("--resize", metavar="HxW", help="resize the images of folders, e.g. 48x48")
    p.add_argument("--skip-broken", action="store_true", default=None,
                   help="leave files of image folders that are no images out, and name them")
    p.add_argument("--triplets", help="HDF5 file of triplets (default: artificial ones, or simulated workers)")
    p.add_argument("--iterations", type=int, help="training steps; annealing is shortened in proportion")
    p.add_argument("--epochs", type=int, help="passes through the training images, instead of --iterations")
    p.add_argument("--init-from", metavar="RUN", help="begin with the best parameters of another run of the model")
    p.add_argument("--add-class", metavar="NAME", help="with --init-from: one output more, for this class of the data")
    p.add_argument("--weights", metavar="FILE", help="begin with the parameters in a PyTorch or safetensors file")
    p.add_argument("--teacher", metavar="RUN", help="learn also the probabilities that this run's best model gives")
    p.add_argument("--device", default="auto", choices=NAMES, help="default: a GPU if there is one")
    p.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", help="the run folder (default: runs/PRESET-1, -2, ...)")
    p.add_argument("--resume", metavar="RUN", help="go on with a run, to its own end")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="assignments",
                   help="any setting of the model; " + "; ".join(settings_help()))
    p.add_argument("--quick", action="store_true", help=f"a trial of {QUICK['iterations']} iterations")
    p.add_argument("--summary", action="store_true", help="print the model and stop")
    return p


def settings_help():
    """The settings of each task, once."""
    yield "face VAEs: " + ", ".join(settings_.FACES)
    yield "classifiers: " + ", ".join(settings_.LABELS)
    yield from (f"{model}: " + ", ".join(shape) for model, shape in settings_.SHAPES.items() if shape)


def resolve(options):
    """Options -> (config, data); raises NnliteError for what does not fit together. Writes nothing."""
    if options.model is None and options.preset is None:
        raise expected("--model", "one of " + ", ".join(sorted(EXPERIMENTS)), "none")
    if options.preset is not None and options.preset not in presets.PRESETS:
        settings_.choose_preset(options.preset, None)   # raises, with the nearest name
    check_seed(options.seed)
    model = options.model or presets.PRESETS[options.preset]["model"]
    experiment = EXPERIMENTS[model]
    refuse_foreign(options, model)
    preset, task, chosen, data = experiment.resolve(options, model)
    config = runs.new_config(model=model, preset=preset, task=task, settings=chosen, seed=options.seed,
                             dtype=options.dtype, device=get_ops(options.device).identity())
    return config, data


def refuse_foreign(options, model):
    """Raise for an option that only another task's models have."""
    for other, experiment in EXPERIMENTS.items():
        for name in set(experiment.options) - set(EXPERIMENTS[model].options):
            if getattr(options, name) is not None:
                able = [m for m, e in EXPERIMENTS.items() if e is experiment]
                raise expected(f"--{name.replace('_', '-')}", "a model of " + ", ".join(able), model)


def list_presets():
    """A table for each task."""
    names = {experiment: [] for experiment in EXPERIMENTS.values()}
    for name, preset in presets.PRESETS.items():
        names[EXPERIMENTS[preset["model"]]].append(name)
    return "\n\n".join("\n".join(experiment.list_presets(own)) for experiment, own in names.items())


def summary(model):
    """The model as a table: a line for each layer with parameters, and the total."""
    rows, parameters = [], model.parameters
    for name, layer in model.walk():
        if layer.param_specs:
            own = [entry for entry in parameters.table if entry.owner is layer]
            shapes = ", ".join(f"{e.attribute} {'x'.join(map(str, e.shape))}" for e in own)
            rows.append((name, type(layer).__name__, shapes, sum(e.stop - e.start for e in own)))
    wide = max(14, 2 + max(len(name) for name, *_ in rows))
    lines = [f"{'layer':{wide}}{'kind':20}{'parameters':28}{'count':>12}"]
    lines += [f"{name:{wide}}{kind:20}{shapes:28}{count:12,}" for name, kind, shapes, count in rows]
    lines.append(f"{'total':{wide + 48}}{parameters.size:12,}")
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
        config, data = resolve(options)
        if options.out == "":
            raise expected("--out", "the name of a folder", "nothing")
        path = pathlib.Path(options.out) if options.out is not None else runs.free_folder(config["preset"])
        runs.check_free(path)
        run = runs.Run(path, config, data, get_ops(options.device))
        if not options.summary:
            run.experiment.restart()   # finds out what is wrong with other files before anything is written
    print(describe(run))
    print(summary(run.model))
    if options.summary:
        return 0
    announce_missing_extra(run.experiment)
    if options.resume is None:
        run.begin()
    gc.freeze()   # what lives now lives to the end: the collector need not walk through it again and again
    return train_and_evaluate(run, restarted=options.resume is None)


def announce_missing_extra(experiment):
    """Say before a long training that it will not be evaluated."""
    if experiment.missing_extra():
        print(f"nnlite: the run will be trained but not evaluated; {experiment.missing_extra()}", file=sys.stderr)


def refuse_beside_resume(options):
    defaults = parser().parse_args([])
    for name, value in vars(options).items():
        if name not in ("resume", "device", "summary") and value != getattr(defaults, name):
            name = "set" if name == "assignments" else name.replace("_", "-")
            raise expected("--resume", "no other option than --device: the run goes on to its own end", f"--{name}")


def describe(run):
    config, experiment = run.config, run.experiment
    lines = [f"nnlite: {config['model']}, preset {config['preset']}, {config['settings']['iterations']} iterations, "
             f"run {run.path}", f"device: {experiment.ops.device_line()}, {config['dtype']}", *experiment.describe(run)]
    return "\n".join(lines)


def train_and_evaluate(run, *, restarted=False):
    with command.Interrupts() as interrupts:
        try:
            done = fit(run, lambda: interrupts.asked, restarted=restarted)
        except NotFinite as problem:
            remove_leftovers(run.path)
            print(f"nnlite: {explain(run, problem.iteration)}", file=sys.stderr)
            return 1
    if interrupts.asked and done < run.config["settings"]["iterations"]:
        print(f"stopped after {done} iterations, saved; go on with: python -m nnlite.train --resume {run.path}")
        return 130
    best, experiment = run.load_best(), run.experiment
    if experiment.missing_extra() is None:
        print(f"evaluating iteration {best['iteration']} (validation "
              f"{best_words(experiment, best[experiment.criterion])})")
        experiment.evaluate(run)
    else:
        print(f"not evaluated: {experiment.missing_extra()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
