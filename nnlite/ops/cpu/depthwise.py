"""Depthwise convolution: a vector of channels at a time.

A 3x3 kernel of stride 1 walks along runs of pixels with its nine weights and the inputs of the last three columns in
registers, forward on two rows of outputs at once, which have two of their three rows of inputs in common. Where a
window reaches over an edge its numbers are zeros, in registers too: nothing is copied. The backward makes dx, dW and db
in one walk, because all look at the same nine dy. Any other kernel goes through the windows one by one.

All arrays are flat, in C order; x (N, H, W, C), y (N, Ho, Wo, C), w (kh, kw, C).
"""

import numpy as np
from numba import njit, prange

from .mathfun import kernel, straight
from .simd import add, fma, load, load_some, store, store_some, zero

RUN = 8    # pixels that are walked along before the next vector of channels: their inputs stay in the first cache


@njit(inline="always")
def get(a, at, some, L):
    return load(a, at) if some == L else load_some(a, at, some)


@njit(inline="always")
def put(a, at, value, some, L):
    if some == L:
        store(a, at, value)
    else:
        store_some(a, at, value, some)


@njit(inline="always")
def pixel(row, q, W, C, c, some, L):
    """A vector of the row's pixel q, zeros outside of the image."""
    return get(row, q * C + c, some, L) if 0 <= q < W else zero(row)


@njit(inline="always")
def nine(w, C, c, some, L):
    return (get(w, c, some, L), get(w, C + c, some, L), get(w, 2 * C + c, some, L),
            get(w, 3 * C + c, some, L), get(w, 4 * C + c, some, L), get(w, 5 * C + c, some, L),
            get(w, 6 * C + c, some, L), get(w, 7 * C + c, some, L), get(w, 8 * C + c, some, L))


@njit(inline="always")
def window(x0, x1, x2, x3, x4, x5, x6, x7, x8, w0, w1, w2, w3, w4, w5, w6, w7, w8, shift):
    first = fma(x0, w0, fma(x1, w1, fma(x2, w2, shift)))
    second = fma(x3, w3, fma(x4, w4, fma(x5, w5, first)))
    return fma(x6, w6, fma(x7, w7, fma(x8, w8, second)))


@njit(inline="always")
def row_of(x, image, h, H, length, zeros):
    """Row h of an image, zeros outside of it."""
    return x[image + h * length:image + (h + 1) * length] if 0 <= h < H else zeros


@straight
def walk(a, b, c, d, W, C, L, w, bias, pw, y, to, across, both):
    """A row of `across` outputs of a 3x3 kernel of stride 1 from the rows a, b, c; if both, the next from b, c, d."""
    for begin in range(0, across, RUN):
        end = min(across, begin + RUN)
        edge = max(begin, min(end, W + pw - 2))    # outputs from here on look over it
        for k in range(0, C, L):
            some = min(L, C - k)
            shift = get(bias, k, some, L) if bias.size else zero(y)
            w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(w, C, k, some, L)
            q = begin - pw
            a0, b0, c0, d0 = (pixel(a, q, W, C, k, some, L), pixel(b, q, W, C, k, some, L),
                              pixel(c, q, W, C, k, some, L), pixel(d, q, W, C, k, some, L))
            q += 1
            a1, b1, c1, d1 = (pixel(a, q, W, C, k, some, L), pixel(b, q, W, C, k, some, L),
                              pixel(c, q, W, C, k, some, L), pixel(d, q, W, C, k, some, L))
            at, t = (q + 1) * C + k, to + begin * C + k
            for q in range(begin, end):
                if q < edge:
                    a2, b2, c2, d2 = (get(a, at, some, L), get(b, at, some, L), get(c, at, some, L),
                                      get(d, at, some, L))
                else:
                    a2, b2, c2, d2 = zero(y), zero(y), zero(y), zero(y)
                put(y, t, window(a0, a1, a2, b0, b1, b2, c0, c1, c2, w0, w1, w2, w3, w4, w5, w6, w7, w8, shift), some,
                    L)
                if both:
                    put(y, t + across * C, window(b0, b1, b2, c0, c1, c2, d0, d1, d2, w0, w1, w2, w3, w4, w5, w6, w7,
                                                  w8, shift), some, L)
                a0, a1, b0, b1, c0, c1, d0, d1 = a1, a2, b1, b2, c1, c2, d1, d2
                at += C
                t += C


