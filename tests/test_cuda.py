"""CudaOps: every operation against the specification, on a GPU where there is one and on an emulation everywhere.

See cuda_emulation.py for what the emulation is; it needs g++. That the kernels compile for a GPU is tested where nvcc
is. Tests on a true device are marked `gpu`.
"""

import inspect
import math
import shutil
import subprocess
import sys

import cuda_emulation
import numpy as np
import pytest

from nnlite.errors import NnliteError
from nnlite.layers import (AvgPool2d, BatchNorm, Block, Bottleneck, ClassToken, Conv2d, Dense, DepthwiseConv2d,
                           GlobalAvgPool, LayerNorm, Linear, MaxPool2d, MBConv, NormPool, PatchEmbed,
                           PositionEmbedding, Sequential, TakeToken)
from nnlite.losses import softmax_cross_entropy, squared_error
from nnlite.ops.reference import ACTIVATIONS, ReferenceOps
from nnlite.optim import Adam
from nnlite.rng import Key, Rng

REALS = "float32", "float64"


def gpu_problem():
    from nnlite.ops import _cuda_problem
    return _cuda_problem()


@pytest.fixture
def emulated():
    """The class CudaOps on the emulation."""
    problem = cuda_emulation.missing()
    if problem:
        pytest.skip(problem)
    with cuda_emulation.emulated_cuda() as CudaOps:
        yield CudaOps


@pytest.fixture
def emulated_ops(emulated):
    yield emulated()
    cuda_emulation.memory.check()


@pytest.fixture(scope="module")
def device():
    """CudaOps on a true GPU."""
    problem = gpu_problem()
    if problem:
        pytest.skip(problem)
    from nnlite.ops import get_ops
    return get_ops("cuda")


# -- every operation: (ops, numbers) -> arrays ----------------------------------------------------------------------

class Numbers:
    """Random arrays of the ops, the same in every ops; in float64 the same numbers as in float32."""

    def __init__(self, ops, dtype):
        self.ops, self.dtype, self.random = ops, dtype, np.random.default_rng(5)

    def __call__(self, *shape, positive=False):
        values = self.random.standard_normal(shape).astype("float32")
        return self.ops.asarray((np.abs(values) if positive else values).astype(self.dtype), self.dtype)

    def key(self, step=2 ** 33 + 7):
        return Key(0x123456789ABCDEF0, 0xDEADBEEF, self.ops.scalar(step, "int64"))


def random_words(ops, a):
    return [ops.random_words(3, columns, a.key()) for columns in (1, 3, 4, 7, 30)]


def normal(ops, a):
    return [ops.normal(shape, a.key(), a.dtype) for shape in ((5,), (2, 7), (3, 2, 30))]


def activations(ops, a):
    x, out = a(40, 13), []
    x[0, :3] = ops.asarray([0, -80, 80], a.dtype)
    for function in ACTIVATIONS:
        for alpha in (1.0, 0.25):
            out += ops.activation(x, function, alpha, True)
        out.append(ops.activation(x, function, 1.0, False)[0])
    return out


def elementwise(ops, a):
    x, y = a(6, 5), a(6, 5)
    rows = ops.asarray([4, 0, 4], "int32")
    return [ops.add(x, y), ops.multiply(x, y), ops.take_rows(x, rows), ops.concat([x, y], 0), ops.concat([x, y], -1),
            ops.concat([x, y[:, :2], y[:, 4:]], 1), ops.contiguous(x.T), *ops.dropout(a(3, 5, 7), 0.6, a.key()),
            *ops.dropout(a(4, 8), 1.0, a.key())]


def sums_of_squares(ops, a):
    return [ops.sum_of_squares(a(count)) for count in (1, 255, 1025, 40000)] + [ops.sum_of_squares(a(9, 6)[:, ::2])]


def linear(ops, a):
    out = []
    for shape in ((7, 5), (1, 5), (2, 3, 5)):
        x, W, b, dy = a(*shape), a(5, 6), a(6), a(*shape[:-1], 6)
        out += [ops.linear(x, W, b), ops.linear(x, W, None)]
        for accumulate in (False, True):
            dW, db = a(5, 6), a(6)
            out += [ops.linear_backward(dy, x, W, dW, db, accumulate, True), dW, db]
        dW = a(5, 6)
        assert ops.linear_backward(dy, x, W, dW, None, False, False) is None
        out.append(dW)
    return out


def dense(ops, a):
    out = []
    for shape, groups, activation, keep_prob in (((9, 5), None, "elu", 0.7), ((12, 5), 4, "silu", 0.5),
                                                 ((12, 5), 12, "elu", 1.0), ((2, 3, 5), None, "relu", 0.9)):
        x, W, b = a(*shape), a(5, 7), a(7) if groups is None else a(groups, 7)
        out += [*ops.dense(x, W, b, activation, keep_prob, a.key(), True)]
        y, slope = ops.dense(x, W, b, activation, keep_prob, a.key(), False)
        assert slope is None
        out.append(y)
    return out


def dense_backward(ops, a):
    out = []
    for rows, groups in ((9, None), (12, 4), (33, None), (70, 2), (700, None), (12, 12)):
        x, W, dy, slope = a(rows, 5), a(5, 7), a(rows, 7), a(rows, 7)
        for accumulate in (False, True):
            dW, db = a(5, 7), a(7) if groups is None else a(groups, 7)
            out += [ops.dense_backward(dy, slope, x, W, dW, db, accumulate, True), dW, db]
    assert ops.dense_backward(dy, slope, x, W, dW, db, True, False) is None
    x, dy, slope = a(2, 3, 5), a(2, 3, 7), a(2, 3, 7)
    out += [ops.dense_backward(dy, slope, x, W, dW, a(7), False, True), dW]
    return out


