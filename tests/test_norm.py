"""Batch normalisation and its fusion with ReLU and max pooling, from the definition, number by number.

The gradient is not the formula of the layer but the chain rule through every pair of rows: with n_i = (x_i - m) / s,
dn_i / dx_j = (1 if i = j - 1/R - n_i n_j / R) / s.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite.ops.cpu as cpu
from nnlite.errors import NnliteError
from nnlite.layers import BatchNorm, MaxPool2d, NormPool, Sequential
from nnlite.ops import get_ops
from test_conv import FAST, give, strided

REFERENCE = get_ops("reference")
CLOSE = {"float32": 2e-5, "float64": 1e-10}   # times the largest number of the result

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def assert_close(got, wanted, dtype, what="", floor=1e-3):
    """floor: where numbers of that size went into the result, as g / s dh into dx, of which two rows leave little."""
    assert got.shape == np.shape(wanted) and got.dtype == dtype, what
    scale = np.abs(wanted).max(initial=floor)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE[dtype] * scale, err_msg=what)


def sigmoid(h):
    return 1 / (1 + math.exp(-h))


# name: f(h), f'(h)
FUNCTIONS = {"identity": (lambda h: h, lambda h: 1.0), "relu": (lambda h: max(h, 0.0), lambda h: float(h > 0)),
             "silu": (lambda h: h * sigmoid(h), lambda h: sigmoid(h) * (1 + h * (1 - sigmoid(h)))),
             "tanh": (math.tanh, lambda h: 1 - math.tanh(h) ** 2)}


# -- the definition ---------------------------------------------------------------------------------------------------

def statistics(column):
    """Mean and variance (divided by R) of a list of numbers."""
    mean = math.fsum(column) / len(column)
    return mean, math.fsum((value - mean) ** 2 for value in column) / len(column)


def columns(x):
    """The R numbers of each channel."""
    return [[float(value) for value in column] for column in x.reshape(-1, x.shape[-1]).T]


def naive_norm(x, mean, var, eps):
    """n = (x - mean) / sqrt(var + eps), and sqrt(var + eps)."""
    n = np.zeros(x.shape)
    deviation = [math.sqrt(float(v) + eps) for v in var]
    for at in np.ndindex(x.shape):
        n[at] = (float(x[at]) - float(mean[at[-1]])) / deviation[at[-1]]
    return n, deviation


def naive_affine(n, g, b):
    h = np.zeros(n.shape)
    for at in np.ndindex(n.shape):
        h[at] = float(g[at[-1]]) * n[at] + float(b[at[-1]])
    return h


def naive_running(running_mean, running_var, x, momentum):
    """What they are after a batch: PyTorch's rule, with the variance divided by R - 1."""
    mean, var = [], []
    for channel, column in enumerate(columns(x)):
        m, v = statistics(column)
        unbiased = v * len(column) / max(1, len(column) - 1)
        mean.append((1 - momentum) * float(running_mean[channel]) + momentum * m)
        var.append((1 - momentum) * float(running_var[channel]) + momentum * unbiased)
    return np.array(mean), np.array(var)


def naive_backward(dh, n, deviation, g):
    """dx, dg, db through every pair of rows."""
    rows, slopes = n.reshape(-1, n.shape[-1]), dh.reshape(-1, n.shape[-1])
    dx, dg, db = np.zeros(rows.shape), np.zeros(n.shape[-1]), np.zeros(n.shape[-1])
    R = len(rows)
    for c in range(n.shape[-1]):
        for i in range(R):
            db[c] += slopes[i, c]
            dg[c] += slopes[i, c] * rows[i, c]
            for j in range(R):
                derivative = ((i == j) - 1 / R - rows[i, c] * rows[j, c] / R) / deviation[c]
                dx[j, c] += slopes[i, c] * float(g[c]) * derivative
    return dx.reshape(n.shape), dg, db


