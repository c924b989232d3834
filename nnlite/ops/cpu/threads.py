"""Threads, set up in one place: one pool for everything.

Two pools on the same cores fight: the workers of one spin while the other computes. So there is one, Numba's, and the
matrix products are BLAS calls on one thread each, made inside its parallel loops (see blas.py). Here BLAS is told to
use one thread, and both libraries are found.

The number of threads is NUMBA_NUM_THREADS where that is set, else the cores this process may use.
"""

import ctypes
import os

import numpy  # noqa: F401  loads the BLAS that is looked for
import threadpoolctl

# Names under which builds of OpenBLAS, MKL and others export their functions, and their integer width in bits.
SPELLINGS = [("scipy_cblas_{}64_", 64), ("cblas_{}64_", 64), ("scipy_cblas_{}", 32), ("cblas_{}", 32)]


class Blas:
    """The BLAS that NumPy has loaded: addresses of sgemm and dgemm, and the width of its integers in bits."""

    def __init__(self, path, sgemm, dgemm, bits):
        self.path, self.sgemm, self.dgemm, self.bits = path, sgemm, dgemm, bits


def find_blas():
    """NumPy's BLAS, told to use one thread; None where none is found whose functions can be called."""
    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    for info in sorted(controller.info(), key=lambda info: "numpy" not in info["filepath"]):
        library = ctypes.CDLL(info["filepath"])
        for spelling, bits in SPELLINGS:
            try:
                addresses = [_address(library[spelling.format(name)]) for name in ("sgemm", "dgemm")]
            except AttributeError:
                continue
            controller.limit(limits=1)   # for the life of the process: the object, not a context
            return Blas(os.path.basename(info["filepath"]), *addresses, bits)
    return None


def _address(function):
    return ctypes.cast(function, ctypes.c_void_p).value
