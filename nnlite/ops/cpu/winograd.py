"""3x3 and 5x5 convolution of stride 1 with fewer multiplications (Winograd 1980; Lavin & Gray 2016).

A tile of m x m outputs needs 6 x 6 inputs: m = 4 for 3x3, m = 2 for 5x5. Both polynomials, the tile's and the kernel's,
are taken at the points 0, 1, -1, 2, -2 and infinity, multiplied there, and the product's coefficients read off:

    Y = A^T ( (G W G^T) * (B^T X B) ) A

Per tile, channel and output that is 36 multiplications instead of 9 m^2 = 144, or 25 m^2 = 100. Summed over the
channels, the products at each of the 36 points are a matrix product: tiles x channels times channels x outputs.
In the derivative with respect to W the same transforms stand in their transposed form; it is used for 3x3 alone,
because for 5x5 its sums at the points 2 and -2, which count 16 times, lose too many digits in float32:

    dW = G^T ( sum over tiles of (B^T X B) * (A dY A^T) ) G

Tiles go through in groups whose transforms stay in the second-level cache. All arrays are flat, in C order.
"""

import numpy as np
from numba import njit, prange

from .block import panel_of, product_across, product_along
from .direct import add_parts
from .mathfun import kernel, straight
from .simd import add, constant, fma, load, load_some, mul, positive, store, store_some, sub, zero

POINTS = 36
BLOCK = 64   # channels, and outputs, whose sums of products for dW are kept at once
SUMMED = 700   # tiles whose products are added up before they are added to dW: longer sums lose digits


def tile_size(kernel_size):
    """m, for 3x3 and 5x5."""
    return 7 - kernel_size


def weight_matrix(kernel_size):
    """G (6, r): the powers of the points, divided by the product of their distances to the others."""
    scales = ((0, 1 / 4), (1, -1 / 6), (-1, -1 / 6), (2, 1 / 24), (-2, 1 / 24))
    rows = [[scale * float(point) ** power for power in range(kernel_size)] for point, scale in scales]
    return np.array(rows + [[0.0] * (kernel_size - 1) + [1.0]])


# -- one-dimensional transforms of six vectors ------------------------------------------------------------------------

@njit(inline="always")
def inputs(a, d0, d1, d2, d3, d4, d5):
    """B^T d"""
    minus4, minus5, four, two = constant(a, -4.0), constant(a, -5.0), constant(a, 4.0), constant(a, 2.0)
    even, odd = fma(d2, minus4, d4), fma(d1, minus4, d3)
    far, near = sub(d4, d2), mul(sub(d3, d1), two)
    return (fma(d0, four, fma(d2, minus5, d4)), add(even, odd), sub(even, odd), add(far, near), sub(far, near),
            fma(d1, four, fma(d3, minus5, d5)))


@njit(inline="always")
def outputs4(a, m0, m1, m2, m3, m4, m5):
    """A^T m for four outputs"""
    s1, d1, s2, d2 = add(m1, m2), sub(m1, m2), add(m3, m4), sub(m3, m4)
    return (add(m0, add(s1, s2)), fma(d2, constant(a, 2.0), d1), fma(s2, constant(a, 4.0), s1),
            add(fma(d2, constant(a, 8.0), d1), m5))


@njit(inline="always")
def outputs2(a, m0, m1, m2, m3, m4, m5):
    """A^T m for two outputs"""
    s1, d1, s2, d2 = add(m1, m2), sub(m1, m2), add(m3, m4), sub(m3, m4)
    return add(m0, add(s1, s2)), add(fma(d2, constant(a, 2.0), d1), m5)


@njit(inline="always")
def spread4(a, y0, y1, y2, y3):
    """A y for four outputs"""
    two, four, eight = constant(a, 2.0), constant(a, 4.0), constant(a, 8.0)
    even, odd = add(y0, y2), add(y1, y3)
    even2, odd2 = fma(y2, four, y0), fma(y3, eight, mul(y1, two))
    return y0, add(even, odd), sub(even, odd), add(even2, odd2), sub(even2, odd2), y3


# -- tiles ------------------------------------------------------------------------------------------------------------

