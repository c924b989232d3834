"""Softmax cross entropy and hits: rows of logits (N, K) against labels (N,)."""

import numpy as np
from numba import njit, prange

from .mathfun import exp, kernel, straight


@kernel
def softmax_cross_entropy(logits, labels, soft, alpha, class_weight, smoothing, has_soft, has_weight, dlogits, partial):
    """partial (chunks,) float64: sums of the value."""
    (N, K), chunks = logits.shape, partial.size
    total = float(N)
    if has_weight:
        total = 0.0
        for n in range(N):
            total += weight(class_weight, labels[n])
    here, elsewhere = alpha * (1 - smoothing), alpha * smoothing / K
    for chunk in prange(chunks):
        p, value = np.empty(K, logits.dtype), 0.0
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            z, label = logits[n], labels[n]
            highest = largest(z)
            mass = exponentials(z, highest, p)
            log_mass = np.log(mass)
            w = (weight(class_weight, label) if has_weight else 1.0) / total
            gradient(p, w / mass, w * elsewhere, dlogits[n])
            row = 0.0
            if smoothing > 0:
                row -= elsewhere * (sum_of(z) - K * (np.float64(highest) + log_mass))
            if 0 <= label < K:
                row -= here * (np.float64(z[label]) - highest - log_mass)
                dlogits[n, label] -= w * here
            if has_soft:
                for k in range(K):
                    q = np.float64(soft[n, k])
                    log_p = np.float64(z[k]) - highest - log_mass
                    row += (1 - alpha) * q * ((np.log(q) if q > 0 else 0.0) - log_p)
                    dlogits[n, k] -= w * (1 - alpha) * q
            value += w * row
        partial[chunk] = value


@straight
def largest(z):
    """The largest of z; NaN if one is NaN."""
    best = z[0]
    for k in range(z.size):
        best = z[k] if z[k] > best or z[k] != z[k] else best
    return best


@straight
def exponentials(z, highest, p):
    """p = e^(z - highest), and its sum."""
    mass = 0.0
    for k in range(z.size):
        p[k] = exp(z[k] - highest)
        mass += np.float64(p[k])
    return mass


@straight
def sum_of(z):
    s = 0.0
    for k in range(z.size):
        s += np.float64(z[k])
    return s


@straight
def gradient(p, factor, shift, dz):
    for k in range(p.size):
        dz[k] = p[k] * factor - shift


@njit(inline="always")
def weight(class_weight, label):
    """NaN for a label that is no class: then so is the loss."""
    return np.float64(class_weight[label]) if 0 <= label < class_weight.size else np.nan


@kernel
def hits(logits, labels, partial):
    """partial (chunks,) int64."""
    (N, K), chunks = logits.shape, partial.size
    for chunk in prange(chunks):
        count = 0
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            z, best = logits[n], 0
            for k in range(1, K):
                if z[k] > z[best] or (z[k] != z[k] and z[best] == z[best]):   # NaN counts as the largest
                    best = k
            count += best == labels[n]
        partial[chunk] = count
