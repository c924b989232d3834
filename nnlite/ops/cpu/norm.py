"""Batch norm over rows (R, C), and batch norm, ReLU and 2x2 max pooling in one.

All is bound by memory, so the pixels are read as seldom as can be: once for the statistics, once for y; once for the
sums of backward, once for dx. Rows of few channels are taken several at a time, as one wide row, so that inner loops
are long; the numbers of a channel are repeated to the same width (`tile`). x and its like are flat (R C,).
"""

import numpy as np
from numba import njit, prange

from .elementwise import CODES, activate, copy, product
from .mathfun import kernel, straight
from .places import above, choose, get, get_places, larger, only, places_of, put, put_places
from .simd import BYTES, add, fma, mul, positive, sub, zero

RELU, NOWHERE = CODES["relu"], 4   # NOWHERE: the place of a largest that is not above 0
WIDE = 512   # elements of a wide row, at least half of them for few channels


@njit(inline="always")
def wide(C):
    """The width of a wide row: a multiple of C."""
    return C * max(1, WIDE // C)


@njit
def tile(values, width):
    """values (C,) again and again; (width,)."""
    C = values.size
    out = np.empty(width, values.dtype)
    for start in range(0, width, C):
        copy(values, out[start:start + C])
    return out


@straight
def fold(sums, out):
    """Adds sums (width,) of a wide row's elements to their channels in out (C,)."""
    for start in range(0, sums.size, out.size):
        part = sums[start:]
        for c in range(out.size):
            out[c] += part[c]


@njit(inline="always")
def share(size, width, chunk, chunks):
    """Where this chunk of a flat array starts and stops, in whole wide rows but for the last."""
    rows = -(-size // width)
    return rows * chunk // chunks * width, min(rows * (chunk + 1) // chunks * width, size)


# -- statistics ---------------------------------------------------------------------------------------------------

@kernel
def statistics(x, running_mean, running_var, momentum, eps, mean, inv_std, parts):
    """mean, inv_std (C,) of x; moves the running ones. parts (chunks, 2, C) float64 is scratch.

    Sums are float64: there the square of a float32 is exact, so a mean far from 0 costs the variance no accuracy, and
    the memory is still what limits.
    """
    C, chunks = mean.size, parts.shape[0]
    width = wide(C)
    for chunk in prange(chunks):
        total, square = np.zeros(width), np.zeros(width)
        start, stop = share(x.size, width, chunk, chunks)
        while stop - start >= 4 * width:
            four = x[start:start + 4 * width]
            moments_of_four(four[:width], four[width:], four[2 * width:], four[3 * width:], total, square)
            start += 4 * width
        while start < stop:
            moments(x[start:min(start + width, stop)], total, square)
            start += width
        parts[chunk] = 0
        fold(total, parts[chunk, 0])
        fold(square, parts[chunk, 1])
    R = x.size // C
    for c in range(C):
        first, second = 0.0, 0.0
        for chunk in range(chunks):
            first += parts[chunk, 0, c]
            second += parts[chunk, 1, c]
        middle = first / R
        var = max(second / R - middle * middle, 0.0)
        mean[c], inv_std[c] = middle, 1 / np.sqrt(var + eps)
        running_mean[c] += momentum * (middle - running_mean[c])
        running_var[c] += momentum * (var * (R / max(1, R - 1)) - running_var[c])


@straight
def moments(x, total, square):
    for i in range(x.size):
        a = np.float64(x[i])
        total[i] += a
        square[i] += a * a


@straight
def moments_of_four(x0, x1, x2, x3, total, square):
    for i in range(x0.size):
        a, b, c, d = np.float64(x0[i]), np.float64(x1[i]), np.float64(x2[i]), np.float64(x3[i])
        total[i] += (a + b) + (c + d)
        square[i] += (a * a + b * b) + (c * c + d * d)


# -- batch norm: x, y, dy, dx flat (R C,) ---------------------------------------------------------------------------

@kernel
def batch_norm(x, mean, inv_std, g, b, y, code, chunks):
    width = wide(mean.size)
    scale = np.empty_like(mean)
    product(g, inv_std, scale)
    middle, scale, shift = tile(mean, width), tile(scale, width), tile(b, width)
    for chunk in prange(chunks):
        spare = np.empty(width, x.dtype)
        start, stop = share(x.size, width, chunk, chunks)
        while start < stop:
            s = slice(start, min(start + width, stop))
            normalise(x[s], middle, scale, shift, y[s], code == RELU)
            if code > RELU:
                activate(y[s], spare, code, x.dtype.type(1))
            start += width


@straight
def normalise(x, mean, scale, shift, y, relu):
    zero = x.dtype.type(0)
    if relu:
        for i in range(x.size):
            h = (x[i] - mean[i]) * scale[i] + shift[i]
            y[i] = zero if h <= zero else h   # so that NaN stays NaN
    else:
        for i in range(x.size):
            y[i] = (x[i] - mean[i]) * scale[i] + shift[i]


@kernel
def batch_norm_backward(dy, x, mean, inv_std, g, b, dg, db, dx, code, accumulate, parts):
    """parts (chunks, 2, C) float64 is scratch."""
    C, chunks = mean.size, parts.shape[0]
    width = wide(C)
    scale = np.empty_like(mean)
    product(g, inv_std, scale)
    middle, scale, shift = tile(mean, width), tile(scale, width), tile(b, width)
    for chunk in prange(chunks):
        dh, slope = np.empty(width, x.dtype), np.empty(width, x.dtype)
        total, stretch = np.zeros(width), np.zeros(width)
        start, stop = share(x.size, width, chunk, chunks)
        while start < stop:
            s = slice(start, min(start + width, stop))
            through_activation(dy[s], x[s], middle, scale, shift, dh, slope, code)
            add_products(x[s], middle, dh, total, stretch)
            if code > RELU:   # to write and read dh takes less time than another exp
                copy(dh[:x[s].size], dx[s])
            start += width
        parts[chunk] = 0
        fold(total, parts[chunk, 0])
        fold(stretch, parts[chunk, 1])
    u, v = gradients(parts, inv_std, dg, db, x.size // C, accumulate)
    u, v = tile(u, width), tile(v, width)
    for chunk in prange(chunks):
        dh, slope = np.empty(width, x.dtype), np.empty(width, x.dtype)
        start, stop = share(x.size, width, chunk, chunks)
        while start < stop:
            s = slice(start, min(start + width, stop))
            if code > RELU:
                copy(dx[s], dh)
            else:
                through_activation(dy[s], x[s], middle, scale, shift, dh, slope, code)
            through_statistics(x[s], middle, scale, u, v, dh, dx[s])
            start += width


@straight
def through_activation(dy, x, mean, scale, shift, dh, slope, code):
    """dh = dy f'(h)."""
    zero = x.dtype.type(0)
    if code == 0:
        copy(dy, dh)
    elif code == RELU:
        for i in range(x.size):
            dh[i] = dy[i] if (x[i] - mean[i]) * scale[i] + shift[i] > zero else zero
    else:
        normalise(x, mean, scale, shift, dh, False)
        activate(dh[:x.size], slope, code, x.dtype.type(1))
        product(slope[:x.size], dy, dh)


@straight
def add_products(x, mean, dh, total, stretch):
    for i in range(x.size):
        total[i] += np.float64(dh[i])
        stretch[i] += np.float64(dh[i] * (x[i] - mean[i]))


@straight
def through_statistics(x, mean, scale, u, v, dh, dx):
    for i in range(x.size):
        dx[i] = scale[i] * ((dh[i] - u[i]) - v[i] * (x[i] - mean[i]))


@njit
def gradients(parts, inv_std, dg, db, R, accumulate):
    """Writes dg and db from the sums of dh and dh (x - mean); returns u and v, both (C,), of
    dx = g inv_std (dh - u - v (x - mean))."""
    u, v = np.empty_like(inv_std), np.empty_like(inv_std)
    for c in range(inv_std.size):
        shift, stretch = 0.0, 0.0
        for chunk in range(parts.shape[0]):
            shift += parts[chunk, 0, c]
            stretch += parts[chunk, 1, c]
        stretch *= inv_std[c]
        u[c], v[c] = shift / R, stretch * inv_std[c] / R
        dg[c] = dg[c] + stretch if accumulate else stretch
        db[c] = db[c] + shift if accumulate else shift
    return u, v


# -- norm_pool: x, dx (N, H, W, C), y, dy, place (N, H // 2, W // 2, C) ---------------------------------------------
# Vectors of channels (places.py), window by window. The four pixels of a window are numbered row by row.

@kernel
def norm_pool(x, mean, inv_std, g, b, y, place, train, chunks):
    N, H, W, C = x.shape
    Ho, Wo, lanes = H // 2, W // 2, BYTES // x.itemsize
    scale = np.empty_like(mean)
    product(g, inv_std, scale)
    x, y, place = x.reshape(-1), y.reshape(-1), place.reshape(-1)
    for chunk in prange(chunks):
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            for w in range(Wo):
                window, out = first_pixel(row, w, Ho, H, W) * C, (row * Wo + w) * C
                for c in range(0, C, lanes):
                    n, at = min(lanes, C - c), window + c
                    m, s, t = get(mean, c, n), get(scale, c, n), get(b, c, n)
                    best = fma(sub(get(x, at, n), m), s, t)
                    k = places_of(0, best)
                    best, k = larger(fma(sub(get(x, at + C, n), m), s, t), 1, best, k)
                    best, k = larger(fma(sub(get(x, at + W * C, n), m), s, t), 2, best, k)
                    best, k = larger(fma(sub(get(x, at + W * C + C, n), m), s, t), 3, best, k)
                    put(y, out + c, positive(best), n)
                    if train:
                        k = choose(above(best, zero(x)), k, places_of(NOWHERE, best))
                        put_places(place, out + c, k, n)


@njit(inline="always")
def first_pixel(row, w, Ho, H, W):
    """The number of the first pixel of window w in this row of windows, counted through all images."""
    return (row // Ho * H + row % Ho * 2) * W + 2 * w


@kernel
def norm_pool_backward(dy, place, x, mean, inv_std, g, dg, db, dx, accumulate, parts):
    """parts (chunks, 2, C) float64 is scratch."""
    (N, H, W, C), chunks = x.shape, parts.shape[0]
    Ho, Wo, lanes = H // 2, W // 2, BYTES // x.itemsize
    dy, place, x, dx = dy.reshape(-1), place.reshape(-1), x.reshape(-1), dx.reshape(-1)
    for chunk in prange(chunks):
        total, stretch = np.empty_like(mean), np.empty_like(mean)
        parts[chunk] = 0
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            total[:] = 0
            stretch[:] = 0
            for w in range(Wo):
                window, out = first_pixel(row, w, Ho, H, W) * C, (row * Wo + w) * C
                for c in range(0, C, lanes):
                    n, at = min(lanes, C - c), window + c
                    m, d = get(mean, c, n), get(dy, out + c, n)
                    k = get_places(place, out + c, d, n)
                    put(total, c, add(get(total, c, n), sub(d, only(k, NOWHERE, d))), n)
                    sums = fma(only(k, 0, d), sub(get(x, at, n), m), get(stretch, c, n))
                    sums = fma(only(k, 1, d), sub(get(x, at + C, n), m), sums)
                    sums = fma(only(k, 2, d), sub(get(x, at + W * C, n), m), sums)
                    put(stretch, c, fma(only(k, 3, d), sub(get(x, at + W * C + C, n), m), sums), n)
            fold(total, parts[chunk, 0])   # sums in the type of x for a row only, then in float64
            fold(stretch, parts[chunk, 1])
    scale = np.empty_like(mean)
    product(g, inv_std, scale)
    u, v = gradients(parts, inv_std, dg, db, N * H * W, accumulate)
    rows = (H + 1) // 2
    for chunk in prange(chunks):
        for row in range(N * rows * chunk // chunks, N * rows * (chunk + 1) // chunks):
            image, h = row // rows, row % rows
            top = (image * H + 2 * h) * W
            if h == Ho:   # an odd last row is in no window, nor is an odd last column
                for w in range(W):
                    outside(x, (top + w) * C, mean, scale, u, v, dx)
                continue
            for w in range(Wo):
                window, out = (top + 2 * w) * C, ((image * Ho + h) * Wo + w) * C
                for c in range(0, C, lanes):
                    n, at, d = min(lanes, C - c), window + c, get(dy, out + c, min(lanes, C - c))
                    k = get_places(place, out + c, d, n)
                    inside(only(k, 0, d), x, at, c, n, mean, scale, u, v, dx)
                    inside(only(k, 1, d), x, at + C, c, n, mean, scale, u, v, dx)
                    inside(only(k, 2, d), x, at + W * C, c, n, mean, scale, u, v, dx)
                    inside(only(k, 3, d), x, at + W * C + C, c, n, mean, scale, u, v, dx)
            if W > 2 * Wo:
                outside(x, (top + W - 1) * C, mean, scale, u, v, dx)
                outside(x, (top + 2 * W - 1) * C, mean, scale, u, v, dx)


@njit(inline="always")
def inside(dh, x, at, c, n, mean, scale, u, v, dx):
    centred = sub(get(x, at, n), get(mean, c, n))
    put(dx, at, mul(get(scale, c, n), sub(sub(dh, get(u, c, n)), mul(get(v, c, n), centred))), n)


@njit
def outside(x, at, mean, scale, u, v, dx):
    C, lanes = mean.size, BYTES // x.itemsize
    for c in range(0, C, lanes):
        inside(zero(x), x, at + c, c, min(lanes, C - c), mean, scale, u, v, dx)