def not_contiguous(ops, a):
    x, W, dy = a(6, 10)[:, ::2], a(7, 5).T, a(7, 6).T
    dW, db = a(5, 7), a(7)
    y, slope = ops.dense(x, W, a(14)[::2], "tanh", 0.8, a.key(), True)
    h, f = a(4, 12)[:, ::2], a(5, 6).T
    z = ops.gaussian_sample(h, 2, a.key())
    return [y, ops.dense_backward(dy, slope, x, W, dW, db, False, True), dW, db, ops.linear(x, W, None), z,
            ops.gaussian_sample_backward(a(3, 8).T, h, z), *ops.squared_error(f, a(5, 3).T, 0.5),
            *ops.gaussian_kl(h, 2.0), *ops.activation(x, "gelu", 1.0, True), *ops.dropout(x, 0.5, a.key())]


def latents(ops, a):
    out = []
    for N, K, samples in ((5, 3, 1), (4, 6, 3), (2, 30, 10)):
        h = a(N, 2 * K)
        z = ops.gaussian_sample(h, samples, a.key())
        out += [z, ops.gaussian_sample_backward(a(N * samples, K), h, z)]
    return out


def scales(ops, a):
    """Each kind of scale: numbers of Python and of NumPy, 0-d arrays of either dtype."""
    return 0.75, 3, np.float32(0.5), ops.scalar(0.75, "float32"), ops.scalar(1.5, "float64")


def losses(ops, a):
    out = []
    for scale in scales(ops, a):
        out += [*ops.squared_error(a(12, 7), a(4, 7), scale), *ops.gaussian_kl(a(9, 8), scale),
                *ops.triplet_softplus(a(3 * 2 * 5, 6), a(2, positive=True), scale)]
    z = a(3 * 3, 70)
    z[3:6] = z[:3]             # reference and plus face coincide,
    z[6] = z[0]                # in one triplet all three do
    out += [*ops.triplet_softplus(z, a(3, positive=True), 1.0), *ops.triplet_softplus(1000 * z, a(3), 1.0)]
    return out + [*ops.squared_error(a(300, 249), a(100, 249), 0.1), *ops.gaussian_kl(a(600, 60), 0.1)]


def optimisers(ops, a):
    size = 700
    ranges = [(0, 100, (0.1, 1.0)), (100, 101, (0.0, 1.0)), (101, 400, (0.2, 0.0)), (400, size, (0.0, 0.5))]
    lr, steps = ops.scalar(0.01, a.dtype), ops.scalar(0, "int64")
    p, m, v = [a(size) for _ in range(7)], [ops.zeros((size,), a.dtype) for _ in range(4)], \
        [ops.zeros((size,), a.dtype) for _ in range(4)]
    for step in range(3):
        steps += 1
        ops.set_scalar(lr, 0.01 / (1 + step))
        g, clip = a(size), (1.0, 0.5, ops.scalar(0.25, "float64"))[step]
        ops.sgd(p[0], g, None, ranges, lr, clip, 0.0, False)
        ops.sgd(p[1], g, m[0], ranges, lr, clip, 0.9, False)
        ops.sgd(p[2], g, m[1], ranges, lr, clip, 0.9, True)
        ops.adagrad(p[3], g, v[0], ranges, lr, clip, 1e-8)
        ops.rmsprop(p[4], g, v[1], ranges, lr, clip, 0.9, 1e-8)
        ops.adam(p[5], g, m[2], v[2], ranges, lr, clip, 0.9, 0.99, 1e-8, steps, False)
        ops.adam(p[6], g, m[3], v[3], ranges, lr, clip, 0.9, 0.99, 1e-8, steps, True)
    return [*p, *m, *v]


def copies(ops, a):
    out = []
    for values in (np.arange(6.0).reshape(2, 3), [[1, 2, 3], [4, 5, 6]], 7, a(2, 3)):
        target = a(2, 3)
        ops.copy_into(target, values)
        out.append(target)
    target, large = a(3, 2).T, a(300, 500)
    ops.copy_into(target, np.arange(6.0).reshape(2, 3))
    ops.copy_into(large, np.arange(150000.0).reshape(300, 500))
    out += [target, large]
    for index in range(10):   # more than there are pinned buffers, the host's array changed at once
        values = np.full((2, 3), index, "float64")
        target = a(2, 3)
        ops.copy_into(target, values)
        values[...] = -1
        out.append(target)
    x = a(3)
    finite = ops.all_finite(x)
    x[1] = math.nan
    assert finite and not ops.all_finite(x)
    return out


def image_batches(ops, a):
    rows, shift, scale, out = ops.asarray([4, 0, 4, 2], "int32"), a(3), a(3, positive=True), []
    for pixels, flips in (("uint8", "uint8"), ("float32", "bool"), ("float64", "int32"), ("int16", "float32")):
        images = ops.asarray(a.random.integers(0, 256, (5, 4, 7, 3)), pixels)
        flip = ops.asarray(np.array([0, 1, 0, 1]) * (1 if pixels == "uint8" else 256), flips)
        moves = ops.asarray(a.random.integers(-5, 6, (4, 2)), "int32")
        out.append(ops.image_batch(images, rows, flip, moves, shift, scale, a.dtype))
    every_other = ops.asarray(a.random.integers(0, 256, (5, 4, 7, 6)), "uint8")[..., ::2]
    return out + [ops.image_batch(every_other, rows[::-1], flip[::-1], moves[::-1], shift, scale, a.dtype)]


