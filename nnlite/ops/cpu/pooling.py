"""Pooling of images (N, H, W, C).

A row of windows is made in two steps: the rows of x that it covers become one row (one long loop for each), then the
pixels of that row become windows. Backwards each row of dx gathers from the windows that cover it, so that threads,
which take rows, never write the same place.
"""

import numpy as np
from numba import njit, prange

from .elementwise import copy, plus
from .mathfun import kernel, straight
from .norm import fold, tile, wide


@kernel
def max_pool(x, y, place, kh, kw, sh, sw, ph, pw, train, chunks):
    """place: i kw + j of the largest in each window, the first if several are as large."""
    (N, H, W, C), Ho, Wo = x.shape, y.shape[1], y.shape[2]
    for chunk in prange(chunks):
        column, origin = np.empty((W, C), x.dtype), np.empty((W, C), np.uint8)
        spare = np.empty((Wo, C), np.uint8)
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            n, h = row // Ho, row % Ho
            first, last = covered(h, sh, ph, kh, H)
            for i in range(first, last):
                pixels = x[n, h * sh - ph + i].reshape(-1)
                take_larger(pixels, column.reshape(-1), origin.reshape(-1), i * kw, i == first)
            out, chosen = y[n, h], place[n, h] if train else spare
            for w in range(Wo):
                left, right = covered(w, sw, pw, kw, W)
                for j in range(left, right):
                    at = w * sw - pw + j
                    take_first_of_larger(column[at], origin[at], out[w], chosen[w], j, j == left)


@njit(inline="always")
def covered(window, stride, padding, kernel, size):
    """The places from first to last - 1 of this window that lie on x."""
    start = window * stride - padding
    return max(0, -start), min(kernel, size - start)


@straight
def take_larger(x, best, origin, code, new):
    if new:
        copy(x, best)
        origin[:] = code
        return
    code = np.uint8(code)
    for i in range(x.size):
        larger = (x[i] > best[i]) | ((x[i] != x[i]) & (best[i] == best[i]))
        best[i], origin[i] = x[i] if larger else best[i], code if larger else origin[i]


@straight
def take_first_of_larger(x, origin, best, place, code, new):
    """As take_larger, but of those that are as large the one with the smaller place wins."""
    code = np.uint8(code)
    if new:
        for c in range(x.size):
            best[c], place[c] = x[c], origin[c] + code
        return
    for c in range(x.size):
        a, b, k = x[c], best[c], np.uint8(origin[c] + code)
        a_is_nan, b_is_nan = a != a, b != b
        same = (a == b) | (a_is_nan & b_is_nan)
        larger = (a > b) | (a_is_nan & (b == b)) | (same & (k < place[c]))
        best[c], place[c] = a if larger else b, k if larger else place[c]


@kernel
def max_pool_backward(dy, place, dx, kh, kw, sh, sw, ph, pw, chunks):
    (N, H, W, C), Ho, Wo = dx.shape, dy.shape[1], dy.shape[2]
    for chunk in prange(chunks):
        for row in range(N * H * chunk // chunks, N * H * (chunk + 1) // chunks):
            n, r = row // H, row % H
            out = dx[n, r]
            out[:] = 0
            first, last = covering(r, sh, ph, kh, Ho)
            for h in range(first, last):
                i = r + ph - h * sh
                for w in range(Wo):
                    left, right = covered(w, sw, pw, kw, W)
                    for j in range(left, right):
                        add_where(dy[n, h, w], place[n, h, w], i * kw + j, out[w * sw - pw + j])


@njit(inline="always")
def covering(at, stride, padding, kernel, windows):
    """The windows from first to last - 1 that cover this row of x."""
    return max(0, (at + padding - kernel) // stride + 1), min(windows, (at + padding) // stride + 1)


@straight
def add_where(dy, place, code, dx):
    zero, code = dy.dtype.type(0), np.uint8(code)
    for c in range(dy.size):
        dx[c] += dy[c] if place[c] == code else zero


@kernel
def avg_pool(x, y, kh, kw, sh, sw, chunks):
    (N, H, W, C), Ho, Wo = x.shape, y.shape[1], y.shape[2]
    share = x.dtype.type(1 / (kh * kw))
    for chunk in prange(chunks):
        column = np.empty((W, C), x.dtype)
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            n, h = row // Ho, row % Ho
            column[:] = 0
            for i in range(kh):
                add_scaled(x[n, h * sh + i].reshape(-1), share, column.reshape(-1))
            out = y[n, h]
            out[:] = 0
            for w in range(Wo):
                for j in range(kw):
                    plus(out[w], column[w * sw + j], out[w])


@straight
def add_scaled(x, factor, out):
    for i in range(x.size):
        out[i] += factor * x[i]


@kernel
def avg_pool_backward(dy, dx, kh, kw, sh, sw, chunks):
    (N, H, W, C), Ho, Wo = dx.shape, dy.shape[1], dy.shape[2]
    share = dy.dtype.type(1 / (kh * kw))
    for chunk in prange(chunks):
        column = np.empty((Wo, C), dy.dtype)
        for row in range(N * H * chunk // chunks, N * H * (chunk + 1) // chunks):
            n, r = row // H, row % H
            column[:] = 0
            first, last = covering(r, sh, 0, kh, Ho)
            for h in range(first, last):
                add_scaled(dy[n, h].reshape(-1), share, column.reshape(-1))
            out = dx[n, r]
            out[:] = 0
            for w in range(Wo):
                for j in range(kw):
                    plus(out[w * sw + j], column[w], out[w * sw + j])


@kernel
def global_avg_pool(x, y, chunks):
    """x (N, H W C), y (N, C)."""
    N, C = y.shape
    width = wide(C)
    for chunk in prange(chunks):
        total = np.empty(width)
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            total[:] = 0
            for start in range(0, x.shape[1], width):
                add_double(x[n, start:start + width], total)
            mean = np.zeros(C)
            fold(total, mean)
            for c in range(C):
                y[n, c] = mean[c] * C / x.shape[1]


@straight
def add_double(x, total):
    for i in range(x.size):
        total[i] += np.float64(x[i])


@kernel
def global_avg_pool_backward(dy, dx, chunks):
    """dy (N, C), dx (N, H W C)."""
    N, C = dy.shape
    width = wide(C)
    share = dy.dtype.type(C / dx.shape[1])
    for chunk in prange(chunks):
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            each = np.zeros(C, dy.dtype)
            add_scaled(dy[n], share, each)
            each = tile(each, width)
            for start in range(0, dx.shape[1], width):
                out = dx[n, start:start + width]
                copy(each[:out.size], out)
