"""One battery over the table of all layers: a new layer adds a row to battery.py and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlite.layers
from battery import ROWS
from nnlite.errors import NnliteError
from nnlite.gradcheck import Draws, check_adjoint, check_layer
from nnlite.ops import get_ops

N, D, K = 4, 6, 3
every_row = pytest.mark.parametrize("name", ROWS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
CLOSE = {"float32": dict(rtol=2e-5, atol=2e-6), "float64": dict(rtol=1e-11, atol=1e-12)}


def make(name, ops, dtype="float64", seed=3, size=(D, K)):
    layer = ROWS[name].make(*size).build(ops, dtype=dtype, seed=seed)
    # Away from 0 and 1, where a forgotten bias or scale would not show.
    start = ops.to_host(layer.parameters.values)
    ops.copy_into(layer.parameters.values, start + 0.1 * Draws(seed).normal("p", start.shape))
    return layer


def draw(name, ops, dtype="float64", size=(N, D, K)):
    """Inputs of the row as arrays of ops."""
    return [ops.asarray(Draws(2).grid(f"input {i}", shape), dtype) for i, shape in enumerate(ROWS[name].shapes(*size))]


def draw_dy(y, ops):
    return ops.asarray(Draws(2).normal("dy", y.shape), str(y.dtype))


def step(layer, xs, ops):
    """y, the gradients of the inputs and of the parameters, as host arrays of their own."""
    layer.zero_grad()
    y = layer.forward(*xs, train=True)
    dx = layer.backward(draw_dy(y, ops))
    arrays = [y, *(dx if isinstance(dx, tuple) else (dx,)), layer.parameters.grads]
    return [np.array(ops.to_host(array)) for array in arrays]


def assert_same(results, others, name, dtype, factor=1):
    assert len(results) == len(others)
    rounding = ROWS[name].rounding if dtype == "float32" else 0
    for a, b in zip(results, others):
        assert a.dtype == b.dtype and a.shape == b.shape
        atol = factor * CLOSE[dtype]["atol"] + rounding * np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=factor * CLOSE[dtype]["rtol"], atol=atol)


def test_every_layer_has_a_row():
    exported = {getattr(nnlite.layers, name) for name in nnlite.layers.__all__} - {nnlite.layers.Layer}
    assert exported == {row.cls for row in ROWS.values()}
    for name, row in ROWS.items():
        assert type(row.make(D, K)) is row.cls, name


# -- gradients --------------------------------------------------------------------------------------------------------

def check(name, ops, size=(N, D, K), seed=0, direction=False):
    """The report; where a kink may have fallen inside a step, that of another seed: a wrong layer fails with each."""
    row = ROWS[name]
    for number in range(3 if row.kinks else 1):
        report = check_layer(row.make(*size[1:]), *row.shapes(*size), seed=seed + 1001 * number, ops=ops,
                             direction=direction)
        if report.ok:
            break
    return report


@every_row
def test_gradients(name, ops):
    report = check(name, ops)
    assert report.ok, str(report)
    assert len(report.findings) == len(ROWS[name].shapes(N, D, K)) + len(make(name, ops).parameters.table)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 19), st.integers(1, 17))


@every_row
@settings(max_examples=8)
@given(size=sizes, seed=st.integers(0, 1000))
def test_gradients_for_any_shape(name, size, seed):
    """Batch 1 and odd sizes, which reach the tails of the kernels; along one random direction for each array."""
    for ops in (get_ops("reference"), get_ops("cpu")):
        report = check(name, ops, size, seed, direction=True)
        # A mask or a ReLU may leave nothing of a few numbers; the check then says that it checked nothing.
        few = size[0] * min(size[1:]) <= 4
        wrong = [finding for finding in report.findings
                 if not (finding.ok or few and "nothing was checked" in finding.wrong)]
        assert report.findings and not wrong and not report.faults, str(report)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.linear])
def test_adjoint(name, ops):
    shape, = ROWS[name].shapes(N, D, K)
    report = check_adjoint(ROWS[name].make(D, K), shape, ops=ops)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.make(D, K).can_skip_dx])
def test_a_skipped_dx_changes_no_other_gradient(name, ops):
    layer, xs = make(name, ops), draw(name, ops)
    expected = step(layer, xs, ops)[-1]
    layer.zero_grad()
    y = layer.forward(*xs, train=True)
    layer.backward(draw_dy(y, ops), need_dx=False)
    np.testing.assert_allclose(ops.to_host(layer.parameters.grads), expected, rtol=1e-12, atol=1e-14)


# -- shapes, dtypes, memory -------------------------------------------------------------------------------------------

@every_row
@both_dtypes
def test_shape_and_dtype(name, dtype, ops):
    for size in ((N, D, K), (1, D, K), (1, 1, 1)):
        layer, xs = make(name, ops, dtype, size=size[1:]), draw(name, ops, dtype, size)
        for train in (True, False):
            y = layer.forward(*xs, train=train)
            assert isinstance(y, ops.array_type) and y.dtype == dtype
            assert y.shape == layer.out_shape(xs[0].shape)
        arrays = step(layer, xs, ops)
        assert [a.dtype for a in arrays] == [dtype] * len(arrays)
        assert [a.shape for a in arrays[1:-1]] == [x.shape for x in xs]


@every_row
@both_dtypes
def test_batch_of_one_is_the_first_of_many(name, dtype, ops):
    """Rows do not mix, and the noise of a row does not depend on how many follow it. Where they mix in training they
    do not in evaluation."""
    layer, xs = make(name, ops, dtype), draw(name, ops, dtype)
    layer.forward(*xs, train=True)     # moves running statistics, where there are some
    train = not ROWS[name].mixes
    ones = [ops.asarray(ops.to_host(x)[:len(x) // N], dtype) for x in xs]
    first = np.array(ops.to_host(layer.forward(*ones, train=train)))
    many = ops.to_host(layer.forward(*xs, train=train))
    assert_same([first], [many[:len(first)]], name, dtype)


@every_row
def test_read_only_inputs(name, ops):
    if ops.array_type is not np.ndarray:
        pytest.skip("only NumPy has read-only arrays")
    layer, xs = make(name, ops), draw(name, ops)
    expected = step(layer, xs, ops)
    for x in xs:
        x.flags.writeable = False
    layer.zero_grad()
    y = layer.forward(*xs, train=True)
    dy = draw_dy(y, ops)
    dy.flags.writeable = False
    dx = layer.backward(dy)
    arrays = [y, *(dx if isinstance(dx, tuple) else (dx,)), layer.parameters.grads]
    assert_same(arrays, expected, name, "float64")


@every_row
@both_dtypes
def test_non_contiguous_inputs(name, dtype, ops):
    layer, xs = make(name, ops, dtype), draw(name, ops, dtype)
    expected = step(layer, xs, ops)
    strided = [non_contiguous(x, ops) for x in xs]
    layer.zero_grad()
    y = layer.forward(*strided, train=True)
    dx = layer.backward(non_contiguous(draw_dy(y, ops), ops))
    arrays = [y, *(dx if isinstance(dx, tuple) else (dx,)), layer.parameters.grads]
    assert_same([np.array(ops.to_host(a)) for a in arrays], expected, name, dtype)


def non_contiguous(x, ops):
    """Every second column of every second row of something larger, from the end to the start."""
    host = np.full(tuple(2 * extent for extent in x.shape), np.nan)
    every_second = tuple(slice(None, None, -2) for _ in x.shape)
    host[every_second] = ops.to_host(x)
    view = ops.asarray(host, str(x.dtype))[every_second]
    assert not view.flags.c_contiguous or x.size == 1
    return view


@every_row
def test_results_stay_what_they_are(name, ops):
    """y and dx belong to the caller: later steps on other data do not write into them, and they alias no input."""
    layer, xs = make(name, ops), draw(name, ops)
    y = layer.forward(*xs, train=True)
    dx = layer.backward(draw_dy(y, ops))
    held = [y, *(dx if isinstance(dx, tuple) else (dx,))]
    before = [np.array(ops.to_host(array)) for array in held]
    for factor in (2, 3):
        y2 = layer.forward(*[factor * x for x in xs], train=True)
        layer.backward(y2)
        del y2
    for array, value in zip(held, before):
        np.testing.assert_array_equal(ops.to_host(array), value)


@every_row
def test_save_and_load(name, ops):
    """Parameters and state, copied into a layer of another seed, give the same output."""
    layer, other, xs = make(name, ops, seed=3), make(name, ops, seed=4), draw(name, ops)
    layer.forward(*xs, train=True)     # moves running statistics, where there are some
    if layer.parameters.size:
        assert not np.array_equal(ops.to_host(layer.parameters.values), ops.to_host(other.parameters.values))
    assert [entry[:4] for entry in layer.parameters.table] == [entry[:4] for entry in other.parameters.table]
    assert list(layer.state) == list(other.state)
    ops.copy_into(other.parameters.values, np.array(ops.to_host(layer.parameters.values)))
    if layer.state:
        assert not np.array_equal(ops.to_host(other.forward(*xs)), ops.to_host(layer.forward(*xs)))
    for key, value in layer.state.items():
        ops.copy_into(other.state[key], np.array(ops.to_host(value)))
    if name == "GaussianSample":       # draws in evaluation too, from the seed
        other.rng.seed = layer.rng.seed
    np.testing.assert_array_equal(ops.to_host(other.forward(*xs)), ops.to_host(layer.forward(*xs)))


# -- every ops the same -----------------------------------------------------------------------------------------------

@every_row
@both_dtypes
@pytest.mark.parametrize("size", [(N, D, K), (70, 45, 33)])
def test_same_result_in_every_ops(name, dtype, size, fast_ops):
    """The same noise too. The larger size is cut into several pieces of work, with tails."""
    reference = get_ops("reference")
    slow, fast = make(name, reference, dtype, size=size[1:]), make(name, fast_ops, dtype, size=size[1:])
    fast_ops.copy_into(fast.parameters.values, slow.parameters.values)
    for layer in (slow, fast):
        layer.rng.set_step(2 ** 33 + 5)
    factor = 1 if size[0] == N else 20    # sums of more terms, in another order
    assert_same(step(fast, draw(name, fast_ops, dtype, size), fast_ops),
                step(slow, draw(name, reference, dtype, size), reference), name, dtype, factor)
    states = [[np.array(layer.ops.to_host(value)) for value in layer.state.values()] for layer in (fast, slow)]
    assert_same(*states, name, dtype, factor)
    evaluated = [np.array(layer.ops.to_host(layer.forward(*draw(name, layer.ops, dtype, size))))
                 for layer in (fast, slow)]
    assert_same(evaluated[:1], evaluated[1:], name, dtype, factor)


@every_row
def test_a_captured_step_is_the_step(name):
    """With other data at the same places. An op that a captured step does not write down would give the old y."""
    ops = get_ops("cpu")
    layer, plain, xs = make(name, ops), make(name, ops), draw(name, ops)
    dy = np.array(draw_dy(layer.forward(*xs), ops))

    def run(layer):
        layer.zero_grad()
        y = layer.forward(*xs, train=True)
        dx = layer.backward(dy)
        return [y, *(dx if isinstance(dx, tuple) else (dx,))]

    captured = ops.capture(lambda: run(layer))
    for number in range(4):
        for i, array in enumerate((*xs, dy)):
            array[...] = Draws(20 + number).normal(f"array {i}", array.shape)
        got = [*captured(), layer.parameters.grads, *layer.state.values()]
        wanted = [*run(plain), plain.parameters.grads, *plain.state.values()]
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@every_row
def test_a_frozen_forward_is_the_forward(name):
    """What is made of the parameters alone is made once, and stays while other steps use memory."""
    ops = get_ops("cpu")
    layer, xs = make(name, ops), draw(name, ops)
    for _ in range(2):
        layer.forward(*xs, train=True)    # running statistics that are not 0 and 1
        layer.drop()
    captured = ops.capture(lambda: layer.forward(*xs), frozen=True)
    for number in range(3):
        for i, array in enumerate(xs):
            array[...] = Draws(20 + number).normal(f"array {i}", array.shape)
        np.testing.assert_array_equal(captured(), layer.forward(*xs))


@pytest.mark.parametrize("shape, outputs", [((8, 16, 16, 16), 4), ((1, 3, 3, 64), 80)])
def test_a_frozen_forward_makes_nothing_of_parameters_twice(shape, outputs):
    """Changing W behind its back must change nothing, for direct and Winograd's convolution, 1x1 of many pixels and of
    few, and a norm."""
    ops = get_ops("cpu")
    nl, C = nnlite.layers, shape[-1]
    layer = nl.Sequential(nl.Conv2d(C, C, 3, padding=1), nl.BatchNorm(C), nl.Conv2d(C, outputs, 1)).build(ops)
    x = ops.asarray(Draws(0).normal("x", shape).astype("float32"))
    captured = ops.capture(lambda: layer.forward(x), frozen=True)
    before = np.array(captured())
    for part in ("0", "2"):
        layer.named[part].W[...] = 0
    layer.named["1"].running_var[...] = 9
    np.testing.assert_array_equal(captured(), before)


@every_row
def test_noise_follows_step_and_seed(name, ops):
    layer, xs = make(name, ops), draw(name, ops)

    def at(step, seed=3):
        layer.rng.seed = seed
        layer.rng.set_step(step)
        return np.array(ops.to_host(layer.forward(*xs, train=True)))

    first = at(1)
    np.testing.assert_array_equal(at(1), first)
    if ROWS[name].noisy:
        assert not np.array_equal(at(2), first) and not np.array_equal(at(1, seed=4), first)
    else:
        np.testing.assert_array_equal(at(2, seed=4), first)


# -- errors in words --------------------------------------------------------------------------------------------------

def raises(layers, function, *words):
    """The error names one of the layers, and has all the words."""
    with pytest.raises(NnliteError) as caught:
        function()
    text = str(caught.value)
    assert any(text.startswith(type(layer).__name__) for layer in layers), text
    for word in ("expected", "got", *words):
        assert word in text, text


def seeing_first(layer):
    """The layers that see x first: this one, and the first of those inside."""
    layers = [layer]
    while layers[-1].children():
        layers.append(next(iter(layers[-1].children().values())))
    return layers


@every_row
def test_backward_without_forward_or_twice(name, ops):
    layer, xs = make(name, ops), draw(name, ops)
    y = layer.forward(*xs, train=False)
    dy = draw_dy(y, ops)
    with pytest.raises(NnliteError, match=r"expected forward\(x, train=True\) before backward"):
        layer.backward(dy)
    layer.forward(*xs, train=True)
    layer.backward(dy)
    with pytest.raises(NnliteError, match="expected forward.* before backward, got none since the last backward"):
        layer.backward(dy)


@every_row
def test_wrong_input(name, ops):
    layer, xs = make(name, ops), draw(name, ops)
    first = seeing_first(layer)
    if not ROWS[name].any_width:
        for i, x in enumerate(xs):
            for shape in ((*x.shape[:-1], x.shape[-1] + 1), x.shape[-1:]):
                wrong = [*xs[:i], ops.asarray(np.ones(shape), "float64"), *xs[i + 1:]]
                raises(first, lambda: layer.forward(*wrong), str(shape))
    single = [ops.asarray(np.ones(x.shape), "float32") for x in xs]
    raises(first, lambda: layer.forward(*single), "float32", "float64")
    lists = [np.ones(x.shape).tolist() for x in xs]
    raises(first, lambda: layer.forward(*lists), ops.array_name, "list", ops.name)


@every_row
def test_wrong_dy(name, ops):
    layer, xs = make(name, ops), draw(name, ops)
    y = layer.forward(*xs, train=True)
    wide = (*y.shape[:-1], y.shape[-1] + 1)
    for dy, words in ((ops.asarray(np.ones(wide), "float64"), [str(wide)]),
                      (ops.asarray(np.ones(y.shape), "float32"), ["float32", "float64"]),
                      (np.ones(y.shape).tolist(), [ops.array_name, "list"])):
        layer.forward(*xs, train=True)
        with pytest.raises(NnliteError) as caught:
            layer.backward(dy)
        for word in words:
            assert word in str(caught.value)


@every_row
def test_use_before_build(name):
    layer = ROWS[name].make(D, K)
    with pytest.raises(NnliteError, match="expected build"):
        layer.forward(*[np.ones(shape) for shape in ROWS[name].shapes(N, D, K)])


class Foreign:
    """Stands for an array of another library."""

    __module__ = "cupy.core"
    shape, dtype, ndim = (4, 6), np.dtype("float64"), 2


def test_an_array_of_another_ops_names_both():
    layer = make("Linear", get_ops("reference"))
    raises([layer], lambda: layer.forward(Foreign()), "NumPy", "CuPy", "reference")


@pytest.mark.gpu
def test_numpy_array_given_to_cuda():
    try:
        ops = get_ops("cuda")
    except NnliteError as error:
        pytest.skip(str(error))
    layer = make("Linear", ops)
    raises([layer], lambda: layer.forward(np.ones((N, D))), "CuPy", "NumPy")


def test_a_layer_inside_is_named_by_its_path():
    ops = get_ops("reference")
    inner = nnlite.layers.Sequential(nnlite.layers.Linear(3, 3), nnlite.layers.Linear(4, 2))
    net = nnlite.layers.Sequential(nnlite.layers.ReLU(), nnlite.layers.Residual(inner)).build(ops)
    with pytest.raises(NnliteError, match=r"Linear '1\.inner\.1': expected x \(\.\.\., 4\), got \(2, 3\)"):
        net.forward(np.ones((2, 3), "float32"))
