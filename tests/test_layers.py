"""What all layers share: gradients written, added and never stale; one instance in one place; words for misuse."""

import numpy as np
import pytest

from nnlite.errors import NnliteError
from nnlite.layers import ConditionalDense, Dense, Layer, Linear, Sequential, init
from nnlite.ops import get_ops
from nnlite.ops.reference import keep_threshold
from nnlite.optim import SGD


class LinearThenScale(Layer):
    """y = g (x W): one gradient from ops in one call, one by add_grad."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.add_param("W", (inputs, outputs), init.lecun_normal)
        self.add_param("g", (outputs,), init.ones)

    def forward(self, x, *, train=False):
        h = self.ops.linear(x, self.W, None)
        self.keep(x, h, train=train)
        return h * self.g

    def backward(self, dy):
        x, h = self.take()
        self.add_grad("g", (dy * h).sum(0))
        return self.ops.linear_backward(dy * self.g, x, self.W, self.dW, None, self.accumulate("W"), True)


@pytest.fixture
def layer():
    return LinearThenScale(3, 2).build(get_ops("reference"), dtype="float64", seed=1)


def test_gradients_do_not_leak_from_step_to_step(layer):
    x, dy = np.arange(12.0).reshape(4, 3), np.ones((4, 2))
    wanted = (dy * (x @ layer.W)).sum(0)
    for _ in range(3):
        layer.zero_grad()
        layer.forward(x, train=True)
        layer.backward(dy)
        np.testing.assert_allclose(layer.dg, wanted, rtol=1e-12)
        np.testing.assert_allclose(layer.dW, x.T @ (dy * layer.g), rtol=1e-12)
    layer.forward(x, train=True)
    layer.backward(dy)
    np.testing.assert_allclose(layer.dg, 2 * wanted, rtol=1e-12)
    np.testing.assert_allclose(layer.dW, 2 * x.T @ (dy * layer.g), rtol=1e-12)


def test_a_gradient_that_no_backward_wrote_is_zero_for_the_optimiser(layer):
    layer.dW[...] = 5
    layer.zero_grad()
    layer.add_grad("g", np.array([1.0, 2.0]))
    before = layer.W.copy()
    SGD(layer.parameters, lr=1.0).step()
    np.testing.assert_array_equal(layer.W, before)
    np.testing.assert_array_equal(layer.g, [0.0, -1.0])


def test_a_layer_has_one_place_in_a_model():
    linear = Linear(3, 3)
    with pytest.raises(NnliteError, match="'1': expected a layer of its own, got the one that is also '0'"):
        Sequential(linear, linear).build(get_ops("reference"))


@pytest.mark.parametrize("make", [lambda name: Dense(3, 2, activation=name),
                                  lambda name: ConditionalDense(3, 2, 2, activation=name)])
@pytest.mark.parametrize("name", ["eluu", "leaky_relu", None])
def test_an_unknown_activation_is_named(make, name):
    with pytest.raises(NnliteError, match=f"activation: expected one of identity, relu.*got {name!r}"):
        make(name)


@pytest.mark.parametrize("keep_prob", [1e-12, 1e-9, 0.5, 1 - 1e-9, 1 - 1e-12])
@pytest.mark.parametrize("ops", ["reference", "cpu"])
def test_extreme_keep_probabilities(ops, keep_prob):
    """A threshold is a 32-bit word: it neither wraps to 0 nor turns dropout off."""
    assert 0 < keep_threshold(keep_prob) < 2 ** 32
    layer = Dense(2, 50, activation="identity", keep_prob=keep_prob).build(get_ops(ops), dtype="float64")
    y = layer.forward(np.ones((40, 2)), train=True)
    assert abs((y != 0).mean() - keep_prob) < 0.05
