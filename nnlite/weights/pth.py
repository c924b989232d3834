"""State dicts in the zip archives of torch.save, read without PyTorch and without running anything that is in them.

An archive NAME holds NAME/data.pkl, a pickle of a dict from names to tensors, and NAME/data/0, 1, ...: the numbers. A
pickle can name any function to be called; here it can build nothing but numbers, strings, lists, tuples, dicts and
descriptions of tensors. Only the instructions that such files need are followed, and PyTorch's names in them stand for
stand-ins of this module.
"""

import io
import math
import pickle
import pickletools
from typing import NamedTuple

from ..errors import NnliteError, expected

NOTHING_BUT = "nothing but tensors, as torch.save(model.state_dict(), ...) writes them"
HOLDERS = "state_dict", "model"   # under which a checkpoint of training keeps the state dict
MOST_AXES = 64                    # of a tensor

INSTRUCTIONS = set("""
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
    EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT
    MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD STOP
""".split())

STORAGES = {"DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2),
            "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
            "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1),
            "BoolStorage": ("bool", 1), "ComplexFloatStorage": ("complex64", 8),
            "ComplexDoubleStorage": ("complex128", 16)}


class Storage(NamedTuple):
    """The numbers of one entry of the archive, which several tensors may share."""

    key: str
    dtype: str
    item: int    # bytes of a number
    count: int


class View(NamedTuple):
    """A tensor: element (i, j, ...) is number offset + i stride[0] + j stride[1] + ... of its storage."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple


def state_dict(path, archive):
    """Name -> View of the state dict in an open zipfile.ZipFile; of a checkpoint that of its part `state_dict` or
    `model`. Raises NnliteError, one sentence that names the file, for anything else."""
    entry = _pickle_entry(path, archive)
    root = entry[:-len("data.pkl")]
    if f"{root}byteorder" in archive.namelist() and _entry(path, archive, f"{root}byteorder").strip() != b"little":
        raise expected(path, "numbers in the byte order 'little'", "a file in another")
    value = _unpickled(path, _entry(path, archive, entry))
    for holder in HOLDERS:
        if isinstance(value, dict) and isinstance(value.get(holder), dict):
            value = value[holder]
    if not isinstance(value, dict) or not value:
        raise expected(path, "a state dict", "an empty one" if isinstance(value, dict) else f"a {type(value).__name__}")
    for name, view in value.items():
        if type(name) is not str:
            raise expected(path, "a state dict of tensors under names", f"one with a {type(name).__name__} for a name")
        if type(view) is not View:
            raise expected(path, "a state dict of tensors", f"one with {name!r:.60}, a {type(view).__name__}")
    return {name: view._replace(storage=view.storage._replace(key=f"{root}data/{view.storage.key}"))
            for name, view in value.items()}


def content(path, archive, storage):
    """The bytes of a Storage of state_dict(): as many as its numbers need."""
    if storage.key not in archive.namelist():
        raise expected(path, f"an entry '{storage.key}' of {storage.count} numbers", "none")
    wanted, found = storage.item * storage.count, archive.getinfo(storage.key).file_size
    if wanted != found:
        raise expected(path, f"an entry '{storage.key}' of {wanted} bytes", f"{found}")
    return _entry(path, archive, storage.key)


def _pickle_entry(path, archive):
    names = archive.namelist()
    found = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/constants.pkl") for name in names):
        raise expected(path, "a state dict", "a TorchScript program")
    if len(found) != 1:
        raise expected(path, "an archive of torch.save", f"another zip archive, with '{names[0]}' in it" if names
                       else "an empty zip archive")
    return found[0]


def _entry(path, archive, name):
    """The bytes of an entry, which PyTorch never compresses: so none is longer than the file."""
    try:
        info = archive.getinfo(name)
        if info.file_size == info.compress_size:
            return archive.read(info)
    except Exception as error:  # a damaged archive can raise anything
        raise expected(path, f"a whole archive, '{name}' in it", f"a damaged one ({error})") from error
    raise expected(path, f"an entry '{name}' that is not compressed", "a compressed one")


# -- the pickle --------------------------------------------------------------------------------------------------------


def _unpickled(path, pickled):
    try:
        return _Unpickler(path, pickled).load()
    except NnliteError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        why = str(error) or "it ends too early"
        raise expected(path, "a whole pickle of a state dict", f"a damaged one ({why})") from error


def _refusing(instruction):
    """What to do where a pickle has an instruction for objects of any class, extension codes, wide strings."""
    def refuse(unpickler):
        raise expected(unpickler._path, NOTHING_BUT, f"a pickle with {instruction}")
    return refuse


def _fill(target, items):
    """Keys and values, by turns, into a dict. No key may be a tuple: Python computes the hash of one that is nested by
    recursion in C, which nothing stops before the stack is full."""
    if type(target) is not dict or not all(type(key) in (str, int) for key in items[::2]):
        raise ValueError("a dict with other keys than strings and whole numbers")
    target.update(zip(items[::2], items[1::2], strict=True))


class _Unpickler(pickle._Unpickler):
    """Knows PyTorch's names for tensors and their storages and follows INSTRUCTIONS, nothing else.

    Its base is the one in Python: that in C, which is faster, has no table of instructions that could be another one.
    """

    def __init__(self, path, pickled):
        super().__init__(io.BytesIO(pickled))
        self._path = path

    def find_class(self, module, name):
        if (module, name) not in STAND_INS:
            raise expected(self._path, NOTHING_BUT, f"a pickle that asks for {f'{module}.{name}'!r:.200}")
        return STAND_INS[module, name]

    def persistent_load(self, saved):
        kind, storage, key, _, count = saved
        if kind != "storage" or type(storage) is not _StorageType or type(key) is not str or not _whole(count):
            raise ValueError("a storage without type, key and size")
        return Storage(key, *STORAGES[storage.name], count)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    def load_setitems(self):
        items = self.pop_mark()
        _fill(self.stack[-1], items)

    def load_build(self):
        """Attributes of an object, as the `_metadata` of a state dict: nothing here needs them."""
        self.stack.pop()

    dispatch = {ord(opcode.code): pickle._Unpickler.dispatch[ord(opcode.code)] if opcode.name in INSTRUCTIONS
                else _refusing(opcode.name) for opcode in pickletools.opcodes}
    dispatch.update({pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.BUILD[0]: load_build})


# Objects without attributes that can be set, so that no pickle can change them for the next one.


class _StorageType(NamedTuple):
    name: str


class _OrderedDict:
    __slots__ = ()

    def __call__(self):
        return {}


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage, offset, size, stride, requires_grad, hooks, metadata=None):
        fits = len(size) == len(stride) <= MOST_AXES and all(map(_whole, (offset, *size, *stride)))
        if type(storage) is not Storage or not fits:
            raise ValueError("a tensor without storage, offset, size and stride")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if math.prod(size) and last >= storage.count:
            raise ValueError(f"a tensor {tuple(size)} that ends behind its {storage.count} numbers")
        return View(storage, offset, tuple(size), tuple(stride))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data, requires_grad, hooks):
        return data


def _whole(number):
    return type(number) is int and 0 <= number < 2 ** 63


STAND_INS = {
    ("collections", "OrderedDict"): _OrderedDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageType(name) for name in STORAGES},
}
