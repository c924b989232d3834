"""Saliency maps against central differences of the evaluated logits, and against PyTorch's automatic gradient."""

import numpy as np
import pytest

from nnlite import models
from nnlite.errors import NnliteError
from nnlite.layers import (AvgPool2d, BatchNorm, Concat, Conv2d, Dense, Dropout, Flatten, GlobalAvgPool, Linear,
                           MaxPool2d, NormPool, ReLU, Residual, Sequential)
from nnlite.ops import get_ops
from nnlite.saliency import evaluation_twin, saliency

H = 1e-5


class Classifier(Sequential):
    """A model of its own kind with a layer beside the list."""

    def __init__(self):
        super().__init__(Conv2d(1, 4, 3, padding=1), NormPool(4), Flatten())
        self.head = Linear(4 * 3 * 4, 3)

    def children(self):
        return {**super().children(), "head": self.head}

    def forward(self, x, *, train=False):
        return self.head.forward(super().forward(x, train=train), train=train)

    def backward(self, dy):
        return super().backward(self.head.backward(dy))


MODELS = {
    "mlp": ((5, 4, 1), lambda: Sequential(
        Flatten(), Dense(20, 9, activation="relu", keep_prob=0.5), Dense(9, 6, keep_prob=0.7), Linear(6, 3))),
    "cnn, norm and pool in one": ((8, 8, 3), lambda: Sequential(
        Conv2d(3, 6, 3, padding=1, bias=False), NormPool(6), Conv2d(6, 5, 3, padding=1, bias=False), NormPool(5),
        Flatten(), Dense(20, 7, activation="relu"), Linear(7, 4))),
    "odd sizes": ((7, 9, 1), Classifier),
    "cnn, pools apart": ((9, 8, 2), lambda: Sequential(
        Conv2d(2, 4, 3, padding=1, relu=True), MaxPool2d(2), Conv2d(4, 6, 3, padding=1), BatchNorm(6, activation="elu"),
        AvgPool2d(2), Flatten(), Dropout(0.5), Linear(24, 10))),
    "branches": ((6, 6, 2), lambda: Sequential(
        Residual(Sequential(Conv2d(2, 2, 3, padding=1), BatchNorm(2, activation="relu"))),
        Concat(Conv2d(2, 3, 1), Sequential(Conv2d(2, 2, 3, padding=1), ReLU())), GlobalAvgPool(), BatchNorm(5),
        Linear(5, 3))),
    "vit-tiny": ((6, 6, 1), lambda: models.vit_tiny(shape=(6, 6, 1), classes=3)),
    "vit-tiny, computed anew": ((6, 6, 1), lambda: models.vit_tiny(shape=(6, 6, 1), classes=3, recompute=True)),
    "effnetv2s-small": ((6, 6, 1), lambda: models.effnetv2s_small(
        shape=(6, 6, 1), classes=3, width=0.2, depth=0.3, top_filters=8, keep_prob=0.5)),
    "resnet-small": ((6, 6, 1), lambda: models.resnet_small(shape=(6, 6, 1), classes=3)),
}


def build(name, ops, dtype="float64", seed=0):
    """(model, x): a model with random scales and running statistics that differ from those of x."""
    shape, make = MODELS[name]
    model = make().build(ops, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for path, array in model.state.items():
        values = rng.uniform(0.5, 2, array.shape) if path.endswith("var") else rng.normal(size=array.shape) / 3
        ops.copy_into(array, values)
    for _, layer in model.walk():
        if isinstance(layer, (BatchNorm, NormPool)):
            ops.copy_into(layer.g, rng.normal(1, 0.3, layer.g.shape))
            ops.copy_into(layer.b, rng.normal(0, 0.3, layer.b.shape))
    return model, rng.normal(size=(3, *shape))


def numeric(model, x, classes):
    """Central differences of the evaluated logit of each row's class, largest over channels."""
    gradient = np.empty(x.shape)
    rows = np.arange(len(x))
    for place in np.ndindex(x.shape[1:]):
        ends = []
        for step in (H, -H):
            moved = x.copy()
            moved[(slice(None), *place)] += step
            logits = model.ops.to_host(model.forward(model.ops.asarray(moved, "float64"), train=False))
            ends.append(logits[rows, classes])
        gradient[(slice(None), *place)] = (ends[0] - ends[1]) / (2 * H)
    return np.abs(gradient).max(axis=3)


@pytest.mark.parametrize("name", MODELS)
def test_central_differences(name):
    model, x = build(name, get_ops("reference"))
    classes = np.array([2, 0, 1])
    wanted = numeric(model, x, classes)
    assert wanted.max() > 0.01 and wanted.shape == x.shape[:3]
    np.testing.assert_allclose(saliency(model, x, classes), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "cnn, norm and pool in one", "cnn, pools apart"])
