"""Samples and channels times numbers of their own: stochastic depth, squeeze-and-excitation.

Rows of few channels are taken several at a time, as one wide row (norm.py).
"""

import numpy as np
from numba import prange

from .elementwise import product
from .mathfun import kernel, straight
from .norm import fold, tile, wide


@kernel
def scale_samples(x, m, y, chunks):
    """y[n] = m[n] x[n]; x (N, M), m (N,)."""
    N = len(x)
    for chunk in prange(chunks):
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            times(x[n], m[n], y[n])


@straight
def times(x, m, y):
    for i in range(x.size):
        y[i] = m * x[i]


@kernel
def scale_channels(x, s, y, chunks):
    """y[n, p, c] = x[n, p, c] s[n, c]; x (N, P C), s (N, C). Threads share images too: there may be but one."""
    (N, C), P = s.shape, x.shape[1] // s.shape[1]
    width, x, y = wide(C), x.reshape(-1), y.reshape(-1)
    for chunk in prange(chunks):
        start, stop = N * P * chunk // chunks, N * P * (chunk + 1) // chunks
        while start < stop:
            n = start // P
            end, factors = min(stop, (n + 1) * P), tile(s[n], width)
            for at in range(start * C, end * C, width):
                part = slice(at, min(at + width, end * C))
                product(x[part], factors, y[part])
            start = end


@kernel
def scale_channels_backward(dy, x, s, dx, ds, chunks):
    """dx = dy s, ds[n, c] = sum over p of dy x."""
    N, C = s.shape
    width = wide(C)
    for chunk in prange(chunks):
        total, sums = np.empty(width), np.empty(C)
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            total[:] = 0
            sums[:] = 0
            factors = tile(s[n], width)
            for start in range(0, x.shape[1], width):
                part = slice(start, min(start + width, x.shape[1]))
                scale_and_sum(dy[n, part], x[n, part], factors, dx[n, part], total)
            fold(total, sums)
            for c in range(C):
                ds[n, c] = sums[c]


@straight
def scale_and_sum(dy, x, factors, dx, total):
    for i in range(x.size):
        dx[i] = dy[i] * factors[i]
        total[i] += np.float64(dy[i] * x[i])
