"""From images to tokens and back to one: patches, the class token, positions (Dosovitskiy et al. 2021, eq. 1 and 4)."""

from ..errors import expected
from . import init
from .base import Layer
from .linear import Linear


class PatchEmbed(Layer):
    """y[n, t] = x's square t, its pixels row by row, times W, + b

    x (N, H, W, C), cut into T = (H / p) (W / p) squares of `size` = p pixels a side, y (N, T, D), W (p p C, D): a
    convolution whose stride is its kernel. Its derivative is that of Linear, with the pixels put back in their places.
    Keeps the shape of x.
    """

    can_skip_dx = True

    def __init__(self, channels, features, size):
        super().__init__()
        if type(size) is not int or size < 1:
            raise expected("PatchEmbed", "a size of at least 1 pixel", size)
        self.channels, self.features, self.size = channels, features, size
        self.project = Linear(size * size * channels, features)

    def out_shape(self, x_shape):
        N, H, W, _ = x_shape
        if H % self.size or W % self.size:
            raise expected(self.label, f"images of whole squares of {self.size} pixels", tuple(x_shape))
        return N, H // self.size * (W // self.size), self.features

    def forward(self, x, *, train=False):
        self.check(x, (None, None, None, self.channels), text=f"(N, H, W, {self.channels})")
        self.out_shape(x.shape)
        self.keep(x.shape, train=train)
        return self.project.forward(self.ops.patches(x, self.size), train=train)

    def backward(self, dy, *, need_dx=True):
        shape, = self.take()
        dx = self.project.backward(dy, need_dx=need_dx)
        return self.ops.patches_backward(dx, shape, self.size) if need_dx else None


class ClassToken(Layer):
    """y[n] = [c, x[n]]: one token c (D,), learnt, before the T of every image

    x (N, T, D), y (N, T + 1, D).  dx = dy without the first token, dc = sum over n of the first.
    c starts as N(0, 0.02^2). Keeps the shape of x.
    """

    def __init__(self, features):
        super().__init__()
        self.features = features
        self.add_param("c", (features,), init.small_normal)

    def out_shape(self, x_shape):
        return x_shape[0], x_shape[1] + 1, x_shape[2]

    def forward(self, x, *, train=False):
        self.check(x, (None, None, self.features), text=f"(N, T, {self.features})")
        self.keep(x.shape, train=train)
        return self.ops.prepend_token(x, self.c)

    def backward(self, dy):
        shape, = self.take()
        self.check(dy, self.out_shape(shape), "dy")
        return self.ops.prepend_token_backward(dy, self.dc, self.accumulate("c"))


class PositionEmbedding(Layer):
    """y[n, t] = x[n, t] + P[t];  dx = dy, dP = sum over n of dy

    x, y (N, T, D), P (T, D), which starts as N(0, 0.02^2). Keeps the shape of x.
    """

    def __init__(self, tokens, features):
        super().__init__()
        self.add_param("P", (tokens, features), init.small_normal)
        self.wanted = (None, tokens, features)

    def forward(self, x, *, train=False):
        self.check(x, self.wanted)
        self.keep(x.shape, train=train)
        return self.ops.add_to_samples(x, self.P)

    def backward(self, dy):
        shape, = self.take()
        self.check(dy, shape, "dy")
        self.ops.sum_samples(dy, self.dP, self.accumulate("P"))
        return self.ops.copy(dy)


class TakeToken(Layer):
    """y[n] = x[n, index], x (N, T, D), y (N, D);  dx = dy at index, 0 elsewhere. Keeps the shape of x."""

    def __init__(self, index=0):
        super().__init__()
        self.index = index

    def out_shape(self, x_shape):
        return x_shape[0], x_shape[2]

    def forward(self, x, *, train=False):
        self.check(x, (None, None, None), text="(N, T, D)")
        if x.shape[1] <= self.index:
            raise expected(self.label, f"x with more than {self.index} tokens", x.shape)
        self.keep(x.shape, train=train)
        return self.ops.take_token(x, self.index)

    def backward(self, dy):
        shape, = self.take()
        self.check(dy, self.out_shape(shape), "dy")
        return self.ops.take_token_backward(dy, shape[1], self.index)
