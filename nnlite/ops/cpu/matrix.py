"""Linear and Dense: BLAS on blocks of rows, the elementwise work behind it while the block is in cache.

Each thread takes a block of rows: the product, bias, activation and dropout forward; the slope and dx backward. Then
each takes a block of rows of dW, so that nothing has to be summed across threads.
"""

import numpy as np
from numba import prange

from .blas import PLAIN, TRANSPOSED, gemm
from .elementwise import CODES, activate
from .mathfun import expm1, kernel, straight
from .philox import fill_words

ELU = CODES["elu"]


@kernel
def dense_forward(x, W, b, y, slope, code, alpha, train, threshold, scale, k0, k1, stream, step, product, chunks):
    """x (N, D), W (D, K), b (G, K), y (N, K), slope (N, K) if train. code: the activation's, of CODES. threshold: 0 for
    no dropout. product: whether x W is to be computed; else y holds it."""
    N, D = x.shape
    K = W.shape[1]
    each = N // b.shape[0]
    quarter = (K + 3) // 4
    alpha, scale, drop, threshold = y.dtype.type(alpha), y.dtype.type(scale), threshold > 0, np.uint32(threshold)
    for chunk in prange(chunks):
        start, stop = N * chunk // chunks, N * (chunk + 1) // chunks
        if stop > start and product:
            gemm(PLAIN, PLAIN, stop - start, K, D, x[start:stop], D, W, K, 0, y[start:stop], K)
        words, spare = np.empty(4 * quarter, np.uint32), np.empty(K, y.dtype)
        for row in range(start, stop):
            h, bias = y[row], b[row // each]
            if code == 0 and not train:
                add_to(h, bias)
                continue
            s = slope[row] if train else spare
            if drop:
                fill_words(words, row * quarter, quarter, k0, k1, stream, step)
            if drop and code == ELU:   # the hidden layers of the face VAEs: all in one pass
                elu_dropout(h, bias, s, words, threshold, scale)
                continue
            add_to(h, bias)
            activate(h, s, code, alpha)
            if drop:
                mask(h, s, words, threshold, scale)


@straight
def add_to(h, bias):
    for j in range(h.size):
        h[j] += bias[j]


@straight
def multiply_to(h, dy):
    for j in range(h.size):
        h[j] *= dy[j]


@straight
def elu_dropout(h, bias, s, words, threshold, scale):
    """h, s = m f(h + bias), m f'(h + bias) for f = ELU with alpha = 1."""
    one, zero = h.dtype.type(1), h.dtype.type(0)
    for j in range(h.size):
        x = h[j] + bias[j]
        m = scale if words[j] < threshold else zero
        e = expm1(min(x, zero))
        h[j] = m * (x if x > zero else e)
        s[j] = m * (e + one)    # e is 0 above zero


@straight
def mask(h, s, words, threshold, scale):
    zero = scale - scale
    for j in range(h.size):
        m = scale if words[j] < threshold else zero
        h[j] *= m
        s[j] *= m


@kernel
def dense_backward(dy, dh, x, W, dW, db, dx, parts, by_rows, has_slope, has_bias, need_dx, accumulate, products,
                   chunks):
    """dh = dy slope; dx = dh W^T; dW = x^T dh; db (G, K) = group sums of dh.

    dh holds the slope and is overwritten: one array less to fetch. Without a slope dh is dy.

    Blocks of rows begin and end with a group; for one group (a plain bias) each leaves its sum in the last row of its
    part (parts: chunks, ..., K). by_rows: each thread multiplies its own rows of x and dh, which are in its cache,
    and the products, all but the first left in the D rows of the parts before, are summed; otherwise each thread
    makes some rows of dW from all rows of x and dh. products: whether dx and dW are to be computed; else only dh, db.
    """
    N, D = x.shape
    G, K = db.shape[0], W.shape[1]   # without a bias db is a placeholder
    each = N // G
    last = parts.shape[1] - 1
    if has_slope or need_dx or has_bias or by_rows:
        for chunk in prange(chunks):
            start, stop = G * chunk // chunks * each, G * (chunk + 1) // chunks * each
            if G == 1:
                start, stop = N * chunk // chunks, N * (chunk + 1) // chunks
                parts[chunk, last] = 0
            for row in range(start, stop):
                if has_slope:
                    multiply_to(dh[row], dy[row])
                if has_bias and G == 1:
                    add_to(parts[chunk, last], dh[row])
                elif has_bias:
                    if row % each == 0 and not accumulate:
                        db[row // each] = 0
                    add_to(db[row // each], dh[row])
            if need_dx and products and stop > start:
                gemm(PLAIN, TRANSPOSED, stop - start, D, K, dh[start:stop], K, W, K, 0, dx[start:stop], D)
            if by_rows:
                target, add = (dW, accumulate) if chunk == 0 else (parts[chunk], False)
                gemm(TRANSPOSED, PLAIN, D, K, stop - start, x[start:stop], D, dh[start:stop], K, add, target, K)
    pieces = chunks if products else 0   # Numba would not make a loop over such an expression parallel
    for chunk in prange(pieces):
        start, stop = D * chunk // chunks, D * (chunk + 1) // chunks
        if by_rows:
            for part in range(1, chunks):
                for row in range(start, stop):
                    add_to(dW[row], parts[part, row])
        elif stop > start:
            gemm(TRANSPOSED, PLAIN, stop - start, K, N, x[:, start:], D, dh, K, accumulate, dW[start:stop], K)
    if has_bias and G == 1:
        if not accumulate:
            db[0] = 0
        for chunk in range(chunks):
            add_to(db[0], parts[chunk, last])


@kernel
def dropout(x, y, m, threshold, scale, k0, k1, stream, step, chunks):
    """y = m x, m = scale where the word is below threshold, else 0; all (rows, columns)."""
    rows, columns = x.shape
    quarter = (columns + 3) // 4
    scale, threshold = x.dtype.type(scale), np.uint32(threshold)
    for chunk in prange(chunks):
        words = np.empty(4 * quarter, np.uint32)
        for row in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
            fill_words(words, row * quarter, quarter, k0, k1, stream, step)
            y[row] = x[row]
            m[row] = scale - scale + 1
            mask(y[row], m[row], words, threshold, scale)
