"""Layers with the mistakes that people make, for testing the gradient checker; the right ones first.

WRONG: class -> (constructor arguments, input shape, words that the report must contain).
"""

import numpy as np

from nnlite import layers as nl
from nnlite.layers import Layer, init


class Affine(Layer):
    """y = x W + b, right."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.add_param("W", (in_features, out_features), init.lecun_normal)
        self.add_param("b", (out_features,), init.zeros)

    def out_shape(self, x_shape):
        return (x_shape[0], self.b.shape[0])

    def forward(self, x, *, train=False):
        self.keep(x, train=train)
        return x @ self.W + self.b

    def backward(self, dy):
        x, = self.take()
        self.add_grad("W", x.T @ dy)
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class Normalise(Layer):
    """Batch norm without scale and shift, right: y = (x - m) / s with mean m and s^2 = variance + eps of each column.

    dx = (dy - mean(dy) - y mean(dy y)) / s
    """

    def forward(self, x, *, train=False):
        inverse = 1 / np.sqrt(x.var(0) + 1e-3)
        y = (x - x.mean(0)) * inverse
        self.keep(y, inverse, train=train)
        return y

    def backward(self, dy):
        y, inverse = self.take()
        return (dy - dy.mean(0) - y * (dy * y).mean(0)) * inverse


class CountedMask(Layer):
    """Dropout in plain array code, right."""

    def forward(self, x, *, train=False):
        mask = self.ops.dropout_mask(x.shape, 0.5, self.rng.key("mask"), x.dtype)
        self.keep(mask, train=train)
        return x * mask

    def backward(self, dy):
        mask, = self.take()
        return dy * mask


class Scale(Layer):
    """y = x g, right; g starts at 1."""

    def __init__(self, features):
        super().__init__()
        self.add_param("g", (features,), init.ones)

    def forward(self, x, *, train=False):
        self.keep(x, train=train)
        return x * self.g

    def backward(self, dy):
        x, = self.take()
        self.add_grad("g", (dy * x).sum(0))
        return dy * self.g


class RunningMean(Layer):
    """y = x, and a running mean of x as state: right."""

    def __init__(self, features):
        super().__init__()
        self.add_state("mean", (features,), 0.0)

    def forward(self, x, *, train=False):
        y = x * (1 + self.mean)
        if train:
            self.mean += 0.1 * x.mean(0)
        self.keep(1 + x.mean(0) * 0, train=train)
        return y

    def backward(self, dy):
        factor, = self.take()
        return dy * factor


RIGHT = {Affine: ((4, 3), (5, 4)), Normalise: ((), (6, 3)), CountedMask: ((), (5, 4)), Scale: ((4,), (5, 4)),
         RunningMean: ((4,), (5, 4))}


# -- wrong gradients ------------------------------------------------------------------------------------------------

class ZeroGradient(Affine):
    def backward(self, dy):
        return super().backward(dy) * 0


class Sign(Affine):
    def backward(self, dy):
        x, = self.take()
        self.add_grad("W", -(x.T @ dy))
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class Factor2(Affine):
    def backward(self, dy):
        return 2 * super().backward(dy)


class MissingFactor2(Affine):
    """y = (x W + b)^2 with dy y instead of 2 dy y."""

    def forward(self, x, *, train=False):
        h = x @ self.W + self.b
        self.keep(x, h, train=train)
        return h * h

    def backward(self, dy):
        x, h = self.take()
        self.keep(x, train=True)
        return super().backward(dy * h)


class DividedByBatch(Affine):
    def backward(self, dy):
        x, = self.take()
        self.add_grad("W", x.T @ dy / len(x))
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class BatchMeanBias(Affine):
    def backward(self, dy):
        x, = self.take()
        self.add_grad("W", x.T @ dy)
        self.add_grad("b", dy.mean(0))
        return dy @ self.W.T


class ForgottenVariancePath(Normalise):
    """Takes the standard deviation for a constant."""

    def backward(self, dy):
        y, inverse = self.take()
        return (dy - dy.mean(0)) * inverse


class ForgottenMeanPath(Normalise):
    def backward(self, dy):
        y, inverse = self.take()
        return (dy - y * (dy * y).mean(0)) * inverse


class TransposedInput(Layer):
    """A square linear map along both axes alike, with the result transposed."""

    def forward(self, x, *, train=False):
        self.keep(train=train)
        return 3 * x

    def backward(self, dy):
        self.take()
        return 3 * dy.T


class TransposedWeight(Affine):
    """Right only for a square W in shape, and wrong in value."""

    def backward(self, dy):
        x, = self.take()
        self.add_grad("W", dy.T @ x)
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class ForgottenScale(Scale):
    """dx = dy: does not show while g is 1."""

    def backward(self, dy):
        x, = self.take()
        self.add_grad("g", (dy * x).sum(0))
        return dy * 1.0


class OtherMask(CountedMask):
    """Dropout with another mask in backward, drawn again from the same kind of stream."""

    def backward(self, dy):
        self.take()
        return dy * self.ops.dropout_mask(dy.shape, 0.5, self.rng.key("another mask"), dy.dtype)


class NoMask(CountedMask):
    def backward(self, dy):
        self.take()
        return dy * 2.0


class HiddenRandomness(Layer):
    """Draws a new mask at each forward, from a generator that nobody can set back."""

    generator = np.random.default_rng(1)

    def forward(self, x, *, train=False):
        mask = self.generator.random(x.shape) < 0.5
        self.keep(mask, train=train)
        return x * mask

    def backward(self, dy):
        mask, = self.take()
        return dy * mask


class HiddenBackwardRandomness(CountedMask):
    generator = np.random.default_rng(1)

    def backward(self, dy):
        self.take()
        return dy * (self.generator.random(dy.shape) < 0.5)


class IgnoresInput(Affine):
    """Numeric gradient of x zero everywhere; the zeros that backward returns agree with it."""

    def forward(self, x, *, train=False):
        self.keep(x * 0, train=train)
        return x * 0 @ self.W + self.b

    def backward(self, dy):
        return super().backward(dy) * 0


# -- wrong gradients of image layers ----------------------------------------------------------------------------------

class ShiftedByOne(nl.Conv2d):
    """The padding off by one on the way back."""

    def backward(self, dy):
        return np.roll(super().backward(dy), 1, axis=1)


class UnturnedKernel(nl.Conv2d):
    """dx with the kernel as forward has it, instead of turned round."""

    def backward(self, dy):
        W = self.W
        self.W = W[::-1, ::-1]
        dx = super().backward(dy)
        self.W = W
        return dx


class LostKernelPlace(nl.Conv2d):
    """A loop over the kernel that starts at 1."""

    def backward(self, dy):
        dx = super().backward(dy)
        self.dW[0, 0] = 0
        return dx


class ForgottenRelu(nl.Conv2d):
    """Lets dy through where y is 0."""

    def __init__(self, *args):
        super().__init__(*args, relu=True)

    def backward(self, dy):
        x, _ = self.take()
        self.keep(x, None, train=True)
        return super().backward(dy)


class ConstantVariance(nl.BatchNorm):
    """Takes 1 / sqrt(var + eps) for a constant, in the layer with parameters."""

    def backward(self, dy):
        x, mean, inv_std = self.take()
        self.keep(x, mean, inv_std, train=True)
        n = (x - mean) * inv_std
        return super().backward(dy) + self.g * inv_std * n * (dy * n).mean((0, 1, 2))


class DividedByImages(nl.BatchNorm):
    """The means over N instead of N H W."""

    def backward(self, dy):
        x, mean, inv_std = self.take()
        n = (x - mean) * inv_std
        self.add_grad("g", (dy * n).sum((0, 1, 2)))
        self.add_grad("b", dy.sum((0, 1, 2)))
        return self.g * inv_std * (dy - (dy.sum((0, 1, 2)) + n * (dy * n).sum((0, 1, 2))) / len(x))


class RunningInsteadOfBatch(nl.BatchNorm):
    """Backward with the running statistics, forward with the batch's."""

    def backward(self, dy):
        x, _, _ = self.take()
        self.keep(x, self.running_mean, 1 / np.sqrt(self.running_var + self.eps), train=True)
        return super().backward(dy)


