"""Inverted dropout: of numbers, and of whole samples."""

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


class StochasticDepth(Layer):
    """y[n] = m_n x[n], m_n = 1/q with probability q = `keep_prob`, else 0; in evaluation y = x.

    Behind the inner layers of a residual block it leaves the block out for some samples (Huang et al. 2016, eq. 2).

        dx[n] = m_n dy[n]

    Keeps m (N,) and the shape of x.
    """

    def __init__(self, keep_prob):
        super().__init__()
        self.keep_prob = check_keep_prob(keep_prob)

    def forward(self, x, *, train=False):
        self.check(x, (...,))
        if not train:
            return self.ops.copy(x)
        ones = self.ops.empty((len(x), 1), self.dtype)
        self.ops.fill(ones, 1)
        m, _ = self.ops.dropout(ones, self.keep_prob, self.rng.key(self.name))
        self.keep(m, x.shape, train=train)
        return self.ops.scale_samples(x, m.reshape(-1))

    def backward(self, dy):
        m, shape = self.take()
        self.check(dy, shape, "dy")
        return self.ops.scale_samples(dy, m.reshape(-1))
