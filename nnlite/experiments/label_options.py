"""Command lines and config.json of the classifiers: which images and classes, which settings, which other runs."""

import math
import sys
from dataclasses import replace

import numpy as np

from .. import presets, settings as settings_
from ..data import images, synthetic_images
from ..data.images import in_classes
from ..errors import expected
from ..settings import LARGEST_IMAGE
from .label_images import statistics
from .options import QUICK, check_batch_size, check_count, sizes, whole_path

BUILT_IN = {"built-in faces": synthetic_images.faces}
BUILT_IN_EPOCHS = 8           # without a data file: about a minute on two cores
CIFAR = (32, 32, 3)


def load(config):
    """The ImageSet that a run was begun with, labels counted in the run's classes."""
    image_set = load_images(config["data"], tuple(config["shape"][:2]) if config["resized"] else None,
                            config["skip_broken"])
    if len(image_set.images) != config["images"]:
        raise expected(config["data"], f"the {config['images']} images that the run was begun with",
                       len(image_set.images))
    if image_set.images.shape[1:] != tuple(config["shape"]):
        raise expected(config["data"], f"images {tuple(config['shape'])}, as the run was begun with",
                       image_set.images.shape[1:])
    return _prepared(image_set, config["classes"], config["settings"], config["seed"])


def load_images(data, size, skip_broken):
    """The ImageSet of a file or folder, or of a name in BUILT_IN; size: (H, W) to resize images to, or None."""
    if data not in BUILT_IN:
        return images.read(data, size=size, skip_broken=skip_broken)
    if size is not None:
        raise expected("--resize", "a folder of images for each class", data)
    if skip_broken:
        raise expected("--skip-broken", "a folder of image files", data)
    return BUILT_IN[data]()


def load_others(path, shape, skip_broken):
    """The ImageSet at path, as a run of images of this shape (H, W, C) takes them: image files are resized; colour
    becomes grey, or grey three equal channels, which is said on standard error."""
    H, W, C = shape
    found = images.read(path, size=(H, W) if images.has_files(path) else None, skip_broken=skip_broken)
    h, w, c = found.images.shape[1:]
    if (h, w) != (H, W):
        raise expected(path, f"images of {H} x {W} (height x width), as the run's are", f"{h} x {w}")
    if c != C:
        what = "colour made grey" if C == 1 else "grey repeated in three channels"
        print(f"nnlite: {path}: {what}, as the run's images are", file=sys.stderr)
    return replace(found, images=images.in_channels(found.images, C))


def without_images(config):
    """The ImageSet of a run that is to judge other images: its classes and the images' shape, but no images."""
    none = np.zeros(0, np.int32)
    return images.ImageSet(np.zeros((0, *config["shape"]), np.uint8), none, tuple(config["classes"]),
                           dict.fromkeys(("train", "validation", "test"), none), config["data"])


def size_of(text):
    """(H, W) of "48x64"; None for None."""
    numbers = [] if text is None else text.lower().split("x")
    fits = [n.isdecimal() and 1 <= int(n) <= LARGEST_IMAGE for n in numbers]
    if text is not None and fits != [True, True]:
        raise expected("--resize", f"height x width from 1 to {LARGEST_IMAGE} pixels, as 48x48", f"'{text}'")
    return tuple(map(int, numbers)) or None


def _prepared(image_set, classes, settings, seed):
    """The set with labels counted in classes, in other parts and with few images if the settings say so."""
    image_set = in_classes(image_set, classes)
    if settings["split"]:
        image_set = images.split_anew(image_set, *settings["split"][1:], seed)
    return images.take(image_set, *settings["subset"], seed) if settings["subset"] else image_set


