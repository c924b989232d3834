"""The fast ops against their specification, nnlite.ops.reference: same signatures, same numbers."""

import ast
import inspect
import math
import zlib
from pathlib import Path

import numba
import numpy as np
import pytest
from fenced_memory import fenced

import nnlite.ops.cpu as cpu
from nnlite import layers as nl
from nnlite import losses
from nnlite.errors import NnliteError
from nnlite.ops import get_ops
from nnlite.ops.cpu import mathfun
from nnlite.ops.reference import ACTIVATIONS, ReferenceOps
from nnlite.optim import Adam
from nnlite.rng import Key

REFERENCE = get_ops("reference")
CLOSE = {"float32": 3e-6, "float64": 1e-12}   # times the largest number of the result
PIECES = 5                                    # more than most of the small cases have rows: some pieces are empty

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(params=["cpu in one piece", "cpu in many pieces", pytest.param("cuda", marks=pytest.mark.gpu)])
def fast(request, monkeypatch):
    """Fast ops; on the CPU with the work cut into one piece, or into several whatever its size."""
    try:
        ops = get_ops(request.param.partition(" ")[0])
    except NnliteError as error:
        pytest.skip(str(error))
    if ops.name == "cpu":
        monkeypatch.setattr(ops, "threads", PIECES if "many" in request.param else 1)
        monkeypatch.setattr(cpu, "GRAIN", 1)
        with fenced(ops):
            yield ops
    else:
        yield ops


@pytest.fixture(params=["own", "BLAS"])
def products(request, monkeypatch):
    """Which products the linear layers on the CPU are made of, whatever suits this machine best."""
    monkeypatch.setattr(cpu, "WHOLE", request.param == "own")


with_both_products = pytest.mark.usefixtures("products")


class Draws:
    """Arrays of one ops, the same values for each ops; check() says that none of them was written."""

    def __init__(self, ops, dtype):
        self.ops, self.dtype, self._drawn = ops, dtype, []

    def __call__(self, name, *shape, scale=1):
        return self.give(scale * np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape))

    def give(self, values, dtype=None):
        array = self.ops.asarray(np.array(values), dtype or self.dtype)
        self._drawn.append((array, np.array(self.ops.to_host(array))))
        return array

    def turned(self, name, *shape):
        """The same values as draws(name, *shape), not in C order."""
        return self(name, *shape).swapaxes(-1, -2).copy().swapaxes(-1, -2)

    def every_other(self, name, rows, columns):
        return self(name, 2 * rows, 2 * columns)[::2, 1::2]

    def check(self):
        for array, values in self._drawn:
            np.testing.assert_array_equal(self.ops.to_host(array), values)


def host(ops, result):
    return None if result is None else np.array(ops.to_host(result) if hasattr(result, "shape") else result)


def agree(work, fast, dtype, close=None, floor=0):
    """work(ops, draws) -> results; the same on the fast ops as on the reference, and no drawn array written.

    close: times the largest number of a result, or floor, where numbers of that size went into the result.
    """
    results = []
    for ops in (REFERENCE, fast):
        draws = Draws(ops, dtype)
        results.append([host(ops, result) for result in work(ops, draws)])
        draws.check()
    assert len(results[0]) == len(results[1])
    close = close or CLOSE[dtype]
    for number, (wanted, got) in enumerate(zip(*results)):
        assert (wanted is None) == (got is None), number
        if wanted is not None:
            assert got.shape == wanted.shape and got.dtype == wanted.dtype, number
            scale = np.abs(wanted).max(initial=floor)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=close * scale, err_msg=f"result {number}")


def key(ops, stream=7, step=3, seed=0x123456789ABCDEF):
    return Key(seed, stream, ops.scalar(step, "int64"))


# -- signatures -------------------------------------------------------------------------------------------------------

def parameters(function):
    """(name, default) of all parameters but self."""
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()][1:]


def test_cpu_overrides_have_the_signature_of_the_reference():
    overridden = [name for name in vars(cpu.CpuOps) if name in vars(ReferenceOps) and callable(vars(cpu.CpuOps)[name])]
    assert len(overridden) > 15
    for name in overridden:
        assert parameters(vars(cpu.CpuOps)[name]) == parameters(vars(ReferenceOps)[name]), name


def test_cuda_overrides_have_the_signature_of_the_reference():
    tree = ast.parse((Path(cpu.__file__).parents[1] / "cuda" / "__init__.py").read_text())
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CudaOps").body
    methods = {node.name: node.args for node in body if isinstance(node, ast.FunctionDef)}
    overridden = [name for name in methods if name in vars(ReferenceOps)]
    assert len(overridden) > 15
    for name in overridden:
        arguments = methods[name]
        assert not arguments.kwonlyargs
        wanted = parameters(vars(ReferenceOps)[name])
        assert [a.arg for a in arguments.args[1:]] == [parameter for parameter, _ in wanted], name
        assert [ast.literal_eval(default) for default in arguments.defaults] == [
            default for _, default in wanted if default is not inspect.Parameter.empty], name


def test_every_public_method_of_fast_ops_is_specified(fast):
    extra = {name for name in dir(fast) if not name.startswith("_")} - set(dir(ReferenceOps))
    assert extra <= {"threads", "set_threads", "launch", "recording", "prepare", "prepared"}


# -- arrays -----------------------------------------------------------------------------------------------------------

@both_dtypes
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (2, 3, 5), (0, 4)])
def test_element_by_element(fast, dtype, shape):
    def work(ops, draws):
        a, b = draws("a", *shape), draws("b", *shape)
        return ops.add(a, b), ops.multiply(a, b), ops.zeros(shape, dtype), ops.sum_of_squares(a)
    agree(work, fast, dtype)


@both_dtypes
def test_element_by_element_not_contiguous(fast, dtype):
    def work(ops, draws):
        a, b = draws.turned("a", 9, 4), draws.every_other("b", 9, 4)
        return ops.add(a, b), ops.multiply(a, b), ops.sum_of_squares(b), ops.contiguous(b), ops.add(a[0], b[0])
    agree(work, fast, dtype)


