"""Every operation in plain array code: the specification.

This is what a student reads after the layer, what the fast ops are tested against, and what runs where a fast one
does not exist. `xp` is NumPy, or CuPy in `nnlite.ops.cuda`. Arrays given are never written, unless the docstring
says so; arrays returned belong to the caller.
"""

import math
import tracemalloc

import numpy as np

from . import memory

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


class ReferenceOps:
    name = "reference"
    xp = np
    array_type = np.ndarray
    array_name = "NumPy"

    def identity(self):
        """What the last bit of a sum depends on: the ops and its number of threads."""
        return f"{self.name} ops"

    def device_line(self):
        """What computes, for people."""
        return f"{self.name} ops on {self.array_name}"

    # -- arrays --------------------------------------------------------------------------------------------------

    def dtype(self, name):
        """The dtype object of a name: comparing with that is faster."""
        return np.dtype(name)

    def empty(self, shape, dtype):
        """An array with any content."""
        return self.xp.empty(shape, dtype)

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def asarray(self, values, dtype=None):
        """Values from anywhere (lists, NumPy) as an array of these ops."""
        return self.xp.asarray(values, dtype)

    def to_host(self, array):
        """The array as NumPy array."""
        return np.asarray(array)

    def scalar(self, value, dtype):
        """A number that changes from step to step (learning rate, step count): a 0-d array, so that a captured
        step reads its present value."""
        return self.asarray(value, dtype)

    def set_scalar(self, scalar, value):
        """Writes scalar."""
        scalar[...] = value

    def increment(self, scalar):
        """Adds 1 to scalar."""
        scalar += 1

    def fill(self, array, value):
        """Writes array."""
        array[...] = value

    def copy_into(self, target, values):
        """Writes host values into target."""
        target[...] = self.asarray(values, target.dtype)

    def copy(self, x):
        out = self.empty(x.shape, x.dtype)
        out[...] = x
        return out

    def contiguous(self, x):
        return self.xp.ascontiguousarray(x)

    def describe(self, x):
        """What x is, for error messages."""
        kind = type(x).__module__.partition(".")[0]
        if kind not in ("numpy", "cupy"):
            return f"{type(x).__name__}"
        return f"a {'NumPy' if kind == 'numpy' else 'CuPy'} array"

    def take_rows(self, x, rows):
        """x[rows]"""
        return self.xp.take(x, rows, 0)

    def concat(self, parts, axis):
        return self.xp.concatenate(parts, axis)

    def add(self, a, b):
        return a + b

    def multiply(self, a, b):
        return a * b

    def all_finite(self, x):
        """True if no element is NaN or infinite."""
        return bool(self.xp.isfinite(x).all())

    def clip_factor(self, square, max_norm):
        """min(1, max_norm / sqrt(square)), a 0-d array for a 0-d array."""
        return self.xp.minimum(1.0, max_norm / self.xp.sqrt(self.xp.maximum(square, 1e-300)))

    def sum_of_squares(self, x):
        """sum x^2 in float64, a 0-d array."""
        x = x.astype("float64")
        return (x * x).sum()

    def synchronize(self):
        """Wait until all that was asked for is done."""

    def capture(self, step, frozen=False):
        """A function that does what step() does, on arrays at the same places, and gives what it gave the first time,
        rewritten: a CUDA graph on a GPU, a list of kernel calls on the CPU. step must do all its arithmetic through
        ops and decide nothing by a value; numbers that change are 0-d arrays (scalar). frozen: parameters and running
        statistics stay what they are at the first call, so what depends on them alone may be computed once, and sums
        that are then made in another order may round differently."""
        return step

    def free_bytes(self):
        """Bytes of memory that arrays can still take, or None where that cannot be known."""
        return memory.free_bytes()

    def release(self):
        """Give back memory that only waits for arrays to come."""

    def bytes_of(self, step):
        """The bytes of memory that step() takes for its arrays, most at a time; it is done once."""
        tracemalloc.start()
        try:
            step()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # -- random numbers (see nnlite.rng) -------------------------------------------------------------------------

    def random_words(self, rows, columns, key):
        """(rows, columns) uint32: Philox 4x32-10 words, laid out as nnlite.rng says."""
        xp = self.xp
        quarter = -(-columns // 4)
        blocks = xp.arange(rows * quarter, dtype=xp.uint64)
        step = int(key.step)
        counter = [blocks & 0xFFFFFFFF, xp.full_like(blocks, key.stream), xp.full_like(blocks, step & 0xFFFFFFFF),
                   xp.full_like(blocks, step >> 32)]
        words = philox(counter, key.seed & 0xFFFFFFFF, key.seed >> 32)
        words = xp.stack([word.reshape(rows, quarter) for word in words], 1)     # (rows, 4, quarter)
        return xp.ascontiguousarray(words.reshape(rows, 4 * quarter)[:, :columns]).astype(xp.uint32)

    def normal(self, shape, key, dtype):
        """N(0, 1) by Box and Muller 1958: words a, b of a block give sqrt(-2 ln u) (cos, sin)(2 pi v) with
        u = (a + 1/2) / 2^32, v = b / 2^32, in the dtype's own rounding."""
        xp = self.xp
        rows, columns = math.prod(shape[:-1]), shape[-1]
        quarter = -(-columns // 4)
        words = self.random_words(rows, 4 * quarter, key).reshape(rows, 4, quarter).astype(dtype)
        out = xp.empty((rows, 4, quarter), dtype)
        for a in (0, 2):
            radius = xp.sqrt(-2 * xp.log((words[:, a] + 0.5) * 2.0 ** -32))
            angle = words[:, a + 1] * (2 * math.pi * 2.0 ** -32)
            out[:, a], out[:, a + 1] = radius * xp.cos(angle), radius * xp.sin(angle)
        return xp.ascontiguousarray(out.reshape(rows, 4 * quarter)[:, :columns]).reshape(shape)

    def dropout_mask(self, shape, keep_prob, key, dtype):
        """1/q where the word is below q 2^32, else 0."""
        words = self.random_words(math.prod(shape[:-1]), shape[-1], key).reshape(shape)
        keep = words < self.xp.uint64(keep_threshold(keep_prob))
        return keep.astype(dtype) * np.dtype(dtype).type(1 / keep_prob)

    # -- matrix products -----------------------------------------------------------------------------------------

    def linear(self, x, W, b):
        """x W + b; x (..., D), W (D, K), b (K,) or None."""
        y = self.xp.matmul(x, W)
        return y if b is None else y + b

    def linear_backward(self, dy, x, W, dW, db, accumulate, need_dx):
        """dx = dy W^T, or None; writes dW = x^T dy and db = sum of dy over rows (None: no bias), or adds to them."""
        dx = self.xp.matmul(dy, W.T) if need_dx else None
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        write(dW, self.xp.matmul(x.T, dy), accumulate)
        if db is not None:
            write(db, dy.sum(0), accumulate)
        return dx

    def dense(self, x, W, b, activation, keep_prob, key, train):
        """y = m f(x W + b) and, if train, the slope m f'(x W + b), else None.

        b (K,), or (G, K): row g belongs to the g-th of G groups of consecutive rows of x (N, D). m is the dropout
        mask in training.
        """
        h = self.xp.matmul(x, W)
        if b.ndim == 1:
            h = h + b
        else:
            h = (h.reshape(len(b), -1, h.shape[-1]) + b[:, None]).reshape(h.shape)
        y, slope = self.activation(h, activation, 1.0, train)
        if train and keep_prob < 1:
            mask = self.dropout_mask(y.shape, keep_prob, key, y.dtype)
            y, slope = y * mask, slope * mask
        return y, slope

    def dense_backward(self, dy, slope, x, W, dW, db, accumulate, need_dx):
        """dh = dy slope; then dx, dW, db as in linear_backward. db (K,), or (G, K): summed over each group's rows.

        slope is used up: a fast ops may leave dh in its place.
        """
        dh = dy * slope
        dx = self.linear_backward(dh, x, W, dW, None, accumulate, need_dx)
        groups = 1 if db.ndim == 1 else len(db)
        write(db, dh.reshape(groups, -1, dh.shape[-1]).sum(1).reshape(db.shape), accumulate)
        return dx

    # -- element by element --------------------------------------------------------------------------------------

    def activation(self, x, function, alpha, train):
        """f(x) and, if train, f'(x), else None. function: a name of ACTIVATIONS; alpha: its parameter."""
        y, slope = ACTIVATIONS[function](self.xp, x, alpha)
        return y.astype(x.dtype), slope.astype(x.dtype) if train else None

    def dropout(self, x, keep_prob, key):
        """m x and m."""
        mask = self.dropout_mask(x.shape, keep_prob, key, x.dtype)
        return x * mask, mask

    # -- images: x (N, H, W, C), channels last; stride, padding and dilation are pairs (rows, columns) --------------

    def image_batch(self, images, rows, flip, moves, shift, scale, dtype):
        """(images[rows] - shift) * scale, mirrored left to right where flip (B,) is not 0, then moved down and right by
        moves (B, 2) pixels, int32, what was at an edge repeated; images (n, H, W, C) of any number type, shift and
        scale (C,)."""
        xp = self.xp
        x = xp.take(images, rows, 0).astype(dtype)
        x = xp.where(flip[:, None, None, None] != 0, x[:, :, ::-1], x)
        h, w = (xp.clip(xp.arange(size) - moves[:, axis:axis + 1], 0, size - 1)
                for axis, size in enumerate(images.shape[1:3]))
        x = x[xp.arange(len(x))[:, None, None], h[:, :, None], w[:, None, :]]
        return ((x - shift) * scale).astype(dtype)

    def warp_batch(self, images, rows, maps, tone, shift, scale, size, dtype):
        """Parts of images in another light, normalised: (B, *size, C) out of images[rows].

            r, s = maps[b] @ (h, w, 1)                           row and column that pixel (h, w) shows
            v = bilinear between the four pixels around (r, s), what is at an edge repeated beyond it
            y[b, h, w] = (clip((v - m) c + m + 255 l, 0, 255) - shift) * scale

        images (n, H, W, C) of any number type, pixels from 0 to 255; maps (B, 2, 3); tone (B, 2) = contrast c and
        brightness l (1 and 0 change nothing); m the mean of each channel of the whole image; shift and scale (C,).
        """
        xp = self.xp
        x = xp.take(images, rows, 0).astype(dtype)
        (a, b, t), (h, w) = maps.astype(dtype).transpose(2, 1, 0)[..., None, None], size   # each (2, B, 1, 1)
        places = a * xp.arange(h, dtype=dtype)[:, None] + b * xp.arange(w, dtype=dtype) + t
        (top, bottom, down), (left, right, over) = (_between(xp, *pair) for pair in zip(places, images.shape[1:3]))
        n = xp.arange(len(x))[:, None, None]
        upper = x[n, top, left] * (1 - over) + x[n, top, right] * over
        lower = x[n, bottom, left] * (1 - over) + x[n, bottom, right] * over
        v = upper * (1 - down) + lower * down
        mean = x.mean((1, 2), dtype="float64", keepdims=True).astype(dtype)
        c, light = tone.astype(dtype).T[..., None, None, None]
        v = xp.clip((v - mean) * c + mean + 255 * light, 0, 255)
        return ((v - shift) * scale).astype(dtype)

    def conv2d(self, x, W, b, stride, padding, dilation, groups, relu):
        """y[n, h, w] = b + sum_ij x[n, h s + i d - p, w s + j d - p] W[i, j], x beyond its edges 0; max(y, 0) if relu.

        W (kh, kw, C / groups, K), b (K,) or None. Group g of the outputs sees group g of the channels.
        """
        kernel = W.shape[:2]
        padded = pad(self.xp, x, padding, 0)
        y = 0
        for i, j, window in windows(padded.shape, kernel, stride, dilation):
            parts = zip(channel_groups(padded[window], groups), channel_groups(W[i, j], groups))
            y = y + self.xp.concatenate([self.xp.matmul(part, w) for part, w in parts], -1)
        y = y if b is None else y + b
        return self.xp.maximum(y, 0) if relu else y

    def conv2d_backward(self, dy, y, x, W, dW, db, stride, padding, dilation, groups, accumulate, need_dx):
        """dx, or None; writes dW and db (None: no bias), or adds to them. y: what a conv2d with relu gave, else None.

            dh = dy where y > 0, else 0
            dW[i, j] = sum over n, h, w of x[n, h s + i d - p, ...]^T dh[n, h, w]
            dx[n, h s + i d - p, ...] += dh[n, h, w] W[i, j]^T
        """
        xp, kernel = self.xp, W.shape[:2]
        dh = dy if y is None else dy * (y > 0)
        padded = pad(xp, x, padding, 0)
        dpadded = xp.zeros_like(padded) if need_dx else None
        for i, j, window in windows(padded.shape, kernel, stride, dilation):
            rows = [part.reshape(-1, part.shape[-1]) for part in channel_groups(padded[window], groups)]
            parts = [part.reshape(-1, part.shape[-1]) for part in channel_groups(dh, groups)]
            write(dW[i, j], xp.concatenate([xp.matmul(a.T, d) for a, d in zip(rows, parts)], -1), accumulate)
            if need_dx:
                parts = zip(channel_groups(dh, groups), channel_groups(W[i, j], groups))
                dpadded[window] += xp.concatenate([xp.matmul(d, w.T) for d, w in parts], -1)
        if db is not None:
            write(db, dh.sum((0, 1, 2)), accumulate)
        return xp.ascontiguousarray(unpad(dpadded, padding)) if need_dx else None

    def depthwise_conv2d(self, x, W, b, stride, padding, dilation):
        """conv2d with a kernel of its own for each channel: y[n, h, w] = b + sum_ij x[n, h s + i d - p, ...] * W[i, j],
        W (kh, kw, C), b (C,) or None."""
        padded = pad(self.xp, x, padding, 0)
        y = sum(padded[window] * W[i, j] for i, j, window in windows(padded.shape, W.shape[:2], stride, dilation))
        return y if b is None else y + b

    def depthwise_conv2d_backward(self, dy, x, W, dW, db, stride, padding, dilation, accumulate, need_dx):
        """As conv2d_backward: dW[i, j] = sum over n, h, w of x[...] * dy, dx[...] += dy * W[i, j]."""
        xp = self.xp
        padded = pad(xp, x, padding, 0)
        dpadded = xp.zeros_like(padded) if need_dx else None
        for i, j, window in windows(padded.shape, W.shape[:2], stride, dilation):
            write(dW[i, j], (padded[window] * dy).sum((0, 1, 2)), accumulate)
            if need_dx:
                dpadded[window] += dy * W[i, j]
        if db is not None:
            write(db, dy.sum((0, 1, 2)), accumulate)
        return xp.ascontiguousarray(unpad(dpadded, padding)) if need_dx else None

    def max_pool(self, x, kernel, stride, padding, train):
        """The largest of each window and, if train, its place i kw + j in the window (uint8; the first one if several
        are as large), else None. x beyond its edges is -infinity."""
        xp = self.xp
        padded = pad(xp, x, padding, -xp.inf)
        y = place = None
        for i, j, window in windows(padded.shape, kernel, stride, (1, 1)):
            part = padded[window]
            if y is None:
                y, place = part.copy(), xp.zeros(part.shape, "uint8")
                continue
            larger = (part > y) | xp.isnan(part) & ~xp.isnan(y)
            y, place = xp.where(larger, part, y), xp.where(larger, xp.uint8(i * kernel[1] + j), place)
        return y, place if train else None

    def max_pool_backward(self, dy, place, shape, kernel, stride, padding):
        """dx (shape): each dy goes to the place that was largest."""
        dpadded = self.xp.zeros((shape[0], shape[1] + 2 * padding[0], shape[2] + 2 * padding[1], shape[3]), dy.dtype)
        for i, j, window in windows(dpadded.shape, kernel, stride, (1, 1)):
            dpadded[window] += dy * (place == i * kernel[1] + j)
        return self.xp.ascontiguousarray(unpad(dpadded, padding))

    def avg_pool(self, x, kernel, stride):
        """The mean of each window."""
        parts = [x[window] for _, _, window in windows(x.shape, kernel, stride, (1, 1))]
        return (sum(parts) / len(parts)).astype(x.dtype)

    def avg_pool_backward(self, dy, shape, kernel, stride):
        """dx (shape): each dy spread evenly over its window."""
        dx = self.xp.zeros(shape, dy.dtype)
        for _, _, window in windows(shape, kernel, stride, (1, 1)):
            dx[window] += dy / (kernel[0] * kernel[1])
        return dx

    def global_avg_pool(self, x):
        """y (N, C) = the mean of x over H and W."""
        return x.mean((1, 2), dtype=x.dtype)

    def global_avg_pool_backward(self, dy, shape):
        """dx (shape) = dy / (H W) everywhere."""
        return self.xp.broadcast_to((dy / (shape[1] * shape[2]))[:, None, None], shape).astype(dy.dtype)

    # -- batch norm: x (..., C), statistics over all axes but the last ---------------------------------------------

    def batch_norm(self, x, g, b, running_mean, running_var, momentum, eps, activation, train):
        """y = f(g (x - mean) / sqrt(var + eps) + b), and mean and 1 / sqrt(var + eps), both (C,).

        train: mean and var (over R rows, divided by R) are the batch's, and the running ones are moved towards it:
        running = (1 - momentum) running + momentum batch, with var R / (R - 1) for the variance. Otherwise they are
        the running ones.
        """
        mean, inv_std = self._norm_statistics(x, running_mean, running_var, momentum, eps, train)
        y, _ = self.activation((x - mean) * (g * inv_std) + b, activation, 1.0, False)
        return y, mean, inv_std

    def _norm_statistics(self, x, running_mean, running_var, momentum, eps, train):
        if not train:
            return running_mean, 1 / self.xp.sqrt(running_var + running_var.dtype.type(eps))
        rows = x.reshape(-1, x.shape[-1])
        mean, var = rows.mean(0, dtype="float64"), rows.var(0, dtype="float64")
        running_mean += (momentum * (mean - running_mean)).astype(x.dtype)
        running_var += (momentum * (var * (len(rows) / max(1, len(rows) - 1)) - running_var)).astype(x.dtype)
        return mean.astype(x.dtype), (1 / self.xp.sqrt(var + eps)).astype(x.dtype)

    def batch_norm_backward(self, dy, x, mean, inv_std, g, b, dg, db, activation, accumulate):
        """dx; writes dg and db, or adds to them. With n = (x - mean) inv_std, over R rows:

            dh = dy f'(g n + b)
            db = sum dh,  dg = sum dh n
            dx = g inv_std (dh - db / R - n dg / R)
        """
        n = (x - mean) * inv_std
        _, slope = self.activation(n * g + b, activation, 1.0, True)
        dh = dy * slope
        return self._norm_backward(dh, n, inv_std, g, dg, db, accumulate)

    def _norm_backward(self, dh, n, inv_std, g, dg, db, accumulate):
        axes, rows = tuple(range(n.ndim - 1)), n.size // n.shape[-1]
        shift, stretch = dh.sum(axes), (dh * n).sum(axes)
        write(db, shift, accumulate)
        write(dg, stretch, accumulate)
        return (g * inv_std * (dh - shift / rows - n * (stretch / rows))).astype(dh.dtype)

    def norm_pool(self, x, g, b, running_mean, running_var, momentum, eps, train):
        """batch_norm with ReLU, then 2x2 max pooling of stride 2, in one: y, mean, inv_std and, if train, the place
        of each largest element in its window (uint8, 0 to 3; 4 where nothing was above 0), else None."""
        h, mean, inv_std = self.batch_norm(x, g, b, running_mean, running_var, momentum, eps, "relu", train)
        y, place = self.max_pool(h, (2, 2), (2, 2), (0, 0), train)
        return y, mean, inv_std, self.xp.where(y > 0, place, self.xp.uint8(4)) if train else None

    def norm_pool_backward(self, dy, place, x, mean, inv_std, g, dg, db, accumulate):
        """dx; writes dg and db, or adds to them. dh is dy at the places, 0 elsewhere; then as batch_norm_backward."""
        dh = self.max_pool_backward(dy, place, x.shape, (2, 2), (2, 2), (0, 0))
        return self._norm_backward(dh, (x - mean) * inv_std, inv_std, g, dg, db, accumulate)

    # -- blocks of convolutions: residuals and squeeze-and-excitation ------------------------------------------------

    def add_relu(self, a, b):
        """max(a + b, 0)"""
        return self.xp.maximum(a + b, 0)

    def relu_backward(self, dy, y):
        """dy where y > 0, else 0."""
        return dy * (y > 0)

    def scale_samples(self, x, m):
        """m[n] x[n]; x (N, ...), m (N,)."""
        return x * m.reshape(-1, *[1] * (x.ndim - 1))

    def scale_channels(self, x, s):
        """x[n, h, w, c] s[n, c]"""
        return x * s[:, None, None]

    def scale_channels_backward(self, dy, x, s):
        """dx = dy s and ds[n, c] = sum over h, w of dy x."""
        return dy * s[:, None, None], (dy * x).sum((1, 2))

    # -- tokens: x (N, T, D) -----------------------------------------------------------------------------------------

    def patches(self, x, size):
        """The images x (N, H, W, C) cut into squares of size x size pixels, row by row: (N, H W / size^2, size^2 C),
        each token the pixels of its square row by row."""
        N, H, W, C = x.shape
        x = x.reshape(N, H // size, size, W // size, size, C).transpose(0, 1, 3, 2, 4, 5)
        return self.copy(x).reshape(N, -1, size * size * C)

    def patches_backward(self, dy, shape, size):
        """dx (shape): every number back in its place."""
        N, H, W, C = shape
        dy = dy.reshape(N, H // size, W // size, size, size, C).transpose(0, 1, 3, 2, 4, 5)
        return self.copy(dy).reshape(shape)

    def prepend_token(self, x, token):
        """[token, x[n]] for each n: (N, T + 1, D)."""
        return self.xp.concatenate([self.xp.broadcast_to(token, (len(x), 1, x.shape[2])), x], 1)

    def prepend_token_backward(self, dy, dtoken, accumulate):
        """dx = dy without the first token; writes dtoken = sum over n of the first, or adds to it."""
        write(dtoken, dy[:, 0].sum(0), accumulate)
        return self.copy(dy[:, 1:])

    def take_token(self, x, index):
        """x[:, index]"""
        return self.copy(x[:, index])

    def take_token_backward(self, dy, tokens, index):
        """dx (N, tokens, D): dy at index, 0 elsewhere."""
        dx = self.xp.zeros((len(dy), tokens, dy.shape[1]), dy.dtype)
        dx[:, index] = dy
        return dx

    def add_to_samples(self, x, P):
        """x[n] + P for each n."""
        return x + P

    def sum_samples(self, x, total, accumulate):
        """Writes total = sum over n of x[n], or adds to it."""
        write(total, x.sum(0), accumulate)

    def layer_norm(self, x, g, b, eps):
        """y = g (x - mean) / sqrt(var + eps) + b over the last axis, and mean and 1 / sqrt(var + eps) of each row, both
        (R,) for the R rows of x."""
        rows = x.reshape(-1, x.shape[-1])
        mean, var = rows.mean(1, dtype="float64"), rows.var(1, dtype="float64")
        mean, inv_std = mean.astype(x.dtype), (1 / self.xp.sqrt(var + eps)).astype(x.dtype)
        return ((rows - mean[:, None]) * inv_std[:, None] * g + b).reshape(x.shape), mean, inv_std

    def layer_norm_backward(self, dy, x, mean, inv_std, g, dg, db, accumulate):
        """dx; writes dg and db, or adds to them. With n = (x - mean) inv_std, over the D numbers of a row:

            dn = dy g,  dg = sum dy n,  db = sum dy               these two over the rows
            dx = inv_std (dn - mean of dn - n mean of dn n)
        """
        rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
        n = (rows - mean[:, None]) * inv_std[:, None]
        write(dg, (dy * n).sum(0), accumulate)
        write(db, dy.sum(0), accumulate)
        dn = dy * g
        dx = inv_std[:, None] * (dn - dn.mean(1, keepdims=True) - n * (dn * n).mean(1, keepdims=True))
        return dx.reshape(x.shape)

    def attention(self, qkv, heads, train):
        """y (N, T, D) of qkv (N, T, 3 D) = [q, k, v], each of them `heads` blocks of d = D / heads numbers; and, if
        train, ln sum_j e^{s_ij} (N, heads, T), else None. For each image and head:

            s = q k^T / sqrt(d),  p = softmax(s) over the keys,  y = p v
        """
        q, k, v = self._heads(qkv, heads)
        s = self.xp.matmul(q, k.transpose(0, 1, 3, 2)) / math.sqrt(q.shape[-1])       # (N, heads, T, T)
        most = s.max(-1, keepdims=True)
        e = self.xp.exp(s - most)
        total = e.sum(-1, keepdims=True)
        y = self._tokens(self.xp.matmul(e / total, v))
        return y, (most + self.xp.log(total))[..., 0] if train else None

    def attention_backward(self, dy, y, log_sum, qkv, heads):
        """dqkv. With p made again from log_sum:

            dv = p^T dy,  dp = dy v^T
            ds = p (dp - sum_j p_j dp_j) / sqrt(d)        the sum is dy . y, row by row
            dq = ds k,  dk = ds^T q
        """
        xp, (q, k, v) = self.xp, self._heads(qkv, heads)
        (dy,), (y,) = self._heads(dy, heads, 1), self._heads(y, heads, 1)
        scale = 1 / math.sqrt(q.shape[-1])
        p = xp.exp(xp.matmul(q, k.transpose(0, 1, 3, 2)) * scale - log_sum[..., None])
        dv = xp.matmul(p.transpose(0, 1, 3, 2), dy)
        dp = xp.matmul(dy, v.transpose(0, 1, 3, 2))
        ds = p * (dp - (dy * y).sum(-1, keepdims=True)) * scale
        parts = xp.matmul(ds, k), xp.matmul(ds.transpose(0, 1, 3, 2), q), dv
        return xp.concatenate([self._tokens(part) for part in parts], -1)

    def _heads(self, x, heads, parts=3):
        """x (N, T, parts heads d) as parts, heads apart: (parts, N, heads, T, d)."""
        N, T, width = x.shape
        return x.reshape(N, T, parts, heads, width // (parts * heads)).transpose(2, 0, 3, 1, 4)

    def _tokens(self, x):
        """x (N, heads, T, d) as (N, T, heads d)."""
        N, heads, T, d = x.shape
        return self.xp.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(N, T, heads * d)

    # -- Gaussian latents ----------------------------------------------------------------------------------------

    def gaussian_sample(self, h, samples, key):
        """z = mu + sigma eps; h (N, 2K) = [mu, ln sigma^2], z (N L, K), L = samples rows for each row of h."""
        N, K = h.shape[0], h.shape[1] // 2
        mu, log_var = h[:, None, :K], h[:, None, K:]
        eps = self.normal((N * samples, K), key, h.dtype).reshape(N, samples, K)
        return (mu + self.xp.exp(log_var / 2) * eps).reshape(N * samples, K)

    def gaussian_sample_backward(self, dz, h, z):
        """dh = [sum dz, sum dz (z - mu) / 2] over the samples of each row."""
        N, K = h.shape[0], h.shape[1] // 2
        dz, z = dz.reshape(N, -1, K), z.reshape(N, -1, K)
        return self.xp.concatenate([dz.sum(1), (dz * (z - h[:, None, :K])).sum(1) / 2], 1)

    # -- losses: value (float64, 0-d) and gradient ---------------------------------------------------------------

    def squared_error(self, f, x, scale):
        """scale * sum ||x - f||^2 and its gradient in f; f (N L, D), x (N, D), each row of x for L rows of f."""
        error = (f.reshape(len(x), -1, x.shape[1]) - x[:, None]).reshape(f.shape)
        return scale * self.sum_of_squares(error), (2 * float(scale) * error).astype(f.dtype)

    def gaussian_kl(self, h, scale):
        """scale * KL(N(mu, sigma^2) || N(0, I)) summed over all rows, and its gradient in h = [mu, ln sigma^2]."""
        K = h.shape[1] // 2
        mu, log_var = h[:, :K].astype("float64"), h[:, K:].astype("float64")
        variance = self.xp.exp(log_var)
        value = -0.5 * (1 + log_var - mu * mu - variance).sum()
        gradient = self.xp.concatenate([mu, (variance - 1) / 2], 1) * scale
        return scale * value, gradient.astype(h.dtype)

    def triplet_softplus(self, z, weight, scale):
        """scale * sum_tm w_t ln(1 + exp(d(r, p) - d(r, n))) and its gradient in z.

        z (3 V M, K): V M rows of references, then the plus, then the minus faces, M consecutive samples a triplet;
        weight (V,). d is the Euclidean distance; where two latents coincide its gradient is taken as 0.
        """
        xp = self.xp
        V = len(weight)
        M = len(z) // (3 * V)
        r, p, n = z.reshape(3, V * M, -1).astype("float64")
        w = xp.repeat(weight.astype("float64"), M)
        to_plus, to_minus = r - p, r - n
        d_plus = xp.sqrt((to_plus ** 2).sum(1))
        d_minus = xp.sqrt((to_minus ** 2).sum(1))
        gap = d_plus - d_minus
        value = (w * xp.logaddexp(0, gap)).sum()
        dgap = w * scale / (1 + xp.exp(-gap))
        unit_plus = to_plus * (dgap / xp.where(d_plus > 0, d_plus, xp.inf))[:, None]
        unit_minus = to_minus * (dgap / xp.where(d_minus > 0, d_minus, xp.inf))[:, None]
        dz = xp.concatenate([unit_plus - unit_minus, -unit_plus, unit_minus])
        return scale * value, dz.astype(z.dtype)

    def softmax_cross_entropy(self, logits, labels, soft, alpha, class_weight, smoothing):
        """The mean over N rows of w_i KL(t_i || p_i), p = softmax(logits), and its gradient in logits (N, K).

            t_i = alpha ((1 - smoothing) e_label + smoothing / K) + (1 - alpha) soft_i
            value = 1/V sum_i w_i ( -alpha sum_k label part ln p + (1 - alpha) sum_k soft ln(soft / p) ),  V = sum_i w_i
            dlogits_i = w_i / V (p_i - t_i)

        The label's part is its cross entropy, the soft part a divergence, which is 0 for p = soft. labels (N,) int32;
        soft (N, K) rows of probabilities, or None for alpha = 1; class_weight (K,): w_i = class_weight[label], or None.
        """
        xp, (N, K) = self.xp, logits.shape
        z = logits.astype("float64")
        z = z - z.max(1, keepdims=True)           # e^z neither overflows nor is 0 for all classes
        log_p = z - xp.log(xp.exp(z).sum(1, keepdims=True))
        w = xp.ones(N) if class_weight is None else class_weight.astype("float64")[labels]
        w = w / w.sum()
        hard = (labels[:, None] == xp.arange(K)) * (1 - smoothing) + smoothing / K
        rows = -alpha * (hard * log_p).sum(1)
        target = alpha * hard
        if soft is not None:
            q = soft.astype("float64")
            rows = rows + (1 - alpha) * (q * (xp.log(xp.where(q > 0, q, 1)) - log_p)).sum(1)
            target = target + (1 - alpha) * q
        return (w * rows).sum(), (w[:, None] * (xp.exp(log_p) - target)).astype(logits.dtype)

    def hits(self, logits, labels):
        """How many rows have their largest logit (the first, if several are as large) at their label; int64, 0-d."""
        return (logits.argmax(1) == labels).sum(dtype="int64")

    # -- optimisers: write p and their state; ranges (start, stop, (decay, rate)) ---------------------------------
    # g' = c g + decay p (L2), the step is multiplied by rate (0: frozen); c is the clipping factor.

    def sgd(self, p, g, m, ranges, lr, clip, momentum, nesterov):
        """m = momentum m + g';  p -= lr m, or lr (g' + momentum m) for Nesterov. m is None without momentum."""
        for start, stop, (decay, rate) in ranges:
            s = slice(start, stop)
            d = clip * g[s] + decay * p[s]
            if m is not None:
                m[s] = momentum * m[s] + d
                d = d + momentum * m[s] if nesterov else m[s]
            p[s] -= (rate * lr * d).astype(p.dtype)

    def adagrad(self, p, g, v, ranges, lr, clip, eps):
        """v += g'^2;  p -= lr g' / (sqrt v + eps)."""
        for start, stop, (decay, rate) in ranges:
            s = slice(start, stop)
            d = clip * g[s] + decay * p[s]
            v[s] += d * d
            p[s] -= (rate * lr * d / (self.xp.sqrt(v[s]) + eps)).astype(p.dtype)

    def rmsprop(self, p, g, v, ranges, lr, clip, rho, eps):
        """v = rho v + (1 - rho) g'^2;  p -= lr g' / (sqrt v + eps)."""
        for start, stop, (decay, rate) in ranges:
            s = slice(start, stop)
            d = clip * g[s] + decay * p[s]
            v[s] = rho * v[s] + (1 - rho) * d * d
            p[s] -= (rate * lr * d / (self.xp.sqrt(v[s]) + eps)).astype(p.dtype)

    def adam(self, p, g, m, v, ranges, lr, clip, beta1, beta2, eps, t, decoupled):
        """m = b1 m + (1 - b1) g', v = b2 v + (1 - b2) g'^2;  p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

        t counts from 1. decoupled (AdamW): g' = c g, and p is first multiplied by 1 - lr rate decay.
        """
        t = t.astype("float64")
        first, second = 1 - beta1 ** t, 1 - beta2 ** t
        for start, stop, (decay, rate) in ranges:
            s = slice(start, stop)
            d = clip * g[s]
            if decoupled:
                p[s] *= (1 - lr * rate * decay).astype(p.dtype)
            else:
                d = d + decay * p[s]
            m[s] = beta1 * m[s] + (1 - beta1) * d
            v[s] = beta2 * v[s] + (1 - beta2) * d * d
            p[s] -= (rate * lr * (m[s] / first) / (self.xp.sqrt(v[s] / second) + eps)).astype(p.dtype)


def write(target, values, accumulate):
    if accumulate:
        target += values
    else:
        target[...] = values


def keep_threshold(keep_prob):
    """A word below this keeps: round(q 2^32), at least 1 and below 2^32, so that it is itself a word."""
    return min(max(round(keep_prob * 2 ** 32), 1), 2 ** 32 - 1)


# -- windows of images ----------------------------------------------------------------------------------------------

def out_size(size, kernel, stride, padding, dilation):
    """How many windows fit along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def windows(shape, kernel, stride, dilation):
    """(i, j, index) for each place (i, j) in a window: padded[index] (N, Ho, Wo, C) is that place in all windows."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    Ho, Wo = out_size(shape[1], kh, sh, 0, dh), out_size(shape[2], kw, sw, 0, dw)
    for i in range(kh):
        for j in range(kw):
            yield i, j, (slice(None), slice(i * dh, i * dh + (Ho - 1) * sh + 1, sh),
                         slice(j * dw, j * dw + (Wo - 1) * sw + 1, sw))


def pad(xp, x, padding, value):
    (N, H, W, C), (ph, pw) = x.shape, padding
    padded = xp.full((N, H + 2 * ph, W + 2 * pw, C), value, x.dtype)
    padded[:, ph:ph + H, pw:pw + W] = x
    return padded


def unpad(x, padding):
    ph, pw = padding
    return x[:, ph:x.shape[1] - ph, pw:x.shape[2] - pw]


def _between(xp, place, size):
    """place (..., Ho, Wo), brought to 0 .. size - 1, as the two indices around it and the second one's share, which
    has an axis more, for the channels."""
    place = xp.clip(place, 0, size - 1)
    first = xp.floor(place)
    return first.astype("int64"), xp.minimum(first + 1, size - 1).astype("int64"), (place - first)[..., None]


def channel_groups(x, groups):
    """x in equal parts along its last axis."""
    width = x.shape[-1] // groups
    return [x[..., g * width:(g + 1) * width] for g in range(groups)]


# -- Philox 4x32-10 -------------------------------------------------------------------------------------------------

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85   # the golden ratio and sqrt(3) - 1, added to the key after each round


def philox(counter, k0, k1, rounds=10):
    """Four arrays of 32-bit words in uint64 -> four: the keyed permutation of Salmon et al. 2011, sect. 4."""
    c0, c1, c2, c3 = counter
    for _ in range(rounds):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


# -- activations: (xp, x, alpha) -> f(x), f'(x) ---------------------------------------------------------------------

def _relu(xp, x, alpha):
    return xp.maximum(x, 0), (x > 0) * 1.0


def _leaky_relu(xp, x, alpha):
    slope = xp.where(x > 0, 1.0, alpha)
    return x * slope, slope


def _elu(xp, x, alpha):
    below = xp.minimum(x, 0)
    return xp.where(x > 0, x, alpha * xp.expm1(below)), xp.where(x > 0, 1.0, alpha * xp.exp(below))


def _sigmoid(xp, x, alpha=0):
    small = xp.exp(-xp.abs(x))     # never overflows
    y = xp.where(x >= 0, 1, small) / (1 + small)
    return y, y * (1 - y)


def _tanh(xp, x, alpha):
    y = xp.tanh(x)
    return y, 1 - y * y


def _silu(xp, x, alpha):
    s, _ = _sigmoid(xp, x)
    return x * s, s * (1 + x * (1 - s))


def _softplus(xp, x, alpha):
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x))), _sigmoid(xp, x)[0]


def _gelu(xp, x, alpha):
    P = 0.5 * (1 + _erf(xp, x * SQRT_HALF))
    return x * P, P + x * INV_SQRT_2PI * xp.exp(-0.5 * x * x)


def _erf(xp, x):
    if xp is np:
        return np.vectorize(math.erf, otypes=["float64"])(x)
    from cupyx.scipy.special import erf
    return erf(x)


def _identity(xp, x, alpha):
    return x.copy(), xp.ones_like(x)


ACTIVATIONS = {"identity": _identity, "relu": _relu, "leaky_relu": _leaky_relu, "elu": _elu, "sigmoid": _sigmoid,
               "tanh": _tanh, "silu": _silu, "softplus": _softplus, "gelu": _gelu}