def resolve(options, model):
    """(preset, what config.json says about the data, settings, ImageSet) of a command line; NnliteError for what does
    not fit together."""
    data = "built-in faces" if options.data is None else options.data
    wanted = presets.PRESETS.get(options.preset, {})
    if options.data is None and wanted.get("kind") == "cifar":
        raise expected("--data", f"the CIFAR-10 batches that preset {options.preset} is for", "none")
    image_set = load_images(data, size_of(options.resize), bool(options.skip_broken))
    kind = "cifar" if image_set.images.shape[1:] == CIFAR else "faces"
    preset = options.preset or presets.BEST.get((model, kind)) or presets.BEST[model, "faces"]
    chosen = settings_.choose_preset(preset, model)
    assigned = {}
    settings_.apply(model, assigned, options.assignments)
    chosen.update(assigned)
    if chosen.pop("distilled", False) and options.teacher is None:
        raise expected("--teacher", f"the run whose probabilities {preset} learns from", "none")
    if "alpha" in assigned and options.teacher is None:
        raise expected("--set alpha", "--teacher RUN, beside which it is the labels' weight", "none")
    if options.weights is not None and options.init_from is not None:
        raise expected("--weights", "a file or --init-from RUN to begin with", "both")
    classes = _classes(options, model, image_set)
    for other in filter(None, (options.init_from, options.teacher)):
        check_shape(other, image_set)
    image_set = _prepared(image_set, classes, chosen, options.seed)
    check_batch_size(chosen, len(image_set.split["train"]), "images")
    _set_length(chosen, assigned, options, data in BUILT_IN, len(image_set.split["train"]))
    task = {"data": whole_path(data, BUILT_IN), "images": len(image_set.images),
            "shape": list(image_set.images.shape[1:]), "resized": options.resize is not None, "classes": classes,
            **_pixels(chosen, image_set), "init_from": whole_path(options.init_from), "add_class": options.add_class,
            "teacher": whole_path(options.teacher), "weights": whole_path(options.weights),
            "skip_broken": bool(options.skip_broken)}
    return preset, task, chosen, image_set


def check_shape(path, image_set):
    """Raise unless the run at path is one of images of this shape."""
    shape = tuple(read_classifier(path)["shape"])
    if shape != image_set.images.shape[1:]:
        raise expected(path, f"a run of images {image_set.images.shape[1:]} (height, width, channels)", shape)


def _pixels(settings, image_set):
    """Mean and deviation of the pixels, kept so that a run can judge images without those it learnt from."""
    found = [part if part is None else list(map(float, part)) for part in statistics(settings["normalise"], image_set)]
    return {"pixel_mean": found[0], "pixel_std": found[1]}


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
        epochs = min(BUILT_IN_EPOCHS, chosen["epochs"])
    if iterations is None:
        iterations = (epochs or chosen["epochs"]) * epoch
    every = min(epoch, iterations)
    chosen.update(QUICK if options.quick else {"validate_every": every, "checkpoint_every": every})
    chosen.update(assigned)
    chosen.update(epochs=math.ceil(iterations / epoch), iterations=iterations)


def steps_per_epoch(settings, rows):
    return math.ceil(rows / settings["batch_size"])


SHOWN = "train", "validation", "test", "f1", "production"   # of the published figures


def list_presets(names):
    """The presets of these names as a table: a head, then a line each."""
    wide = max(map(len, names)) + 2
    yield (f"{'preset':{wide}}{'model':17}{'data':7}{'sizes':19}{'optimiser':9}{'rate':>10}{'decay':>9}{'L2':>9}"
           f"{'batch':>6}{'epochs':>7}  {'pixels':10}{'varied':8}published")
    for name in names:
        p = presets.PRESETS[name]
        decay = f"{p['inverse_decay']:g}/it" if p["inverse_decay"] else f"{p['lr_decay']:g}/ep"
        published = ", ".join(f"{part} {presets.PUBLISHED[name][part]:.3f}" for part in SHOWN
                              if part in presets.PUBLISHED[name])
        yield (f"{name:{wide}}{p['model']:17}{p['kind']:7}{_sizes(p):19}{p['optimiser']:9}{p['learning_rate']:10g}"
               f"{decay:>9}{p['l2']:9g}{p['batch_size']:6}{p['epochs']:7}  {p['normalise']:10}"
               f"{'yes' if p['rotate'] or p['flip'] else 'no':8}{published}").rstrip()


def _sizes(preset):
    if "width" in preset:
        return f"w{preset['width']:g} d{preset['depth']:g} top{preset['top_filters']}"
    return sizes(preset.get("filters", []), preset.get("hidden", [])) or "-"
