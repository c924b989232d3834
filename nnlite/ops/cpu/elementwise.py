"""Activations: f(x) and its slope in one pass, so that other kernels can call it on a row still in cache."""

import math

import numpy as np
from numba import njit, prange

from .mathfun import exp, expm1, kernel, log1p, normal_cdf, straight

CODES = {"identity": 0, "relu": 1, "leaky_relu": 2, "elu": 3, "sigmoid": 4, "tanh": 5, "silu": 6, "softplus": 7,
         "gelu": 8}
INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
PIECE = 1024   # numbers that go through an activation at once


@straight
def activate(y, slope, code, alpha):
    """Replaces y (n,) by f(y) and writes f'(y) to slope; alpha in the type of y."""
    one, zero = y.dtype.type(1), y.dtype.type(0)
    if code == 0:
        slope[:] = one
    elif code == 1:
        for i in range(y.size):
            x = y[i]
            y[i], slope[i] = max(x, zero), one if x > zero else zero
    elif code == 2:
        for i in range(y.size):
            x = y[i]
            s = one if x > zero else alpha
            y[i], slope[i] = s * x, s
    elif code == 3:
        for i in range(y.size):
            x = y[i]
            e = alpha * expm1(min(x, zero))
            y[i], slope[i] = x if x > zero else e, one if x > zero else e + alpha
    else:
        smooth(y, slope, code)


@straight
def smooth(y, slope, code):
    one, zero = y.dtype.type(1), y.dtype.type(0)
    two = y.dtype.type(2)
    if code == 4:
        for i in range(y.size):
            s = sigmoid(y[i], one, zero)
            y[i], slope[i] = s, s * (one - s)
    elif code == 5:
        for i in range(y.size):
            x = y[i]
            e = expm1(-two * abs(x))
            t = -e / (e + two)
            t = t if x > zero else -t
            y[i], slope[i] = t, one - t * t
    elif code == 6:
        for i in range(y.size):
            x = y[i]
            s = sigmoid(x, one, zero)
            y[i], slope[i] = x * s, s * (one + x * (one - s))
    elif code == 7:
        for i in range(y.size):
            x = y[i]
            y[i], slope[i] = max(x, zero) + log1p(exp(-abs(x))), sigmoid(x, one, zero)
    else:
        inv_sqrt_2pi = y.dtype.type(INV_SQRT_2PI)
        for i in range(y.size):
            x = y[i]
            P, e = normal_cdf(x)
            y[i], slope[i] = x * P, P + x * inv_sqrt_2pi * e


@njit(inline="always")
def sigmoid(x, one, zero):
    small = exp(-abs(x))
    return (one if x >= zero else small) / (one + small)


@kernel
def activation(x, y, slope, code, alpha, chunks):
    """y, slope = f(x), f'(x); all (n,), or slope empty where nobody asks for it."""
    for chunk in prange(chunks):
        s = cut(x.size, chunk, chunks)
        x_here, y_here, slope_here, spare = x[s], y[s], slope[s] if slope.size else slope, np.empty(PIECE, y.dtype)
        for start in range(0, x_here.size, PIECE):    # what is copied is still in the first-level cache
            part = slice(start, min(start + PIECE, x_here.size))
            copy(x_here[part], y_here[part])
            activate(y_here[part], slope_here[part] if slope.size else spare[:y_here[part].size], code, alpha)


@njit(inline="always")
def cut(size, chunk, chunks):
    """The slice of this chunk. Loops run over slices from 0: only then does Numba know that no index is negative, and
    LLVM vectorise."""
    return slice(size * chunk // chunks, size * (chunk + 1) // chunks)


@kernel
def multiply(a, b, out, chunks):
    for chunk in prange(chunks):
        s = cut(a.size, chunk, chunks)
        product(a[s], b[s], out[s])


@straight
def product(a, b, out):
    for i in range(a.size):
        out[i] = a[i] * b[i]


@kernel
def add(a, b, out, chunks):
    for chunk in prange(chunks):
        s = cut(a.size, chunk, chunks)
        plus(a[s], b[s], out[s])


@straight
def plus(a, b, out):
    for i in range(a.size):
        out[i] = a[i] + b[i]


@kernel
def add_relu(a, b, out, chunks):
    for chunk in prange(chunks):
        s = cut(a.size, chunk, chunks)
        positive_sum(a[s], b[s], out[s])


@straight
def positive_sum(a, b, out):
    zero = out.dtype.type(0)
    for i in range(a.size):
        h = a[i] + b[i]
        out[i] = zero if h <= zero else h   # so that NaN stays NaN


@kernel
def relu_backward(dy, y, dx, chunks):
    for chunk in prange(chunks):
        s = cut(y.size, chunk, chunks)
        where_positive(dy[s], y[s], dx[s])


@straight
def where_positive(dy, y, dx):
    zero = dx.dtype.type(0)
    for i in range(y.size):
        dx[i] = dy[i] if y[i] > zero else zero


@kernel
def sum_of_squares(x, partial):
    """partial (chunks,) float64."""
    for chunk in prange(partial.size):
        partial[chunk] = square_sum(x[cut(x.size, chunk, partial.size)])


@straight
def square_sum(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel
def take_rows(x, rows, out, chunks):
    for chunk in prange(chunks):
        for i in range(rows.size * chunk // chunks, rows.size * (chunk + 1) // chunks):
            copy(x[rows[i]], out[i])


@straight
def copy(x, out):
    for i in range(x.size):
        out[i] = x[i]