@both_dtypes
def test_rows_and_columns(fast, dtype):
    def work(ops, draws):
        x, rows = draws("x", 6, 5), draws.give([3, 0, 0, 5, 1, 2, 5], "int32")
        cube = draws("cube", 6, 2, 3)
        parts = [draws("p", 2, 3), draws("q", 2, 1), draws("r", 2, 4)]
        return (ops.take_rows(x, rows), ops.take_rows(cube, rows), ops.take_rows(draws.turned("t", 6, 5), rows),
                ops.concat(parts, 1), ops.concat(parts, -1), ops.concat([cube, draws("more", 1, 2, 3)], 0))
    agree(work, fast, dtype)


@both_dtypes
def test_no_rows_may_be_taken(fast, dtype):
    agree(lambda ops, draws: [ops.take_rows(draws("x", 6, 5), draws.give([], "int32"))], fast, dtype)


def test_sum_of_squares_is_summed_in_float64(fast):
    """A million times 0.1^2: float32 would show."""
    x = fast.asarray(np.full(1_000_000, 0.1, "float32"))
    assert float(fast.sum_of_squares(x)) == pytest.approx(1_000_000 * float(np.float32(0.1)) ** 2, rel=1e-12)


def test_scalars_copies_and_finiteness(fast):
    scalar = fast.scalar(2, "float64")
    fast.set_scalar(scalar, 5)
    assert scalar.shape == () and float(scalar) == 5
    target = fast.zeros((2, 3), "float32")
    fast.copy_into(target, [[1, 2, 3], [4, 5, 6]])
    assert fast.to_host(target).tolist() == [[1, 2, 3], [4, 5, 6]] and target.dtype == "float32"
    assert fast.all_finite(target)
    for bad in (math.nan, math.inf, -math.inf):
        target[1, 2] = bad
        assert not fast.all_finite(target)


# -- matrix products --------------------------------------------------------------------------------------------------

SIZES = [(1, 1, 1), (1, 7, 5), (3, 16, 1), (2, 1, 9), (17, 33, 9), (65, 130, 67), (11, 21, 131), (16, 9, 600)]
each_size = pytest.mark.parametrize("N, D, K", SIZES)


def gradients(ops, draws, D, K, bias_rows=None):
    """dW and db that hold something, for accumulate; not among the inputs that must stay as they are."""
    dW = ops.zeros((D, K), draws.dtype) + draws("dW", D, K)
    shape = (K,) if bias_rows is None else (bias_rows, K)
    return dW, ops.zeros(shape, draws.dtype) + draws("db", *shape)


@with_both_products
@both_dtypes
@each_size
def test_linear(fast, dtype, N, D, K):
    def work(ops, draws):
        x, W, b = draws("x", N, D), draws("W", D, K), draws("b", K)
        return ops.linear(x, W, b), ops.linear(x, W, None), ops.linear(x.reshape(N, 1, D), W, b)
    agree(work, fast, dtype)


@with_both_products
@both_dtypes
@pytest.mark.parametrize("N", [17, 197, 224])
def test_linear_of_few_rows_and_a_large_weight(fast, dtype, N, monkeypatch):
    monkeypatch.setattr(cpu, "LARGE_WEIGHT", 1)

    def work(ops, draws):
        results = []
        for D, K in ((21, 9), (40, 1300)):    # threads share the rows; the outputs
            x, W, b = draws("x", N, D), draws("W", D, K), draws("b", K)
            results += [ops.linear(x, W, b), *ops.dense(x, W, b, "gelu", 1.0, key(ops), True)]
        return results
    agree(work, fast, dtype, floor=1, close=2e-5 if dtype == "float32" else None)


@with_both_products
@both_dtypes
@each_size
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear_backward(fast, dtype, N, D, K, accumulate):
    def work(ops, draws):
        x, W, dy = draws("x", N, D), draws("W", D, K), draws("dy", N, K)
        results = []
        for bias in (True, False):
            for need_dx in (True, False):
                dW, db = gradients(ops, draws, D, K)
                dx = ops.linear_backward(dy, x, W, dW, db if bias else None, accumulate, need_dx)
                results += [dx, dW, db]
        return results
    agree(work, fast, dtype)


@with_both_products
@both_dtypes
def test_linear_where_arrays_are_not_contiguous_and_have_more_axes(fast, dtype):
    def work(ops, draws):
        W, b = draws("W", 6, 5), draws("b", 5)
        results = []
        for x, dy in ((draws.turned("x", 7, 6), draws.every_other("dy", 7, 5)),
                      (draws.turned("x3", 2, 4, 6), draws.turned("dy3", 2, 4, 5)),
                      (draws("row", 1, 12)[:, ::2], draws("dy row", 1, 5))):
            dW, db = gradients(ops, draws, 6, 5)
            results += [ops.linear(x, W, b), ops.linear_backward(dy, x, W, dW, db, True, True), dW, db]
        return results
    agree(work, fast, dtype)


@both_dtypes
def test_gradients_that_are_written_may_have_held_anything(fast, dtype):
    """Without accumulate NaN in dW and db must not come through."""
    def work(ops, draws):
        x, W, dy, slope = draws("x", 4, 3), draws("W", 3, 2), draws("dy", 4, 2), draws("slope", 4, 2)
        results = []
        for groups in (None, 2):
            dW, db = (gradient * math.nan for gradient in gradients(ops, draws, 3, 2, groups))
            ops.dense_backward(dy, ops.copy(slope), x, W, dW, db, False, True)
            results += [dW, db]
        ops.linear_backward(dy, x, W, dW, db[0], False, True)
        return [*results, dW, db[0]]
    agree(work, fast, dtype)


