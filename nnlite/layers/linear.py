"""y = x W + b"""

from . import init
from .base import Layer


class Linear(Layer):
    """y = x W + b

    x (..., D), W (D, K), b (K,), y (..., K).

        dx = dy W^T
        dW = x^T dy           summed over all rows
        db = sum of dy over all rows

    W starts as N(0, 1/D) (LeCun et al. 1998, eq. 16) or as `weight_init`, b as 0. Keeps x, or a function `again` that
    makes it once more of what other layers keep.
    """

    can_skip_dx = True

    def __init__(self, in_features, out_features, *, bias=True, weight_init=init.lecun_normal):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.add_param("W", (in_features, out_features), weight_init)
        self.b = self.db = None
        if bias:
            self.add_param("b", (out_features,), init.zeros)

    def out_shape(self, x_shape):
        return (*x_shape[:-1], self.out_features)

    def forward(self, x, *, train=False, again=None):
        self.check(x, (..., self.in_features))
        y = self.ops.linear(x, self.W, self.b)
        self.keep(x if again is None else again, train=train)
        return y

    def backward(self, dy, *, need_dx=True):
        x, = self.take()
        self.check(dy, self.out_shape(x.shape), "dy")
        return self.ops.linear_backward(dy, x, self.W, self.dW, self.db, self.accumulate(*self.param_specs), need_dx)
