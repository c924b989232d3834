"""Softmax cross entropy and hits: rows of logits (N, K) against labels (N,)."""

import numpy as np
from numba import njit, prange

from .mathfun import kernel


@kernel
def softmax_cross_entropy(logits, labels, soft, alpha, class_weight, smoothing, has_soft, has_weight, dlogits, partial):
    """partial (chunks,) float64: sums of the value."""
    (N, K), chunks = logits.shape, partial.size
    total = float(N)
    if has_weight:
        total = 0.0
        for n in range(N):
            total += weight(class_weight, labels[n])
    elsewhere = alpha * smoothing / K
    for chunk in prange(chunks):
        p, value = np.empty(K), 0.0
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            z, label = logits[n], labels[n]
            highest = np.float64(z[0])
            for k in range(K):
                highest = max(highest, np.float64(z[k]))
            mass = 0.0
            for k in range(K):
                p[k] = np.exp(z[k] - highest)
                mass += p[k]
            log_mass = np.log(mass)
            w = (weight(class_weight, label) if has_weight else 1.0) / total
            row = 0.0
            for k in range(K):
                log_p = z[k] - highest - log_mass
                target = elsewhere + (alpha * (1 - smoothing) if k == label else 0.0)
                row -= target * log_p
                if has_soft:
                    q = np.float64(soft[n, k])
                    row += (1 - alpha) * q * ((np.log(q) if q > 0 else 0.0) - log_p)
                    target += (1 - alpha) * q
                dlogits[n, k] = w * (p[k] / mass - target)
            value += w * row
        partial[chunk] = value


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
