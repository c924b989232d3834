"""Self-attention and the block of a transformer that is built on it."""

from ..errors import expected
from . import init
from .base import Layer
from .container import Sequential
from .linear import Linear
from .norm import LayerNorm


class MultiHeadAttention(Layer):
    """y = [h_1, h_2, ...] Wo + bo,  h_i = softmax(q_i k_i^T / sqrt(d)) v_i (Vaswani et al. 2017, sect. 3.2)

    x, y (N, T, D); [q, k, v] = x W + b, W (D, 3 D), each of the three cut into `heads` blocks of d = D / heads
    columns. The softmax goes over the keys. With p the softmax of one head, and s what it is taken of:

        dv = p^T dh,  dp = dh v^T
        ds = p (dp - sum_j p_j dp_j) / sqrt(d)
        dq = ds k,  dk = ds^T q

    The fast ops make s block by block and never hold all T x T of it: backward makes p again from what is kept.
    Keeps x (or how to make it `again`, see Linear), [q, k, v], [h_1, h_2, ...] and ln sum_j e^{s_j} of each row of s.
    """

    can_skip_dx = True

    def __init__(self, features, heads):
        super().__init__()
        if type(heads) is not int or heads < 1 or features % heads:
            raise expected("MultiHeadAttention", f"a number of heads that divides the {features} features", heads)
        self.features, self.heads = features, heads
        self.qkv = Linear(features, 3 * features)
        self.project = Linear(features, features)

    def forward(self, x, *, train=False, again=None):
        self.check(x, (None, None, self.features), text=f"(N, T, {self.features})")
        qkv = self.qkv.forward(x, train=train, again=again)                   # (N, T, 3 D)
        h, log_sum = self.ops.attention(qkv, self.heads, train)               # (N, T, D), (N, heads, T)
        self.keep(qkv, h, log_sum, train=train)
        return self.project.forward(h, train=train)

    def backward(self, dy, *, need_dx=True):
        qkv, h, log_sum = self.take()
        dh = self.project.backward(dy)
        dqkv = self.ops.attention_backward(dh, h, log_sum, qkv, self.heads)
        return self.qkv.backward(dqkv, need_dx=need_dx)


class FeedForward(Sequential):
    """y = gelu(h) W2 + b2,  h = x W1 + b1,  for each token by itself (Vaswani et al. 2017, sect. 3.3)

    x, y (..., D), h (..., `hidden`). GELU is the exact one.

        dh = dy W2^T gelu'(h)
        dW2 = gelu(h)^T dy,  dW1 = x^T dh,  dx = dh W1^T       db2, db1 the sums of dy and dh over all rows

    Keeps x (or how to make it `again`, see Linear) and h alone: backward makes gelu(h) and gelu'(h) of it.
    """

    def __init__(self, features, hidden):
        super().__init__(Linear(features, hidden, weight_init=init.he_normal), Linear(hidden, features))

    def forward(self, x, *, train=False, again=None):
        first, second = self.layers
        h = first.forward(x, train=train, again=again)
        self.keep(h, train=train)
        return self.ops.linear(self.ops.activation(h, "gelu", 1.0, False)[0], second.W, second.b)

    def backward(self, dy, *, need_dx=True):
        first = self.layers[0]
        dy, slope = self._through_second(dy)
        x, = first.take()
        return self.ops.dense_backward(dy, slope, x, first.W, first.dW, first.db, first.accumulate("W", "b"), need_dx)

    def _through_second(self, dy):
        """dy W2^T and gelu'(h); h and gelu(h), which are large, are gone then."""
        second = self.layers[1]
        y, slope = self.ops.activation(*self.take(), "gelu", 1.0, True)
        self.check(dy, second.out_shape(y.shape), "dy")
        dy = self.ops.linear_backward(dy, y, second.W, second.dW, second.db, second.accumulate("W", "b"), True)
        return dy, slope


class Block(Layer):
    """a = x + attention(norm1(x)),  y = a + mlp(norm2(a))

    The pre-norm block of a vision transformer (Dosovitskiy et al. 2021, eq. 2 and 3): x, y (N, T, D); mlp is a
    FeedForward with `hidden` numbers inside.

        da = dy + norm2'(mlp'(dy)),  dx = da + norm1'(attention'(da))

    Keeps nothing beside what its layers keep, and these not the norms' outputs, which backward makes again.
    """

    def __init__(self, features, heads, hidden, *, eps=1e-6):
        super().__init__()
        self.features = features
        self.norm1, self.attention = LayerNorm(features, eps=eps), MultiHeadAttention(features, heads)
        self.norm2 = LayerNorm(features, eps=eps)
        self.mlp = FeedForward(features, hidden)

    def forward(self, x, *, train=False):
        self.check(x, (None, None, self.features), text=f"(N, T, {self.features})")
        n = self.norm1.forward(x, train=train)
        a = self.ops.add(x, self.attention.forward(n, train=train, again=self.norm1.again))
        n = self.norm2.forward(a, train=train)
        return self.ops.add(a, self.mlp.forward(n, train=train, again=self.norm2.again))

    def backward(self, dy):
        da = self.ops.add(dy, self.norm2.backward(self.mlp.backward(dy)))
        return self.ops.add(da, self.norm1.backward(self.attention.backward(da)))
