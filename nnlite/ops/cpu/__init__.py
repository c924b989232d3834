"""CpuOps: the methods of ReferenceOps that Numba makes faster. Kernels live in the family files beside this one."""

import contextlib
import functools
import math

import numpy as np

from ..pool import Pool
from ..reference import ReferenceOps, keep_threshold, out_size
from . import threads  # first: it sets up the threads of what the others load
from . import attention as attention_kernels
from . import blas, convolution, elementwise, latent, matrix, norm, optimisers, philox, pooling, product, scaling
from . import images as image_kernels
from . import labels as label_kernels
from . import layer_norm as layer_norm_kernels
from . import skinny as skinny_kernels
from . import tokens as token_kernels
from .arena import Arena
from .block import lanes, padded
from .elementwise import CODES
from .notice import announce_compilation
from .outdated import forget_outdated
from .simd import WHOLE
from .tape import Late, Tape, now

GRAIN = 4096   # elements of cheap work that are worth a thread
LARGE_WEIGHT = 1 << 18   # numbers of W from which on few rows of x are multiplied with panels of it


class CpuOps(ReferenceOps):
    name = "cpu"

    def __init__(self):
        self.threads = threads.count()
        self._pool = Pool()
        self.empty = self._pool.empty   # straight: a step asks for some sixty arrays
        self._tape = None
        forget_outdated(philox.normal)
        announce_compilation()

    def set_threads(self, count):
        """Use this many threads from now on, at most as many as Numba was started with."""
        threads.use(count)
        self.threads = count

    def identity(self):
        return f"{self.name} ops with {self.threads} threads"

    def device_line(self):
        return f"cpu, {self.threads} threads (Numba kernels, {self._products()})"

    def _products(self):
        """Who multiplies the matrices of linear layers."""
        if blas.blas is None:
            return "NumPy's products on threads of its own"
        return "also for matrix products" if WHOLE else f"{blas.blas.path} on the same threads"

    def _chunks(self, work):
        """How many pieces work elements are cut into."""
        pieces = work // GRAIN
        return self.threads if pieces >= self.threads else pieces or 1

    # -- calling kernels -----------------------------------------------------------------------------------------

    def launch(self, function, *arguments):
        """function(*arguments), written down if a step is being captured. Arrays in C order, or Late values."""
        function(*[now(argument) for argument in arguments])
        if self._tape is not None:
            self._tape.write_down(function, arguments)

    def _is_frozen(self):
        return self._tape is not None and self._tape.frozen

    def prepare(self, function, *arguments):
        """launch, of what depends on parameters and running statistics alone, into arrays of `prepared`."""
        if self._is_frozen():
            function(*arguments)
        else:
            self.launch(function, *arguments)

    def prepared(self, shape, dtype):
        """empty, for what `prepare` makes: in a frozen step not of the tape's arena, whose places others use too."""
        return self._pool.empty(shape, dtype) if self._is_frozen() else self.empty(shape, dtype)

    def capture(self, step, frozen=False):
        """A function that does what step() does, without the Python between the kernels (see tape.py)."""
        return Tape(self, step, frozen) if blas.blas is not None else step

    @contextlib.contextmanager
    def recording(self, tape):
        self._tape = tape
        try:
            with self._allocating(tape.empty):
                yield
        finally:
            self._tape = None

    @contextlib.contextmanager
    def _allocating(self, empty):
        self.empty, before = empty, self.empty
        try:
            yield
        finally:
            self.empty = before

    def release(self):
        self._pool.release()

    def bytes_of(self, step):
        memory = Pool() if blas.blas is None else Arena()   # as what `capture` gives
        with self._allocating(memory.empty):
            step()
        return memory.nbytes()

    # -- arrays --------------------------------------------------------------------------------------------------

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        self.fill(array, 0)
        return array

    def fill(self, array, value):
        self.launch(np.copyto, array, value)

    def increment(self, scalar):
        self.launch(_increment, scalar)

    def contiguous(self, x):
        return x if x.flags.c_contiguous else self.copy(x)

    def copy(self, x):
        out = self.empty(x.shape, x.dtype)
        self.launch(np.copyto, out, x)
        return out

    def _plain(self, x):
        """x itself if it lies in C order and may be written, else a copy that does: Numba compiles a kernel anew for
        every kind of array, so kernels get one kind."""
        return x if x.flags.c_contiguous and x.flags.writeable else self.copy(x)

    def take_rows(self, x, rows):
        out = self.empty((len(rows), *x.shape[1:]), x.dtype)
        width = math.prod(x.shape[1:])
        self.launch(elementwise.take_rows, self._plain(x).reshape(len(x), width), rows, out.reshape(len(rows), width),
                    self._chunks(out.size))
        return out

    def concat(self, parts, axis):
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        out = self.empty(tuple(shape), parts[0].dtype)
        self.launch(_concatenate, parts, axis, out)
        return out

    def add(self, a, b):
        return self._pairwise(elementwise.add, a, b)

    def multiply(self, a, b):
        return self._pairwise(elementwise.multiply, a, b)

    def _pairwise(self, function, a, b):
        out = self.empty(a.shape, a.dtype)
        self.launch(function, self._flat(a), self._flat(b), out.reshape(-1), self._chunks(a.size))
        return out

    def _flat(self, x):
        return self._plain(x).reshape(-1)

    def sum_of_squares(self, x):
        partial = self.empty((self._chunks(x.size),), "float64")
        self.launch(elementwise.sum_of_squares, self._flat(x), partial)
        return self._total(partial, 1.0)

    def clip_factor(self, square, max_norm):
        factor = self.empty((), "float64")
        self.launch(_clip_factor, square, max_norm, factor)
        return factor

    def _total(self, partial, scale):
        """scale * the sum of partial, a 0-d array."""
        value = self.empty((), "float64")
        self.launch(_weighted_sum, partial, _late(float, scale), value)
        return value

    # -- random numbers ------------------------------------------------------------------------------------------

    def random_words(self, rows, columns, key):
        out = self.empty((rows, columns), np.uint32)
        self.launch(philox.random_words, out, *_key(key), self._chunks(out.size))
        return out

    def normal(self, shape, key, dtype):
        out = self.empty(shape, dtype)
        self.launch(philox.normal, out.reshape(-1, shape[-1]), *_key(key), self._chunks(out.size))
        return out

    # -- matrix products -----------------------------------------------------------------------------------------

    if blas.blas is not None:   # else NumPy's matmul in ReferenceOps, with the threads of its BLAS
        def linear(self, x, W, b):
            bias = self.zeros((1, W.shape[1]), x.dtype) if b is None else b.reshape(1, -1)
            return self._product(x, W, bias, None, 0, 0, 1.0, (0, 0, 0, 0))

        def linear_backward(self, dy, x, W, dW, db, accumulate, need_dx):
            dy = self._rows(dy)
            return self._backward(dy, dy, x, W, dW, db, accumulate, need_dx, False)

        def dense(self, x, W, b, activation, keep_prob, key, train):
            slope = self.empty((*x.shape[:-1], W.shape[1]), x.dtype) if train else None
            threshold = keep_threshold(keep_prob) if train and keep_prob < 1 else 0
            y = self._product(x, W, b.reshape(-1, W.shape[1]), slope, CODES[activation], threshold, 1 / keep_prob,
                              _key(key))
            return y, slope

        def dense_backward(self, dy, slope, x, W, dW, db, accumulate, need_dx):
            return self._backward(self._rows(dy), self._rows(slope), x, W, dW, db, accumulate, need_dx, True)

    def _product(self, x, W, b, slope, code, threshold, scale, key):
        """y = m f(x W + b), and the slope unless it is None."""
        rows, W, K = self._rows(x), self._plain(W), W.shape[1]
        skinny = self._is_skinny(len(rows), W)
        few = not skinny and 0 < len(rows) <= convolution.FEW and W.size >= LARGE_WEIGHT
        own = not (skinny or few) and self._is_own(rows, W)
        if few:
            y = convolution.product(self, rows, W).reshape(*x.shape[:-1], K)
        else:
            y = self.empty((*x.shape[:-1], K), x.dtype)
        if skinny:
            chunks, Kp = self._chunks(W.size), padded(K, x.dtype)
            parts = self.empty((chunks, len(rows) * Kp), x.dtype)
            self.launch(skinny_kernels.skinny_product, rows.reshape(-1), *rows.shape, W.reshape(-1), K, parts, Kp,
                        y.reshape(-1), lanes(x.dtype), chunks)
        elif own:
            self._multiply(rows, 1, W, 1, y, *rows.shape, K, False)
        self.launch(matrix.dense_forward, rows, W, b, y.reshape(-1, K),
                    NOTHING[x.dtype] if slope is None else slope.reshape(-1, K), code, 1.0, slope is not None,
                    threshold, scale, *key, not (skinny or few or own), self._chunks(y.size))
        return y

    def _is_skinny(self, rows, W):
        """Whether so few rows of x are multiplied with rows of W as they lie."""
        return 0 < rows <= skinny_kernels.ROWS and W.size >= GRAIN

    def _is_own(self, rows, W):
        """Whether to multiply with our own blocks of registers: where they are vectors as wide as ours, faster than
        BLAS on one thread each."""
        return WHOLE and len(rows) > 0 and W.size > 0

    def _multiply(self, a, a_inner, b, b_column, c, rows, depth, columns, accumulate):
        """c (rows, columns) = a b, or added to c. a_inner, b_column: 1 for a matrix that lies as it is multiplied, else
        its transpose does, and neighbours in a row of it are so far apart."""
        L = lanes(c.dtype)
        chunks = self._chunks(rows * depth * columns // 64)
        split, *numbers = product.plan(rows, depth, columns, a_inner != 1, L)
        if split == product.BY_DEPTH:
            chunks = min(chunks, depth)    # each has a sum to make
        scratch = [self.empty((chunks, number), c.dtype) for number in numbers]
        self.launch(product.product, a.reshape(-1), depth if a_inner == 1 else 1, a_inner, b.reshape(-1),
                    columns if b_column == 1 else 1, b_column, c.reshape(-1), rows, depth, columns, split, accumulate,
                    L, *scratch)

    def _backward(self, dy, dh, x, W, dW, db, accumulate, need_dx, has_slope):
        rows, dx = self._rows(x), self.empty(x.shape, x.dtype) if need_dx else None
        (N, D), K, skinny = rows.shape, W.shape[1], self._is_skinny(len(rows), W)
        own = not skinny and self._is_own(rows, W)
        chunks = self._chunks(dh.size + rows.size)
        by_rows = chunks > 1 and product.is_worth_parts(D, N, K) and not (skinny or own)
        parts = self.empty((chunks, D + 1 if by_rows else 1, K), x.dtype)
        self.launch(matrix.dense_backward, dy, dh, rows, W, dW, NOTHING[x.dtype] if db is None else db.reshape(-1, K),
                    rows if dx is None else dx.reshape(rows.shape), parts, by_rows, has_slope, db is not None, need_dx,
                    accumulate, not (skinny or own), chunks)
        if skinny:
            pieces, L, Kp = self._chunks(W.size), lanes(x.dtype), padded(K, x.dtype)
            full = self.empty((N * Kp,), x.dtype)
            self.launch(skinny_kernels.fill_up, dh.reshape(-1), K, full, Kp)
            self.launch(skinny_kernels.skinny_weight_gradient, rows.reshape(-1), N, D, full, Kp, dW.reshape(-1), K,
                        accumulate, L, pieces)
            if need_dx:
                self.launch(skinny_kernels.skinny_input_gradient, full, N, Kp, self._flat(W), K, D, dx.reshape(-1), L,
                            pieces)
        elif own:
            self._multiply(rows, D, dh, 1, dW, D, N, K, accumulate)
            if need_dx:
                self._multiply(dh, 1, self._plain(W), K, dx, N, K, D, False)
        return dx

    def _rows(self, x):
        """x (..., D) as a matrix in C order."""
        x = self._plain(x)
        return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])

    # -- convolution ---------------------------------------------------------------------------------------------

    def conv2d(self, x, W, b, stride, padding, dilation, groups, relu):
        return convolution.forward(self, x, W, b, stride, padding, dilation, groups, relu)

    def conv2d_backward(self, dy, y, x, W, dW, db, stride, padding, dilation, groups, accumulate, need_dx):
        return convolution.backward(self, dy, y, x, W, dW, db, stride, padding, dilation, groups, accumulate, need_dx)

    def depthwise_conv2d(self, x, W, b, stride, padding, dilation):
        return convolution.depthwise_forward(self, x, W, b, stride, padding, dilation)

    def depthwise_conv2d_backward(self, dy, x, W, dW, db, stride, padding, dilation, accumulate, need_dx):
        return convolution.depthwise_backward(self, dy, x, W, dW, db, stride, padding, dilation, accumulate, need_dx)

    # -- element by element --------------------------------------------------------------------------------------

    def activation(self, x, function, alpha, train):
        y, slope = self.empty(x.shape, x.dtype), self.empty(x.shape if train else (0,), x.dtype)
        self.launch(elementwise.activation, self._flat(x), y.reshape(-1), slope.reshape(-1), CODES[function],
                    x.dtype.type(alpha), self._chunks(x.size))
        return y, slope if train else None

    def dropout(self, x, keep_prob, key):
        y, mask = self.empty(x.shape, x.dtype), self.empty(x.shape, x.dtype)
        if keep_prob < 1:
            width = x.shape[-1]
            self.launch(matrix.dropout, self._rows(x), y.reshape(-1, width), mask.reshape(-1, width),
                        keep_threshold(keep_prob), 1 / keep_prob, *_key(key), self._chunks(x.size))
        else:
            self.launch(np.copyto, y, x)
            self.fill(mask, 1)
        return y, mask

    # -- images: pooling, batch norm -----------------------------------------------------------------------------

    def image_batch(self, images, rows, flip, moves, shift, scale, dtype):
        out = self.empty((len(rows), *images.shape[1:]), dtype)
        # contiguous, not _plain: a whole data set is not copied for being read-only.
        self.launch(image_kernels.image_batch, self.contiguous(images), self._plain(rows), self._plain(flip),
                    self._plain(moves), self._plain(shift), self._plain(scale), out, self._chunks(out.size))
        return out

    def warp_batch(self, images, rows, maps, tone, shift, scale, size, dtype):
        out = self.empty((len(rows), *size, images.shape[3]), dtype)
        self.launch(image_kernels.warp_batch, self.contiguous(images), self._plain(rows), self._plain(maps),
                    self._plain(tone), self._plain(shift), self._plain(scale), out, self._chunks(out.size))
        return out

    def max_pool(self, x, kernel, stride, padding, train):
        Ho, Wo = (out_size(*sizes, 1) for sizes in zip(x.shape[1:3], kernel, stride, padding))
        y = self.empty((len(x), Ho, Wo, x.shape[3]), x.dtype)
        place = self.empty(y.shape, np.uint8) if train else None
        self.launch(pooling.max_pool, self._plain(x), y, place if train else NO_PLACES, *kernel, *stride, *padding,
                    train, self._chunks(x.size))
        return y, place

    def max_pool_backward(self, dy, place, shape, kernel, stride, padding):
        dx = self.empty(shape, dy.dtype)
        self.launch(pooling.max_pool_backward, self._plain(dy), self._plain(place), dx, *kernel, *stride, *padding,
                    self._chunks(dx.size))
        return dx

    def avg_pool(self, x, kernel, stride):
        Ho, Wo = (out_size(*sizes, 0, 1) for sizes in zip(x.shape[1:3], kernel, stride))
        y = self.empty((len(x), Ho, Wo, x.shape[3]), x.dtype)
        self.launch(pooling.avg_pool, self._plain(x), y, *kernel, *stride, self._chunks(x.size))
        return y

    def avg_pool_backward(self, dy, shape, kernel, stride):
        dx = self.empty(shape, dy.dtype)
        self.launch(pooling.avg_pool_backward, self._plain(dy), dx, *kernel, *stride, self._chunks(dx.size))
        return dx

    def global_avg_pool(self, x):
        y = self.empty((len(x), x.shape[3]), x.dtype)
        self.launch(pooling.global_avg_pool, self._plain(x).reshape(len(x), math.prod(x.shape[1:])), y,
                    self._chunks(x.size))
        return y

    def global_avg_pool_backward(self, dy, shape):
        dx = self.empty(shape, dy.dtype)
        self.launch(pooling.global_avg_pool_backward, self._plain(dy), dx.reshape(len(dx), math.prod(shape[1:])),
                    self._chunks(dx.size))
        return dx

    def batch_norm(self, x, g, b, running_mean, running_var, momentum, eps, activation, train):
        x, y = self._plain(x), self.empty(x.shape, x.dtype)
        mean, inv_std = self._norm_statistics(x, running_mean, running_var, momentum, eps, train)
        self.launch(norm.batch_norm, x.reshape(-1), mean, inv_std, g, b, y.reshape(-1), CODES[activation],
                    self._chunks(x.size))
        return y, mean, inv_std

    def _norm_statistics(self, x, running_mean, running_var, momentum, eps, train):
        if not train:
            inv_std = self.prepared(running_var.shape, x.dtype)
            self.prepare(_inverse_deviation, running_var, eps, inv_std)
            return running_mean, inv_std
        mean, inv_std = self.empty(running_mean.shape, x.dtype), self.empty(running_var.shape, x.dtype)
        self.launch(norm.statistics, x.reshape(-1), running_mean, running_var, float(momentum), float(eps), mean,
                    inv_std, self._channel_sums(x))
        return mean, inv_std

    def _channel_sums(self, x):
        """Scratch for two sums a channel of each thread."""
        return self.empty((self._chunks(x.size), 2, x.shape[-1]), np.float64)

    def batch_norm_backward(self, dy, x, mean, inv_std, g, b, dg, db, activation, accumulate):
        dx = self.empty(x.shape, x.dtype)
        self.launch(norm.batch_norm_backward, self._flat(dy), self._flat(x), mean, inv_std, g, b, dg, db,
                    dx.reshape(-1), CODES[activation], accumulate, self._channel_sums(x))
        return dx

    def norm_pool(self, x, g, b, running_mean, running_var, momentum, eps, train):
        x, (N, H, W, C) = self._plain(x), x.shape
        mean, inv_std = self._norm_statistics(x, running_mean, running_var, momentum, eps, train)
        y = self.empty((N, H // 2, W // 2, C), x.dtype)
        place = self.empty(y.shape, np.uint8) if train else None
        self.launch(norm.norm_pool, x, mean, inv_std, g, b, y, place if train else NO_PLACES, train,
                    self._chunks(x.size))
        return y, mean, inv_std, place

    def norm_pool_backward(self, dy, place, x, mean, inv_std, g, dg, db, accumulate):
        dx = self.empty(x.shape, x.dtype)
        self.launch(norm.norm_pool_backward, self._plain(dy), self._plain(place), self._plain(x), mean, inv_std, g,
                    dg, db, dx, accumulate, self._channel_sums(x))
        return dx

    # -- blocks of convolutions ------------------------------------------------------------------------------------

    def add_relu(self, a, b):
        return self._pairwise(elementwise.add_relu, a, b)

    def relu_backward(self, dy, y):
        return self._pairwise(elementwise.relu_backward, dy, y)

    def scale_samples(self, x, m):
        y = self.empty(x.shape, x.dtype)
        self.launch(scaling.scale_samples, self._samples(x), self._plain(m), self._samples(y), self._chunks(x.size))
        return y

    def _samples(self, x):
        """x (N, ...) as (N, M)."""
        return self._plain(x).reshape(len(x), math.prod(x.shape[1:]))

    def scale_channels(self, x, s):
        y = self.empty(x.shape, x.dtype)
        self.launch(scaling.scale_channels, self._samples(x), self._plain(s), self._samples(y), self._chunks(x.size))
        return y

    def scale_channels_backward(self, dy, x, s):
        dx, ds = self.empty(x.shape, x.dtype), self.empty(s.shape, s.dtype)
        self.launch(scaling.scale_channels_backward, self._samples(dy), self._samples(x), self._plain(s),
                    self._samples(dx), ds, self._chunks(x.size))
        return dx, ds

    # -- tokens --------------------------------------------------------------------------------------------------

    def patches(self, x, size):
        N, H, W, C = x.shape
        y = self.empty((N, H // size * (W // size), size * size * C), x.dtype)
        self.launch(token_kernels.patches, self._plain(x), size, y, False, self._chunks(x.size))
        return y

    def patches_backward(self, dy, shape, size):
        dx = self.empty(shape, dy.dtype)
        self.launch(token_kernels.patches, dx, size, self._plain(dy), True, self._chunks(dx.size))
        return dx

    def prepend_token(self, x, token):
        y = self.empty((len(x), x.shape[1] + 1, x.shape[2]), x.dtype)
        self.launch(token_kernels.prepend_token, self._plain(x), token, y, self._chunks(y.size))
        return y

    def prepend_token_backward(self, dy, dtoken, accumulate):
        dx = self.empty((len(dy), dy.shape[1] - 1, dy.shape[2]), dy.dtype)
        self.launch(token_kernels.prepend_token_backward, self._plain(dy), dx, dtoken, accumulate,
                    self._chunks(dx.size))
        return dx

    def take_token(self, x, index):
        y = self.empty((len(x), x.shape[2]), x.dtype)
        self.launch(token_kernels.take_token, self._plain(x), index, y, self._chunks(y.size))
        return y

    def take_token_backward(self, dy, tokens, index):
        dx = self.empty((len(dy), tokens, dy.shape[1]), dy.dtype)
        self.launch(token_kernels.take_token_backward, self._plain(dy), index, dx, self._chunks(dx.size))
        return dx

    def add_to_samples(self, x, P):
        y = self.empty(x.shape, x.dtype)
        self.launch(token_kernels.add_to_samples, self._samples(x), self._flat(P), self._samples(y),
                    self._chunks(x.size))
        return y

    def sum_samples(self, x, total, accumulate):
        self.launch(token_kernels.sum_samples, self._samples(x), total.reshape(-1), accumulate, self._chunks(x.size))

    def layer_norm(self, x, g, b, eps):
        rows, y = self._rows(x), self.empty(x.shape, x.dtype)
        mean, inv_std = self.empty((len(rows),), x.dtype), self.empty((len(rows),), x.dtype)
        self.launch(layer_norm_kernels.layer_norm, rows, g, b, float(eps), y.reshape(rows.shape), mean, inv_std,
                    self._chunks(x.size))
        return y, mean, inv_std

    def layer_norm_backward(self, dy, x, mean, inv_std, g, dg, db, accumulate):
        rows, dx = self._rows(x), self.empty(x.shape, x.dtype)
        self.launch(layer_norm_kernels.layer_norm_backward, self._rows(dy), rows, mean, inv_std, g, dg, db,
                    dx.reshape(rows.shape), accumulate, self._channel_sums(x))
        return dx

    def attention(self, qkv, heads, train):
        N, T, width = qkv.shape
        y, log_sum = self.empty((N, T, width // 3), qkv.dtype), self.empty((N, heads, T), qkv.dtype)
        cut, chunks, scores, panels = self._scores(qkv, heads)
        self.launch(attention_kernels.attention, self._plain(qkv), heads, y, log_sum, cut,
                    self.empty((chunks, *scores), qkv.dtype), self.empty((chunks, panels), qkv.dtype))
        return y, log_sum if train else None

    def attention_backward(self, dy, y, log_sum, qkv, heads):
        (N, T, width), dqkv = qkv.shape, self.empty(qkv.shape, qkv.dtype)
        cut, chunks, scores, panels = self._scores(qkv, heads)
        self.launch(attention_kernels.attention_backward, self._plain(dy), self._plain(y), self._plain(log_sum),
                    self._plain(qkv), heads, dqkv, self.empty((cut - 1, N, T, width // 3 * 2), qkv.dtype), cut,
                    self.empty((chunks, 2, *scores), qkv.dtype), self.empty((chunks, 3, panels), qkv.dtype))
        return dqkv

    def _scores(self, qkv, heads):
        """Pieces that the queries of a head are cut into, threads at work, the shape of a block of scores, and the
        numbers in the panels of a block."""
        N, T, width = qkv.shape
        chunks = self._chunks(qkv.size + N * heads * T * T)
        cut = attention_kernels.pieces(T, N * heads, chunks)
        return (cut, chunks, attention_kernels.scores_shape(T, cut, qkv.dtype),
                attention_kernels.panels_size(T, width // 3 // heads, qkv.dtype))

    # -- labels --------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(self, logits, labels, soft, alpha, class_weight, smoothing):
        dlogits, nothing = self.empty(logits.shape, logits.dtype), NOTHING[logits.dtype]
        partial = self.empty((self._chunks(logits.size),), np.float64)
        self.launch(label_kernels.softmax_cross_entropy, self._plain(logits), self._plain(labels),
                    nothing if soft is None else self._plain(soft), _late(float, alpha),
                    nothing[0] if class_weight is None else self._plain(class_weight), _late(float, smoothing),
                    soft is not None, class_weight is not None, dlogits, partial)
        return self._total(partial, 1.0), dlogits

    def hits(self, logits, labels):
        partial, count = self.empty((self._chunks(logits.size),), np.int64), self.empty((), np.int64)
        self.launch(label_kernels.hits, self._plain(logits), self._plain(labels), partial)
        self.launch(_weighted_sum, partial, 1, count)
        return count

    # -- Gaussian latents and losses -----------------------------------------------------------------------------

    def gaussian_sample(self, h, samples, key):
        z = self.empty((len(h) * samples, h.shape[1] // 2), h.dtype)
        self.launch(latent.gaussian_sample, self._plain(h), z, samples, *_key(key), self._chunks(8 * z.size))
        return z

    def gaussian_sample_backward(self, dz, h, z):
        dh = self.empty(h.shape, h.dtype)
        self.launch(latent.gaussian_sample_backward, self._plain(dz), self._plain(h), self._plain(z), dh,
                    self._chunks(z.size))
        return dh

    def squared_error(self, f, x, scale):
        df, partial = self.empty(f.shape, f.dtype), self.empty((self._chunks(f.size),), "float64")
        real = f.dtype.type
        self.launch(latent.squared_error, self._plain(f), self._plain(x), df, _late(lambda s: real(2 * s), scale),
                    partial)
        return self._total(partial, scale), df

    def gaussian_kl(self, h, scale):
        dh, partial = self.empty(h.shape, h.dtype), self.empty((self._chunks(h.size),), "float64")
        self.launch(latent.gaussian_kl, self._plain(h), dh, _late(h.dtype.type, scale), partial)
        return self._total(partial, scale), dh

    def triplet_softplus(self, z, weight, scale):
        dz, partial = self.empty(z.shape, z.dtype), self.empty((self._chunks(z.size),), "float64")
        self.launch(latent.triplet_softplus, self._plain(z), weight, dz, _late(z.dtype.type, scale), partial)
        return self._total(partial, scale), dz

    # -- optimisers ----------------------------------------------------------------------------------------------

    def sgd(self, p, g, m, ranges, lr, clip, momentum, nesterov):
        real = p.dtype.type
        self.launch(optimisers.sgd, p, g, p if m is None else m, *_ranges(tuple(ranges), real), _late(real, lr),
                    _late(real, clip), real(momentum), m is not None, nesterov, self._chunks(p.size))

    def adagrad(self, p, g, v, ranges, lr, clip, eps):
        real = p.dtype.type
        self.launch(optimisers.adagrad, p, g, v, *_ranges(tuple(ranges), real), _late(real, lr), _late(real, clip),
                    real(eps), self._chunks(p.size))

    def rmsprop(self, p, g, v, ranges, lr, clip, rho, eps):
        real = p.dtype.type
        self.launch(optimisers.rmsprop, p, g, v, *_ranges(tuple(ranges), real), _late(real, lr), _late(real, clip),
                    real(rho), real(eps), self._chunks(p.size))

    def adam(self, p, g, m, v, ranges, lr, clip, beta1, beta2, eps, t, decoupled):
        real = p.dtype.type
        self.launch(optimisers.adam, p, g, m, v, *_ranges(tuple(ranges), real), _late(real, lr), _late(real, clip),
                    real(beta1), real(beta2), real(1 - beta1), real(1 - beta2), real(eps),
                    _late(lambda t: real(1 / (1 - beta1 ** int(t))), t),
                    _late(lambda t: real(1 / math.sqrt(1 - beta2 ** int(t))), t), decoupled, self._chunks(p.size))


NOTHING = {np.dtype(name): np.empty((1, 1), name) for name in ("float32", "float64")}   # for a slope or bias not there


NO_PLACES = np.empty((1, 1, 1, 1), np.uint8)


def _late(convert, value):
    """convert(value); of an array at each call anew, because a captured step is to see its present value."""
    return Late(convert, value) if isinstance(value, np.ndarray) else convert(value)


def _key(key):
    """A Key as the kernels take it: the two words of the seed, stream and step."""
    return key.seed & 0xFFFFFFFF, key.seed >> 32, key.stream, _late(int, key.step)


def _weighted_sum(partial, scale, value):
    value[...] = scale * partial.sum()


def _clip_factor(square, max_norm, factor):
    factor[...] = ReferenceOps.clip_factor(ReferenceOps, square, max_norm)


def _inverse_deviation(var, eps, inv_std):
    inv_std[...] = 1 / np.sqrt(var + var.dtype.type(eps))


def _increment(scalar):
    scalar += 1


def _concatenate(parts, axis, out):
    np.concatenate(parts, axis, out=out)


@functools.lru_cache(maxsize=64)
def _ranges(ranges, real):
    """bounds, decay and rate as arrays; an optimiser asks for the same ones at each step."""
    bounds = np.array([start for start, _, _ in ranges] + [ranges[-1][1]], np.int64)
    return bounds, np.array([d for _, _, (d, _) in ranges], real), np.array([r for _, _, (_, r) in ranges], real)
