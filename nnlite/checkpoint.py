"""Checkpoints: one HDF5 file with the flat parameters, the table of their names, and what training needs to go on.

Written through nnlite.files.replacing: whatever happens, there is the old one or the new one, never half of one.
"""

import ast
import math

import h5py
import numpy as np

from .errors import expected
from .files import opened, replacing

FORMAT = "nnlite checkpoint 1"


def save(path, model, optimiser=None, **attributes):
    """Write the model's parameters and state, the optimiser's moments, and attributes (numbers or strings)."""
    ops, parameters = model.ops, model.parameters
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        for name, value in attributes.items():
            file.attrs[name] = value
        file["parameters"] = ops.to_host(parameters.values)
        file["parameters"].attrs["names"] = [entry.name for entry in parameters.table]
        file["parameters"].attrs["shapes"] = [str(entry.shape) for entry in parameters.table]
        for name, array in model.state.items():
            file[f"state/{name}"] = ops.to_host(array)
        if optimiser is not None:
            for name, array in optimiser.state().items():
                file[f"optimiser/{name}"] = ops.to_host(array)


def load(path, model, optimiser=None, needed=(), growing=()):
    """Read what save() wrote into model and optimiser; returns the attributes. All is checked before any is changed.

    needed: names of attributes that have to be there; growing: names of parameters whose last axis may be shorter in
    the file: what lies behind keeps its value. Raises NnliteError for a missing, truncated or foreign file, and for
    one of another model (the first parameter that differs is named).
    """
    with opened(path, "a checkpoint of nnlite") as file:
        attributes = dict(file.attrs)
        if str(attributes.pop("format", None)) != FORMAT:
            raise expected(path, "a checkpoint of nnlite", "an HDF5 file of another kind")
        for name in needed:
            if name not in attributes:
                raise expected(path, f"an attribute '{name}'", "none")
        stored = file["parameters"]
        values, found = stored[()], list(zip(stored.attrs["names"], stored.attrs["shapes"]))
        if growing:
            values, found = _grown(values, found, model.parameters, growing)
        _check_table(path, model.parameters.table, found)
        arrays = [(model.parameters.values, values)]
        arrays += [(array, file[f"state/{name}"][()]) for name, array in model.state.items()]
        if optimiser is not None:
            arrays += [(array, file[f"optimiser/{name}"][()]) for name, array in optimiser.state().items()]
    for target, values in arrays:
        if target.shape != values.shape or target.dtype != values.dtype:
            raise expected(path, f"an array {target.shape} {target.dtype}", f"{values.shape} {values.dtype}")
    for target, values in arrays:
        model.ops.copy_into(target, np.asarray(values))
    return attributes


def _check_table(path, table, found):
    """Raise unless the file's (name, shape) pairs are those of the model's table."""
    wanted = [(entry.name, str(entry.shape)) for entry in table]
    for ours, theirs in zip(wanted, found):
        if ours != theirs:
            raise expected(path, f"parameter '{ours[0]}' {ours[1]}", f"'{theirs[0]}' {theirs[1]}")
    if len(wanted) != len(found):
        raise expected(path, f"{len(wanted)} parameters", f"{len(found)}")


def _grown(values, found, parameters, growing):
    """values and found of a file as they would be if its growing parameters were as wide as the model's: what is new
    has the model's present values."""
    entries = {entry.name: entry for entry in parameters.table if entry.name in growing}
    parts, table, start = [], [], 0
    for name, shape in found:
        shape = ast.literal_eval(shape)
        part = values[start:start + math.prod(shape)].reshape(shape)
        start += part.size
        entry = entries.get(name)
        if entry is not None and entry.shape[:-1] == shape[:-1] and entry.shape[-1] > shape[-1]:
            wide = parameters.ops.to_host(parameters.value(entry)).astype(values.dtype)
            wide[..., :shape[-1]] = part
            part = wide
        parts.append(part.reshape(-1))
        table.append((name, str(part.shape)))
    return np.concatenate(parts), table
