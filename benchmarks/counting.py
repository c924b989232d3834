"""How many floating-point operations the products of a training step take: 2 for each multiply and add."""

import math


def product(rows, inputs, outputs, times):
    """`times` products of the size of (rows, inputs) x (inputs, outputs)."""
    return 2 * rows * inputs * outputs * times


def vae_step(encoder, decoder, *, conditional, batch_size, samples=3, triplet_batch=0):
    """Forward and backward of the face VAEs: y, dW and dx of each layer, three products of one size.

    The encoder sees B + 3V rows, the decoder B L. The first encoder layer needs no dx. Of the decoder's first layer
    the neutral face's part is computed for B rows, and needs no dx either. The triplet term has no products.

    encoder, decoder: sizes as in nnlite.presets; triplet_batch: V, 0 without a triplet prior.
    """
    K, D = encoder[-1], decoder[-1]
    rows = batch_size + 3 * triplet_batch
    sizes = [*encoder[:-1], 2 * K]
    total = product(rows, sizes[0], sizes[1], 2)
    total += sum(product(rows, a, b, 3) for a, b in zip(sizes[1:-1], sizes[2:]))
    sizes = [K, *decoder[1:]]
    total += sum(product(batch_size * samples, a, b, 3) for a, b in zip(sizes[:-1], sizes[1:]))
    return total + (product(batch_size, D, decoder[1], 2) if conditional else 0)


def classifier_step(layers, shape, batch_size):
    """Forward and backward of the layers of a classifier one behind the other, for images of `shape` (H, W, C).

    A convolution is counted as its direct algorithm computes it, every place of the window at every output, on the
    edges too. y, dW and dx of each layer are three products of one size; the first layer needs no dx.
    """
    total, times, shape = 0, 2, (batch_size, *shape)
    for layer in layers:
        out = layer.out_shape(shape)
        weight, _ = layer.param_specs.get("W", (None, None))
        if weight:   # (D, K), or (kh, kw, C / groups, K)
            total += product(math.prod(out[:-1]), math.prod(weight[:-1]), weight[-1], times)
            times = 3
        shape = out
    return total
