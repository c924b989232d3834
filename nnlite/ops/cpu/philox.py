"""Philox 4x32-10 in Numba, the same numbers as nnlite.ops.reference.philox."""

import numpy as np
from numba import njit, prange

from .elementwise import copy
from .mathfun import cos_sin_turn, kernel, log, straight


M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
SHIFT = np.uint64(32)


@njit(inline="always")
def philox(c0, c1, c2, c3, k0, k1):
    """The four words of a counter; all uint32."""
    for _ in range(10):
        p0, p1 = np.uint64(c0) * M0, np.uint64(c2) * M1
        c0, c1, c2, c3 = (np.uint32(p1 >> SHIFT) ^ c1 ^ k0, np.uint32(p1),
                          np.uint32(p0 >> SHIFT) ^ c3 ^ k1, np.uint32(p0))
        k0, k1 = np.uint32(k0 + W0), np.uint32(k1 + W1)
    return c0, c1, c2, c3


@straight
def fill_words(words, first, count, k0, k1, stream, step):
    """words (4 count,) uint32: word w of block first + i at w count + i."""
    k0, k1, stream = np.uint32(k0), np.uint32(k1), np.uint32(stream)
    step_low, step_high = np.uint32(step & 0xFFFFFFFF), np.uint32(step >> 32)
    for i in range(count):
        a, b, c, d = philox(np.uint32(first + i), stream, step_low, step_high, k0, k1)
        words[i] = a
        words[count + i] = b
        words[2 * count + i] = c
        words[3 * count + i] = d


@straight
def fill_normals(eps, words, first, count, k0, k1, stream, step):
    """eps (4 count,): N(0, 1) in the places of the words; words is scratch."""
    fill_words(words, first, count, k0, k1, stream, step)
    real = eps.dtype.type
    scale, half, minus_two = real(2.0 ** -32), real(0.5), real(-2)
    for part in range(0, 4 * count, 2 * count):
        a, b, x, y = words[part:part + count], words[part + count:], eps[part:part + count], eps[part + count:]
        for i in range(count):
            radius = np.sqrt(minus_two * log((real(a[i]) + half) * scale))
            c, s = cos_sin_turn(real(b[i]) * scale)
            x[i], y[i] = radius * c, radius * s


@kernel
def random_words(out, k0, k1, stream, step, chunks):
    rows, columns = out.shape
    quarter = (columns + 3) // 4
    for chunk in prange(chunks):
        words = np.empty(4 * quarter, np.uint32)
        for row in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
            fill_words(words, row * quarter, quarter, k0, k1, stream, step)
            copy(words[:columns], out[row])


@kernel
def normal(out, k0, k1, stream, step, chunks):
    rows, columns = out.shape
    quarter = (columns + 3) // 4
    for chunk in prange(chunks):
        words, eps = np.empty(4 * quarter, np.uint32), np.empty(4 * quarter, out.dtype)
        for row in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
            fill_normals(eps, words, row * quarter, quarter, k0, k1, stream, step)
            copy(eps[:columns], out[row])
