"""How many floating-point operations the products of a net take: 2 for each multiply and add."""

import math

from nnlite.layers import (Block, Bottleneck, FusedMBConv, MBConv, MultiHeadAttention, PatchEmbed, Recompute, Residual,
                           Sequential, SqueezeExcite)


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


def classifier_forward(model, x_shape):
    """Forward of a classifier for x of this shape (N, H, W, C)."""
    return sum(products(model, x_shape))


def classifier_step(model, x_shape):
    """Forward and backward of a classifier: y, dW and dx of each layer are three products of one size, and so are
    attention's two products of activations and the four of their derivative; the first layer needs no dx. What is
    computed a second time, to save memory, is counted once."""
    first, *others = products(model, x_shape)
    return 2 * first + 3 * sum(others)


def products(layer, x_shape):
    """The operations of every product in the forward pass of a layer and all below it, in that order.

    A convolution is counted as its direct algorithm computes it, every place of the window at every output, on the
    edges too.
    """
    if isinstance(layer, MultiHeadAttention):
        N, T, D = x_shape
        return [*products(layer.qkv, x_shape), product(N * T, D, T, 2),   # q k^T and p v of all heads: 4 T^2 D
                *products(layer.project, x_shape)]
    if "W" in layer.param_specs:   # (D, K), (kh, kw, C / groups, K), or (kh, kw, C) of a depthwise one
        weight, _ = layer.param_specs["W"]
        return [product(math.prod(layer.out_shape(x_shape)[:-1]), math.prod(weight[:-1]), weight[-1], 1)]
    return [count for part, shape in parts(layer, x_shape) for count in products(part, shape)]


def parts(layer, x_shape):
    """The layers that a layer is made of, as far as they have products, each with the shape of its x."""
    if isinstance(layer, Sequential):
        return _one_behind_the_other(layer.layers, x_shape)
    if isinstance(layer, (MBConv, FusedMBConv)):
        return [(layer.branch, x_shape)]
    if isinstance(layer, Bottleneck):
        return [(part, x_shape) for part in (layer.branch, layer.shortcut) if part is not None]
    if isinstance(layer, SqueezeExcite):
        return _one_behind_the_other((layer.mean, layer.reduce, layer.expand), x_shape)
    if isinstance(layer, Block):
        return [(layer.attention, x_shape), (layer.mlp, x_shape)]
    if isinstance(layer, PatchEmbed):
        N, T, _ = layer.out_shape(x_shape)
        return [(layer.project, (N, T, layer.project.in_features))]
    if isinstance(layer, (Recompute, Residual)):
        return [(layer.inner, x_shape)]
    if layer.children():
        raise TypeError(f"{type(layer).__name__} is made of layers that nobody counts")
    return []


def _one_behind_the_other(layers, shape):
    found = []
    for layer in layers:
        found.append((layer, shape))
        shape = layer.out_shape(shape)
    return found
