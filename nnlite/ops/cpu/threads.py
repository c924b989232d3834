"""Threads, set up in one place: one pool for everything.

Two pools on the same cores fight: the workers of one spin while the other computes. So there is one, Numba's, and the
matrix products are BLAS calls on one thread each, made inside its parallel loops (see blas.py). Here BLAS is told to
use one thread, and both libraries are found.

A worker that waits for the next parallel loop spins for a moment, then sleeps. Spinning long is fast on an idle machine
but ruins a busy one, where the spinning thread holds the core that its partner needs: on two cores beside one other
process a step then takes ten times as long. Sleeping at once costs a third on an idle machine. SPINS is between: long
enough for the gaps between the kernels of a step.

The number of threads is NUMBA_NUM_THREADS where that is set, else the cores this process may use.
"""

import ctypes
import os

SPINS = 10_000
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))   # read by OpenMP when Numba loads it

import numba  # noqa: E402
import numpy  # noqa: E402, F401  loads the BLAS that is looked for
import threadpoolctl  # noqa: E402

# Names under which builds of OpenBLAS, MKL and others export their functions, and their integer width in bits.
SPELLINGS = [("scipy_cblas_{}64_", 64), ("cblas_{}64_", 64), ("scipy_cblas_{}", 32), ("cblas_{}", 32)]


def count():
    """How many threads a kernel uses."""
    return numba.get_num_threads()


def use(threads):
    """Use this many from now on, at most as many as Numba was started with."""
    numba.set_num_threads(threads)


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
