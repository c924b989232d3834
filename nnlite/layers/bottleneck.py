"""The block of ResNet-50 (He et al. 2016, fig. 5)."""

from .base import Layer
from .container import Sequential
from .conv import Conv2d
from .norm import BatchNorm


class Bottleneck(Layer):
    """y = relu(f(x) + s(x))

        f = 1x1 to `inner` channels, 3x3 with the stride, 1x1 to K channels; batch norm behind each, ReLU behind two
        s(x) = x, or where stride or channels change a 1x1 convolution with the stride and batch norm

        dh = dy where y > 0, else 0
        dx = f'(dh) + s'(dh)

    The stride is on the 3x3 convolution ("v1.5"). x (N, H, W, C), y (N, ceil(H / stride), ceil(W / stride), K).
    Keeps y.
    """

    def __init__(self, in_channels, inner, out_channels, *, stride=1):
        super().__init__()
        self.branch = Sequential(
            conv1=Conv2d(in_channels, inner, 1, bias=False), norm1=BatchNorm(inner, activation="relu"),
            conv2=Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False),
            norm2=BatchNorm(inner, activation="relu"),
            conv3=Conv2d(inner, out_channels, 1, bias=False), norm3=BatchNorm(out_channels))
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = Sequential(conv=Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                                       norm=BatchNorm(out_channels))

    def out_shape(self, x_shape):
        return self.branch.out_shape(x_shape)

    def forward(self, x, *, train=False):
        f = self.branch.forward(x, train=train)
        y = self.ops.add_relu(f, x if self.shortcut is None else self.shortcut.forward(x, train=train))
        self.keep(y, train=train)
        return y

    def backward(self, dy):
        y, = self.take()
        self.check(dy, y.shape, "dy")
        dh = self.ops.relu_backward(dy, y)
        return self.ops.add(self.branch.backward(dh), dh if self.shortcut is None else self.shortcut.backward(dh))
