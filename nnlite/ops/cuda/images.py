"""The methods of CudaOps on images (batches, convolution, pooling, batch norm) and on class labels."""

import math

import cupy
import numpy as np

from ..reference import channel_groups, out_size
from .blas import TRANSPOSED
from .kernels import BLOCK, CODES, NULL, ROW_BLOCK, flat, plain, pointer

WORKSPACE = 64 << 20    # bytes: for the windows of some images at a time
COLUMN_BLOCK = 128      # as in columns.cuh
ROWS_EACH = 16          # rows that a thread adds up at least,
STRETCH = 16            # also where the sums are of each group of rows
SUM_THREADS = 1 << 17   # of a column sum's first stage, about: half of what the largest devices run at once
PIXELS = "uint8", "float32", "float64"   # what image_batch and warp_batch read as it is


class Windows:
    """Where the windows of images (N, H, W, C) lie: `arguments` are the twelve of WINDOWS in windows.cuh."""

    def __init__(self, shape, kernel, stride, padding, dilation=(1, 1)):
        self.out = tuple(map(out_size, shape[1:3], kernel, stride, padding, dilation))
        self.arguments = tuple(np.int32(number) for pair in (kernel, stride, padding, dilation, shape[1:3], self.out)
                               for number in pair)
        self.places = math.prod(kernel)
        self.are_pixels = self.places == 1 and stride == (1, 1) and padding == (0, 0)


