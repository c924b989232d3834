"""Batches of images: gathered, mirrored, moved or warped, and normalised in one pass."""

import numpy as np
from numba import prange

from .mathfun import kernel, straight
from .norm import tile

Place = np.uint64   # of an index that is never negative: Numba spares the test for counting from the end


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


@kernel
def warp_batch(images, rows, maps, tone, shift, scale, out, chunks):
    (B, Ho, Wo, C), (H, W) = out.shape, images.shape[1:3]
    real = out.dtype.type
    shift, scale = tile(shift, Wo * C), tile(scale, Wo * C)
    for chunk in prange(chunks):
        first, over = np.empty(Wo, np.int32), np.empty(Wo, out.dtype)        # column before, share of the next
        upper, down = np.empty(Wo, np.int32), np.empty(Wo, out.dtype)
        line, light = np.empty(W * C, out.dtype), np.empty(Wo * C, out.dtype)
        start = B * Ho * chunk // chunks
        for row in range(start, B * Ho * (chunk + 1) // chunks):
            i, h = row // Ho, row % Ho
            image, target = images[rows[i]].reshape(H, W * C), out[i, h].reshape(-1)
            a, b = maps[i, 0], maps[i, 1]
            begins = h == 0 or row == start
            if begins:
                contrast = real(tone[i, 0])
                brighten(image, contrast, real(255) * real(tone[i, 1]), line, light, C)
            if begins or b[0] != 0:
                columns(real(b[0]) * real(h) + real(b[2]), real(b[1]), W, first, over)
            if a[1] == 0:        # the output's line lies between two lines of the image
                place = min(max(real(a[0]) * real(h) + real(a[2]), real(0)), real(H - 1))
                top = int(place)
                blend(image[top], image[min(top + 1, H - 1)], place - real(top), line)
                stretch(line, first, over, 1 if W > 1 else 0, C, target)
            else:
                columns(real(a[0]) * real(h) + real(a[2]), real(a[1]), H, upper, down)
                gather(image.reshape(-1), upper, down, first, over, H, W, C, target)
            finish(target, contrast, light, shift, scale)


@straight
def brighten(image, contrast, brightness, line, light, C):
    """light (Wo C): (1 - contrast) * mean of each channel + brightness."""
    light[:] = brightness
    if contrast == 1:
        return
    real = line.dtype.type
    line[:] = 0
    for h in range(len(image)):
        pixels = image[h]
        for i in range(line.size):
            line[i] += real(pixels[i])
    for c in range(C):
        total = 0.0
        for i in range(c, line.size, C):
            total += line[i]
        part = (real(1) - contrast) * real(total / (image.size // C))
        for i in range(c, light.size, C):
            light[i] += part


@straight
def columns(start, step, size, first, over):
    """Places start + w step, brought to 0 .. size - 1: the index before each, at most size - 2, and what is left."""
    real = over.dtype.type
    for w in range(first.size):
        place = min(max(start + step * real(w), real(0)), real(size - 1))
        whole = min(np.int32(place), np.int32(max(size - 2, 0)))
        first[w], over[w] = whole, place - real(whole)


@straight
def blend(top, bottom, down, line):
    real = line.dtype.type
    for i in range(line.size):
        pixel = real(top[i])
        line[i] = pixel + down * (real(bottom[i]) - pixel)


@straight
def stretch(line, first, over, step, C, out):
    """out[w] between the pixels first[w] and the next of a line."""
    if C == 1:   # apart: without the loop over channels LLVM vectorises it
        for w in range(first.size):
            i = Place(first[w])
            out[w] = line[i] + over[w] * (line[i + Place(step)] - line[i])
    else:
        for w in range(first.size):
            i = Place(first[w] * C)
            for c in range(C):
                pixel = line[i + Place(c)]
                out[Place(w * C + c)] = pixel + over[w] * (line[i + Place(step * C + c)] - pixel)


@straight
def gather(pixels, upper, down, first, over, H, W, C, out):
    """out[w] between four pixels."""
    right, below = Place(C if W > 1 else 0), Place(W * C if H > 1 else 0)
    if C == 1:   # apart, as in stretch
        for w in range(first.size):
            four(pixels, Place(upper[w] * W + first[w]), right, below, over[w], down[w], out, Place(w))
    else:
        for w in range(first.size):
            i = Place((upper[w] * W + first[w]) * C)
            for c in range(C):
                four(pixels, i + Place(c), right, below, over[w], down[w], out, Place(w * C + c))


@straight
def four(pixels, i, right, below, over, down, out, place):
    """out[place] between pixel i, the one on its right, and the two below them."""
    real = out.dtype.type
    p, q = real(pixels[i]), real(pixels[i + below])
    p += over * (real(pixels[i + right]) - p)
    q += over * (real(pixels[i + below + right]) - q)
    out[place] = p + down * (q - p)


@straight
def finish(out, contrast, light, shift, scale):
    real = out.dtype.type
    for i in range(out.size):
        value = min(max(out[i] * contrast + light[i], real(0)), real(255))
        out[i] = (value - shift[i]) * scale[i]
