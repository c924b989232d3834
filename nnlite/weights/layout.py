"""How the arrays of nnlite lie in PyTorch: channels first, the outputs of a layer before its inputs."""

from typing import NamedTuple

from ..layers import (ConditionalDense, Conv2d, Dense, DepthwiseConv2d, Flatten, Linear, PatchEmbed, SqueezeExcite)
from .names import translated


class Turn(NamedTuple):
    """From nnlite to PyTorch: reshape to `parts`, put the axes in `order`, reshape to `shape`."""

    parts: tuple
    order: tuple
    shape: tuple

    def theirs(self, array):
        return array.reshape(self.parts).transpose(self.order).reshape(self.shape)

    def ours(self, array, shape):
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return array.reshape([self.parts[axis] for axis in self.order]).transpose(back).reshape(shape)


class Row(NamedTuple):
    """An array of a model and what it is in a file: the tensors called `theirs`, one under the other, turned."""

    ours: str
    array: object
    theirs: tuple
    turn: Turn
    attribute: str
    layer: str       # the path of its owner

    @property
    def shape(self):
        """Of each of the tensors."""
        first, *rest = self.turn.shape
        return first // len(self.theirs), *rest


def rows(model, dialect, prefix=None):
    """A Row for every parameter and every running statistic of the model."""
    translate, layers, flattened = translated(model, dialect, prefix), dict(model.walk()), _flattened(model)
    found = []
    for entry in model.parameters.table:
        path = entry.owner.name
        turn = _turn(entry.attribute, entry.shape, entry.owner, layers.get(path.rpartition(".")[0]),
                     flattened.get(path, 1))
        found.append(Row(entry.name, model.parameters.value(entry), translate(path, entry.attribute), turn,
                         entry.attribute, path))
    for name, array in model.state.items():
        path, _, attribute = name.rpartition(".")
        found.append(Row(name, array, translate(path, attribute), _same(array.shape), attribute, path))
    return found


def _same(shape):
    return Turn(shape, tuple(range(len(shape))), shape)


def _turn(attribute, shape, owner, parent, channels):
    """channels: of the images that were flattened to be the inputs of a matrix."""
    if attribute == "c":
        return Turn(shape, (0,), (1, 1, *shape))
    if attribute == "P":
        return Turn(shape, (0, 1), (1, *shape))
    if attribute != "W":
        return _same(shape)
    if isinstance(owner, Conv2d):
        kh, kw, C, K = shape
        return Turn(shape, (3, 2, 0, 1), (K, C, kh, kw))
    if isinstance(owner, DepthwiseConv2d):
        kh, kw, C = shape
        return Turn(shape, (2, 0, 1), (C, 1, kh, kw))
    if not isinstance(owner, (Linear, Dense, ConditionalDense)):
        raise TypeError(f"{type(owner).__name__}.W has no known place in PyTorch")
    D, K = shape
    if isinstance(parent, PatchEmbed):
        p, C = parent.size, parent.channels
        return Turn((p, p, C, K), (3, 2, 0, 1), (K, C, p, p))
    if isinstance(parent, SqueezeExcite):   # there convolutions 1x1
        return Turn(shape, (1, 0), (K, D, 1, 1))
    return Turn((D // channels, channels, K), (2, 1, 0), (K, D))


def _flattened(model):
    """Path of the layer behind a Flatten -> how many channels its images have: PyTorch flattens channel by channel."""
    found, channels, layers = {}, 1, getattr(model, "layers", ())
    for layer, after in zip(layers, layers[1:]):
        channels = getattr(layer, "out_channels", channels)
        if isinstance(layer, Flatten):
            found[after.name] = channels
    return found