@with_both_products
@both_dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense(fast, dtype, activation):
    def work(ops, draws):
        results = []
        for N, D, K in SIZES:
            # Sums of about 1 go into the activation: one of 30 near 0 would have the rounding errors of 30.
            x, W, b = draws("x", N, D), draws("W", D, K, scale=1 / math.sqrt(D or 1)), draws("b", K)
            for keep_prob in (1.0, 0.7):
                for train in (True, False):
                    results += ops.dense(x, W, b, activation, keep_prob, key(ops), train)
        return results
    agree(work, fast, dtype, floor=1)


@with_both_products
@both_dtypes
@pytest.mark.parametrize("G, each", [(1, 5), (5, 1), (4, 3), (7, 2), (3, 40)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_dense_with_a_bias_for_each_group_of_rows(fast, dtype, G, each, accumulate):
    N, D, K = G * each, 6, 11

    def work(ops, draws):
        x, W, b, dy = draws("x", N, D), draws("W", D, K), draws("b", G, K), draws("dy", N, K)
        y, slope = ops.dense(x, W, b, "elu", 0.8, key(ops), True)
        evaluated, none = ops.dense(x, W, b, "elu", 0.8, key(ops), False)
        dW, db = gradients(ops, draws, D, K, G)
        dx = ops.dense_backward(dy, ops.copy(slope), x, W, dW, db, accumulate, True)   # slope is used up
        return y, slope, evaluated, none, dx, dW, db
    agree(work, fast, dtype)


@with_both_products
@both_dtypes
@each_size
@pytest.mark.parametrize("accumulate", [False, True])
def test_dense_backward(fast, dtype, N, D, K, accumulate):
    def work(ops, draws):
        x, W, dy, slope = draws("x", N, D), draws("W", D, K), draws("dy", N, K), draws("slope", N, K)
        results = []
        for need_dx in (True, False):
            dW, db = gradients(ops, draws, D, K)
            results += [ops.dense_backward(dy, ops.copy(slope), x, W, dW, db, accumulate, need_dx), dW, db]
        dW, db = gradients(ops, draws, D, K)
        dx = ops.dense_backward(draws.turned("dy", N, K), ops.copy(slope), draws.turned("x", N, D), W, dW, db,
                                accumulate, True)
        return [*results, dx, dW, db]
    agree(work, fast, dtype)


# -- random numbers: equal to the last bit ----------------------------------------------------------------------------

@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 4), (3, 5), (10, 8), (7, 30), (200, 41)])
def test_words_are_the_same(fast, rows, columns):
    for step in (0, 5, 2 ** 33 + 7, 2 ** 62 + 1):
        words = [ops.to_host(ops.random_words(rows, columns, key(ops, step=step))) for ops in (REFERENCE, fast)]
        np.testing.assert_array_equal(*words)
        assert words[1].dtype == np.uint32


@both_dtypes
@pytest.mark.parametrize("keep_prob", [0.1, 0.9])
def test_dropout_masks_are_the_same(fast, dtype, keep_prob):
    """From each way that drops: the mask alone, dropout of an array, and the slope of a fused layer that is 1."""
    wanted = REFERENCE.dropout_mask((37, 29), keep_prob, key(REFERENCE), dtype)
    assert set(np.unique(wanted)) == {0, np.dtype(dtype).type(1 / keep_prob)}
    x = fast.asarray(np.random.default_rng(1).normal(size=(37, 29)), dtype)
    identity, zeros = fast.asarray(np.eye(29), dtype), fast.zeros((29,), dtype)
    y, mask = fast.dropout(x, keep_prob, key(fast))
    _, slope = fast.dense(x, identity, zeros, "identity", keep_prob, key(fast), True)
    for got in (fast.dropout_mask((37, 29), keep_prob, key(fast), dtype), mask, slope):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(fast.to_host(got), wanted)
    np.testing.assert_array_equal(fast.to_host(y), fast.to_host(x) * wanted)


@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 5), (40, 30)])
def test_normals_are_the_same(fast, dtype, shape):
    agree(lambda ops, draws: [ops.normal(shape, key(ops), dtype)], fast, dtype)


# -- Gaussian latents and losses --------------------------------------------------------------------------------------

@both_dtypes
@pytest.mark.parametrize("N, K, L", [(1, 1, 1), (1, 30, 10), (5, 3, 2), (33, 30, 3), (7, 5, 1)])
def test_gaussian_sample(fast, dtype, N, K, L):
    def work(ops, draws):
        h, z, dz = draws("h", N, 2 * K), draws("z", N * L, K), draws("dz", N * L, K)
        return (ops.gaussian_sample(h, L, key(ops)), ops.gaussian_sample_backward(dz, h, z),
                ops.gaussian_sample(draws.turned("h", N, 2 * K), L, key(ops)),
                ops.gaussian_sample_backward(draws.turned("dz", N * L, K), draws.turned("h", N, 2 * K),
                                             draws.turned("z", N * L, K)))
    agree(work, fast, dtype)


@both_dtypes
@pytest.mark.parametrize("N, D, L", [(1, 1, 1), (1, 249, 3), (5, 3, 2), (34, 249, 3), (7, 5, 1)])
def test_squared_error_and_kl(fast, dtype, N, D, L):
    def work(ops, draws):
        scale = ops.scalar(0.37, "float64")   # a weight that changes from step to step
        f, x, h = draws("f", N * L, D), draws("x", N, D), draws("h", N, 2 * D)
        return (*ops.squared_error(f, x, 0.37), *ops.squared_error(f, x, scale), *ops.gaussian_kl(h, 0.37),
                *ops.gaussian_kl(h, scale), *ops.gaussian_kl(draws.turned("h", N, 2 * D), 2.0),
                *ops.squared_error(draws.turned("f", N * L, D), draws.every_other("t", N, D), 2.0))
    agree(lambda ops, draws: map(float_or_array, work(ops, draws)), fast, dtype)


def float_or_array(value):
    return np.float64(value) if np.ndim(value) == 0 else value