class ImageOps:
    """One of CudaOps' parts: it has the kernels, the products and the sums over rows."""

    def image_batch(self, images, rows, flip, moves, shift, scale, dtype):
        out = self.empty((len(rows), *images.shape[1:]), dtype)
        images, rows = _pixels(images, rows, dtype)
        flip = plain(flip if flip.dtype.itemsize == 1 else flip != 0)
        shift, scale = (plain(array.astype(dtype, copy=False)) for array in (shift, scale))
        self._kernels("image_batch", dtype, out.size, images, np.int32(images.itemsize), pointer(rows), flip,
                      plain(moves.astype("int32", copy=False)), shift, scale, out, out.size, len(images),
                      *_plane(out), out.shape[3])
        return out

    def warp_batch(self, images, rows, maps, tone, shift, scale, size, dtype):
        (B, C), (images, rows) = (len(rows), images.shape[3]), _pixels(images, rows, dtype)
        maps, tone, shift, scale = (plain(array.astype(dtype, copy=False)) for array in (maps, tone, shift, scale))
        mean, out = self.empty((B, C), dtype), self.empty((B, *size, C), dtype)
        source = images, np.int32(images.itemsize), pointer(rows)
        self._kernels("image_means", dtype, mean.size * BLOCK, *source, mean, len(images), *_plane(images), C)
        self._kernels("warp_batch", dtype, out.size, *source, maps, tone, mean, shift, scale, out, out.size,
                      len(images), *_plane(images), *_plane(out), C)
        return out

    # -- convolution ---------------------------------------------------------------------------------------------

    def conv2d(self, x, W, b, stride, padding, dilation, groups, relu):
        x, W = plain(x), plain(W)
        windows = Windows(x.shape, W.shape[:2], stride, padding, dilation)
        y = self.empty((len(x), *windows.out, W.shape[3]), x.dtype)
        for images, columns in self._unfolded(x, windows, groups):
            for a, w, out in _grouped(groups, columns, flat(W), flat(y[images])):
                self._blas.gemm(a, w, out)
        if b is not None:
            self._dense_forward(y, None, b, "relu" if relu else "identity", 1.0, None)
        elif relu:
            self._kernels("activation", y.dtype, y.size, y, y, NULL, y.size, CODES["relu"], 1.0)
        return y

    def conv2d_backward(self, dy, y, x, W, dW, db, stride, padding, dilation, groups, accumulate, need_dx):
        x, W = plain(x), plain(W)
        dh = self._conv_dh(dy, y, db, accumulate)
        windows = Windows(x.shape, W.shape[:2], stride, padding, dilation)
        dx = self.empty(x.shape, x.dtype) if need_dx else None
        for images, columns in self._unfolded(x, windows, groups):
            part = flat(dh[images])
            for a, d, out in _grouped(groups, columns, part, flat(dW)):
                self._blas.gemm(a, d, out, a_form=TRANSPOSED, accumulate=accumulate)
            accumulate = True   # the next images' part
            if need_dx:
                dcolumns = flat(dx) if windows.are_pixels else columns   # which are used up
                for d, w, out in _grouped(groups, part, flat(W), dcolumns):
                    self._blas.gemm(d, w, out, b_form=TRANSPOSED)
                if not windows.are_pixels:
                    out = dx[images]
                    self._kernels("fold", x.dtype, out.size, columns, out, out.size, x.shape[3], groups,
                                  *windows.arguments)
        return dx

    def _unfolded(self, x, windows, groups):
        """(images, columns): slices of the images one after the other, and what their windows see, (windows, kh kw C),
        group by group. All columns come in the same memory."""
        if windows.are_pixels:
            yield slice(0, len(x)), flat(x)
            return
        each, width = math.prod(windows.out), windows.places * x.shape[3]
        chunks = max(1, -(-len(x) * each * width * x.itemsize // WORKSPACE))
        step = max(1, -(-len(x) // chunks))
        memory = self.empty((step * each, width), x.dtype)
        for start in range(0, max(1, len(x)), step):
            part = x[start:start + step]
            columns = memory[:len(part) * each]
            self._kernels("unfold", x.dtype, len(columns) * x.shape[3], part, columns, len(columns) * x.shape[3],
                          x.shape[3], groups, *windows.arguments)
            yield slice(start, start + step), columns

    def _conv_dh(self, dy, y, db, accumulate):
        """dy where y > 0 (y None: dy), and db = its sum, unless that is None."""
        dy = plain(dy)
        if y is None and db is None:
            return dy
        dh = dy if y is None else self.empty(dy.shape, dy.dtype)
        partial = self._column_partial(dy.size // dy.shape[3], dy.shape[3])
        self._kernels("rectified", dy.dtype, partial.size, dy, NULL if y is None else plain(y), dh, partial, dy.size,
                      partial.size)
        if db is not None:
            self._finish_columns(partial, db, accumulate)
        return dh

    def depthwise_conv2d(self, x, W, b, stride, padding, dilation):
        windows = Windows(x.shape, W.shape[:2], stride, padding, dilation)
        y = self.empty((len(x), *windows.out, x.shape[3]), x.dtype)
        self._kernels("depthwise", x.dtype, y.size, plain(x), plain(W), NULL if b is None else plain(b), y, y.size,
                      x.shape[3], *windows.arguments)
        return y

    def depthwise_conv2d_backward(self, dy, x, W, dW, db, stride, padding, dilation, accumulate, need_dx):
        x, dy, C = plain(x), self._conv_dh(dy, None, db, accumulate), x.shape[3]
        windows = Windows(x.shape, W.shape[:2], stride, padding, dilation)
        count = dy.size // C
        partial = self._column_partial(count, W.size)
        self._kernels("depthwise_dW", x.dtype, partial.size, dy, x, partial, count, len(partial), C,
                      *windows.arguments)
        self._finish_columns(partial, dW, accumulate)
        if not need_dx:
            return None
        dx = self.empty(x.shape, x.dtype)
        self._kernels("depthwise_dx", x.dtype, dx.size, dy, plain(W), dx, dx.size, C, *windows.arguments)
        return dx

    # -- sums over the rows of a matrix, see columns.cuh ---------------------------------------------------------

    def _column_partial(self, rows, columns):
        """Room for the first stage: (parts, columns), one thread each."""
        parts = min(-(-rows // ROWS_EACH), -(-SUM_THREADS // columns))
        return self.empty((max(1, parts), columns), "float64")

    def _finish_columns(self, partial, out, accumulate):
        """out = the sum of partial over its parts, or adds it."""
        parts, columns = partial.shape
        self._kernels("finish_columns", out.dtype, columns * COLUMN_BLOCK, partial, parts, columns, out,
                      np.int32(accumulate), block=COLUMN_BLOCK)

    # -- blocks of convolutions ------------------------------------------------------------------------------------

    def add_relu(self, a, b):
        y = self.empty(a.shape, a.dtype)
        self._kernels("add_relu", a.dtype, y.size, plain(a), plain(b), y, y.size)
        return y

    def relu_backward(self, dy, y):
        dx = self.empty(dy.shape, dy.dtype)
        self._kernels("relu_backward", dy.dtype, dx.size, plain(dy), plain(y), dx, dx.size)
        return dx

    def scale_channels_backward(self, dy, x, s):
        (N, H, W, C), dx, ds = x.shape, self.empty(x.shape, x.dtype), self.empty(s.shape, s.dtype)
        stretch, parts = stretches(H * W)
        sums = ds if parts == 1 else self.empty((N, parts, C), s.dtype)
        self._kernels("scale_channels_backward", x.dtype, N * parts * C, plain(dy), plain(x), plain(s), dx, sums, N,
                      H * W, C, parts, stretch)
        if parts > 1:
            self._kernels("add_parts", s.dtype, ds.size, sums, ds, N, parts, C, np.int32(0))
        return dx, ds

    # -- pooling -------------------------------------------------------------------------------------------------

    def max_pool(self, x, kernel, stride, padding, train):
        windows = Windows(x.shape, kernel, stride, padding)
        y = self.empty((len(x), *windows.out, x.shape[3]), x.dtype)
        place = self.empty(y.shape, "uint8") if train else None
        self._kernels("max_pool", x.dtype, y.size, plain(x), y, pointer(place), y.size, x.shape[3], *windows.arguments)
        return y, place

    def max_pool_backward(self, dy, place, shape, kernel, stride, padding):
        dx = self.empty(shape, dy.dtype)
        self._kernels("max_pool_backward", dy.dtype, dx.size, plain(dy), plain(place), dx, dx.size, shape[3],
                      *Windows(shape, kernel, stride, padding).arguments)
        return dx

    def avg_pool(self, x, kernel, stride):
        windows = Windows(x.shape, kernel, stride, (0, 0))
        y = self.empty((len(x), *windows.out, x.shape[3]), x.dtype)
        self._kernels("avg_pool", x.dtype, y.size, plain(x), y, y.size, x.shape[3], *windows.arguments)
        return y

    def avg_pool_backward(self, dy, shape, kernel, stride):
        dx = self.empty(shape, dy.dtype)
        self._kernels("avg_pool_backward", dy.dtype, dx.size, plain(dy), dx, dx.size, shape[3],
                      *Windows(shape, kernel, stride, (0, 0)).arguments)
        return dx

    def global_avg_pool(self, x):
        y = self.empty((len(x), x.shape[3]), x.dtype)
        self._sum_rows(flat(x), None, None, y, False)
        y *= 1 / (x.shape[1] * x.shape[2])
        return y

    def global_avg_pool_backward(self, dy, shape):
        dx = self.empty(shape, dy.dtype)
        self._kernels("global_avg_pool_backward", dy.dtype, dx.size, plain(dy), dx, dx.size, shape[1] * shape[2],
                      shape[3])
        return dx

    # -- batch norm ----------------------------------------------------------------------------------------------

    def batch_norm(self, x, g, b, running_mean, running_var, momentum, eps, activation, train):
        x, y = plain(x), self.empty(x.shape, x.dtype)
        mean, inv_std = self._norm_statistics(x, running_mean, running_var, momentum, eps, train)
        self._kernels("batch_norm", x.dtype, x.size, x, y, x.size, x.shape[-1], mean, inv_std, plain(g), plain(b),
                      CODES[activation])
        return y, mean, inv_std

    def _norm_statistics(self, x, running_mean, running_var, momentum, eps, train):
        columns = x.shape[-1]
        rows = x.size // columns
        inv_std = self.empty((columns,), x.dtype)
        if not train:
            self._kernels("inverse_deviation", x.dtype, columns, running_var, inv_std, columns, float(eps))
            return running_mean, inv_std
        mean, means = self.empty((columns,), x.dtype), self._column_partial(rows, columns)
        squares = self.empty(means.shape, means.dtype)
        self._kernels("column_moments", x.dtype, means.size, x, means, squares, x.size, means.size)
        self._kernels("norm_statistics", x.dtype, columns * COLUMN_BLOCK, means, squares, rows, len(means), columns,
                      mean, inv_std, running_mean, running_var, float(momentum), float(eps), block=COLUMN_BLOCK)
        return mean, inv_std

    def batch_norm_backward(self, dy, x, mean, inv_std, g, b, dg, db, activation, accumulate):
        dy, x, norm = plain(dy), plain(x), (mean, inv_std, plain(g), plain(b))
        columns, dx = x.shape[-1], self.empty(x.shape, x.dtype)
        rows = x.size // columns
        partial = self._norm_partial(rows, columns)
        self._kernels("batch_norm_sums", x.dtype, partial[0].size, dy, x, partial, x.size, partial[0].size, columns,
                      *norm, CODES[activation])
        sums = self._norm_gradients(partial, dg, db, accumulate)
        self._kernels("batch_norm_dx", x.dtype, x.size, dy, x, dx, sums, x.size, rows, columns, *norm,
                      CODES[activation])
        return dx

    def _norm_partial(self, rows, columns):
        """Room for the first stage of two sums."""
        return self.empty((2, *self._column_partial(rows, columns).shape), "float64")

    def _norm_gradients(self, partial, dg, db, accumulate):
        """The sums (2, columns) of dh and dh n; writes db and dg, or adds to them."""
        parts, columns = partial.shape[1:]
        sums = self.empty((2, columns), dg.dtype)
        self._kernels("norm_gradients", dg.dtype, columns * COLUMN_BLOCK, partial, parts, columns, sums, dg, db,
                      np.int32(accumulate), block=COLUMN_BLOCK)
        return sums

    def norm_pool(self, x, g, b, running_mean, running_var, momentum, eps, train):
        x = plain(x)
        mean, inv_std = self._norm_statistics(x, running_mean, running_var, momentum, eps, train)
        y = self.empty((len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]), x.dtype)
        place = self.empty(y.shape, "uint8") if train else None
        self._kernels("norm_pool", x.dtype, y.size, x, y, pointer(place), y.size, *_plane(x), x.shape[3], mean,
                      inv_std, plain(g), plain(b))
        return y, mean, inv_std, place

    def norm_pool_backward(self, dy, place, x, mean, inv_std, g, dg, db, accumulate):
        dy, place, x = plain(dy), plain(place), plain(x)
        C, dx = x.shape[3], self.empty(x.shape, x.dtype)
        partial = self._norm_partial(dy.size // C, C)
        self._kernels("norm_pool_sums", x.dtype, partial[0].size, dy, place, x, partial, dy.size, partial[0].size,
                      *_plane(x), C, mean, inv_std)
        sums = self._norm_gradients(partial, dg, db, accumulate)
        self._kernels("norm_pool_dx", x.dtype, x.size, dy, place, x, dx, sums, x.size, x.size // C, *_plane(x), C,
                      mean, inv_std, plain(g))
        return dx

    # -- class labels --------------------------------------------------------------------------------------------

    def softmax_cross_entropy(self, logits, labels, soft, alpha, class_weight, smoothing):
        (N, K), dtype = logits.shape, logits.dtype
        labels = plain(labels.astype("int32", copy=False))
        soft, class_weight = (None if array is None else plain(array.astype(dtype, copy=False))
                              for array in (soft, class_weight))
        total = None
        if class_weight is not None:
            total = self.empty((), "float64")
            self._kernels("sum_weights", dtype, BLOCK, labels, class_weight, N, K, total)
        dlogits, partial = self.empty((N, K), dtype), self.empty((N,), "float64")
        self._kernels("softmax_cross_entropy", dtype, N * ROW_BLOCK, plain(logits), labels, pointer(soft),
                      pointer(class_weight), pointer(total), dlogits, partial, N, K, float(alpha), float(smoothing),
                      block=ROW_BLOCK)
        return self._finish_sum(dtype, partial, 1.0, 1.0), dlogits

    def hits(self, logits, labels):
        N, K = logits.shape
        hit, total = self.empty((N,), "uint8"), self.empty((), "int64")
        self._kernels("hits", logits.dtype, N * ROW_BLOCK, plain(logits), plain(labels.astype("int32", copy=False)), K,
                      hit, block=ROW_BLOCK)
        self._kernels("count_hits", logits.dtype, BLOCK, hit, N, total)
        return total


def stretches(rows):
    """(stretch, parts): how many rows each thread of a sum adds up, and how many such parts they make."""
    stretch = max(STRETCH, math.isqrt(rows))
    return stretch, max(1, -(-rows // stretch))


def _pixels(images, rows, dtype):
    """images and rows as kernels take them: pixels of another type are converted, those of the batch alone, and there
    are no rows then."""
    if images.dtype.name in PIXELS:
        return plain(images), plain(rows.astype("int32", copy=False))
    return cupy.take(images, rows, 0).astype(dtype), None


def _plane(x):
    """H and W, as C ints."""
    return np.int32(x.shape[1]), np.int32(x.shape[2])


def _grouped(groups, *matrices):
    """For each group its columns of the matrices."""
    return zip(*(channel_groups(matrix, groups) for matrix in matrices))
