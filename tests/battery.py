"""The table of all layers: every layer of nnlite.layers has a row here, and every row runs through test_battery.py.

A new layer adds one row.
"""

from typing import NamedTuple

from nnlite import layers as nl


class Row(NamedTuple):
    cls: type
    make: object             # (D, K) -> layer; D features of x, K what else can be chosen
    shapes: object           # (N, D, K) -> the input shapes, N the batch
    linear: bool = False     # linear in x, up to a constant: has the adjoint test
    noisy: bool = False      # draws random numbers in training
    any_width: bool = False  # takes any number of channels, so that no such number is wrong
    mixes: bool = False      # in training a row of y depends on the other rows of x
    kinks: bool = False      # a kink may fall inside a step of the gradient check, wherever x lies
    rounding: float = 0.0    # what float32 may be off by, times the largest number of a result


def one(N, D, K):
    return [(N, D)]


def image(N, D, K):
    return [(N, 5, 6, D)]


def tokens(N, D, K):
    return [(N, 5, 4 * D)]


WINOGRAD = 2e-5   # a convolution may sum in another order than its definition: see test_conv.py


LONG_SUMS = 4e-6  # products of products over many tokens cancel


ROWS = {
    "Linear": Row(nl.Linear, lambda D, K: nl.Linear(D, K), one, linear=True),
    "Linear without bias": Row(nl.Linear, lambda D, K: nl.Linear(D, K, bias=False), one, linear=True),
    "Linear on three axes": Row(nl.Linear, lambda D, K: nl.Linear(D, K), lambda N, D, K: [(N, 3, D)], linear=True),
    "ReLU": Row(nl.ReLU, lambda D, K: nl.ReLU(), one, any_width=True),
    "LeakyReLU": Row(nl.LeakyReLU, lambda D, K: nl.LeakyReLU(0.1), one, any_width=True),
    "ELU": Row(nl.ELU, lambda D, K: nl.ELU(), one, any_width=True),
    "ELU, alpha 0.5": Row(nl.ELU, lambda D, K: nl.ELU(0.5), one, any_width=True),
    "Sigmoid": Row(nl.Sigmoid, lambda D, K: nl.Sigmoid(), one, any_width=True),
    "Tanh": Row(nl.Tanh, lambda D, K: nl.Tanh(), one, any_width=True),
    "SiLU": Row(nl.SiLU, lambda D, K: nl.SiLU(), one, any_width=True),
    "Softplus": Row(nl.Softplus, lambda D, K: nl.Softplus(), one, any_width=True),
    "GELU": Row(nl.GELU, lambda D, K: nl.GELU(), lambda N, D, K: [(N, D, K)], any_width=True),
    "Dropout": Row(nl.Dropout, lambda D, K: nl.Dropout(0.7), one, linear=True, noisy=True, any_width=True),
    "Dense": Row(nl.Dense, lambda D, K: nl.Dense(D, K), one),
    "Dense with GELU and dropout": Row(nl.Dense, lambda D, K: nl.Dense(D, K, activation="gelu", keep_prob=0.8), one,
                                       noisy=True),
    "ConditionalDense": Row(nl.ConditionalDense,
                            lambda D, K: nl.ConditionalDense(D, 4, K, keep_prob=0.8, condition_gradient=True),
                            lambda N, D, K: [(3 * N, D), (N, 4)], noisy=True),
    "GaussianSample": Row(nl.GaussianSample, lambda D, K: nl.GaussianSample(3), lambda N, D, K: [(N, 2 * K)],
                          noisy=True),
    "Sequential": Row(nl.Sequential, lambda D, K: nl.Sequential(nl.Linear(D, 5), nl.SiLU(), nl.Dropout(0.8),
                                                                nl.Linear(5, K)), one, noisy=True),
    "Residual": Row(nl.Residual, lambda D, K: nl.Residual(nl.Sequential(nl.Linear(D, K), nl.Tanh(), nl.Linear(K, D))),
                    one),
    "Concat": Row(nl.Concat, lambda D, K: nl.Concat(nl.Linear(D, K), nl.Sigmoid(), nl.Linear(D, 2)), one),
    "Conv2d": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, 3, padding=1), image, linear=True, rounding=WINOGRAD),
    "Conv2d without padding and bias": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, 3, bias=False), image, linear=True,
                                           rounding=WINOGRAD),
    "Conv2d 1x1": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, 1), image, linear=True, rounding=WINOGRAD),
    "Conv2d 5x5": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, 5, padding=2), image, linear=True, rounding=WINOGRAD),
    "Conv2d with strides": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, (3, 2), stride=2, padding=1), image,
                               linear=True, rounding=WINOGRAD),
    "Conv2d with gaps between windows": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, 2, stride=3), image, linear=True,
                                            rounding=WINOGRAD),
    "Conv2d with dilation": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, 3, padding=(2, 1), dilation=2), image,
                                linear=True, rounding=WINOGRAD),
    "Conv2d in groups": Row(nl.Conv2d, lambda D, K: nl.Conv2d(2 * D, 2 * K, 3, padding=1, groups=2),
                            lambda N, D, K: [(N, 5, 6, 2 * D)], linear=True, rounding=WINOGRAD),
    "Conv2d with ReLU": Row(nl.Conv2d, lambda D, K: nl.Conv2d(D, K, (2, 3), relu=True), image, kinks=True,
                            rounding=WINOGRAD),
    "DepthwiseConv2d": Row(nl.DepthwiseConv2d, lambda D, K: nl.DepthwiseConv2d(D, 3, padding=1), image, linear=True,
                           rounding=WINOGRAD),
    "DepthwiseConv2d with strides": Row(
        nl.DepthwiseConv2d, lambda D, K: nl.DepthwiseConv2d(D, (5, 3), stride=2, padding=(2, 1), bias=False), image,
        linear=True, rounding=WINOGRAD),
    "MaxPool2d": Row(nl.MaxPool2d, lambda D, K: nl.MaxPool2d(2), image, any_width=True),
    "MaxPool2d with overlap": Row(nl.MaxPool2d, lambda D, K: nl.MaxPool2d(3, stride=2, padding=1), image,
                                  any_width=True),
    "AvgPool2d": Row(nl.AvgPool2d, lambda D, K: nl.AvgPool2d(2), image, linear=True, any_width=True),
    "AvgPool2d with overlap": Row(nl.AvgPool2d, lambda D, K: nl.AvgPool2d((3, 2), stride=(2, 1)), image, linear=True,
                                  any_width=True),
    "GlobalAvgPool": Row(nl.GlobalAvgPool, lambda D, K: nl.GlobalAvgPool(), image, linear=True, any_width=True),
    # At least four rows: with one the variance is zero, and with two so is nearly all of dx.
    "BatchNorm": Row(nl.BatchNorm, lambda D, K: nl.BatchNorm(D), lambda N, D, K: [(4 * N, D)], mixes=True),
    "BatchNorm of images": Row(nl.BatchNorm, lambda D, K: nl.BatchNorm(D, eps=0.1, momentum=0.3), image, mixes=True),
    "BatchNorm with ReLU": Row(nl.BatchNorm, lambda D, K: nl.BatchNorm(D, activation="relu"), image, mixes=True,
                               kinks=True),
    "BatchNorm with SiLU": Row(nl.BatchNorm, lambda D, K: nl.BatchNorm(D, activation="silu"), image, mixes=True),
    "NormPool": Row(nl.NormPool, lambda D, K: nl.NormPool(D), image, mixes=True, kinks=True),
    "Flatten": Row(nl.Flatten, lambda D, K: nl.Flatten(), image, linear=True, any_width=True),
    "StochasticDepth": Row(nl.StochasticDepth, lambda D, K: nl.StochasticDepth(0.7), image, linear=True, noisy=True,
                           any_width=True),
    "SqueezeExcite": Row(nl.SqueezeExcite, lambda D, K: nl.SqueezeExcite(D, K), image),
    "MBConv": Row(nl.MBConv, lambda D, K: nl.MBConv(D, D, expansion=2, keep_prob=0.8), image, mixes=True, noisy=True,
                  rounding=WINOGRAD),
    "MBConv with stride": Row(nl.MBConv, lambda D, K: nl.MBConv(D, K, expansion=2, stride=2), image, mixes=True,
                              rounding=WINOGRAD),
    "FusedMBConv": Row(nl.FusedMBConv, lambda D, K: nl.FusedMBConv(D, D, expansion=2, keep_prob=0.8), image,
                       mixes=True, noisy=True, rounding=WINOGRAD),
    "FusedMBConv without expansion": Row(nl.FusedMBConv, lambda D, K: nl.FusedMBConv(D, K, expansion=1, stride=2),
                                         image, mixes=True, rounding=WINOGRAD),
    "Bottleneck": Row(nl.Bottleneck, lambda D, K: nl.Bottleneck(D, K, D), image, mixes=True, kinks=True,
                      rounding=WINOGRAD),
    "Bottleneck with stride": Row(nl.Bottleneck, lambda D, K: nl.Bottleneck(D, 2, K, stride=2), image, mixes=True,
                                  kinks=True, rounding=WINOGRAD),
    "LayerNorm": Row(nl.LayerNorm, lambda D, K: nl.LayerNorm(D), lambda N, D, K: [(N, 3, D)]),
    "PatchEmbed": Row(nl.PatchEmbed, lambda D, K: nl.PatchEmbed(D, K, 2), lambda N, D, K: [(N, 4, 6, D)], linear=True),
    "ClassToken": Row(nl.ClassToken, lambda D, K: nl.ClassToken(D), lambda N, D, K: [(N, 3, D)], linear=True),
    "PositionEmbedding": Row(nl.PositionEmbedding, lambda D, K: nl.PositionEmbedding(3, D),
                             lambda N, D, K: [(N, 3, D)], linear=True),
    "TakeToken": Row(nl.TakeToken, lambda D, K: nl.TakeToken(1), lambda N, D, K: [(N, 3, D)], linear=True,
                     any_width=True),
    "MultiHeadAttention": Row(nl.MultiHeadAttention, lambda D, K: nl.MultiHeadAttention(4 * D, 4), tokens,
                              rounding=LONG_SUMS),
    "FeedForward": Row(nl.FeedForward, lambda D, K: nl.FeedForward(4 * D, 3 * K), tokens, rounding=LONG_SUMS),
    "Block": Row(nl.Block, lambda D, K: nl.Block(4 * D, 2, 5), tokens, rounding=LONG_SUMS),
    "Recompute": Row(nl.Recompute, lambda D, K: nl.Recompute(nl.Sequential(nl.Dense(D, 5, keep_prob=0.8),
                                                                           nl.Linear(5, K))), one, noisy=True),
}