class PooledToTheFirst(nl.MaxPool2d):
    """dy to the first place of each window, whichever was the largest."""

    def backward(self, dy):
        place, shape = self.take()
        self.keep(place * 0, shape, train=True)
        return super().backward(dy)


class AddedWithoutDivision(nl.AvgPool2d):
    def backward(self, dy):
        return super().backward(dy) * 4


# -- broken contracts -----------------------------------------------------------------------------------------------

class MutatedInput(Affine):
    def forward(self, x, *, train=False):
        x += 1
        return super().forward(x, train=train)


class MutatedDy(Affine):
    def backward(self, dy):
        dx = super().backward(dy)
        dy *= 0.5
        return dx


class WrittenWithoutChange(Affine):
    """Writes into dy what was there already: comparing sees nothing, read-only memory does."""

    def backward(self, dy):
        dx = super().backward(dy)
        dy *= 1
        return dx


class MutatedInputInBackward(Affine):
    def backward(self, dy):
        x, = self.take()
        self.keep(x, train=True)
        dx = super().backward(dy)
        x[...] = 0
        return dx


class UnwrittenRow(Affine):
    def backward(self, dy):
        x, = self.take()
        self.dW[1:] = (x.T @ dy)[1:]
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class UnwrittenParameter(Affine):
    def backward(self, dy):
        x, = self.take()
        self.add_grad("W", x.T @ dy)
        return dy @ self.W.T


