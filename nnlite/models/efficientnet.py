"""EfficientNetV2-S (Tan & Le 2021, table 4), scaled, and without its last two stages: images (H, W, C) -> logits."""

import math

from ..errors import expected
from ..layers import BatchNorm, Conv2d, Dropout, FusedMBConv, GlobalAvgPool, Linear, MBConv, Sequential
from ..layers.mbconv import EPS

STEM = 24
# (block, expansion, stride, channels, layers); MBConv has squeeze-and-excitation of a quarter of its input channels
STAGES = [
    (FusedMBConv, 1, 1, 24, 2),
    (FusedMBConv, 4, 2, 48, 4),
    (FusedMBConv, 4, 2, 64, 4),
    (MBConv, 4, 2, 128, 6),
    (MBConv, 6, 1, 160, 9),
    (MBConv, 6, 2, 256, 15),
]
DROPPED = 0.2   # probability that stochastic depth drops the last block's branch; it rises linearly from 0


def effnetv2s(*, shape=(48, 48, 1), classes=7, width=1.0, depth=1.0, top_filters=1280, keep_prob=0.8, stages=STAGES):
    """width times the channels, depth times the layers of each stage; top_filters: channels of the last convolution,
    which stay; keep_prob: of the dropout before the linear layer."""
    C = rounded(STEM * width)
    body = {"stem": Sequential(conv=Conv2d(shape[2], C, 3, stride=2, padding=1, bias=False),
                               norm=BatchNorm(C, eps=EPS, activation="silu"))}
    counts = [math.ceil(round(layers * depth, 6)) for *_, layers in stages]   # 0.1 + 0.2 is a little above 0.3
    number = 0
    for stage, ((block, expansion, stride, channels, _), count) in enumerate(zip(stages, counts), 1):
        K, blocks = rounded(channels * width), []
        for i in range(count):
            blocks.append(block(C, K, expansion=expansion, stride=1 if i else stride,
                                keep_prob=1 - DROPPED * number / sum(counts)))
            C, number = K, number + 1
        body[f"stage{stage}"] = Sequential(*blocks)
    top = Sequential(conv=Conv2d(C, top_filters, 1, bias=False),
                     norm=BatchNorm(top_filters, eps=EPS, activation="silu"))
    return Sequential(**body, top=top, pool=GlobalAvgPool(), dropout=Dropout(keep_prob),
                      head=Linear(top_filters, classes))


def effnetv2s_small(**options):
    """Without stages 5 and 6."""
    return effnetv2s(**options, stages=STAGES[:4])


def rounded(channels):
    """The nearest multiple of 8, at least 8 and not below 0.9 of the product."""
    if not channels > 0:
        raise expected("width", "a factor above 0", channels)
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8
