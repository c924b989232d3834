"""Convolution for CpuOps: which algorithm for which shape, and the arrays that the kernels need.

Three algorithms, with errors below 2e-5 of the largest output in float32:

    direct      products of windows in place (direct.py): any kernel, stride, dilation, groups
    winograd    fewer multiplications (winograd.py): 3x3 and 5x5 of stride 1
    skinny      a few pixels times the weights as they lie (skinny.py): 1x1, forward
"""

import functools

import numpy as np

from ..reference import out_size, write
from . import depthwise, direct, winograd
from .block import lanes, pack, padded

SMALL_WEIGHT = 1 << 18   # numbers: a gradient up to this size is made in parts that are summed
FEW = 224                # pixels, two strips: threads share the outputs, and each reads its part of the weights alone,
OUTPUTS = 128            # if each gets so many: outputs come in panels and can be shared nearly evenly
SECOND_LEVEL = 1 << 20   # bytes of the second-level cache that the transforms of a group of tiles may fill


# Where winograd may be chosen: what is computed -> kernel -> outputs of a tile along each axis.
WINOGRAD = {"product": {(3, 3): 4, (5, 5): 2},    # forward, and the input's gradient
            "weight": {(3, 3): 4}}                # the weights' gradient; 5x5 is not exact enough
LEAST_CHANNELS = 16     # fewer are not worth their transforms
WEIGHTS_TRANSFORM = {"product": 500, "weight": 0}   # costs as much as the direct products of so many pixels