def warp_batches(ops, a):
    rows, shift, scale, out = ops.asarray([4, 0, 4, 2], "int32"), a(3), a(3, positive=True), []
    turn = np.array([[[0.6, 0.8, -1.5], [-0.8, 0.6, 4.25]], [[1, 0, 0], [0, 1, 0]], [[1, 0, -40], [0, 1, 60]],
                     [[0.5, 0, 0.25], [0, 2.5, -3]]])
    maps = ops.asarray(turn, "float32")
    tone = ops.asarray([[1.5, 0.1], [1, 0], [0.5, -0.125], [0, 2]], "float32")
    for pixels, size in (("uint8", (4, 7)), ("float32", (9, 5)), ("float64", (1, 1)), ("int16", (6, 3))):
        images = ops.asarray(a.random.integers(0, 256, (5, 4, 7, 3)), pixels)
        out.append(ops.warp_batch(images, rows, maps, tone, shift, scale, size, a.dtype))
    large = ops.asarray(a.random.integers(0, 256, (3, 23, 29, 1)), "uint8")
    out.append(ops.warp_batch(large, rows[1:2], maps[:1], tone[:1], shift[:1], scale[:1], (31, 17), a.dtype))
    one = ops.asarray(a.random.integers(0, 256, (5, 1, 1, 3)), "uint8")
    out.append(ops.warp_batch(one, rows[::-1], maps[::-1], tone[::-1], shift, scale, (2, 3), a.dtype))
    return out + [ops.warp_batch(one, rows[:0], maps[:0], tone[:0], shift, scale, (2, 3), a.dtype)]


# x, kernel, K, stride, padding, dilation, groups
CONVOLUTIONS = [((2, 5, 7, 3), (3, 3), 4, (1, 1), (1, 1), (1, 1), 1),
                ((1, 6, 5, 2), (2, 3), 5, (2, 1), (0, 2), (1, 1), 1),
                ((3, 8, 9, 1), (5, 3), 2, (1, 2), (2, 0), (1, 2), 1),      # dilation, one channel
                ((2, 8, 7, 2), (2, 2), 3, (3, 4), (1, 0), (1, 1), 1),      # a stride larger than the kernel
                ((2, 5, 4, 6), (3, 2), 9, (1, 2), (1, 1), (2, 1), 3),      # groups
                ((2, 3, 4, 4), (1, 1), 6, (1, 1), (0, 0), (1, 1), 1),      # the product alone
                ((2, 3, 4, 4), (1, 1), 6, (1, 1), (0, 0), (1, 1), 2),
                ((2, 3, 4, 4), (1, 1), 6, (2, 2), (0, 0), (1, 1), 1),
                ((2, 3, 4, 4), (1, 1), 6, (1, 1), (1, 0), (1, 1), 1),
                ((1, 1, 1, 1), (1, 1), 1, (1, 1), (0, 0), (1, 1), 1),
                ((0, 4, 4, 2), (3, 3), 3, (1, 1), (1, 1), (1, 1), 1)]      # no images


