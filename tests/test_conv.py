"""Convolutions against loops over single numbers, and the fast ones against the specification for any shape.

The contract for float32: every number of y, dx, dW and db is within 2e-5, times the largest number of that array, of
what float64 gives. So a convolution may sum in any order, and by transforms such as Winograd's.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from fenced_memory import FencedMemory
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite.ops.cpu as cpu
from nnlite.errors import NnliteError
from nnlite.layers import Conv2d, DepthwiseConv2d
from nnlite.ops import get_ops
from nnlite.ops.cpu import convolution

REFERENCE = get_ops("reference")
CLOSE = {"float32": 2e-5, "float64": 1e-10}   # times the largest number of the result
PIECES = 5

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def assert_close(got, wanted, dtype, what=""):
    assert got.shape == wanted.shape and got.dtype == dtype, what
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE[dtype] * np.abs(wanted).max(initial=0), err_msg=what)


class Case(NamedTuple):
    """A convolution; groups None: depthwise, with K = C."""

    x: tuple
    K: int
    kernel: tuple
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    dilation: tuple = (1, 1)
    groups: int = 1
    bias: bool = True
    relu: bool = False

    @property
    def depthwise(self):
        return self.groups is None

    @property
    def weight_shape(self):
        return (*self.kernel, self.K) if self.depthwise else (*self.kernel, self.x[3] // self.groups, self.K)

    @property
    def y_shape(self):
        Ho, Wo = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(
            self.x[1:3], self.kernel, self.stride, self.padding, self.dilation))
        return self.x[0], Ho, Wo, self.K


CASES = {
    "3x3": Case((2, 5, 4, 3), 4, (3, 3)),
    "3x3 as large": Case((2, 5, 4, 3), 4, (3, 3), padding=(1, 1)),
    "3x3 with ReLU": Case((3, 5, 4, 3), 4, (3, 3), padding=(1, 1), relu=True),
    "3x3 with ReLU and no bias": Case((1, 7, 5, 2), 3, (3, 3), bias=False, relu=True),
    "one channel, one image": Case((1, 9, 7, 1), 5, (3, 3), padding=(1, 1)),
    "one output": Case((2, 3, 3, 4), 1, (3, 3), padding=(1, 1)),
    "one window": Case((1, 3, 3, 2), 2, (3, 3)),
    "one pixel": Case((1, 1, 1, 2), 3, (3, 3), padding=(1, 1)),
    "1x1": Case((2, 3, 5, 4), 3, (1, 1)),
    "1x1 on few pixels": Case((1, 3, 3, 70), 60, (1, 1)),
    "1x1 on few pixels with ReLU and no bias": Case((2, 2, 4, 66), 65, (1, 1), bias=False, relu=True),
    "1x1 on few pixels, in groups": Case((1, 3, 3, 140), 120, (1, 1), groups=2),
    "1x1 on few pixels with stride": Case((1, 4, 5, 70), 60, (1, 1), stride=(2, 2)),
    "1x1 with stride": Case((2, 5, 6, 3), 4, (1, 1), stride=(2, 2)),
    "1x1 with padding": Case((1, 2, 3, 3), 2, (1, 1), padding=(1, 2)),
    "5x5": Case((1, 7, 6, 2), 3, (5, 5), padding=(2, 2)),
    "5x5, padding 1": Case((2, 5, 8, 2), 2, (5, 5), padding=(1, 1)),
    "7x7 with stride": Case((1, 9, 11, 2), 2, (7, 7), stride=(2, 2), padding=(3, 3)),
    "stride": Case((2, 7, 8, 3), 2, (3, 3), stride=(2, 2), padding=(1, 1)),
    "stride, rows and columns unlike": Case((2, 8, 7, 2), 3, (3, 2), stride=(2, 3), padding=(1, 0)),
    "stride beyond the kernel": Case((2, 8, 9, 2), 3, (2, 2), stride=(3, 4)),
    "stride that leaves rows out": Case((1, 6, 6, 2), 2, (3, 3), stride=(2, 2)),
    "kernel beyond the image": Case((2, 2, 3, 2), 3, (5, 4), padding=(2, 1)),
    "padding beyond the kernel": Case((1, 2, 3, 2), 2, (2, 2), padding=(3, 2)),
    "dilation": Case((2, 7, 6, 2), 3, (3, 3), padding=(2, 1), dilation=(2, 2)),
    "dilation, rows and columns unlike": Case((1, 9, 7, 2), 2, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(3, 2)),
    "groups": Case((2, 5, 4, 6), 4, (3, 3), padding=(1, 1), groups=2),
    "groups with stride": Case((1, 6, 5, 6), 9, (3, 2), stride=(2, 1), groups=3, relu=True),
    "a group for each channel": Case((2, 4, 5, 3), 6, (3, 3), padding=(1, 1), groups=3, bias=False),
    "depthwise": Case((2, 5, 4, 3), 3, (3, 3), padding=(1, 1), groups=None),
    "depthwise without padding and bias": Case((1, 5, 6, 2), 2, (3, 3), groups=None, bias=False),
    "depthwise 5x5 with stride": Case((2, 7, 8, 3), 3, (5, 5), stride=(2, 2), padding=(2, 2), groups=None),
    "depthwise with dilation": Case((1, 7, 8, 2), 2, (3, 2), padding=(2, 0), dilation=(2, 3), groups=None),
    "depthwise, one pixel": Case((1, 1, 1, 2), 2, (3, 3), padding=(1, 1), groups=None),
}


# -- the definition, number by number ---------------------------------------------------------------------------------

def naive_terms(case):
    """(index of y, index of x, index of W) of every product x W that y sums, by the definition."""
    N, H, W, C = case.x
    width, each = (1, 1) if case.depthwise else (C // case.groups, case.K // case.groups)
    for n, h, w, k in np.ndindex(case.y_shape):
        first = k // each * width          # the group's first channel
        for i in range(case.kernel[0]):
            for j in range(case.kernel[1]):
                row = h * case.stride[0] + i * case.dilation[0] - case.padding[0]
                column = w * case.stride[1] + j * case.dilation[1] - case.padding[1]
                if not (0 <= row < H and 0 <= column < W):
                    continue
                for c in range(width):
                    weight = (i, j, k) if case.depthwise else (i, j, c, k)
                    yield (n, h, w, k), (n, row, column, first + c), weight


def naive_forward(case, x, W, b):
    y = np.zeros(case.y_shape)
    for at_y, at_x, at_w in naive_terms(case):
        y[at_y] += float(x[at_x]) * float(W[at_w])
    if case.bias:
        for at in np.ndindex(y.shape):
            y[at] += float(b[at[3]])
    if case.relu:
        for at in np.ndindex(y.shape):
            y[at] = max(y[at], 0.0)
    return y


def naive_backward(case, dy, y, x, W):
    """dx, dW, db: each product x W passes dy on to both of its factors."""
    dx, dW, db = np.zeros(x.shape), np.zeros(W.shape), np.zeros(case.K)
    for at_y, at_x, at_w in naive_terms(case):
        if not case.relu or y[at_y] > 0:
            dx[at_x] += float(dy[at_y]) * float(W[at_w])
            dW[at_w] += float(dy[at_y]) * float(x[at_x])
    for at in np.ndindex(dy.shape):
        if not case.relu or y[at] > 0:
            db[at[3]] += float(dy[at])
    return dx, dW, db


# -- calling ops ------------------------------------------------------------------------------------------------------

def draw(case, seed=0, dtype="float64"):
    """x, W, b and dy."""
    rng = np.random.default_rng([seed, *case.x])
    shapes = case.x, case.weight_shape, (case.K,), case.y_shape
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def forward(ops, case, x, W, b):
    b = b if case.bias else None
    if case.depthwise:
        return ops.depthwise_conv2d(x, W, b, case.stride, case.padding, case.dilation)
    return ops.conv2d(x, W, b, case.stride, case.padding, case.dilation, case.groups, case.relu)


def backward(ops, case, dy, y, x, W, dW, db, accumulate, need_dx):
    db = db if case.bias else None
    if case.depthwise:
        return ops.depthwise_conv2d_backward(dy, x, W, dW, db, case.stride, case.padding, case.dilation, accumulate,
                                             need_dx)
    return ops.conv2d_backward(dy, y if case.relu else None, x, W, dW, db, case.stride, case.padding, case.dilation,
                               case.groups, accumulate, need_dx)


def strided(ops, values, dtype):
    """The same values, every second element of something larger along each axis."""
    host = np.full(tuple(2 * extent for extent in values.shape), np.nan)
    index = (slice(None, None, 2),) * values.ndim
    host[index] = values
    return ops.asarray(host, dtype)[index]


@pytest.mark.parametrize("name", CASES)
@both_dtypes
@pytest.mark.parametrize("contiguous", [True, False])
def test_against_loops(name, dtype, contiguous, ops):
    case = CASES[name]
    values = draw(case, dtype=dtype)
    give = (lambda array: ops.asarray(np.array(array), dtype)) if contiguous else (
        lambda array: strided(ops, array, dtype))
    x, dy = give(values[0]), give(values[3])
    W, b = (ops.asarray(np.array(array), dtype) for array in values[1:3])
    given_arrays = x, W, b, dy
    y = forward(ops, case, x, W, b)
    wanted = naive_forward(case, *values[:3])
    assert_close(ops.to_host(y), wanted, dtype, "y")
    start = [np.random.default_rng(5).normal(size=shape).astype(dtype) for shape in (W.shape, b.shape)]
    host_y = np.array(ops.to_host(y))
    gradients = naive_backward(case, values[3], host_y, *values[:2])
    for accumulate in (False, True):
        for need_dx in (True, False):
            dW, db = (ops.asarray(array.copy()) for array in start)
            dx = backward(ops, case, dy, y, x, W, dW, db, accumulate, need_dx)
            assert (dx is None) == (not need_dx)
            if need_dx:
                assert_close(ops.to_host(dx), gradients[0], dtype, "dx")
            assert_close(ops.to_host(dW), gradients[1] + accumulate * start[0], dtype, "dW")
            if case.bias:
                assert_close(ops.to_host(db), gradients[2] + accumulate * start[1], dtype, "db")
            else:
                np.testing.assert_array_equal(ops.to_host(db), start[1])
    for array, before in zip((*given_arrays, y), (*values, host_y)):
        np.testing.assert_array_equal(ops.to_host(array), before)


# -- any shape, against the specification -----------------------------------------------------------------------------

class GuardedOps(cpu.CpuOps):
    """CPU ops that cut all work into so many pieces, with arrays between fences (fenced_memory.py)."""

    def __init__(self, pieces):
        super().__init__()
        memory = FencedMemory()
        self.threads, self.empty, self.check = pieces, memory.empty, memory.check


FAST = {"cpu": functools.cache(lambda: GuardedOps(1)), "cpu in pieces": functools.cache(lambda: GuardedOps(PIECES))}


def give(ops, values, dtype=None):
    """The values in memory of the ops."""
    array = ops.empty(values.shape, dtype or str(values.dtype))
    ops.copy_into(array, values)
    return array


def compare(case, dtype, ops, seed, need_dx=True):
    """The fast ops on numbers of this dtype against the reference on the same numbers in float64."""
    values = draw(case, seed, dtype)
    exact = [array.astype("float64") for array in values]
    x, W, b, dy = (give(ops, array) for array in values)
    y = forward(ops, case, x, W, b)
    host_y = np.array(ops.to_host(y))
    assert_close(host_y, forward(REFERENCE, case, *exact[:3]), dtype, "y")
    wanted = [np.empty(case.weight_shape), np.empty(case.K)]
    wanted_dx = backward(REFERENCE, case, exact[3], host_y, *exact[:2], *wanted, False, True)
    for accumulate, need in ((False, need_dx), (True, not need_dx)):
        start = [np.full(array.shape, accumulate or math.nan) for array in wanted]
        dW, db = (give(ops, array, dtype) for array in start)
        dx = backward(ops, case, dy, y, x, W, dW, db, accumulate, need)
        assert (dx is None) == (not need)
        if need:
            assert_close(ops.to_host(dx), wanted_dx, dtype, "dx")
        assert_close(ops.to_host(dW), wanted[0] + accumulate, dtype, "dW")
        if case.bias:
            assert_close(ops.to_host(db), wanted[1] + accumulate, dtype, "db")
    for array, before in zip((x, W, b, dy, y), (*values, host_y)):
        np.testing.assert_array_equal(ops.to_host(array), before)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def any_case(draw):
    kernel, stride, padding, dilation = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(0, 3)), draw(pairs(1, 3))
    size = [max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 7)) for k, p, d in zip(kernel, padding, dilation)]
    groups = draw(st.sampled_from([1, 1, 2, 3, None]))
    C = (groups or 1) * draw(st.integers(1, 5))
    K = C if groups is None else groups * draw(st.integers(1, 5))
    relu = groups is not None and draw(st.booleans())
    return Case((draw(st.integers(1, 4)), *size, C), K, kernel, stride, padding, dilation, groups, draw(st.booleans()),
                relu)


CHANNELS = st.sampled_from([1, 3, 16, 17, 32, 48, 64, 100])


@st.composite
def usual_case(draw, kernel, strides, paddings, channels=CHANNELS):
    """The convolutions of which networks are made, for which fast ops have kernels of their own."""
    stride, padding = draw(st.sampled_from(strides)), draw(st.sampled_from(paddings))
    least = max(1, kernel - 2 * padding)
    C = draw(channels)
    depthwise = channels is not CHANNELS
    return Case((draw(st.integers(1, 5)), draw(st.integers(least, 30)), draw(st.integers(least, 30)), C),
                C if depthwise else draw(channels), (kernel, kernel), (stride, stride), (padding, padding),
                groups=None if depthwise else 1, bias=draw(st.booleans()), relu=not depthwise and draw(st.booleans()))


KINDS = {"any": any_case(), "3x3": usual_case(3, [1], [0, 1]), "5x5": usual_case(5, [1], [1, 2]),
         "1x1": usual_case(1, [1, 2], [0]), "depthwise 3x3": usual_case(3, [1, 2], [0, 1], st.integers(1, 70))}
EXAMPLES = {"any": 120, "3x3": 50, "5x5": 15, "1x1": 20, "depthwise 3x3": 20}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", FAST)
@both_dtypes
def test_fast_ops_for_any_shape(kind, fast, dtype, monkeypatch):
    """Right whatever was in the memory before, and without a write to x, W, b, dy, y or beside an array."""
    monkeypatch.setattr(cpu, "GRAIN", 1)
    ops = FAST[fast]()

    @settings(max_examples=EXAMPLES[kind])
    @given(case=KINDS[kind], seed=st.integers(0, 99), need_dx=st.booleans())
    def check(case, seed, need_dx):
        compare(case, dtype, ops, seed, need_dx)
        ops.check()

    check()


def winograd_fits(what, N, Ho, Wo, C, K, kernel, stride, dilation, groups):
    return kernel in convolution.WINOGRAD[what] and stride == dilation == (1, 1) and groups == 1


def never(*_):
    return False


ALGORITHMS = {"winograd": {"by_winograd": winograd_fits}, "direct": {"by_winograd": never},
              "direct, shared by outputs": {"by_winograd": never, "OUTPUTS": 0, "FEW": 1 << 30}}


@pytest.mark.parametrize("algorithm, kind", [*itertools.product(ALGORITHMS, ["3x3", "5x5"]),
                                             ("direct, shared by outputs", "1x1")])
@pytest.mark.parametrize("fast", FAST)
@both_dtypes
def test_each_algorithm_for_any_shape(algorithm, kind, fast, dtype, monkeypatch):
    """On the CPU, also where the other one is faster: one that is not chosen today may be tomorrow."""
    monkeypatch.setattr(cpu, "GRAIN", 1)
    for name, value in ALGORITHMS[algorithm].items():
        monkeypatch.setattr(convolution, name, value)
    ops = FAST[fast]()

    @settings(max_examples=EXAMPLES[kind])
    @given(case=KINDS[kind], seed=st.integers(0, 99), need_dx=st.booleans())
    def check(case, seed, need_dx):
        compare(case, dtype, ops, seed, need_dx)
        ops.check()

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@both_dtypes
def test_cuda_for_any_shape(kind, dtype):
    try:
        ops = get_ops("cuda")
    except NnliteError as error:
        pytest.skip(str(error))

    @settings(max_examples=EXAMPLES[kind])
    @given(case=KINDS[kind], seed=st.integers(0, 99), need_dx=st.booleans())
    def check(case, seed, need_dx):
        compare(case, dtype, ops, seed, need_dx)

    check()


@pytest.mark.parametrize("case", [
    Case((5, 48, 48, 1), 32, (3, 3), padding=(1, 1), relu=True),
    Case((4, 24, 24, 32), 64, (3, 3), padding=(1, 1)),
    Case((2, 30, 30, 64), 32, (5, 5), padding=(1, 1)),
    Case((8, 48, 48, 16), 16, (5, 5), padding=(2, 2)),
    Case((3, 6, 6, 128), 100, (3, 3), relu=True),
    Case((20, 48, 48, 16), 16, (3, 3), padding=(1, 1)),    # more tiles than are added up at once
], ids=str)
@pytest.mark.parametrize("fast", FAST)
def test_sizes_of_networks(case, fast):
    ops = FAST[fast]()
    compare(case, "float32", ops, seed=1)
    ops.check()


# -- what follows from the definition ---------------------------------------------------------------------------------

@both_dtypes
def test_a_lone_pixel_draws_the_kernel_turned(dtype, ops):
    """One 1 in the middle of zeros: y is W, both axes reversed; no sum hides an index that is off by one."""
    x, W = np.zeros((1, 5, 5, 1)), np.arange(1.0, 10).reshape(3, 3, 1, 1)
    x[0, 2, 2] = 1
    y = ops.conv2d(ops.asarray(x, dtype), ops.asarray(W, dtype), None, (1, 1), (1, 1), (1, 1), 1, False)
    got = ops.to_host(y)[0, :, :, 0]
    np.testing.assert_allclose(got[1:4, 1:4], W[::-1, ::-1, 0, 0], rtol=0, atol=9 * CLOSE[dtype])
    assert np.abs(got).sum() == pytest.approx(45, rel=1e-4)


def test_relu_lets_nothing_through_where_y_is_zero(ops):
    """The bias pushes all of y below zero: every gradient is 0, whatever dy."""
    case = CASES["3x3 with ReLU"]
    x, W, b, dy = draw(case)
    arrays = [ops.asarray(array) for array in (x, W, b - 1e3)]
    y = forward(ops, case, *arrays)
    assert not ops.to_host(y).any()
    dW, db = ops.asarray(np.ones(W.shape)), ops.asarray(np.ones(b.shape))
    dx = backward(ops, case, ops.asarray(dy), y, *arrays[:2], dW, db, False, True)
    assert not any(ops.to_host(array).any() for array in (dx, dW, db))


# -- the layers -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layer, variance", [
    (Conv2d(40, 50, (3, 5)), 2 / (15 * 40)), (Conv2d(80, 120, 3, groups=4), 2 / (9 * 20)),
    (DepthwiseConv2d(3000, 3), 2 / 9)], ids=["Conv2d", "groups", "DepthwiseConv2d"])
def test_initial_values(layer, variance):
    """N(0, 2 / inputs of a unit), He et al. 2015, eq. 10; 10^4 numbers: the mean within 5 of its deviations."""
    layer.build(REFERENCE, dtype="float64", seed=1)
    assert layer.W.size > 20_000
    assert abs(layer.W.mean()) < 5 * math.sqrt(variance / layer.W.size)
    assert layer.W.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / layer.W.size))
    assert not layer.b.any()


@pytest.mark.parametrize("make, words", [
    (lambda: Conv2d(4, 6, 3, groups=3), "Conv2d: expected channels that 3 groups divide"),
    (lambda: Conv2d(6, 4, 3, groups=3), "Conv2d: expected channels that 3 groups divide"),
    (lambda: Conv2d(3, 4, 0), "kernel: expected a whole number of at least 1, or two"),
    (lambda: Conv2d(3, 4, (3, 3, 3)), "kernel: expected a whole number of at least 1, or two"),
    (lambda: Conv2d(3, 4, 2.5), "kernel: expected a whole number"),
    (lambda: Conv2d(3, 4, 3, stride=0), "stride: expected"),
    (lambda: Conv2d(3, 4, 3, padding=-1), "padding: expected a whole number of at least 0"),
    (lambda: DepthwiseConv2d(3, 3, dilation=0), "dilation: expected"),
])
def test_constructors_in_words(make, words):
    with pytest.raises(NnliteError, match=words):
        make()


@pytest.mark.parametrize("layer, shape, words", [
    (Conv2d(3, 4, 3), (2, 5, 5, 4), r"Conv2d '': expected x \(N, H, W, 3\), got \(2, 5, 5, 4\)"),
    (Conv2d(3, 4, 3), (5, 5, 3), r"Conv2d '': expected x \(N, H, W, 3\), got \(5, 5, 3\)"),
    (Conv2d(3, 4, 3), (2, 5, 2, 3), r"expected images in which at least one window fits, got \(2, 5, 2, 3\)"),
    (Conv2d(3, 4, 3, dilation=2), (2, 4, 9, 3), "at least one window fits"),
    (DepthwiseConv2d(3, 5, padding=1), (2, 2, 9, 3), "at least one window fits"),
    (DepthwiseConv2d(3, 3), (2, 9, 9, 2), r"DepthwiseConv2d '': expected x \(N, H, W, 3\)"),
])
def test_inputs_in_words(layer, shape, words):
    layer.build(REFERENCE)
    with pytest.raises(NnliteError, match=words):
        layer.forward(np.zeros(shape, "float32"))
