"""A captured step on the CPU does what the step does, to the bit, and leaves other people's arrays alone."""

import gc

import numpy as np
import pytest

from nnlite import layers as nl
from nnlite.experiments import FaceExperiment
from nnlite.experiments.face_options import load_faces, load_triplets
from nnlite.ops import get_ops
from nnlite.presets import BEST, PRESETS


@pytest.fixture(scope="module")
def data():
    faces = load_faces("built-in posed")
    return faces, load_triplets(None, faces)


def small(model):
    """The best preset of the model with small layers."""
    settings = dict(PRESETS[BEST[model, "posed"]], batch_size=20, triplet_batch=4, anneal=10)
    K, D = 6, 249
    conditional = model != "vae1"
    return settings | {"encoder": [D * (1 + conditional), 40, 30, K], "decoder": [K + D * conditional, 30, 35, D]}


@pytest.mark.parametrize("model", ["vae1", "vae2", "vae3"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_captured_step_is_the_step(data, model, dtype):
    captured, plain = (FaceExperiment(small(model), *data, get_ops("cpu"), dtype=dtype, seed=5) for _ in range(2))
    for iteration in range(12):
        got = {name: float(value) for name, value in captured.step(iteration).items()}
        plain.prepare(iteration)
        wanted = {name: float(value) for name, value in plain._forward_backward_update().items()}
        assert got == wanted
        if iteration == 6:   # what is done between the steps changes nothing
            captured.validate()
        np.testing.assert_array_equal(captured.model.parameters.values, plain.model.parameters.values)
        for name, array in plain.optimiser.state().items():
            np.testing.assert_array_equal(captured.optimiser.state()[name], array)


def test_a_captured_step_writes_into_nobody_elses_arrays(data):
    experiment = FaceExperiment(small("vae3"), *data, get_ops("cpu"), seed=1)
    experiment.step(0)
    ops, held = get_ops("cpu"), []
    for shape in ((20, 249), (60, 30), (60, 35), (32, 12), (32, 40), (1, 40)):
        for _ in range(5):
            held.append(ops.empty(shape, "float32"))
            held[-1].fill(7)
    for iteration in range(1, 4):
        experiment.step(iteration)
    assert all((array == 7).all() for array in held)


def test_the_terms_of_a_captured_step_are_rewritten(data):
    experiment = FaceExperiment(small("vae3"), *data, get_ops("cpu"), seed=1)
    first = experiment.step(0)
    before = {name: float(value) for name, value in first.items()}
    second = experiment.step(1)
    assert second is first and any(float(value) != before[name] for name, value in second.items())


def test_two_captured_steps_do_not_share_memory(data):
    one, other, alone = (FaceExperiment(small("vae2"), *data, get_ops("cpu"), seed=seed) for seed in (1, 2, 1))
    for iteration in range(4):
        one.step(iteration)
        other.step(iteration)
    for iteration in range(4):
        alone.step(iteration)
    np.testing.assert_array_equal(one.model.parameters.values, alone.model.parameters.values)


def test_a_step_that_failed_is_begun_anew():
    ops, ready = get_ops("cpu"), []
    source, target = np.ones((3, 4), "float32"), ops.zeros((3, 4), "float32")

    def step():
        doubled = ops.add(source, source)
        if not ready:
            raise KeyError("not yet")
        ops.copy_into(target, doubled)
        return ops.multiply(doubled, doubled)

    captured = ops.capture(step)
    with pytest.raises(KeyError):
        captured()
    ready.append(True)
    assert (captured() == 4).all()
    source[...] = 3
    assert (captured() == 36).all()


def test_clipping_inside_a_captured_step_follows_the_gradient():
    from nnlite.layers import Linear
    from nnlite.optim import SGD, clip_factor
    ops = get_ops("cpu")
    layer = Linear(3, 2).build(ops, dtype="float64", seed=2)
    x, dy, start = np.ones((4, 3)), np.ones((4, 2)), layer.parameters.values.copy()
    optimiser = SGD(layer.parameters, lr=1.0)

    def step():
        layer.zero_grad()
        layer.forward(x, train=True)
        layer.backward(dy)
        optimiser.step(clip=clip_factor(layer.parameters, 1.0))

    captured = ops.capture(step)
    for scale in (1.0, 1e3, 1e-3):
        dy[...] = scale
        layer.parameters.values[...] = start
        captured()
        gradient = np.concatenate([(x.T @ dy).ravel(), dy.sum(0)])
        norm = np.linalg.norm(gradient)
        np.testing.assert_allclose(layer.parameters.values, start - gradient * min(1, 1 / norm), rtol=1e-12)


def captured_chain(ops, x):
    """Twelve layers, captured; each needs the output of the one before alone."""
    net = nl.Sequential(*(nl.LeakyReLU(0.9) for _ in range(12))).build(ops)
    step = lambda: net.forward(x)
    step()    # while a kernel is compiled, its arguments may be held for longer
    captured = ops.capture(step)
    if captured is step:
        pytest.skip("no BLAS, no capture")
    return step, captured


def test_a_captured_step_takes_the_memory_of_what_it_needs_at_once():
    ops, x = get_ops("cpu"), np.ones((64, 256), "float32")
    step, captured = captured_chain(ops, x)
    captured()
    assert 2 * x.nbytes <= captured._arena.nbytes() < 2.1 * x.nbytes
    assert captured._arena.nbytes() == ops.bytes_of(step)


def test_a_result_outlives_its_captured_step():
    ops, x = get_ops("cpu"), np.linspace(-1, 1, 64 * 256, dtype="float32").reshape(64, 256)
    step, captured = captured_chain(ops, x)
    result, wanted = captured(), np.array(step())
    del captured
    gc.collect()
    for _ in range(20):
        ops.empty(x.shape, "float32").fill(7)
    np.testing.assert_array_equal(result, wanted)
