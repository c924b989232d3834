"""Small runs for the tests of the commands: data, options, and what a run folder holds."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import h5py
import numpy as np

import nnlite.ops.cpu  # noqa: F401  BLAS on one thread in every process: the order of sums depends on it
from nnlite import report, report_labels, runs, train
from nnlite.data import images, landmarks, synthetic
from nnlite.experiments import FaceExperiment, LabelExperiment
from nnlite.ops import get_ops

SMALL = {"batch_size": 16, "triplet_batch": 4, "samples": 2, "triplet_samples": 2}
SIZES = {"vae1": "encoder=[249,12,4] decoder=[4,10,249]", "vae2": "encoder=[498,12,10,4] decoder=[253,10,12,249]"}
SIZES["vae3"] = SIZES["vae2"]


def posed_file(path, persons=5, points=83, change=None):
    """Writes a posed set of 25 faces a person; change: what to do to the open file afterwards."""
    faces = synthetic.posed(persons=persons)
    faces = dataclasses.replace(faces, points=faces.points[:, :points])
    landmarks.write(path, faces)
    if change:
        with h5py.File(path, "r+") as file:
            change(file)
    return path


def options(data, out=None, model="vae3", device="reference", **settings):
    """The command line of a small run: ['--model', ...]; of a setting given twice the last one counts."""
    words = ["--model", model, "--data", str(data), "--device", device] + (["--out", str(out)] if out else [])
    assignments = SIZES[model].split() + [f"{key}={value}" for key, value in {**SMALL, **settings}.items()]
    return words + [word for assignment in assignments for word in ("--set", assignment)]


def make_run(data, out, **settings):
    """A Run that is begun, as the command would."""
    return begun(options(data, out, **settings), out)


def begun(words, out):
    run = runs.Run(out, *train.resolve(train.parser().parse_args([str(word) for word in words])), get_ops("reference"))
    run.begin()
    return run


# -- classifiers -------------------------------------------------------------------------------------------------------

NET = {"mlp": {"hidden": [9, 8]}, "cnn3": {"filters": 3, "hidden": 9}, "cnn4": {"filters": [4, 5], "hidden": 9},
       "cnn5": {"hidden": [9, 8]}, "vit-tiny": {}, "resnet-small": {},
       "effnetv2s-small": {"width": 0.2, "depth": 0.2, "top_filters": 8}}
# pixels a side, of which the poolings leave something, in whole patches
SIDE = {"mlp": 8, "cnn3": 8, "cnn4": 8, "cnn5": 16, "vit-tiny": 12, "resnet-small": 16, "effnetv2s-small": 32}


def image_set(classes=("round", "square", "cross"), n=60, side=8, channels=1, seed=0):
    """Images in which each class has a bright column of its own, in noise: 3/5 train, 1/5 validation, 1/5 test."""
    chance = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    pixels = chance.integers(0, 180, (n, side, side, channels))
    pixels[np.arange(n), :, labels] += 70
    rows, split, first = chance.permutation(n), {}, 0
    for part, count in (("train", n - 2 * (n // 5)), ("validation", n // 5), ("test", n // 5)):
        split[part] = np.sort(rows[first:first + count]).astype(np.int32)
        first += count
    return images.ImageSet(pixels.astype(np.uint8), labels.astype(np.int32), tuple(classes), split, "images of a test")


def image_file(path, **named):
    images.write(path, image_set(**named))
    return path


def label_options(data, out=None, model="cnn4", device="reference", extra=(), **settings):
    """The command line of a small run of a classifier."""
    words = ["--model", model, "--data", str(data), "--device", device] + (["--out", str(out)] if out else [])
    assignments = [f"{key}={value}" for key, value in {**NET[model], "batch_size": 10, **settings}.items()]
    return words + [word for assignment in assignments for word in ("--set", assignment)] + [*map(str, extra)]


# -- what a run leaves -------------------------------------------------------------------------------------------------


def snapshot(folder):
    """Path -> bytes of every file below a folder, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(Path(folder).rglob("*"))}


def refused(arguments, folder, capsys, *words, command):
    """The command ends with 2 and one sentence that has the words; everything in the folder stays as it was."""
    before = snapshot(folder)
    code = command([str(word) for word in arguments])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("nnlite: ") and error.count("\n") == 1, error
    assert ": expected " in error and ", got " in error, error
    for word in words:
        assert str(word) in error, error
    assert snapshot(folder) == before
    return error


def metrics(run):
    """The objects of metrics.jsonl."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def contents(path):
    """Name -> bytes of every dataset and attribute of an HDF5 file."""
    found = {}
    with h5py.File(path, "r") as file:
        def visit(name, item):
            found.update({f"{name}@{key}": np.asarray(value).tolist() for key, value in item.attrs.items()})
            if isinstance(item, h5py.Dataset):
                found[name] = (item.shape, str(item.dtype), item[()].tobytes())
        visit("", file)
        file.visititems(visit)
    return found


def outcome(run):
    """Everything of a run that must not depend on when it was stopped; the clock's readings are left out."""
    lines = [{key: value for key, value in line.items() if key != "iterations_per_second"} for line in metrics(run)]
    return contents(Path(run) / "last.h5"), contents(Path(run) / "best.h5"), lines


# -- a process of its own, to be killed -------------------------------------------------------------------------------


def work(arguments, output, kill_at):
    """Runs the command in this process, its output in a file, without the evaluation.

    kill_at: (point, n): SIGKILL where that point is passed for the n-th time; None: not.
    """
    stream = open(output, "w", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    report.evaluate = report_labels.evaluate = lambda run: print("evaluated")
    if kill_at:
        place, number = kill_at
        POINTS[place](Countdown(number))
    sys.exit(train.main(arguments))


class Countdown:
    def __init__(self, number):
        self.left = number

    def __call__(self):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def _around(owner, name, before=None, after=None):
    function = getattr(owner, name)

    def wrapped(*args, **keywords):
        if before:
            before()
        result = function(*args, **keywords)
        if after:
            after()
        return result
    setattr(owner, name, wrapped)


def _half_a_line(countdown):
    def add_metrics(run, values):
        with open(run.path / "metrics.jsonl", "a") as file:
            line = json.dumps(values) + "\n"
            file.write(line[:len(line) // 2])
            file.flush()
            countdown()
            file.write(line[len(line) // 2:])
    runs.Run.add_metrics = add_metrics


def _half_a_file(countdown):
    """Before h5py has closed the file: what lies there is no HDF5 yet, or half of one."""
    _around(h5py.Group, "__setitem__", after=countdown)


def _step(**when):
    for experiment in (FaceExperiment, LabelExperiment):
        _around(experiment, "step", **when)


POINTS = {
    "before a step": lambda countdown: _step(before=countdown),
    "behind a step": lambda countdown: _step(after=countdown),
    "before renaming": lambda countdown: _around(os, "replace", before=countdown),
    "behind renaming": lambda countdown: _around(os, "replace", after=countdown),
    "half a file": _half_a_file,
    "half a line": _half_a_line,
    "behind best": lambda countdown: _around(runs.Run, "save_best", after=countdown),
    "behind metrics": lambda countdown: _around(runs.Run, "add_metrics", after=countdown),
    "behind last": lambda countdown: _around(runs.Run, "save_last", after=countdown),
}


@contextlib.contextmanager
def quiet():
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
