"""Small convolutional classifiers of coursework: images (H, W, C) -> logits (classes,).

    cnn3    conv 5x5 - ReLU - max pool - linear - ReLU - linear
    cnn4    4 times (conv 3x3 - [batch norm] - ReLU - max pool) - linear - ReLU - linear
    cnn5    conv 5x5 - avg pool - 2 times (2 convs 3x3 - avg pool) - 3 linear with dropout between, ReLU behind each
"""

import math

from ..errors import NnliteError, expected
from ..layers import AvgPool2d, Conv2d, Dense, Flatten, Linear, MaxPool2d, NormPool, Sequential

CNN5_FILTERS = 36, 48, 48


def cnn3(*, shape=(48, 48, 1), classes=7, filters=32, hidden=200):
    """One convolution; `filters` 5x5 kernels, padded so that the image keeps its size."""
    features = [Conv2d(shape[2], filters, 5, padding=2, relu=True), MaxPool2d(2)]
    return _classifier("cnn3", features, shape, classes, [hidden])


def cnn4(*, shape=(48, 48, 1), classes=7, filters=(32, 64, 96, 128), hidden=200, batch_norm=True, keep_prob=1.0):
    """A block for each number of filters. The convolutions have biases also before batch norm, which takes them away
    again: so they were published, and counted."""
    features = []
    for C, K in zip([shape[2], *filters], filters):
        features += [Conv2d(C, K, 3, padding=1, relu=not batch_norm), NormPool(K) if batch_norm else MaxPool2d(2)]
    return _classifier("cnn4", features, shape, classes, [hidden], keep_prob)


def cnn5(*, shape=(48, 48, 1), classes=7, hidden=(256, 128), keep_prob=0.5):
    """36 kernels 5x5, then twice two convolutions of 48 kernels 3x3; every convolution padded by 1."""
    a, b, c = CNN5_FILTERS
    features = [Conv2d(shape[2], a, 5, padding=1, relu=True), AvgPool2d(2),
                Conv2d(a, b, 3, padding=1, relu=True), Conv2d(b, b, 3, padding=1, relu=True), AvgPool2d(2),
                Conv2d(b, c, 3, padding=1, relu=True), Conv2d(c, c, 3, padding=1, relu=True), AvgPool2d(2)]
    return _classifier("cnn5", features, shape, classes, hidden, keep_prob)


def _classifier(name, features, shape, classes, hidden, keep_prob=1.0):
    """The layers of features, Dense layers of ReLU, and Linear."""
    sizes = [_flat_size(name, features, shape), *hidden]
    dense = [Dense(D, K, activation="relu", keep_prob=keep_prob) for D, K in zip(sizes, sizes[1:])]
    return Sequential(*features, Flatten(), *dense, Linear(sizes[-1], classes))


def _flat_size(name, layers, shape):
    """How many numbers the layers make of an image."""
    out = (1, *shape)
    try:
        for layer in layers:
            out = layer.out_shape(out)
    except NnliteError:   # a window that fits nowhere
        out = (0,)
    if not math.prod(out):
        raise expected(name, "images of which its poolings leave something", f"{shape[0]}x{shape[1]} pixels")
    return math.prod(out)
