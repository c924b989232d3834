"""CIFAR-10 (Krizhevsky 2009): 32x32 colour images of ten classes, from the published python batches.

Read is a folder with batches.meta, data_batch_1 to at most data_batch_5 and test_batch: pickles of Python 2. A pickle
can name any function to be called; here it can build nothing but numbers, byte strings, lists, tuples, dicts and arrays
of bytes. Only the instructions that such files need are let through, and the three names of NumPy in them stand for
stand-ins of this module, not for NumPy's own functions.
"""

import io
import math
import pickle
import pickletools
import re
from pathlib import Path

import numpy as np

from nnlite.data.images import ImageSet
from nnlite.errors import NnliteError, expected

SIDE, CHANNELS = 32, 3
META, TEST = "batches.meta", "test_batch"
BATCH = re.compile(r"data_batch_([1-5])")
NOTHING_BUT = "nothing but arrays, lists and byte strings"

INSTRUCTIONS = set("""
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINBYTES
    SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
""".split())


def recognises(folder):
    """Whether a file of CIFAR-10's python batches lies in `folder`."""
    return any(path.name in (META, TEST) or BATCH.fullmatch(path.name) for path in Path(folder).iterdir())


def read(folder):
    """The ImageSet of the batches in `folder`: parts "train" (the data batches in numerical order) and "test".

    Raises NnliteError, one sentence that names the file, for a missing or damaged one and for one that asks for more
    than data.
    """
    folder = Path(folder)
    numbers = sorted(int(match[1]) for match in (BATCH.fullmatch(path.name) for path in folder.iterdir()) if match)
    names = [f"data_batch_{number}" for number in range(1, max(numbers, default=1) + 1)] + [TEST]
    for name in [META, *names]:
        if not (folder / name).is_file():
            raise expected(folder, f"a file {name}", "none")
    classes = _classes(folder / META)
    batches = [_batch(folder / name, len(classes)) for name in names]
    labels = np.concatenate([labels for _, labels in batches])
    images = np.empty((len(labels), SIDE, SIDE, CHANNELS), np.uint8)
    start = 0
    for data, own in batches:
        # (n, 3072), colour by colour -> (n, 32, 32, 3)
        images[start:start + len(own)] = data.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
        start += len(own)
    train = len(labels) - len(batches[-1][1])
    rows = np.arange(len(labels), dtype=np.int32)
    return ImageSet(images, labels, classes, {"train": rows[:train], "test": rows[train:]}, f"CIFAR-10 ({folder})")


def _classes(path):
    names = _load(path).get("label_names")
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, (bytes, str)) for name in names):
        raise expected(path, "a list 'label_names' of at least two names", _kind(names))
    return tuple(_text(name) for name in names)


def _batch(path, classes):
    """(data (n, 3072) uint8, labels (n,) int32) of one file."""
    content = _load(path)
    data, labels = content.get("data"), content.get("labels")
    width = CHANNELS * SIDE * SIDE
    if not isinstance(data, _Array) or len(data.shape or ()) != 2 or data.shape[1] != width or data.shape[0] < 1:
        raise expected(path, f"an array 'data' (n, {width}) of bytes", _kind(data))
    if not isinstance(labels, list) or len(labels) != data.shape[0]:
        got = f"{len(labels)}" if isinstance(labels, list) else _kind(labels)
        raise expected(path, f"a list 'labels' of {data.shape[0]} numbers", got)
    for label in labels:
        if type(label) is not int or not 0 <= label < classes:
            raise expected(path, f"labels from 0 to {classes - 1}", _kind(label) if type(label) is not int else label)
    return np.frombuffer(data.content, np.uint8).reshape(data.shape), np.array(labels, np.int32)


def _kind(value):
    return "none" if value is None else f"array {value.shape}" if isinstance(value, _Array) else type(value).__name__


def _text(name):
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


# -- pickles ----------------------------------------------------------------------------------------------------------


def _load(path):
    """name -> value in the pickle at `path`, arrays as _Array."""
    try:
        content = path.read_bytes()
        _check_instructions(path, content)
        value = _Unpickler(path, content).load()
    except NnliteError:
        raise
    except OSError as error:
        raise expected(path, "a file that can be read", error.strerror) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise expected(path, "a whole pickle of a CIFAR-10 batch", f"a damaged one ({error})") from error
    if not isinstance(value, dict):
        raise expected(path, "a dict", _kind(value))
    return {_text(key): item for key, item in value.items()}


def _check_instructions(path, content):
    """Refuses a pickle with another instruction: objects of any class, extension codes, persistent ids."""
    for instruction, argument, place in pickletools.genops(content):
        if instruction.name == "GLOBAL":
            _stand_in(path, *argument.split(" ", 1))
        if instruction.name not in INSTRUCTIONS:
            asked = instruction.name if argument is None else f"{instruction.name} {argument!r:.60}"
            raise expected(path, NOTHING_BUT, f"a pickle with {asked} at byte {place}")
        # The unpickler makes room for as many remembered values as this number says.
        if instruction.name == "LONG_BINPUT" and argument > len(content):
            raise expected(path, NOTHING_BUT, f"a pickle that remembers value number {argument}")


class _Unpickler(pickle.Unpickler):
    """Knows NumPy's names for arrays and their dtype, under the module names of NumPy 1 and 2, and no other."""

    def __init__(self, path, content):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._path = path

    def find_class(self, module, name):
        return _stand_in(self._path, module, name)


def _stand_in(path, module, name):
    if (module, name) not in STAND_INS:
        raise expected(path, NOTHING_BUT, f"a pickle that asks for {module}.{name}"[:200])
    return STAND_INS[module, name]


class _Array:
    """What NumPy's _reconstruct makes, to be filled: shape, content (bytes, C order)."""

    __slots__ = ("shape", "content")

    def __init__(self):
        self.shape = self.content = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        whole = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
        if not whole or type(dtype) is not _Bytes or fortran or type(content) is not bytes:
            raise ValueError("an array of something else than bytes in C order")
        if math.prod(shape) != len(content):
            raise ValueError(f"an array {shape} in {len(content)} bytes")
        self.shape, self.content = shape, content


class _Bytes:
    """NumPy's dtype of one unsigned byte; byte order and the like mean nothing for it."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


# Objects without attributes, so that no pickle can change them for the next one.


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind, shape, code):
        return _Array()


class _Ndarray:
    __slots__ = ()


class _Dtype:
    __slots__ = ()

    def __call__(self, code, align, copy):
        if code not in (b"u1", "u1"):
            raise ValueError(f"an array of dtype {_text(code)}")
        return _Bytes()


STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _Ndarray(),
    ("numpy", "dtype"): _Dtype(),
}
