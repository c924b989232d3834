"""CudaOps: the methods of ReferenceOps on an NVIDIA GPU. Matrix products by cuBLAS, whole layers and losses by the
kernels of the .cu files beside this one, and what is a single pass in CuPy already (add, multiply, take_rows) by CuPy.

No method waits for the device but to_host and all_finite, and none reads a number from it: learning rate, step and
scale may be 0-d arrays, which the kernels read. So a step can be captured as a graph; see graph.py. The methods on
images and class labels are in images.py, those on tokens in tokens.py.
"""

import math

import cupy
import numpy as np

from ..reference import ReferenceOps, keep_threshold
from .blas import TRANSPOSED, Blas
from .graph import Capture, Staging
from .images import ImageOps, stretches
from .kernels import BLOCK, CODES, NO_KEY, Kernels, flat, key_words, plain, pointer, scalar
from .tokens import TokenOps

TRIPLET_BLOCK = 64   # as in latent.cu
PER_THREAD = 4       # elements that a thread adds up before its block does
MOST_BLOCKS = 1024   # of a sum's first stage
STAGED = 1 << 20     # bytes: copies from the host up to this size wait for nobody


class CudaOps(ImageOps, TokenOps, ReferenceOps):
    name = "cuda"
    xp = cupy
    array_type = cupy.ndarray
    array_name = "CuPy"

    def __init__(self):
        self._kernels, self._blas, self._staging = Kernels(), Blas(), Staging()
        self._ranges = {}   # ranges of an optimiser -> the same as device arrays

    def device_line(self):
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
        products = "TensorFloat-32" if self._blas.tf32 else "full float32"
        return f"cuda, {device} (CuPy {cupy.__version__}, products in {products})"

    # -- arrays --------------------------------------------------------------------------------------------------

    def to_host(self, array):
        return cupy.asnumpy(array)

    def set_scalar(self, scalar, value):
        scalar.fill(value)   # the value travels as a kernel's argument, in stream order

    def copy_into(self, target, values):
        if isinstance(values, cupy.ndarray) or not target.flags.c_contiguous or target.nbytes > STAGED:
            target[...] = self.asarray(values, target.dtype)
        elif target.size:
            self._staging.copy(target, values)

    def concat(self, parts, axis):
        shape, start = list(parts[0].shape), 0
        shape[axis] = sum(part.shape[axis] for part in parts)
        out = self.empty(tuple(shape), parts[0].dtype)
        # One copy a part: CuPy's concatenate sends a table of addresses from the host, which no graph can hold.
        for part in parts:
            stop = start + part.shape[axis]
            cupy.moveaxis(out, axis, 0)[start:stop] = cupy.moveaxis(part, axis, 0)
            start = stop
        return out

    def sum_of_squares(self, x):
        partial = self._partial(x.size)
        self._kernels("sum_of_squares", x.dtype, len(partial) * BLOCK, plain(x), x.size, partial)
        return self._finish_sum(x.dtype, partial, 1.0, 1.0)

    def _partial(self, count):
        """Room for the first stage of a sum of count numbers: one number a block."""
        return self.empty((max(1, min(MOST_BLOCKS, -(-count // (BLOCK * PER_THREAD)))),), "float64")

    def _finish_sum(self, dtype, partial, factor, scale):
        """factor * scale * sum of partial, 0-d."""
        value = self.empty((), "float64")
        self._kernels("finish_sum", dtype, BLOCK, partial, len(partial), factor, *scalar(scale), value)
        return value

    def synchronize(self):
        cupy.cuda.Device().synchronize()

    def capture(self, step, frozen=False):
        return Capture(step)

    def free_bytes(self):
        return cupy.cuda.Device().mem_info[0] + cupy.get_default_memory_pool().free_bytes()

    def bytes_of(self, step):
        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            step()
        return pool.total_bytes()

    # -- random numbers ------------------------------------------------------------------------------------------

    def random_words(self, rows, columns, key):
        out = self.empty((rows, columns), "uint32")
        self._kernels("random_words", "float32", _blocks(rows, columns), out, rows, columns, *key_words(key))
        return out

    def normal(self, shape, key, dtype):
        out, rows = self.empty(shape, dtype), math.prod(shape[:-1])
        self._kernels("normal", dtype, _blocks(rows, shape[-1]), out, rows, shape[-1], *key_words(key))
        return out

    # -- matrix products -----------------------------------------------------------------------------------------

    def linear(self, x, W, b):
        y = self.empty((*x.shape[:-1], W.shape[1]), x.dtype)
        self._blas.gemm(flat(x), plain(W), flat(y))
        if b is not None:
            self._dense_forward(y, None, b, "identity", 1.0, None)
        return y

    def linear_backward(self, dy, x, W, dW, db, accumulate, need_dx):
        if db is not None:
            self._sum_rows(flat(dy), None, None, db, accumulate)
        return self._products_backward(flat(dy), x, W, dW, accumulate, need_dx)

    def dense(self, x, W, b, activation, keep_prob, key, train):
        y = self.empty((*x.shape[:-1], W.shape[1]), x.dtype)
        slope = self.empty(y.shape, y.dtype) if train else None
        self._blas.gemm(flat(x), plain(W), flat(y))
        self._dense_forward(y, slope, b, activation, keep_prob if train else 1.0, key)
        return y, slope

    def dense_backward(self, dy, slope, x, W, dW, db, accumulate, need_dx):
        dy = flat(dy)
        dh = self.empty(dy.shape, dy.dtype)
        self._sum_rows(dy, plain(slope), dh, db, accumulate)
        return self._products_backward(dh, x, W, dW, accumulate, need_dx)

    def _dense_forward(self, y, slope, b, activation, keep_prob, key):
        """y = m f(y + b), slope = m f'(y + b) unless it is None."""
        columns = y.shape[-1]
        rows = y.size // columns if columns else 0
        each = max(1, rows // (1 if b.ndim == 1 else len(b)))
        threshold, words = (keep_threshold(keep_prob), key_words(key)) if keep_prob < 1 else (0, NO_KEY)
        self._kernels("dense_forward", y.dtype, _blocks(rows, columns), y, pointer(slope), plain(b), rows, columns,
                      each, CODES[activation], np.uint64(threshold), 1 / keep_prob, *words)

    def _sum_rows(self, dy, slope, dh, db, accumulate):
        """dh = dy slope, unless slope is None, and db = sums of dh over the rows of each group."""
        rows, columns = dy.shape
        groups = 1 if db.ndim == 1 else len(db)
        each = rows // max(1, groups)
        stretch, parts = stretches(each)
        sums = db if parts == 1 else self.empty((groups, parts, columns), dy.dtype)
        self._kernels("dense_backward", dy.dtype, groups * parts * columns, dy, pointer(slope), pointer(dh), sums,
                      groups, each, columns, parts, stretch, np.int32(accumulate and parts == 1))
        if parts > 1:
            self._kernels("add_parts", dy.dtype, groups * columns, sums, db, groups, parts, columns,
                          np.int32(accumulate))

    def _products_backward(self, dh, x, W, dW, accumulate, need_dx):
        """dW = x^T dh, and dx = dh W^T, or None."""
        self._blas.gemm(flat(x), dh, dW, a_form=TRANSPOSED, accumulate=accumulate)
        if not need_dx:
            return None
        dx = self.empty(x.shape, x.dtype)
        self._blas.gemm(dh, plain(W), flat(dx), b_form=TRANSPOSED)
        return dx

    # -- element by element --------------------------------------------------------------------------------------

    def activation(self, x, function, alpha, train):
        y, slope = self.empty(x.shape, x.dtype), self.empty(x.shape, x.dtype) if train else None
        self._kernels("activation", x.dtype, x.size, plain(x), y, pointer(slope), x.size, CODES[function],
                      float(alpha))
        return y, slope

    def dropout(self, x, keep_prob, key):
        y, mask = self.empty(x.shape, x.dtype), self.empty(x.shape, x.dtype)
        rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
        self._kernels("dropout", x.dtype, _blocks(rows, columns), plain(x), y, mask, rows, columns,
                      np.uint64(keep_threshold(keep_prob)), 1 / keep_prob, *key_words(key))
        return y, mask

    # -- Gaussian latents and losses -----------------------------------------------------------------------------

    def gaussian_sample(self, h, samples, key):
        rows, K = len(h) * samples, h.shape[1] // 2
        z = self.empty((rows, K), h.dtype)
        self._kernels("gaussian_sample", h.dtype, _blocks(rows, K), plain(h), z, rows, K, samples, *key_words(key))
        return z

    def gaussian_sample_backward(self, dz, h, z):
        N, K = len(h), h.shape[1] // 2
        dh = self.empty(h.shape, h.dtype)
        self._kernels("gaussian_sample_backward", h.dtype, N * K, plain(dz), plain(h), plain(z), dh, N, K,
                      len(z) // max(1, N))
        return dh

    def squared_error(self, f, x, scale):
        df, partial = self.empty(f.shape, f.dtype), self._partial(f.size)
        self._kernels("squared_error", f.dtype, len(partial) * BLOCK, plain(f), plain(x), df, *f.shape,
                      len(f) // len(x), *scalar(scale), partial)
        return self._finish_sum(f.dtype, partial, 1.0, scale), df

    def gaussian_kl(self, h, scale):
        dh, partial = self.empty(h.shape, h.dtype), self._partial(h.size // 2)
        self._kernels("gaussian_kl", h.dtype, len(partial) * BLOCK, plain(h), dh, len(h), h.shape[1] // 2,
                      *scalar(scale), partial)
        return self._finish_sum(h.dtype, partial, 0.5, scale), dh

    def triplet_softplus(self, z, weight, scale):
        rows = len(z) // 3
        dz, partial = self.empty(z.shape, z.dtype), self.empty((rows,), "float64")
        self._kernels("triplet_softplus", z.dtype, rows * TRIPLET_BLOCK, plain(z), weight.astype(z.dtype, copy=False),
                      dz, rows, z.shape[1], rows // len(weight), *scalar(scale), partial, block=TRIPLET_BLOCK)
        return self._finish_sum(z.dtype, partial, 1.0, scale), dz

    # -- optimisers ----------------------------------------------------------------------------------------------

    def sgd(self, p, g, m, ranges, lr, clip, momentum, nesterov):
        self._update("sgd", p, g, pointer(m), ranges=ranges, lr=lr, clip=clip,
                     options=(float(momentum), np.int32(nesterov)))

    def adagrad(self, p, g, v, ranges, lr, clip, eps):
        self._update("adagrad", p, g, v, ranges=ranges, lr=lr, clip=clip, options=(float(eps),))

    def rmsprop(self, p, g, v, ranges, lr, clip, rho, eps):
        self._update("rmsprop", p, g, v, ranges=ranges, lr=lr, clip=clip, options=(float(rho), float(eps)))

    def adam(self, p, g, m, v, ranges, lr, clip, beta1, beta2, eps, t, decoupled):
        self._update("adam", p, g, m, v, ranges=ranges, lr=lr, clip=clip,
                     options=(float(beta1), float(beta2), float(eps), t, np.int32(decoupled)))

    def _update(self, name, p, *arrays, ranges, lr, clip, options):
        self._kernels(name, p.dtype, p.size, p, *arrays, p.size, *self._device_ranges(ranges), *scalar(lr),
                      *scalar(clip), *options)

    def _device_ranges(self, ranges):
        """bounds, decay and rate as device arrays, made once for each optimiser."""
        ranges = tuple(ranges)
        if ranges not in self._ranges:
            bounds = [start for start, _, _ in ranges] + [ranges[-1][1]]
            self._ranges[ranges] = (self.asarray(bounds, "int64"),
                                    self.asarray([decay for _, _, (decay, _) in ranges], "float64"),
                                    self.asarray([rate for _, _, (_, rate) in ranges], "float64"))
        return self._ranges[ranges]


def _blocks(rows, columns):
    """How many Philox blocks serve an array (see nnlite.rng); four columns each."""
    return rows * -(-columns // 4)
