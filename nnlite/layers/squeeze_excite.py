"""Squeeze-and-excitation: a net of its own says how much each channel of an image counts."""

from .base import Layer
from .dense import Dense
from .pool import GlobalAvgPool


class SqueezeExcite(Layer):
    """y[n, h, w, c] = x[n, h, w, c] s[n, c],  s = sigmoid(silu(mean of x W1 + b1) W2 + b2)

    x (N, H, W, C); the mean over H and W is squeezed to `squeezed` numbers and excited to C (Hu et al. 2018, eq. 2 to
    4; SiLU for their ReLU, as EfficientNet has it).

        ds[n, c] = sum over h, w of dy x
        dx = dy s + what comes back from ds through the two layers and the mean

    Keeps x and s.
    """

    def __init__(self, channels, squeezed):
        super().__init__()
        self.channels = channels
        self.mean = GlobalAvgPool()
        self.reduce = Dense(channels, squeezed, activation="silu")
        self.expand = Dense(squeezed, channels, activation="sigmoid")

    def forward(self, x, *, train=False):
        self.check(x, (None, None, None, self.channels), text=f"(N, H, W, {self.channels})")
        s = self.expand.forward(self.reduce.forward(self.mean.forward(x, train=train), train=train), train=train)
        self.keep(x, s, train=train)
        return self.ops.scale_channels(x, s)

    def backward(self, dy):
        x, s = self.take()
        self.check(dy, x.shape, "dy")
        dx, ds = self.ops.scale_channels_backward(dy, x, s)
        return self.ops.add(dx, self.mean.backward(self.reduce.backward(self.expand.backward(ds))))
