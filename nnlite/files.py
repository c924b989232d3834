"""Files that are written whole or not at all, and HDF5 files read with errors in words."""

import contextlib
import os
import pathlib

import h5py

from .errors import NnliteError, expected


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary path beside `path`; when the block ends well, that file is flushed to the disk and renamed to
    `path`. On any error it is removed, and what was at `path` stays. Raises NnliteError where nothing can be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise expected(path, "a place that can be written", error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder):
    """Remove temporary files that a killed process left in folder."""
    for path in pathlib.Path(folder).glob("*.part"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(path, what):
    """The HDF5 file at `path`, which should be `what`, open for reading; h5py's errors become one sentence."""
    if not pathlib.Path(path).is_file():
        raise expected(path, what, "a folder" if pathlib.Path(path).is_dir() else "none")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except NnliteError:
        raise
    except KeyError as error:
        raise expected(path, what, f"one that lacks something ({error.args[0]})") from error
    except (OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:  # h5py's words for a damaged file
        raise expected(path, "a readable HDF5 file", "one that is truncated, damaged or not HDF5") from error


def dataset(file, path, name, kinds, what, fits):
    """The array `name` of an open file: a dtype whose kind is among `kinds`, a shape that `fits` accepts."""
    what = f"a dataset '{name}' of {what}"
    if not isinstance(file.get(name), h5py.Dataset):
        raise expected(path, what, "none")
    if not fits(file[name].shape) or file[name].dtype.kind not in kinds:
        raise expected(path, what, f"{file[name].dtype} {file[name].shape}")
    return file[name][()]
