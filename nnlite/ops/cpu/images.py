"""Batches of images: gathered, mirrored and normalised in one pass."""

import numpy as np
from numba import prange

from .mathfun import kernel, straight
from .norm import tile


@kernel
def image_batch(images, rows, flip, shift, scale, out, chunks):
    B, H, W, C = out.shape
    shift, scale = tile(shift, W * C), tile(scale, W * C)
    for chunk in prange(chunks):
        line = np.empty((W, C), out.dtype)
        for row in range(B * H * chunk // chunks, B * H * (chunk + 1) // chunks):
            i, h = row // H, row % H
            pixels, target = images[rows[i], h].reshape(-1), out[i, h]
            if flip[i]:
                standardise(pixels, shift, scale, line.reshape(-1))
                mirror(line, target)
            else:
                standardise(pixels, shift, scale, target.reshape(-1))


@straight
def standardise(pixels, shift, scale, out):
    real = out.dtype.type
    for i in range(pixels.size):
        out[i] = (real(pixels[i]) - shift[i]) * scale[i]


@straight
def mirror(line, out):
    W, C = line.shape
    for w in range(W):
        for c in range(C):
            out[w, c] = line[W - 1 - w, c]
