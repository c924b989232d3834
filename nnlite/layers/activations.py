"""Activations: y = f(x), element by element.

All of them have the same two lines. Forward keeps the slope f'(x), because it is cheapest to get while f(x) is made;
backward is dx = dy f'(x). A class states which f; `ops.activation` evaluates it.
"""

from .base import Layer


class Activation(Layer):
    """y = f(x), dx = dy f'(x). Keeps f'(x)."""

    function = ""   # the name of f in ops.activation
    alpha = 0.0     # its parameter, where it has one

    def forward(self, x, *, train=False):
        self.check(x, (...,))
        y, slope = self.ops.activation(x, self.function, self.alpha, train)
        self.keep(slope, train=train)
        return y

    def backward(self, dy):
        slope, = self.take()
        self.check(dy, slope.shape, "dy")
        return self.ops.multiply(dy, slope)


class ReLU(Activation):
    """y = max(x, 0);  f' = 1 for x > 0, else 0."""

    function = "relu"


class LeakyReLU(Activation):
    """y = x for x > 0, else alpha x;  f' = 1 or alpha (Maas et al. 2013)."""

    function = "leaky_relu"

    def __init__(self, alpha=0.01):
        super().__init__()
        self.alpha = alpha


class ELU(Activation):
    """y = x for x > 0, else alpha (e^x - 1);  f' = 1 or alpha e^x (Clevert et al. 2016, eq. 15)."""

    function = "elu"

    def __init__(self, alpha=1.0):
        super().__init__()
        self.alpha = alpha


class Sigmoid(Activation):
    """y = 1 / (1 + e^-x);  f' = y (1 - y)."""

    function = "sigmoid"


class Tanh(Activation):
    """y = tanh x;  f' = 1 - y^2."""

    function = "tanh"


class SiLU(Activation):
    """y = x s(x), s the sigmoid;  f' = s (1 + x (1 - s)) (Elfwing et al. 2018)."""

    function = "silu"


class Softplus(Activation):
    """y = ln(1 + e^x), computed as max(x, 0) + ln(1 + e^-|x|);  f' = s(x), the sigmoid."""

    function = "softplus"


class GELU(Activation):
    """y = x P(x), P the normal distribution function, exact;  f' = P(x) + x p(x) (Hendrycks & Gimpel 2016)."""

    function = "gelu"