@both_dtypes
@pytest.mark.parametrize("V, M, K", [(1, 1, 1), (1, 10, 30), (10, 10, 30), (3, 2, 5)])
def test_triplet_softplus(fast, dtype, V, M, K):
    def work(ops, draws):
        z, weight = draws("z", 3 * V * M, K), draws.give(1 + np.arange(V) % 5)
        far = draws.give(100 * np.random.default_rng(3).normal(size=(3 * V * M, K)))
        return map(float_or_array, (*ops.triplet_softplus(z, weight, 0.2),
                                    *ops.triplet_softplus(draws.turned("z", 3 * V * M, K), weight, 3.0),
                                    *ops.triplet_softplus(far, weight, ops.scalar(0.2, "float64"))))
    agree(work, fast, dtype, close=max(CLOSE[dtype], 1e-5 if dtype == "float32" else 0))


@both_dtypes
@pytest.mark.parametrize("same", ["reference and plus", "reference and minus", "all"])
def test_triplets_where_latents_coincide(fast, dtype, same):
    r, p, n = np.random.default_rng(4).normal(size=(3, 2, 3))
    z = np.stack([r, p if same == "reference and minus" else r, n if same == "reference and plus" else r])
    for ops in (REFERENCE, fast):
        value, dz = ops.triplet_softplus(ops.asarray(z.reshape(6, 3), dtype), ops.asarray([1, 3], dtype), 1.0)
        dr, dp, dn = ops.to_host(dz).reshape(3, 2, 3)
        assert np.isfinite(float(value)) and np.isfinite(ops.to_host(dz)).all()
        assert (dp == 0).all() == (same != "reference and minus")
        assert (dn == 0).all() == (same != "reference and plus")
        np.testing.assert_allclose(dr, -dp - dn, rtol=1e-5)
        if same == "all":
            assert float(value) == pytest.approx(4 * math.log(2))


@both_dtypes
@pytest.mark.filterwarnings("ignore:overflow")   # of the reference: 1 / (1 + e^large) is 0 as it should be
def test_triplets_do_not_overflow(fast, dtype):
    """ln(1 + e^gap) is the gap where it is large and 0 where it is very negative."""
    z = np.array([[0.], [1e6], [0.], [0.], [0.], [1e6]])[[0, 3, 1, 4, 2, 5]]   # gaps 1e6 and -1e6
    for ops in (REFERENCE, fast):
        value, dz = ops.triplet_softplus(ops.asarray(z, dtype), ops.asarray([1, 1], dtype), 1.0)
        assert float(value) == pytest.approx(1e6)
        assert np.isfinite(ops.to_host(dz)).all() and np.abs(ops.to_host(dz)).max() == pytest.approx(1)


# -- images and labels ------------------------------------------------------------------------------------------------

CONV_CLOSE = {"float32": 2e-5, "float64": 1e-12}   # float32: the contract of test_conv.py


@both_dtypes
@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("C", [1, 3])
def test_image_batch(fast, dtype, kind, C):
    """Mirrored where told, rows in any order and more than once; the kept data stays as it is."""
    def work(ops, draws):
        values = np.random.default_rng(C).integers(0, 256, (7, 5, 6, C))
        images = draws.give(values, "uint8") if kind == "uint8" else draws.give(values / 255)
        rows, flip = draws.give([3, 0, 0, 6, 1], "int32"), draws.give([0, 1, 0, 1, 255], "uint8")
        shift, scale = draws.give(np.arange(C) + 0.3), draws.give(1 / (1.7 + np.arange(C)))
        moves = draws.give(np.random.default_rng(C).integers(-6, 7, (5, 2)), "int32")
        still = draws.give([[0, 0]] * 5, "int32")
        return (ops.image_batch(images, rows, flip, moves, shift, scale, dtype),
                ops.image_batch(images, rows, flip, still, shift, scale, dtype),
                ops.image_batch(images, rows[::-1], draws.give([0] * 5, "uint8"), moves, shift, scale, dtype),
                ops.image_batch(images[::2], draws.give([3], "int32"), draws.give([1], "uint8"), still[:1], shift,
                                scale, dtype))
    agree(work, fast, dtype)


@both_dtypes
def test_image_batch_number_by_number(fast, dtype):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 2)).astype("uint8")
    rows, flip, shift, scale = [2, 0, 2], [0, 1, 1], [100.0, 120], [0.02, 0.01]
    moves = [[0, 0], [1, -2], [-4, 3]]
    wanted = np.empty((3, 3, 5, 2))
    for i, h, w, c in np.ndindex(wanted.shape):
        row, column = min(max(h - moves[i][0], 0), 2), min(max(w - moves[i][1], 0), 4)
        column = 4 - column if flip[i] else column
        wanted[i, h, w, c] = (float(images[rows[i], row, column, c]) - shift[c]) * scale[c]
    for ops in (REFERENCE, fast):
        got = ops.image_batch(ops.asarray(images), ops.asarray(rows, "int32"), ops.asarray(flip, "uint8"),
                              ops.asarray(moves, "int32"), ops.asarray(shift, dtype), ops.asarray(scale, dtype), dtype)
        assert got.dtype == dtype
        np.testing.assert_allclose(ops.to_host(got), wanted, rtol=0, atol=4 * CLOSE[dtype])


@both_dtypes
@pytest.mark.parametrize("C", [1, 3])
def test_warp_batch(fast, dtype, C):
    """Turned, straight, far outside; larger and smaller than the kept images; rows and maps not in C order."""
    def work(ops, draws):
        images = draws.give(np.random.default_rng(C).integers(0, 256, (7, 9, 12, C)), "uint8")
        rows = draws.give([3, 0, 0, 6, 1], "int32")
        maps = draws.give(np.random.default_rng(C).normal([0.9, 0.2, 1], 0.5, (5, 2, 3)), "float32")
        straight = draws.give([[[0.7, 0, -0.4], [0, 1.3, 0.2]]] * 5, "float32")
        tone = draws.give([[1, 0], [1.3, 0.1], [0.5, -0.2], [0, 0], [2, 0]], "float32")
        shift, scale = draws.give(100 + np.arange(C)), draws.give(1 / (50 + np.arange(C)))
        same = draws.give([[1, 0]] * 5, "float32")
        return (ops.warp_batch(images, rows, maps, tone, shift, scale, (9, 12), dtype),
                ops.warp_batch(images, rows, straight, tone, shift, scale, (14, 7), dtype),
                *(ops.warp_batch(images, rows[1:4], some[1:4], tone[1:4], shift, scale, (9, 12), dtype)
                  for some in (maps, straight)),          # pieces begin within an image
                ops.warp_batch(images, rows[::-1], maps[::-1], same, shift, scale, (5, 20), dtype),
                ops.warp_batch(images[::2], rows[2:3], straight[:1], tone[1:2], shift, scale, (1, 1), dtype))
    agree(work, fast, dtype, {"float32": 2e-5, "float64": 1e-12}[dtype])   # a place of 20 pixels is exact to 1e-6


