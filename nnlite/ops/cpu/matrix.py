"""Linear and Dense: BLAS on blocks of rows, the elementwise work behind it while the block is in cache.

Each thread takes a block of rows: the product, bias, activation and dropout forward; the slope and dx backward. Then
each takes a block of rows of dW, so that nothing has to be summed across threads.
"""

import numpy as np
from numba import prange

from ..reference import keep_threshold
from .blas import PLAIN, TRANSPOSED, gemm
from .elementwise import CODES, activate, plain, product
from .mathfun import kernel, straight
from .philox import fill_words, pack_key


@kernel
def dense_forward_kernel(x, W, b, y, slope, code, alpha, train, threshold, scale, k0, k1, stream, step, chunks):
    """x (N, D), W (D, K), b (G, K), y (N, K), slope (N, K) if train. threshold: 0 for no dropout."""
    N, D = x.shape
    K = W.shape[1]
    each = N // b.shape[0]
    quarter = (K + 3) // 4
    for chunk in prange(chunks):
        start, stop = N * chunk // chunks, N * (chunk + 1) // chunks
        if stop > start:
            gemm(PLAIN, PLAIN, stop - start, K, D, x[start:stop], D, W, K, 0, y[start:stop], K)
        words, spare = np.empty(4 * quarter, np.uint32), np.empty(K, y.dtype)
        for row in range(start, stop):
            h = y[row]
            add_to(h, b[row // each])
            if code == 0 and not train:
                continue
            s = slope[row] if train else spare
            activate(h, s, code, alpha)
            if threshold:
                fill_words(words, row, quarter, k0, k1, stream, step)
                mask(h, s, words, threshold, scale)


@straight
def add_to(h, bias):
    for j in range(h.size):
        h[j] += bias[j]


@straight
def mask(h, s, words, threshold, scale):
    zero = scale - scale
    for j in range(h.size):
        m = scale if words[j] < threshold else zero
        h[j] *= m
        s[j] *= m


@kernel
def dense_backward_kernel(dy, slope, x, W, dW, db, dh, dx, partial, has_slope, has_bias, need_dx, accumulate, chunks):
    """dh = dy slope (dy itself without a slope); dx = dh W^T; dW = x^T dh; db (G, K) = group sums of dh.

    Blocks begin and end with a group, or, for one group (a plain bias), leave their sums in partial (chunks, K).
    """
    N, D = x.shape
    G, K = db.shape[0], W.shape[1]   # without a bias db is a placeholder
    each = N // G
    if has_slope or need_dx or has_bias:
        for chunk in prange(chunks):
            start, stop = N * chunk // chunks, N * (chunk + 1) // chunks
            if G > 1:
                start, stop = G * chunk // chunks * each, G * (chunk + 1) // chunks * each
            else:
                partial[chunk] = 0
            for row in range(start, stop):
                if has_slope:
                    product(dy[row], slope[row], dh[row])
                if has_bias and G == 1:
                    add_to(partial[chunk], dh[row])
                elif has_bias:
                    if row % each == 0 and not accumulate:
                        db[row // each] = 0
                    add_to(db[row // each], dh[row])
            if need_dx and stop > start:
                gemm(PLAIN, TRANSPOSED, stop - start, D, K, dh[start:stop], K, W, K, 0, dx[start:stop], D)
    for chunk in prange(chunks):
        start, stop = D * chunk // chunks, D * (chunk + 1) // chunks
        if stop > start:
            gemm(TRANSPOSED, PLAIN, stop - start, K, N, x[:, start:], D, dh, K, accumulate, dW[start:stop], K)
    if has_bias and G == 1:
        if not accumulate:
            db[0] = 0
        for chunk in range(chunks):
            add_to(db[0], partial[chunk])


# -- methods of CpuOps ----------------------------------------------------------------------------------------------

NO_SLOPE = {np.dtype(name): np.empty((1, 1), name) for name in ("float32", "float64")}
NO_BIAS = {np.dtype(name): np.zeros((1, 1), name) for name in ("float32", "float64")}
NO_KEY = np.uint32(0), np.uint32(0), np.uint32(0), np.int64(0)


def _rows(x):
    """x (..., D) as a matrix in C order."""
    return plain(x).reshape(-1, x.shape[-1])


def linear(ops, x, W, b):
    y = ops.empty((*x.shape[:-1], W.shape[1]), x.dtype)
    rows = _rows(x)
    bias = ops.zeros((1, W.shape[1]), x.dtype) if b is None else b.reshape(1, -1)
    zero = x.dtype.type(0)
    dense_forward_kernel(rows, W, bias, y.reshape(-1, W.shape[1]), NO_SLOPE[x.dtype], 0, zero, False, np.uint32(0), zero,
                  *NO_KEY, ops._chunks(y.size))
    return y


def linear_backward(ops, dy, x, W, dW, db, accumulate, need_dx):
    dx = ops.empty(x.shape, x.dtype) if need_dx else None
    dh = _rows(dy)
    _backward(ops, dh, NO_SLOPE[x.dtype], x, W, dW, db, dh, dx, False, accumulate)
    return dx


def dense(ops, x, W, b, activation, keep_prob, key, train):
    y = ops.empty((*x.shape[:-1], W.shape[1]), x.dtype)
    slope = ops.empty(y.shape, x.dtype) if train else None
    drop = train and keep_prob < 1
    real = x.dtype.type
    dense_forward_kernel(_rows(x), W, b.reshape(-1, W.shape[1]), y.reshape(-1, W.shape[1]),
                  slope.reshape(-1, W.shape[1]) if train else NO_SLOPE[x.dtype], CODES[activation], real(1), train,
                  np.uint32(keep_threshold(keep_prob) if drop else 0), real(1 / keep_prob), *pack_key(key),
                  ops._chunks(y.size))
    return y, slope


def dense_backward(ops, dy, slope, x, W, dW, db, accumulate, need_dx):
    dx = ops.empty(x.shape, x.dtype) if need_dx else None
    dh = ops.empty((slope.size // slope.shape[-1], slope.shape[-1]), x.dtype)
    _backward(ops, _rows(dy), slope.reshape(dh.shape), x, W, dW, db, dh, dx, True, accumulate)
    return dx


def _backward(ops, dy, slope, x, W, dW, db, dh, dx, has_slope, accumulate):
    rows = _rows(x)
    chunks = ops._chunks(dh.size + rows.size)
    dense_backward_kernel(dy, slope, rows, W, dW, NO_BIAS[x.dtype] if db is None else db.reshape(-1, W.shape[1]), dh,
                          rows if dx is None else dx.reshape(rows.shape), ops.empty((chunks, W.shape[1]), x.dtype),
                          has_slope, db is not None, dx is not None, accumulate, chunks)
