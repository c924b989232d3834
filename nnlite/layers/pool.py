"""Pooling: each window, or each whole image, becomes one number a channel."""

from ..errors import expected
from .base import Layer
from .conv import pair, window_shape

LARGEST_WINDOW = 256   # places that an unsigned byte can name


class MaxPool2d(Layer):
    """y[n, h, w] = max over the window of x[n, h s + i - p, w s + j - p]

    x (N, H, W, C), y (N, Ho, Wo, C) with Ho = (H + 2 p - kh) // s + 1. Beyond the edges x is -infinity. The stride is
    the kernel's size where none is given.

        dx at the place of the largest (the first, if several are as large) = sum of dy over the windows it won

    Keeps the place in each window.
    """

    def __init__(self, kernel, *, stride=None, padding=0):
        super().__init__()
        self.kernel = pair(kernel, "kernel")
        self.stride = pair(self.kernel if stride is None else stride, "stride")
        self.padding = pair(padding, "padding", 0)
        if self.kernel[0] * self.kernel[1] > LARGEST_WINDOW:
            raise expected("MaxPool2d", f"a kernel of at most {LARGEST_WINDOW} places", self.kernel)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel)):
            raise expected("MaxPool2d", "a padding of at most half the kernel", self.padding)

    def out_shape(self, x_shape):
        return (*window_shape(self, x_shape), x_shape[3])

    def forward(self, x, *, train=False):
        self.check(x, (None,) * 4, text="(N, H, W, C)")
        self.out_shape(x.shape)
        y, place = self.ops.max_pool(x, self.kernel, self.stride, self.padding, train)
        self.keep(place, x.shape, train=train)
        return y

    def backward(self, dy):
        place, shape = self.take()
        self.check(dy, place.shape, "dy")
        return self.ops.max_pool_backward(dy, place, shape, self.kernel, self.stride, self.padding)


class AvgPool2d(Layer):
    """y[n, h, w] = mean over the window of x[n, h s + i, w s + j]

    x (N, H, W, C), y (N, Ho, Wo, C) with Ho = (H - kh) // s + 1; the stride is the kernel's size where none is given.

        dx[n, h s + i, w s + j] = sum over all such h, i, w, j of dy[n, h, w] / (kh kw)

    Keeps the shape of x.
    """

    padding = (0, 0)

    def __init__(self, kernel, *, stride=None):
        super().__init__()
        self.kernel = pair(kernel, "kernel")
        self.stride = pair(self.kernel if stride is None else stride, "stride")

    def out_shape(self, x_shape):
        return (*window_shape(self, x_shape), x_shape[3])

    def forward(self, x, *, train=False):
        self.check(x, (None,) * 4, text="(N, H, W, C)")
        self.out_shape(x.shape)
        self.keep(x.shape, train=train)
        return self.ops.avg_pool(x, self.kernel, self.stride)

    def backward(self, dy):
        shape, = self.take()
        self.check(dy, self.out_shape(shape), "dy")
        return self.ops.avg_pool_backward(dy, shape, self.kernel, self.stride)


class GlobalAvgPool(Layer):
    """y = mean of x over H and W;  dx = dy / (H W) at each place

    x (N, H, W, C), y (N, C). Keeps the shape of x.
    """

    def out_shape(self, x_shape):
        return (x_shape[0], x_shape[3])

    def forward(self, x, *, train=False):
        self.check(x, (None,) * 4, text="(N, H, W, C)")
        self.keep(x.shape, train=train)
        return self.ops.global_avg_pool(x)

    def backward(self, dy):
        shape, = self.take()
        self.check(dy, self.out_shape(shape), "dy")
        return self.ops.global_avg_pool_backward(dy, shape)