class Overwritten(Affine):
    def backward(self, dy):
        x, = self.take()
        self.dW[...] = x.T @ dy
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class AddedToStale(Affine):
    def backward(self, dy):
        x, = self.take()
        self.dW += x.T @ dy
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class Rebound(Affine):
    def backward(self, dy):
        x, = self.take()
        self.dW = x.T @ dy
        self.add_grad("b", dy.sum(0))
        return dy @ self.W.T


class ComputesNaN(Affine):
    def backward(self, dy):
        x, = self.take()
        self.add_grad("W", x.T @ dy)
        self.add_grad("b", dy.sum(0) * np.nan)
        return dy @ self.W.T


class Float32Output(Affine):
    def forward(self, x, *, train=False):
        return super().forward(x, train=train).astype("float32")


class Float32Dx(Affine):
    def backward(self, dy):
        return super().backward(dy).astype("float32")


class WrongShapeDx(Affine):
    def backward(self, dy):
        return super().backward(dy).sum(0)


class ReturnsNothing(Affine):
    def backward(self, dy):
        super().backward(dy)


class Raises(Affine):
    def backward(self, dy):
        return self.weights.T @ dy


class MovesParameter(Affine):
    def backward(self, dy):
        dx = super().backward(dy)
        self.W -= 0.1 * self.dW
        return dx