@both_dtypes
def test_hits_count_the_first_of_the_largest(fast, dtype):
    """Rows 0 and 1 tie: only the first of the largest counts. Row 4: the largest is negative."""
    logits = [[1, 3, 3], [1, 3, 3], [2, 2, 2], [0, 1, 2], [-3, -1, -2], [5, 4, 5]]
    for labels, wanted in (([1, 2, 0, 2, 1, 0], 5), ([2, 2, 1, 0, 0, 2], 0), ([1, 1, 0, 2, 1, 0], 6)):
        for ops in (REFERENCE, fast):
            got = ops.hits(ops.asarray(logits, dtype), ops.asarray(labels, "int32"))
            assert got.shape == () and got.dtype == "int64" and int(got) == wanted, ops.name


@both_dtypes
@pytest.mark.parametrize("N, K", [(1, 1), (1, 7), (5, 1), (70, 17), (1030, 10), (3, 1000)])
def test_hits(fast, dtype, N, K):
    def work(ops, draws):
        logits, labels = draws("z", N, K), draws.give(np.arange(N) % K, "int32")
        rounded = draws.give(np.round(np.random.default_rng(N).normal(size=(N, K))))
        return ops.hits(logits, labels), ops.hits(rounded, labels), ops.hits(draws.turned("z", N, K), labels)
    agree(work, fast, dtype)


@both_dtypes
@pytest.mark.parametrize("N, K", [(1, 1), (1, 7), (5, 1), (70, 17), (1030, 10), (3, 1000)])
def test_softmax_cross_entropy(fast, dtype, N, K):
    def work(ops, draws):
        logits, labels = draws("z", N, K), draws.give(np.arange(N) % K, "int32")
        weight = draws.give(1 + np.arange(K) % 3)
        soft = draws.give(np.full((N, K), 1 / K))
        results = []
        for z in (logits, draws.turned("z", N, K), draws.give(300 * np.random.default_rng(1).normal(size=(N, K)))):
            results += ops.softmax_cross_entropy(z, labels, None, 1.0, None, 0.0)
            results += ops.softmax_cross_entropy(z, labels, None, 1.0, weight, 0.1)
            results += ops.softmax_cross_entropy(z, labels, soft, 0.3, weight, 0.2)
        return map(float_or_array, results)
    agree(work, fast, dtype, floor=1 / N)


@both_dtypes
@pytest.mark.parametrize("H, W, C, K", [(5, 7, 3, 4), (12, 11, 16, 17), (1, 1, 5, 2)])
def test_convolutions(fast, dtype, H, W, C, K):
    """Written and added gradients, with and without bias, ReLU and dx, on arrays in C order and not."""
    def work(ops, draws):
        x, W4, b = draws("x", 2, H, W, C), draws("W", 3, 3, C, K), draws("b", K)
        dy, results = draws("dy", 2, H, W, K), []
        one, turned = (1, 1), (draws.turned("x", 2, H, W, C), draws.turned("dy", 2, H, W, K))
        for bias, relu, accumulate, need_dx in ((True, True, False, True), (False, False, True, True),
                                                (True, False, True, False), (False, True, False, False)):
            for a, d in ((x, dy), turned):
                y = ops.conv2d(a, W4, b if bias else None, one, one, one, 1, relu)
                dW, db = ops.zeros(W4.shape, dtype) + draws("dW", *W4.shape), ops.zeros((K,), dtype) + draws("db", K)
                gates = draws.give(np.maximum(np.random.default_rng(2).normal(size=dy.shape), 0))
                dx = ops.conv2d_backward(d, gates if relu else None, a, W4, dW, db if bias else None, one, one, one, 1,
                                         accumulate, need_dx)
                results += [y, dx, dW, db]
        return results
    agree(work, fast, dtype, close=CONV_CLOSE[dtype])


@both_dtypes
def test_gradients_of_images_that_are_written_may_have_held_anything(fast, dtype):
    """Without accumulate NaN in dW, db and dg must not come through."""
    def work(ops, draws):
        x, dy, C = draws("x", 2, 6, 5, 3), draws("dy", 2, 6, 5, 3), 3
        one, results = (1, 1), []
        for shape, backward in (
                ((3, 3, C, C), lambda W, dW, db: ops.conv2d_backward(dy, None, x, W, dW, db, one, one, one, 1, False,
                                                                     True)),
                ((3, 3, C), lambda W, dW, db: ops.depthwise_conv2d_backward(dy, x, W, dW, db, one, one, one, False,
                                                                            True))):
            dW, db = ops.zeros(shape, dtype) * math.nan, ops.zeros((C,), dtype) * math.nan
            results += [backward(draws("W", *shape), dW, db), dW, db]
        g, b, mean, inv_std = (draws(name, C) for name in ("g", "b", "mean", "inv_std"))
        dg, db = ops.zeros((C,), dtype) * math.nan, ops.zeros((C,), dtype) * math.nan
        results += [ops.batch_norm_backward(dy, x, mean, inv_std, g, b, dg, db, "silu", False), dg, db]
        dg, db = ops.zeros((C,), dtype) * math.nan, ops.zeros((C,), dtype) * math.nan
        place = draws.give(np.arange(2 * 3 * 2 * C).reshape(2, 3, 2, C) % 5, "uint8")
        small = draws("small", 2, 3, 2, C)
        return [*results, ops.norm_pool_backward(small, place, x, mean, inv_std, g, dg, db, False), dg, db]
    agree(work, fast, dtype, close=CONV_CLOSE[dtype])


