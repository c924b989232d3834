"""Depthwise convolution: a vector of channels at a time.

The rows of the image that a row of outputs sees lie in a ring of rows, with zeros at both ends and the channels filled
up to whole vectors: every row is copied once, from then on it is read from the nearest cache, and no window has edges.
A 3x3 kernel walks along runs of pixels with its nine weights and nine inputs in registers. Where its stride is 1 the
backward makes dx and dW in one walk, because both look at the same nine dy.

All arrays are flat, in C order; x (N, H, W, C), y (N, Ho, Wo, C); w (kh kw, Cp) with Cp = whole vectors of channels.
"""

import numpy as np
from numba import njit, prange

from .mathfun import kernel, straight
from .simd import fma, load, load_some, store, store_some, zero

RUN = 8    # pixels that are walked along before the next vector of channels: their inputs stay in the first cache


@straight
def bring_rows(x, image, first, step, count, H, W, C, Cp, pw, ring, held, starts):
    """starts[i] = where row first + i step of an image lies in the ring; rows that it does not hold are copied, zeros
    for one outside of the image. held: which row each slot holds."""
    across = (W + 2 * pw) * Cp
    for i in range(count):
        row = first + i * step
        slot = row % held.size
        starts[i] = slot * across
        if held[slot] == row:
            continue
        held[slot] = row
        target = ring[slot * across + pw * Cp:slot * across + (pw + W) * Cp]
        if row < 0 or row >= H:
            target[:] = 0
        elif C == Cp:
            copy(x[image + row * W * C:image + (row + 1) * W * C], target)
        else:
            for q in range(W):
                copy(x[image + (row * W + q) * C:image + (row * W + q + 1) * C], target[q * Cp:q * Cp + C])


@straight
def copy(source, target):
    for i in range(source.size):
        target[i] = source[i]


@njit(inline="always")
def get(a, at, some, L):
    return load(a, at) if some == L else load_some(a, at, some)


@njit(inline="always")
def put(a, at, value, some, L):
    if some == L:
        store(a, at, value)
    else:
        store_some(a, at, value, some)


@straight
def walk(ring, starts, Cp, C, L, w, bias, y, to, count):
    """A row of outputs of a 3x3 kernel of stride 1."""
    r0, r1, r2 = starts[0], starts[1], starts[2]
    for begin in range(0, count, RUN):
        end = min(count, begin + RUN)
        for c in range(0, C, L):
            some = min(L, C - c)
            shift = get(bias, c, some, L) if bias.size else zero(y)
            w0, w1, w2 = load(w, c), load(w, Cp + c), load(w, 2 * Cp + c)
            w3, w4, w5 = load(w, 3 * Cp + c), load(w, 4 * Cp + c), load(w, 5 * Cp + c)
            w6, w7, w8 = load(w, 6 * Cp + c), load(w, 7 * Cp + c), load(w, 8 * Cp + c)
            p = begin * Cp + c
            x0, x3, x6 = load(ring, r0 + p), load(ring, r1 + p), load(ring, r2 + p)
            p += Cp
            x1, x4, x7 = load(ring, r0 + p), load(ring, r1 + p), load(ring, r2 + p)
            for q in range(begin, end):
                p += Cp
                x2, x5, x8 = load(ring, r0 + p), load(ring, r1 + p), load(ring, r2 + p)
                first = fma(x0, w0, fma(x1, w1, fma(x2, w2, shift)))
                second = fma(x3, w3, fma(x4, w4, fma(x5, w5, first)))
                put(y, to + q * C + c, fma(x6, w6, fma(x7, w7, fma(x8, w8, second))), some, L)
                x0, x1, x3, x4, x6, x7 = x1, x2, x4, x5, x7, x8


@straight
def leap(ring, starts, Cp, C, L, w, kh, kw, sw, dw, bias, y, to, count):
    """A row of outputs of any kernel, a window at a time."""
    for q in range(count):
        for c in range(0, C, L):
            some, tap = min(L, C - c), c
            total = get(bias, c, some, L) if bias.size else zero(y)
            for i in range(kh):
                p = starts[i] + q * sw * Cp + c
                for _ in range(kw):
                    total = fma(load(ring, p), load(w, tap), total)
                    p += dw * Cp
                    tap += Cp
            put(y, to + q * C + c, total, some, L)


