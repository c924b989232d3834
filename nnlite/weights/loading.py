"""Weights of a file into a model: every tensor is looked at before the first one is written."""

import dataclasses
import json
import math
import re

import numpy as np

from ..errors import expected
from . import names
from .files import ITEM, opened
from .layout import rows

COUNTER = ".num_batches_tracked"   # PyTorch's batch norms count their steps; nothing here needs it


@dataclasses.dataclass
class Report:
    """What became of a file: loaded, left_out (names in the file), initialised (names in the model: what the file has
    nothing for, which keeps the values that build() drew), notes (sentences)."""

    path: str
    dialect: str
    loaded: list = dataclasses.field(default_factory=list)
    left_out: list = dataclasses.field(default_factory=list)
    initialised: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)

    def lines(self):
        """For people."""
        yield f"weights: {self.path}: {len(self.loaded)} tensors loaded, under the names of {self.dialect}"
        if self.left_out:
            yield "weights: left out: " + ", ".join(self.left_out)
        if self.initialised:
            yield "weights: newly initialised: " + ", ".join(self.initialised)
        yield from (f"weights: {note}" for note in self.notes)


def load(path, model, name, *, classes=None, pixels=None):
    """Read a weight file into `model`, a built MODELS[name]; returns the Report.

    What the metadata of a safetensors file say about its training (see nnlite.export) is compared with what is given:
    classes: the names of the model's classes; as many others are an error, since the head would call them by the wrong
    names. pixels: how its images are normalised, {entry of the metadata: value}; what differs is told in the report's
    notes.

    Taken are safetensors and the state dicts of PyTorch's zip, in float32, float64, float16 or bfloat16, under the
    names of nnlite.weights.names. What need not fit:

        a head of another number of classes, or none    left out; the model's head stays as it was drawn
        a first layer of 3 channels, the model has 1    the weights are summed over the channels: a grey image then
                                                        gives what it would give with three equal channels
        positions of another number of patches          interpolated bilinearly, from one square grid to another

    Anything else that is missing, misshapen, of another dtype, not finite or too much is an error that names it, and
    the model stays as it was.
    """
    with opened(path) as file:
        tensors = {key: tensor for key, tensor in file.tensors.items() if not key.endswith(COUNTER)}
        dialect, prefix = _dialect(path, name, tensors, file.metadata)
        plan, looks = rows(model, dialect, prefix), names.looks_like(tensors, file.metadata)
        report = Report(str(path), dialect.title, notes=[dialect.note] if dialect.note else [])
        report.notes += _other_pixels(file.metadata, pixels or {})
        _check_surplus(path, name, tensors, plan, dialect, report, looks)
        head = _unfit_head(model, plan, tensors)
        if not head:   # else it begins anew, whatever it told apart
            _check_classes(path, file.metadata, classes)
        report.left_out += [key for row in head for key in row.theirs if key in tensors]
        report.initialised += [row.ours for row in head]
        plan = [row for row in plan if row.ours not in report.initialised]
        fits = [_fit(path, row, tensors, row is plan[0], report, looks) for row in plan]
        values = [_numbers(path, row, tensors, fit, model.dtype) for row, fit in zip(plan, fits)]
    for row, value in zip(plan, values):
        model.ops.copy_into(row.array, value)
        report.loaded += row.theirs
    return report


def _dialect(path, name, tensors, metadata):
    """The dialect that the file speaks, among those that the model understands, and its prefix."""
    known = names.dialects(name)
    for dialect in known:
        prefix = dialect.prefix(tensors)
        if prefix is not None:
            return dialect, prefix
    raise expected(path, f"weights of {name}, under the names of " + " or ".join(d.title for d in known),
                   f"what looks like {names.looks_like(tensors, metadata)}")


def _check_classes(path, metadata, classes):
    told = _told(metadata, "classes")
    if classes is not None and _is_list_of(str, told) and told != [*classes]:
        raise expected(path, f"weights of a net for the classes {_words([*classes])}", _words(told))


def _other_pixels(metadata, pixels):
    """A sentence for each entry in which the pixels that the file was trained on differ from those of the run."""
    for name, value in pixels.items():
        told = _told(metadata, name)
        known = value is not None and (isinstance(told, str) or _is_list_of(float, told))
        if known and _words(told) != _words(value):
            yield f"{name}: {_words(told)} where these weights were trained, here {_words(value)}"


