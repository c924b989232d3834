"""Command lines and config.json of the classifiers: which images and classes, which settings, which other runs."""

import math
from dataclasses import replace

import numpy as np

from .. import presets, settings as settings_
from ..data import images, synthetic_images
from ..errors import expected
from .options import QUICK, check_batch_size, check_count, whole_path

BUILT_IN = {"built-in faces": synthetic_images.faces}
BUILT_IN_EPOCHS = 8           # without a data file: about a minute on two cores
CIFAR = (32, 32, 3)
LARGEST = 4096                # pixels along an axis; more is a slip of the hand


def load(config):
    """The ImageSet that a run was begun with, labels counted in the run's classes."""
    image_set = load_images(config["data"], tuple(config["shape"][:2]) if config["resized"] else None)
    if len(image_set.images) != config["images"]:
        raise expected(config["data"], f"the {config['images']} images that the run was begun with",
                       len(image_set.images))
    if image_set.images.shape[1:] != tuple(config["shape"]):
        raise expected(config["data"], f"images {tuple(config['shape'])}, as the run was begun with",
                       image_set.images.shape[1:])
    return _prepared(image_set, config["classes"], config["settings"]["subset"], config["seed"])


def load_images(data, size):
    """The ImageSet of a file or folder, images resized to size (H, W) unless that is None, or of a name in BUILT_IN."""
    if data in BUILT_IN and size is not None:
        raise expected("--resize", "a folder of images for each class", data)
    return BUILT_IN[data]() if data in BUILT_IN else images.read(data, size=size)


def without_images(config):
    """The ImageSet of a run that is to judge other images: its classes and the images' shape, but no images."""
    none = np.zeros(0, np.int32)
    return images.ImageSet(np.zeros((0, *config["shape"]), np.uint8), none, tuple(config["classes"]),
                           dict.fromkeys(("train", "validation", "test"), none), config["data"])


def size_of(text):
    """(H, W) of "48x64"; None for None."""
    numbers = [] if text is None else text.lower().split("x")
    if text is not None and not (len(numbers) == 2 and all(n.isdecimal() and 1 <= int(n) <= LARGEST for n in numbers)):
        raise expected("--resize", f"height x width from 1 to {LARGEST} pixels, as 48x48", f"'{text}'")
    return tuple(map(int, numbers)) or None


def _prepared(image_set, classes, subset, seed):
    """The set with labels counted in classes, and with few images if subset says so."""
    image_set = in_classes(image_set, classes)
    return images.take(image_set, *subset, seed) if subset else image_set


def in_classes(image_set, classes):
    """The same images with labels counted in `classes`; NnliteError where one of the set's is not among them."""
    for name in image_set.classes:
        if name not in classes:
            raise expected(image_set.source, "images of the classes " + ", ".join(classes), f"'{name}'")
    numbers = np.array([classes.index(name) for name in image_set.classes], np.int32)
    return replace(image_set, labels=numbers[image_set.labels], classes=tuple(classes))


def resolve(options, model):
    """(preset, what config.json says about the data, settings, ImageSet) of a command line; NnliteError for what does
    not fit together."""
    data = "built-in faces" if options.data is None else options.data
    wanted = presets.PRESETS.get(options.preset, {})
    if options.data is None and wanted.get("kind") == "cifar":
        raise expected("--data", f"the CIFAR-10 batches that preset {options.preset} is for", "none")
    image_set = load_images(data, size_of(options.resize))
    kind = "cifar" if image_set.images.shape[1:] == CIFAR else "faces"
    preset = options.preset or presets.BEST.get((model, kind)) or presets.BEST[model, "faces"]
    chosen = settings_.choose_preset(preset, model)
    assigned = {}
    settings_.apply(model, assigned, options.assignments)
    chosen.update(assigned)
    if chosen.pop("distilled", False) and options.teacher is None:
        raise expected("--teacher", f"the run whose probabilities {preset} learns from", "none")
    classes = _classes(options, model, image_set)
    for other in filter(None, (options.init_from, options.teacher)):
        check_shape(other, image_set)
    image_set = _prepared(image_set, classes, chosen["subset"], options.seed)
    check_batch_size(chosen, len(image_set.split["train"]), "images")
    _set_length(chosen, assigned, options, data in BUILT_IN, len(image_set.split["train"]))
    task = {"data": whole_path(data, BUILT_IN), "images": len(image_set.images),
            "shape": list(image_set.images.shape[1:]), "resized": options.resize is not None, "classes": classes,
            **_pixels(chosen, image_set), "init_from": whole_path(options.init_from), "add_class": options.add_class,
            "teacher": whole_path(options.teacher)}
    return preset, task, chosen, image_set


def check_shape(path, image_set):
    """Raise unless the run at path is one of images of this shape."""
    shape = tuple(read_classifier(path)["shape"])
    if shape != image_set.images.shape[1:]:
        raise expected(path, f"a run of images {image_set.images.shape[1:]} (height, width, channels)", shape)


def _pixels(settings, image_set):
    """Mean and deviation of the training pixels, kept so that a run can judge images without those it learnt from."""
    if settings["normalise"] == "raw":
        return {"pixel_mean": None, "pixel_std": None}
    mean, std = images.statistics(image_set.images, image_set.split["train"], image_set.source)
    return {"pixel_mean": mean.tolist(), "pixel_std": std.tolist()}


def _classes(options, model, image_set):
    """The names of the run's classes: the data's, or those of the run that it starts from, and --add-class."""
    if options.init_from is None:
        if options.add_class is not None:
            raise expected("--add-class", "--init-from RUN, whose classes it is added to", "none")
        return list(image_set.classes)
    old = read_classifier(options.init_from, model)["classes"]
    if options.add_class is None:
        return old
    if options.add_class in old:
        raise expected("--add-class", f"a class that {options.init_from} does not have", f"'{options.add_class}'")
    if options.add_class not in image_set.classes:
        raise expected("--add-class", "a class of the data: " + ", ".join(image_set.classes), f"'{options.add_class}'")
    return [*old, options.add_class]


def read_classifier(path, model=None):
    """The config of the run at path, which must be one of a classifier, or of that model."""
    from ..runs import read_config   # here: runs builds on the experiments
    config = read_config(path)
    if "classes" not in config or model not in (None, config["model"]):
        raise expected(path, f"a run of {model or 'a classifier'}", f"one of {config['model']}")
    return config


def _set_length(chosen, assigned, options, built_in, rows):
    """Epochs become iterations, counted on `rows` training images; an epoch ends with validation and checkpoint."""
    epoch = steps_per_epoch(chosen, rows)
    epochs = check_count(assigned.get("epochs", options.epochs), "--epochs")
    iterations = check_count(assigned.get("iterations", options.iterations), "--iterations")
    if epochs is not None and iterations is not None:
        raise expected("--epochs", "epochs or iterations", "both")
    if epochs is None and iterations is None and options.quick:
        iterations = QUICK["iterations"]
    if epochs is None and iterations is None and built_in:
        epochs = BUILT_IN_EPOCHS
    if iterations is None:
        iterations = (epochs or chosen["epochs"]) * epoch
    every = min(epoch, iterations)
    chosen.update(QUICK if options.quick else {"validate_every": every, "checkpoint_every": every})
    chosen.update(assigned)
    chosen.update(epochs=math.ceil(iterations / epoch), iterations=iterations)


def steps_per_epoch(settings, rows):
    return math.ceil(rows / settings["batch_size"])
