"""Linear, activation and dropout as one layer: one pass over the memory behind the matrix product."""

from ..errors import expected
from . import init
from .base import Layer


class Dense(Layer):
    """y = m * f(x W + b)

    x (..., D), W (D, K), b (K,), y (..., K); f an activation by name ("elu", "relu", ...); m the dropout mask: 1/q
    with probability q = `keep_prob`, else 0, in training; 1 otherwise. The same numbers as
    Sequential(Linear, ELU, Dropout) with the same stream.

        dh = dy * m f'(h)     h = x W + b
        dx = dh W^T
        dW = x^T dh
        db = sum of dh over all rows

    W starts as N(0, 2/D) (He et al. 2015, eq. 10), b as 0. Keeps x and the slope m f'(h).
    """

    can_skip_dx = True

    def __init__(self, in_features, out_features, *, activation="elu", keep_prob=1.0):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.keep_prob = check_activation(activation), check_keep_prob(keep_prob)
        self.add_param("W", (in_features, out_features), init.he_normal)
        self.add_param("b", (out_features,), init.zeros)

    def out_shape(self, x_shape):
        return (*x_shape[:-1], self.out_features)

    def forward(self, x, *, train=False):
        self.check(x, (..., self.in_features))
        y, slope = self.ops.dense(x, self.W, self.b, self.activation, self.keep_prob, self.rng.key(self.name), train)
        self.keep(x, slope, train=train)
        return y

    def backward(self, dy, *, need_dx=True):
        x, slope = self.take()
        self.check(dy, slope.shape, "dy")
        return self.ops.dense_backward(dy, slope, x, self.W, self.dW, self.db, self.accumulate("W", "b"), need_dx)


class ConditionalDense(Layer):
    """h = m * f([z, c] W + b), where c belongs to L consecutive rows of z

    z (B L, K), c (B, D), W (K + D, H), b (H,), h (B L, H). Since [z, c] W = z Wz + c Wc, the product with c, which
    does not depend on the sample l, is computed for B rows instead of B L:

        s = c Wc + b                                       (B, H)
        h = m * f(z Wz + s, each row of s L times)         (B L, H)

        da = dh * m f'(a)                                  (B L, H)
        ds = da summed over the L rows of each c           (B, H)
        dz = da Wz^T,  dWz = z^T da,  dWc = c^T ds,  db = sum of ds over all rows
        dc = ds Wc^T                                       only with condition_gradient=True

    Initialised as Dense. Keeps z, c and the slope m f'(a).
    """

    def __init__(self, in_features, condition_features, out_features, *, activation="elu", keep_prob=1.0,
                 condition_gradient=False):
        super().__init__()
        self.in_features, self.condition_features = in_features, condition_features
        self.out_features, self.activation = out_features, check_activation(activation)
        self.keep_prob, self.condition_gradient = check_keep_prob(keep_prob), condition_gradient
        self.add_param("W", (in_features + condition_features, out_features), init.he_normal)
        self.add_param("b", (out_features,), init.zeros)

    def out_shape(self, z_shape):
        return (z_shape[0], self.out_features)

    def forward(self, z, c, *, train=False):
        self.check(c, (None, self.condition_features), "c")
        self.check(z, (None, self.in_features), "z")
        if not len(c) or z.shape[0] % len(c):
            raise expected(self.label, f"z with a multiple of {len(c)} rows, as c has", z.shape)
        K = self.in_features
        s = self.ops.linear(c, self.W[K:], self.b)
        h, slope = self.ops.dense(z, self.W[:K], s, self.activation, self.keep_prob, self.rng.key(self.name), train)
        self.keep(z, c, slope, train=train)
        return h

    def backward(self, dh):
        """dz, or (dz, dc) with condition_gradient=True."""
        z, c, slope = self.take()
        self.check(dh, slope.shape, "dh")
        K, accumulate = self.in_features, self.accumulate("W", "b")
        # s was added to z Wz like a bias, so ds comes back like a bias gradient: one row for each c.
        ds = self.ops.zeros((len(c), self.out_features), self.dtype)
        dz = self.ops.dense_backward(dh, slope, z, self.W[:K], self.dW[:K], ds, accumulate, True)
        dc = self.ops.linear_backward(ds, c, self.W[K:], self.dW[K:], self.db, accumulate, self.condition_gradient)
        return (dz, dc) if self.condition_gradient else dz


ACTIVATIONS = "identity", "relu", "elu", "sigmoid", "tanh", "silu", "softplus", "gelu"


def check_activation(activation):
    if activation not in ACTIVATIONS:
        raise expected("activation", "one of " + ", ".join(ACTIVATIONS), repr(activation))
    return activation


def check_keep_prob(keep_prob):
    if not 0 < keep_prob <= 1:
        raise expected("keep_prob", "a probability above 0 and at most 1", keep_prob)
    return keep_prob
