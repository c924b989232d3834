"""What the tasks have in common when a command line becomes settings."""

import pathlib

from ..errors import expected

QUICK = {"iterations": 400, "validate_every": 100, "checkpoint_every": 100}
MOST_PASSES = 10   # through the training data in one batch; more is a slip of the hand


def whole_path(name, built_in=()):
    """A path that still holds when the run is opened from another folder; names of built-in sets and None stay."""
    return name if name is None or name in built_in else str(pathlib.Path(name).resolve())


def check_count(value, option):
    """value, None or at least 1; else NnliteError."""
    if value is not None and value < 1:
        raise expected(option, "at least 1", value)
    return value


def check_seed(seed):
    """Raise NnliteError unless seed is one of the generator's."""
    if not 0 <= seed < 2 ** 64:
        raise expected("--seed", "a whole number from 0 to 2^64 - 1", seed)


def check_batch_size(settings, rows, what):
    most = MOST_PASSES * rows
    if settings["batch_size"] > most:
        raise expected("--set batch_size", f"at most {most}, {MOST_PASSES} times the training {what}",
                       settings["batch_size"])


def sizes(*parts):
    """A number, or lists and numbers one after the other, as 400-300-30."""
    return "-".join(str(n) for part in parts for n in (part if isinstance(part, list) else [part]))