AFFINE = (4, 3), (5, 4)
SQUARE = (4, 4), (5, 4)
CONV = (2, 3, 3), (2, 4, 5, 2)
WRONG = {
    ZeroGradient: (*AFFINE, ["x  (5, 4)        WRONG  backward is zero everywhere"]),
    Sign: (*AFFINE, ["W  (4, 3)        WRONG", "sign flipped", "wrong_layers.py", 'self.add_grad("W", -(x.T @ dy))']),
    Factor2: (*AFFINE, ["x  (5, 4)        WRONG", "is 2 everywhere: counted twice", "return 2 * super()"]),
    MissingFactor2: (*AFFINE, ["is 0.5 everywhere: a factor 2 is missing"]),
    DividedByBatch: (*AFFINE, ["W  (4, 3)        WRONG", "divided by the batch (5)"]),
    BatchMeanBias: (*AFFINE, ["b  (3,)          WRONG", "divided by the batch (5)"]),
    ForgottenVariancePath: ((), (6, 3), ["x  (6, 3)        WRONG"]),
    ForgottenMeanPath: ((), (6, 3), ["x  (6, 3)        WRONG"]),
    TransposedInput: ((), (4, 4), ["transposed"]),
    TransposedWeight: (*SQUARE, ["W  (4, 4)        WRONG  transposed"]),
    ForgottenScale: ((4,), (5, 4), ["x  (5, 4)        WRONG", "in each column"]),
    OtherMask: ((), (5, 4), ["another mask in backward"]),
    NoMask: ((), (5, 4), ["another mask in backward than in forward, or none"]),
    HiddenRandomness: ((), (5, 4), ["another y for the same x", "self.rng.key"]),
    HiddenBackwardRandomness: ((), (5, 4), ["another gradient of x for the same dy"]),
    IgnoresInput: (*AFFINE, ["x  (5, 4)        WRONG  numeric gradient zero everywhere: nothing was checked"]),
    ShiftedByOne: (*CONV, ["x  (2, 4, 5, 2)  WRONG"]),
    UnturnedKernel: (*CONV, ["x  (2, 4, 5, 2)  WRONG"]),
    LostKernelPlace: (*CONV, ["W  (3, 3, 2, 3)  WRONG", "a part is left out", "look at"]),
    ForgottenRelu: (*CONV, ["x  (2, 4, 5, 2)  WRONG", "W  (3, 3, 2, 3)  WRONG", "b  (3,)          WRONG"]),
    ConstantVariance: ((3,), (2, 3, 4, 3), ["x  (2, 3, 4, 3)  WRONG"]),
    DividedByImages: ((3,), (2, 3, 4, 3), ["x  (2, 3, 4, 3)  WRONG"]),
    RunningInsteadOfBatch: ((3,), (2, 3, 4, 3), ["x  (2, 3, 4, 3)  WRONG", "g  (3,)          WRONG"]),
    PooledToTheFirst: ((2,), (2, 4, 5, 3), ["x  (2, 4, 5, 3)  WRONG", "another mask in backward than in forward"]),
    AddedWithoutDivision: ((2,), (2, 4, 5, 3), ["x  (2, 4, 5, 3)  WRONG", "is 4 everywhere"]),
    MutatedInput: (*AFFINE, ["forward changed x"]),
    MutatedDy: (*AFFINE, ["backward changed dy"]),
    WrittenWithoutChange: (*AFFINE, ["backward writes into dy"]),
    MutatedInputInBackward: (*AFFINE, ["backward changed x"]),
    UnwrittenRow: (*AFFINE, ["W  (4, 3)        WRONG  not written: 1 of 4 rows"]),
    UnwrittenParameter: (*AFFINE, ["b  (3,)          WRONG  not written: 3 of 3 numbers"]),
    Overwritten: (*AFFINE, ["W  (4, 3)        WRONG  overwritten", "must add"]),
    AddedToStale: (*AFFINE, ["W  (4, 3)        WRONG  added to instead of written"]),
    Rebound: (*AFFINE, ["W  (4, 3)        WRONG  not written: self.dW was bound to another array"]),
    ComputesNaN: (*AFFINE, ["b  (3,)          WRONG  NaN in 3 places: backward computes it"]),
    Float32Output: (*AFFINE, ["y is float32 for a float64 input"]),
    Float32Dx: (*AFFINE, ["x  (5, 4)        WRONG  float32 for a float64 input"]),
    WrongShapeDx: (*AFFINE, ["x  (5, 4)        WRONG  backward returns shape (4,), expected (5, 4)"]),
    ReturnsNothing: (*AFFINE, ["backward returns NoneType"]),
    Raises: (*AFFINE, ["backward raises AttributeError", "wrong_layers.py"]),
    MovesParameter: (*AFFINE, ["parameter W changed"]),
}
