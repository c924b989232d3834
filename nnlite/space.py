"""Spaces of settings to search: what `key=text` says, draws, points of a grid, narrower spaces.

    log:a:b      from a to b, uniform in the logarithm       log:a:b:n    n points of that, for a grid
    a:b          from a to b, uniform                        a:b:n
    a:b:stepS    a, a + S, ... to b, each as likely          the same, for a grid all of them
    v1,v2,v3     one of these                                [100],[200,200] where the setting is a list

A range of a setting that is a whole number holds both ends. Other numbers have four significant digits, so that what
is printed is what was trained. A space is {setting: Range, Steps or Choice}.
"""

import math
from dataclasses import dataclass, replace

from . import settings as settings_
from .errors import expected
from .ops.reference import ReferenceOps
from .rng import Rng

FORMS = "log:a:b, a:b, a:b:stepS or v1,v2,v3"
GRID_FORMS = "log:a:b:n, a:b:n, a:b:stepS or v1,v2,v3, with n points of at least 2"
LARGEST_GRID = 100_000
NEARLY = 1e-6           # of a step: what rounding may leave between a number and its step
LENGTH = "epochs", "iterations", "validate_every", "checkpoint_every"   # of a trial: what --epochs decides
# Trials on other images, or judged by another measure, do not compare.
NOT_SEARCHED = *LENGTH, "subset", "split", "watch"


@dataclass(frozen=True)
class Range:
    """The numbers from low to high; points: how many a grid takes of them, None for draws."""

    low: float
    high: float
    log: bool
    whole: bool
    points: int = None

    def at(self, u):
        """The value at the share 0 <= u < 1 of the range.

        Whole numbers k: of the range from low to high + 1 the part from k to k + 1 falls to k, so that with log
        P(k) is in proportion to ln((k + 1) / k).
        """
        low, high = self._scaled(self.low), self._scaled(self.high + self.whole)
        value = self._unscaled(low + u * (high - low))
        return self._clipped(math.floor(value) if self.whole else float(f"{value:.4g}"))

    def axis(self):
        """The points of a grid, evenly spaced from low to high; whole numbers rounded, none twice."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        inner = [self._unscaled(low + i / (self.points - 1) * (high - low)) for i in range(1, self.points - 1)]
        inner = [round(value) if self.whole else float(f"{value:.4g}") for value in inner]
        return list(dict.fromkeys([self.low, *inner, self.high]))

    def around(self, values):
        """The range narrowed around k >= 2 of its values; see `narrowed`."""
        scaled = sorted(map(self._scaled, values))
        margin = (scaled[-1] - scaled[0]) / (len(scaled) - 1)
        low = self._unscaled(max(scaled[0] - margin, self._scaled(self.low)))
        high = self._unscaled(min(scaled[-1] + margin, self._scaled(self.high)))
        low, high = (math.floor(low), math.ceil(high)) if self.whole else (float(f"{v:.4g}") for v in (low, high))
        return replace(self, low=self._clipped(low), high=self._clipped(high))

    def _scaled(self, value):
        return math.log(value) if self.log else value

    def _unscaled(self, value):
        return math.exp(value) if self.log else value

    def _clipped(self, value):
        return min(max(value, self.low), self.high)

    def __str__(self):
        words = [spell(self.low), spell(self.high)] + [str(self.points)] * (self.points is not None)
        return ":".join(["log"] * self.log + words)

    def describe(self):
        text = f"{spell(self.low)} to {spell(self.high)}" + ", uniform in the logarithm" * self.log
        return text if self.points is None else f"{self.points} points from {text}"


@dataclass(frozen=True)
class Steps:
    """The numbers low, low + step, ..., high."""

    low: float
    high: float
    step: float
    log = False

    def at(self, u):
        return self.axis()[int(u * len(self.axis()))]

    def axis(self):
        count = round((self.high - self.low) / self.step)
        return [self._tidy(self.low + i * self.step) for i in range(count)] + [self.high]

    def around(self, values):
        """The steps narrowed around k >= 2 of their values, outwards to whole steps; see `narrowed`."""
        margin = (max(values) - min(values)) / (len(values) - 1)
        places = [(value - self.low) / self.step for value in (min(values) - margin, max(values) + margin)]
        axis, (first, last) = self.axis(), (math.floor(places[0] + NEARLY), math.ceil(places[1] - NEARLY))
        return replace(self, low=axis[max(first, 0)], high=axis[min(last, len(axis) - 1)])

    @staticmethod
    def _tidy(value):
        """0.3 for 0.30000000000000004."""
        return value if isinstance(value, int) else float(f"{value:.10g}")

    def __str__(self):
        return f"{spell(self.low)}:{spell(self.high)}:step{spell(self.step)}"

    def describe(self):
        return f"{spell(self.low)} to {spell(self.high)} in steps of {spell(self.step)}"


@dataclass(frozen=True)
class Choice:
    """One of the values."""

    values: tuple

    def at(self, u):
        return self.values[int(u * len(self.values))]

    def axis(self):
        return list(self.values)

    def around(self, values):
        """The values of the choice that are among these."""
        return Choice(tuple(value for value in self.values if value in values))

    def __str__(self):
        return ",".join(map(spell, self.values))

    def describe(self):
        return "one of " + ", ".join(map(spell, self.values))


def spell(value):
    """A value as `--set key=value` takes it, in its shortest form."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


# -- what the command line says ----------------------------------------------------------------------------------------