@both_dtypes
def test_max_pool_with_nan(fast, dtype):
    """The first NaN of a window is its largest."""
    def work(ops, draws):
        values = np.random.default_rng(5).normal(size=(2, 7, 6, 17))
        values[np.random.default_rng(6).random(values.shape) < 0.1] = math.nan
        x, results = ops.asarray(values, dtype), []
        for kernel, stride, padding in (((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 2), (0, 1))):
            y, place = ops.max_pool(x, kernel, stride, padding, True)
            assert np.isnan(ops.to_host(y)).any()
            results += [ops.asarray(np.nan_to_num(ops.to_host(y), nan=99)), place]
        return results
    agree(work, fast, dtype)


# -- residuals, scaled samples and channels, tokens ------------------------------------------------------------------

@both_dtypes
@pytest.mark.parametrize("N, H, W, C", [(1, 1, 1, 1), (2, 5, 7, 3), (3, 12, 11, 17), (7, 2, 3, 600)])
def test_residuals_and_scales(fast, dtype, N, H, W, C):
    def work(ops, draws):
        shape, results = (N, H, W, C), []
        m, s = draws("m", N), draws("s", N, C)
        for x, dy in ((draws("x", *shape), draws("dy", *shape)), (draws.turned("x", *shape), draws("dy", *shape))):
            results += [ops.add_relu(x, dy), ops.relu_backward(dy, x), ops.relu_backward(dy, ops.add_relu(x, dy)),
                        ops.scale_samples(x, m), ops.scale_samples(x.reshape(N, H * W, C), m),
                        ops.scale_channels(x, s), *ops.scale_channels_backward(dy, x, s)]
        return results
    agree(work, fast, dtype)


def test_add_relu_keeps_nan(fast):
    got = fast.to_host(fast.add_relu(fast.asarray([math.nan, 1.0, -3.0]), fast.asarray([1.0, 1.0, 1.0])))
    np.testing.assert_array_equal(got, [math.nan, 2, 0])


