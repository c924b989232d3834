"""Batch norm over rows (R, C), and batch norm, ReLU and 2x2 max pooling in one.

All is bound by memory, so the pixels are read as seldom as can be: once for the statistics, once for y; once for the
sums of backward, once for dx. Rows of few channels are taken several at a time, as one wide row, so that inner loops
are long; the numbers of a channel are repeated to the same width (`tile`). x and its like are flat (R C,).
"""

import numpy as np
from numba import njit, prange

from .elementwise import CODES, activate, copy, product
from .mathfun import kernel, straight

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

@kernel
def norm_pool(x, mean, inv_std, g, b, y, place, train, chunks):
    N, H, W, C = x.shape
    Ho, Wo = H // 2, W // 2
    scale = np.empty_like(mean)
    product(g, inv_std, scale)
    for chunk in prange(chunks):
        spare = np.empty(C, np.uint8)
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            n, h = row // Ho, row % Ho
            top, bottom = x[n, 2 * h], x[n, 2 * h + 1]
            for w in range(Wo):
                largest(top[2 * w], top[2 * w + 1], bottom[2 * w], bottom[2 * w + 1], mean, scale, b, y[n, h, w],
                        place[n, h, w] if train else spare)


@straight
def largest(x0, x1, x2, x3, mean, scale, b, y, place):
    zero = y.dtype.type(0)
    for c in range(y.size):
        m, s, t = mean[c], scale[c], b[c]
        h0, h1, h2, h3 = (x0[c] - m) * s + t, (x1[c] - m) * s + t, (x2[c] - m) * s + t, (x3[c] - m) * s + t
        top, bottom = larger(h0, h1), larger(h2, h3)
        above = larger(top, bottom)
        first = np.uint8(0) if above == h0 else np.uint8(1) if above == h1 else np.uint8(2) if above == h2 else np.uint8(3)
        y[c] = zero if above <= zero else above   # so that NaN stays NaN
        place[c] = first if above > zero else np.uint8(NOWHERE)


@njit(inline="always")
def larger(a, b):
    """NaN if a or b is."""
    return b if (b > a) | (b != b) else a


@kernel
def norm_pool_backward(dy, place, x, mean, inv_std, g, dg, db, dx, accumulate, parts):
    """parts (chunks, 2, C) float64 is scratch."""
    (N, H, W, C), chunks = x.shape, parts.shape[0]
    Ho, Wo = H // 2, W // 2
    for chunk in prange(chunks):
        total, stretch = np.empty_like(mean), np.empty_like(mean)
        parts[chunk] = 0
        for row in range(N * Ho * chunk // chunks, N * Ho * (chunk + 1) // chunks):
            n, h = row // Ho, row % Ho
            top, bottom = x[n, 2 * h], x[n, 2 * h + 1]
            total[:] = 0
            stretch[:] = 0
            for w in range(Wo):
                add_at_places(top[2 * w], top[2 * w + 1], bottom[2 * w], bottom[2 * w + 1], mean, dy[n, h, w],
                              place[n, h, w], total, stretch)
            fold(total, parts[chunk, 0])   # a row of float32 sums at a time
            fold(stretch, parts[chunk, 1])
    scale = np.empty_like(mean)
    product(g, inv_std, scale)
    u, v = gradients(parts, inv_std, dg, db, N * H * W, accumulate)
    rows = (H + 1) // 2
    for chunk in prange(chunks):
        for row in range(N * rows * chunk // chunks, N * rows * (chunk + 1) // chunks):
            n, h = row // rows, row % rows
            top, dtop = x[n, 2 * h], dx[n, 2 * h]
            if h == Ho:   # an odd last row is in no window
                for w in range(W):
                    outside(top[w], mean, scale, u, v, dtop[w])
                continue
            bottom, dbottom = x[n, 2 * h + 1], dx[n, 2 * h + 1]
            for w in range(Wo):
                spread(top[2 * w], top[2 * w + 1], bottom[2 * w], bottom[2 * w + 1], mean, scale, u, v,
                       dy[n, h, w], place[n, h, w], dtop[2 * w], dtop[2 * w + 1], dbottom[2 * w], dbottom[2 * w + 1])
            if W > 2 * Wo:
                outside(top[W - 1], mean, scale, u, v, dtop[W - 1])
                outside(bottom[W - 1], mean, scale, u, v, dbottom[W - 1])


@straight
def add_at_places(x0, x1, x2, x3, mean, dy, place, total, stretch):
    zero = dy.dtype.type(0)
    for c in range(dy.size):
        k = place[c]
        d = dy[c] if k < NOWHERE else zero
        x = x0[c] if k == 0 else x1[c] if k == 1 else x2[c] if k == 2 else x3[c]
        total[c] += d
        stretch[c] += d * (x - mean[c])


@straight
def spread(x0, x1, x2, x3, mean, scale, u, v, dy, place, dx0, dx1, dx2, dx3):
    zero = dy.dtype.type(0)
    for c in range(dy.size):
        k, d, m, s, a, b = place[c], dy[c], mean[c], scale[c], u[c], v[c]
        dx0[c] = s * (((d if k == 0 else zero) - a) - b * (x0[c] - m))
        dx1[c] = s * (((d if k == 1 else zero) - a) - b * (x1[c] - m))
        dx2[c] = s * (((d if k == 2 else zero) - a) - b * (x2[c] - m))
        dx3[c] = s * (((d if k == 3 else zero) - a) - b * (x3[c] - m))


@straight
def outside(x, mean, scale, u, v, dx):
    for c in range(x.size):
        dx[c] = -scale[c] * (u[c] + v[c] * (x[c] - mean[c]))