def _told(metadata, name):
    """What the metadata say in JSON, whole numbers as floats; None where they say nothing of that kind."""
    try:
        return json.loads(metadata.get(name, "null"), parse_int=float)
    except (ValueError, RecursionError):
        return None


def _is_list_of(kind, value):
    return isinstance(value, list) and all(type(part) is kind for part in value)


def _words(value):
    """A text, or a list of texts or numbers, in one line for people; numbers as far as they matter."""
    parts = value if isinstance(value, list) else [value]
    return ", ".join(f"{part:.4f}" if isinstance(part, float) else repr(part) for part in parts)


def _check_surplus(path, name, tensors, plan, dialect, report, looks):
    """Raise for a tensor that the model has no place for, unless it is known to be needless."""
    wanted = {key for row in plan for key in row.theirs}
    for key in tensors:
        if key in wanted:
            continue
        if not re.fullmatch(dialect.left_out, key):
            raise expected(path, f"the tensors of this {name} and no more", f"'{key}'; it looks like {looks}")
        report.left_out.append(key)


def _unfit_head(model, plan, tensors):
    """The rows of the last layer, where the file has another number of classes or no such layer; else none."""
    if not hasattr(model, "layers"):
        return []
    head = [row for row in plan if row.layer == model.layers[-1].name]
    found = [tensors.get(key) for row in head for key in row.theirs]
    if all(tensor is None for tensor in found):
        return head
    other = all(tensor is not None and tensor.shape and tensor.shape[0] != row.shape[0]
                and tensor.shape[1:] == row.shape[1:] for row, tensor in zip(head, found))
    return head if other else []


def _fit(path, row, tensors, first, report, looks):
    """A function from the file's array to one of the shape that the model wants; raises where there is none."""
    for key in row.theirs:
        if key not in tensors:
            raise expected(path, f"a tensor '{key}' {row.shape}", f"none; it looks like {looks}")
        if tensors[key].dtype not in ITEM:
            raise expected(path, f"'{key}' as " + ", ".join(ITEM), tensors[key].dtype)
    shape, key = tensors[row.theirs[0]].shape, row.theirs[0]
    if first and len(row.shape) == 4 and row.shape[1] == 1 and shape == (row.shape[0], 3, *row.shape[2:]):
        report.notes.append(f"{key}: summed over its 3 channels, as the model has 1")
        return lambda array: array.astype(np.float64).sum(1, keepdims=True)
    if row.attribute == "P" and shape != row.shape and len(shape) == 3 and shape[::2] == row.shape[::2]:
        old, new = (math.isqrt(max(tokens - 1, 0)) for tokens in (shape[1], row.shape[1]))
        if old and (1 + old * old, 1 + new * new) == (shape[1], row.shape[1]):
            report.notes.append(f"{key}: interpolated from {old}x{old} to {new}x{new} patches")
            return lambda array: resized(array, old, new)
    for key in row.theirs:
        if tensors[key].shape != row.shape:
            raise expected(path, f"a tensor '{key}' {row.shape}", f"{tensors[key].shape}; it looks like {looks}")
    return None


def _numbers(path, row, tensors, fit, dtype):
    """The row's array as the model has it: its layout, its dtype."""
    parts = [tensors[key].read() for key in row.theirs]
    array = np.concatenate(parts) if len(parts) > 1 else parts[0]
    with np.errstate(over="ignore"):
        array = (array if fit is None else fit(array)).astype(dtype)
    value = np.ascontiguousarray(row.turn.ours(array, row.array.shape))
    if not np.isfinite(value).all():
        raise expected(path, f"finite numbers of {dtype} in '{', '.join(row.theirs)}'", "inf or nan")
    return value


def resized(positions, old, new):
    """Positions (1, 1 + old old, D) as (1, 1 + new new, D): the class token's stays, those of the patches are
    interpolated bilinearly between their centres, which lie at (i + 1/2) / old of the image; beyond the outermost
    centres they are constant."""
    D = positions.shape[2]
    grid = positions[0, 1:].astype(np.float64).reshape(old, old, D)
    at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    weights = (1 - np.abs(at[:, None] - np.arange(old))).clip(0)   # (new, old): a hat over each centre
    grid = np.einsum("ah,bw,hwd->abd", weights, weights, grid, optimize=True)
    return np.concatenate([positions[:, :1], grid.reshape(1, new * new, D)], 1)
