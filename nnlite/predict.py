"""Classify pictures with a trained run: `python -m nnlite.predict RUN a.png b.jpg` or `... RUN faces.csv`.

One line a picture: its name (of a CSV with the line), the class, its probability, and the runner-up.
"""

import argparse
import csv
import pathlib
import re
import sys

import numpy as np

from . import command, plots, plots_labels, report_labels, runs
from .data import fer2013, image_folder
from .errors import expected
from .experiments.label_options import read_classifier, without_images
from .files import replacing
from .ops import NAMES
from .report import write
from .saliency import saliency

CSV_ENDINGS = ".csv", ".csv.gz", ".tar.gz", ".tgz"
MOST_MAPS = 100   # saliency pictures drawn


def main(arguments=None):
    options = parser().parse_args(arguments)
    return command.run(lambda: predict(options))


def parser():
    p = argparse.ArgumentParser(prog="python -m nnlite.predict", description="Classify pictures with a trained run.")
    p.add_argument("run", help="the run folder of a classifier")
    p.add_argument("files", nargs="+", metavar="FILE",
                   help="image files, or CSV files with a column `pixels` as FER2013 has it (also .gz)")
    p.add_argument("--resize", action="store_true", help="resize image files to the size of the run's training images")
    p.add_argument("--csv", metavar="OUT", help="write the probabilities of all classes to this CSV file")
    p.add_argument("--saliency", metavar="DIR", help="draw each picture's saliency map into this folder (at most "
                                                     f"{MOST_MAPS})")
    p.add_argument("--device", default="auto", choices=NAMES)
    return p


def predict(options):
    if options.saliency is not None and report_labels.missing_extra():
        raise expected("--saliency", "matplotlib", 'none: pip install -e ".[report]" brings it')
    for name in ("csv", "saliency"):
        if getattr(options, name) == "":
            raise expected(f"--{name}", "a name", "nothing")
    if options.csv is not None and not pathlib.Path(options.csv).absolute().parent.is_dir():
        raise expected("--csv", "a file in a folder that exists", options.csv)
    read_classifier(options.run)
    run = runs.open_run(options.run, options.device, without_images)
    run.load_best()
    names, images = read(options.files, run.experiment.data.images.shape[1:], options.resize)
    probabilities = run.experiment.probabilities(images)
    for line in lines(names, probabilities, run.experiment.classes):
        print(line)
    if options.csv is not None:
        write_csv(options.csv, names, probabilities, run.experiment.classes)
    if options.saliency is not None:
        draw(run.experiment, names, images, probabilities, pathlib.Path(options.saliency))
    return 0


def read(files, shape, resize):
    """(names, images (n, H, W, C) uint8) of image and CSV files, for a model that sees images of `shape` (H, W, C).

    Images in colour become grey where the model sees grey, which is said once on standard error. Raises NnliteError,
    one sentence that names the file: not there, no image, or of another size where resize is False.
    """
    names, parts, coloured = [], [], []
    for path in map(pathlib.Path, files):
        if not path.is_file():
            raise expected(path, "an image or CSV file", "a folder" if path.is_dir() else "none")
        if path.name.lower().endswith(CSV_ENDINGS):
            images, numbers = fer2013.read_pictures(path)
            if images.shape[1:] != shape:
                raise expected(path, f"images {shape} (height, width, channels), as the run was trained on",
                               images.shape[1:])
            names += [f"{path}:{number}" for number in numbers]
            parts.append(images)
        else:
            image, in_colour = _read_image(path, shape, resize)
            names.append(str(path))
            parts.append(image[None])
            coloured += [path] * in_colour
    if coloured:
        more = f" and {len(coloured) - 1} more" if len(coloured) > 1 else ""
        print(f"nnlite: made grey, as the model sees: {coloured[0]}{more}, stored in colour", file=sys.stderr)
    return names, np.concatenate(parts)


def _read_image(path, shape, resize):
    """(image of `shape`, whether a colour image became grey)."""
    (height, width), grey = image_folder.header(path)
    if (height, width) != shape[:2] and not resize:
        raise expected(path, f"an image of {shape[0]} x {shape[1]} (height x width), or --resize",
                       f"{height} x {width}")
    image = image_folder.pixels(path, "L" if shape[2] == 1 else "RGB", shape[:2])
    return image.reshape(shape), shape[2] == 1 and not grey


def lines(names, probabilities, classes):
    """A line a picture: name, class and probability, the runner-up and its probability, in columns."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    first, wide = max(map(len, names)), max(map(len, classes))
    for name, row, best in zip(names, probabilities, order):
        yield "  ".join([name.ljust(first), *(f"{classes[k]:{wide}} {row[k]:.3f}" for k in best)])


def write_csv(path, names, probabilities, classes):
    """Writes `picture,class,` and a column of probabilities a class; the file appears whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["picture", "class", *classes])
        for name, row in zip(names, probabilities):
            writer.writerow([name, classes[row.argmax()], *(f"{p:.6g}" for p in row)])


def draw(experiment, names, images, probabilities, folder):
    """Writes 001-NAME.png, …: the first MOST_MAPS pictures beside the saliency map of the class predicted."""
    if len(names) > MOST_MAPS:
        print(f"nnlite: saliency maps of the first {MOST_MAPS} of {len(names)} pictures", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise expected(folder, "a folder that can be made", error.strerror or str(error)) from error
    some, best = images[:MOST_MAPS], probabilities[:MOST_MAPS].argmax(axis=1)
    maps = saliency(experiment.model, experiment.normalise(some), best)
    for i, (name, image, heat, label) in enumerate(zip(names, some, maps, best)):
        name = pathlib.Path(name).name
        caption = f"{name}: {experiment.classes[label]} {100 * probabilities[i, label]:.0f} %"
        figure = plots_labels.one_saliency(report_labels.picture(image), heat, caption)
        stem = re.sub(r"[^\w.-]", "-", re.sub(r"\.\w+$", "", name))
        write(folder / f"{i + 1:03d}-{stem}.png", plots.png(figure))


if __name__ == "__main__":
    sys.exit(main())
