"""Give a trained model away: `python -m nnlite.export RUN FILE.safetensors` writes the best parameters of a run.

The tensors have the names and the layout of PyTorch's models; the metadata say which model it is and, of a classifier,
as JSON: its classes, the shape (H, W, C) of its input, how that is normalised (the setting `normalise`), and mean and
deviation of the training pixels in units of full scale.
"""

import argparse
import json
import pathlib
import sys

from . import command, runs, weights
from .errors import expected
from .experiments.label_images import seen_shape
from .experiments.label_options import without_images


def main(arguments=None):
    return command.run(lambda: export(parser().parse_args(arguments)))


def parser():
    p = argparse.ArgumentParser(prog="python -m nnlite.export",
                                description="Write the best parameters of a run for PyTorch, as safetensors.")
    p.add_argument("run", help="the run folder")
    p.add_argument("file", metavar="FILE.safetensors", help="the file to write")
    p.add_argument("--force", action="store_true", help="replace a file that is there")
    return p


def export(options):
    path = pathlib.Path(options.file)
    if path.suffix != ".safetensors":
        raise expected(options.file or "FILE", "a name that ends in .safetensors", f"'{options.file}'")
    if path.is_dir() or path.exists() and not options.force:
        raise expected(path, "a name that is free, or --force", "a folder" if path.is_dir() else "a file")
    config = runs.read_config(options.run)
    run = runs.open_run(options.run, "cpu", without_images if "classes" in config else None)
    best = run.load_best()
    count = weights.save(path, run.model, config["model"], about(config, run) if "classes" in config else None)
    print(f"{path}: {config['model']} of iteration {best['iteration']}, {count} tensors")
    return 0


def about(config, run):
    """What a user of a classifier has to know beside its weights: {name: JSON}."""
    settings = run.experiment.settings
    told = {"classes": config["classes"], "shape": seen_shape(settings, config["shape"]),
            "normalise": settings["normalise"], "pixel_mean": config["pixel_mean"], "pixel_std": config["pixel_std"]}
    return {name: json.dumps(value) for name, value in told.items()}


if __name__ == "__main__":
    sys.exit(main())
