"""Optimisers against loops written from the papers' formulas, and against torch.optim; schedules in closed form."""

import math

import numpy as np
import pytest

from nnlite import optim
from nnlite.errors import NnliteError
from nnlite.layers import ELU, Linear, Sequential
from nnlite.ops import get_ops

STEPS = 7


def build(ops, dtype="float64"):
    """A model with weights and biases: 3 * 4 + 4 + 4 * 2 + 2 numbers."""
    return Sequential(Linear(3, 4), ELU(), Linear(4, 2)).build(ops, dtype=dtype, seed=1)


def gradient(step, size=26):
    return np.random.default_rng(step).normal(size=size)


def put_gradient(parameters, values):
    parameters.settle()   # what a backward pass does: the gradients are there, and fresh no more
    parameters.ops.copy_into(parameters.grads, values)


def run(optimiser, *, steps=STEPS, clip=1.0, lr=None):
    for step in range(steps):
        put_gradient(optimiser.parameters, gradient(step, optimiser.parameters.size))
        if lr:
            optimiser.set_lr(lr(step))
        optimiser.step(clip=clip)
    return optimiser.ops.to_host(optimiser.parameters.values)


# -- the papers' formulas, one number at a time: start value, gradients, options -> value ------------------------------

def sgd(p, gradients, lr, momentum=0.0, nesterov=False, decay=0.0):
    m = 0.0
    for g in gradients:
        g = g + decay * p
        m = momentum * m + g
        p = p - lr * (g + momentum * m if nesterov else m)
    return p


def adagrad(p, gradients, lr, eps, decay=0.0):
    v = 0.0
    for g in gradients:
        g = g + decay * p
        v = v + g ** 2
        p = p - lr * g / (math.sqrt(v) + eps)
    return p


def rmsprop(p, gradients, lr, rho, eps, decay=0.0):
    v = 0.0
    for g in gradients:
        g = g + decay * p
        v = rho * v + (1 - rho) * g ** 2
        p = p - lr * g / (math.sqrt(v) + eps)
    return p


def adam(p, gradients, lr, beta1, beta2, eps, decay=0.0, decoupled=False):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        if decoupled:
            p = p - lr * decay * p
        else:
            g = g + decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g ** 2
        p = p - lr * (m / (1 - beta1 ** t)) / (math.sqrt(v / (1 - beta2 ** t)) + eps)
    return p


def adamw(p, gradients, **options):
    return adam(p, gradients, decoupled=True, **options)


# name: (class, naive loop, options, the same optimiser in torch: its class and options)
CASES = {
    "sgd": (optim.SGD, sgd, dict(lr=0.1), ("SGD", dict(lr=0.1))),
    "momentum": (optim.SGD, sgd, dict(lr=0.1, momentum=0.9), ("SGD", dict(lr=0.1, momentum=0.9))),
    "nesterov": (optim.SGD, sgd, dict(lr=0.1, momentum=0.8, nesterov=True),
                 ("SGD", dict(lr=0.1, momentum=0.8, nesterov=True))),
    "adagrad": (optim.Adagrad, adagrad, dict(lr=0.1, eps=1e-3), ("Adagrad", dict(lr=0.1, eps=1e-3))),
    "rmsprop": (optim.RMSProp, rmsprop, dict(lr=0.01, rho=0.9, eps=1e-3),
                ("RMSprop", dict(lr=0.01, alpha=0.9, eps=1e-3))),
    "adam": (optim.Adam, adam, dict(lr=0.01, beta1=0.8, beta2=0.99, eps=1e-3),
             ("Adam", dict(lr=0.01, betas=(0.8, 0.99), eps=1e-3))),
    "adamw": (optim.AdamW, adamw, dict(lr=0.01, beta1=0.8, beta2=0.99, eps=1e-3),
              ("AdamW", dict(lr=0.01, betas=(0.8, 0.99), eps=1e-3))),
}
each_case = pytest.mark.parametrize("name", CASES)
each_decay = pytest.mark.parametrize("decay", [0.0, 0.3])


def is_weight(model):
    """For each number of the flat array: does it belong to a matrix?"""
    flags = np.zeros(model.parameters.size, bool)
    for entry in model.parameters.table:
        flags[entry.start:entry.stop] = entry.attribute == "W"
    return flags