@kernel
def depthwise_forward(x, H, W, C, w, L, bias, y, Ho, Wo, kh, kw, sh, sw, ph, pw, dh, dw, rings, total, chunks):
    """total: N Ho, the rows of outputs in all."""
    Cp, walks = (C + L - 1) // L * L, kh == 3 and kw == 3 and sw == 1 and dw == 1
    for chunk in prange(chunks):
        ring, held, starts = rings[chunk], np.empty((kh - 1) * dh + 1, np.int64), np.empty(kh, np.int64)
        ring[:] = 0
        begin = total * chunk // chunks
        for job in range(begin, total * (chunk + 1) // chunks):
            n, h = job // Ho, job % Ho
            if h == 0 or job == begin:
                held[:] = -ph - 1    # a row that nobody asks for: nothing of this image is held yet
            bring_rows(x, n * H * W * C, h * sh - ph, dh, kh, H, W, C, Cp, pw, ring, held, starts)
            if walks:
                walk(ring, starts, Cp, C, L, w, bias, y, job * Wo * C, Wo)
            else:
                leap(ring, starts, Cp, C, L, w, kh, kw, sw, dw, bias, y, job * Wo * C, Wo)


@straight
def walk_back(ring, starts, Cp, C, L, w, sums, x, at, dx, count, need_dx):
    """A row of dx of a 3x3 kernel of stride 1, and sums (9, Cp) for dW, from the three rows of dy that saw it."""
    r0, r1, r2 = starts[0], starts[1], starts[2]
    for begin in range(0, count, RUN):
        end = min(count, begin + RUN)
        for c in range(0, C, L):
            some = min(L, C - c)
            w0, w1, w2 = load(w, c), load(w, Cp + c), load(w, 2 * Cp + c)
            w3, w4, w5 = load(w, 3 * Cp + c), load(w, 4 * Cp + c), load(w, 5 * Cp + c)
            w6, w7, w8 = load(w, 6 * Cp + c), load(w, 7 * Cp + c), load(w, 8 * Cp + c)
            s0, s1, s2 = load(sums, c), load(sums, Cp + c), load(sums, 2 * Cp + c)
            s3, s4, s5 = load(sums, 3 * Cp + c), load(sums, 4 * Cp + c), load(sums, 5 * Cp + c)
            s6, s7, s8 = load(sums, 6 * Cp + c), load(sums, 7 * Cp + c), load(sums, 8 * Cp + c)
            p = begin * Cp + c
            d8, d5, d2 = load(ring, r0 + p), load(ring, r1 + p), load(ring, r2 + p)
            p += Cp
            d7, d4, d1 = load(ring, r0 + p), load(ring, r1 + p), load(ring, r2 + p)
            for q in range(begin, end):
                p += Cp
                d6, d3, d0 = load(ring, r0 + p), load(ring, r1 + p), load(ring, r2 + p)
                value = get(x, at + q * C + c, some, L)
                s0, s1, s2 = fma(value, d0, s0), fma(value, d1, s1), fma(value, d2, s2)
                s3, s4, s5 = fma(value, d3, s3), fma(value, d4, s4), fma(value, d5, s5)
                s6, s7, s8 = fma(value, d6, s6), fma(value, d7, s7), fma(value, d8, s8)
                if need_dx:
                    first = fma(d0, w0, fma(d1, w1, fma(d2, w2, zero(dx))))
                    second = fma(d3, w3, fma(d4, w4, fma(d5, w5, first)))
                    put(dx, at + q * C + c, fma(d6, w6, fma(d7, w7, fma(d8, w8, second))), some, L)
                d8, d7, d5, d4, d2, d1 = d7, d6, d4, d3, d1, d0
            store(sums, c, s0), store(sums, Cp + c, s1), store(sums, 2 * Cp + c, s2)
            store(sums, 3 * Cp + c, s3), store(sums, 4 * Cp + c, s4), store(sums, 5 * Cp + c, s5)
            store(sums, 6 * Cp + c, s6), store(sums, 7 * Cp + c, s7), store(sums, 8 * Cp + c, s8)


@straight
def leap_back(dy, at, w, kh, kw, sums, x, dx, image, top, left, H, W, C, Cp, L, dh, dw, need_dx):
    """One pixel of dy: added to dx times the weights, and to the sums for dW times the inputs of its window."""
    for i in range(kh):
        h = top + i * dh
        if h < 0 or h >= H:
            continue
        for j in range(kw):
            q = left + j * dw
            if q < 0 or q >= W:
                continue
            place, tap = image + (h * W + q) * C, (i * kw + j) * Cp
            for c in range(0, C, L):
                some = min(L, C - c)
                d = get(dy, at + c, some, L)
                store(sums, tap + c, fma(get(x, place + c, some, L), d, load(sums, tap + c)))
                if need_dx:
                    put(dx, place + c, fma(d, load(w, tap + c), get(dx, place + c, some, L)), some, L)


@kernel
def depthwise_backward(x, H, W, C, dy, Ho, Wo, w, L, dx, kh, kw, sh, sw, ph, pw, dh, dw, walks, rings, parts, images,
                       need_dx, chunks):
    """dx (if need_dx), and parts (chunks, kh kw, Cp): each thread's sums for dW."""
    Cp = (C + L - 1) // L * L
    for chunk in prange(chunks):
        ring, held, starts = rings[chunk], np.empty(3, np.int64), np.empty(3, np.int64)
        mine = parts[chunk].reshape(-1)
        sums = np.empty(mine.size, x.dtype)
        ring[:], mine[:] = 0, 0
        for n in range(images * chunk // chunks, images * (chunk + 1) // chunks):
            image, other = n * H * W * C, n * Ho * Wo * C
            held[:] = -3
            if need_dx and not walks:
                dx[image:image + H * W * C] = 0
            for h in range(H if walks else Ho):
                sums[:] = 0    # sums of sums, for the rounding
                if walks:
                    bring_rows(dy, other, h + ph - 2, 1, 3, Ho, Wo, C, Cp, 2 - pw, ring, held, starts)
                    walk_back(ring, starts, Cp, C, L, w, sums, x, image + h * W * C, dx, W, need_dx)
                else:
                    for q in range(Wo):
                        leap_back(dy, other + (h * Wo + q) * C, w, kh, kw, sums, x, dx, image, h * sh - ph, q * sw - pw,
                                  H, W, C, Cp, L, dh, dw, need_dx)
                for i in range(mine.size):
                    mine[i] += sums[i]