@straight
def cut_patch(x, image, H, W, C, top, left, size, patch):
    """The size x size pixels from (top, left) on, zeros outside of the image, into patch."""
    for i in range(size):
        h = top + i
        for j in range(size):
            w = left + j
            target = patch[(i * size + j) * C:(i * size + j + 1) * C]
            if 0 <= h < H and 0 <= w < W:
                source = x[image + (h * W + w) * C:image + (h * W + w + 1) * C]
                for c in range(C):
                    target[c] = source[c]
            else:
                target[:] = 0


@straight
def transform_input(x, at, row, pixel, channels, L, v, to, plane, half):
    """v[to + point plane + c] = B^T X B of the 6 x 6 pixels at x[at:], for each channel."""
    for c in range(0, channels, L):
        some = channels - c
        for j in range(6):
            p = at + j * pixel + c
            if some >= L:
                d = inputs(x, load(x, p), load(x, p + row), load(x, p + 2 * row), load(x, p + 3 * row),
                           load(x, p + 4 * row), load(x, p + 5 * row))
            else:
                d = inputs(x, load_some(x, p, some), load_some(x, p + row, some), load_some(x, p + 2 * row, some),
                           load_some(x, p + 3 * row, some), load_some(x, p + 4 * row, some),
                           load_some(x, p + 5 * row, some))
            for i in range(6):
                store(half, (i * 6 + j) * L, d[i])
        for i in range(6):
            q = i * 6 * L
            d = inputs(x, load(half, q), load(half, q + L), load(half, q + 2 * L), load(half, q + 3 * L),
                       load(half, q + 4 * L), load(half, q + 5 * L))
            t = to + i * 6 * plane + c
            for j in range(6):
                store(v, t + j * plane, d[j])


@straight
def transform_output(m, at, plane, size, K, L, bias, relu, y, to, row, high, wide, half):
    """The outputs A^T M A of a tile, bias added, for the high x wide of them that lie in the image."""
    for k in range(0, K, L):
        some = min(L, K - k)
        shift = load_some(bias, k, some) if bias.size else zero(y)
        for j in range(6):
            p = at + j * plane + k
            if size == 4:
                o = outputs4(y, load(m, p), load(m, p + 6 * plane), load(m, p + 12 * plane), load(m, p + 18 * plane),
                             load(m, p + 24 * plane), load(m, p + 30 * plane))
                for i in range(4):
                    store(half, (i * 6 + j) * L, o[i])
            else:
                o2 = outputs2(y, load(m, p), load(m, p + 6 * plane), load(m, p + 12 * plane), load(m, p + 18 * plane),
                              load(m, p + 24 * plane), load(m, p + 30 * plane))
                for i in range(2):
                    store(half, (i * 6 + j) * L, o2[i])
        for i in range(high):
            q, t = i * 6 * L, to + i * row + k
            if size == 4:
                o = outputs4(y, load(half, q), load(half, q + L), load(half, q + 2 * L), load(half, q + 3 * L),
                             load(half, q + 4 * L), load(half, q + 5 * L))
                for j in range(4):
                    if j < wide:
                        put(y, t + j * K, add(o[j], shift), relu, some, L)
            else:
                o2 = outputs2(y, load(half, q), load(half, q + L), load(half, q + 2 * L), load(half, q + 3 * L),
                              load(half, q + 4 * L), load(half, q + 5 * L))
                for j in range(2):
                    if j < wide:
                        put(y, t + j * K, add(o2[j], shift), relu, some, L)


@njit(inline="always")
def put(y, t, value, relu, some, L):
    value = positive(value) if relu else value
    if some == L:
        store(y, t, value)
    else:
        store_some(y, t, value, some)


@straight
def spread_gradient(dy, at, row, pixel, k, some, L, z, to, step, half):
    """z[to + point step] = A dY A^T of a tile of 4 x 4, for the some (at most L) outputs from k on."""
    for j in range(4):
        p = at + j * pixel + k
        d = spread4(dy, load_some(dy, p, some), load_some(dy, p + row, some), load_some(dy, p + 2 * row, some),
                    load_some(dy, p + 3 * row, some))
        for i in range(6):
            store(half, (i * 4 + j) * L, d[i])
    for i in range(6):
        q = i * 4 * L
        d = spread4(dy, load(half, q), load(half, q + L), load(half, q + 2 * L), load(half, q + 3 * L))
        for j in range(6):
            store(z, to + (i * 6 + j) * step, d[j])


