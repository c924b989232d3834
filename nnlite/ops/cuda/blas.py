"""gemm: cuBLAS's matrix product, straight from its library.

CuPy's own way to cuBLAS refuses to run while a graph is captured (it cannot vouch for every function); sgemm and dgemm
with a workspace of the caller's may be captured (cuBLAS documentation, "CUDA Graphs Support"), so they are called here.

Products are in full float32 unless the environment has CUPY_TF32=1: TensorFloat-32, 10 bits of mantissa.
"""

import ctypes
import os

import cupy

from ...errors import expected

POINTER, INT = ctypes.c_void_p, ctypes.c_int
PLAIN, TRANSPOSED = 0, 1         # cublasOperation_t
DEFAULT_MATH, TF32_MATH = 0, 3   # cublasMath_t
WORKSPACE = 32 << 20             # bytes: what NVIDIA recommends for Hopper, the largest of all devices


class Blas:
    """A cuBLAS handle whose stream is always the current one. All streams share one workspace: products that run at
    the same time on two streams would spoil each other, so work on one, as nnlite does."""

    def __init__(self):
        self._library = load()
        for name in ("cublasSgemm_v2", "cublasDgemm_v2"):
            # handle, forms of a and b, m, n, k, alpha, then a, b with their columns' distance, beta, and c with its
            getattr(self._library, name).argtypes = [POINTER, INT, INT, INT, INT, INT, POINTER, POINTER, INT, POINTER,
                                                     INT, POINTER, POINTER, INT]
        self._handle, self._stream = ctypes.c_void_p(), None
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self.tf32 = os.environ.get("CUPY_TF32") == "1"
        self._call("cublasSetMathMode", self._handle, TF32_MATH if self.tf32 else DEFAULT_MATH)
        self._workspace = cupy.cuda.alloc(WORKSPACE)
        self._functions = {"float32": ("cublasSgemm_v2", *_constants(ctypes.c_float)),
                           "float64": ("cublasDgemm_v2", *_constants(ctypes.c_double))}

    def gemm(self, a, b, out, *, a_form=PLAIN, b_form=PLAIN, accumulate=False):
        """out (m, n) = op(a) op(b), added to out if accumulate; op as the forms say. Rows of matrices lie in C order,
        any distance apart: a matrix may be some neighbouring columns of a larger one."""
        (m, n), k = out.shape, a.shape[0] if a_form else a.shape[1]
        self._follow(cupy.cuda.get_current_stream().ptr)
        function, one, zero = self._functions[out.dtype.name]
        # cuBLAS sees columns where we have rows, that is, all matrices transposed: out^T = op(b)^T op(a)^T.
        self._call(function, self._handle, b_form, a_form, n, m, k, one, b.data.ptr, _distance(b), a.data.ptr,
                   _distance(a), one if accumulate else zero, out.data.ptr, _distance(out))

    def _follow(self, stream):
        if stream != self._stream:
            # A new stream resets the workspace to one that cuBLAS allocates, which must not happen during a capture.
            self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
            self._call("cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(self._workspace.ptr),
                       ctypes.c_size_t(WORKSPACE))
            self._stream = stream

    def _call(self, name, *arguments):
        status = getattr(self._library, name)(*arguments)   # not [name], which makes a function without argtypes
        if status:
            raise expected(f"cuBLAS {name}", "status 0", status)


def load():
    """The functions of the cuBLAS that CuPy has loaded, found through CuPy's module, which is linked against it."""
    from cupy_backends.cuda.libs import cublas
    return ctypes.CDLL(cublas.__file__)


def _distance(matrix):
    """From one row to the next, in elements."""
    return max(1, matrix.strides[0] // matrix.itemsize if len(matrix) > 1 else matrix.shape[1])


def _constants(real):
    return ctypes.pointer(real(1)), ctypes.pointer(real(0))