def test_every_ops_agrees(fast_ops, name):
    model, x = build(name, fast_ops, "float32")
    reference, _ = build(name, get_ops("reference"))
    classes = np.array([1, 1, 0])
    made = saliency(model, fast_ops.asarray(x.astype(np.float32)), classes)
    assert made.dtype == np.float32
    wanted = saliency(reference, x, classes)
    np.testing.assert_allclose(made, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_the_twin_gives_the_evaluated_logits():
    for name in MODELS:
        model, x = build(name, get_ops("reference"))
        twin = evaluation_twin(model)
        assert not {id(layer) for _, layer in model.walk()} & {id(layer) for _, layer in twin.walk()}, name
        logits = twin.forward(x, train=True)
        np.testing.assert_allclose(logits, model.forward(x, train=False), rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_stays_as_it_is(name):
    """A step of training is under way: forward has kept, gradients are written, statistics have moved."""
    model, x = build(name, get_ops("reference"))
    model.zero_grad()
    y = model.forward(x, train=True)
    model.backward(y)
    wanted = model.parameters.grads.copy()
    model.zero_grad()
    model.forward(x, train=True)
    arrays = [model.parameters.values, model.parameters.grads, *model.state.values()]
    before = [array.copy() for array in arrays]
    saliency(model, x, [0, 1, 2])
    for array, held in zip(arrays, before):
        np.testing.assert_array_equal(array, held)
    again = model.backward(y)   # what forward kept is still there
    assert again.shape == x.shape
    np.testing.assert_array_equal(model.parameters.grads, wanted)   # written, not added to those of before
    assert all(np.array_equal(model.state[path], array) for path, array in model.state.items())


def test_against_pytorch():
    torch = pytest.importorskip("torch")
    model, x = build("cnn, norm and pool in one", get_ops("reference"))
    nn, layers = torch.nn, model.layers
    peer = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)).double()
    dense, last = nn.Linear(20, 7).double(), nn.Linear(7, 4).double()
    with torch.no_grad():
        for conv, norm, ours in ((peer[0], peer[1], layers[0:2]), (peer[4], peer[5], layers[2:4])):
            conv.weight.copy_(torch.tensor(ours[0].W.transpose(3, 2, 0, 1).copy()))
            for theirs, values in ((norm.weight, ours[1].g), (norm.bias, ours[1].b),
                                   (norm.running_mean, ours[1].running_mean), (norm.running_var, ours[1].running_var)):
                theirs.copy_(torch.tensor(values.copy()))
        for linear, ours in ((dense, layers[5]), (last, layers[6])):
            linear.weight.copy_(torch.tensor(ours.W.T.copy()))
            linear.bias.copy_(torch.tensor(ours.b.copy()))
    peer.eval()
    t = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    scores = last(torch.relu(dense(peer(t).permute(0, 2, 3, 1).flatten(1))))
    classes = [3, 0, 2]
    scores[range(3), classes].sum().backward()
    wanted = t.grad.abs().amax(dim=1).numpy()
    np.testing.assert_allclose(saliency(model, x, classes), wanted, rtol=1e-10, atol=1e-13)


def test_more_images_than_go_through_at_once(monkeypatch):
    model, x = build("cnn, pools apart", get_ops("reference"))
    classes = [0, 5, 9]
    whole = saliency(model, x, classes)
    seen = []
    monkeypatch.setattr(model.ops, "contiguous", lambda part: seen.append(len(part)) or np.ascontiguousarray(part),
                        raising=False)
    monkeypatch.setattr("nnlite.saliency.CHUNK", 2)
    np.testing.assert_allclose(saliency(model, x, classes), whole, rtol=1e-12)
    assert seen[0] == 2
    monkeypatch.setattr("nnlite.data.batches.SMALL_IMAGE", 9 * 8)   # of two channels: half as many
    seen.clear()
    np.testing.assert_allclose(saliency(model, x, classes), whole, rtol=1e-12)
    assert seen[0] == 1
    assert saliency(model, x[:0], []).shape == (0, 9, 8)


def test_dropout_is_off():
    """With half of the units dropped two calls would differ."""
    model, x = build("mlp", get_ops("reference"))
    first = saliency(model, x, [0, 1, 2])
    model.rng.set_step(1)
    np.testing.assert_array_equal(saliency(model, x, [0, 1, 2]), first)


def test_bad_input():
    model, x = build("mlp", get_ops("reference"))
    with pytest.raises(NnliteError, match=r"saliency: expected classes from 0 to 2, got 0 to 3"):
        saliency(model, x, [0, 3, 1])
    with pytest.raises(NnliteError, match=r"saliency: expected a class for each of 3 images"):
        saliency(model, x, [0])
