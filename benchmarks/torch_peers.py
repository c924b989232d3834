"""ResNet, EfficientNetV2 and the vision transformer in plain PyTorch: what nnlite's are compared with.

Their modules have the names and the structure that torchvision (the convolutional nets) and Hugging Face (the
transformer) publish weights under. x (N, C, H, W) -> logits (N, K).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

# -- ResNet, stride on the 3x3 convolution -----------------------------------------------------------------------------

WIDER = 4


class Bottleneck(nn.Module):
    def __init__(self, channels, inner, stride):
        super().__init__()
        outer = WIDER * inner
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if stride != 1 or channels != outer:
            self.downsample = nn.Sequential(nn.Conv2d(channels, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """stages: (channels inside, blocks), four of them in ResNet-50; small: a stem for small images, 3x3 without stride
    and a 2x2 pooling."""

    def __init__(self, stages, *, channels=3, classes=1000, stem=64, small=False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, stem, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2) if small else nn.MaxPool2d(3, 2, 1)
        self.stages, width = len(stages), stem
        for stage, (inner, count) in enumerate(stages, 1):
            blocks = []
            for i in range(count):
                blocks.append(Bottleneck(width, inner, 2 if stage > 1 and i == 0 else 1))
                width = WIDER * inner
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def resnet50(**options):
    return ResNet([(64, 3), (128, 4), (256, 6), (512, 3)], **options)


def resnet_small(**options):
    return ResNet([(16, 2), (32, 2), (64, 2), (128, 2)], stem=32, small=True, **options)


# -- EfficientNetV2 ----------------------------------------------------------------------------------------------------

STEM = 24
# (fused, expansion, stride, channels, layers)
STAGES = [(True, 1, 1, 24, 2), (True, 4, 2, 48, 4), (True, 4, 2, 64, 4),
          (False, 4, 2, 128, 6), (False, 6, 1, 160, 9), (False, 6, 2, 256, 15)]


def conv_norm(channels, out, kernel, stride=1, groups=1, activation=True):
    layers = [nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
              nn.BatchNorm2d(out, eps=1e-3)]
    return nn.Sequential(*layers, *[nn.SiLU(inplace=True)] * activation)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class StochasticDepth(nn.Module):
    """Leaves the branch out for some samples of a batch, with probability p."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or not self.p:
            return x
        keep = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p)


