"""Shapes that change while the numbers stay."""

import math

from .base import Layer


class Flatten(Layer):
    """y = x with all axes but the first made one;  dx = dy in the shape of x

    x (N, H, W, C), y (N, H W C), the channel running fastest. Keeps the shape of x.
    """

    def out_shape(self, x_shape):
        return (x_shape[0], math.prod(x_shape[1:]))

    def forward(self, x, *, train=False):
        self.check(x, (...,))
        self.keep(x.shape, train=train)
        return self.ops.copy(x).reshape(self.out_shape(x.shape))

    def backward(self, dy):
        shape, = self.take()
        self.check(dy, self.out_shape(shape), "dy")
        return self.ops.copy(dy).reshape(shape)