@njit(inline="always")
def inside(first, step, count, size):
    """The range of i in range(count) with 0 <= first + i step < size."""
    begin = (-first + step - 1) // step if first < 0 else 0
    return begin, min(count, (size - first + step - 1) // step) if first < size else 0


@straight
def leap(x, image, top, H, W, C, L, w, kh, kw, sw, pw, dh, dw, bias, y, to, across):
    """A row of outputs of any kernel, a window at a time."""
    i0, i1 = inside(top, dh, kh, H)
    for q in range(across):
        left = q * sw - pw
        j0, j1 = inside(left, dw, kw, W)
        for c in range(0, C, L):
            some = min(L, C - c)
            total = get(bias, c, some, L) if bias.size else zero(y)
            for i in range(i0, i1):
                place, tap = image + ((top + i * dh) * W + left) * C + c, i * kw * C + c
                for j in range(j0, j1):
                    total = fma(get(x, place + j * dw * C, some, L), get(w, tap + j * C, some, L), total)
            put(y, to + q * C + c, total, some, L)


@kernel
def depthwise_forward(x, H, W, C, w, L, bias, y, Ho, Wo, kh, kw, sh, sw, ph, pw, dh, dw, walks, total, chunks):
    """total: N Ho, the rows of outputs in all."""
    for chunk in prange(chunks):
        job, end = total * chunk // chunks, total * (chunk + 1) // chunks
        zeros = np.zeros(W * C if walks else 0, x.dtype)
        while job < end:
            n, h = job // Ho, job % Ho
            image = n * H * W * C
            if walks:
                top, both = h - ph, h + 1 < Ho and job + 1 < end
                walk(row_of(x, image, top, H, W * C, zeros), row_of(x, image, top + 1, H, W * C, zeros),
                     row_of(x, image, top + 2, H, W * C, zeros), row_of(x, image, top + 3, H, W * C, zeros), W, C, L,
                     w, bias, pw, y, job * Wo * C, Wo, both)
                job += 2 if both else 1
            else:
                leap(x, image, h * sh - ph, H, W, C, L, w, kh, kw, sw, pw, dh, dw, bias, y, job * Wo * C, Wo)
                job += 1


@straight
def walk_back(a, b, c, across, C, L, w, sums, pw, x, at, dx, W, need_dx):
    """A row of dx of a 3x3 kernel of stride 1, and sums (10, C) for dW and db, from the three rows of dy that saw it,
    the last one first. pw: dy's columns that the first pixel of the row saw and that are not there."""
    for begin in range(0, W, RUN):
        end = min(W, begin + RUN)
        edge = max(begin, min(end, across + pw - 2))
        for k in range(0, C, L):
            some = min(L, C - k)
            w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(w, C, k, some, L)
            s0, s1, s2, s3, s4, s5, s6, s7, s8 = nine(sums, C, k, some, L)
            s9 = get(sums, 9 * C + k, some, L)
            q = begin - pw
            d8, d5, d2 = (pixel(a, q, across, C, k, some, L), pixel(b, q, across, C, k, some, L),
                          pixel(c, q, across, C, k, some, L))
            q += 1
            d7, d4, d1 = (pixel(a, q, across, C, k, some, L), pixel(b, q, across, C, k, some, L),
                          pixel(c, q, across, C, k, some, L))
            p, t = (q + 1) * C + k, at + begin * C + k
            for q in range(begin, end):
                if q < edge:
                    d6, d3, d0 = get(a, p, some, L), get(b, p, some, L), get(c, p, some, L)
                else:
                    d6, d3, d0 = zero(x), zero(x), zero(x)
                value = get(x, t, some, L)
                s0, s1, s2 = fma(value, d0, s0), fma(value, d1, s1), fma(value, d2, s2)
                s3, s4, s5 = fma(value, d3, s3), fma(value, d4, s4), fma(value, d5, s5)
                s6, s7, s8 = fma(value, d6, s6), fma(value, d7, s7), fma(value, d8, s8)
                s9 = add(s9, d4)
                if need_dx:
                    put(dx, t, window(d0, d1, d2, d3, d4, d5, d6, d7, d8, w0, w1, w2, w3, w4, w5, w6, w7, w8,
                                      zero(dx)), some, L)
                d8, d7, d5, d4, d2, d1 = d7, d6, d4, d3, d1, d0
                p += C
                t += C
            put(sums, k, s0, some, L), put(sums, C + k, s1, some, L), put(sums, 2 * C + k, s2, some, L)
            put(sums, 3 * C + k, s3, some, L), put(sums, 4 * C + k, s4, some, L), put(sums, 5 * C + k, s5, some, L)
            put(sums, 6 * C + k, s6, some, L), put(sums, 7 * C + k, s7, some, L), put(sums, 8 * C + k, s8, some, L)
            put(sums, 9 * C + k, s9, some, L)


@straight
def leap_back(dy, at, w, kh, kw, sums, x, dx, image, top, left, H, W, C, L, dh, dw, need_dx):
    """One pixel of dy: added to dx times the weights, and to the sums for db, and for dW times the inputs of its
    window."""
    i0, i1 = inside(top, dh, kh, H)
    j0, j1 = inside(left, dw, kw, W)
    last = sums[kh * kw * C:]
    for c in range(C):
        last[c] += dy[at + c]
    for i in range(i0, i1):
        for j in range(j0, j1):
            place, tap = image + ((top + i * dh) * W + left + j * dw) * C, (i * kw + j) * C
            for c in range(0, C, L):
                some = min(L, C - c)
                d = get(dy, at + c, some, L)
                put(sums, tap + c, fma(get(x, place + c, some, L), d, get(sums, tap + c, some, L)), some, L)
                if need_dx:
                    put(dx, place + c, fma(d, get(w, tap + c, some, L), get(dx, place + c, some, L)), some, L)


@kernel
def depthwise_backward(x, H, W, C, dy, Ho, Wo, w, L, dx, kh, kw, sh, sw, ph, pw, dh, dw, walks, parts, images, need_dx,
                       chunks):
    """dx (if need_dx), and parts (chunks, kh kw + 1, C): each thread's sums for dW and, in the last row, db."""
    for chunk in prange(chunks):
        zeros = np.zeros(Wo * C if walks else 0, x.dtype)
        mine = parts[chunk].reshape(-1)
        sums = np.empty(mine.size, x.dtype)
        mine[:] = 0
        for n in range(images * chunk // chunks, images * (chunk + 1) // chunks):
            image, other = n * H * W * C, n * Ho * Wo * C
            if need_dx and not walks:
                dx[image:image + H * W * C] = 0
            for h in range(H if walks else Ho):
                sums[:] = 0    # sums of sums, for the rounding
                if walks:
                    top = h + ph - 2
                    walk_back(row_of(dy, other, top, Ho, Wo * C, zeros), row_of(dy, other, top + 1, Ho, Wo * C, zeros),
                              row_of(dy, other, top + 2, Ho, Wo * C, zeros), Wo, C, L, w, sums, 2 - pw, x,
                              image + h * W * C, dx, W, need_dx)
                else:
                    for q in range(Wo):
                        leap_back(dy, other + (h * Wo + q) * C, w, kh, kw, sums, x, dx, image, h * sh - ph, q * sw - pw,
                                  H, W, C, L, dh, dw, need_dx)
                for i in range(mine.size):
                    mine[i] += sums[i]
