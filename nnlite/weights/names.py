"""What the parameters of nnlite's models are called in the files of others: tables of layers.

A pattern on the left is a layer's path in nnlite, {s} a stage, {i} a block, {k} a number; on the right stands that
module's name in the file. {before} is s - 1, {top} the number of stages + 1. Several names: their tensors, one under
the other, are the one of nnlite.
"""

import collections
import re
from typing import NamedTuple

RESNET = {
    "stem.conv": "conv1",
    "stem.norm": "bn1",
    "stage{s}.{i}.branch.conv{k}": "layer{s}.{i}.conv{k}",
    "stage{s}.{i}.branch.norm{k}": "layer{s}.{i}.bn{k}",
    "stage{s}.{i}.shortcut.conv": "layer{s}.{i}.downsample.0",
    "stage{s}.{i}.shortcut.norm": "layer{s}.{i}.downsample.1",
    "head": "fc",
}

# The blocks of EfficientNetV2: MBConv, FusedMBConv, and FusedMBConv of expansion 1, which has no project.
EFFICIENTNET_TORCHVISION = {
    "stem.conv": "features.0.0",
    "stem.norm": "features.0.1",
    "stage{s}.{i}.mb.expand": "features.{s}.{i}.block.0.0",
    "stage{s}.{i}.mb.norm1": "features.{s}.{i}.block.0.1",
    "stage{s}.{i}.mb.depthwise": "features.{s}.{i}.block.1.0",
    "stage{s}.{i}.mb.norm2": "features.{s}.{i}.block.1.1",
    "stage{s}.{i}.mb.excite.reduce": "features.{s}.{i}.block.2.fc1",
    "stage{s}.{i}.mb.excite.expand": "features.{s}.{i}.block.2.fc2",
    "stage{s}.{i}.mb.project": "features.{s}.{i}.block.3.0",
    "stage{s}.{i}.mb.norm3": "features.{s}.{i}.block.3.1",
    "stage{s}.{i}.fused.expand": "features.{s}.{i}.block.0.0",
    "stage{s}.{i}.fused.norm1": "features.{s}.{i}.block.0.1",
    "stage{s}.{i}.fused.project": "features.{s}.{i}.block.1.0",
    "stage{s}.{i}.fused.norm2": "features.{s}.{i}.block.1.1",
    "stage{s}.{i}.single.expand": "features.{s}.{i}.block.0.0",
    "stage{s}.{i}.single.norm1": "features.{s}.{i}.block.0.1",
    "top.conv": "features.{top}.0",
    "top.norm": "features.{top}.1",
    "head": "classifier.1",
}

EFFICIENTNET_TIMM = {
    "stem.conv": "conv_stem",
    "stem.norm": "bn1",
    "stage{s}.{i}.mb.expand": "blocks.{before}.{i}.conv_pw",
    "stage{s}.{i}.mb.depthwise": "blocks.{before}.{i}.conv_dw",
    "stage{s}.{i}.mb.excite.{k}": "blocks.{before}.{i}.se.conv_{k}",
    "stage{s}.{i}.mb.project": "blocks.{before}.{i}.conv_pwl",
    "stage{s}.{i}.fused.expand": "blocks.{before}.{i}.conv_exp",
    "stage{s}.{i}.fused.project": "blocks.{before}.{i}.conv_pwl",
    "stage{s}.{i}.single.expand": "blocks.{before}.{i}.conv",
    "stage{s}.{i}.mb.norm{k}": "blocks.{before}.{i}.bn{k}",
    "stage{s}.{i}.fused.norm{k}": "blocks.{before}.{i}.bn{k}",
    "stage{s}.{i}.single.norm{k}": "blocks.{before}.{i}.bn{k}",
    "top.conv": "conv_head",
    "top.norm": "bn2",
    "head": "classifier",
}

VIT_ENDS = {
    "patches.project": "{prefix}embeddings.patch_embeddings.projection",
    "token": "{prefix}embeddings.cls_token",
    "positions": "{prefix}embeddings.position_embeddings",
    "norm": "{prefix}layernorm",
    "head": "classifier",
}

VIT_HUGGING_FACE = {
    **VIT_ENDS,
    "blocks.{i}.norm1": "{prefix}encoder.layer.{i}.layernorm_before",
    "blocks.{i}.attention.qkv": ("{prefix}encoder.layer.{i}.attention.attention.query",
                                 "{prefix}encoder.layer.{i}.attention.attention.key",
                                 "{prefix}encoder.layer.{i}.attention.attention.value"),
    "blocks.{i}.attention.project": "{prefix}encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.norm2": "{prefix}encoder.layer.{i}.layernorm_after",
    "blocks.{i}.mlp.0": "{prefix}encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.mlp.1": "{prefix}encoder.layer.{i}.output.dense",
}

VIT_TRANSFORMERS_5 = {
    **VIT_ENDS,
    "blocks.{i}.norm1": "{prefix}layers.{i}.layernorm_before",
    "blocks.{i}.attention.qkv": ("{prefix}layers.{i}.attention.q_proj", "{prefix}layers.{i}.attention.k_proj",
                                 "{prefix}layers.{i}.attention.v_proj"),
    "blocks.{i}.attention.project": "{prefix}layers.{i}.attention.o_proj",
    "blocks.{i}.norm2": "{prefix}layers.{i}.layernorm_after",
    "blocks.{i}.mlp.0": "{prefix}layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.1": "{prefix}layers.{i}.mlp.fc2",
}

