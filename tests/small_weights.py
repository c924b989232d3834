"""Weight files for the tests: a tiny model, PyTorch's files written by hand, and what a refused file must leave."""

import pickle
import zipfile

import numpy as np
import pytest

from nnlite import weights
from nnlite.errors import NnliteError
from nnlite.models import MODELS
from nnlite.ops import get_ops

TINY = {"shape": (2, 2, 1), "hidden": (3,), "classes": 2}   # an mlp: 1.weight (3, 4), 1.bias, 2.weight (2, 3), 2.bias


def tiny(dtype="float32"):
    return MODELS["mlp"](**TINY).build(get_ops("reference"), dtype=dtype)


def everything(model):
    """Name -> copy of every parameter and running statistic."""
    host = model.ops.to_host
    values = {entry.name: host(model.parameters.value(entry)).copy() for entry in model.parameters.table}
    return {**values, **{name: host(array).copy() for name, array in model.state.items()}}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def refused(path, words, name="mlp", make=tiny, **given):
    """The file gives one sentence that has these words, and changes nothing."""
    model = make()
    before = everything(model)
    with pytest.raises(NnliteError, match=words) as caught:
        weights.load(path, model, name, **given)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert same(before, everything(model))


# -- what torch.save writes, by hand -----------------------------------------------------------------------------------


def archive(path, pickled, entries=(), root="net", kind=zipfile.ZIP_STORED):
    """A zip as torch.save writes it, with this pickle."""
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr(f"{root}/data.pkl", pickled)
        for key, content in entries:
            file.writestr(f"{root}/{key}", content)
    return path


def pushed(value):
    """The instructions that put a plain value on the stack of an unpickler."""
    return pickle.dumps(value, 2)[2:-1]   # without its version and its end


def tensor(count=12, offset=0, size=(3, 4), stride=(4, 1), key="0", storage="FloatStorage"):
    """The instructions for a tensor with these numbers in it."""
    kept = (b"(" + pushed("storage") + f"ctorch\n{storage}\n".encode() + pushed(key) + pushed("cpu") + pushed(count)
            + b"tQ")
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + kept + pushed(offset) + pushed(size) + pushed(stride)
            + pushed(False) + b"ccollections\nOrderedDict\n)RtR")


def state_pickle(tensors):
    """Of an OrderedDict {name: instructions of a tensor} with an attribute, as state dicts have one."""
    items = b"".join(pushed(name) + instructions for name, instructions in tensors.items())
    return (b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u}" + pushed("_metadata")
            + b"ccollections\nOrderedDict\n)R(" + pushed("") + pushed({"version": 1}) + b"usb.")


def state_file(path, arrays):
    """A state dict of float32 arrays."""
    found, entries = {}, [("byteorder", b"little")]
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // 4 for stride in array.strides)
        found[name] = tensor(array.size, size=array.shape, stride=strides, key=str(number))
        entries.append((f"data/{number}", array.tobytes()))
    return archive(path, state_pickle(found), entries)