def parse(model, texts, *, grid, option="--space", free=()):
    """The space that texts like 'learning_rate=log:1e-5:1e-2' say for the model; NnliteError for what is wrong.

    grid: ranges say their number of points, otherwise none does. option: what the texts were given to, for errors.
    free: settings that may be searched here, though not in general.
    """
    space = {}
    for text in texts:
        name, equals, values = text.partition("=")
        where = f"{option} {name}"
        if not equals:
            raise expected(option, "setting=" + (GRID_FORMS if grid else FORMS), f"'{text}'")
        kind = _kind(model, name, option, free)
        if name in space:
            raise expected(where, "one space for a setting", "two")
        if ":step" in values:
            space[name] = _steps(model, name, kind, values, where)
        elif ":" in values:
            space[name] = _range(model, name, kind, values, grid, where)
        else:
            space[name] = _choice(model, name, values, where)
    if grid and grid_size(space) > LARGEST_GRID:
        raise expected(option, f"a grid of at most {LARGEST_GRID} points", grid_size(space))
    return space


def _kind(model, name, option, free):
    """The type of a setting that may be searched."""
    shut = {*NOT_SEARCHED} - {*free}
    known = {key: kind for key, (kind, *_) in settings_.KNOWN[model].items() if key not in shut}
    if name in LENGTH and name in shut:
        raise expected(option, "a setting other than the length of a trial, which --epochs says", f"'{name}'")
    if name not in known:
        raise expected(option, f"a setting of {model} that can be searched",
                       f"'{name}'{settings_.nearest(name, known)}")
    return known[name]


def _steps(model, name, kind, text, where):
    words = text.split(":")
    numbers = [settings_.parse(word) for word in [*words[:-1], words[-1].removeprefix("step")]]
    if kind not in (int, float) or len(numbers) != 3 or any(type(number) not in (int, float) for number in numbers):
        raise expected(where, "a:b:stepS, for a setting that is a number", f"'{text}'")
    low, high = (settings_.check(model, name, number, where) for number in numbers[:2])
    step = numbers[2]
    if not (low < high and 0 < step < math.inf) or kind is int and type(step) is not int:
        raise expected(where, "steps above 0 from a smaller number to a larger one", f"'{text}'")
    count = (high - low) / step
    if count > LARGEST_GRID or round(count) < 1 or abs(count - round(count)) > NEARLY:
        raise expected(where, f"a range of whole steps, at most {LARGEST_GRID} of them", f"'{text}'")
    return Steps(low, high, kind(step))


def _range(model, name, kind, text, grid, where):
    words = text.split(":")
    if kind not in (int, float):
        raise expected(where, "values v1,v2,v3: it is no number", f"'{text}'")
    log = words[0].strip() == "log"
    numbers = [settings_.parse(word) for word in words[log:]]
    if len(numbers) != 2 + grid or any(type(number) not in (int, float) for number in numbers):
        raise expected(where, GRID_FORMS if grid else FORMS, f"'{text}'")
    points = numbers.pop() if grid else None
    if grid and (type(points) is not int or not 2 <= points <= LARGEST_GRID):
        raise expected(where, GRID_FORMS, f"'{text}'")
    if log and min(numbers) <= 0:
        raise expected(where, "a log range above 0", f"'{text}'")
    low, high = (settings_.check(model, name, number, where) for number in numbers)
    if not low < high:
        raise expected(where, "a range from a smaller number to a larger one", f"'{text}'")
    return Range(low, high, log, kind is int, points)


def _choice(model, name, text, where):
    values = []
    for word in _split(text):
        if not word.strip():
            raise expected(where, "values v1,v2,v3, none of them empty", f"'{text}'")
        values.append(settings_.check(model, name, settings_.parse(word), where))
        if values[-1] in values[:-1]:
            raise expected(where, "different values", f"{spell(values[-1])} twice")
    return Choice(tuple(values))


def _split(text):
    """The parts between the commas that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


# -- which settings a trial has ----------------------------------------------------------------------------------------


def draw(space, number, *, seed, stage):
    """The settings of random trial `number`: of each setting the value at a uniform share.

    A pure function of (seed, stage, number) for each setting, whatever the others are and whichever trials came
    before: the share is (w + 1/2) / 2^32 for the Philox word w of the stream named after stage and setting, at step
    `number`.
    """
    rng = Rng(ReferenceOps(), seed)
    rng.set_step(number)
    words = {name: rng.ops.random_words(1, 1, rng.key(f"search {stage} {name}"))[0, 0] for name in space}
    return {name: part.at((int(words[name]) + 0.5) / 2 ** 32) for name, part in space.items()}


def grid_size(space):
    return math.prod(len(part.axis()) for part in space.values())


def grid_point(space, number):
    """The settings of point `number` (from 1) of the grid: the last setting changes fastest."""
    left, found = number - 1, {}
    for name, part in reversed(space.items()):
        axis = part.axis()
        left, place = divmod(left, len(axis))
        found[name] = axis[place]
    return {name: found[name] for name in space}


def grid_numbers(space, count, seed):
    """The numbers of `count` points of the grid, all over it where it has more; of more points, these and others."""
    rng, size = Rng(ReferenceOps(), seed), grid_size(space)
    words = rng.ops.random_words(1, size, rng.key("search grid"))[0]
    return sorted(int(place) + 1 for place in words.argsort(kind="stable")[:count])


def narrowed(space, settings):
    """The space around the settings of the k >= 2 best trials.

    A range becomes [min - m, max + m] of their k values with m = (max - min) / (k - 1), in the logarithm where the
    range is one of logarithms, and no wider than it was: for k values drawn uniformly between two unknown ends these
    are the unbiased estimates of the ends. A choice keeps the values that occur among them.
    """
    return {name: part.around([chosen[name] for chosen in settings]) for name, part in space.items()}