def naive(model, loop, options, decay=0.0, clip=1.0, steps=STEPS):
    start, weight = model.ops.to_host(model.parameters.values).copy(), is_weight(model)
    gradients = [clip * gradient(step, start.size) for step in range(steps)]
    return np.array([loop(float(start[i]), [float(g[i]) for g in gradients], **options,
                          decay=decay if weight[i] else 0.0) for i in range(start.size)])


@each_case
@each_decay
def test_against_the_formula(ops, name, decay):
    """With decay: on weights alone, and for all but AdamW through the moments."""
    cls, loop, options, _ = CASES[name]
    model = build(ops)
    wanted = naive(model, loop, options, decay)
    np.testing.assert_allclose(run(cls(model.parameters, **options, decay=decay)), wanted, rtol=1e-12, atol=1e-14)


@each_case
@each_decay
def test_against_torch(ops, name, decay):
    torch = pytest.importorskip("torch")
    cls, _, options, (peer, peer_options) = CASES[name]
    model = build(ops)
    entries = model.parameters.table
    start = model.ops.to_host(model.parameters.values).copy()
    peers = [torch.tensor(start[e.start:e.stop].reshape(e.shape), requires_grad=True) for e in entries]
    groups = [{"params": [p for p, e in zip(peers, entries) if e.attribute == attribute], "weight_decay": value}
              for attribute, value in (("W", decay), ("b", 0.0))]
    torch_optimiser = getattr(torch.optim, peer)(groups, **peer_options)
    for step in range(STEPS):
        for p, e in zip(peers, entries):
            p.grad = torch.tensor(gradient(step, start.size)[e.start:e.stop].reshape(e.shape))
        torch_optimiser.step()
    wanted = np.concatenate([p.detach().numpy().reshape(-1) for p in peers])
    np.testing.assert_allclose(run(cls(model.parameters, **options, decay=decay)), wanted, rtol=1e-12, atol=1e-14)


@each_case
def test_float32(ops, name):
    cls, loop, options, _ = CASES[name]
    model = build(ops, "float32")
    wanted = naive(model, loop, options, 0.1)
    got = run(cls(model.parameters, **options, decay=0.1))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@each_case
def test_frozen_parameters_stay(ops, name):
    """All of layer 0 frozen: its bits stay, whatever decay and gradient say; the others go on as before."""
    cls, loop, options, _ = CASES[name]
    model = build(ops)
    wanted = naive(model, loop, options, 0.3)
    start = model.ops.to_host(model.parameters.values).copy()
    got = run(cls(model.parameters, **options, decay=0.3, frozen=lambda entry: entry.name.startswith("0.")))
    np.testing.assert_array_equal(got[:16], start[:16])
    np.testing.assert_allclose(got[16:], wanted[16:], rtol=1e-12, atol=1e-14)


@each_case
def test_clipping_multiplies_the_gradient_but_not_the_decay(ops, name):
    cls, loop, options, _ = CASES[name]
    model = build(ops)
    wanted = naive(model, loop, options, 0.3, clip=0.25)
    np.testing.assert_allclose(run(cls(model.parameters, **options, decay=0.3), clip=0.25), wanted, rtol=1e-12,
                               atol=1e-14)


def test_decay_reaches_what_decays_says(ops):
    model = build(ops)
    start = model.ops.to_host(model.parameters.values).copy() + 1
    model.ops.copy_into(model.parameters.values, start)
    optimiser = optim.SGD(model.parameters, lr=0.5, decay=0.1, decays=lambda entry: entry.attribute == "b")
    put_gradient(model.parameters, np.zeros(26))
    optimiser.step()
    weight = is_weight(model)
    got = model.ops.to_host(model.parameters.values)
    np.testing.assert_array_equal(got[weight], start[weight])
    np.testing.assert_allclose(got[~weight], 0.95 * start[~weight])


def test_a_layer_without_backward_has_no_gradient(ops):
    """Between zero_grad() and step() only layer 1 gets a gradient: what layer 0 had before is not applied again."""
    model = build(ops)
    optimiser = optim.SGD(model.parameters, lr=1.0)
    put_gradient(model.parameters, np.ones(26))
    start = model.ops.to_host(model.parameters.values).copy()
    model.zero_grad()
    last = model.layers[2]
    last.forward(ops.asarray(np.ones((1, 4))), train=True)
    last.backward(ops.asarray(np.ones((1, 2))))
    optimiser.step()
    np.testing.assert_allclose(model.ops.to_host(model.parameters.values) - start, [0] * 16 + [-1] * 10)


