"""Convolution as it is written: windows of the image times the weights, in blocks of registers (block.py).

For one row of outputs the windows side by side are the rows of a matrix that lies in the image already: neighbours are
a stride apart. So forward is `multiply_along` with the image as a, the weights in panels as b. The gradient of the
weights is a product with the roles of pixels and sums exchanged; that of the input is a convolution of dy with the
weights turned round, one for each phase of the stride. Where a window may reach over an edge and has many channels,
every place in the window is a product by itself, over those outputs for which it lies inside: the zeros outside are not
multiplied. With few channels that would be many small products; then the images are copied, with zeros around them.

All arrays are flat, in C order; x (N, H, W, C), y (N, Ho, Wo, K). room (chunks, ...): for a thread's padded images.
"""

import numpy as np
from numba import njit, prange

from .block import copy, lay_panels, multiply_across, multiply_along, panel_at, panel_width
from .mathfun import kernel, straight

DEPTH = 128    # rows of a panel that stay in the first-level cache (24 KiB) while a strip of the image passes
STRIP = 112    # pixels of that strip
FINISHED = 1 << 17   # outputs that are all made, and finished, before the next ones: they are still in a cache
MANY = 32      # channels from which on every place in a window is a product worth its while
SUMMED = 64    # pixels whose numbers are added up before they are added to the rest


@straight
def copy_padded(x, at, rows, width, C, top, left, target, across):
    """Rows of an image into target, whose rows hold `across` pixels; its other pixels stay."""
    for row in range(rows):
        source = x[at + row * width * C:at + (row + 1) * width * C]
        start = ((top + row) * across + left) * C
        place = target[start:start + width * C]
        for i in range(width * C):
            place[i] = source[i]


@straight
def finish(y, bias, relu, K, left, right):
    """y += bias; y = max(y, 0) if relu, for outputs left to right. y holds whole pixels."""
    zero, count, shift = y.dtype.type(0), right - left, bias[left:right]
    for start in range(left, y.size, K):
        pixel = y[start:start + count]
        if bias.size:
            for k in range(count):
                pixel[k] += shift[k]
        if relu:
            for k in range(count):
                value = pixel[k]
                pixel[k] = zero if value < zero else value


@straight
def window_products(images, rows, count, a, at, a_image, a_row, a_pixel, down, a_down, right, a_right, inner, panels,
                    panel, vectors, width, y, to, y_image, y_row, y_pixel, columns):
    """For some rows of outputs of some images: y = windows times one panel. A window is down x right runs of `inner`
    numbers; the panel goes through the first-level cache in pieces of DEPTH rows, each used for all these outputs."""
    if down * right * inner <= 3 * DEPTH // 2:
        for n in range(images):
            for h in range(rows):
                multiply_along(count, a, at + n * a_image + h * a_row, a_pixel, down, a_down, right, a_right, inner, 1,
                               panels, panel, vectors, y, to + n * y_image + h * y_row, y_pixel, columns, False)
        return
    for i in range(down):
        for j in range(right):
            for c in range(0, inner, DEPTH):
                start, piece = at + i * a_down + j * a_right + c, panel + ((i * right + j) * inner + c) * width
                for n in range(images):
                    for h in range(rows):
                        multiply_along(count, a, start + n * a_image + h * a_row, a_pixel, 1, 0, 1, 0,
                                       min(DEPTH, inner - c), 1, panels, piece, vectors,
                                       y, to + n * y_image + h * y_row, y_pixel, columns, i + j + c > 0)


