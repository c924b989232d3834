"""The CUDA C kernels of the .cu files beside this one: compiled at first use, launched by name.

All files make one module for float and one for double (the macro REAL). NVRTC compiles it, CuPy keeps the result on
disk, so that only the very first run waits for it.
"""

from pathlib import Path

import cupy
import numpy as np

from ..reference import ACTIVATIONS

BLOCK = 256      # threads a block, as in common.cuh
ROW_BLOCK = 32   # of a block that has one row to itself, likewise
FILES = ("common.cuh", "philox.cuh", "activate.cuh", "windows.cuh", "columns.cuh", "random.cu", "elementwise.cu",
         "dense.cu", "latent.cu", "optimisers.cu", "images.cu", "conv.cu", "pool.cu", "norm.cu", "labels.cu",
         "blocks.cu", "tokens.cu", "attention.cu")
REALS = {"float32": "float", "float64": "double"}
CODES = {name: np.int32(code) for code, name in enumerate(ACTIVATIONS)}   # the order of enum Function
NULL = 0      # a null pointer: CuPy passes a Python int as 8 bytes


def source():
    """All kernels as one text; messages of the compiler name the file and line."""
    return "\n".join(f'#line 1 "{name}"\n' + Path(__file__).with_name(name).read_text() for name in FILES)


class Kernels:
    """kernels(name, dtype, threads, *arguments): launch on the current stream, grid rounded up to whole blocks.

    arguments: arrays go as pointers, Python ints as 64-bit integers, floats as doubles, NumPy scalars as what they are.
    """

    def __init__(self):
        self._modules, self._functions = {}, {}

    def __call__(self, name, dtype, threads, *arguments, block=BLOCK):
        if threads:
            self._function(name, np.dtype(dtype).name)((-(-threads // block),), (block,), arguments)

    def _function(self, name, dtype):
        if (name, dtype) not in self._functions:
            if dtype not in self._modules:
                self._modules[dtype] = cupy.RawModule(code=source(), options=(f"-DREAL={REALS[dtype]}",))
            self._functions[name, dtype] = self._modules[dtype].get_function(name)
        return self._functions[name, dtype]


def scalar(value):
    """The three arguments of SCALAR in common.cuh: a number, or a 0-d device array that the kernel reads."""
    if isinstance(value, cupy.ndarray):
        return 0.0, value, np.int32(value.dtype.itemsize)
    return float(value), NULL, np.int32(0)


def key_words(key):
    """The four arguments of KEY in philox.cuh."""
    return np.uint32(key.seed & 0xFFFFFFFF), np.uint32(key.seed >> 32), np.uint32(key.stream), key.step


NO_KEY = (np.uint32(0), np.uint32(0), np.uint32(0), NULL)   # where there is no dropout


def plain(x):
    """x itself if it lies in C order, else a copy that does: kernels and products expect that."""
    return cupy.ascontiguousarray(x)


def flat(x):
    """x (..., D) as a matrix in C order: a view of x if x lies so."""
    return plain(x).reshape(-1, x.shape[-1])


def pointer(array):
    """The array, or a null pointer for None."""
    return NULL if array is None else array