@both_dtypes
@pytest.mark.parametrize("N, H, W, C, size", [(1, 1, 1, 1, 1), (3, 4, 6, 3, 2), (2, 15, 10, 17, 5), (2, 8, 8, 1, 8)])
def test_patches(fast, dtype, N, H, W, C, size):
    def work(ops, draws):
        x, dy = draws("x", N, H, W, C), draws("dy", N, H * W // size ** 2, size ** 2 * C)
        return (ops.patches(x, size), ops.patches_backward(dy, x.shape, size), ops.patches(x[:, ::-1], size),
                ops.patches_backward(dy[::-1], x.shape, size))
    agree(work, fast, dtype)


@both_dtypes
@pytest.mark.parametrize("N, T, D", [(1, 1, 1), (3, 4, 5), (9, 7, 33)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_tokens(fast, dtype, N, T, D, accumulate):
    """Gradients that are written may have held NaN."""
    def work(ops, draws):
        x, token, P = draws("x", N, T, D), draws("c", D), draws("P", T, D)
        old = 1 if accumulate else math.nan
        dtoken, dP = old * (ops.zeros((D,), dtype) + draws("dc", D)), old * (ops.zeros((T, D), dtype) + P)
        ops.sum_samples(x, dP, accumulate)
        dx = ops.prepend_token_backward(draws("dy", N, T + 1, D), dtoken, accumulate)
        return (ops.prepend_token(x, token), dx, dtoken, dP, ops.take_token(x, T - 1), ops.take_token(x, 0),
                ops.take_token_backward(draws("dz", N, D), T, T // 2), ops.add_to_samples(x, P),
                ops.add_to_samples(draws.turned("x", N, T, D), P), ops.take_token(draws.turned("x", N, T, D), 0))
    agree(work, fast, dtype)


@both_dtypes
@pytest.mark.parametrize("R, D", [(1, 1), (3, 5), (2, 768), (41, 130)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_layer_norm(fast, dtype, R, D, accumulate):
    def work(ops, draws):
        x, dy, g, b = 3 * draws("x", R, D) + 1, draws("dy", R, D), draws("g", D), draws("b", D)
        y, mean, inv_std = ops.layer_norm(x, g, b, 0.01)
        old = 1 if accumulate else math.nan
        dg, db = old * (ops.zeros((D,), dtype) + g), old * (ops.zeros((D,), dtype) + b)
        dx = ops.layer_norm_backward(dy, x, mean, inv_std, g, dg, db, accumulate)
        y3, _, _ = ops.layer_norm(x.reshape(R, 1, D), g, b, 0.01)
        return y, mean, inv_std, dx, dg, db, y3
    agree(work, fast, dtype, close=5e-6 if dtype == "float32" else None, floor=1)


@pytest.mark.parametrize("mean", [0, 1e4])
def test_layer_norm_far_from_zero(fast, mean):
    """The variance does not suffer from a mean that is ten thousand times as large."""
    x = (np.random.default_rng(8).normal(size=(5, 768)) + mean).astype("float32")
    _, _, inv_std = fast.layer_norm(fast.asarray(x), *(fast.asarray(np.ones(768, "float32")) for _ in range(2)), 1e-12)
    np.testing.assert_allclose(fast.to_host(inv_std), 1 / x.astype("float64").std(1), rtol=3e-7)


# -- activations ------------------------------------------------------------------------------------------------------

@both_dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(fast, dtype, activation):
    def work(ops, draws):
        inputs = [draws("x", *shape) for shape in ((1,), (3, 7), (2, 3, 5), (513,), (0, 3))]
        inputs += [draws.turned("x", 5, 6), draws.every_other("x", 5, 6)]
        results = []
        for x in inputs:
            results += *ops.activation(4 * x, activation, 0.3, True), *ops.activation(x, activation, 1.0, False)
        return results
    agree(work, fast, dtype, floor=1)


@both_dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_does_not_overflow(fast, dtype, activation):
    """Large |x|, where e^x does not fit any more: as the reference says, and finite."""
    large = np.array([50., 87, 88, 89, 100, 500, 800, 1e4])

    def work(ops, draws):
        return ops.activation(draws.give(np.concatenate([large, -large])), activation, 0.3, True)
    with np.errstate(over="raise", invalid="raise"):
        agree(work, fast, dtype)
    y, slope = work(fast, Draws(fast, dtype))
    assert np.isfinite(fast.to_host(y)).all() and np.isfinite(fast.to_host(slope)).all()


@both_dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_nan_and_alone(fast, dtype, activation):
    x = np.linspace(-2, 2, 37)
    x[[0, 8, 36]] = math.nan
    y, _ = fast.activation(fast.asarray(x, dtype), activation, 0.3, True)
    np.testing.assert_array_equal(np.isnan(fast.to_host(y)), np.isnan(x))


LIMITS = {"identity": (-math.inf, math.inf), "relu": (0, math.inf), "leaky_relu": (-math.inf, math.inf),
          "elu": (-0.3, math.inf), "sigmoid": (0, 1), "tanh": (-1, 1), "silu": (None, math.inf),
          "softplus": (0, math.inf), "gelu": (None, math.inf)}   # None: inf times 0


@both_dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_at_infinity(fast, dtype, activation):
    with np.errstate(invalid="ignore"):
        for ops in (REFERENCE, fast):
            y, _ = ops.activation(ops.asarray([-math.inf, math.inf], dtype), activation, 0.3, True)
            for got, wanted in zip(ops.to_host(y), LIMITS[activation]):
                assert wanted is None or got == pytest.approx(wanted, abs=1e-37), (ops.name, got)


# -- functions of the CPU kernels -------------------------------------------------------------------------------------

def compiled(function):
    @numba.njit(fastmath=mathfun.FAST, error_model="numpy")
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])
    return loop


@numba.njit(fastmath=mathfun.FAST, error_model="numpy")
def turn_loop(x, cos, sin):
    for i in range(x.size):
        cos[i], sin[i] = mathfun.cos_sin_turn(x[i])


RANGES = {"exp": (np.linspace(-86, 88, 20001),), "expm1": (np.linspace(-86, 88, 20001), np.geomspace(1e-30, 1, 5001),
                                                           -np.geomspace(1e-30, 1, 5001)),
          "log": (np.geomspace(2.0 ** -33, 1, 20001), np.linspace(0.4, 2.5, 5001), np.geomspace(1e-37, 1e38, 5001)),
          "log1p": (np.linspace(0, 1, 5001), np.geomspace(1e-37, 1, 5001))}


@pytest.mark.parametrize("name", RANGES)
def test_vector_functions(name):
    """float32: few units in the last place from the true value, where it has full precision; float64: math's own."""
    function, true = getattr(mathfun, name), np.vectorize(getattr(math, name), otypes=["float64"])
    loop = compiled(function)
    for x in RANGES[name]:
        x = x.astype("float32")
        got = np.empty_like(x)
        loop(x, got)
        wanted = true(x.astype("float64"))
        # The compiler may fold the two parts of ln 2 into one, which costs exp about a unit for each 25 of |x|.
        units = 3 if name.startswith("log") else 3 + np.abs(x) / 40
        error = np.abs(got - wanted) / np.spacing(np.abs(wanted).astype("float32"))
        worst = np.argmax(error / units)
        assert (error <= units).all(), (x[worst], got[worst], wanted[worst])
        double = np.empty(x.size)
        loop(x.astype("float64"), double)
        np.testing.assert_allclose(double, wanted, rtol=4e-16)
    assert function(0.5) == getattr(math, name)(0.5)


def test_cos_and_sin_of_a_turn():
    x = np.concatenate([np.linspace(0, 1, 40001), np.arange(9) / 8, np.geomspace(1e-10, 1, 1001)]).astype("float32")
    cos, sin = np.empty_like(x), np.empty_like(x)
    turn_loop(x, cos, sin)
    angle = 2 * np.pi * x.astype("float64")
    np.testing.assert_allclose(cos, np.cos(angle), atol=2e-7, rtol=0)
    np.testing.assert_allclose(sin, np.sin(angle), atol=2e-7, rtol=0)
    cos, sin = np.empty(x.size), np.empty(x.size)
    turn_loop(x.astype("float64"), cos, sin)
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-15, rtol=0)
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-15, rtol=0)


# -- optimisers -------------------------------------------------------------------------------------------------------

P = 101
ONE_RANGE = [(0, P, (0.01, 1.0))]
RANGE_SETS = {
    "one range": ONE_RANGE,
    "decay here and there": [(0, 1, (0.1, 1.0)), (1, 40, (0.0, 1.0)), (40, P, (0.2, 1.0))],
    "a frozen part": [(0, 33, (0.1, 1.0)), (33, 67, (0.1, 0.0)), (67, P, (0.0, 1.0))],
    "an empty range": [(0, 50, (0.1, 1.0)), (50, 50, (9.0, 9.0)), (50, P, (0.0, 1.0))],
    "as many ranges as numbers": [(i, i + 1, (0.01 * i, float(i % 2))) for i in range(P)],
}
UPDATES = {
    "sgd": lambda ops, p, g, m, v, t, r, lr: ops.sgd(p, g, None, r, lr, 0.5, 0.0, False),
    "sgd with momentum": lambda ops, p, g, m, v, t, r, lr: ops.sgd(p, g, m, r, lr, 0.5, 0.9, False),
    "nesterov": lambda ops, p, g, m, v, t, r, lr: ops.sgd(p, g, m, r, lr, 0.5, 0.9, True),
    "adagrad": lambda ops, p, g, m, v, t, r, lr: ops.adagrad(p, g, v, r, lr, 0.5, 1e-10),
    "rmsprop": lambda ops, p, g, m, v, t, r, lr: ops.rmsprop(p, g, v, r, lr, 0.5, 0.9, 1e-8),
    "adam": lambda ops, p, g, m, v, t, r, lr: ops.adam(p, g, m, v, r, lr, 0.5, 0.9, 0.999, 1e-8, t, False),
    "adamw": lambda ops, p, g, m, v, t, r, lr: ops.adam(p, g, m, v, r, lr, 0.5, 0.9, 0.999, 1e-8, t, True),
}


@both_dtypes
@pytest.mark.parametrize("update", UPDATES)
def test_optimiser(fast, dtype, update):
    def work(ops, draws):
        results = []
        for ranges in RANGE_SETS.values():
            p, m, v = (ops.zeros((P,), dtype) + draws(name, P) for name in "pmv")
            v *= v
            lr = ops.scalar(0.05, dtype)
            for t in (1, 2, 3):
                UPDATES[update](ops, p, draws(f"g{t}", P), m, v, ops.scalar(t, "int64"), ranges, lr)
            results += [p, m, v]
        return results
    agree(work, fast, dtype, close=10 * CLOSE[dtype])


@both_dtypes
@pytest.mark.parametrize("size", [1, 3, 4096, 8193])
def test_optimiser_sizes(fast, dtype, size):
    def work(ops, draws):
        p, m = ops.zeros((size,), dtype) + draws("p", size), ops.zeros((size,), dtype)
        v, ranges = ops.zeros((size,), dtype), [(0, size, (0.0, 1.0))]
        ops.adam(p, draws("g", size), m, v, ranges, ops.scalar(0.1, dtype), 1.0, 0.9, 0.999, 1e-8,
                 ops.scalar(1, "int64"), False)
        return p, m, v
    agree(work, fast, dtype)


# -- threads ----------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_results_of_a_row_do_not_depend_on_the_threads():
    """One thread or two: the same bits wherever nothing is summed across rows."""
    ops, results = get_ops("cpu"), []
    before = ops.threads
    try:
        for threads in (1, 2):
            ops.set_threads(threads)
            draws = Draws(ops, "float32")
            x, W, b = draws("x", 200, 60), draws("W", 60, 90), draws("b", 90)
            results.append([np.array(a) for a in (*ops.dense(x, W, b, "elu", 0.9, key(ops), True),
                                                  ops.normal((200, 90), key(ops), "float32"),
                                                  ops.gaussian_sample(draws("h", 200, 60), 3, key(ops)))])
    finally:
        ops.set_threads(before)
    for one, two in zip(*results):
        np.testing.assert_array_equal(one, two)


# -- a captured step of a net for images ------------------------------------------------------------------------------

class ImageStep:
    """A small classifier of images, and all that its step reads: buffers that are filled anew before each step."""

    def __init__(self, dtype):
        self.ops = get_ops("cpu")
        self.net = nl.Sequential(
            nl.Conv2d(3, 8, 3, padding=1), nl.NormPool(8), nl.Conv2d(8, 16, 3, relu=True), nl.MaxPool2d(2),
            nl.DepthwiseConv2d(16, 3, padding=1), nl.BatchNorm(16, activation="silu"), nl.Conv2d(16, 12, 1, stride=2),
            nl.Concat(nl.GlobalAvgPool(), nl.Flatten()), nl.Linear(12 + 48, 5)).build(self.ops, dtype=dtype, seed=4)
        self.optimiser = Adam(self.net.parameters, lr=0.01)
        self.images = np.random.default_rng(0).integers(0, 256, (30, 20, 18, 3)).astype("uint8")
        self.rows, self.flip, self.labels = np.zeros(7, "int32"), np.zeros(7, "uint8"), np.zeros(7, "int32")
        self.moves = np.zeros((7, 2), "int32")
        self.shift, self.scale = np.full(3, 127, dtype), np.full(3, 1 / 64, dtype)
        self.weight = np.linspace(0.5, 2, 5).astype(dtype)

    def fill(self, number):
        rng = np.random.default_rng(number)
        self.rows[...], self.flip[...], self.labels[...] = (rng.integers(0, n, 7) for n in (30, 2, 5))
        self.moves[...] = rng.integers(-3, 4, (7, 2))

    def __call__(self):
        ops, net = self.ops, self.net
        x = ops.image_batch(self.images, self.rows, self.flip, self.moves, self.shift, self.scale, net.dtype)
        net.zero_grad()
        logits = net.forward(x, train=True)
        loss, dlogits = losses.softmax_cross_entropy(ops, logits, self.labels, class_weight=self.weight, smoothing=0.1)
        hits = ops.hits(logits, self.labels)
        dx = net.backward(dlogits)
        self.optimiser.step()
        return loss, hits, logits, dx


@both_dtypes
@pytest.mark.parametrize("pieces", [1, PIECES])
def test_a_captured_step_of_a_net_for_images_is_the_step(dtype, pieces, monkeypatch):
    """To the bit, with other data in the same buffers each time, evaluation in between, and memory that others hold."""
    monkeypatch.setattr(get_ops("cpu"), "threads", pieces)
    monkeypatch.setattr(cpu, "GRAIN", 1)
    captured, plain = ImageStep(dtype), ImageStep(dtype)
    replay, held = captured.ops.capture(captured), []
    values = []
    for number in range(6):
        for step in (captured, plain):
            step.fill(number)
        got = [np.array(array) for array in replay()]
        wanted = plain()
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
        values.append(float(got[0]))
        np.testing.assert_array_equal(captured.net.parameters.values, plain.net.parameters.values)
        for a, b in zip(captured.net.state.values(), plain.net.state.values(), strict=True):
            np.testing.assert_array_equal(a, b)
        captured.net.forward(np.ones((2, 20, 18, 3), dtype))
        for shape in ((7, 20, 18, 8), (7, 8, 7, 16), (7, 4, 3, 16)):
            held.append(captured.ops.empty(shape, dtype))
            held[-1].fill(7)
    assert all((array == 7).all() for array in held)
    assert len(set(values)) == 6
