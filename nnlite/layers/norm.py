"""Batch normalisation (Ioffe & Szegedy 2015) of rows (N, C) and images (N, H, W, C) alike; layer normalisation."""

from . import init
from .base import Layer
from .conv import window_shape
from .dense import check_activation


class BatchNorm(Layer):
    """y = f(g n + b),  n = (x - mean) / sqrt(var + eps)

    x (..., C), g, b (C,); f an activation by name. In training mean and var are those of the R rows of the batch, and
    the running ones follow it:

        running_mean += momentum (mean - running_mean),  running_var += momentum (var R / (R - 1) - running_var)

    otherwise mean and var are the running ones. Backward goes through mean and var too:

        dh = dy f'(g n + b)
        db = sum dh,  dg = sum dh n                                            over the rows
        dx = g / sqrt(var + eps) (dh - db / R - n dg / R)

    g starts as 1, b as 0. Keeps x, mean, 1 / sqrt(var + eps).
    """

    def __init__(self, channels, *, eps=1e-5, momentum=0.1, activation="identity"):
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.activation = check_activation(activation)
        declare_norm(self, channels)

    def forward(self, x, *, train=False):
        self.check(x, (..., self.channels))
        y, mean, inv_std = self.ops.batch_norm(x, self.g, self.b, self.running_mean, self.running_var, self.momentum,
                                               self.eps, self.activation, train)
        self.keep(x, mean, inv_std, train=train)
        return y

    def backward(self, dy):
        x, mean, inv_std = self.take()
        self.check(dy, x.shape, "dy")
        return self.ops.batch_norm_backward(dy, x, mean, inv_std, self.g, self.b, self.dg, self.db, self.activation,
                                            self.accumulate("g", "b"))


class NormPool(Layer):
    """y = the largest of each 2x2 window of max(g n + b, 0),  n = (x - mean) / sqrt(var + eps)

    BatchNorm with ReLU and then MaxPool2d(2) in one pass over the memory: x (N, H, W, C), y (N, H // 2, W // 2, C).
    The largest of a window is the only place through which a gradient comes back:

        dh = dy at the largest of each window if it is above 0, 0 elsewhere
        db = sum dh,  dg = sum dh n
        dx = g / sqrt(var + eps) (dh - db / R - n dg / R)                      R = N H W

    Else as BatchNorm. Keeps x, mean, 1 / sqrt(var + eps) and the places.
    """

    kernel, stride, padding = (2, 2), (2, 2), (0, 0)

    def __init__(self, channels, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        declare_norm(self, channels)

    def out_shape(self, x_shape):
        return (*window_shape(self, x_shape), self.channels)

    def forward(self, x, *, train=False):
        self.check(x, (None, None, None, self.channels), text=f"(N, H, W, {self.channels})")
        self.out_shape(x.shape)
        y, mean, inv_std, place = self.ops.norm_pool(x, self.g, self.b, self.running_mean, self.running_var,
                                                     self.momentum, self.eps, train)
        self.keep(x, mean, inv_std, place, train=train)
        return y

    def backward(self, dy):
        x, mean, inv_std, place = self.take()
        self.check(dy, place.shape, "dy")
        return self.ops.norm_pool_backward(dy, place, x, mean, inv_std, self.g, self.dg, self.db,
                                           self.accumulate("g", "b"))


class LayerNorm(Layer):
    """y = g n + b,  n = (x - mean) / sqrt(var + eps), mean and var over the D numbers of each row (Ba et al. 2016)

    x (..., D), g, b (D,). Every row is normalised by itself, so training and evaluation are the same.

        dn = dy g
        dx = 1 / sqrt(var + eps) (dn - mean of dn - n mean of dn n)
        dg = sum dy n,  db = sum dy                                            over the rows

    g starts as 1, b as 0. Keeps x, mean, 1 / sqrt(var + eps).
    """

    def __init__(self, features, *, eps=1e-5):
        super().__init__()
        self.features, self.eps = features, eps
        self.add_param("g", (features,), init.ones)
        self.add_param("b", (features,), init.zeros)

    def forward(self, x, *, train=False):
        self.check(x, (..., self.features))
        y, mean, inv_std = self.ops.layer_norm(x, self.g, self.b, self.eps)
        self.keep(x, mean, inv_std, train=train)
        return y

    def again(self):
        """y once more, between forward and backward: for a layer behind this one that does not keep it."""
        return self.ops.layer_norm(self._kept[0], self.g, self.b, self.eps)[0]

    def backward(self, dy):
        x, mean, inv_std = self.take()
        self.check(dy, x.shape, "dy")
        return self.ops.layer_norm_backward(dy, x, mean, inv_std, self.g, self.dg, self.db, self.accumulate("g", "b"))


def declare_norm(layer, channels):
    layer.add_param("g", (channels,), init.ones)
    layer.add_param("b", (channels,), init.zeros)
    layer.add_state("running_mean", (channels,), 0)
    layer.add_state("running_var", (channels,), 1)
