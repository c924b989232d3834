"""Gaussian latents and the losses on them: sample, KL, squared error, triplets; value and gradient in one pass."""

import numpy as np
from numba import prange

from .mathfun import exp, kernel, log1p, straight
from .philox import fill_normals


@kernel
def gaussian_sample(h, z, samples, k0, k1, stream, step, chunks):
    N, K = h.shape[0], h.shape[1] // 2
    quarter = (K + 3) // 4
    count = samples * quarter   # the blocks of one row's samples lie side by side: longer loops
    half = h.dtype.type(0.5)
    for chunk in prange(chunks):
        words, eps = np.empty(4 * count, np.uint32), np.empty(4 * count, h.dtype)
        sigma = np.empty(K, h.dtype)
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            for k in range(K):
                sigma[k] = exp(half * h[n, K + k])
            fill_normals(eps, words, n * count, count, k0, k1, stream, step)
            for sample in range(samples):
                for part in range(4):
                    columns = slice(part * quarter, min((part + 1) * quarter, K))
                    place_samples(z[n * samples + sample, columns], h[n, columns], sigma[columns],
                                  eps[part * count + sample * quarter:])


@straight
def place_samples(z, mu, sigma, eps):
    for k in range(z.size):
        z[k] = mu[k] + sigma[k] * eps[k]


@kernel
def gaussian_sample_backward(dz, h, z, dh, chunks):
    N, K = h.shape[0], h.shape[1] // 2
    samples = dz.shape[0] // max(N, 1)
    half = h.dtype.type(0.5)
    for chunk in prange(chunks):
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            dh[n] = 0
            for row in range(n * samples, (n + 1) * samples):
                for k in range(K):
                    dh[n, k] += dz[row, k]
                    dh[n, K + k] += half * dz[row, k] * (z[row, k] - h[n, k])


@kernel
def squared_error(f, x, df, twice_scale, partial):
    """partial (chunks,) float64: sums of ||x - f||^2."""
    N, D = x.shape
    samples = f.shape[0] // max(N, 1)
    chunks = partial.size
    for chunk in prange(chunks):
        total = 0.0
        for row in range(f.shape[0] * chunk // chunks, f.shape[0] * (chunk + 1) // chunks):
            n = row // samples
            row_total = f.dtype.type(0)
            for j in range(D):
                error = f[row, j] - x[n, j]
                row_total += error * error
                df[row, j] = twice_scale * error
            total += row_total
        partial[chunk] = total


@kernel
def gaussian_kl(h, dh, scale, partial):
    N, K = h.shape[0], h.shape[1] // 2
    one, half = h.dtype.type(1), h.dtype.type(0.5)
    chunks = partial.size
    for chunk in prange(chunks):
        total = 0.0
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            row_total = h.dtype.type(0)
            for k in range(K):
                mu, log_var = h[n, k], h[n, K + k]
                variance = exp(log_var)
                row_total += half * (mu * mu + variance - one - log_var)
                dh[n, k] = scale * mu
                dh[n, K + k] = scale * half * (variance - one)
            total += row_total
        partial[chunk] = total


@kernel
def triplet_softplus(z, weight, dz, scale, partial):
    V, K = weight.size, z.shape[1]
    rows = z.shape[0] // 3
    samples = rows // max(V, 1)
    chunks = partial.size
    for chunk in prange(chunks):
        total = 0.0
        one, zero = z.dtype.type(1), z.dtype.type(0)
        for i in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
            w = weight[i // samples]
            r, p, n = z[i], z[rows + i], z[2 * rows + i]
            d_plus, d_minus = zero, zero
            for k in range(K):
                d_plus += (r[k] - p[k]) ** 2
                d_minus += (r[k] - n[k]) ** 2
            d_plus, d_minus = np.sqrt(d_plus), np.sqrt(d_minus)
            gap = d_plus - d_minus
            small = exp(-abs(gap))
            total += w * (max(gap, zero) + log1p(small))
            dgap = scale * w * (one if gap >= zero else small) / (one + small)
            # Where two latents coincide the distance has no derivative; 0 is taken.
            to_plus = dgap / d_plus if d_plus > zero else zero
            to_minus = dgap / d_minus if d_minus > zero else zero
            for k in range(K):
                toward, away = to_plus * (r[k] - p[k]), to_minus * (r[k] - n[k])
                dz[i, k] = toward - away
                dz[rows + i, k] = -toward
                dz[2 * rows + i, k] = away
        partial[chunk] = total
