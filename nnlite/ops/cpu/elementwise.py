"""Activations: f(x) and its slope in one pass, row by row, so that other kernels can call it on a row still in cache."""

import math

import numpy as np
from numba import njit, prange

from .mathfun import exp, expm1, kernel, log1p

CODES = {"identity": 0, "relu": 1, "leaky_relu": 2, "elu": 3, "sigmoid": 4, "tanh": 5, "silu": 6, "softplus": 7,
         "gelu": 8}
SQRT_HALF, INV_SQRT_2PI = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


@njit(inline="always")
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


@njit
def smooth(y, slope, code):
    one, zero = y.dtype.type(1), y.dtype.type(0)
    two, half = y.dtype.type(2), y.dtype.type(0.5)
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
        sqrt_half, inv_sqrt_2pi = y.dtype.type(SQRT_HALF), y.dtype.type(INV_SQRT_2PI)
        for i in range(y.size):
            x = y[i]
            P = half * (one + math.erf(x * sqrt_half))
            y[i], slope[i] = x * P, P + x * inv_sqrt_2pi * exp(-half * x * x)


@njit(inline="always")
def sigmoid(x, one, zero):
    small = exp(-abs(x))
    return (one if x >= zero else small) / (one + small)


@kernel
def activation(x, y, slope, code, alpha, chunks):
    """y, slope = f(x), f'(x); all (n,)."""
    for chunk in prange(chunks):
        a, e = x.size * chunk // chunks, x.size * (chunk + 1) // chunks
        y[a:e] = x[a:e]
        activate(y[a:e], slope[a:e], code, alpha)


@kernel
def multiply(a, b, out, chunks):
    for chunk in prange(chunks):
        for i in range(a.size * chunk // chunks, a.size * (chunk + 1) // chunks):
            out[i] = a[i] * b[i]


@kernel
def add(a, b, out, chunks):
    for chunk in prange(chunks):
        for i in range(a.size * chunk // chunks, a.size * (chunk + 1) // chunks):
            out[i] = a[i] + b[i]


@kernel
def sum_of_squares(x, partial):
    """partial (chunks,) float64."""
    chunks = partial.size
    for chunk in prange(chunks):
        total = 0.0
        for i in range(x.size * chunk // chunks, x.size * (chunk + 1) // chunks):
            total += np.float64(x[i]) * np.float64(x[i])
        partial[chunk] = total


@kernel
def take_rows(x, rows, out, chunks):
    for chunk in prange(chunks):
        for i in range(rows.size * chunk // chunks, rows.size * (chunk + 1) // chunks):
            out[i] = x[rows[i]]
