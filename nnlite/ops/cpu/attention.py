"""Attention: y = softmax(q k^T / sqrt(d)) v for each image and head, and its derivative.

Nothing is copied: BLAS finds q, k and v of a head in qkv by the distance between its rows. A block of at most QUERIES
rows of scores is made against at most KEYS keys at a time and stays in the cache until it is used up; where there are
more keys, sums that were taken below a smaller maximum are scaled down (Milakov & Gimelshein 2018; Dao et al. 2022,
algorithm 1). So memory grows with T, not with T^2.

Both directions live on the matrix product: 4 N T^2 D operations forward and 10 N T^2 D backward (the scores once more)
against N heads T^2 exponentials. Products with so short an inner side (d = 64) run at two thirds to four fifths of the
rate of large ones, and that is the limit here.
"""

import numpy as np
from numba import njit, prange

from .blas import PLAIN, TRANSPOSED, gemm
from .block import padded
from .mathfun import exp, kernel, straight
from .simd import BYTES, constant, highest, load, maximum

QUERIES, KEYS = 256, 512


def pieces(T, tasks, threads):
    """Into how many pieces the queries of a head are cut, so that each thread finds work among so many heads."""
    return min(T, -(-threads // max(1, tasks)))


def scores_shape(T, cut, dtype):
    """Rows and columns of a block of scores, where the queries of a head are cut into so many pieces."""
    return min(QUERIES, -(-T // cut)), padded(min(KEYS, T), dtype)


@kernel
def attention(qkv, heads, y, log_sum, cut, scores):
    """qkv (N, T, 3 D), y (N, T, D), log_sum (N, heads, T). A task is a piece of the queries of a head, one of `cut`;
    scores (chunks, rows, columns) is scratch."""
    (N, T, D), (chunks, rows, columns) = y.shape, scores.shape
    d, tasks = D // heads, N * heads * cut
    scale, one = y.dtype.type(1 / np.sqrt(d)), y.dtype.type(1)
    qkv, y, log_sum = qkv.reshape(-1), y.reshape(-1), log_sum.reshape(-1)
    for chunk in prange(chunks):
        room, most, total = scores[chunk].reshape(-1), np.empty(rows, y.dtype), np.empty(rows, y.dtype)
        for task in range(tasks * chunk // chunks, tasks * (chunk + 1) // chunks):
            head, piece = task // cut, task % cut
            n, h = head // heads, head % heads
            q, out = qkv[n * T * 3 * D + h * d:], y[n * T * D + h * d:]
            stop = T * (piece + 1) // cut
            for start in range(T * piece // cut, stop, rows):
                count = min(rows, stop - start)
                attend(q[start * 3 * D:], q[D:], q[2 * D:], count, T, D, d, scale, room, columns, most, total,
                       out[start * D:])
                for i in range(count):
                    times(out[(start + i) * D:(start + i) * D + d], one / total[i])
                    log_sum[head * T + start + i] = most[i] + np.log(total[i])


@njit
def attend(q, k, v, count, T, D, d, scale, scores, columns, most, total, y):
    """For so many queries: most = the largest of scale s; total = sum of p = e^(scale s - most); y = p v."""
    for start in range(0, T, columns):
        keys = min(columns, T - start)
        gemm(PLAIN, TRANSPOSED, count, keys, d, q, 3 * D, k[start * 3 * D:], 3 * D, 0, scores, columns)
        for i in range(count):
            here = largest(scores, i * columns, keys) * scale
            if start == 0:
                most[i], total[i] = here, 0
            elif here > most[i]:
                factor = np.exp(most[i] - here)
                most[i] = here
                total[i] *= factor
                times(y[i * D:i * D + d], factor)
            total[i] += exponentials(scores[i * columns:i * columns + keys], scale, most[i])
        gemm(PLAIN, PLAIN, count, d, keys, scores, columns, v[start * 3 * D:], 3 * D, start > 0, y, D)


@straight
def largest(s, at, n):
    """The largest of s[at], ..., s[at + n - 1]; NaN counts for nothing."""
    L = BYTES // s.itemsize
    if n < L:
        best = -np.inf
        for j in range(n):
            best = max(best, s[at + j]) if s[at + j] == s[at + j] else best
        return s.dtype.type(best)
    a = b = constant(s, -np.inf)   # two chains of comparisons, which do not wait for each other
    pairs = n // (2 * L) * (2 * L)
    for j in range(at, at + pairs, 2 * L):
        a, b = maximum(load(s, j), a), maximum(load(s, j + L), b)
    if n - pairs >= L:
        a = maximum(load(s, at + pairs), a)
    return highest(maximum(a, maximum(load(s, at + n - L), b)))   # the last vector overlaps the one before


@straight
def exponentials(s, scale, most):
    """s = e^(scale s - most), and its sum."""
    total = most - most
    for j in range(s.size):
        p = exp(s[j] * scale - most)
        s[j] = p
        total += p
    return total


@straight
def times(x, factor):
    for i in range(x.size):
        x[i] *= factor


@kernel
def attention_backward(dy, y, log_sum, qkv, heads, dqkv, spill, cut, scores):
    """dqkv (N, T, 3 D) from dy and y (N, T, D), log_sum (N, heads, T). A task is a piece of the queries of a head, one
    of `cut`. The first piece of a head writes its dk and dv, the others theirs into spill (cut - 1, N, T, 2 D), which
    is added at the end. scores (chunks, 2, rows, columns) is scratch."""
    (N, T, D), (chunks, _, rows, columns) = y.shape, scores.shape
    d, tasks = D // heads, N * heads * cut
    scale = y.dtype.type(1 / np.sqrt(d))
    flat, dy, y, log_sum = qkv.reshape(-1), dy.reshape(-1), y.reshape(-1), log_sum.reshape(-1)
    out, aside = dqkv.reshape(-1), spill.reshape(-1)
    for chunk in prange(chunks):
        room, delta = scores[chunk].reshape(-1), np.empty(rows, y.dtype)
        for task in range(tasks * chunk // chunks, tasks * (chunk + 1) // chunks):
            head, piece = task // cut, task % cut
            n, h = head // heads, head % heads
            q, at = flat[n * T * 3 * D + h * d:], n * T * D + h * d
            dq = out[n * T * 3 * D + h * d:]
            dk, width = dq[D:], 3 * D
            if piece > 0:
                dk, width = aside[((piece - 1) * N + n) * T * 2 * D + h * d:], 2 * D
            first, stop = T * piece // cut, T * (piece + 1) // cut
            for start in range(first, stop, rows):
                count, place = min(rows, stop - start), at + start * D
                for i in range(count):
                    row = slice(place + i * D, place + i * D + d)
                    delta[i] = dot(dy[row], y[row])
                attend_backward(dy[place:], delta, log_sum[head * T + start:], q[start * 3 * D:], q[D:], q[2 * D:],
                                count, T, D, d, scale, room[:rows * columns], room[rows * columns:], columns,
                                dq[start * 3 * D:], dk, dk[D:], width, start > first)
    for piece in range(cut - 1):
        for chunk in prange(chunks):
            for row in range(N * T * chunk // chunks, N * T * (chunk + 1) // chunks):
                add_to(aside[(piece * N * T + row) * 2 * D:(piece * N * T + row + 1) * 2 * D],
                       out[(3 * row + 1) * D:(3 * row + 3) * D])


@njit
def attend_backward(dy, delta, log_sum, q, k, v, count, T, D, d, scale, p, ds, columns, dq, dk, dv, width, accumulate):
    """For so many queries: writes dq and, rows `width` apart, dk and dv, or adds to these two."""
    for start in range(0, T, columns):
        keys, at, to = min(columns, T - start), start * 3 * D, start * width
        gemm(PLAIN, TRANSPOSED, count, keys, d, q, 3 * D, k[at:], 3 * D, 0, p, columns)
        gemm(PLAIN, TRANSPOSED, count, keys, d, dy, D, v[at:], 3 * D, 0, ds, columns)
        for i in range(count):
            row = slice(i * columns, i * columns + keys)
            through_softmax(p[row], ds[row], scale, log_sum[i], delta[i])
        gemm(TRANSPOSED, PLAIN, keys, d, count, p, columns, dy, D, accumulate, dv[to:], width)
        gemm(TRANSPOSED, PLAIN, keys, d, count, ds, columns, q, 3 * D, accumulate, dk[to:], width)
        gemm(PLAIN, PLAIN, count, d, keys, ds, columns, k[at:], 3 * D, start > 0, dq, 3 * D)


@straight
def through_softmax(s, dp, scale, log_sum, delta):
    """s becomes p = e^(scale s - log_sum), dp becomes ds = p (dp - delta) scale."""
    for j in range(s.size):
        p = exp(s[j] * scale - log_sum)
        s[j] = p
        dp[j] = p * (dp[j] - delta) * scale


@straight
def dot(a, b):
    total = a[0] - a[0]
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@straight
def add_to(x, total):
    for i in range(x.size):
        total[i] += x[i]
