"""Self-attention and the block of a transformer that is built on it."""

from ..errors import expected
from .base import Layer
from .container import Sequential
from .dense import Dense
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
    Keeps [q, k, v], [h_1, h_2, ...] and ln sum_j e^{s_j} of each row of s.
    """

    can_skip_dx = True

    def __init__(self, features, heads):
        super().__init__()
        if type(heads) is not int or heads < 1 or features % heads:
            raise expected("MultiHeadAttention", f"a number of heads that divides the {features} features", heads)
        self.features, self.heads = features, heads
        self.qkv = Linear(features, 3 * features)
        self.project = Linear(features, features)

    def forward(self, x, *, train=False):
        self.check(x, (None, None, self.features), text=f"(N, T, {self.features})")
        qkv = self.qkv.forward(x, train=train)                                # (N, T, 3 D)
        h, log_sum = self.ops.attention(qkv, self.heads, train)               # (N, T, D), (N, heads, T)
        self.keep(qkv, h, log_sum, train=train)
        return self.project.forward(h, train=train)

    def backward(self, dy, *, need_dx=True):
        qkv, h, log_sum = self.take()
        dh = self.project.backward(dy)
        dqkv = self.ops.attention_backward(dh, h, log_sum, qkv, self.heads)
        return self.qkv.backward(dqkv, need_dx=need_dx)


class Block(Layer):
    """a = x + attention(norm1(x)),  y = a + mlp(norm2(a)),  mlp = gelu(n W1 + b1) W2 + b2

    The pre-norm block of a vision transformer (Dosovitskiy et al. 2021, eq. 2 and 3): x, y (N, T, D), `hidden` numbers
    inside the mlp. GELU is the exact one.

        da = dy + norm2'(mlp'(dy)),  dx = da + norm1'(attention'(da))

    Keeps nothing beside what its layers keep.
    """

    def __init__(self, features, heads, hidden, *, eps=1e-6):
        super().__init__()
        self.features = features
        self.norm1, self.attention = LayerNorm(features, eps=eps), MultiHeadAttention(features, heads)
        self.norm2 = LayerNorm(features, eps=eps)
        self.mlp = Sequential(Dense(features, hidden, activation="gelu"), Linear(hidden, features))

    def forward(self, x, *, train=False):
        self.check(x, (None, None, self.features), text=f"(N, T, {self.features})")
        a = self.ops.add(x, self.attention.forward(self.norm1.forward(x, train=train), train=train))
        return self.ops.add(a, self.mlp.forward(self.norm2.forward(a, train=train), train=train))

    def backward(self, dy):
        da = self.ops.add(dy, self.norm2.backward(self.mlp.backward(dy)))
        return self.ops.add(da, self.norm1.backward(self.attention.backward(da)))
