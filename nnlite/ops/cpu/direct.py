"""Convolution as it is written: windows of the image times the weights, in blocks of registers (block.py).

For one row of outputs the windows side by side are the rows of a matrix that lies in the image already: neighbours are
a stride apart. So forward is `multiply` with the image as a, the weights in panels as b. The gradient of the weights is
a product with the roles of pixels and sums exchanged; that of the input is a convolution of dy with the weights turned
round, one for each phase of the stride. Only images with padding are copied, with zeros around them.

All arrays are flat, in C order; x (N, H, W, C), y (N, Ho, Wo, K). room (chunks, ...) holds a padded image a thread.
"""

from numba import njit, prange

from .block import multiply_across, multiply_along
from .mathfun import kernel, straight


DEPTH = 192    # rows of a panel that stay in the first-level cache (24 KiB) while a strip of the image passes
STRIP = 112    # pixels of that strip


@straight
def copy_padded(x, at, rows, width, C, top, left, target, across):
    """rows of a width x C image behind each other into target, whose rows hold `across` pixels; its other pixels stay."""
    for row in range(rows):
        source = x[at + row * width * C:at + (row + 1) * width * C]
        start = ((top + row) * across + left) * C
        place = target[start:start + width * C]
        for i in range(width * C):
            place[i] = source[i]


@straight
def finish(y, bias, relu, K):
    """y += bias; y = max(y, 0) if relu. y holds whole pixels."""
    zero = y.dtype.type(0)
    for start in range(0, y.size, K):
        pixel = y[start:start + K]
        if bias.size:
            for k in range(K):
                pixel[k] += bias[k]
        if relu:
            for k in range(K):
                value = pixel[k]
                pixel[k] = zero if value < zero else value