@straight
def place_products(images, first, end, count, a, at, a_image, a_pixel, H, W, stride_h, stride_w, down, off_h, step_h,
                   right, off_w, step_w, inner, panels, panel, vectors, width, y, to, y_image, y_row, y_pixel, columns):
    """y += windows times one panel for rows first to end of outputs, each place (i, j) of the windows by itself: it
    looks at row h stride + off + i step of a (H, W) image, and likewise for columns, where that is inside."""
    for i in range(down):
        for j in range(right):
            left = off_w + j * step_w
            w0 = (-left + stride_w - 1) // stride_w if left < 0 else 0
            w1 = min(count, (W - 1 - left) // stride_w + 1)
            if w1 <= w0:
                continue
            for c in range(0, inner, DEPTH):
                piece = panel + ((i * right + j) * inner + c) * width
                for n in range(images):
                    for h in range(first, end):
                        row = h * stride_h + off_h + i * step_h
                        if row < 0 or row >= H:
                            continue
                        start = at + n * a_image + (row * W + w0 * stride_w + left) * a_pixel + c
                        multiply_along(w1 - w0, a, start, stride_w * a_pixel, 1, 0, 1, 0, min(DEPTH, inner - c), 1,
                                       panels, piece, vectors, y, to + n * y_image + h * y_row + w0 * y_pixel, y_pixel,
                                       columns, True)


@straight
def begin(y, bias, K, left, right):
    """y = bias, or 0, for outputs left to right. y holds whole pixels."""
    count, shift, zero = right - left, bias[left:right], y.dtype.type(0)
    for start in range(left, y.size, K):
        pixel = y[start:start + count]
        for k in range(count):
            pixel[k] = shift[k] if bias.size else zero


@kernel
def take_pixels(x, sh, sw, seen, chunks):
    """seen[n, h, w] = x[n, h sh, w sw]"""
    N, H, W, _ = seen.shape
    for chunk in prange(chunks):
        for row in range(N * H * chunk // chunks, N * H * (chunk + 1) // chunks):
            n, h = row // H, row % H
            for w in range(W):
                copy(x[n, h * sh, w * sw], seen[n, h, w])


@kernel
def conv_forward(x, H, W, C, panels, L, bias, relu, y, Ho, Wo, K, kh, kw, sh, sw, ph, pw, dh, dw, groups, room,
                 together, total, by_outputs, chunks):
    """total: N Ho, the rows of outputs in all, which the threads share, or, by_outputs, each makes some outputs of all
    pixels and reads its part of the weights alone; together: images that are taken at once."""
    Cg, Kg = C // groups, K // groups
    whole = dw == 1 and groups == 1    # then the kw pixels of a window's row lie behind each other
    right, inner = (1, kw * C) if whole else (kw, Cg)
    depth = kh * kw * Cg
    group_size = (Kg + L - 1) // L * L * depth
    tall = max(1, STRIP // Wo)
    block = max(tall, FINISHED // (Wo * K) // tall * tall)
    by_places = (ph > 0 or pw > 0) and Cg >= MANY
    padded = (ph > 0 or pw > 0) and not by_places
    high, across = (H + 2 * ph, W + 2 * pw) if padded else (H, W)
    for chunk in prange(chunks):
        first, end, k_from, k_to = total * chunk // chunks, total * (chunk + 1) // chunks, 0, K
        if by_outputs:
            first, end, k_from, k_to = 0, total, panel_at(K, L, chunk, chunks), panel_at(K, L, chunk + 1, chunks)
        space = room[chunk]
        if padded:
            space[:] = 0
        while first < end:
            n, h0 = first // Ho, first % Ho
            images = min(together, (end - first) // Ho) if h0 == 0 and end - first >= Ho else 1
            h1 = Ho if images > 1 else min(Ho, h0 + end - first, h0 + block)
            image, base = x, n * H * W * C
            if padded:
                top, bottom = max(0, h0 * sh - ph), min(H, (h1 - 1) * sh - ph + (kh - 1) * dh + 1)
                for other in range(images):
                    copy_padded(x, base + (other * H + top) * W * C, bottom - top, W, C, other * high + top + ph, pw,
                                space, across)
                image, base = space, 0
            part = y[(n * Ho + h0) * Wo * K:((n + images - 1) * Ho + h1) * Wo * K]
            if by_places:
                begin(part, bias, K, k_from, k_to)
            for g in range(groups):
                k0 = k_from
                while k0 < min(k_to, Kg):
                    vectors = panel_width(Kg - k0, L)
                    for h in range(h0, h1, tall):
                        if by_places:
                            place_products(images, h, min(h1, h + tall), Wo, x, base + g * Cg, H * W * C, C, H, W, sh,
                                           sw, kh, -ph, dh, kw, -pw, dw, Cg, panels, g * group_size + k0 * depth,
                                           vectors, vectors * L, y, n * Ho * Wo * K + g * Kg + k0, Ho * Wo * K, Wo * K,
                                           K, Kg - k0)
                            continue
                        window_products(images, min(tall, h1 - h), Wo, image, base + h * sh * across * C + g * Cg,
                                        high * across * C, sh * across * C, sw * C, kh, dh * across * C, right, dw * C,
                                        inner, panels, g * group_size + k0 * depth, vectors, vectors * L,
                                        y, ((n * Ho + h) * Wo) * K + g * Kg + k0, Ho * Wo * K, Wo * K, K, Kg - k0)
                    k0 += vectors * L
            if relu or bias.size and not by_places:
                finish(part, bias[:0] if by_places else bias, relu, K, k_from, k_to)
            first += (images - 1) * Ho + h1 - h0


@njit(inline="always")
def phase_taps(phase, padding, dilation, stride, kernel_size):
    """Which places i of a kernel reach the inputs congruent to phase, and the output each stands for: first i, step of
    i, how many, first output's offset, its step (going back). dx[q stride + phase] = sum_t dy[q + offset - t back]
    W[i + t step]."""
    step = 1
    while step * dilation % stride:
        step += 1
    first = 0
    while first < step and (phase + padding - first * dilation) % stride:
        first += 1
    if first == step or first >= kernel_size:
        return 0, 1, 0, 0, 0
    return first, step, (kernel_size - 1 - first) // step + 1, (phase + padding - first * dilation) // stride, \
        step * dilation // stride


@kernel
def conv_backward_input(dy, Ho, Wo, K, panels, starts, L, dx, H, W, C, kh, kw, sh, sw, ph, pw, dh, dw, groups,
                        margin_h, margin_w, room, together, total, chunks):
    """dx from dy (times the ReLU's slope). starts (sh, sw, groups): where each phase's panels begin. Images of dy are
    copied with margins of zeros, so that no tap reaches outside. total: the images, which the threads share."""
    Cg, Kg = C // groups, K // groups
    holes = kh < sh or kw < sw or dh > 1 or dw > 1    # inputs that no tap may reach
    by_places = (margin_h > 0 or margin_w > 0) and Kg >= MANY
    padded = (margin_h > 0 or margin_w > 0) and not by_places
    high, across = Ho + 2 * margin_h, Wo + 2 * margin_w
    for chunk in prange(chunks):
        space = room[chunk]
        if padded:
            space[:] = 0
        end = total * (chunk + 1) // chunks
        for n in range(total * chunk // chunks, end, together):
            images = min(together, end - n)
            image, base = dy, n * Ho * Wo * K
            if by_places or holes:
                dx[n * H * W * C:(n + images) * H * W * C] = 0
            if padded:
                for other in range(images):
                    copy_padded(dy, base + other * Ho * Wo * K, Ho, Wo, K, other * high + margin_h, margin_w, space,
                                across)
                image, base = space, 0
            for ry in range(min(sh, H)):
                _, _, down, off_h, back_h = phase_taps(ry, ph, dh, sh, kh)
                for rx in range(min(sw, W)):
                    _, _, right, off_w, back_w = phase_taps(rx, pw, dw, sw, kw)
                    rows, count, depth = (H - ry + sh - 1) // sh, (W - rx + sw - 1) // sw, down * right * Kg
                    if depth == 0:
                        continue
                    tall = max(1, STRIP // count)
                    for g in range(groups):
                        c0 = 0
                        while c0 < Cg:
                            vectors = panel_width(Cg - c0, L)
                            for q in range(0, rows, tall):
                                to = ((n * H + q * sh + ry) * W + rx) * C + g * Cg + c0
                                if by_places:
                                    place_products(images, q, min(rows, q + tall), count, dy, base + g * Kg,
                                                   Ho * Wo * K, K, Ho, Wo, 1, 1, down, off_h, -back_h, right, off_w,
                                                   -back_w, Kg, panels, starts[ry, rx, g] + c0 * depth, vectors,
                                                   vectors * L, dx,
                                                   ((n * H + ry) * W + rx) * C + g * Cg + c0, H * W * C, sh * W * C,
                                                   sw * C, Cg - c0)
                                    continue
                                at = base + ((q + off_h + margin_h) * across + off_w + margin_w) * K + g * Kg
                                window_products(images, min(tall, rows - q), count, image, at, high * across * K,
                                                across * K, K, down, -back_h * across * K, right, -back_w * K, Kg,
                                                panels, starts[ry, rx, g] + c0 * depth, vectors, vectors * L, dx, to,
                                                H * W * C, sh * W * C, sw * C, Cg - c0)
                            c0 += vectors * L


@kernel
def conv_backward_weight(x, H, W, C, dy, Ho, Wo, K, dW, kh, kw, sh, sw, ph, pw, dh, dw, groups, L, parts, room, strips,
                         images, by_images, accumulate, chunks):
    """dW (kh, kw, C / groups, K), each row of it a row of sums over pixels: a is x with channels as rows and pixels as
    what is summed over, b is dy, copied into panels (strips) where it does not lie like one.

    by_images: every thread does some images, and their parts are summed; else every thread does some rows of dW.
    """
    Cg, Kg = C // groups, K // groups
    size = kh * kw * Cg * K
    padded = ph > 0 or pw > 0
    across = W + 2 * pw if padded else W
    whole = dw == 1 and groups == 1
    runs, run = (kh, kw * C) if whole else (kh * kw, Cg)    # rows of dW that lie side by side in the image
    a_panel = groups == 1 and K == panel_width(K, L) * L
    tall = max(1, STRIP // Wo)
    for chunk in prange(chunks):
        space, panels = room[chunk], strips[chunk]
        target = dW if not by_images or chunk == 0 else parts[chunk]
        n0, n1, m0, m1 = 0, images, 0, run
        if by_images:
            n0, n1 = images * chunk // chunks, images * (chunk + 1) // chunks
        else:
            m0, m1 = run * chunk // chunks, run * (chunk + 1) // chunks
        add = accumulate and (not by_images or chunk == 0)
        if n0 == n1 and not add:
            target[:size] = 0
        if padded:
            space[:] = 0
        for n in range(n0, n1):
            image, base = x, n * H * W * C
            if padded:
                copy_padded(x, base, H, W, C, ph, pw, space, across)
                image, base = space, 0
            for h in range(0, Ho, tall):
                rows = min(tall, Ho - h)
                for g in range(groups):
                    b, bt = dy, (n * Ho + h) * Wo * K
                    if not a_panel:
                        lay_panels(dy, bt + g * Kg, rows * Wo, K, Kg, L, panels)
                        b, bt = panels, 0
                    k0 = 0
                    while k0 < Kg:
                        vectors = panel_width(Kg - k0, L)
                        for r in range(runs):
                            i, j = (r, 0) if whole else (r // kw, r % kw)
                            at = base + ((h * sh + i * dh) * across + j * dw) * C + g * Cg + m0
                            multiply_across(m1 - m0, image, at, 1, 1, 0, rows, sh * across * C, Wo, sw * C,
                                            b, bt + k0 * rows * Wo, vectors,
                                            target, (r * run + m0) * K + g * Kg + k0, K, Kg - k0, add)
                        k0 += vectors * L
                add = True
    if by_images:
        for chunk in prange(chunks):
            add_parts(dW, parts, size * chunk // chunks, size * (chunk + 1) // chunks)


@straight
def add_parts(target, parts, start, stop):
    """target += all parts but the first, from start to stop."""
    for part in range(1, len(parts)):
        add_to(target[start:stop], parts[part, start:stop])


@straight
def add_to(target, source):
    for i in range(target.size):
        target[i] += source[i]


@kernel
def conv_slope_and_bias(dy, y, relu, dh, parts, K, has_bias, chunks):
    """dh = dy where y > 0, else 0 (relu), and parts (chunks, K) = each chunk's sums of dh over its pixels; flat."""
    pixels = dy.size // K
    zero = dy.dtype.type(0)
    for chunk in prange(chunks):
        total, some = parts[chunk], np.empty(K, dy.dtype)
        total[:] = 0
        end = pixels * (chunk + 1) // chunks
        for start in range(pixels * chunk // chunks, end, SUMMED):
            some[:] = 0    # sums of sums, for the rounding
            for p in range(start, min(end, start + SUMMED)):
                source = dy[p * K:(p + 1) * K]
                if relu:
                    value, target = y[p * K:(p + 1) * K], dh[p * K:(p + 1) * K]
                    for k in range(K):
                        target[k] = source[k] if value[k] > zero else zero
                    if has_bias:
                        add_to(some, target)
                elif has_bias:
                    add_to(some, source)
            add_to(total, some)
