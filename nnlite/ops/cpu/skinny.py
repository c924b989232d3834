"""Products of a few rows with a large matrix: a small batch, or a single image.

The matrix W (D, K) is then read for hardly any arithmetic, so what counts is to read it once, in the order in which it
lies, without copying it into another form first, as BLAS does. All arrays are flat, in C order: x (N, D), W (D, K),
y (N, K). Threads share the columns, or the rows of W.
"""

import numpy as np
from numba import njit, prange

from .mathfun import kernel, straight
from .simd import fma, load, load_some, splat, store, store_some, zero

ROWS = 16    # of x, up to which these are faster than BLAS


@njit(inline="always")
def get(a, at, some, L):
    return load(a, at) if some >= L else load_some(a, at, some)


@njit(inline="always")
def put(a, at, value, some, L):
    if some >= L:
        store(a, at, value)
    else:
        store_some(a, at, value, some)


@kernel
def skinny_product(x, N, D, W, K, y, L, chunks):
    """y = x W, eight rows of W at a time."""
    vectors = (K + L - 1) // L
    for chunk in prange(chunks):
        first, end = vectors * chunk // chunks * L, min(K, vectors * (chunk + 1) // chunks * L)
        whole = (D // 8) * 8
        for d in range(0, whole, 8):
            eight_rows(x, N, D, W, K, y, d, first, end, L)
        for d in range(whole, D):
            one_row(x, N, D, W, K, y, d, first, end, L)


@straight
def eight_rows(x, N, D, W, K, y, d, first, end, L):
    for k in range(first, end, L):
        some, p = end - k, d * K + k
        w0, w1, w2 = get(W, p, some, L), get(W, p + K, some, L), get(W, p + 2 * K, some, L)
        w3, w4, w5 = get(W, p + 3 * K, some, L), get(W, p + 4 * K, some, L), get(W, p + 5 * K, some, L)
        w6, w7 = get(W, p + 6 * K, some, L), get(W, p + 7 * K, some, L)
        for n in range(N):
            q, at = n * D + d, n * K + k
            a = get(y, at, some, L) if d else zero(y)
            a = fma(splat(x, q), w0, fma(splat(x, q + 1), w1, a))
            a = fma(splat(x, q + 2), w2, fma(splat(x, q + 3), w3, a))
            a = fma(splat(x, q + 4), w4, fma(splat(x, q + 5), w5, a))
            put(y, at, fma(splat(x, q + 6), w6, fma(splat(x, q + 7), w7, a)), some, L)


@straight
def one_row(x, N, D, W, K, y, d, first, end, L):
    for k in range(first, end, L):
        some = end - k
        w = get(W, d * K + k, some, L)
        for n in range(N):
            a = get(y, n * K + k, some, L) if d else zero(y)
            put(y, n * K + k, fma(splat(x, n * D + d), w, a), some, L)


@kernel
def skinny_weight_gradient(x, N, D, dy, K, dW, accumulate, L, chunks):
    """dW = x^T dy, or added to it: four rows of dW at a time."""
    for chunk in prange(chunks):
        for d in range(D * chunk // chunks, D * (chunk + 1) // chunks, 4):
            end = D * (chunk + 1) // chunks
            for k in range(0, K, L):
                some, p = K - k, d * K + k
                if d + 4 <= end:
                    a0 = get(dW, p, some, L) if accumulate else zero(dW)
                    a1 = get(dW, p + K, some, L) if accumulate else zero(dW)
                    a2 = get(dW, p + 2 * K, some, L) if accumulate else zero(dW)
                    a3 = get(dW, p + 3 * K, some, L) if accumulate else zero(dW)
                    for n in range(N):
                        g, q = get(dy, n * K + k, some, L), n * D + d
                        a0, a1 = fma(splat(x, q), g, a0), fma(splat(x, q + 1), g, a1)
                        a2, a3 = fma(splat(x, q + 2), g, a2), fma(splat(x, q + 3), g, a3)
                    put(dW, p, a0, some, L)
                    put(dW, p + K, a1, some, L)
                    put(dW, p + 2 * K, a2, some, L)
                    put(dW, p + 3 * K, a3, some, L)
                else:
                    for row in range(d, end):
                        a = get(dW, row * K + k, some, L) if accumulate else zero(dW)
                        for n in range(N):
                            a = fma(splat(x, n * D + row), get(dy, n * K + k, some, L), a)
                        put(dW, row * K + k, a, some, L)


@kernel
def skinny_input_gradient(dy, N, K, W, D, dx, L, chunks):
    """dx = dy W^T: sums along the rows of W, for four rows of dy at a time."""
    for chunk in prange(chunks):
        sums = np.empty(4 * L, dx.dtype)
        for d in range(D * chunk // chunks, D * (chunk + 1) // chunks):
            for n in range(0, N, 4):
                count = min(4, N - n)
                r1, r2, r3 = min(1, count - 1) * K, min(2, count - 1) * K, min(3, count - 1) * K   # never beyond dy
                a0 = a1 = a2 = a3 = zero(dx)
                for k in range(0, K, L):
                    some, p = K - k, n * K + k
                    w = get(W, d * K + k, some, L)
                    a0, a1 = fma(get(dy, p, some, L), w, a0), fma(get(dy, p + r1, some, L), w, a1)
                    a2, a3 = fma(get(dy, p + r2, some, L), w, a2), fma(get(dy, p + r3, some, L), w, a3)
                store(sums, 0, a0)
                store(sums, L, a1)
                store(sums, 2 * L, a2)
                store(sums, 3 * L, a3)
                for row in range(count):
                    dx[(n + row) * D + d] = total(sums[row * L:(row + 1) * L])


@straight
def total(a):
    s = a.dtype.type(0)
    for i in range(a.size):
        s += a[i]
    return s
