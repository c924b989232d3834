"""The methods of CudaOps on tokens (N, T, D): attention, layer norm, and how tokens begin and end."""

import numpy as np

from .kernels import BLOCK, ROW_BLOCK, plain, pointer

TILE = 64   # rows and columns that a block makes, as in attention.cu


class TokenOps:
    """One of CudaOps' parts: it has the kernels and the sums over rows."""

    # -- attention: see attention.cu; always in full float32, in memory that grows with T, not with T^2 ------------

    def attention(self, qkv, heads, train):
        N, T, width = qkv.shape
        y = self.empty((N, T, width // 3), qkv.dtype)
        log_sum = self.empty((N, heads, T), qkv.dtype) if train else None
        self._per_task("attention", y, heads, plain(qkv), y, pointer(log_sum))
        return y, log_sum

    def attention_backward(self, dy, y, log_sum, qkv, heads):
        dy, qkv = plain(dy), plain(qkv)
        (N, T, D), dqkv = dy.shape, self.empty(qkv.shape, qkv.dtype)
        dots = self.empty((N, heads, T), dy.dtype)
        self._kernels("attention_dots", dy.dtype, dots.size, dy, plain(y), dots, dots.size, T, heads, D // heads)
        for name in ("attention_dq", "attention_dk_dv"):
            self._per_task(name, dy, heads, qkv, dy, plain(log_sum), dots, dqkv)
        return dqkv

    def _per_task(self, name, y, heads, *arrays):
        """Launch a kernel of one block for each head of an image, TILE of its T tokens and TILE of its d columns; y
        (N, T, heads d)."""
        N, T, D = y.shape
        d = D // heads
        tasks = N * heads * -(-T // TILE) * -(-d // TILE)
        self._kernels(name, y.dtype, tasks * BLOCK, *arrays, np.int32(T), np.int32(heads), np.int32(d))

    # -- layer norm ----------------------------------------------------------------------------------------------

    def layer_norm(self, x, g, b, eps):
        x, y, rows = plain(x), self.empty(x.shape, x.dtype), x.size // x.shape[-1]
        mean, inv_std = self.empty((rows,), x.dtype), self.empty((rows,), x.dtype)
        self._kernels("layer_norm", x.dtype, rows * ROW_BLOCK, x, plain(g), plain(b), y, mean, inv_std, x.shape[-1],
                      float(eps), block=ROW_BLOCK)
        return y, mean, inv_std

    def layer_norm_backward(self, dy, x, mean, inv_std, g, dg, db, accumulate):
        dy, x, dx, columns = plain(dy), plain(x), self.empty(x.shape, x.dtype), x.shape[-1]
        given = dy, x, plain(mean), plain(inv_std)
        self._kernels("layer_norm_dx", x.dtype, len(mean) * ROW_BLOCK, *given, plain(g), dx, columns, block=ROW_BLOCK)
        partial = self._norm_partial(len(mean), columns)
        self._kernels("layer_norm_sums", x.dtype, partial[0].size, *given, partial, x.size, partial[0].size, columns)
        self._norm_gradients(partial, dg, db, accumulate)
        return dx

    # -- tokens: copies by CuPy, sums by kernels -------------------------------------------------------------------

    def prepend_token(self, x, token):
        y = self.empty((len(x), x.shape[1] + 1, x.shape[2]), x.dtype)
        y[:, 0], y[:, 1:] = token, x
        return y

    def prepend_token_backward(self, dy, dtoken, accumulate):
        self._sum_rows(plain(dy[:, 0]), None, None, dtoken, accumulate)
        return self.copy(dy[:, 1:])

    def take_token(self, x, index):
        return self.copy(x[:, index])

    def take_token_backward(self, dy, tokens, index):
        dx = self.zeros((len(dy), tokens, dy.shape[1]), dy.dtype)
        dx[:, index] = dy
        return dx

    def sum_samples(self, x, total, accumulate):
        self._sum_rows(plain(x).reshape(len(x), total.size), None, None, total.reshape(-1), accumulate)
