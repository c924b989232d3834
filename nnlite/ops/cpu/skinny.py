"""Products of a few rows with a large matrix: a small batch, or a single image.

The matrix W (D, K) is then read for hardly any arithmetic, so what counts is to read it once, in the order in which it
lies, without copying it into another form first, as BLAS does. All arrays are flat, in C order: x (N, D), W (D, K),
y and dy (N, Kp): rows filled up with zeros to whole vectors, so that each vector of these, which are used again and
again, lies in one line of the cache. Threads share the rows of W.
"""

import numpy as np
from numba import njit, prange

from .elementwise import copy
from .mathfun import kernel, serial, straight
from .simd import add, fma, load, load_some, mul, prefetch, splat, store, store_some, total, zero

ROWS = 16    # of x, up to which these are faster than BLAS
TILE = 128   # columns of W; those of y stay in the first-level cache while rows of W pass


@njit(inline="always")
def load_all(a, at, some):
    return load(a, at)


@njit(inline="always")
def store_all(a, at, value, some):
    store(a, at, value)


def walks(get, put):
    """The inner loops over columns `first` to `end`: with whole vectors, or with a part of one."""
    @straight
    def eight_rows(x, N, D, W, K, y, Kp, d, first, end, L):
        """y += x W for rows d to d + 7 of W."""
        for k in range(first, end, L):
            some, p = end - k, d * K + k
            w0, w1, w2 = get(W, p, some), get(W, p + K, some), get(W, p + 2 * K, some)
            w3, w4, w5 = get(W, p + 3 * K, some), get(W, p + 4 * K, some), get(W, p + 5 * K, some)
            w6, w7 = get(W, p + 6 * K, some), get(W, p + 7 * K, some)
            for row in range(8, 16):
                prefetch(W, p + row * K)
            for n in range(N):
                q, at = n * D + d, n * Kp + k
                a, b = fma(splat(x, q), w0, load(y, at)), mul(splat(x, q + 1), w1)
                a, b = fma(splat(x, q + 2), w2, a), fma(splat(x, q + 3), w3, b)
                a, b = fma(splat(x, q + 4), w4, a), fma(splat(x, q + 5), w5, b)
                a, b = fma(splat(x, q + 6), w6, a), fma(splat(x, q + 7), w7, b)
                store(y, at, add(a, b))

    @straight
    def one_row(x, N, D, W, K, y, Kp, d, first, end, L):
        """y += x W for row d of W."""
        for k in range(first, end, L):
            some = end - k
            w = get(W, d * K + k, some)
            for n in range(N):
                store(y, n * Kp + k, fma(splat(x, n * D + d), w, load(y, n * Kp + k)))

    @straight
    def four_gradients(x, N, D, dy, Kp, dW, K, accumulate, d, first, end, L):
        """x^T dy for rows d to d + 3 of dW."""
        for k in range(first, end, L):
            some, p = end - k, d * K + k
            a0 = a1 = a2 = a3 = zero(dW)
            if accumulate:
                a0, a1 = get(dW, p, some), get(dW, p + K, some)
                a2, a3 = get(dW, p + 2 * K, some), get(dW, p + 3 * K, some)
            for n in range(N):
                g, q = load(dy, n * Kp + k), n * D + d
                a0, a1 = fma(splat(x, q), g, a0), fma(splat(x, q + 1), g, a1)
                a2, a3 = fma(splat(x, q + 2), g, a2), fma(splat(x, q + 3), g, a3)
            put(dW, p, a0, some)
            put(dW, p + K, a1, some)
            put(dW, p + 2 * K, a2, some)
            put(dW, p + 3 * K, a3, some)

    @straight
    def one_gradient(x, N, D, dy, Kp, dW, K, accumulate, d, first, end, L):
        for k in range(first, end, L):
            some = end - k
            a = get(dW, d * K + k, some) if accumulate else zero(dW)
            for n in range(N):
                a = fma(splat(x, n * D + d), load(dy, n * Kp + k), a)
            put(dW, d * K + k, a, some)

    @straight
    def ten_sums(dy, at, r1, r2, r3, r4, W, row, other, first, end, L, sums):
        """Two of W's rows times five rows of dy, sums of products, added to sums (10,)."""
        a0 = a1 = a2 = a3 = a4 = b0 = b1 = b2 = b3 = b4 = zero(W)
        for k in range(first, end, L):
            v, w, p = get(W, row + k, end - k), get(W, other + k, end - k), at + k
            g0, g1, g2, g3, g4 = load(dy, p), load(dy, p + r1), load(dy, p + r2), load(dy, p + r3), load(dy, p + r4)
            a0, a1, a2, a3, a4 = fma(g0, v, a0), fma(g1, v, a1), fma(g2, v, a2), fma(g3, v, a3), fma(g4, v, a4)
            b0, b1, b2, b3, b4 = fma(g0, w, b0), fma(g1, w, b1), fma(g2, w, b2), fma(g3, w, b3), fma(g4, w, b4)
        sums[0] += total(a0)
        sums[1] += total(a1)
        sums[2] += total(a2)
        sums[3] += total(a3)
        sums[4] += total(a4)
        sums[5] += total(b0)
        sums[6] += total(b1)
        sums[7] += total(b2)
        sums[8] += total(b3)
        sums[9] += total(b4)
    return eight_rows, one_row, four_gradients, one_gradient, ten_sums


