"""Pooling against loops over single numbers: odd sizes, overlap, padding, ties, NaN; and the fast ops for any shape."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite.ops.cpu as cpu
from nnlite.errors import NnliteError
from nnlite.layers import AvgPool2d, Flatten, GlobalAvgPool, MaxPool2d
from nnlite.ops import get_ops
from test_conv import FAST, give, strided

REFERENCE = get_ops("reference")
CLOSE = {"float32": 2e-6, "float64": 1e-12}   # times the largest number of the result

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

# name: x, kernel, stride, padding
CASES = {
    "2": ((2, 4, 6, 3), (2, 2), (2, 2), (0, 0)),
    "2, odd sizes": ((1, 5, 7, 2), (2, 2), (2, 2), (0, 0)),
    "3, stride 2, padding 1": ((2, 6, 7, 3), (3, 3), (2, 2), (1, 1)),
    "3, overlap": ((1, 5, 6, 17), (3, 3), (1, 1), (0, 0)),
    "rows and columns unlike": ((2, 7, 8, 2), (3, 2), (2, 3), (1, 0)),
    "stride beyond the kernel": ((1, 8, 9, 2), (2, 2), (3, 4), (0, 0)),
    "1x1 with stride": ((2, 5, 4, 2), (1, 1), (2, 2), (0, 0)),
    "the whole image": ((3, 4, 5, 2), (4, 5), (4, 5), (0, 0)),
    "kernel beyond the image": ((2, 2, 1, 3), (3, 3), (2, 2), (1, 1)),
    "16x16": ((1, 17, 16, 2), (16, 16), (1, 1), (0, 0)),
    "one pixel": ((1, 1, 1, 1), (2, 2), (2, 2), (1, 1)),
}
UNPADDED = {name: case for name, case in CASES.items() if case[3] == (0, 0)}


def windows(case):
    """(index of y, [(place in the window, index of x), ...]) for each number of y."""
    (N, H, W, C), (kh, kw), (sh, sw), (ph, pw) = case
    for n, h, w, c in np.ndindex(N, (H + 2 * ph - kh) // sh + 1, (W + 2 * pw - kw) // sw + 1, C):
        inside = []
        for i in range(kh):
            for j in range(kw):
                row, column = h * sh + i - ph, w * sw + j - pw
                if 0 <= row < H and 0 <= column < W:
                    inside.append((i * kw + j, (n, row, column, c)))
        yield (n, h, w, c), inside


def y_shape(case):
    return tuple(n + 1 for n in max((at for at, _ in windows(case)), key=sum))


def naive_max(case, x):
    """y and place. The first of the largest wins, and the first NaN wins over every number."""
    y, place = np.zeros(y_shape(case)), np.zeros(y_shape(case), int)
    for at, inside in windows(case):
        best, largest = inside[0][0], float(x[inside[0][1]])
        for where, at_x in inside[1:]:
            value = float(x[at_x])
            if not math.isnan(largest) and (math.isnan(value) or value > largest):
                best, largest = where, value
        y[at], place[at] = largest, best
    return y, place


def naive_max_backward(case, dy, place):
    dx = np.zeros(case[0])
    for at, inside in windows(case):
        dx[dict(inside)[place[at]]] += float(dy[at])
    return dx


def naive_avg(case, x):
    y = np.zeros(y_shape(case))
    for at, inside in windows(case):
        y[at] = sum(float(x[at_x]) for _, at_x in inside) / len(inside)
    return y


def naive_avg_backward(case, dy):
    dx = np.zeros(case[0])
    for at, inside in windows(case):
        for _, at_x in inside:
            dx[at_x] += float(dy[at]) / len(inside)
    return dx


def draw(name, shape, dtype, levels=None):
    """Normal numbers; with levels: so few different ones that most windows have several of the largest."""
    rng = np.random.default_rng([len(name), *shape])
    return (rng.normal(size=shape) if levels is None else rng.integers(-levels, levels, shape)).astype(dtype)


def assert_close(got, wanted, dtype):
    assert got.shape == wanted.shape and got.dtype == dtype
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE[dtype] * np.nanmax(np.abs(wanted), initial=0))


# -- against loops ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("levels", [None, 2], ids=["no ties", "ties"])
@pytest.mark.parametrize("contiguous", [True, False])
@both_dtypes
def test_max_pool(name, levels, contiguous, dtype, ops):
    case = CASES[name]
    x, dy = draw("x", case[0], dtype, levels), draw("dy", y_shape(case), dtype)
    given_x, given_dy = (give(ops, a) if contiguous else strided(ops, a, dtype) for a in (x, dy))
    y, place = ops.max_pool(given_x, *case[1:], True)
    wanted, wanted_place = naive_max(case, x)
    np.testing.assert_array_equal(ops.to_host(y), wanted.astype(dtype))
    assert y.dtype == dtype and place.dtype == "uint8"
    np.testing.assert_array_equal(ops.to_host(place), wanted_place)
    evaluated, nothing = ops.max_pool(given_x, *case[1:], False)
    np.testing.assert_array_equal(ops.to_host(evaluated), ops.to_host(y))
    assert nothing is None
    dx = ops.max_pool_backward(given_dy, place, case[0], *case[1:])
    assert_close(ops.to_host(dx), naive_max_backward(case, dy, wanted_place), dtype)
    np.testing.assert_array_equal(ops.to_host(given_x), x)
    np.testing.assert_array_equal(ops.to_host(given_dy), dy)


@pytest.mark.parametrize("name", UNPADDED)
@pytest.mark.parametrize("contiguous", [True, False])
@both_dtypes
def test_avg_pool(name, contiguous, dtype, ops):
    case = CASES[name]
    x, dy = draw("x", case[0], dtype), draw("dy", y_shape(case), dtype)
    given_x, given_dy = (give(ops, a) if contiguous else strided(ops, a, dtype) for a in (x, dy))
    assert_close(ops.to_host(ops.avg_pool(given_x, *case[1:3])), naive_avg(case, x), dtype)
    assert_close(ops.to_host(ops.avg_pool_backward(given_dy, case[0], *case[1:3])), naive_avg_backward(case, dy), dtype)
    np.testing.assert_array_equal(ops.to_host(given_x), x)
    np.testing.assert_array_equal(ops.to_host(given_dy), dy)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 4), (3, 7, 1, 17), (1, 12, 12, 65)])
@pytest.mark.parametrize("contiguous", [True, False])
@both_dtypes
def test_global_avg_pool(shape, contiguous, dtype, ops):
    case = (shape, shape[1:3], (1, 1), (0, 0))
    x, dy = draw("x", shape, dtype), draw("dy", (shape[0], shape[3]), dtype)
    given_x, given_dy = (give(ops, a) if contiguous else strided(ops, a, dtype) for a in (x, dy))
    assert_close(ops.to_host(ops.global_avg_pool(given_x)), naive_avg(case, x)[:, 0, 0], dtype)
    wanted = naive_avg_backward(case, dy[:, None, None])
    assert_close(ops.to_host(ops.global_avg_pool_backward(given_dy, shape)), wanted, dtype)


@pytest.mark.parametrize("name", ["2", "3, stride 2, padding 1", "3, overlap", "rows and columns unlike"])
@both_dtypes
def test_nan_comes_through(name, dtype, ops):
    """A NaN is never lost: the window gives NaN, and its gradient goes to the first NaN."""
    case = CASES[name]
    x, dy = draw("x", case[0], dtype), draw("dy", y_shape(case), dtype)
    x[np.random.default_rng(1).random(x.shape) < 0.15] = math.nan
    y, place = ops.max_pool(ops.asarray(x), *case[1:], True)
    wanted, wanted_place = naive_max(case, x)
    assert 0 < np.isnan(wanted).sum() < wanted.size
    np.testing.assert_array_equal(ops.to_host(y), wanted.astype(dtype))
    np.testing.assert_array_equal(ops.to_host(place), wanted_place)
    assert_close(ops.to_host(ops.max_pool_backward(ops.asarray(dy), place, case[0], *case[1:])),
                 naive_max_backward(case, dy, wanted_place), dtype)


@both_dtypes
def test_padding_never_wins(dtype, ops):
    """All of x far below zero: beyond the edges lies -infinity, not 0."""
    x = ops.asarray(np.full((1, 3, 3, 2), -1e30), dtype)
    y, _ = ops.max_pool(x, (3, 3), (2, 2), (1, 1), True)
    assert (ops.to_host(y) == np.dtype(dtype).type(-1e30)).all()


# -- the fast ops for any shape ---------------------------------------------------------------------------------------

@st.composite
def any_case(draw, padded):
    kernel, stride, padding, size = [], [], [], []
    for _ in range(2):
        kernel.append(draw(st.integers(1, 4)))
        stride.append(draw(st.integers(1, 4)))
        padding.append(draw(st.integers(0, kernel[-1] // 2)) if padded else 0)
        size.append(max(1, kernel[-1] - 2 * padding[-1]) + draw(st.integers(0, 12)))
    C = draw(st.sampled_from([1, 2, 3, 8, 15, 16, 17, 33, 64]))
    return (draw(st.integers(1, 4)), *size, C), tuple(kernel), tuple(stride), tuple(padding)


@pytest.mark.parametrize("fast", FAST)
@both_dtypes
def test_fast_ops_for_any_shape(fast, dtype, monkeypatch):
    """Whatever was in the memory before, and nothing beside an array is written."""
    monkeypatch.setattr(cpu, "GRAIN", 1)
    ops = FAST[fast]()

    @settings(max_examples=60)
    @given(case=any_case(padded=True), levels=st.sampled_from([None, 1, 3]))
    def check_max(case, levels):
        x = draw("x", case[0], dtype, levels)
        y, place = ops.max_pool(give(ops, x), *case[1:], True)
        wanted = REFERENCE.max_pool(x, *case[1:], True)
        np.testing.assert_array_equal(y, wanted[0])
        np.testing.assert_array_equal(place, wanted[1])
        np.testing.assert_array_equal(ops.max_pool(give(ops, x), *case[1:], False)[0], wanted[0])
        dy = draw("dy", y.shape, dtype)
        dx = ops.max_pool_backward(give(ops, dy), place, case[0], *case[1:])
        assert_close(dx, REFERENCE.max_pool_backward(dy.astype("float64"), wanted[1], case[0], *case[1:]), dtype)
        ops.check()

    @settings(max_examples=60)
    @given(case=any_case(padded=False))
    def check_avg(case):
        x = draw("x", case[0], dtype)
        y = ops.avg_pool(give(ops, x), *case[1:3])
        assert_close(y, REFERENCE.avg_pool(x.astype("float64"), *case[1:3]), dtype)
        dy = draw("dy", y.shape, dtype)
        dx = ops.avg_pool_backward(give(ops, dy), case[0], *case[1:3])
        assert_close(dx, REFERENCE.avg_pool_backward(dy.astype("float64"), case[0], *case[1:3]), dtype)
        y = ops.global_avg_pool(give(ops, x))
        assert_close(y, REFERENCE.global_avg_pool(x.astype("float64")), dtype)
        dy = draw("dy", y.shape, dtype)
        dx = ops.global_avg_pool_backward(give(ops, dy), case[0])
        assert_close(dx, REFERENCE.global_avg_pool_backward(dy.astype("float64"), case[0]), dtype)
        ops.check()

    check_max()
    check_avg()


# -- the layers -------------------------------------------------------------------------------------------------------

def test_the_stride_is_the_kernel_where_none_is_given():
    for layer in (MaxPool2d, AvgPool2d):
        assert layer(3).out_shape((2, 9, 11, 4)) == (2, 3, 3, 4)
        assert layer((2, 3)).out_shape((2, 9, 11, 4)) == (2, 4, 3, 4)
        assert layer(3, stride=1).out_shape((2, 9, 11, 4)) == (2, 7, 9, 4)


def test_flatten_lets_the_channel_run_fastest(ops):
    x = np.arange(24.0).reshape(2, 2, 2, 3)
    layer = Flatten().build(ops, dtype="float64")
    y = layer.forward(ops.asarray(x), train=True)
    assert ops.to_host(y).tolist() == [list(range(12)), list(range(12, 24))]
    np.testing.assert_array_equal(ops.to_host(layer.backward(y)), x)
    turned = ops.asarray(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(ops.to_host(layer.forward(turned)), ops.to_host(y))


@pytest.mark.parametrize("make, words", [
    (lambda: MaxPool2d(17), "MaxPool2d: expected a kernel of at most 256 places"),
    (lambda: MaxPool2d(3, padding=2), "MaxPool2d: expected a padding of at most half the kernel"),
    (lambda: MaxPool2d(0), "kernel: expected a whole number of at least 1"),
    (lambda: AvgPool2d(2, stride=-1), "stride: expected a whole number of at least 1"),
])
def test_constructors_in_words(make, words):
    with pytest.raises(NnliteError, match=words):
        make()


@pytest.mark.parametrize("layer, shape, words", [
    (MaxPool2d(3), (2, 2, 5, 1), r"MaxPool2d '': expected images in which at least one window fits, got \(2, 2, 5,"),
    (MaxPool2d(2), (4, 6, 3), r"MaxPool2d '': expected x \(N, H, W, C\), got \(4, 6, 3\)"),
    (AvgPool2d(3), (2, 5, 2, 1), "AvgPool2d '': expected images in which at least one window fits"),
    (AvgPool2d(2), (4, 6), r"AvgPool2d '': expected x \(N, H, W, C\)"),
    (GlobalAvgPool(), (4, 6), r"GlobalAvgPool '': expected x \(N, H, W, C\)"),
])
def test_inputs_in_words(layer, shape, words):
    layer.build(REFERENCE)
    with pytest.raises(NnliteError, match=words):
        layer.forward(np.zeros(shape, "float32"))
