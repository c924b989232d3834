"""gemm: BLAS's matrix product, callable from Numba code, on one thread.

Calls go straight to the functions of the BLAS that NumPy has loaded, by address: no Python in between, so they may
stand inside a parallel loop, each on its thread, with the elementwise work on the same rows right behind them.
"""

import llvmlite.binding
from numba import types
from numba.extending import overload

from .threads import find_blas

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112

blas = find_blas()


def _external(name, address, real):
    llvmlite.binding.add_symbol(name, address)
    integer, pointer = (types.int64 if blas.bits == 64 else types.int32), types.intp
    return types.ExternalFunction(name, types.void(
        types.int32, types.int32, types.int32, integer, integer, integer,
        real, pointer, integer, pointer, integer, real, pointer, integer))


if blas is not None:
    _sgemm = _external("nnlite_sgemm", blas.sgemm, types.float32)
    _dgemm = _external("nnlite_dgemm", blas.dgemm, types.float64)


def gemm(a_form, b_form, m, n, k, a, lda, b, ldb, accumulate, c, ldc):
    """c (m, n) = op(a) (m, k) op(b) (k, n), added to c if accumulate; op as a_form, b_form say.

    a, b, c are arrays whose first element is the matrix's; rows are lda, ldb, ldc elements apart. Only for code
    compiled by Numba.
    """
    raise NotImplementedError


@overload(gemm)
def _gemm(a_form, b_form, m, n, k, a, lda, b, ldb, accumulate, c, ldc):
    if a.dtype is types.float32:
        def implementation(a_form, b_form, m, n, k, a, lda, b, ldb, accumulate, c, ldc):
            _sgemm(ROW_MAJOR, a_form, b_form, m, n, k, types.float32(1), a.ctypes.data, lda, b.ctypes.data, ldb,
                   types.float32(accumulate), c.ctypes.data, ldc)
    else:
        def implementation(a_form, b_form, m, n, k, a, lda, b, ldb, accumulate, c, ldc):
            _dgemm(ROW_MAJOR, a_form, b_form, m, n, k, 1.0, a.ctypes.data, lda, b.ctypes.data, ldb,
                   types.float64(accumulate), c.ctypes.data, ldc)
    return implementation
