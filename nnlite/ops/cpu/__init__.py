"""CpuOps: the methods of ReferenceOps that Numba makes faster. Kernels live in the family files beside this one."""

import functools
import math

import numpy as np

from ..pool import Pool
from ..reference import ReferenceOps
from . import threads  # first: it sets up the threads of what the others load
from . import blas, elementwise, latent, matrix, optimisers, philox
from .elementwise import plain
from .notice import announce_compilation

GRAIN = 4096   # elements of cheap work that are worth a thread


class CpuOps(ReferenceOps):
    name = "cpu"

    def __init__(self):
        self.threads = threads.count()
        self._pool = Pool()
        self.empty = self._pool.empty   # straight: a step asks for some sixty arrays
        announce_compilation()

    def set_threads(self, count):
        """Use this many threads from now on, at most as many as Numba was started with."""
        threads.use(count)
        self.threads = count

    def device_line(self):
        products = f"{blas.blas.path} on the same threads" if blas.blas else "NumPy's products on threads of its own"
        return f"cpu, {self.threads} threads (Numba kernels, {products})"

    def _chunks(self, work):
        """How many pieces work elements are cut into."""
        pieces = work // GRAIN
        return self.threads if pieces >= self.threads else pieces or 1

    # -- arrays --------------------------------------------------------------------------------------------------

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def contiguous(self, x):
        if x.flags.c_contiguous:
            return x
        out = self.empty(x.shape, x.dtype)
        np.copyto(out, x)
        return out

    def take_rows(self, x, rows):
        out = self.empty((len(rows), *x.shape[1:]), x.dtype)
        width = math.prod(x.shape[1:])
        elementwise.take_rows(plain(x).reshape(len(x), width), rows, out.reshape(len(rows), width),
                              self._chunks(out.size))
        return out

    def concat(self, parts, axis):
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return np.concatenate(parts, axis, out=self.empty(tuple(shape), parts[0].dtype))

    def _pairwise(self, function, a, b):
        out = self.empty(a.shape, a.dtype)
        function(_flat(a), _flat(b), out.reshape(-1), self._chunks(a.size))
        return out

    def add(self, a, b):
        return self._pairwise(elementwise.add, a, b)

    def multiply(self, a, b):
        return self._pairwise(elementwise.multiply, a, b)

    def sum_of_squares(self, x):
        partial = np.empty(self._chunks(x.size))
        elementwise.sum_of_squares(_flat(x), partial)
        return partial.sum()

    # -- random numbers ------------------------------------------------------------------------------------------

    def random_words(self, rows, columns, key):
        out = self.empty((rows, columns), np.uint32)
        philox.random_words(out, *philox.pack_key(key), self._chunks(out.size))
        return out

    def normal(self, shape, key, dtype):
        out = self.empty(shape, dtype)
        philox.normal(out.reshape(-1, shape[-1]), *philox.pack_key(key), self._chunks(out.size))
        return out

    # -- matrix products -----------------------------------------------------------------------------------------

    if blas.blas is not None:   # else NumPy's matmul in ReferenceOps, with the threads of its BLAS
        linear, linear_backward = matrix.linear, matrix.linear_backward
        dense, dense_backward = matrix.dense, matrix.dense_backward

    # -- element by element --------------------------------------------------------------------------------------

    def activation(self, x, function, alpha, train):
        y, slope = self.empty(x.shape, x.dtype), self.empty(x.shape, x.dtype)
        elementwise.activation(_flat(x), y.reshape(-1), slope.reshape(-1), elementwise.CODES[function],
                               x.dtype.type(alpha), self._chunks(x.size))
        return y, slope if train else None

    # -- Gaussian latents and losses -----------------------------------------------------------------------------

    def gaussian_sample(self, h, samples, key):
        z = self.empty((len(h) * samples, h.shape[1] // 2), h.dtype)
        latent.gaussian_sample(plain(h), z, samples, *philox.pack_key(key), self._chunks(8 * z.size))
        return z

    def gaussian_sample_backward(self, dz, h, z):
        dh = self.empty(h.shape, h.dtype)
        latent.gaussian_sample_backward(plain(dz), plain(h), plain(z), dh, self._chunks(z.size))
        return dh

    def squared_error(self, f, x, scale):
        df, partial = self.empty(f.shape, f.dtype), np.empty(self._chunks(f.size))
        latent.squared_error(plain(f), plain(x), df, f.dtype.type(2 * scale), partial)
        return float(scale) * partial.sum(), df

    def gaussian_kl(self, h, scale):
        dh, partial = self.empty(h.shape, h.dtype), np.empty(self._chunks(h.size))
        latent.gaussian_kl(plain(h), dh, h.dtype.type(scale), partial)
        return float(scale) / 2 * partial.sum(), dh

    def triplet_softplus(self, z, weight, scale):
        dz, partial = self.empty(z.shape, z.dtype), np.empty(self._chunks(z.size))
        latent.triplet_softplus(plain(z), weight, dz, z.dtype.type(scale), partial)
        return float(scale) * partial.sum(), dz

    # -- optimisers ----------------------------------------------------------------------------------------------

    def sgd(self, p, g, m, ranges, lr, clip, momentum, nesterov):
        real = p.dtype.type
        optimisers.sgd(p, g, p if m is None else m, *_ranges(tuple(ranges), real), real(lr), real(clip), real(momentum),
                       m is not None, nesterov, self._chunks(p.size))

    def adagrad(self, p, g, v, ranges, lr, clip, eps):
        real = p.dtype.type
        optimisers.adagrad(p, g, v, *_ranges(tuple(ranges), real), real(lr), real(clip), real(eps), self._chunks(p.size))

    def rmsprop(self, p, g, v, ranges, lr, clip, rho, eps):
        real = p.dtype.type
        optimisers.rmsprop(p, g, v, *_ranges(tuple(ranges), real), real(lr), real(clip), real(rho), real(eps),
                           self._chunks(p.size))

    def adam(self, p, g, m, v, ranges, lr, clip, beta1, beta2, eps, t, decoupled):
        real, t = p.dtype.type, int(t)
        optimisers.adam(p, g, m, v, *_ranges(tuple(ranges), real), real(lr), real(clip), real(beta1), real(beta2),
                        real(1 - beta1), real(1 - beta2), real(eps), real(1 / (1 - beta1 ** t)),
                        real(1 / math.sqrt(1 - beta2 ** t)), decoupled, self._chunks(p.size))


def _flat(x):
    return plain(x).reshape(-1)


@functools.lru_cache(maxsize=64)
def _ranges(ranges, real):
    """bounds, decay and rate as arrays; an optimiser asks for the same ones at each step."""
    bounds = np.array([start for start, _, _ in ranges] + [ranges[-1][1]], np.int64)
    return bounds, np.array([d for _, _, (d, _) in ranges], real), np.array([r for _, _, (_, r) in ranges], real)