eight_rows, one_row, four_gradients, one_gradient, ten_sums = walks(load_all, store_all)
eight_rows_end, one_row_end, four_gradients_end, one_gradient_end, ten_sums_end = walks(load_some, store_some)


@kernel
def skinny_product(x, N, D, W, K, parts, Kp, y, L, chunks):
    """y (N, K) = x W, eight rows of W at a time, a tile of their columns after the other. A thread takes rows that lie
    together, those that its part of an optimiser's pass has just written; the sums, parts (chunks, N Kp), are added."""
    eights = D // 8
    for chunk in prange(chunks):
        room = parts[chunk]
        room[:] = 0
        first, end = eights * chunk // chunks * 8, eights * (chunk + 1) // chunks * 8
        rest = D if chunk == chunks - 1 else end
        for k in range(0, K, TILE):
            stop = min(K, k + TILE)
            whole = k + (stop - k) // L * L
            for d in range(first, end, 8):
                eight_rows(x, N, D, W, K, room, Kp, d, k, whole, L)
                if whole < stop:
                    eight_rows_end(x, N, D, W, K, room, Kp, d, whole, stop, L)
            for d in range(end, rest):
                one_row(x, N, D, W, K, room, Kp, d, k, whole, L)
                one_row_end(x, N, D, W, K, room, Kp, d, whole, stop, L)
    for n in range(N):
        row = y[n * K:(n + 1) * K]
        copy(parts[0, n * Kp:n * Kp + K], row)
        for chunk in range(1, chunks):
            for k in range(K):
                row[k] += parts[chunk, n * Kp + k]


@serial
def fill_up(dy, K, room, Kp):
    """room (N, Kp) = dy (N, K) and zeros."""
    for n in range(dy.size // K):
        copy(dy[n * K:(n + 1) * K], room[n * Kp:n * Kp + K])
        room[n * Kp + K:(n + 1) * Kp] = 0


@kernel
def skinny_weight_gradient(x, N, D, dy, Kp, dW, K, accumulate, L, chunks):
    """dW = x^T dy, or added to it: four rows of dW at a time."""
    whole = K // L * L
    for chunk in prange(chunks):
        d, end = D * chunk // chunks, D * (chunk + 1) // chunks
        while d + 4 <= end:
            four_gradients(x, N, D, dy, Kp, dW, K, accumulate, d, 0, whole, L)
            if whole < K:
                four_gradients_end(x, N, D, dy, Kp, dW, K, accumulate, d, whole, K, L)
            d += 4
        while d < end:
            one_gradient(x, N, D, dy, Kp, dW, K, accumulate, d, 0, whole, L)
            one_gradient_end(x, N, D, dy, Kp, dW, K, accumulate, d, whole, K, L)
            d += 1


@kernel
def skinny_input_gradient(dy, N, Kp, W, K, D, dx, L, chunks):
    """dx = dy W^T: sums along the rows of W, two of them times five rows of dy at a time."""
    whole = K // L * L
    for chunk in prange(chunks):
        sums, end = np.empty(10, dx.dtype), D * (chunk + 1) // chunks
        for d in range(D * chunk // chunks, end, 2):
            row, other, there = d * K, min(d + 1, end - 1) * K, min(2, end - d)
            for n in range(0, N, 5):
                last = min(5, N - n) - 1   # rows beyond dy's end are taken as its last one
                r1, r2, r3, r4 = min(1, last) * Kp, min(2, last) * Kp, min(3, last) * Kp, min(4, last) * Kp
                sums[:] = 0
                ten_sums(dy, n * Kp, r1, r2, r3, r4, W, row, other, 0, whole, L, sums)
                if whole < K:
                    ten_sums_end(dy, n * Kp, r1, r2, r3, r4, W, row, other, whole, K, L, sums)
                for i in range(last + 1):
                    for j in range(there):
                        dx[(n + i) * D + d + j] = sums[5 * j + i]
