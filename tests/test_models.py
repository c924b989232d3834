"""The classifiers' constructors: parameter counts as published, shapes, images that are too small."""

import math

import numpy as np
import pytest

from nnlite.errors import NnliteError
from nnlite.models import MODELS
from nnlite.ops import get_ops
from nnlite.ops.reference import ReferenceOps

CLASSIFIERS = "mlp", "cnn3", "cnn4", "cnn5"
EFFNET = {"shape": (48, 48, 1), "classes": 7, "top_filters": 24}


def built(name, **options):
    return MODELS[name](**options).build(get_ops("reference"))


@pytest.mark.parametrize("name, options, count", [
    ("mlp", {}, 3_313_007), ("cnn4", {"batch_norm": False}, 416_935), ("cnn4", {}, 417_575)])
def test_published_counts(name, options, count):
    assert built(name, **options).parameters.size == count


def declared(model, specs):
    """Numbers in the arrays that the layers declare; none is made."""
    return sum(math.prod(shape) for _, layer in model.walk() for shape, _ in getattr(layer, specs).values())


@pytest.mark.parametrize("name, options, count", [
    ("effnetv2s", {"shape": (224, 224, 3), "classes": 1000}, 21_458_488), ("effnetv2s", EFFNET, 19_853_183),
    ("effnetv2s-small", EFFNET, 1_824_439),
    ("resnet50", {}, 25_557_032), ("resnet50", {"classes": 6}, 23_520_326),
    ("vit-b16", {}, 86_567_656), ("vit-b16", {"classes": 6}, 85_803_270)])
def test_published_counts_of_large_nets(name, options, count):
    assert declared(MODELS[name](**options), "param_specs") == count


def test_the_running_statistics_of_effnetv2s():
    assert declared(MODELS["effnetv2s"](shape=(224, 224, 3), classes=1000), "state_specs") == 153_872


def test_recomputing_changes_nothing_but_memory():
    """The same names, first weights and gradients, to the bit."""
    models = [MODELS["vit-tiny"](shape=(12, 12, 1), recompute=recompute).build(get_ops("reference"), seed=3)
              for recompute in (False, True)]
    x, dy = np.random.default_rng(0).standard_normal((2, 12, 12, 1)).astype("float32"), np.eye(2, 7, dtype="float32")
    for model in models:
        model.zero_grad()
        model.forward(x, train=True)
        model.backward(dy, need_dx=False)
    a, b = (model.parameters for model in models)
    assert [entry[:4] for entry in a.table] == [entry[:4] for entry in b.table]
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.grads, b.grads)
    assert np.abs(a.grads).max() > 0


@pytest.mark.parametrize("twentieths", range(4, 29))
def test_depth_in_twentieths_means_what_it_says(twentieths):
    """0.2 + 0.05 k is at times a little more than the decimal number, and must not be a layer more."""
    model = MODELS["effnetv2s"](depth=0.2 + 0.05 * (twentieths - 4), width=0.2, top_filters=16)
    counts = [len(layer.layers) for name, layer in model.children().items() if name.startswith("stage")]
    assert counts == [-(-layers * twentieths // 20) for layers in (2, 4, 4, 6, 9, 15)]


def test_other_counts():
    """Kernel by kernel and matrix by matrix."""
    assert built("cnn3").parameters.size == 25 * 32 + 32 + 24 * 24 * 32 * 200 + 200 + 200 * 7 + 7
    convolutions = [(5, 1, 36), (3, 36, 48), (3, 48, 48), (3, 48, 48), (3, 48, 48)]
    matrices = [(5 * 5 * 48, 256), (256, 128), (128, 7)]   # 48 -> 46 -> 23 -> 11 -> 5
    assert built("cnn5").parameters.size == (
        sum(k * k * C * K + K for k, C, K in convolutions) + sum(D * K + K for D, K in matrices))
    assert built("mlp", shape=(32, 32, 3), classes=10, hidden=(80, 80)).parameters.size == (
        3072 * 80 + 80 + 80 * 80 + 80 + 80 * 10 + 10)


def test_the_running_statistics_of_cnn4_are_state():
    state = built("cnn4").state
    assert sum(array.size for array in state.values()) == 2 * (32 + 64 + 96 + 128)
    assert built("cnn4", batch_norm=False).state == {}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("shape, classes", [((48, 48, 1), 7), ((32, 32, 3), 10), ((30, 41, 2), 2)])
def test_any_images_and_classes(name, shape, classes):
    model = built(name, shape=shape, classes=classes)
    x = np.random.default_rng(0).random((2, *shape)).astype("f4")
    y = model.forward(x, train=True)
    assert y.shape == (2, classes) == model.out_shape(x.shape) and np.isfinite(y).all()
    assert model.backward(np.ones_like(y)).shape == x.shape


@pytest.mark.parametrize("name, shape", [("cnn3", (1, 9, 1)), ("cnn4", (15, 48, 1)), ("cnn4", (48, 8, 3)),
                                         ("cnn5", (9, 48, 1)), ("cnn5", (2, 2, 1))])
def test_images_of_which_nothing_is_left(name, shape):
    with pytest.raises(NnliteError, match=f"^{name}: expected images of which .*, got {shape[0]}x{shape[1]} pixels$"):
        MODELS[name](shape=shape)


def test_the_smallest_image_of_cnn4():
    assert built("cnn4", shape=(16, 16, 1)).out_shape((1, 16, 16, 1)) == (1, 7)


@pytest.mark.parametrize("name", ["mlp", "cnn5"])
def test_dropout_only_in_training(name):
    model = built(name, shape=(24, 24, 1), keep_prob=0.5)
    x = np.random.default_rng(0).random((3, 24, 24, 1)).astype("f4")
    np.testing.assert_array_equal(model.forward(x), model.forward(x))
    assert not np.array_equal(model.forward(x), model.forward(x, train=True))


def test_no_gradient_of_the_images_where_nobody_asks(monkeypatch):
    """The first layer's input gradient is the dearest of cnn4 and goes nowhere."""
    asked, inner = [], ReferenceOps.conv2d_backward
    monkeypatch.setattr(ReferenceOps, "conv2d_backward", lambda ops, *given: asked.append(given[-1]) or inner(
        ops, *given))
    model = built("cnn4", shape=(16, 16, 1))
    y = model.forward(np.ones((2, 16, 16, 1), "f4"), train=True)
    model.backward(np.ones_like(y), need_dx=False)
    assert asked == [True, True, True, False]
