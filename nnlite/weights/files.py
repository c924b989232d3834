"""Weight files: safetensors, and PyTorch's zip through pth. Opened, they tell names, shapes and dtypes; the numbers of
a tensor are read when they are asked for."""

import contextlib
import functools
import json
import math
import pathlib
import zipfile
from typing import Callable, NamedTuple

import numpy as np

from ..errors import expected
from . import pth

EXTRA = 'none: pip install -e ".[weights]" brings it'
WHAT = "a safetensors file or a state dict in PyTorch's zip (.pth, .pt, .bin)"
ITEM = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}   # dtypes that are read, in NumPy
SAFE = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
        "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "C64": "complex64"}
WRAPPED = "module."   # before every name of a model that was saved inside DataParallel


class Tensor(NamedTuple):
    """shape, dtype under PyTorch's name, and read() -> NumPy array: of that dtype, bfloat16 as float32."""

    shape: tuple
    dtype: str
    read: Callable


class Stored(NamedTuple):
    """What a file holds: name -> Tensor, and its metadata (name -> text)."""

    tensors: dict
    metadata: dict


@contextlib.contextmanager
def opened(path):
    """The Stored of a weight file, told by its content whatever its name is. Raises NnliteError, one sentence, for a
    file of another kind, a damaged one, and one that holds anything else than tensors."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise expected(path, WHAT, "a folder" if path.is_dir() else "none")
    with open(path, "rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\x03\x04":
        with _zip(path) as archive:
            # Tensors that share a storage follow each other.
            content = functools.lru_cache(maxsize=1)(functools.partial(pth.content, path, archive))
            yield Stored(_unwrapped({name: Tensor(view.size, view.storage.dtype, _reader(content, view))
                                     for name, view in pth.state_dict(path, archive).items()}), {})
    elif head[8:] == b"{" or path.suffix == ".safetensors":
        yield _safetensors(path)
    else:
        raise expected(path, WHAT, _kind(head))


def _kind(head):
    if not head:
        return "an empty file"
    if head[:4] == b"\x89HDF":
        return "an HDF5 file"
    if head[0] == 0x80:
        return "a bare pickle, as PyTorch wrote it before 1.6: save it again with a newer one"
    return "a file of another kind"


def _unwrapped(tensors):
    """Without the part that DataParallel puts before all names."""
    if all(name.startswith(WRAPPED) for name in tensors):
        return {name[len(WRAPPED):]: tensor for name, tensor in tensors.items()}
    return tensors


def widened(array, dtype):
    """bfloat16, whose bits are the upper half of a float32's, as float32; all others as they are."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array


# -- PyTorch's zip -----------------------------------------------------------------------------------------------------


def _zip(path):
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise expected(path, "a whole zip archive", f"a truncated or damaged one ({error})") from error


def _reader(content, view):
    def read():
        dtype = view.storage.dtype
        flat = np.frombuffer(content(view.storage), ITEM[dtype])[view.offset:]
        strides = [stride * flat.itemsize for stride in view.stride]   # pth has seen that they stay inside
        return widened(np.lib.stride_tricks.as_strided(flat, view.size, strides, writeable=False), dtype)
    return read


# -- safetensors -------------------------------------------------------------------------------------------------------


def _safetensors(path):
    """The package vouches for the header: its tensors lie in the file, side by side, each as long as its shape says.
    The numbers are read past it, since it has no bfloat16 for NumPy."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise expected(path, "the package safetensors to read it with", EXTRA) from None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise expected(path, "a whole safetensors file", f"a truncated or damaged one ({error})") from error
    header.pop("__metadata__", None)
    return Stored(_unwrapped({name: _safe_tensor(path, 8 + length, name, entry)
                              for name, entry in header.items()}), metadata)


def _safe_tensor(path, begin, name, entry):
    try:
        dtype, shape, (first, _) = entry["dtype"], entry["shape"], entry["data_offsets"]
        fits = isinstance(dtype, str) and all(type(number) is int and number >= 0 for number in (first, *shape))
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise expected(path, "a whole safetensors file", f"a damaged one ('{name}' without dtype, shape and place)")
    dtype, count = SAFE.get(dtype, dtype), math.prod(shape)

    def read():
        array = np.fromfile(path, ITEM[dtype], count, offset=begin + first)
        if len(array) < count:
            raise expected(path, f"{count} numbers of '{name}'", f"{len(array)}")
        return widened(array, dtype).reshape(shape)
    return Tensor(tuple(shape), dtype, read)
