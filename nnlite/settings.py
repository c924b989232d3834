"""Settings of a run: a preset, over it what `--set key=value` says, fitted to the data."""

import ast
import difflib
import math

from .errors import NnliteError, expected
from .optim import OPTIMISERS
from .presets import LATER, PRESETS

# Every setting of a task: its type and what it must satisfy, in words and as a test.
POSITIVE = ("a finite number above 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = ("a finite number of at least 0", lambda v: 0 <= v < math.inf)
LARGEST = 100_000   # a layer or a number of samples beyond that is a slip of the hand
SIZES = (f"a list of sizes, each from 1 to {LARGEST}",
         lambda v: len(v) > 0 and all(type(n) is int and 1 <= n <= LARGEST for n in v))
SIZE = (f"a whole number from 1 to {LARGEST}", lambda v: 1 <= v <= LARGEST)
COUNT = ("a whole number of at least 1", lambda v: v >= 1)
PROBABILITY = ("a probability above 0 and at most 1", lambda v: 0 < v <= 1)
SHARE = ("a share from 0 to below 1", lambda v: 0 <= v < 1)
SCALE = ("a factor above 0 and at most 10", lambda v: 0 < v <= 10)   # of a model's width or depth
YES_OR_NO = ("True or False", lambda v: True)
LARGEST_IMAGE = 4096   # pixels along an axis


def one_of(*names):
    return " or ".join(repr(name) for name in names), lambda v: v in names


FACES = {
    "encoder": (list, *SIZES),
    "decoder": (list, *SIZES),
    "reconstruction_variance": (float, *POSITIVE),
    "topological_variance": (float, *POSITIVE),
    "anneal": (int, "a number of iterations, 0 for none", lambda v: v >= 0),
    "anneal_mode": (str, *one_of("kl", "prior")),
    "learning_rate": (float, *POSITIVE),
    "keep_prob": (float, *PROBABILITY),
    "batch_size": (int, *COUNT),
    "triplet_batch": (int, *COUNT),
    "samples": (int, *SIZE),
    "triplet_samples": (int, *SIZE),
    "iterations": (int, *COUNT),
    "validate_every": (int, *COUNT),
    "checkpoint_every": (int, *COUNT),
}
LABELS = {
    "init_scale": (float, *POSITIVE),                                          # times the layers' own first weights
    "optimiser": (str, "one of " + ", ".join(OPTIMISERS), lambda v: v in OPTIMISERS),
    "learning_rate": (float, *POSITIVE),
    "momentum": (float, "a number from 0 to below 1", lambda v: 0 <= v < 1),   # of sgd
    "l2": (float, *NOT_NEGATIVE),                                              # of weights, not of biases and norms
    "lr_decay": (float, "a factor above 0 and at most 1", lambda v: 0 < v <= 1),   # each epoch
    "inverse_decay": (float, *NOT_NEGATIVE),                                       # rate / (1 + decay iteration)
    "batch_size": (int, *COUNT),
    "epochs": (int, *COUNT),
    "patience": (int, "a number of epochs, 0 for no early stopping", lambda v: v >= 0),
    "f1_decay": (float, "a factor above 0 and at most 1", lambda v: 0 < v <= 1),   # after a fall of the validation F1
    "watch": (str, *one_of("accuracy", "loss", "f1")),       # the validation value that picks the best, ends the run
    "micro_batch": (int, "a number of images, 0 for as many as the memory holds", lambda v: v >= 0),
    "freeze": (list, "a list of patterns for names of parameters, as blocks.*",
               lambda v: all(type(pattern) is str and pattern for pattern in v)),
    "split": (list, "[] or [training, validation, test], three shares that add up to 1, the last two below 0.5",
              lambda v: not v or (len(v) == 3 and all(type(x) is float and 0 < x < 1 for x in v) and
                                  max(v[1:]) < 0.5 and math.isclose(sum(v), 1))),   # of all images; []: as they come
    "size": (list, f"[] or [height, width], each from 1 to {LARGEST_IMAGE}",
             lambda v: len(v) in (0, 2) and all(type(n) is int and 1 <= n <= LARGEST_IMAGE for n in v)),
    "channels": (int, "0 for those of the images, or 3", lambda v: v in (0, 3)),   # grey images are repeated
    "normalise": (str, *one_of("standard", "centred", "raw", "half", "imagenet")),
    "flip": (bool, *YES_OR_NO),   # drawn for each step; beside a warp (size, rotate to brightness) for each epoch
    "move": (int, "a number of pixels, 0 for none", lambda v: 0 <= v <= LARGEST),
    "rotate": (float, "degrees from 0 to 180", lambda v: 0 <= v <= 180),
    "shift": (float, *SHARE),                                # of height and width
    "zoom": (float, *SHARE),
    "contrast": (float, *SHARE),
    "brightness": (float, *SHARE),                           # of full scale
    "class_weights": (str, *one_of("none", "balanced")),
    "smoothing": (float, "a number from 0 to below 1", lambda v: 0 <= v < 1),
    "alpha": (float, "a number from 0 to 1", lambda v: 0 <= v <= 1),               # the labels' part beside a teacher
    "subset": (list, "[] or [training images, validation images]",
               lambda v: len(v) in (0, 2) and all(type(n) is int and n >= 1 for n in v)),
    "iterations": (int, *COUNT),
    "validate_every": (int, *COUNT),
    "checkpoint_every": (int, *COUNT),
}
# What a classifier's constructor takes beside shape and classes.
SHAPES = {
    "mlp": {"hidden": (list, *SIZES), "keep_prob": (float, *PROBABILITY)},
    "cnn3": {"filters": (int, *SIZE), "hidden": (int, *SIZE)},
    "cnn4": {"filters": (list, *SIZES), "hidden": (int, *SIZE), "batch_norm": (bool, *YES_OR_NO),
             "keep_prob": (float, *PROBABILITY)},
    "cnn5": {"hidden": (list, *SIZES), "keep_prob": (float, *PROBABILITY)},
    **dict.fromkeys(("effnetv2s", "effnetv2s-small"), {
        "width": (float, *SCALE), "depth": (float, *SCALE), "top_filters": (int, *SIZE),
        "keep_prob": (float, *PROBABILITY)}),
    **dict.fromkeys(("resnet50", "resnet-small"), {}),
    **dict.fromkeys(("vit-b16", "vit-tiny"), {"recompute": (bool, *YES_OR_NO)}),
}
# Model -> its settings.
KNOWN = {**dict.fromkeys(("vae1", "vae2", "vae3"), FACES),
         **{model: {**shape, **LABELS} for model, shape in SHAPES.items()}}


def nearest(name, names):
    """' (nearest: ...)' for an error message, or nothing."""
    close = difflib.get_close_matches(name, names, 1, 0.4)
    return f" (nearest: {close[0]})" if close else ""


def choose_preset(name, model):
    """A copy of the settings of the preset `name`.

    Raises NnliteError for an unknown name, or one of another model.
    """
    if name not in PRESETS:
        raise expected("--preset", "a name that --list-presets prints", f"'{name}'{nearest(name, PRESETS)}")
    preset = PRESETS[name]
    if preset["model"] != model:
        raise expected("--preset", f"a preset of {model}", f"'{name}' of {preset['model']}")
    return {key: list(value) if isinstance(value, list) else value for key, value in preset.items()}


def complete(model, settings, **as_it_was):
    """settings with those that their run, an older one, did not have yet: as_it_was, else those of LATER."""
    return {**{key: value for key, value in {**LATER, **as_it_was}.items() if key in KNOWN[model]}, **settings}


def apply(model, settings, assignments):
    """settings with the `key=value` strings of assignments put over it; each is checked. Returns the keys set."""
    known, keys = KNOWN[model], []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise expected("--set", "key=value", f"'{assignment}'")
        if key not in known:
            raise expected("--set", f"a known setting of {model}", f"'{key}'{nearest(key, known)}")
        settings[key] = check(model, key, parse(text), f"--set {key}")
        keys.append(key)
    return keys


def parse(text):
    """What the text of a setting means: a Python literal, or the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError):
        return text.strip()


def check(model, key, value, where):
    """value in the type of the model's setting, or NnliteError, which begins with `where`."""
    kind, words, test = KNOWN[model][key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is list and isinstance(value, tuple):
        value = list(value)
    if kind is list and isinstance(value, str) and test(value.split(",")):
        value = value.split(",")   # freeze=stem.*,stage1.*
    if type(value) is not kind or not test(value):
        raise expected(where, words, repr(value))
    return value


def fit_to_data(settings, features, given):
    """Presets are written for faces of 249 numbers; where the data has another D, their first and last sizes follow.

    Sizes that the user gave (keys in given) are not touched: they have to fit.
    """
    K = settings["encoder"][-1]
    conditional = settings["model"] != "vae1"
    if "encoder" not in given:
        settings["encoder"][0] = features * (2 if conditional else 1)
    if "decoder" not in given:
        settings["decoder"][0] = K + (features if conditional else 0)
        settings["decoder"][-1] = features
    if settings["decoder"][-1] != features:
        raise NnliteError(f"--set decoder: expected {features} numbers out, as the data has, got "
                          f"{settings['decoder'][-1]}")
