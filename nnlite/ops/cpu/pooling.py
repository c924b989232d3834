"""Pooling of images (N, H, W, C): vectors of channels (places.py), window by window.

Backwards each pixel of dx gathers from the windows that cover it: so it is written once, without a fill before, and
threads, which take rows, never write the same place.
"""

import numpy as np
from numba import njit, prange

from .elementwise import copy
from .mathfun import kernel, straight
from .norm import fold, tile, wide
from .places import get, get_places, larger, only, places_of, put, put_places
from .simd import BYTES, add, constant, mul, zero


@kernel
def max_pool(x, y, place, kh, kw, sh, sw, ph, pw, train, chunks):
    """place: i kw + j of the largest in each window, the first if several are as large."""
    N, H, W, C = x.shape
    Ho, Wo, lanes = y.shape[1], y.shape[2], BYTES // x.itemsize
    x, y, place = x.reshape(-1), y.reshape(-1), place.reshape(-1)
    for chunk in prange(chunks):
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            top = row % Ho * sh - ph
            for w in range(Wo):
                left, out = w * sw - pw, (row * Wo + w) * C
                window = ((row // Ho * H + top) * W + left) * C
                for c in range(0, C, lanes):
                    n, best = min(lanes, C - c), constant(x, -np.inf)
                    k = places_of(0, best)
                    for i in range(max(0, -top), min(kh, H - top)):
                        for j in range(max(0, -left), min(kw, W - left)):
                            best, k = larger(get(x, window + (i * W + j) * C + c, n), i * kw + j, best, k)
                    put(y, out + c, best, n)
                    if train:
                        put_places(place, out + c, k, n)


@kernel
def max_pool_backward(dy, place, dx, kh, kw, sh, sw, ph, pw, chunks):
    N, H, W, C = dx.shape
    Ho, Wo, lanes = dy.shape[1], dy.shape[2], BYTES // dx.itemsize
    dy, place, dx = dy.reshape(-1), place.reshape(-1), dx.reshape(-1)
    across = covering(W, kw, sw, pw, Wo)
    down = covering(H, kh, sh, ph, Ho)
    for chunk in prange(chunks):
        for row in range(N * H * chunk // chunks, N * H * (chunk + 1) // chunks):
            image, r = row // H, row % H
            for q in range(W):
                h, w, out = down[r, 0], across[q, 0], (row * W + q) * C
                if down[r, 1] == h + 1 and across[q, 1] == w + 1:   # every pixel, if windows lie side by side
                    window, code = ((image * Ho + h) * Wo + w) * C, (r + ph - h * sh) * kw + q + pw - w * sw
                    for c in range(0, C, lanes):
                        n = min(lanes, C - c)
                        d = get(dy, window + c, n)
                        put(dx, out + c, only(get_places(place, window + c, d, n), code, d), n)
                    continue
                for c in range(0, C, lanes):
                    n, total = min(lanes, C - c), zero(dx)
                    for h in range(down[r, 0], down[r, 1]):
                        for w in range(across[q, 0], across[q, 1]):
                            window, code = ((image * Ho + h) * Wo + w) * C, (r + ph - h * sh) * kw + q + pw - w * sw
                            d = get(dy, window + c, n)
                            total = add(total, only(get_places(place, window + c, d, n), code, d))
                    put(dx, out + c, total, n)


@njit
def covering(size, kernel, stride, padding, windows):
    """(size, 2): the windows that cover each place of an axis, from the first up to but without the last."""
    bounds = np.empty((size, 2), np.int64)
    for at in range(size):
        bounds[at, 0] = max(0, (at + padding - kernel) // stride + 1)
        bounds[at, 1] = min(windows, (at + padding) // stride + 1)
    return bounds


@kernel
def avg_pool(x, y, kh, kw, sh, sw, chunks):
    N, H, W, C = x.shape
    Ho, Wo, lanes = y.shape[1], y.shape[2], BYTES // x.itemsize
    x, y = x.reshape(-1), y.reshape(-1)
    for chunk in prange(chunks):
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            for w in range(Wo):
                window, out = ((row // Ho * H + row % Ho * sh) * W + w * sw) * C, (row * Wo + w) * C
                for c in range(0, C, lanes):
                    n, total = min(lanes, C - c), zero(x)
                    for i in range(kh):
                        for j in range(kw):
                            total = add(total, get(x, window + (i * W + j) * C + c, n))
                    put(y, out + c, mul(total, constant(x, 1 / (kh * kw))), n)


@kernel
def avg_pool_backward(dy, dx, kh, kw, sh, sw, chunks):
    N, H, W, C = dx.shape
    Ho, Wo, lanes = dy.shape[1], dy.shape[2], BYTES // dx.itemsize
    dy, dx = dy.reshape(-1), dx.reshape(-1)
    across, down = covering(W, kw, sw, 0, Wo), covering(H, kh, sh, 0, Ho)
    for chunk in prange(chunks):
        for row in range(N * H * chunk // chunks, N * H * (chunk + 1) // chunks):
            image, r = row // H, row % H
            for q in range(W):
                for c in range(0, C, lanes):
                    n, total = min(lanes, C - c), zero(dx)
                    for h in range(down[r, 0], down[r, 1]):
                        for w in range(across[q, 0], across[q, 1]):
                            total = add(total, get(dy, ((image * Ho + h) * Wo + w) * C + c, n))
                    put(dx, (row * W + q) * C + c, mul(total, constant(dx, 1 / (kh * kw))), n)


@kernel
def global_avg_pool(x, y, chunks):
    """x (N, H W C), y (N, C)."""
    N, C = y.shape
    width = wide(C)
    for chunk in prange(chunks):
        total, sums = np.empty(width), np.empty(C)
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            total[:] = 0
            sums[:] = 0
            for start in range(0, x.shape[1], width):
                add_to(x[n, start:start + width], total)
            fold(total, sums)
            for c in range(C):
                y[n, c] = sums[c] * C / x.shape[1]


@straight
def add_to(x, total):
    for i in range(x.size):
        total[i] += np.float64(x[i])


@kernel
def global_avg_pool_backward(dy, dx, chunks):
    """dy (N, C), dx (N, H W C)."""
    N, C = dy.shape
    width = wide(C)
    for chunk in prange(chunks):
        each = np.empty(C, dy.dtype)
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            for c in range(C):
                each[c] = dy[n, c] * C / dx.shape[1]
            pixels = tile(each, width)
            for start in range(0, dx.shape[1], width):
                out = dx[n, start:start + width]
                copy(pixels[:out.size], out)