VIT_TIMM = {
    "patches.project": "patch_embed.proj",
    "token": "cls_token",
    "positions": "pos_embed",
    "blocks.{i}.norm{k}": "blocks.{i}.norm{k}",
    "blocks.{i}.attention.qkv": "blocks.{i}.attn.qkv",
    "blocks.{i}.attention.project": "blocks.{i}.attn.proj",
    "blocks.{i}.mlp.0": "blocks.{i}.mlp.fc1",
    "blocks.{i}.mlp.1": "blocks.{i}.mlp.fc2",
    "norm": "norm",
    "head": "head",
}


class Dialect(NamedTuple):
    """Whose names these are.

    marks: names that together only such a file has, behind one of `prefixes`; blocks: what names a block, its stage
    (where there are stages) and number; left_out: names that nnlite's model has no place for; note: what the report
    says of a file that speaks it.
    """

    title: str
    modules: dict
    marks: tuple = ()
    blocks: str = ""
    prefixes: tuple = ("",)
    left_out: str = ""
    note: str = ""

    def prefix(self, names):
        """The one of `prefixes` with which all marks are among names; None without one."""
        return next((prefix for prefix in self.prefixes if all(prefix + mark in names for mark in self.marks)), None)


POOLER = r"(vit\.)?(pooler\.dense\.(weight|bias)|embeddings\.mask_token)"
OWN = Dialect("nnlite", {})   # a layer's path is its name

RESNETS = (Dialect("torchvision's ResNet", RESNET, ("layer1.0.conv1.weight", "bn1.weight"),
                   r"layer(\d+)\.(\d+)\."),)
EFFICIENTNETS = (
    Dialect("torchvision's EfficientNet", EFFICIENTNET_TORCHVISION,
            ("features.0.0.weight", "features.1.0.block.0.0.weight"), r"features\.(\d+)\.(\d+)\.block\."),
    Dialect("timm's EfficientNet", EFFICIENTNET_TIMM, ("conv_stem.weight", "blocks.0.0.bn1.weight"),
            r"blocks\.(\d+)\.(\d+)\.",
            note="the logits differ from timm's, by the net that the weights are of, which names do not tell: its tf_ "
                 "nets pad images at two sides before a convolution of stride 2, here all four are padded; its own "
                 "(efficientnetv2_s) have eps 1e-5 in batch norm, here it is 1e-3"))
VITS = (
    Dialect("Hugging Face's ViT", VIT_HUGGING_FACE, ("embeddings.cls_token", "encoder.layer.0.layernorm_before.weight"),
            r"encoder\.layer\.(\d+)\.", ("vit.", ""), POOLER),
    Dialect("Hugging Face's ViT (transformers 5)", VIT_TRANSFORMERS_5,
            ("embeddings.cls_token", "layers.0.layernorm_before.weight"), r"layers\.(\d+)\.", ("vit.", ""), POOLER),
    Dialect("timm's ViT", VIT_TIMM, ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"), r"blocks\.(\d+)\.",
            left_out=r"pre_logits\.fc\.(weight|bias)",
            note="timm's layer norms have eps 1e-6, these 1e-12: the logits agree to about five digits"))

# The first dialect is the one that is written.
DIALECTS = {"resnet50": RESNETS, "resnet-small": RESNETS, "effnetv2s": EFFICIENTNETS, "effnetv2s-small": EFFICIENTNETS,
            "vit-b16": VITS, "vit-tiny": VITS}
SUFFIX = {"W": ".weight", "b": ".bias", "g": ".weight", "c": "", "P": ""}


def dialects(name):
    """Those in which the weights of the model MODELS[name] may come."""
    return DIALECTS.get(name, (OWN,))


def translated(model, dialect, prefix):
    """A function (path of a layer, its attribute) -> the names of its tensors in the file."""
    layers = dict(model.walk())
    patterns = {re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\w+)", re.escape(ours))): theirs
                for ours, theirs in dialect.modules.items()}
    top = 1 + sum(re.fullmatch(r"stage\d+", path) is not None for path in layers)

    def translate(path, attribute):
        suffix = SUFFIX.get(attribute, f".{attribute}")
        if dialect is OWN:
            return path + suffix,
        path = _plain(path, layers)
        match, theirs = next((match, theirs) for pattern, theirs in patterns.items()
                             if (match := pattern.fullmatch(path)))
        found = match.groupdict()
        numbers = {**found, "before": int(found.get("s", 0)) - 1, "top": top, "prefix": prefix}
        return tuple(name.format(**numbers) + suffix for name in ((theirs,) if isinstance(theirs, str) else theirs))
    return translate


def _plain(path, layers):
    """The path with the kind of an MBConv for its "branch"."""
    block, branch, rest = path.partition(".branch.")
    inside = layers[f"{block}.branch"].children() if branch else {}
    if "expand" not in inside:
        return path
    kind = "mb" if "depthwise" in inside else "fused" if "project" in inside else "single"
    return f"{block}.{kind}.{rest}"


def looks_like(names, metadata):
    """What a file is, in words, as far as its names tell."""
    for dialect in (*RESNETS, *EFFICIENTNETS, *VITS):
        prefix = dialect.prefix(names)
        if prefix is not None:
            blocks = {match.groups() for match in (re.match(prefix + dialect.blocks, name) for name in names) if match}
            stages = collections.Counter(block[:-1] for block in blocks)
            counts = " + ".join(str(stages[stage]) for stage in sorted(stages, key=lambda s: [*map(int, s)]))
            return f"{dialect.title} of {counts} blocks"
    if "model" in metadata:
        return f"nnlite's {metadata['model']}"
    return f"a model with '{next(iter(names))}'" if names else "a file without tensors"
