"""Attention: y = softmax(q k^T / sqrt(d)) v for each image and head, and its derivative.

A block of at most QUERIES rows of scores is made against at most KEYS keys at a time and stays in the cache until it is
used up; where there are more keys, sums that were taken below a smaller maximum are scaled down (Milakov & Gimelshein
2018; Dao et al. 2022, algorithm 1). So memory grows with T, not with T^2.

Both directions live on the matrix product (block.py): 4 N T^2 D operations forward and 10 N T^2 D backward (the scores
once more) against N heads T^2 exponentials. What stands on the left of a product is read where it lies; what stands on
the right, the d columns of a head or their transpose, is laid into panels first.
"""

import numpy as np
from numba import njit, prange

from .block import lay_panels, lay_turned, padded, product_across, product_along
from .mathfun import exp, kernel, straight
from .simd import BYTES, constant, highest, load, maximum

QUERIES, KEYS = 256, 512


def pieces(T, tasks, threads):
    """Into how many pieces the queries of a head are cut, so that each thread finds work among so many heads."""
    return min(T, -(-threads // max(1, tasks)))


def scores_shape(T, cut, dtype):
    """Rows and columns of a block of scores, where the queries of a head are cut into so many pieces."""
    return min(QUERIES, -(-T // cut)), padded(min(KEYS, T), dtype)


def panels_size(T, d, dtype):
    """Numbers in the panels of a block of keys, or queries, and of its transpose, whichever has more."""
    rows = max(QUERIES, min(KEYS, T))
    return max(rows * padded(d, dtype), padded(rows, dtype) * d)


@kernel
def attention(qkv, heads, y, log_sum, cut, scores, panels):
    """qkv (N, T, 3 D), y (N, T, D), log_sum (N, heads, T). A task is a piece of the queries of a head, one of `cut`;
    scores (chunks, rows, columns) and panels (chunks, numbers) are scratch."""
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
                attend(q[start * 3 * D:], q[D:], q[2 * D:], count, T, D, d, scale, room, columns, panels[chunk],
                       most, total, out[start * D:])
                for i in range(count):
                    times(out[(start + i) * D:(start + i) * D + d], one / total[i])
                    log_sum[head * T + start + i] = most[i] + np.log(total[i])


@njit
def attend(q, k, v, count, T, D, d, scale, scores, columns, panels, most, total, y):
    """For so many queries: most = the largest of scale s; total = sum of p = e^(scale s - most); y = p v."""
    L = BYTES // y.itemsize
    for start in range(0, T, columns):
        keys, at = min(columns, T - start), start * 3 * D
        lay_turned(k, at, d, keys, 3 * D, L, panels)
        product_along(count, q, 0, 3 * D, 1, d, panels, 0, L, keys, scores, 0, columns, False)
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
        lay_panels(v, at, keys, 3 * D, d, L, panels)
        product_along(count, scores, 0, columns, 1, keys, panels, 0, L, d, y, 0, D, start > 0)


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
def attention_backward(dy, y, log_sum, qkv, heads, dqkv, spill, cut, scores, panels):
    """dqkv (N, T, 3 D) from dy and y (N, T, D), log_sum (N, heads, T). A task is a piece of the queries of a head, one
    of `cut`. The first piece of a head writes its dk and dv, the others theirs into spill (cut - 1, N, T, 2 D), which
    is added at the end. scores (chunks, 2, rows, columns) and panels (chunks, 3, numbers) are scratch."""
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
                                panels[chunk], dq[start * 3 * D:], dk, dk[D:], width, start > first)
    for piece in range(cut - 1):
        for chunk in prange(chunks):
            for row in range(N * T * chunk // chunks, N * T * (chunk + 1) // chunks):
                add_to(aside[(piece * N * T + row) * 2 * D:(piece * N * T + row + 1) * 2 * D],
                       out[(3 * row + 1) * D:(3 * row + 3) * D])


@njit
def attend_backward(dy, delta, log_sum, q, k, v, count, T, D, d, scale, p, ds, columns, panels, dq, dk, dv, width,
                    accumulate):
    """For so many queries: writes dq and, rows `width` apart, dk and dv, or adds to these two."""
    L, room, of_q, of_dy = BYTES // p.itemsize, panels[0], panels[1], panels[2]
    lay_panels(q, 0, count, 3 * D, d, L, of_q)
    lay_panels(dy, 0, count, D, d, L, of_dy)
    for start in range(0, T, columns):
        keys, at, to = min(columns, T - start), start * 3 * D, start * width
        lay_turned(k, at, d, keys, 3 * D, L, room)
        product_along(count, q, 0, 3 * D, 1, d, room, 0, L, keys, p, 0, columns, False)
        lay_turned(v, at, d, keys, 3 * D, L, room)
        product_along(count, dy, 0, D, 1, d, room, 0, L, keys, ds, 0, columns, False)
        for i in range(count):
            row = slice(i * columns, i * columns + keys)
            through_softmax(p[row], ds[row], scale, log_sum[i], delta[i])
        product_across(keys, p, 0, 1, columns, count, of_dy, 0, L, d, dv, to, width, accumulate)
        product_across(keys, ds, 0, 1, columns, count, of_q, 0, L, d, dk, to, width, accumulate)
        lay_panels(k, at, keys, 3 * D, d, L, room)
        product_along(count, ds, 0, columns, 1, keys, room, 0, L, d, dq, 0, 3 * D, start > 0)


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
