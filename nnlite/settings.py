"""Settings of a run: a preset, over it what `--set key=value` says, fitted to the data."""

import ast
import difflib
import math

from .errors import NnliteError, expected
from .presets import BEST, PRESETS

# Every setting: its type and what it must satisfy, in words and as a test.
POSITIVE = ("a finite number above 0", lambda v: 0 < v < math.inf)
LARGEST = 100_000   # a layer or a number of samples beyond that is a slip of the hand
SIZES = (f"a list of sizes, each from 1 to {LARGEST}",
         lambda v: len(v) > 0 and all(type(n) is int and 1 <= n <= LARGEST for n in v))
COUNT = ("a whole number of at least 1", lambda v: v >= 1)
SAMPLES = (f"a whole number from 1 to {LARGEST}", lambda v: 1 <= v <= LARGEST)
KNOWN = {
    "encoder": (list, *SIZES),
    "decoder": (list, *SIZES),
    "reconstruction_variance": (float, *POSITIVE),
    "topological_variance": (float, *POSITIVE),
    "anneal": (int, "a number of iterations, 0 for none", lambda v: v >= 0),
    "anneal_mode": (str, "'kl' or 'prior'", lambda v: v in ("kl", "prior")),
    "learning_rate": (float, *POSITIVE),
    "keep_prob": (float, "a probability above 0 and at most 1", lambda v: 0 < v <= 1),
    "batch_size": (int, *COUNT),
    "triplet_batch": (int, *COUNT),
    "samples": (int, *SAMPLES),
    "triplet_samples": (int, *SAMPLES),
    "iterations": (int, *COUNT),
    "validate_every": (int, *COUNT),
    "checkpoint_every": (int, *COUNT),
}


def nearest(name, names):
    """' (nearest: ...)' for an error message, or nothing."""
    close = difflib.get_close_matches(name, names, 1, 0.4)
    return f" (nearest: {close[0]})" if close else ""


def choose_preset(name, model, kind):
    """The name of the preset to run, and a copy of its settings.

    name: None means the published best of the model for that kind of data ("posed" or "spontaneous").
    Raises NnliteError for an unknown name, or one of another model or kind of data.
    """
    if name is None:
        name = BEST[model, kind]
    if name not in PRESETS:
        raise expected("--preset", "a name that --list-presets prints", f"'{name}'{nearest(name, PRESETS)}")
    preset = PRESETS[name]
    if preset["model"] != model:
        raise expected("--preset", f"a preset of {model}", f"'{name}' of {preset['model']}")
    if preset["kind"] != kind:
        raise expected("--preset", f"a preset for {kind} data", f"'{name}' for {preset['kind']} data")
    return name, {key: list(value) if isinstance(value, list) else value for key, value in preset.items()}


def apply(settings, assignments):
    """settings with the `key=value` strings of assignments put over it; each is checked. Returns the keys set."""
    keys = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise expected("--set", "key=value", f"'{assignment}'")
        if key not in KNOWN:
            raise expected("--set", "a known setting", f"'{key}'{nearest(key, KNOWN)}")
        settings[key] = check(key, _parse(text), f"--set {key}")
        keys.append(key)
    return keys


def _parse(text):
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError):
        return text.strip()


def check(key, value, where):
    """value in the setting's type, or NnliteError, which begins with `where`."""
    kind, words, test = KNOWN[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is list and isinstance(value, tuple):
        value = list(value)
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
