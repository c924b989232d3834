"""Saliency maps: which pixels a classifier's decision hangs on (Simonyan, Vedaldi & Zisserman 2013, sect. 3).

The map of an image is the size of the gradient of one class score with respect to the image. That is the model's own
backward, but in evaluation: dropout off, batch norm by its running statistics. A layer keeps what backward needs only
in training, so the gradient is taken from a twin of the model in which those two are replaced.
"""

import copy

import numpy as np

from .data.batches import images_at_once
from .errors import expected
from .layers import BatchNorm, Dropout, Layer, MaxPool2d, NormPool, Sequential

CHUNK = 64   # small images at once


def saliency(model, x, classes):
    """(n, H, W) NumPy array: max over channels of |d score / d x|, score the logit of `classes` (n,) before softmax.

    x (n, H, W, C) is the input as the model gets it (normalised), an array of its ops and dtype; the gradient is with
    respect to that. The model, its gradients and running statistics stay as they are. The score is the logit because a
    probability also rises where the other classes fall (sect. 2 there). Raises NnliteError for classes out of range.
    """
    classes = np.asarray(classes)
    if classes.shape != (len(x),):
        raise expected("saliency", f"a class for each of {len(x)} images", f"classes {classes.shape}")
    twin, ops, maps = evaluation_twin(model), model.ops, []
    count = images_at_once(CHUNK, x.shape[1:])
    for start in range(0, len(x), count):
        rows = slice(start, start + count)
        logits = twin.forward(ops.contiguous(x[rows]), train=True)
        wanted, scores = classes[rows], logits.shape[1]
        if not ((0 <= wanted) & (wanted < scores)).all():
            raise expected("saliency", f"classes from 0 to {scores - 1}", f"{wanted.min()} to {wanted.max()}")
        # No layer of the twin mixes rows, so one backward gives each image its own gradient.
        dx = twin.backward(ops.asarray(wanted[:, None] == np.arange(scores), model.dtype))
        maps.append(np.abs(ops.to_host(dx)).max(axis=3))
    return np.concatenate(maps) if maps else np.zeros(x.shape[:3], model.dtype)


def evaluation_twin(model):
    """A model whose forward(train=True) gives what `model` gives with train=False, and whose backward is its gradient.

    The twin reads the parameters and running statistics of `model`, and writes parameter gradients of its own.
    """
    if isinstance(model, BatchNorm):
        return FixedNorm(model, model.activation)
    if isinstance(model, NormPool):
        return _built(Sequential(FixedNorm(model, "relu"), _built(MaxPool2d(2), model)), model)
    if isinstance(model, Dropout):
        return _built(Sequential(), model)   # no layers: y = x
    twin = _built(copy.copy(model), model)
    for name, value in vars(model).items():
        other = _with_twins(value)
        if other is not value:
            setattr(twin, name, other)
    for attribute, (shape, _) in model.param_specs.items():
        setattr(twin, "d" + attribute, model.ops.empty(shape, model.dtype))
    if hasattr(twin, "keep_prob"):
        twin.keep_prob = 1.0
    return twin


def _with_twins(value):
    """value, a layer or a tuple, list or dict of such, with the twin of each layer in it; anything else as it is."""
    if isinstance(value, Layer):
        return evaluation_twin(value)
    if isinstance(value, dict) and any(isinstance(part, Layer) for part in value.values()):
        return {key: _with_twins(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and any(isinstance(part, Layer) for part in value):
        return type(value)(_with_twins(part) for part in value)
    return value


class FixedNorm(Layer):
    """y = f(g (x - mean) / sqrt(var + eps) + b) with the running mean and variance of a BatchNorm or NormPool.

        dx = dy f'(...) g / sqrt(var + eps)

    Keeps the slope f'.
    """

    def __init__(self, norm, activation):
        super().__init__()
        _built(self, norm)
        self.norm, self.activation = norm, activation

    def children(self):
        return {}   # the parameters are those of the model

    def forward(self, x, *, train=False):
        norm = self.norm
        self.check(x, (..., norm.channels))
        h = (x - norm.running_mean) * self._scale() + norm.b
        y, slope = self.ops.activation(h, self.activation, 1.0, train)
        self.keep(slope, train=train)
        return y

    def backward(self, dy):
        slope, = self.take()
        self.check(dy, slope.shape, "dy")
        return dy * slope * self._scale()

    def _scale(self):
        norm = self.norm
        return norm.g / (norm.running_var + norm.running_var.dtype.type(norm.eps)) ** 0.5


def _built(layer, like):
    """layer with the ops, name and dtype of `like`, nothing kept and no gradient written."""
    layer.name, layer.ops, layer.rng = like.name, like.ops, like.rng
    layer.dtype, layer._dtype = like.dtype, like._dtype
    layer._kept, layer.written = None, set()
    return layer
