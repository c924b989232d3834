"""Inverted dropout."""

from .base import Layer
from .dense import check_keep_prob


class Dropout(Layer):
    """y = m x, m = 1/q with probability q = `keep_prob`, else 0; in evaluation y = x.

    Dividing by q in training keeps the mean, so that evaluation needs no scaling (Srivastava et al. 2014, sect. 10).

        dx = m dy

    Keeps m.
    """

    def __init__(self, keep_prob):
        super().__init__()
        self.keep_prob = check_keep_prob(keep_prob)

    def forward(self, x, *, train=False):
        self.check(x, (...,))
        if not train:
            return self.ops.copy(x)   # y belongs to the caller, so it is not x itself
        y, mask = self.ops.dropout(x, self.keep_prob, self.rng.key(self.name))
        self.keep(mask, train=train)
        return y

    def backward(self, dy):
        mask, = self.take()
        self.check(dy, mask.shape, "dy")
        return self.ops.multiply(dy, mask)
