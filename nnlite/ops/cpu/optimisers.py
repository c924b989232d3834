"""Optimisers: one pass over the flat arrays. bounds (S + 1,), decay (S,), rate (S,) describe S neighbouring ranges."""

import numpy as np
from numba import njit, prange

from .mathfun import kernel, straight


# Each thread works on a slice of its own. The inner loops run over slices from 0, because only then can Numba know that
# no index is negative, and LLVM vectorise.
#
# Numbers that decay without end (the moments of a unit that gets no gradient any more, weights under weight decay) are
# made 0 once they are below SMALLEST: near the end of the range of float32 each operation on one takes a hundred
# cycles, also in the products that read such a weight.

SMALLEST = 1e-30


@njit(inline="always")
def settled(x, smallest):
    """x, or 0 where it is small; NaN stays NaN."""
    return x - x if abs(x) < smallest else x


@kernel
def sgd(p, g, m, bounds, decay, rate, lr, clip, momentum, with_momentum, nesterov, chunks):
    for chunk in prange(chunks):
        for part in range(decay.size):
            s = share(p.size, bounds, part, chunk, chunks)
            sgd_slice(p[s], g[s], m[s], decay[part], lr * rate[part], clip, momentum, with_momentum, nesterov)


@njit(inline="always")
def share(size, bounds, part, chunk, chunks):
    """The slice of range number part that belongs to this chunk of the flat array."""
    start = max(size * chunk // chunks, bounds[part])
    return slice(start, max(start, min(size * (chunk + 1) // chunks, bounds[part + 1])))


@straight
def sgd_slice(p, g, m, l2, step, clip, momentum, with_momentum, nesterov):
    smallest = p.dtype.type(SMALLEST)
    if not with_momentum:
        for i in range(p.size):
            p[i] = settled(p[i] - step * (clip * g[i] + l2 * p[i]), smallest)
    elif nesterov:
        for i in range(p.size):
            d = clip * g[i] + l2 * p[i]
            m[i] = settled(momentum * m[i] + d, smallest)
            p[i] = settled(p[i] - step * (d + momentum * m[i]), smallest)
    else:
        for i in range(p.size):
            m[i] = settled(momentum * m[i] + clip * g[i] + l2 * p[i], smallest)
            p[i] = settled(p[i] - step * m[i], smallest)


@kernel
def adagrad(p, g, v, bounds, decay, rate, lr, clip, eps, chunks):
    for chunk in prange(chunks):
        for part in range(decay.size):
            s = share(p.size, bounds, part, chunk, chunks)
            adagrad_slice(p[s], g[s], v[s], decay[part], lr * rate[part], clip, eps)


@straight
def adagrad_slice(p, g, v, l2, step, clip, eps):
    smallest = p.dtype.type(SMALLEST)
    for i in range(p.size):
        d = clip * g[i] + l2 * p[i]
        v[i] += d * d
        p[i] = settled(p[i] - step * d / (np.sqrt(v[i]) + eps), smallest)


@kernel
def rmsprop(p, g, v, bounds, decay, rate, lr, clip, rho, eps, chunks):
    for chunk in prange(chunks):
        for part in range(decay.size):
            s = share(p.size, bounds, part, chunk, chunks)
            rmsprop_slice(p[s], g[s], v[s], decay[part], lr * rate[part], clip, rho, p.dtype.type(1) - rho, eps)


@straight
def rmsprop_slice(p, g, v, l2, step, clip, rho, rest, eps):
    smallest = p.dtype.type(SMALLEST)
    for i in range(p.size):
        d = clip * g[i] + l2 * p[i]
        v[i] = settled(rho * v[i] + rest * d * d, smallest)
        p[i] = settled(p[i] - step * d / (np.sqrt(v[i]) + eps), smallest)


@kernel
def adam(p, g, m, v, bounds, decay, rate, lr, clip, beta1, beta2, rest1, rest2, eps, first, second, decoupled, chunks):
    """first = 1/(1 - beta1^t), second = 1/sqrt(1 - beta2^t), rest = 1 - beta."""
    one, zero = p.dtype.type(1), p.dtype.type(0)
    for chunk in prange(chunks):
        for part in range(decay.size):
            s = share(p.size, bounds, part, chunk, chunks)
            step = lr * rate[part]
            shrink = one - step * decay[part] if decoupled else one
            l2 = zero if decoupled else decay[part]
            adam_slice(p[s], g[s], m[s], v[s], l2, shrink, step * first, clip, beta1, beta2, rest1, rest2, eps, second)


@straight
def adam_slice(p, g, m, v, l2, shrink, step, clip, beta1, beta2, rest1, rest2, eps, second):
    smallest = p.dtype.type(SMALLEST)
    for i in range(p.size):
        d = clip * g[i] + l2 * p[i]
        m[i] = settled(beta1 * m[i] + rest1 * d, smallest)
        v[i] = settled(beta2 * v[i] + rest2 * d * d, smallest)
        p[i] = settled(shrink * p[i] - step * m[i] / (np.sqrt(v[i]) * second + eps), smallest)
