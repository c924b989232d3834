"""Checkpoints: one HDF5 file with the flat parameters, the table of their names, and what training needs to go on.

Written through nnlite.files.replacing: whatever happens, there is the old one or the new one, never half of one.
"""

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


def load(path, model, optimiser=None, needed=()):
    """Read what save() wrote into model and optimiser; returns the attributes. All is checked before any is changed.

    needed: names of attributes that have to be there. Raises NnliteError for a missing, truncated or foreign file, and
    for one of another model (the first parameter that differs is named).
    """
    with opened(path, "a checkpoint of nnlite") as file:
        attributes = dict(file.attrs)
        if str(attributes.pop("format", None)) != FORMAT:
            raise expected(path, "a checkpoint of nnlite", "an HDF5 file of another kind")
        for name in needed:
            if name not in attributes:
                raise expected(path, f"an attribute '{name}'", "none")
        stored = file["parameters"]
        _check_table(path, model.parameters.table, list(zip(stored.attrs["names"], stored.attrs["shapes"])))
        arrays = [(model.parameters.values, stored[()])]
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