def convolutions(ops, a):
    out = []
    for index, (shape, kernel, K, stride, padding, dilation, groups) in enumerate(CONVOLUTIONS):
        x, W, b = a(*shape), a(*kernel, shape[3] // groups, K), a(K)
        options = stride, padding, dilation, groups
        y = ops.conv2d(x, W, b, *options, True)
        out += [y, ops.conv2d(x, W, b, *options, False), ops.conv2d(x, W, None, *options, index % 2 == 0)]
        dy, accumulate = a(*y.shape), index % 2 == 0
        for y in (y, None):
            dW, db = a(*W.shape), a(K)
            out += [ops.conv2d_backward(dy, y, x, W, dW, db, *options, accumulate, True), dW, db]
            dW = a(*W.shape)
            assert ops.conv2d_backward(dy, y, x, W, dW, None, *options, not accumulate, False) is None
            out.append(dW)
    return out


def depthwise_convolutions(ops, a):
    out = []
    for index, ((N, H, W_, _), kernel, C, stride, padding, dilation, _) in enumerate(CONVOLUTIONS):
        x, W, b, options = a(N, H, W_, C), a(*kernel, C), a(C), (stride, padding, dilation)
        y = ops.depthwise_conv2d(x, W, b, *options)
        out += [y, ops.depthwise_conv2d(x, W, None, *options)]
        dy, dW, db = a(*y.shape), a(*W.shape), a(C)
        out += [ops.depthwise_conv2d_backward(dy, x, W, dW, db, *options, index % 2 == 0, True), dW, db]
        dW = a(*W.shape)
        assert ops.depthwise_conv2d_backward(dy, x, W, dW, None, *options, index % 2 == 1, False) is None
        out.append(dW)
    return out


def pools(ops, a):
    out = []
    for shape, kernel, stride, padding in (
            ((2, 6, 5, 3), (2, 2), (2, 2), (0, 0)), ((2, 7, 5, 2), (3, 2), (2, 1), (1, 1)),
            ((1, 9, 8, 2), (2, 3), (4, 4), (0, 0)), ((0, 4, 4, 2), (2, 2), (2, 2), (0, 0))):
        x = a(*shape)
        x[:, :2, :2] = 1                     # the first of equals
        x[:, 2:, :, 0] = -math.inf
        y, place = ops.max_pool(x, kernel, stride, padding, True)
        value, none = ops.max_pool(x, kernel, stride, padding, False)
        assert none is None
        out += [y, place, value, ops.max_pool_backward(a(*y.shape), place, shape, kernel, stride, padding)]
        x = a(*shape)
        y = ops.avg_pool(x, kernel, stride)
        out += [y, ops.avg_pool_backward(a(*y.shape), shape, kernel, stride), ops.global_avg_pool(x),
                ops.global_avg_pool_backward(a(shape[0], shape[3]), shape)]
    return out + [ops.global_avg_pool(a(2, 20, 20, 3))]


def batch_norms(ops, a):
    out = []
    for index, shape in enumerate(((40, 3), (1, 4), (2, 5, 7, 6), (333, 1), (2, 3, 5))):
        C = shape[-1]
        x, dy, g, b, mean, var = 3 + 2 * a(*shape), a(*shape), a(C), a(C), a(C), a(C, positive=True)
        for activation in ("identity", "relu", "silu"):
            out += ops.batch_norm(x, g, b, mean, var, 0.1, 1e-3, activation, False)
            y, batch_mean, inv_std = ops.batch_norm(x, g, b, mean, var, 0.1, 1e-3, activation, True)
            dg, db = a(C), a(C)
            dx = ops.batch_norm_backward(dy, x, batch_mean, inv_std, g, b, dg, db, activation, index % 2 == 0)
            out += [y, batch_mean, inv_std, dx, dg, db]
        out += [mean, var]
    out += ops.batch_norm(a(0, 4), a(4), a(4), a(4), a(4, positive=True), 0.1, 1e-3, "relu", False)
    return out


def norm_pools(ops, a):
    out = []
    for index, shape in enumerate(((2, 4, 6, 3), (3, 7, 5, 2), (1, 2, 2, 1), (5, 8, 8, 1))):
        C = shape[-1]
        x, g, b, mean, var = 2 * a(*shape) - 1, a(C), a(C) - 0.5, a(C), a(C, positive=True)
        y, batch_mean, inv_std, place = ops.norm_pool(x, g, b, mean, var, 0.2, 1e-5, True)
        dg, db = a(C), a(C)
        dx = ops.norm_pool_backward(a(*y.shape), place, x, batch_mean, inv_std, g, dg, db, index % 2 == 0)
        *last, none = ops.norm_pool(x, g, b, mean, var, 0.2, 1e-5, False)
        assert none is None
        out += [y, batch_mean, inv_std, place, dx, dg, db, mean, var, *last]
    return out


def class_labels(ops, a):
    out = []
    for N, K in ((1, 1), (5, 7), (3, 33), (300, 2)):
        logits, labels = 3 * a(N, K), ops.asarray(a.random.integers(0, K, N), "int32")
        weight, soft = a(K, positive=True), a(N, K, positive=True)
        soft = soft / soft.sum(1, keepdims=True)
        soft[0] = 0
        soft[0, 0] = 1
        out += [*ops.softmax_cross_entropy(logits, labels, None, 1.0, None, 0.0),
                *ops.softmax_cross_entropy(200 * logits, labels, None, 1.0, weight, 0.1),
                *ops.softmax_cross_entropy(logits, labels, soft, 0.8, None, 0.1),
                *ops.softmax_cross_entropy(logits, labels, soft, 0.0, weight, 0.0),
                ops.hits(logits, labels), ops.hits(logits[:, ::-1], labels), ops.hits(0 * logits, labels)]
    tie = ops.asarray([[0, 2, 2], [2, 0, 2], [0, math.nan, 3], [-math.inf] * 3], a.dtype)
    wide = 0 * a(2, 70)
    wide[0, 40] = wide[0, 69] = wide[1, 33] = wide[1, 64] = 1
    return out + [ops.hits(tie, ops.asarray([label] * 4, "int64")) for label in range(3)] + \
        [ops.hits(wide, ops.asarray(labels, "int32")) for labels in ([40, 33], [69, 64], [33, 33])]


def images_not_contiguous(ops, a):
    x, W, dW, db = a(2, 7, 6, 10)[:, 1:, :, ::2], a(4, 5, 3, 3).T, a(3, 3, 5, 4), a(4)
    y, dy, options = ops.conv2d(x, W, a(8)[::2], (1, 1), (1, 1), (1, 1), 1, True), a(4, 6, 6, 2).T, ((1, 1),) * 3
    out = [y, ops.conv2d_backward(dy, y.transpose(0, 2, 1, 3), x, W, dW, db, *options, 1, False, True), dW, db]
    dW, db, d5, W, dy = a(3, 3, 5), a(5), a(5), a(5, 3, 3).T, a(5, 6, 6, 2).T
    out += [ops.depthwise_conv2d(x, W, a(10)[::2], *options),
            ops.depthwise_conv2d_backward(dy, x, W, dW, db, *options, False, True), dW, db]
    y, place = ops.max_pool(x, (2, 2), (2, 2), (0, 0), True)
    small = a(5, 3, 3, 2).T
    out += [y, place, ops.max_pool_backward(small, place[:, ::-1], x.shape, (2, 2), (2, 2), (0, 0)),
            ops.avg_pool(x, (2, 2), (2, 2)), ops.avg_pool_backward(small, x.shape, (2, 2), (2, 2)),
            ops.global_avg_pool(x), ops.global_avg_pool_backward(a(5, 2).T, x.shape)]
    g, b, mean, var = a(10)[::2], a(10)[::2], a(5), a(5, positive=True)
    y, batch_mean, inv_std = ops.batch_norm(x, g, b, mean, var, 0.1, 1e-5, "elu", True)
    out += [y, ops.batch_norm_backward(dy, x, batch_mean, inv_std, g, b, db, d5, "elu", False), db, d5]
    y, batch_mean, inv_std, place = ops.norm_pool(x, g, b, mean, var, 0.1, 1e-5, True)
    out += [y, place, ops.norm_pool_backward(small, place[:, ::-1], x, batch_mean, inv_std, g, db, d5, True), db, d5]
    labels = ops.asarray(np.arange(10) % 5, "int64")[::2]
    return out + [*ops.softmax_cross_entropy(a(5, 5).T, labels, a(5, 5, positive=True).T, 0.5, g, 0.0)]


def conv_blocks(ops, a):
    """Ends of residual blocks, stochastic depth, squeeze-and-excitation."""
    out = []
    for shape in ((2, 5, 3, 4), (1, 1, 1, 1), (3, 17, 19, 2), (0, 2, 2, 3)):
        x, dy, m, s = a(*shape), a(*shape), a(shape[0]), a(shape[0], shape[3])
        y = ops.add_relu(x, dy)
        out += [y, ops.relu_backward(a(*shape), y), ops.scale_samples(x, m), ops.scale_channels(x, s),
                *ops.scale_channels_backward(dy, x, s)]
    x = a(2, 3)
    x[0, 0], x[1] = math.nan, 0
    return out + [ops.add_relu(x, x), ops.relu_backward(x, a(2, 3)), ops.relu_backward(a(2, 3), 0 * x),
                  ops.scale_samples(a(4, 3), a(4))]


def tokens(ops, a):
    out = []
    for N, T, D in ((3, 5, 7), (1, 1, 1), (2, 33, 3), (1, 3, 8), (40, 1, 2)):
        x, token, P = a(N, T, D), a(D), a(T, D)
        out += [ops.prepend_token(x, token), ops.add_to_samples(x, P), ops.take_token(x, T // 2),
                ops.take_token_backward(a(N, D), T, T - 1)]
        for accumulate in (False, True):
            dtoken, total = a(D), a(T, D)
            out += [ops.prepend_token_backward(a(N, T + 1, D), dtoken, accumulate), dtoken]
            ops.sum_samples(x, total, accumulate)
            out.append(total)
    for shape, size in (((2, 6, 9, 2), 3), ((1, 4, 4, 3), 4), ((3, 2, 3, 1), 1)):
        x = a(*shape)
        y = ops.patches(x, size)
        out += [y, ops.patches_backward(a(*y.shape), shape, size)]
    return out


def layer_norms(ops, a):
    out = []
    for index, shape in enumerate(((4, 3, 7), (1, 1), (2, 33, 64), (5, 200), (300, 2))):
        D = shape[-1]
        x, dy, g, b = 3 + 2 * a(*shape), a(*shape), a(D), a(D)
        x[0] = x.flat[0]                 # equal numbers: variance 0
        y, mean, inv_std = ops.layer_norm(x, g, b, 1e-3)
        dg, db = a(D), a(D)
        dx = ops.layer_norm_backward(dy, x, mean, inv_std, g, dg, db, index % 2 == 0)
        out += [y, mean, inv_std, dx, dg, db]
    return out


def attentions(ops, a):
    """Fewer tokens than a tile and some tiles of them, narrow heads and heads of more than one block."""
    out = []
    for N, T, heads, d in ((2, 1, 3, 5), (3, 5, 2, 8), (2, 33, 3, 16), (1, 64, 1, 1), (1, 130, 2, 24), (2, 5, 1, 64),
                           (1, 65, 1, 128), (1, 3, 2, 129), (1, 2, 1, 300), (0, 4, 2, 3)):
        qkv, dy = a(N, T, 3 * heads * d), a(N, T, heads * d)
        y, log_sum = ops.attention(qkv, heads, True)
        value, none = ops.attention(qkv, heads, False)
        assert none is None
        out += [y, log_sum, value, ops.attention_backward(dy, y, log_sum, qkv, heads)]
    return out


def large_scores(ops, a):
    """Scores in the hundreds, the largest in any tile: the running maximum keeps every exponential in range."""
    out = []
    for largest in (0, 70, 140):
        qkv = a(1, 150, 12)
        qkv[0, largest] *= 8
        y, log_sum = ops.attention(8 * qkv, 1, True)
        out += [y, log_sum]
    return out


def tokens_not_contiguous(ops, a):
    x, g, b, dg, db = a(4, 6, 10)[:, ::2, ::2], a(10)[::2], a(5), a(5), a(5)
    y, mean, inv_std = ops.layer_norm(x, g, b, 1e-5)
    out = [y, ops.layer_norm_backward(a(5, 3, 4).T, x, mean, inv_std, g, dg, db, False), dg, db]
    qkv, dy = a(9, 7, 2).T, a(3, 7, 4)[:, :, ::2].transpose(2, 1, 0)
    y, log_sum = ops.attention(qkv, 3, True)
    out += [y, log_sum, ops.attention_backward(dy, y, log_sum, qkv, 3)]
    total, dtoken = a(3, 5), a(5)
    ops.sum_samples(x, total, False)
    out += [total, ops.prepend_token(x, g), ops.prepend_token_backward(x, dtoken, False), dtoken,
            ops.take_token(x, 1), ops.add_to_samples(x, a(5, 3).T)]
    pictures, more = a(2, 4, 6, 6)[..., ::2], a(3, 6, 4, 2).T
    out += [ops.patches(pictures, 2), ops.patches_backward(a(12, 6, 2).T, (2, 4, 6, 3), 2),
            ops.add_relu(pictures, more), ops.relu_backward(pictures, more), ops.scale_samples(pictures, a(4)[::2]),
            ops.scale_channels(pictures, a(3, 2).T), *ops.scale_channels_backward(pictures, more, a(3, 2).T)]
    return out


IMAGE_CASES = [image_batches, warp_batches, convolutions, depthwise_convolutions, conv_blocks, pools, batch_norms,
               norm_pools, class_labels, images_not_contiguous, tokens, layer_norms, attentions, large_scores,
               tokens_not_contiguous]
CASES = [random_words, normal, activations, elementwise, sums_of_squares, linear, dense, dense_backward, not_contiguous,
         latents, losses, optimisers, copies, *IMAGE_CASES]


def check(ops, case, dtype):
    """The results of these ops, in dtype, are those of the specification in float64."""
    got = case(ops, Numbers(ops, dtype))
    with np.errstate(over="ignore"):
        expected = case(ReferenceOps(), Numbers(ReferenceOps(), "float64"))
    assert len(got) == len(expected)
    for index, (a, b) in enumerate(zip(got, expected)):
        assert isinstance(a, ops.array_type), index
        b = np.asarray(b)
        # A loss's value is float64 whatever the numbers are.
        assert a.dtype == (dtype if b.ndim and b.dtype == "float64" else b.dtype), index
        rtol = 2e-5 if dtype == "float32" else 1e-11
        size = np.abs(b[np.isfinite(b)]).max(initial=0)
        atol = rtol / 10 * float(size)
        np.testing.assert_allclose(ops.to_host(a), b, rtol=rtol, atol=atol, err_msg=f"result {index}")


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("case", CASES)
def test_emulated_kernels_do_what_the_specification_says(emulated_ops, case, dtype):
    check(emulated_ops, case, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("case", CASES)
def test_device_does_what_the_specification_says(device, case, dtype):
    check(device, case, dtype)


@pytest.mark.parametrize("case, written", [(linear, {(5, 6), (6,)}), (dense, set()), (losses, {(9, 70)})])
def test_given_arrays_are_not_written(emulated_ops, case, written):
    """written: the shapes of dW and db, and of the z that the case itself changes."""
    assert {shape for shape, changed in watched(emulated_ops, case) if changed} == written


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_what_is_written_is_what_the_specification_writes(emulated_ops, case):
    """Gradients, running statistics, and what the case itself changes."""
    assert watched(emulated_ops, case) == watched(ReferenceOps(), case)


def watched(ops, case):
    """Shape of each array that the case makes, and whether it is changed afterwards."""
    given = []

    class Watched(Numbers):
        def __call__(self, *shape, positive=False):
            array = super().__call__(*shape, positive=positive)
            given.append((array, np.array(array)))
            return array

    case(ops, Watched(ops, "float64"))
    return [(array.shape, not np.array_equal(array, before)) for array, before in given]


def test_nan_passes_through(emulated_ops):
    x = emulated_ops.asarray([math.nan], "float32")
    for function in ACTIVATIONS:
        y, _ = emulated_ops.activation(x, function, 1.0, True)
        assert np.isnan(y[0]), function


def test_nan_passes_through_images(emulated_ops):
    """Each NaN of x is in the windows that see it, in no other, and spoils the statistics."""
    a = Numbers(emulated_ops, "float32")
    x, ones, zeros = a(1, 4, 4, 2), a(2) * 0 + 1, a(2) * 0
    x[0, 0, 1, 0] = math.nan
    corner = np.zeros((1, 2, 2, 2), bool)
    corner[0, 0, 0, 0] = True
    y, place = emulated_ops.max_pool(x, (2, 2), (2, 2), (0, 0), True)
    assert (np.isnan(y) == corner).all() and place[0, 0, 0, 0] == 1
    W = a(2, 2, 2, 3)
    for relu in (False, True):
        y = emulated_ops.conv2d(x, W, a(3), (2, 2), (0, 0), (1, 1), 1, relu)
        assert (np.isnan(y) == corner[..., :1]).all()
    norm = ones, zeros, zeros, ones, 0.1, 1e-5
    y, *_ = emulated_ops.norm_pool(x, *norm, False)
    assert (np.isnan(y) == corner).all()
    y, mean, inv_std, place = emulated_ops.norm_pool(x, *norm, True)
    assert np.isnan(y[..., 0]).all() and not np.isnan(y[..., 1]).any() and (place[..., 0] == 4).all()
    assert np.isnan(mean).tolist() == np.isnan(inv_std).tolist() == np.isnan(zeros).tolist() == [True, False]


@pytest.mark.parametrize("mean", [0, 1e4])
def test_statistics_far_from_zero(emulated_ops, mean):
    """In float32 the variance is that of the float32 numbers, wherever they lie: no E x^2 - (E x)^2."""
    x = (mean + np.random.default_rng(2).standard_normal((500, 3))).astype("float32")
    x[0] += 300   # nor is the first row a good guess of the mean
    ops, ones = emulated_ops, [emulated_ops.asarray(np.ones(3), "float32") for _ in range(4)]
    _, got, inv_std = ops.batch_norm(ops.asarray(x), *ones, 1.0, 0.0, "identity", True)
    np.testing.assert_allclose(got, x.mean(0, dtype="float64"), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(inv_std, 1 / x.std(0, dtype="float64"), rtol=5e-7)
    np.testing.assert_allclose(ones[3], x.var(0, dtype="float64", ddof=1), rtol=5e-7)


@pytest.mark.parametrize("mean", [0, 1e4])
def test_rows_far_from_zero(emulated_ops, mean):
    x = (mean + np.random.default_rng(2).standard_normal((3, 500))).astype("float32")
    x[0, 0] += 300
    x[1] = mean + 0.1
    ops = emulated_ops
    _, got, inv_std = ops.layer_norm(ops.asarray(x), *ops.asarray(np.ones((2, 500)), "float32"), 1e-12)
    np.testing.assert_allclose(got, x.mean(1, dtype="float64"), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(inv_std, 1 / np.sqrt(x.var(1, dtype="float64") + 1e-12), rtol=5e-7)


def test_attention_takes_memory_for_its_tokens_not_for_their_pairs(emulated_ops):
    a, T = Numbers(emulated_ops, "float32"), 400
    qkv, dy = a(1, T, 6), a(1, T, 2)
    given = len(cuda_emulation.memory.blocks)
    y, log_sum = emulated_ops.attention(qkv, 1, True)
    emulated_ops.attention_backward(dy, y, log_sum, qkv, 1)
    made = [size for _, size in cuda_emulation.memory.blocks[given:]]
    assert made and sum(made) <= 4 * T * (2 + 1 + 1 + 6)   # y, log_sum, dots, dqkv


@pytest.mark.parametrize("dtype", REALS)
def test_convolutions_of_some_images_at_a_time(emulated_ops, dtype, monkeypatch):
    images = sys.modules[type(emulated_ops).__module__ + ".images"]
    monkeypatch.setattr(images, "WORKSPACE", 3000)
    monkeypatch.setattr(images, "SUM_THREADS", 2)   # and the longest sums
    parts, unfolded = [], emulated_ops._unfolded
    monkeypatch.setattr(emulated_ops, "_unfolded", lambda *given: (parts.append(part) or part
                                                                   for part in unfolded(*given)))
    for case in (convolutions, depthwise_convolutions, batch_norms):
        check(emulated_ops, case, dtype)
    assert {columns.nbytes > 3000 for _, columns in parts} == {False, True}   # one image may need more
    assert max(part.start for part, _ in parts) > 0


def test_labels_that_are_no_class_spoil_the_loss(emulated_ops):
    a = Numbers(emulated_ops, "float32")
    for label in (-1, 4, 2 ** 30):
        for weight in (None, a(4, positive=True)):
            labels = emulated_ops.asarray([0, label], "int32")
            value, _ = emulated_ops.softmax_cross_entropy(a(2, 4), labels, None, 1.0, weight, 0.0)
            assert np.isnan(value)


def test_empty_batch(emulated_ops):
    a = Numbers(emulated_ops, "float32")
    W, dW, db = a(5, 7), a(5, 7), a(7)
    y, slope = emulated_ops.dense(a(0, 5), W, a(7), "elu", 0.5, a.key(), True)
    dx = emulated_ops.dense_backward(y, slope, a(0, 5), W, dW, db, False, True)
    assert y.shape == slope.shape == (0, 7) and dx.shape == (0, 5) and not dW.any() and not db.any()


def test_the_same_bits_again(emulated_ops):
    for case in (losses, dense_backward, sums_of_squares, convolutions, depthwise_convolutions, batch_norms,
                 class_labels, conv_blocks, tokens, layer_norms, attentions):
        once, again = (case(emulated_ops, Numbers(emulated_ops, "float32")) for _ in range(2))
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(once, again))


# -- the class ------------------------------------------------------------------------------------------------------

def test_signatures_are_those_of_the_specification(emulated):
    for name, function in inspect.getmembers(emulated, inspect.isfunction):
        if not name.startswith("_"):
            expected = inspect.signature(getattr(ReferenceOps, name)).parameters
            assert list(inspect.signature(function).parameters) == list(expected), name


def test_nothing_that_the_cpu_makes_faster_is_left_to_wait_for_the_device(emulated):
    from nnlite.ops.cpu import CpuOps
    # One pass each in CuPy as they stand; its pool gives pieces of large blocks to small arrays by itself.
    of_cupy = {"empty", "zeros", "add", "multiply", "take_rows", "contiguous", "copy", "fill", "increment",
               "clip_factor", "identity", "scale_samples", "scale_channels", "add_to_samples", "patches",
               "patches_backward", "release"}
    fast = {name for name, value in vars(CpuOps).items()
            if inspect.isfunction(value) and hasattr(ReferenceOps, name) and not name.startswith("_")}
    assert {name for name in fast if getattr(emulated, name) is getattr(ReferenceOps, name)} <= of_cupy


def test_device_line(emulated_ops):
    assert emulated_ops.device_line().startswith("cuda, no GPU (CuPy ") and "full float32" in emulated_ops.device_line()


def vectors(ops, dtype):
    """A model of layers on vectors and its step() -> value of the loss."""
    model = Sequential(Dense(6, 20, keep_prob=0.8), Dense(20, 9, activation="gelu"), Linear(9, 6))
    model.build(ops, dtype=dtype, seed=3)
    x = ops.asarray(np.random.default_rng(0).standard_normal((50, 6)), dtype)
    return model, training(ops, model, x, lambda y: squared_error(ops, y, x, 0.02))


def pictures(ops, dtype):
    """A classifier of images and its step() -> value of the loss."""
    return classifier(ops, dtype, Conv2d(2, 4, 3, padding=1), NormPool(4), DepthwiseConv2d(4, 3, padding=1),
                      BatchNorm(4), MaxPool2d(2), Conv2d(4, 6, 1, relu=True), AvgPool2d(1), GlobalAvgPool(),
                      Linear(6, 3))


def residual_blocks(ops, dtype):
    return classifier(ops, dtype, Bottleneck(2, 3, 4), MBConv(4, 4, expansion=2, keep_prob=0.7), Bottleneck(4, 2, 4),
                      GlobalAvgPool(), Linear(4, 3))


def transformer(ops, dtype):
    return classifier(ops, dtype, PatchEmbed(2, 8, 1), ClassToken(8), PositionEmbedding(73, 8), Block(8, 2, 16),
                      TakeToken(), LayerNorm(8), Linear(8, 3))


def classifier(ops, dtype, *layers):
    model = Sequential(*layers)
    model.build(ops, dtype=dtype, seed=3)
    random = np.random.default_rng(0)
    x, labels = ops.asarray(random.standard_normal((5, 9, 8, 2)), dtype), ops.asarray(np.arange(5) % 3, "int32")
    weight = ops.asarray([1, 2, 0.5], dtype)
    return model, training(ops, model, x, lambda y: softmax_cross_entropy(ops, y, labels, class_weight=weight))


def training(ops, model, x, loss):
    optimiser = Adam(model.parameters, lr=1e-2, decay=1e-3)

    def step():
        model.parameters.zero_grad()
        value, dy = loss(model.forward(x, train=True))
        model.backward(dy, need_dx=False)
        optimiser.step()
        return value
    return step


MODELS = vectors, pictures, residual_blocks, transformer


@pytest.mark.parametrize("make", MODELS)
def test_layers_and_optimiser_on_the_emulation(emulated_ops, make):
    """A small model makes the same three steps as on the specification."""
    ends = []
    for ops in (emulated_ops, ReferenceOps()):
        model, step = make(ops, "float64")
        values = []
        for index in range(3):
            model.rng.set_step(index)
            values.append(float(step()))
        ends.append((values, ops.to_host(model.parameters.values)))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-10)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-7, atol=1e-9)


# -- graphs ---------------------------------------------------------------------------------------------------------

def steps_of_kernels(ops, captured):
    """Five steps made of nnlite's own kernels alone, which is all that the emulation can record."""
    a = Numbers(ops, "float64")
    x, W, b, p, m, v = a(8, 5), a(5, 6), a(6), a(36), ops.zeros((36,), "float64"), ops.zeros((36,), "float64")
    rng, lr, t = Rng(ops, 1), ops.scalar(0, "float64"), ops.scalar(0, "int64")
    W, b, g = p[:30].reshape(5, 6), p[30:], ops.zeros((36,), "float64")
    target, ran = a(8, 6), []

    def step():
        ran.append(1)
        y, slope = ops.dense(x, W, b, "elu", 0.7, rng.key("layer"), True)
        value, dy = ops.squared_error(y, target, 0.5)
        ops.dense_backward(dy, slope, x, W, g[:30].reshape(5, 6), g[30:], False, False)
        ops.adam(p, g, m, v, [(0, 36, (0.0, 1.0))], lr, 1.0, 0.9, 0.99, 1e-8, t, False)
        return value
    run, values = (ops.capture(step) if captured else step), []
    for index in range(5):
        rng.set_step(index)
        ops.set_scalar(lr, 0.1 / (1 + index))
        ops.set_scalar(t, index + 1)
        ops.copy_into(target, np.full((8, 6), index))
        values.append(float(run()))
    return values, ops.to_host(p), len(ran)


def steps_of_image_kernels(ops, captured):
    """Five steps of a small classifier, likewise."""
    a = Numbers(ops, "float64")
    images, shift, scale = ops.asarray(a.random.integers(0, 256, (9, 6, 4, 2)), "uint8"), a(2), a(2) / 100
    rows, flip, labels = (ops.asarray(np.zeros(4), dtype) for dtype in ("int32", "uint8", "int32"))
    moves = ops.asarray(np.zeros((4, 2)), "int32")
    weight, soft, ran, ones = a(3, positive=True), a(4, 3, positive=True), [], ((1, 1),) * 3
    p, g, m, v = (a(38), *(ops.zeros((38,), "float64") for _ in range(3)))
    norm, dnorm, mean, var = (p[36:37], p[37:]), (g[36:37], g[37:]), a(1), a(1, positive=True)
    (W, V), (dW, dV) = (((q[:18].reshape(3, 3, 2, 1), q[18:36].reshape(6, 3)) for q in (p, g)))
    lr, t = ops.scalar(0.01, "float64"), ops.scalar(0, "int64")

    def step():
        ran.append(1)
        x = ops.image_batch(images, rows, flip, moves, shift, scale, "float64")
        h = ops.conv2d(x, W, None, *ones, 1, True)
        pooled, batch_mean, inv_std, place = ops.norm_pool(h, *norm, mean, var, 0.1, 1e-5, True)
        logits = ops.linear(pooled.reshape(4, 6), V, None)
        value, dlogits = ops.softmax_cross_entropy(logits, labels, soft, 0.5, weight, 0.1)
        dpooled = ops.linear_backward(dlogits, pooled.reshape(4, 6), V, dV, None, False, True).reshape(pooled.shape)
        dh = ops.norm_pool_backward(dpooled, place, h, batch_mean, inv_std, norm[0], *dnorm, False)
        ops.conv2d_backward(dh, h, x, W, dW, None, *ones, 1, False, True)
        ops.adam(p, g, m, v, [(0, 38, (0.0, 1.0))], lr, 1.0, 0.9, 0.99, 1e-8, t, False)
        return value
    run, values = (ops.capture(step) if captured else step), []
    for index in range(5):
        ops.copy_into(rows, (np.arange(4) * 2 + index) % 9)
        ops.copy_into(flip, np.arange(4) % 2)
        ops.copy_into(labels, (np.arange(4) + index) % 3)
        ops.set_scalar(t, index + 1)
        values.append(float(run()))
    return values, np.concatenate([p, mean, var]), len(ran)


@pytest.mark.parametrize("steps", [steps_of_kernels, steps_of_image_kernels])
def test_emulated_graph(emulated_ops, steps):
    """Two steps as they are, the third recorded, then launches: the same bits, and step() runs no more."""
    values, p, ran = steps(emulated_ops, False)
    captured_values, captured_p, captured_ran = steps(emulated_ops, True)
    assert values == captured_values and np.array_equal(p, captured_p)
    assert ran == 5 and captured_ran == 3
    assert len(set(values)) == 5


def test_a_step_that_fails_while_it_is_recorded(emulated_ops):
    calls = []

    def step():
        calls.append(1)
        if len(calls) == 3:
            raise NnliteError("no")
        return len(calls)

    run = emulated_ops.capture(step)
    assert [run(), run()] == [1, 2]
    with pytest.raises(NnliteError, match="no"):
        run()
    assert cuda_emulation.recorder is None
    assert run() == 4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("make", MODELS)
def test_device_graph_is_the_step_bit_for_bit(device, make, dtype):
    ends = []
    for captured in (False, True):
        model, step = make(device, dtype)
        run, values = device.capture(step) if captured else step, []
        for index in range(8):
            model.rng.set_step(index)
            values.append(float(run()))
        ends.append((values, device.to_host(model.parameters.values)))
    assert ends[0][0] == ends[1][0] and np.array_equal(ends[0][1], ends[1][1])
    assert len(set(ends[0][0])) == 8


@pytest.mark.gpu
def test_device_graph_is_alone_in_its_memory(device):
    """Arrays made between the launches are not touched by them, and do not disturb them."""
    model, step = vectors(device, "float32")
    run = device.capture(step)
    others = []
    for index in range(20):
        model.rng.set_step(index)
        value = run()
        others.append((device.zeros((50, 20), "float32") + index, index))
        assert np.isfinite(float(value))
    assert all((device.to_host(array) == index).all() for array, index in others)


@pytest.mark.gpu
@pytest.mark.parametrize("make", MODELS)
def test_device_allocates_nothing_after_the_first_steps(device, make):
    import cupy
    pool = cupy.get_default_memory_pool()
    model, step = make(device, "float32")
    for _ in range(3):
        step()
    held = pool.total_bytes()
    for _ in range(20):
        step()
    assert pool.total_bytes() == held


# -- compilation ----------------------------------------------------------------------------------------------------

@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("real", ["float", "double"])
def test_kernels_compile_for_a_gpu(emulated, real, tmp_path):
    source = tmp_path / "kernels.cu"
    source.write_text(_source(emulated))
    ptx = tmp_path / "kernels.ptx"
    subprocess.run(["nvcc", "-arch=sm_80", "--ptx", "-Werror", "all-warnings", f"-DREAL={real}", "-o", ptx, source],
                   check=True)
    text = ptx.read_text()
    assert text.count(".entry") == text.count(".visible .entry") == _source(emulated).count("\nKERNEL ")


def _source(CudaOps):
    return sys.modules[CudaOps.__module__ + ".kernels"].source()
