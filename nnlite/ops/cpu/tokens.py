"""Tokens (N, T, D) out of images and back: copies and sums, as fast as memory."""

from numba import prange

from .elementwise import copy, cut, plus
from .mathfun import kernel


@kernel
def patches(x, size, y, back, chunks):
    """x (N, H, W, C) in squares of size x size pixels, y (N, H W / size^2, size^2 C): y from x, or back, x from y."""
    N, H, W, C = x.shape
    part, line = size * C, W * C   # what a square has of a row of pixels, and the row
    x, y = x.reshape(-1), y.reshape(-1)
    for chunk in prange(chunks):
        for row in range(N * H * chunk // chunks, N * H * (chunk + 1) // chunks):
            to = row // size * size * line + row % size * part
            for start in range(row * line, (row + 1) * line, part):
                if back:
                    copy(y[to:to + part], x[start:start + part])
                else:
                    copy(x[start:start + part], y[to:to + part])
                to += size * part


@kernel
def prepend_token(x, token, y, chunks):
    """y (N, T + 1, D) = [token, x[n]]."""
    N, T, _ = x.shape
    for chunk in prange(chunks):
        for row in range(N * (T + 1) * chunk // chunks, N * (T + 1) * (chunk + 1) // chunks):
            n, t = row // (T + 1), row % (T + 1)
            copy(x[n, t - 1] if t > 0 else token, y[n, t])


@kernel
def prepend_token_backward(dy, dx, dtoken, accumulate, chunks):
    N, T, _ = dx.shape
    for chunk in prange(chunks):
        for row in range(N * T * chunk // chunks, N * T * (chunk + 1) // chunks):
            copy(dy[row // T, row % T + 1], dx[row // T, row % T])
    if not accumulate:
        dtoken[:] = 0
    for n in range(N):
        plus(dtoken, dy[n, 0], dtoken)


@kernel
def take_token(x, index, y, chunks):
    """y (N, D) = x[:, index]."""
    N = len(x)
    for chunk in prange(chunks):
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            copy(x[n, index], y[n])


@kernel
def take_token_backward(dy, index, dx, chunks):
    N = len(dx)
    for chunk in prange(chunks):
        for n in range(N * chunk // chunks, N * (chunk + 1) // chunks):
            dx[n] = 0
            copy(dy[n], dx[n, index])


@kernel
def add_to_samples(x, P, y, chunks):
    """y[n] = x[n] + P; x, y (N, T D), P (T D,). Each thread takes some columns: its part of P stays in the cache."""
    for chunk in prange(chunks):
        s = cut(P.size, chunk, chunks)
        for n in range(len(x)):
            plus(x[n, s], P[s], y[n, s])


@kernel
def sum_samples(x, total, accumulate, chunks):
    """total (T D,) = the sum of x (N, T D) over n, added to it if accumulate."""
    for chunk in prange(chunks):
        s = cut(total.size, chunk, chunks)
        if not accumulate:
            total[s] = 0
        for n in range(len(x)):
            plus(total[s], x[n, s], total[s])
