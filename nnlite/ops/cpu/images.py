"""Batches of images: gathered, mirrored, moved and normalised in one pass."""

import numpy as np
from numba import prange

from .mathfun import kernel, straight
from .norm import tile


@kernel
def image_batch(images, rows, flip, moves, shift, scale, out, chunks):
    B, H, W, C = out.shape
    shift, scale = tile(shift, W * C), tile(scale, W * C)
    for chunk in prange(chunks):
        line = np.empty((W, C), out.dtype)
        for row in range(B * H * chunk // chunks, B * H * (chunk + 1) // chunks):
            i, h = row // H, row % H
            pixels, target = images[rows[i], min(max(h - moves[i, 0], 0), H - 1)].reshape(-1), out[i, h]
            if flip[i] or moves[i, 1]:
                standardise(pixels, shift, scale, line.reshape(-1))
                rearrange(line, flip[i], moves[i, 1], target)
            else:
                standardise(pixels, shift, scale, target.reshape(-1))


@straight
def standardise(pixels, shift, scale, out):
    real = out.dtype.type
    for i in range(pixels.size):
        out[i] = (real(pixels[i]) - shift[i]) * scale[i]


@straight
def rearrange(line, flip, move, out):
    W, C = line.shape
    for w in range(W):
        source = min(max(w - move, 0), W - 1)
        source = W - 1 - source if flip else source
        for c in range(C):
            out[w, c] = line[source, c]
