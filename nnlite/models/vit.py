"""Vision transformers (Dosovitskiy et al. 2021): ViT-B/16 and a small sibling: images -> logits."""

from ..errors import expected
from ..layers import (Block, ClassToken, LayerNorm, Linear, PatchEmbed, PositionEmbedding, Recompute, Sequential,
                      TakeToken)

EPS = 1e-12   # of the layer norms of the published weights


def vit_b16(*, shape=(224, 224, 3), classes=1000, recompute=False):
    """Patches of 16 pixels, 12 blocks of 768 numbers and 12 heads. recompute: keep only what enters each block."""
    return _vit("vit-b16", shape, classes, patch=16, features=768, blocks=12, heads=12, recompute=recompute)


def vit_tiny(*, shape=(48, 48, 1), classes=7, recompute=False):
    """Patches of 6 pixels, 6 blocks of 128 numbers and 4 heads: for images of 48 pixels on a laptop."""
    return _vit("vit-tiny", shape, classes, patch=6, features=128, blocks=6, heads=4, recompute=recompute)


def _vit(name, shape, classes, *, patch, features, blocks, heads, recompute):
    H, W, C = shape
    if H % patch or W % patch:
        raise expected(name, f"images of whole patches of {patch}x{patch} pixels", f"{H}x{W}")
    tokens = H // patch * (W // patch) + 1
    body = [Block(features, heads, 4 * features, eps=EPS) for _ in range(blocks)]
    return Sequential(
        patches=PatchEmbed(C, features, patch), token=ClassToken(features),
        positions=PositionEmbedding(tokens, features),
        blocks=Sequential(*[Recompute(block) if recompute else block for block in body]),
        take=TakeToken(), norm=LayerNorm(features, eps=EPS), head=Linear(features, classes))