def by_winograd(what, N, Ho, Wo, C, K, kernel, stride, dilation, groups):
    """Whether to multiply 36 numbers a tile, and transform, instead of 9 or 25 numbers a pixel."""
    size = WINOGRAD[what].get(kernel)
    if size is None or stride != (1, 1) or dilation != (1, 1) or groups > 1 or min(C, K) < LEAST_CHANNELS:
        return False
    tiles = N * -(-Ho // size) * -(-Wo // size)
    return kernel[0] * kernel[1] * (N * Ho * Wo - WEIGHTS_TRANSFORM[what]) > winograd.POINTS * tiles


def forward(ops, x, W, b, stride, padding, dilation, groups, relu):
    x, stride = seen_pixels(ops, x, W, stride, padding)
    (N, H, w, C), (kh, kw, Cg, K) = x.shape, W.shape
    Ho, Wo = out_sizes(x.shape, W.shape, stride, padding, dilation)
    if by_winograd("product", N, Ho, Wo, C, K, (kh, kw), stride, dilation, groups):
        return winograd_product(ops, x, ops._plain(W), b, relu, padding, (Ho, Wo))
    if is_product((kh, kw), stride, padding) and groups == 1 and ops._is_skinny(N * H * w, W) and not ops._is_frozen():
        return skinny_product(ops, x, W, b, relu)
    y = ops.empty((N, Ho, Wo, K), x.dtype)
    panels = forward_panels(ops, ops._plain(W), groups)
    chunks, together = ops._chunks(y.size * Cg), images_together(Ho * Wo)
    room = padded_room(ops, chunks, H, w, C * together, padding, x.dtype)
    by_outputs = groups == 1 and N * Ho * Wo <= FEW and K >= chunks * OUTPUTS
    if is_product((kh, kw), stride, padding):
        N, Ho, Wo, H, w = flat_pixels(N * Ho * Wo, 1 if by_outputs else chunks)
    ops.launch(direct.conv_forward, ops._flat(x), H, w, C, panels, lanes(x.dtype),
               nothing(x.dtype) if b is None else b, relu, y.reshape(-1), Ho, Wo, K, kh, kw, *stride, *padding,
               *dilation, groups, room, together, N * Ho, by_outputs, chunks)
    return y


def skinny_product(ops, x, W, b, relu):
    """A 1x1 convolution of so few pixels that to lay W out would take longer than the product."""
    y = ops.linear(x, W.reshape(W.shape[2:]), b)
    return ops.activation(y, "relu", 1.0, False)[0] if relu else y


def product(ops, x, W):
    """x W for matrices: few rows of x times a large W, as a 1x1 convolution of an image of one row."""
    y = forward(ops, x.reshape(1, 1, *x.shape), W.reshape(1, 1, *W.shape), None, (1, 1), (0, 0), (1, 1), 1, False)
    return y.reshape(len(x), -1)


def backward(ops, dy, y, x, W, dW, db, stride, padding, dilation, groups, accumulate, need_dx):
    dh = slope_and_bias(ops, dy, y, db, accumulate)
    weight_gradient(ops, dh, x, dW, stride, padding, dilation, groups, accumulate)
    return input_gradient(ops, dh, W, x.shape, stride, padding, dilation, groups) if need_dx else None


def slope_and_bias(ops, dy, y, db, accumulate):
    """dh = dy where y > 0, or dy; writes db."""
    dy, K = ops._plain(dy), dy.shape[-1]
    if y is None and db is None:
        return dy
    dh = dy if y is None else ops.empty(dy.shape, dy.dtype)
    parts = ops.empty((ops._chunks(dy.size), K), dy.dtype)
    ops.launch(direct.conv_slope_and_bias, dy.reshape(-1), (dy if y is None else y).reshape(-1), y is not None,
               dh.reshape(-1), parts, K, db is not None, len(parts))
    if db is not None:
        ops.launch(_sum_parts, parts, db, accumulate)
    return dh


def _sum_parts(parts, target, accumulate):
    write(target, parts.sum(0), accumulate)


def weight_gradient(ops, dh, x, dW, stride, padding, dilation, groups, accumulate):
    x, stride = seen_pixels(ops, x, dW, stride, padding)
    (N, H, w, C), (kh, kw, Cg, K), (Ho, Wo) = x.shape, dW.shape, dh.shape[1:3]
    L, dtype = lanes(x.dtype), x.dtype
    if by_winograd("weight", N, Ho, Wo, C, K, (kh, kw), stride, dilation, groups):
        return winograd_weight_gradient(ops, dh, x, dW, padding, accumulate)
    chunks = min(ops._chunks(dh.size * Cg), max(N, Cg))
    by_images = dW.size <= SMALL_WEIGHT and N >= chunks
    parts = ops.empty((chunks, dW.size if by_images else 1), dtype)
    room = padded_room(ops, chunks, H, w, C, padding, dtype)
    if is_product((kh, kw), stride, padding):
        N, Ho, Wo, H, w = flat_pixels(N * Ho * Wo)
    strips = ops.empty((chunks, padded(K // groups, dtype) * max(Wo, direct.STRIP)), dtype)
    ops.launch(direct.conv_backward_weight, ops._flat(x), H, w, C, dh.reshape(-1), Ho, Wo, K, dW.reshape(-1), kh, kw,
               *stride, *padding, *dilation, groups, L, parts, room, strips, N, by_images, accumulate, chunks)


def input_gradient(ops, dh, W, x_shape, stride, padding, dilation, groups):
    (N, H, w, C), (kh, kw, _, K), (Ho, Wo) = x_shape, W.shape, dh.shape[1:3]
    if by_winograd("product", N, H, w, C, K, (kh, kw), stride, dilation, groups) and max(padding) < kh:
        turned = ops.empty((kh, kw, K, C), W.dtype)
        ops.launch(winograd.turn_weight, ops._flat(W), kh * kw, C, K, turned.reshape(-1), ops._chunks(W.size))
        return winograd_product(ops, dh, turned, None, False, (kh - 1 - padding[0], kw - 1 - padding[1]), (H, w))
    dtype, dx = dh.dtype, ops.empty(x_shape, dh.dtype)
    panels, starts = backward_panels(ops, ops._plain(W), stride, padding, dilation, groups)
    margins = [margin(*sizes) for sizes in zip((kh, kw), (H, w), (Ho, Wo), stride, padding, dilation)]
    if is_product((kh, kw), stride, padding):
        N, Ho, Wo, H, w = flat_pixels(N * Ho * Wo)
    chunks, together = min(ops._chunks(dx.size * K // groups), N), images_together(H * w)
    room = padded_room(ops, chunks, Ho, Wo, K * together, margins, dtype)
    ops.launch(direct.conv_backward_input, dh.reshape(-1), Ho, Wo, K, panels, starts, lanes(dtype), dx.reshape(-1), H,
               w, C, kh, kw, *stride, *padding, *dilation, groups, *margins, room, together, N, chunks)
    return dx


# -- winograd ---------------------------------------------------------------------------------------------------------

def winograd_product(ops, x, W, b, relu, padding, out):
    (N, H, w, C), (r, _, _, K), dtype = x.shape, W.shape, x.dtype
    L, size, y = lanes(dtype), winograd.tile_size(r), ops.empty((N, *out, K), x.dtype)
    Cp, Kp = padded(C, dtype), padded(K, dtype)
    u = ops.prepared((winograd.POINTS * Kp * C,), dtype)
    ops.prepare(winograd.transform_weight, W.reshape(-1), r, C, K, weight_matrix(r), L, u, ops._chunks(W.size))
    tiles = N * -(-out[0] // size) * -(-out[1] // size)
    chunks = min(ops._chunks(y.size * C), tiles)
    group = tiles_at_once(tiles, chunks, Cp + Kp, dtype)
    v, m, patch = (ops.empty((chunks, room), dtype) for room in (
        winograd.POINTS * (group * Cp + L), winograd.POINTS * (group * Kp + L), winograd.POINTS * C))
    ops.launch(winograd.winograd_forward, ops._flat(x), N, H, w, C, u, L, nothing(dtype) if b is None else b, relu,
               y.reshape(-1), *out, K, size, *padding, v, m, patch, group, chunks)
    return y


def winograd_weight_gradient(ops, dh, x, dW, padding, accumulate):
    (N, H, w, C), (r, _, _, K), (Ho, Wo), dtype = x.shape, dW.shape, dh.shape[1:3], x.dtype
    L, block = lanes(dtype), winograd.BLOCK
    tiles, blocks = N * -(-Ho // 4) * -(-Wo // 4), -(-C // block) * -(-K // block)
    chunks = ops._chunks(dh.size * C)
    by_tiles = blocks < 4 * chunks and chunks > 1
    chunks = min(chunks, tiles if by_tiles else blocks)
    group = tiles_at_once(tiles, chunks if by_tiles else 1, 2 * block, dtype)
    transforms = winograd.POINTS * (group * block + L)
    v, z, du, patch = (ops.empty((chunks, room), dtype) for room in (
        transforms, transforms, winograd.POINTS * block * block, winograd.POINTS * max(C, K)))
    parts = ops.empty((chunks, dW.size if by_tiles else 1), dtype)
    ops.launch(winograd.winograd_backward_weight, ops._flat(x), N, H, w, C, dh.reshape(-1), Ho, Wo, K, dW.reshape(-1),
               weight_matrix(r), L, *padding, v, z, du, patch, parts, by_tiles, group, accumulate, chunks)


def tiles_at_once(tiles, chunks, widths, dtype):
    """How many tiles' transforms fill the second-level cache; a few more than fit where channels are many."""
    fitting = SECOND_LEVEL // (winograd.POINTS * widths * dtype.itemsize)
    group = max(28, fitting // 14 * 14)
    return min(group, -(-tiles // chunks))


weight_matrix = functools.lru_cache(winograd.weight_matrix)


# -- weights in panels ------------------------------------------------------------------------------------------------

def forward_panels(ops, W, groups):
    """W as the matrices of `multiply_along`, group behind group: rows (i, j, c), columns the group's outputs."""
    kh, kw, Cg, K = W.shape
    Kg, depth = K // groups, kh * kw * Cg
    size = padded(Kg, W.dtype) * depth
    panels = ops.prepared((groups * size,), W.dtype)
    for g in range(groups):
        ops.prepare(pack, W.reshape(-1), g * Kg, kh * kw, Cg * K, Cg, K, 1, 1, Kg, 1, panels, g * size,
                    lanes(W.dtype), ops._chunks(size))
    return panels


def backward_panels(ops, W, stride, padding, dilation, groups):
    """For each phase of the stride and each group a matrix: rows (tap, tap, k), columns the group's channels; and
    where each begins, (sh, sw, groups)."""
    kh, kw, Cg, K = W.shape
    Kg, starts, total, jobs = K // groups, np.zeros((*stride, groups), np.int64), 0, []
    for ry in range(stride[0]):
        first_h, step_h, down, _, _ = _phase_taps(ry, padding[0], dilation[0], stride[0], kh)
        for rx in range(stride[1]):
            first_w, step_w, right, _, _ = _phase_taps(rx, padding[1], dilation[1], stride[1], kw)
            for g in range(groups):
                starts[ry, rx, g] = total
                if down and right:
                    at = (first_h * kw + first_w) * Cg * K + g * Kg
                    jobs.append((at, down, step_h * kw * Cg * K, right, step_w * Cg * K, Kg, 1, Cg, K, total))
                    total += down * right * Kg * padded(Cg, W.dtype)
    panels = ops.empty((max(total, 1),), W.dtype)
    for *matrix, to in jobs:
        ops.launch(pack, W.reshape(-1), *matrix, panels, to, lanes(W.dtype), ops._chunks(W.size // len(jobs)))
    return panels, starts


_phase_taps = functools.lru_cache(direct.phase_taps.py_func)


# -- sizes ------------------------------------------------------------------------------------------------------------

def out_sizes(x_shape, W_shape, stride, padding, dilation):
    return tuple(map(out_size, x_shape[1:3], W_shape, stride, padding, dilation))


def margin(kernel, size, outputs, stride, padding, dilation):
    """Zeros around dy, so that every tap of every phase of dx falls on something."""
    most = 0
    for phase in range(min(stride, size)):
        _, _, taps, offset, back = _phase_taps(phase, padding, dilation, stride, kernel)
        if taps:
            last = (size - phase + stride - 1) // stride - 1
            most = max(most, (taps - 1) * back - offset, last + offset - (outputs - 1))
    return most


def seen_pixels(ops, x, W, stride, padding):
    """x and the stride; for a 1x1 kernel that strides over pixels those of x that it sees, and stride 1: copying them
    costs less than what a product of scattered rows loses."""
    if W.shape[:2] != (1, 1) or stride == (1, 1) or padding != (0, 0):
        return x, stride
    N, H, w, C = x.shape
    seen = ops.empty((N, -(-H // stride[0]), -(-w // stride[1]), C), x.dtype)
    ops.launch(direct.take_pixels, ops._plain(x), *stride, seen, ops._chunks(seen.size))
    return seen, (1, 1)


def is_product(kernel, stride, padding):
    """Whether every output sees one pixel, its own: then all pixels may be taken as one row."""
    return kernel == (1, 1) and stride == (1, 1) and padding == (0, 0)


@functools.lru_cache
def flat_pixels(pixels, shares=1):
    """N, Ho, Wo, H, W for that many pixels as `N` images of one row, as long as a strip if a divisor allows it that
    leaves a row for each share."""
    width = max((d for d in range(1, 2 * direct.STRIP) if pixels % d == 0),
                key=lambda d: (d >= 7, pixels >= d * shares, d >= 28, d % 14 == 0, d))
    return pixels // width, 1, width, 1, width


def images_together(pixels):
    """How many images make a strip."""
    return max(1, direct.STRIP // pixels)


def padded_room(ops, chunks, H, W, C, padding, dtype):
    """Room for the padded images of each thread, C being that of all taken together; a number without padding."""
    ph, pw = padding
    return ops.empty((chunks, (H + 2 * ph) * (W + 2 * pw) * C if ph or pw else 1), dtype)


@functools.lru_cache
def nothing(dtype):
    return np.empty(0, dtype)


# -- depthwise --------------------------------------------------------------------------------------------------------

def depthwise_forward(ops, x, W, b, stride, padding, dilation):
    (N, H, w, C), (kh, kw, _) = x.shape, W.shape
    Ho, Wo = out_sizes(x.shape, W.shape, stride, padding, dilation)
    y = ops.empty((N, Ho, Wo, C), x.dtype)
    ops.launch(depthwise.depthwise_forward, ops._flat(x), H, w, C, ops._flat(W), lanes(x.dtype),
               nothing(x.dtype) if b is None else b, y.reshape(-1), Ho, Wo, kh, kw, *stride, *padding, *dilation,
               walks((kh, kw), stride, padding, dilation), N * Ho, ops._chunks(y.size * 4))
    return y


def depthwise_backward(ops, dy, x, W, dW, db, stride, padding, dilation, accumulate, need_dx):
    (N, H, w, C), (kh, kw, _), (Ho, Wo), dtype = x.shape, W.shape, dy.shape[1:3], x.dtype
    chunks = min(ops._chunks(dy.size * 4), N)
    parts, dx = ops.empty((chunks, kh * kw + 1, C), dtype), ops.empty(x.shape, dtype) if need_dx else None
    ops.launch(depthwise.depthwise_backward, ops._flat(x), H, w, C, ops._flat(dy), Ho, Wo, ops._flat(W), lanes(dtype),
               dx.reshape(-1) if need_dx else nothing(dtype), kh, kw, *stride, *padding, *dilation,
               walks((kh, kw), stride, padding, dilation), parts, N, need_dx, chunks)
    ops.launch(_sum_parts, parts[:, :-1], dW.reshape(kh * kw, C), accumulate)
    if db is not None:
        ops.launch(_sum_parts, parts[:, -1], db, accumulate)
    return dx


def walks(kernel, stride, padding, dilation):
    """Whether a depthwise kernel walks; with wider padding some dy would be in no window's middle, where db is
    summed."""
    return kernel == (3, 3) and stride == dilation == (1, 1) and max(padding) <= 1
