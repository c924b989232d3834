"""Layer norm over the rows of x (R, D).

Bound by memory: a row lies in the first cache while it is walked through twice. Its statistics are taken in float64,
the variance around the mean, so that a mean far from 0 costs no accuracy.
"""

import numpy as np
from numba import prange

from .mathfun import kernel, straight


@kernel
def layer_norm(x, g, b, eps, y, mean, inv_std, chunks):
    """y (R, D), mean and inv_std (R,)."""
    R = mean.size
    for chunk in prange(chunks):
        for row in range(R * chunk // chunks, R * (chunk + 1) // chunks):
            middle, var = moments(x[row])
            mean[row], inv_std[row] = middle, 1 / np.sqrt(var + eps)
            normalise(x[row], mean[row], inv_std[row], g, b, y[row])


@straight
def moments(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i])
    middle, square = total / x.size, 0.0
    for i in range(x.size):
        distance = np.float64(x[i]) - middle
        square += distance * distance
    return middle, square / x.size


@straight
def normalise(x, mean, inv_std, g, b, y):
    for i in range(x.size):
        y[i] = (x[i] - mean) * inv_std * g[i] + b[i]


@kernel
def layer_norm_backward(dy, x, mean, inv_std, g, dg, db, dx, accumulate, parts):
    """dx (R, D); writes dg and db (D,), or adds to them. parts (chunks, 2, D) float64 is scratch."""
    R, chunks = mean.size, parts.shape[0]
    for chunk in prange(chunks):
        stretch, shift = parts[chunk, 0], parts[chunk, 1]
        stretch[:] = 0
        shift[:] = 0
        for row in range(R * chunk // chunks, R * (chunk + 1) // chunks):
            first, second = sums(dy[row], x[row], mean[row], inv_std[row], g, stretch, shift)
            through_statistics(dy[row], x[row], mean[row], inv_std[row], g, first, second, dx[row])
    for i in range(dg.size):
        stretch_sum, shift_sum = 0.0, 0.0
        for chunk in range(chunks):
            stretch_sum += parts[chunk, 0, i]
            shift_sum += parts[chunk, 1, i]
        dg[i] = dg[i] + stretch_sum if accumulate else stretch_sum
        db[i] = db[i] + shift_sum if accumulate else shift_sum


@straight
def sums(dy, x, mean, inv_std, g, stretch, shift):
    """The means of dn and dn n over a row; adds dy n to stretch and dy to shift."""
    first = second = mean - mean
    for i in range(x.size):
        n = (x[i] - mean) * inv_std
        stretch[i] += np.float64(dy[i] * n)
        shift[i] += np.float64(dy[i])
        dn = dy[i] * g[i]
        first += dn
        second += dn * n
    return first / x.size, second / x.size


@straight
def through_statistics(dy, x, mean, inv_std, g, first, second, dx):
    first, second = x.dtype.type(first), x.dtype.type(second)
    for i in range(x.size):
        dx[i] = inv_std * (dy[i] * g[i] - first - (x[i] - mean) * inv_std * second)