# -- kernels ----------------------------------------------------------------------------------------------------------

@kernel
def winograd_forward(x, N, H, W, C, u, L, bias, relu, y, Ho, Wo, K, size, ph, pw, v, m, patch, group, chunks):
    """y = the convolution with the weights transformed into u: 36 matrices C x K in panels.
    v, m, patch (chunks, ...): room for the transforms of `group` tiles and for one tile at an edge."""
    down, across = (Ho + size - 1) // size, (Wo + size - 1) // size
    tiles = N * down * across
    Cp, Kp = (C + L - 1) // L * L, (K + L - 1) // L * L
    plane_v, plane_m = group * Cp + L, group * Kp + L    # L more: planes a power of two apart share places in a cache
    for chunk in prange(chunks):
        vs, ms, edge = v[chunk], m[chunk], patch[chunk]
        half = np.empty(POINTS * L, x.dtype)
        end = tiles * (chunk + 1) // chunks
        for start in range(tiles * chunk // chunks, end, group):
            count = min(group, end - start)
            for t in range(count):
                n, th, tw = (start + t) // (down * across), (start + t) // across % down, (start + t) % across
                top, left, image = th * size - ph, tw * size - pw, n * H * W * C
                if top >= 0 and left >= 0 and top + 6 <= H and left + 6 <= W:
                    transform_input(x, image + (top * W + left) * C, W * C, C, C, L, vs, t * Cp, plane_v, half)
                else:
                    cut_patch(x, image, H, W, C, top, left, 6, edge)
                    transform_input(edge, 0, 6 * C, C, C, L, vs, t * Cp, plane_v, half)
            for p in range(POINTS):
                product_along(count, vs, p * plane_v, Cp, 1, C, u, p * Kp * C, L, Kp, ms, p * plane_m, Kp, False)
            for t in range(count):
                n, th, tw = (start + t) // (down * across), (start + t) // across % down, (start + t) % across
                h, w = th * size, tw * size
                transform_output(ms, t * Kp, plane_m, size, K, L, bias, relu, y, ((n * Ho + h) * Wo + w) * K, Wo * K,
                                 min(size, Ho - h), min(size, Wo - w), half)


@kernel
def transform_weight(W, r, C, K, G, L, u, chunks):
    """u = G W G^T: 36 matrices C x K in panels; W (r, r, C, K)."""
    across = (K + L - 1) // L
    Kp = across * L
    for chunk in prange(chunks):
        half = np.empty(POINTS * L, W.dtype)
        for job in range(C * across * chunk // chunks, C * across * (chunk + 1) // chunks):
            c, k = job // across, job % across * L
            some = min(L, K - k)
            k0, vectors = panel_of(k, K, L)
            to = k0 * C + c * vectors * L + k - k0
            for j in range(r):
                for i in range(6):
                    total = zero(W)
                    for a in range(r):
                        total = fma(load_some(W, ((a * r + j) * C + c) * K + k, some), constant(W, G[i, a]), total)
                    store(half, (i * r + j) * L, total)
            for i in range(6):
                for b in range(6):
                    total = zero(W)
                    for j in range(r):
                        total = fma(load(half, (i * r + j) * L), constant(W, G[b, j]), total)
                    store(u, (i * 6 + b) * Kp * C + to, total)


@kernel
def turn_weight(W, places, C, K, turned, chunks):
    """turned (places, K, C): the places of W (places, C, K) in reverse order, each transposed."""
    for chunk in prange(chunks):
        for job in range(places * K * chunk // chunks, places * K * (chunk + 1) // chunks):
            place, k = job // K, job % K
            source, target = W[(places - 1 - place) * C * K:(places - place) * C * K], turned[job * C:(job + 1) * C]
            for c in range(C):
                target[c] = source[c * K + k]


@kernel
def winograd_backward_weight(x, N, H, W, C, dy, Ho, Wo, K, dW, G, L, ph, pw, v, z, du, patch, parts, by_tiles, group,
                             accumulate, chunks):
    """dW (3, 3, C, K), made for BLOCK channels and BLOCK outputs at a time: their 36 sums stay in the cache.

    by_tiles: every thread takes some tiles, and parts (chunks, ...) are summed; else every thread takes some blocks.
    """
    down, across, size = (Ho + 3) // 4, (Wo + 3) // 4, 4
    tiles, whole = N * down * across, 9 * C * K
    blocks_c, blocks_k = (C + BLOCK - 1) // BLOCK, (K + BLOCK - 1) // BLOCK
    plane = group * BLOCK + L
    for chunk in prange(chunks):
        vs, zs, us, edge = v[chunk], z[chunk], du[chunk], patch[chunk]
        half = np.empty(POINTS * L, x.dtype)
        first, end, begin, stop = 0, tiles, 0, blocks_c * blocks_k
        if by_tiles:
            first, end = tiles * chunk // chunks, tiles * (chunk + 1) // chunks
        else:
            begin, stop = stop * chunk // chunks, stop * (chunk + 1) // chunks
        for block in range(begin, stop):
            c0, k0 = block // blocks_k * BLOCK, block % blocks_k * BLOCK
            Cb, Kb = min(BLOCK, C - c0), min(BLOCK, K - k0)
            Kp = (Kb + L - 1) // L * L
            target, add_to_it, since = dW, accumulate, first
            if by_tiles and chunk > 0:
                target, add_to_it = parts[chunk], False
            for start in range(first, end, group):
                count = min(group, end - start)
                for t in range(count):
                    n, th, tw = (start + t) // (down * across), (start + t) // across % down, (start + t) % across
                    top, left, image = th * size - ph, tw * size - pw, n * H * W * C
                    if top >= 0 and left >= 0 and top + 6 <= H and left + 6 <= W:
                        transform_input(x, image + (top * W + left) * C + c0, W * C, C, Cb, L, vs, t * BLOCK, plane,
                                        half)
                    else:
                        cut_patch(x, image, H, W, C, top, left, 6, edge)
                        transform_input(edge, c0, 6 * C, C, Cb, L, vs, t * BLOCK, plane, half)
                    h, w, image = th * size, tw * size, n * Ho * Wo * K
                    source, at, row = dy, image + (h * Wo + w) * K, Wo * K
                    if h + size > Ho or w + size > Wo:
                        cut_patch(dy, image, Ho, Wo, K, h, w, size, edge)
                        source, at, row = edge, 0, size * K
                    for k in range(0, Kb, L):
                        panel, vectors = panel_of(k, Kp, L)
                        spread_gradient(source, at, row, K, k0 + k, min(L, Kb - k), L, zs,
                                        panel * count + t * vectors * L + k - panel, plane, half)
                for p in range(POINTS):
                    product_across(Cb, vs, p * plane, 1, BLOCK, count, zs, p * plane, L, Kp, us, p * BLOCK * BLOCK,
                                   BLOCK, start > since)
                if start + count == end or start + group - since >= SUMMED:
                    transform_back(us, Cb, Kb, G, L, target, (c0 * K + k0), C * K, K, add_to_it, half)
                    add_to_it, since = True, start + group
    if by_tiles:
        for chunk in prange(chunks):
            add_parts(dW, parts, whole * chunk // chunks, whole * (chunk + 1) // chunks)


@straight
def transform_back(us, Cb, Kb, G, L, dW, to, place, row, add_to_it, half):
    """dW[to + (i r + j) place + c row + k] = G^T U G of the block's sums."""
    r = G.shape[1]
    for c in range(Cb):
        for k in range(0, Kb, L):
            some = min(L, Kb - k)
            for i in range(r):
                for b in range(6):
                    total = zero(us)
                    for a in range(6):
                        total = fma(load(us, (a * 6 + b) * BLOCK * BLOCK + c * BLOCK + k), constant(us, G[a, i]), total)
                    store(half, b * L, total)
                for j in range(r):
                    total, t = zero(us), to + (i * r + j) * place + c * row + k
                    if add_to_it:
                        total = load_some(dW, t, some)
                    for b in range(6):
                        total = fma(load(half, b * L), constant(us, G[b, j]), total)
                    store_some(dW, t, total, some)