@kernel
def forward(x, H, W, C, panels, L, bias, relu, y, Ho, Wo, K, kh, kw, sh, sw, ph, pw, dh, dw, groups, room, rows, chunks):
    """rows: N Ho, the rows of outputs in all."""
    Cg, Kg = C // groups, K // groups
    across = W + 2 * pw
    whole = dw == 1 and groups == 1    # then the kw pixels of a window's row lie behind each other
    middle, inner = (1, kw * C) if whole else (kw, Cg)
    depth = kh * kw * Cg
    group_size = (Kg + L - 1) // L * L * depth
    tall = max(1, STRIP // Wo)
    for chunk in prange(chunks):
        first, end = rows * chunk // chunks, rows * (chunk + 1) // chunks
        space = room[chunk]
        if ph or pw:
            space[:] = 0
        while first < end:
            n, h0 = first // Ho, first % Ho
            h1 = min(Ho, h0 + end - first)
            image, base = x, n * H * W * C
            if ph or pw:
                top, bottom = max(0, h0 * sh - ph), min(H, (h1 - 1) * sh - ph + (kh - 1) * dh + 1)
                copy_padded(x, base + top * W * C, bottom - top, W, C, top + ph, pw, space, across)
                image, base = space, 0
            for g in range(groups):
                for k0 in range(0, Kg, 2 * L):
                    panel, wide = g * group_size + k0 * depth, Kg - k0 > L
                    width = 2 * L if wide else L
                    for strip in range(h0, h1, tall):
                        for i in range(kh):
                            for j in range(middle):
                                for c in range(0, inner, DEPTH):
                                    for h in range(strip, min(h1, strip + tall)):
                                        multiply_along(Wo, image, base + ((h * sh + i * dh) * across + j * dw) * C + g * Cg + c,
                                                 sw * C, 1, 0, 1, 0, min(DEPTH, inner - c), 1,
                                                 panels, panel + ((i * middle + j) * inner + c) * width, wide,
                                                 y, ((n * Ho + h) * Wo) * K + g * Kg + k0, K, Kg - k0,
                                                 i + j + c > 0)
            if bias.size or relu:
                finish(y[(n * Ho + h0) * Wo * K:(n * Ho + h1) * Wo * K], bias, relu, K)
            first += h1 - h0


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
def backward_input(dy, Ho, Wo, K, panels, starts, L, dx, H, W, C, kh, kw, sh, sw, ph, pw, dh, dw, groups, margin_h,
                   margin_w, room, images, chunks):
    """dx from dy (times the ReLU's slope). starts (sh, sw, groups): where each phase's panels begin. Images of dy are
    copied with margins of zeros, so that no tap reaches outside."""
    Cg, Kg = C // groups, K // groups
    across = Wo + 2 * margin_w
    for chunk in prange(chunks):
        space = room[chunk]
        space[:] = 0
        for n in range(images * chunk // chunks, images * (chunk + 1) // chunks):
            copy_padded(dy, n * Ho * Wo * K, Ho, Wo, K, margin_h, margin_w, space, across)
            for ry in range(min(sh, H)):
                _, _, down, off_h, back_h = phase_taps(ry, ph, dh, sh, kh)
                for rx in range(min(sw, W)):
                    _, _, right, off_w, back_w = phase_taps(rx, pw, dw, sw, kw)
                    count, depth = (W - rx + sw - 1) // sw, down * right * Kg
                    for g in range(groups):
                        for c0 in range(0, Cg, 2 * L):
                            for q in range((H - ry + sh - 1) // sh):
                                multiply_along(count, space,
                                         ((q + off_h + margin_h) * across + off_w + margin_w) * K + g * Kg, K,
                                         down, -back_h * across * K, right, -back_w * K, Kg, 1,
                                         panels, starts[ry, rx, g] + c0 * depth, Cg - c0 > L, dx,
                                         ((n * H + q * sh + ry) * W + rx) * C + g * Cg + c0, sw * C, Cg - c0, False)


@kernel
def backward_weight(x, H, W, C, dy, Ho, Wo, K, dW, kh, kw, sh, sw, ph, pw, dh, dw, groups, L, parts, room, strips,
                    images, by_images, accumulate, chunks):
    """dW (kh, kw, C / groups, K), each row of it a row of sums over pixels: a is x with channels as rows and pixels as
    what is summed over, b is dy, copied into panels image by image (strips).

    by_images: every thread does some images, and their parts are summed; else every thread does some rows of dW.
    """
    Cg, Kg = C // groups, K // groups
    across, size = W + 2 * pw, kh * kw * Cg * K
    whole = dw == 1 and groups == 1
    runs, run = (kh, kw * C) if whole else (kh * kw, Cg)    # rows of dW that lie side by side in the image
    strip = (Kg + L - 1) // L * L * Ho * Wo
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
        if ph or pw:
            space[:] = 0
        for n in range(n0, n1):
            image, base = x, n * H * W * C
            if ph or pw:
                copy_padded(x, base, H, W, C, ph, pw, space, across)
                image, base = space, 0
            for g in range(groups):
                lay_strips(dy, n * Ho * Wo * K + g * Kg, Ho * Wo, K, Kg, L, panels[g * strip:])
            for g in range(groups):
                for k0 in range(0, Kg, 2 * L):
                    for r in range(runs):
                        i, j = (r, 0) if whole else (r // kw, r % kw)
                        multiply_across(m1 - m0, image, base + (i * dh * across + j * dw) * C + g * Cg + m0, 1,
                                 1, 0, Ho, sh * across * C, Wo, sw * C,
                                 panels, g * strip + k0 * Ho * Wo, Kg - k0 > L,
                                 target, (r * run + m0) * K + g * Kg + k0, K, Kg - k0, add)
            add = True
    if by_images:
        for chunk in prange(chunks):
            s = slice(size * chunk // chunks, size * (chunk + 1) // chunks)
            for part in range(1, chunks):
                add_to(dW[s], parts[part, s])


@straight
def add_to(target, source):
    for i in range(target.size):
        target[i] += source[i]


@straight
def lay_strips(dy, at, pixels, K, columns, L, panels):
    """columns of dy's pixels in panels, as `multiply` wants its b."""
    for k0 in range(0, columns, 2 * L):
        width, there = min(2 * L, (columns - k0 + L - 1) // L * L), min(2 * L, columns - k0)
        for p in range(pixels):
            source = dy[at + p * K + k0:at + p * K + k0 + there]
            target = panels[k0 * pixels + p * width:k0 * pixels + (p + 1) * width]
            for k in range(there):
                target[k] = source[k]
            for k in range(there, width):
                target[k] = 0


@kernel
def mask_and_sum(dy, y, relu, dh, parts, K, has_bias, chunks):
    """dh = dy where y > 0, else 0 (relu), and parts (chunks, K) = each chunk's sums of dh over its pixels; flat."""
    pixels = dy.size // K
    zero = dy.dtype.type(0)
    for chunk in prange(chunks):
        total = parts[chunk]
        total[:] = 0
        for p in range(pixels * chunk // chunks, pixels * (chunk + 1) // chunks):
            source = dy[p * K:(p + 1) * K]
            if relu:
                value, target = y[p * K:(p + 1) * K], dh[p * K:(p + 1) * K]
                for k in range(K):
                    target[k] = source[k] if value[k] > zero else zero
                if has_bias:
                    add_to(total, target)
            elif has_bias:
                add_to(total, source)
