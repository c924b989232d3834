"""ResNet-50 (He et al. 2016, table 1), stride on the 3x3 convolutions, and a small sibling: images -> logits."""

from ..layers import BatchNorm, Bottleneck, Conv2d, GlobalAvgPool, Linear, MaxPool2d, Sequential

WIDER = 4   # the channels of a block's output over those inside


def resnet50(*, shape=(224, 224, 3), classes=1000):
    """Stages of 3, 4, 6 and 3 blocks, 64 to 512 channels inside."""
    stem = Sequential(conv=Conv2d(shape[2], 64, 7, stride=2, padding=3, bias=False),
                      norm=BatchNorm(64, activation="relu"), pool=MaxPool2d(3, stride=2, padding=1))
    return _resnet(stem, 64, [(64, 3), (128, 4), (256, 6), (512, 3)], classes)


def resnet_small(*, shape=(48, 48, 1), classes=7):
    """Stages of 2 blocks, 16 to 128 channels inside, on images of some 48 pixels, which the stem keeps whole."""
    stem = Sequential(conv=Conv2d(shape[2], 32, 3, padding=1, bias=False), norm=BatchNorm(32, activation="relu"),
                      pool=MaxPool2d(2))
    return _resnet(stem, 32, [(16, 2), (32, 2), (64, 2), (128, 2)], classes)


def _resnet(stem, C, stages, classes):
    """stages: (channels inside, blocks); every stage but the first halves the image."""
    body = {"stem": stem}
    for stage, (inner, count) in enumerate(stages, 1):
        blocks = []
        for i in range(count):
            blocks.append(Bottleneck(C, inner, WIDER * inner, stride=2 if stage > 1 and i == 0 else 1))
            C = WIDER * inner
        body[f"stage{stage}"] = Sequential(*blocks)
    return Sequential(**body, pool=GlobalAvgPool(), head=Linear(C, classes))
