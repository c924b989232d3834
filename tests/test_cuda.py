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
from nnlite.layers import Dense, Linear, Sequential
from nnlite.losses import squared_error
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
    lr, steps, out = ops.scalar(0.01, a.dtype), ops.scalar(0, "int64"), []
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


CASES = [random_words, normal, activations, elementwise, sums_of_squares, linear, dense, dense_backward, not_contiguous,
         latents, losses, optimisers, copies]


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
    given = []

    class Watched(Numbers):
        def __call__(self, *shape, positive=False):
            array = super().__call__(*shape, positive=positive)
            given.append((array, np.array(array)))
            return array

    case(emulated_ops, Watched(emulated_ops, "float64"))
    assert {array.shape for array, before in given if not (array == before).all()} == written


def test_nan_passes_through(emulated_ops):
    x = emulated_ops.asarray([math.nan], "float32")
    for function in ACTIVATIONS:
        y, _ = emulated_ops.activation(x, function, 1.0, True)
        assert np.isnan(y[0]), function


def test_empty_batch(emulated_ops):
    a = Numbers(emulated_ops, "float32")
    W, dW, db = a(5, 7), a(5, 7), a(7)
    y, slope = emulated_ops.dense(a(0, 5), W, a(7), "elu", 0.5, a.key(), True)
    dx = emulated_ops.dense_backward(y, slope, a(0, 5), W, dW, db, False, True)
    assert y.shape == slope.shape == (0, 7) and dx.shape == (0, 5) and not dW.any() and not db.any()


def test_the_same_bits_again(emulated_ops):
    for case in (losses, dense_backward, sums_of_squares):
        once, again = (case(emulated_ops, Numbers(emulated_ops, "float32")) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(once, again))


# -- the class ------------------------------------------------------------------------------------------------------

def test_signatures_are_those_of_the_specification(emulated):
    for name, function in vars(emulated).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            expected = inspect.signature(getattr(ReferenceOps, name)).parameters
            assert list(inspect.signature(function).parameters) == list(expected), name


def test_nothing_that_the_cpu_makes_faster_is_left_to_wait_for_the_device(emulated):
    from nnlite.ops.cpu import CpuOps
    # One pass each in CuPy as they stand.
    of_cupy = {"empty", "zeros", "add", "multiply", "take_rows", "contiguous", "copy", "fill", "increment",
               "clip_factor", "identity"}
    fast = {name for name, value in vars(CpuOps).items()
            if inspect.isfunction(value) and hasattr(ReferenceOps, name) and not name.startswith("_")}
    assert fast - of_cupy <= set(vars(emulated))


def test_device_line(emulated_ops):
    assert emulated_ops.device_line().startswith("cuda, no GPU (CuPy ") and "full float32" in emulated_ops.device_line()


def test_layers_and_optimiser_on_the_emulation(emulated_ops):
    """A small model makes the same three steps as on the specification."""
    ends = []
    for ops in (emulated_ops, ReferenceOps()):
        model, step = training(ops, "float64")
        values = []
        for index in range(3):
            model.rng.set_step(index)
            values.append(float(step()))
        ends.append((values, ops.to_host(model.parameters.values)))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-10)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-7, atol=1e-9)


def training(ops, dtype):
    """A model with dropout and its step() -> value of the loss."""
    model = Sequential(Dense(6, 20, keep_prob=0.8), Dense(20, 9, activation="gelu"), Linear(9, 6))
    model.build(ops, dtype=dtype, seed=3)
    optimiser = Adam(model.parameters, lr=1e-2, decay=1e-3)
    x = ops.asarray(np.random.default_rng(0).standard_normal((50, 6)), dtype)

    def step():
        model.parameters.zero_grad()
        value, df = squared_error(ops, model.forward(x, train=True), x, 0.02)
        model.backward(df, need_dx=False)
        optimiser.step()
        return value
    return model, step


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


def test_emulated_graph(emulated_ops):
    """Two steps as they are, the third recorded, then launches: the same bits, and step() runs no more."""
    values, p, ran = steps_of_kernels(emulated_ops, False)
    captured_values, captured_p, captured_ran = steps_of_kernels(emulated_ops, True)
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
def test_device_graph_is_the_step_bit_for_bit(device, dtype):
    ends = []
    for captured in (False, True):
        model, step = training(device, dtype)
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
    model, step = training(device, "float32")
    run = device.capture(step)
    others = []
    for index in range(20):
        model.rng.set_step(index)
        value = run()
        others.append((device.zeros((50, 20), "float32") + index, index))
        assert np.isfinite(float(value))
    assert all((device.to_host(array) == index).all() for array, index in others)


@pytest.mark.gpu
def test_device_allocates_nothing_after_the_first_steps(device):
    import cupy
    pool = cupy.get_default_memory_pool()
    model, step = training(device, "float32")
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