@pytest.mark.parametrize("max_norm, factor", [(1e9, 1.0), (10.0, 1.0), (5.0, 0.5), (1e-3, 1e-4)])
def test_clip_factor(ops, max_norm, factor):
    """The gradient (6, 8, 0, ...) has norm 10."""
    model = build(ops)
    values = np.zeros(26)
    values[3], values[20] = 6, -8
    put_gradient(model.parameters, values)
    assert optim.clip_factor(model.parameters, max_norm) == pytest.approx(factor, rel=1e-12)


def test_clipped_sgd_step_is_at_most_max_norm_long(ops):
    model = build(ops)
    start = ops.to_host(model.parameters.values).copy()
    put_gradient(model.parameters, 100 * gradient(0))
    optimiser = optim.SGD(model.parameters, lr=1.0)
    optimiser.step(clip=optim.clip_factor(model.parameters, 2.0))
    step = ops.to_host(model.parameters.values) - start
    assert np.linalg.norm(step) == pytest.approx(2.0)
    np.testing.assert_allclose(step / 2, -gradient(0) / np.linalg.norm(gradient(0)))


def test_learning_rate_may_change_each_step(ops):
    model = build(ops)
    start = ops.to_host(model.parameters.values).copy()
    schedule = optim.StepDecay(0.1, factor=0.5, every=3)
    got = run(optim.SGD(model.parameters, lr=9.0), lr=schedule)
    wanted = start - sum(lr * gradient(step) for step, lr in enumerate([.1, .1, .1, .05, .05, .05, .025]))
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


@each_case
def test_state_is_enough_to_go_on(ops, name):
    """Moments, step count and parameters copied into a new optimiser after 3 steps: 4 more end at the same bits."""
    cls, _, options, _ = CASES[name]
    whole = run(cls(build(ops).parameters, **options)).copy()
    first = cls(build(ops).parameters, **options)
    run(first, steps=3)
    second = cls(build(ops).parameters, **options)
    ops.copy_into(second.parameters.values, ops.to_host(first.parameters.values))
    assert set(first.state()) == set(second.state()) and int(first.steps) == 3
    for slot, array in second.state().items():
        array[...] = first.state()[slot]
    for step in range(3, STEPS):
        put_gradient(second.parameters, gradient(step))
        second.step()
    np.testing.assert_array_equal(ops.to_host(second.parameters.values), whole)


@pytest.mark.parametrize("name", optim.OPTIMISERS)
@pytest.mark.parametrize("lr", [0, -1, math.nan, math.inf])
def test_a_learning_rate_that_is_none(name, lr):
    model = build(get_ops("reference"))
    with pytest.raises(NnliteError, match=optim.OPTIMISERS[name].__name__):
        optim.OPTIMISERS[name](model.parameters, lr=lr)


# -- schedules --------------------------------------------------------------------------------------------------------

def values(schedule, steps):
    return [schedule(step) for step in steps]


def test_constant():
    assert values(optim.Constant(0.3), (0, 1, 10 ** 6)) == [0.3] * 3


def test_step_decay():
    schedule = optim.StepDecay(0.8, factor=0.5, every=10)
    assert values(schedule, (0, 9, 10, 19, 20, 99, 100)) == pytest.approx(
        [0.8, 0.8, 0.4, 0.4, 0.2, 0.8 / 512, 0.8 / 1024])


def test_inverse_time():
    assert values(optim.InverseTime(0.6, decay=0.5), (0, 1, 2, 4, 18)) == pytest.approx([0.6, 0.4, 0.3, 0.2, 0.06])


def test_cosine():
    schedule = optim.Cosine(1.0, steps=120, end=0.2)
    assert values(schedule, (0, 40, 60, 80, 120, 121, 9999)) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert optim.Cosine(2.0, steps=4)(1) == pytest.approx(1 + math.sqrt(0.5))
    assert optim.Cosine(2.0, steps=4)(4) == pytest.approx(0)


def test_warm_up():
    schedule = optim.Warmup(optim.Constant(0.4), steps=4)
    assert values(schedule, range(6)) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    schedule = optim.Warmup(optim.StepDecay(0.4, factor=0.1, every=2), steps=2)
    assert values(schedule, range(7)) == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004])
    assert optim.Warmup(optim.Constant(0.4), steps=0)(0) == 0.4