class MBConv(nn.Module):
    def __init__(self, fused, channels, out, expansion, stride, p):
        super().__init__()
        inner = channels * expansion
        if fused and expansion == 1:
            layers = [conv_norm(channels, out, 3, stride)]
        elif fused:
            layers = [conv_norm(channels, inner, 3, stride), conv_norm(inner, out, 1, activation=False)]
        else:
            layers = [conv_norm(channels, inner, 1), conv_norm(inner, inner, 3, stride, groups=inner),
                      SqueezeExcitation(inner, max(1, channels // 4)), conv_norm(inner, out, 1, activation=False)]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(p)
        self.is_residual = stride == 1 and channels == out

    def forward(self, x):
        y = self.block(x)
        return x + self.stochastic_depth(y) if self.is_residual else y


class EfficientNetV2(nn.Module):
    """depth_p: of the last block's branch being left out, rising from 0 at the first; dropout before the head."""

    def __init__(self, stages=STAGES, *, channels=3, classes=1000, stem=STEM, top=1280, depth_p=0.2, dropout=0.2):
        super().__init__()
        parts, width, number, total = [conv_norm(channels, stem, 3, 2)], stem, 0, sum(stage[4] for stage in stages)
        for fused, expansion, stride, out, count in stages:
            blocks = []
            for i in range(count):
                blocks.append(MBConv(fused, width, out, expansion, 1 if i else stride, depth_p * number / total))
                width, number = out, number + 1
            parts.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*parts, conv_norm(width, top, 1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(top, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def effnetv2s(**options):
    return EfficientNetV2(**options)


def effnetv2s_small(**options):
    return EfficientNetV2(STAGES[:4], **options)


# -- vision transformer ------------------------------------------------------------------------------------------------

EPS = 1e-12


class Holder(nn.Module):
    """Modules and parameters under names."""

    def __init__(self, **named):
        super().__init__()
        for name, value in named.items():
            setattr(self, name, value)


class ViTLayer(nn.Module):
    def __init__(self, features, heads, hidden):
        super().__init__()
        self.heads = heads
        linear = lambda: nn.Linear(features, features)
        self.attention = Holder(attention=Holder(query=linear(), key=linear(), value=linear()),
                                output=Holder(dense=linear()))
        self.intermediate, self.output = Holder(dense=nn.Linear(features, hidden)), Holder(dense=nn.Linear(hidden,
                                                                                                          features))
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(features, EPS), nn.LayerNorm(features, EPS)

    def forward(self, x):
        n, inner = self.layernorm_before(x), self.attention.attention
        q, k, v = (part(n).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (inner.query, inner.key,
                                                                                      inner.value))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attention.output.dense(h)
        return x + self.output.dense(F.gelu(self.intermediate.dense(self.layernorm_after(x))))


class VisionTransformer(nn.Module):
    """Of square images of `side` pixels, in patches of `patch`."""

    def __init__(self, *, side=224, channels=3, classes=1000, patch=16, features=768, layers=12, heads=12):
        super().__init__()
        tokens = (side // patch) ** 2 + 1
        self.vit = Holder(
            embeddings=Holder(cls_token=nn.Parameter(0.02 * torch.randn(1, 1, features)),
                              position_embeddings=nn.Parameter(0.02 * torch.randn(1, tokens, features)),
                              patch_embeddings=Holder(projection=nn.Conv2d(channels, features, patch, patch))),
            encoder=Holder(layer=nn.Sequential(*[ViTLayer(features, heads, 4 * features) for _ in range(layers)])),
            layernorm=nn.LayerNorm(features, EPS))
        self.classifier = nn.Linear(features, classes)

    def forward(self, x):
        parts = self.vit.embeddings
        x = parts.patch_embeddings.projection(x).flatten(2).transpose(1, 2)
        x = torch.cat([parts.cls_token.expand(len(x), -1, -1), x], 1) + parts.position_embeddings
        x = self.vit.encoder.layer(x)
        return self.classifier(self.vit.layernorm(x[:, 0]))


def vit_b16(**options):
    return VisionTransformer(**options)


def vit_tiny(**options):
    return VisionTransformer(**{"side": 48, "patch": 6, "features": 128, "layers": 6, "heads": 4, **options})


# -- by nnlite's settings ----------------------------------------------------------------------------------------------

NETS = {"effnetv2s": effnetv2s, "effnetv2s-small": effnetv2s_small, "resnet50": resnet50,
        "resnet-small": resnet_small, "vit-b16": vit_b16, "vit-tiny": vit_tiny}


def net(settings, shape, classes, depth_p):
    """The net of a preset's settings for images of `shape` (H, W, C); depth_p: as in EfficientNetV2."""
    name, (H, W, C) = settings["model"], shape
    options = {"channels": C, "classes": classes}
    if name.startswith("vit"):
        if H != W:
            raise ValueError(f"expected square images, got {H}x{W}")
        options["side"] = H
    elif name.startswith("effnet"):
        width, depth = settings["width"], settings["depth"]
        stages = [(fused, expansion, stride, rounded(width * out), math.ceil(round(depth * count, 6)))
                  for fused, expansion, stride, out, count in STAGES[:6 if name == "effnetv2s" else 4]]
        return EfficientNetV2(stages, stem=rounded(width * STEM), top=settings["top_filters"], depth_p=depth_p,
                              dropout=1 - settings["keep_prob"], **options)
    return NETS[name](**options)


def rounded(channels):
    """To a multiple of 8 that is not 0 and not more than a tenth too small."""
    near = max(8, 8 * math.floor(channels / 8 + 0.5))
    return near if near >= 0.9 * channels else near + 8
