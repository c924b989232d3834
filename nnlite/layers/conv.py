"""Convolutions, channels last: a kernel's weight (kh, kw, C, K) is its matrix for each place in the window."""

from ..errors import expected
from . import init
from .base import Layer


class Conv2d(Layer):
    """y[n, h, w] = b + sum_ij x[n, h s + i d - p, w s + j d - p] W[i, j]

    x (N, H, W, C), W (kh, kw, C / groups, K), b (K,), y (N, Ho, Wo, K) with Ho = (H + 2 p - d (kh - 1) - 1) // s + 1.
    kernel, stride s, padding p (zeros) and dilation d are numbers or pairs (rows, columns). With groups > 1 each
    group of K / groups outputs sees a group of C / groups channels. relu: y = max(..., 0).

        dh = dy where y > 0, else 0                                        (with relu; else dh = dy)
        dx[n, h s + i d - p, w s + j d - p] = sum over all such h, i, w, j of dh[n, h, w] W[i, j]^T
        dW[i, j] = sum over n, h, w of x[n, h s + i d - p, w s + j d - p]^T dh[n, h, w]
        db = sum of dh over n, h, w

    W starts as N(0, 2 / (kh kw C / groups)) (He et al. 2015, eq. 10), b as 0. Keeps x, and y with relu.
    """

    can_skip_dx = True

    def __init__(self, in_channels, out_channels, kernel, *, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 relu=False):
        super().__init__()
        for what, number in (("channels", in_channels), ("channels", out_channels), ("groups", groups)):
            if type(number) is not int or number < 1:
                raise expected("Conv2d", f"{what} as a whole number of at least 1", number)
        if in_channels % groups or out_channels % groups:
            raise expected("Conv2d", f"channels that {groups} groups divide", (in_channels, out_channels))
        self.in_channels, self.out_channels, self.groups, self.relu = in_channels, out_channels, groups, relu
        self.kernel, self.stride = pair(kernel, "kernel"), pair(stride, "stride")
        self.padding, self.dilation = pair(padding, "padding", 0), pair(dilation, "dilation")
        self.add_param("W", (*self.kernel, in_channels // groups, out_channels), init.he_normal)
        self.b = self.db = None
        if bias:
            self.add_param("b", (out_channels,), init.zeros)

    def out_shape(self, x_shape):
        return (*window_shape(self, x_shape), self.out_channels)

    def forward(self, x, *, train=False):
        self.check(x, (None, None, None, self.in_channels), text=f"(N, H, W, {self.in_channels})")
        self.out_shape(x.shape)
        y = self.ops.conv2d(x, self.W, self.b, self.stride, self.padding, self.dilation, self.groups, self.relu)
        self.keep(x, y if self.relu else None, train=train)
        return y

    def backward(self, dy, *, need_dx=True):
        x, y = self.take()
        self.check(dy, self.out_shape(x.shape), "dy")
        return self.ops.conv2d_backward(dy, y, x, self.W, self.dW, self.db, self.stride, self.padding, self.dilation,
                                        self.groups, self.accumulate(*self.param_specs), need_dx)


class DepthwiseConv2d(Layer):
    """y[n, h, w] = b + sum_ij x[n, h s + i d - p, w s + j d - p] * W[i, j], element by element

    One kernel a channel: x (N, H, W, C), W (kh, kw, C), b (C,), y (N, Ho, Wo, C); else as Conv2d.

        dx[n, h s + i d - p, w s + j d - p] = sum over all such h, i, w, j of dy[n, h, w] * W[i, j]
        dW[i, j] = sum over n, h, w of x[n, h s + i d - p, w s + j d - p] * dy[n, h, w]
        db = sum of dy over n, h, w

    W starts as N(0, 2 / (kh kw)), b as 0. Keeps x.
    """

    can_skip_dx = True

    def __init__(self, channels, kernel, *, stride=1, padding=0, dilation=1, bias=True):
        super().__init__()
        self.channels, self.kernel, self.stride = channels, pair(kernel, "kernel"), pair(stride, "stride")
        self.padding, self.dilation = pair(padding, "padding", 0), pair(dilation, "dilation")
        self.add_param("W", (*self.kernel, channels), init.he_normal)
        self.b = self.db = None
        if bias:
            self.add_param("b", (channels,), init.zeros)

    def out_shape(self, x_shape):
        return (*window_shape(self, x_shape), self.channels)

    def forward(self, x, *, train=False):
        self.check(x, (None, None, None, self.channels), text=f"(N, H, W, {self.channels})")
        self.out_shape(x.shape)
        y = self.ops.depthwise_conv2d(x, self.W, self.b, self.stride, self.padding, self.dilation)
        self.keep(x, train=train)
        return y

    def backward(self, dy, *, need_dx=True):
        x, = self.take()
        self.check(dy, self.out_shape(x.shape), "dy")
        return self.ops.depthwise_conv2d_backward(dy, x, self.W, self.dW, self.db, self.stride, self.padding,
                                                  self.dilation, self.accumulate(*self.param_specs), need_dx)


def pair(value, what, least=1):
    """(rows, columns) from a number or a pair."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(isinstance(n, int) and n >= least for n in values):
        raise expected(what, f"a whole number of at least {least}, or two", value)
    return values


def window_shape(layer, x_shape):
    """(N, Ho, Wo) for a layer with kernel, stride, padding and, where it has one, dilation."""
    N, H, W, _ = x_shape
    dilation = getattr(layer, "dilation", (1, 1))
    Ho, Wo = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(
        (H, W), layer.kernel, layer.stride, layer.padding, dilation))
    if Ho < 1 or Wo < 1:
        raise expected(layer.label, "images in which at least one window fits", tuple(x_shape))
    return N, Ho, Wo
