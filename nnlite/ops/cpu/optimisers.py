"""Optimisers: one pass over the flat arrays. bounds (S + 1,), decay (S,), rate (S,) describe S neighbouring ranges."""

import numpy as np
from numba import prange

from .mathfun import kernel


@kernel
def sgd(p, g, m, bounds, decay, rate, lr, clip, momentum, with_momentum, nesterov, chunks):
    for chunk in prange(chunks):
        start, stop = p.size * chunk // chunks, p.size * (chunk + 1) // chunks
        for part in range(decay.size):
            step, l2 = lr * rate[part], decay[part]
            for i in range(max(start, bounds[part]), min(stop, bounds[part + 1])):
                d = clip * g[i] + l2 * p[i]
                if with_momentum:
                    m[i] = momentum * m[i] + d
                    d = d + momentum * m[i] if nesterov else m[i]
                p[i] -= step * d


@kernel
def adagrad(p, g, v, bounds, decay, rate, lr, clip, eps, chunks):
    for chunk in prange(chunks):
        start, stop = p.size * chunk // chunks, p.size * (chunk + 1) // chunks
        for part in range(decay.size):
            step, l2 = lr * rate[part], decay[part]
            for i in range(max(start, bounds[part]), min(stop, bounds[part + 1])):
                d = clip * g[i] + l2 * p[i]
                v[i] += d * d
                p[i] -= step * d / (np.sqrt(v[i]) + eps)


@kernel
def rmsprop(p, g, v, bounds, decay, rate, lr, clip, rho, eps, chunks):
    rest = p.dtype.type(1) - rho
    for chunk in prange(chunks):
        start, stop = p.size * chunk // chunks, p.size * (chunk + 1) // chunks
        for part in range(decay.size):
            step, l2 = lr * rate[part], decay[part]
            for i in range(max(start, bounds[part]), min(stop, bounds[part + 1])):
                d = clip * g[i] + l2 * p[i]
                v[i] = rho * v[i] + rest * d * d
                p[i] -= step * d / (np.sqrt(v[i]) + eps)


@kernel
def adam(p, g, m, v, bounds, decay, rate, lr, clip, beta1, beta2, rest1, rest2, eps, first, second, decoupled, chunks):
    """first = 1/(1 - beta1^t), second = 1/sqrt(1 - beta2^t), rest = 1 - beta."""
    one, zero = p.dtype.type(1), p.dtype.type(0)
    for chunk in prange(chunks):
        start, stop = p.size * chunk // chunks, p.size * (chunk + 1) // chunks
        for part in range(decay.size):
            step = lr * rate[part]
            shrink = one - step * decay[part] if decoupled else one
            l2 = zero if decoupled else decay[part]
            step *= first
            for i in range(max(start, bounds[part]), min(stop, bounds[part + 1])):
                d = clip * g[i] + l2 * p[i]
                m[i] = beta1 * m[i] + rest1 * d
                v[i] = beta2 * v[i] + rest2 * d * d
                p[i] = shrink * p[i] - step * m[i] / (np.sqrt(v[i]) * second + eps)