def naive_pool(h):
    """max(h, 0), the largest of each 2x2 window, and its place; 4 where nothing is above 0."""
    N, H, W, C = h.shape
    y, place = np.zeros((N, H // 2, W // 2, C)), np.full((N, H // 2, W // 2, C), 4)
    for n, row, column, c in np.ndindex(y.shape):
        for i in range(2):
            for j in range(2):
                value = h[n, 2 * row + i, 2 * column + j, c]
                if value > y[n, row, column, c]:
                    y[n, row, column, c], place[n, row, column, c] = value, 2 * i + j
    return y, place


def naive_unpool(dy, place, shape):
    dh = np.zeros(shape)
    for n, row, column, c in np.ndindex(dy.shape):
        i, j = divmod(int(place[n, row, column, c]), 2)
        if i < 2:
            dh[n, 2 * row + i, 2 * column + j, c] += float(dy[n, row, column, c])
    return dh


# -- what is drawn ----------------------------------------------------------------------------------------------------

class Batch:
    """x, dy, g, b and running statistics of one shape; g of both signs."""

    def __init__(self, shape, dtype, seed=0, mean=0.3, deviation=1.5):
        rng = np.random.default_rng([seed, *shape])
        C = shape[-1]
        self.x = (mean + deviation * rng.normal(size=shape)).astype(dtype)
        self.dy = rng.normal(size=shape).astype(dtype)
        self.g = (rng.choice([-1, 1], C) * rng.uniform(0.5, 1.5, C)).astype(dtype)
        self.b = (0.5 * rng.normal(size=C)).astype(dtype)
        self.running_mean = rng.normal(size=C).astype(dtype)
        self.running_var = rng.uniform(0.5, 2, C).astype(dtype)
        self.dg, self.db = rng.normal(size=(2, C)).astype(dtype)

    def arrays(self, ops, *names):
        return [give(ops, getattr(self, name)) for name in names]


PARAMETERS = "g", "b", "running_mean", "running_var"
SHAPES = [(5, 3), (2, 1), (16, 17), (2, 3, 4), (2, 3, 5, 4), (1, 3, 3, 17), (1, 1, 2, 1)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_shape
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("contiguous", [True, False])
@both_dtypes
def test_batch_norm(shape, activation, contiguous, dtype, ops):
    batch, (f, slope) = Batch(shape, dtype), FUNCTIONS[activation]
    momentum, eps = 0.3, 1e-3
    x, dy = (give(ops, a) if contiguous else strided(ops, a, dtype) for a in (batch.x, batch.dy))
    g, b, running_mean, running_var = batch.arrays(ops, *PARAMETERS)

    y, mean, inv_std = ops.batch_norm(x, g, b, running_mean, running_var, momentum, eps, activation, True)
    wanted = [statistics(column) for column in columns(batch.x)]
    n, deviation = naive_norm(batch.x, *zip(*wanted), eps)
    h = naive_affine(n, batch.g, batch.b)
    assert_close(ops.to_host(mean), [m for m, _ in wanted], dtype, "mean")
    assert_close(ops.to_host(inv_std), [1 / s for s in deviation], dtype, "1 / deviation")
    assert_close(ops.to_host(y), np.vectorize(f)(h), dtype, "y")
    for got, value in zip((running_mean, running_var),
                          naive_running(batch.running_mean, batch.running_var, batch.x, momentum)):
        assert_close(ops.to_host(got), value, dtype, "running")

    dh = batch.dy.astype("float64") * np.vectorize(slope)(h)
    gradients = naive_backward(dh, n, deviation, batch.g)
    size = (np.abs(batch.g) / deviation).max() * np.abs(batch.dy).max()
    for accumulate in (False, True):
        dg, db = batch.arrays(ops, "dg", "db")
        dx = ops.batch_norm_backward(dy, x, mean, inv_std, g, b, dg, db, activation, accumulate)
        for what, got, value, start in zip(("dx", "dg", "db"), (dx, dg, db), gradients, (0, batch.dg, batch.db)):
            assert_close(ops.to_host(got), value + accumulate * start, dtype, what, size)
    for array, before in ((x, batch.x), (dy, batch.dy), (g, batch.g), (b, batch.b)):
        np.testing.assert_array_equal(ops.to_host(array), before)


@every_shape
@both_dtypes
def test_evaluation_uses_the_running_statistics_and_changes_nothing(shape, dtype, ops):
    batch = Batch(shape, dtype)
    x, g, b, running_mean, running_var = batch.arrays(ops, "x", *PARAMETERS)
    y, mean, inv_std = ops.batch_norm(x, g, b, running_mean, running_var, 0.3, 1e-3, "silu", False)
    n, deviation = naive_norm(batch.x, batch.running_mean, batch.running_var, 1e-3)
    assert_close(ops.to_host(y), np.vectorize(FUNCTIONS["silu"][0])(naive_affine(n, batch.g, batch.b)), dtype)
    assert_close(ops.to_host(inv_std), [1 / s for s in deviation], dtype)
    for array, before in zip((x, g, b, running_mean, running_var),
                             (batch.x, *(getattr(batch, name) for name in PARAMETERS))):
        np.testing.assert_array_equal(ops.to_host(array), before)


IMAGES = [(2, 4, 6, 3), (1, 5, 7, 2), (1, 2, 2, 1), (3, 3, 2, 17), (2, 2, 5, 33)]
every_image = pytest.mark.parametrize("shape", IMAGES, ids=str)


@every_image
@pytest.mark.parametrize("contiguous", [True, False])
@both_dtypes
def test_norm_pool(shape, contiguous, dtype, ops):
    """Odd sizes too: a last row or column lies in no window, but counts for mean and variance."""
    batch, momentum, eps = Batch(shape, dtype), 0.3, 1e-3
    batch.dy = batch.dy[:, :shape[1] // 2, :shape[2] // 2]
    x, dy = (give(ops, a) if contiguous else strided(ops, a, dtype) for a in (batch.x, batch.dy))
    g, b, running_mean, running_var = batch.arrays(ops, *PARAMETERS)

    y, mean, inv_std, place = ops.norm_pool(x, g, b, running_mean, running_var, momentum, eps, True)
    wanted = [statistics(column) for column in columns(batch.x)]
    n, deviation = naive_norm(batch.x, *zip(*wanted), eps)
    pooled, wanted_place = naive_pool(naive_affine(n, batch.g, batch.b))
    assert_close(ops.to_host(mean), [m for m, _ in wanted], dtype, "mean")
    assert_close(ops.to_host(inv_std), [1 / s for s in deviation], dtype, "1 / deviation")
    assert_close(ops.to_host(y), pooled, dtype, "y")
    assert place.dtype == "uint8"
    np.testing.assert_array_equal(ops.to_host(place), wanted_place)
    for got, value in zip((running_mean, running_var),
                          naive_running(batch.running_mean, batch.running_var, batch.x, momentum)):
        assert_close(ops.to_host(got), value, dtype, "running")

    gradients = naive_backward(naive_unpool(batch.dy, wanted_place, shape), n, deviation, batch.g)
    size = (np.abs(batch.g) / deviation).max() * np.abs(batch.dy).max()
    for accumulate in (False, True):
        dg, db = batch.arrays(ops, "dg", "db")
        dx = ops.norm_pool_backward(dy, place, x, mean, inv_std, g, dg, db, accumulate)
        for what, got, value, start in zip(("dx", "dg", "db"), (dx, dg, db), gradients, (0, batch.dg, batch.db)):
            assert_close(ops.to_host(got), value + accumulate * start, dtype, what, size)
    for array, before in ((x, batch.x), (dy, batch.dy), (g, batch.g), (b, batch.b)):
        np.testing.assert_array_equal(ops.to_host(array), before)


@every_image
@both_dtypes
def test_norm_pool_in_evaluation(shape, dtype, ops):
    batch = Batch(shape, dtype)
    x, *parameters = batch.arrays(ops, "x", *PARAMETERS)
    y, _, _, place = ops.norm_pool(x, *parameters, 0.3, 1e-3, False)
    n, _ = naive_norm(batch.x, batch.running_mean, batch.running_var, 1e-3)
    assert_close(ops.to_host(y), naive_pool(naive_affine(n, batch.g, batch.b))[0], dtype)
    assert place is None
    for array, name in zip(parameters, PARAMETERS):
        np.testing.assert_array_equal(ops.to_host(array), getattr(batch, name))


@both_dtypes
def test_where_several_are_as_large_the_first_wins(dtype, ops):
    """g = 0: all of h is b. Above 0 the first place of each window wins, else none."""
    batch = Batch((2, 4, 4, 3), dtype)
    batch.g[...], batch.b[...] = 0, [1, 0, -1]
    x, *parameters = batch.arrays(ops, "x", *PARAMETERS)
    y, _, _, place = ops.norm_pool(x, *parameters, 0.1, 1e-5, True)
    assert (ops.to_host(y) == [1, 0, 0]).all() and (ops.to_host(place) == [0, 4, 4]).all()


# -- hard numbers -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mean", [1e3, -3e3])
@pytest.mark.parametrize("shape", [(40, 5), (3, 12, 11, 17)], ids=str)
def test_a_large_mean_does_not_drown_the_variance(mean, shape, ops):
    """mean(x^2) - mean^2 in float32 would be off by half of a variance of 1 and more."""
    batch = Batch(shape, "float32", mean=mean, deviation=1.0)
    x, *parameters = batch.arrays(ops, "x", *PARAMETERS)
    y, _, inv_std = ops.batch_norm(x, *parameters, 1.0, 1e-5, "identity", True)
    exact = batch.x.astype("float64").reshape(-1, shape[-1])
    np.testing.assert_allclose(ops.to_host(inv_std), 1 / np.sqrt(exact.var(0) + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(ops.to_host(parameters[3]), exact.var(0, ddof=1), rtol=1e-5)
    n = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    wanted = (n * batch.g + batch.b).reshape(shape)
    # The mean itself is a float32 number: 3e3 is rounded to 1e-4 or so.
    np.testing.assert_allclose(ops.to_host(y), wanted, rtol=0, atol=4e-4)


@pytest.mark.parametrize("shape", [(1, 4), (6, 3), (2, 3, 3, 17)], ids=str)
@both_dtypes
def test_a_constant_channel(shape, dtype, ops):
    """Variance 0: y = b, and only what dh has over its mean comes back, divided by sqrt(eps)."""
    batch = Batch(shape, dtype)
    batch.x[...] = 2.5
    x, dy, g, b, running_mean, running_var, dg, db = batch.arrays(ops, "x", "dy", *PARAMETERS, "dg", "db")
    y, mean, inv_std = ops.batch_norm(x, g, b, running_mean, running_var, 0.1, 1e-5, "identity", True)
    np.testing.assert_array_equal(ops.to_host(y), np.broadcast_to(batch.b, shape))
    np.testing.assert_allclose(ops.to_host(running_var), 0.9 * batch.running_var, rtol=1e-6)
    dx = ops.batch_norm_backward(dy, x, mean, inv_std, g, b, dg, db, "identity", False)
    rows = batch.dy.astype("float64").reshape(-1, shape[-1])
    wanted = batch.g * (rows - rows.mean(0)) / math.sqrt(1e-5)
    assert not ops.to_host(dg).any()
    np.testing.assert_allclose(ops.to_host(db), rows.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ops.to_host(dx).reshape(rows.shape), wanted, rtol=0,
                               atol=2e-6 * np.abs(rows).max() / math.sqrt(1e-5))


# -- the fast ops for any shape ---------------------------------------------------------------------------------------

CHANNELS = st.sampled_from([1, 2, 3, 8, 15, 16, 17, 31, 33, 64, 70])
images = st.tuples(st.integers(1, 5), st.integers(2, 13), st.integers(2, 13), CHANNELS)
rows = st.tuples(st.integers(2, 150), CHANNELS)


def away_from_kinks(h, dy):
    """dy without what passes where h is so near to 0 that rounding decides whether it passes."""
    return np.where(np.abs(h) < 1e-4, 0, dy).astype(dy.dtype)


@pytest.mark.parametrize("fast", FAST)
@both_dtypes
def test_fast_ops_for_any_shape(fast, dtype, monkeypatch):
    """Whatever was in the memory before, and nothing beside an array is written."""
    monkeypatch.setattr(cpu, "GRAIN", 1)
    ops = FAST[fast]()

    @settings(max_examples=60)
    @given(shape=st.one_of(rows, images), activation=st.sampled_from(sorted(FUNCTIONS)), seed=st.integers(0, 99),
           train=st.booleans(), accumulate=st.booleans())
    def check_norm(shape, activation, seed, train, accumulate):
        batch = Batch(shape, dtype, seed)
        h = REFERENCE.batch_norm(*exact(batch, "x", *PARAMETERS), 0.1, 1e-5, "identity", train)[0]
        batch.dy = away_from_kinks(h, batch.dy)
        results = []
        for each, (x, dy, g, b, *running, dg, db) in (
                (ops, batch.arrays(ops, "x", "dy", *PARAMETERS, "dg", "db")),
                (REFERENCE, exact(batch, "x", "dy", *PARAMETERS, "dg", "db"))):
            y, mean, inv_std = each.batch_norm(x, g, b, *running, 0.1, 1e-5, activation, train)
            if not accumulate:
                dg[...], db[...] = math.nan, math.nan
            dx = each.batch_norm_backward(dy, x, mean, inv_std, g, b, dg, db, activation, accumulate)
            results.append((y, mean, inv_std, *running, dx, dg, db))
        size = np.abs(batch.g * results[0][2]).max() * np.abs(batch.dy).max()
        for number, (got, wanted) in enumerate(zip(*results)):
            assert_close(got, wanted, dtype, f"result {number}", size if number > 4 else 1e-3)
        ops.check()

    @settings(max_examples=60)
    @given(shape=images, seed=st.integers(0, 99), train=st.booleans(), accumulate=st.booleans())
    def check_pool(shape, seed, train, accumulate):
        batch = Batch(shape, dtype, seed)
        x, g, b, *running = batch.arrays(ops, "x", *PARAMETERS)
        y, mean, inv_std, place = ops.norm_pool(x, g, b, *running, 0.1, 1e-5, train)
        exact_x, exact_g, exact_b, *exact_running = exact(batch, "x", *PARAMETERS)
        wanted = REFERENCE.norm_pool(exact_x, exact_g, exact_b, *exact_running, 0.1, 1e-5, train)
        for got, value in zip((y, mean, inv_std, *running), (*wanted[:3], *exact_running)):
            assert_close(got, value, dtype)
        if not train:
            assert place is None
            ops.check()
            return
        assert (place == wanted[3]).mean() > 0.999 and place.max() <= 4   # rounding may decide between two
        dy = batch.dy[:, :shape[1] // 2, :shape[2] // 2].copy()
        dg, db = batch.arrays(ops, "dg", "db")
        if not accumulate:
            dg[...], db[...] = math.nan, math.nan
        exact_dg, exact_db = exact(batch, "dg", "db")
        dx = ops.norm_pool_backward(give(ops, dy), place, x, mean, inv_std, g, dg, db, accumulate)
        exact_dx = REFERENCE.norm_pool_backward(dy.astype("float64"), place, exact_x, *wanted[1:3], exact_g, exact_dg,
                                                exact_db, accumulate)
        size = np.abs(batch.g * inv_std).max() * np.abs(dy).max()
        for what, got, value in zip(("dx", "dg", "db"), (dx, dg, db), (exact_dx, exact_dg, exact_db)):
            assert_close(got, value, dtype, what, size)
        ops.check()

    check_norm()
    check_pool()


def exact(batch, *names):
    return [getattr(batch, name).astype("float64") for name in names]


# -- the layers -------------------------------------------------------------------------------------------------------

@both_dtypes
def test_norm_pool_is_batch_norm_with_relu_and_max_pool(dtype, ops):
    """The same parameters, gradients and running statistics as the two layers that it stands for."""
    batch = Batch((3, 7, 6, 5), dtype)
    dy = batch.dy[:, :3, :3].copy()
    results = []
    for layer in (NormPool(5, eps=1e-3, momentum=0.2),
                  Sequential(BatchNorm(5, eps=1e-3, momentum=0.2, activation="relu"), MaxPool2d(2))):
        layer.build(ops, dtype=dtype)
        ops.copy_into(layer.parameters.values, np.concatenate([batch.g, batch.b]))
        for x in (batch.x, 2 * batch.x + 1):
            layer.zero_grad()
            y = layer.forward(ops.asarray(x.copy()), train=True)
            dx = layer.backward(ops.asarray(dy))
        evaluated = layer.forward(ops.asarray(batch.x))
        results.append([np.array(ops.to_host(array)) for array in (
            y, dx, layer.parameters.grads, *layer.state.values(), evaluated)])
    assert len(results[0]) == 6
    for got, wanted in zip(*results):
        assert_close(got, wanted.astype("float64"), dtype)


@pytest.mark.parametrize("make", [BatchNorm, NormPool])
def test_running_statistics_start_at_the_standard_normal_and_close_in_on_the_data(make, ops):
    """After k batches with mean m the running mean is (1 - 0.9^k) m: momentum 0.1 is the weight of the new batch."""
    layer, batch = make(3).build(ops, dtype="float64"), Batch((4, 4, 4, 3), "float64", mean=5.0)
    assert ops.to_host(layer.running_mean).tolist() == [0] * 3 and ops.to_host(layer.running_var).tolist() == [1] * 3
    rows = batch.x.reshape(-1, 3)
    for k in range(1, 6):
        layer.forward(ops.asarray(batch.x), train=True)
        np.testing.assert_allclose(ops.to_host(layer.running_mean), (1 - 0.9 ** k) * rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(ops.to_host(layer.running_var), 0.9 ** k + (1 - 0.9 ** k) * rows.var(0, ddof=1),
                                   rtol=1e-12)


@pytest.mark.parametrize("layer, shape, words", [
    (BatchNorm(3), (5, 4), r"BatchNorm '': expected x \(\.\.\., 3\), got \(5, 4\)"),
    (BatchNorm(3), (3,), r"BatchNorm '': expected x \(\.\.\., 3\), got \(3,\)"),
    (NormPool(3), (4, 4, 3), r"NormPool '': expected x \(N, H, W, 3\), got \(4, 4, 3\)"),
    (NormPool(3), (2, 4, 4, 2), r"NormPool '': expected x \(N, H, W, 3\), got \(2, 4, 4, 2\)"),
    (NormPool(3), (2, 1, 4, 3), r"NormPool '': expected images in which at least one window fits, got \(2, 1, 4, 3\)"),
])
def test_inputs_in_words(layer, shape, words):
    layer.build(REFERENCE)
    with pytest.raises(NnliteError, match=words):
        layer.forward(np.zeros(shape, "float32"))


def test_unknown_activations_in_words():
    with pytest.raises(NnliteError, match="expected one of .*relu.*'rely'"):
        BatchNorm(3, activation="rely")
