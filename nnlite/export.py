"""Give a trained model away: `python -m nnlite.export RUN FILE.safetensors` writes the best parameters of a run.

The tensors have the names and the layout of PyTorch's models. The metadata say which model it is and, of a classifier,
as JSON:

    classes                  its names
    shape                    [H, W, C] of what the net sees
    normalise                how pixels v, 0 to 255, become its input x (the setting of that name):
                             raw      x = v
                             centred  x = v - 255 mean
                             others   x = (v - 255 mean) / (255 std)
    pixel_mean, pixel_std    mean and std in units of full scale, C numbers each; null where they are not used. With
                             `half` and `imagenet` they are the constants published with pretrained weights, else
                             measured on the training images. Grey images that the net sees in three channels have the
                             one measured number three times.
"""

import argparse
import json
import pathlib
import sys

from . import command, runs, weights
from .errors import expected
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
    count = weights.save(path, run.model, config["model"], about(run.experiment) if "classes" in config else None)
    print(f"{path}: {config['model']} of iteration {best['iteration']}, {count} tensors")
    return 0


def about(experiment):
    """What a user of a classifier has to know beside its weights: {name: JSON}."""
    images = experiment.images
    told = {"classes": experiment.classes, "shape": [*images.size, images.channels], **images.about()}
    return {name: json.dumps(value) for name, value in told.items()}


if __name__ == "__main__":
    sys.exit(main())
