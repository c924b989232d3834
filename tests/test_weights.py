"""Weight files of PyTorch's and for PyTorch: the same logits and gradients, and one sentence for what does not fit."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from nnlite import losses, weights
from nnlite.layers import BatchNorm, Conv2d, MaxPool2d, Recompute, Sequential
from nnlite.layers.parameters import Parameters
from nnlite.models import MODELS, efficientnet, resnet, vit
from nnlite.ops import get_ops
from small_weights import everything, refused, same, tiny

torch = pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors, of the extra weights, is missing")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import torch_peers  # noqa: E402  only now: it imports PyTorch

F = torch.nn.functional
CLASSES, SIDE = 5, 32


# -- small nets, each twice --------------------------------------------------------------------------------------------

RESNET_STAGES = [(8, 1), (16, 2)]
EFFICIENTNET_STAGES = [(True, 1, 1, 24, 2), (True, 4, 2, 32, 2), (False, 4, 2, 40, 2), (False, 6, 1, 40, 1)]


def our_resnet(channels, classes):
    stem = Sequential(conv=Conv2d(channels, 16, 7, stride=2, padding=3, bias=False),
                      norm=BatchNorm(16, activation="relu"), pool=MaxPool2d(3, stride=2, padding=1))
    return resnet._resnet(stem, 16, RESNET_STAGES, classes)


def our_efficientnet(channels, classes):
    stages = [(efficientnet.FusedMBConv if fused else efficientnet.MBConv, *rest)
              for fused, *rest in EFFICIENTNET_STAGES]
    return efficientnet.effnetv2s(shape=(SIDE, SIDE, channels), classes=classes, top_filters=32, keep_prob=1.0,
                                  stages=stages)


def our_vit(channels, classes, side=SIDE, recompute=False):
    return vit._vit("vit", (side, side, channels), classes, patch=8, features=24, blocks=2, heads=3,
                    recompute=recompute)


def their_vit(side=SIDE, **options):
    return torch_peers.VisionTransformer(side=side, patch=8, features=24, layers=2, heads=3, **options)


NETS = {
    "resnet50": (our_resnet, lambda **options: torch_peers.ResNet(RESNET_STAGES, stem=16, **options)),
    "effnetv2s": (our_efficientnet, lambda **options: torch_peers.EfficientNetV2(EFFICIENTNET_STAGES, top=32,
                                                                                depth_p=0, dropout=0, **options)),
    "vit-b16": (our_vit, their_vit),
}


@pytest.fixture(autouse=True)
def nothing_left_to_chance(monkeypatch):
    monkeypatch.setattr(efficientnet, "DROPPED", 0)   # stochastic depth
    torch.set_num_threads(1)


def peer_of(name, *, channels=3, classes=CLASSES, dtype=torch.float64, seed=0, **options):
    """PyTorch's net with weights, norms and running statistics that are all drawn, in evaluation mode."""
    peer = NETS[name][1](channels=channels, classes=classes, **options)
    generator = torch.Generator().manual_seed(seed)
    for key, value in peer.state_dict().items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.ndim > 1:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
        elif key.endswith(("running_var", "norm.weight")) or re.search(r"(bn\d|\.\d\.1|layernorm_\w+)\.weight$", key):
            value.copy_(0.5 + noise.abs())
        elif value.ndim == 1:
            value.copy_(0.3 * noise)
    return peer.to(dtype).eval()


def ours_of(name, *, channels=3, classes=CLASSES, dtype="float64", ops="reference", seed=1, **options):
    return NETS[name][0](channels, classes, **options).build(get_ops(ops), dtype=dtype, seed=seed)


def images(channels=3, n=4, side=SIDE, seed=2):
    return np.random.default_rng(seed).normal(size=(n, side, side, channels))


def saved(state, path):
    """The state dict in a file of the kind that its ending tells."""
    if path.suffix == ".safetensors":
        safetensors_torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def logits_of(peer, x):
    dtype = next(peer.parameters()).dtype
    with torch.no_grad():
        return peer(torch.tensor(x.transpose(0, 3, 1, 2), dtype=dtype)).numpy()


def logits(model, x):
    return model.ops.to_host(model.forward(model.ops.asarray(x, model.dtype)))


# -- the same numbers as PyTorch ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, ops, tolerance", [("float64", "reference", 1e-9), ("float32", "reference", 1e-4),
                                                   ("float32", "cpu", 1e-4)])
@pytest.mark.parametrize("name", NETS)
def test_logits(name, dtype, ops, tolerance, tmp_path):
    peer, model = peer_of(name, dtype=getattr(torch, dtype)), ours_of(name, dtype=dtype, ops=ops)
    report = weights.load(saved(peer.state_dict(), tmp_path / "net.pth"), model, name)
    wanted = logits_of(peer, images())
    assert np.ptp(wanted, axis=0).max() > 0.1   # the images do tell something
    np.testing.assert_allclose(logits(model, images()), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
    assert len(report.loaded) == len([key for key in peer.state_dict() if "num_batches" not in key])
    assert not report.left_out and not report.initialised and not report.notes


@pytest.mark.parametrize("name", NETS)
def test_gradients_and_running_statistics(name, tmp_path):
    """After a cross entropy, batch norm in training: what save() writes of the gradients is PyTorch's under the same
    names, and so are the running statistics."""
    peer, model = peer_of(name), ours_of(name)
    weights.load(saved(peer.state_dict(), tmp_path / "net.safetensors"), model, name)
    x, labels = images(), np.array([0, 3, 4, 3], np.int32)
    F.cross_entropy(peer.train()(torch.tensor(x.transpose(0, 3, 1, 2))), torch.tensor(labels).long()).backward()
    model.zero_grad()
    _, dlogits = losses.softmax_cross_entropy(model.ops, model.forward(x, train=True), labels)
    model.backward(dlogits, need_dx=False)
    model.parameters.values[...] = model.parameters.grads
    weights.save(tmp_path / "gradients.safetensors", model, name)
    found = safetensors_torch.load_file(tmp_path / "gradients.safetensors")
    wanted = {**{key: value.grad for key, value in peer.named_parameters()},
              **{key: value for key, value in peer.named_buffers() if "num_batches" not in key}}
    assert found.keys() == wanted.keys()
    largest = max(value.abs().max() for value in wanted.values())
    for key, value in wanted.items():
        assert (found[key] - value).abs().max() < 1e-9 * max(1, largest), key


@pytest.mark.parametrize("name", NETS)
def test_an_exported_file_opens_in_pytorch(name, tmp_path):
    model, peer = ours_of(name), NETS[name][1](channels=3, classes=CLASSES).double()
    weights.load(saved(peer_of(name, seed=5).state_dict(), tmp_path / "net.pth"), model, name)
    weights.save(tmp_path / "net.safetensors", model, name)
    peer.load_state_dict(safetensors_torch.load_file(tmp_path / "net.safetensors"), strict=True)
    np.testing.assert_allclose(logits_of(peer.eval(), images()), logits(model, images()), rtol=0, atol=1e-9)


ROUND_TRIP = {"mlp": {"hidden": (6, 5), "shape": (8, 8, 3)}, "cnn3": {"shape": (8, 8, 3), "filters": 4, "hidden": 6},
              "cnn4": {"shape": (8, 8, 3), "filters": (4, 5), "hidden": 6}, "cnn5": {"shape": (16, 16, 1)},
              "effnetv2s": {"width": 0.2, "depth": 0.2, "top_filters": 16},
              "effnetv2s-small": {"width": 0.4, "depth": 0.5, "top_filters": 16}, "resnet-small": {},
              "vit-tiny": {"recompute": True},
              "vae3": {"encoder": [12, 7, 2], "decoder": [8, 7, 6], "reconstruction_variance": 1.0}}


@pytest.mark.parametrize("name", ROUND_TRIP)
def test_a_round_trip_changes_no_bit(name, tmp_path):
    models = [MODELS[name](**ROUND_TRIP[name]).build(get_ops("cpu"), seed=seed) for seed in (3, 4)]
    for array in models[0].state.values():
        array += 0.25
    weights.save(tmp_path / "net.safetensors", models[0], name)
    report = weights.load(tmp_path / "net.safetensors", models[1], name)
    assert same(everything(models[0]), everything(models[1])) and not report.initialised


def test_a_model_without_a_peer_opens_in_pytorch(tmp_path):
    """cnn4 under its own names: a matrix behind images has its columns as PyTorch flattens, channel by channel."""
    model = MODELS["cnn4"](**ROUND_TRIP["cnn4"], classes=CLASSES).build(get_ops("reference"), dtype="float64")
    weights.save(tmp_path / "net.safetensors", model, "cnn4")
    layers = {"0": torch.nn.Conv2d(3, 4, 3, padding=1), "1": torch.nn.BatchNorm2d(4),
              "2": torch.nn.Conv2d(4, 5, 3, padding=1), "3": torch.nn.BatchNorm2d(5), "5": torch.nn.Linear(20, 6),
              "6": torch.nn.Linear(6, CLASSES)}
    peer = torch.nn.ModuleDict(layers).double().eval()
    peer.load_state_dict(safetensors_torch.load_file(tmp_path / "net.safetensors"), strict=True)
    x = torch.tensor(images(side=8).transpose(0, 3, 1, 2))
    for conv, norm in (("0", "1"), ("2", "3")):
        x = F.max_pool2d(F.relu(peer[norm](peer[conv](x))), 2)
    wanted = peer["6"](F.relu(peer["5"](x.flatten(1)))).detach().numpy()
    np.testing.assert_allclose(logits(model, images(side=8)), wanted, rtol=0, atol=1e-9)


# -- names -------------------------------------------------------------------------------------------------------------

def renamed(state, *replacements):
    found = {}
    for key, value in state.items():
        for pattern, new in replacements:
            key = re.sub(pattern, new, key)
        found[key] = value
    return found


def timm_efficientnet(state):
    """torchvision's names as timm has them: by hand, block for block."""
    kinds = {"1": ("conv bn1",), "2": ("conv_exp bn1", "conv_pwl bn2"),
             "3": ("conv_pw bn1", "conv_dw bn2", None, "conv_pwl bn3")}
    kinds["4"] = kinds["3"]
    found = {}
    for key, value in state.items():
        match = re.fullmatch(r"features\.(\d)\.(\d)\.block\.(\d)\.(\w+)\.(\w+)", key)
        if match:
            stage, i, place, part, what = match.groups()
            block = f"blocks.{int(stage) - 1}.{i}."
            if part.startswith("fc"):
                key = block + {"fc1": "se.conv_reduce.", "fc2": "se.conv_expand."}[part] + what
            else:
                key = block + kinds[stage][int(place)].split()[int(part)] + "." + what
        else:
            key = re.sub(r"^features\.0\.0", "conv_stem", re.sub(r"^features\.0\.1", "bn1", key))
            key = re.sub(r"^features\.5\.0", "conv_head", re.sub(r"^features\.5\.1", "bn2", key))
            key = key.replace("classifier.1", "classifier")
        found[key] = value
    return found


def timm_vit(state):
    found = {}
    for key, value in state.items():
        if ".attention.attention." in key:
            q, k, v = (state[re.sub(r"query|key|value", part, key)] for part in ("query", "key", "value"))
            value = torch.cat([q, k, v])
        found[key] = value
    return renamed(found, (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
                   (r"^vit\.embeddings\.cls_token", "cls_token"),
                   (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
                   (r"^vit\.encoder\.layer", "blocks"), (r"attention\.attention\.(query|key|value)", "attn.qkv"),
                   (r"attention\.output\.dense", "attn.proj"), (r"intermediate\.dense", "mlp.fc1"),
                   (r"output\.dense", "mlp.fc2"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
                   (r"^vit\.layernorm", "norm"), ("^classifier", "head"))


def transformers_5(state):
    return renamed(state, (r"encoder\.layer", "layers"), (r"attention\.attention\.query", "attention.q_proj"),
                   (r"attention\.attention\.key", "attention.k_proj"),
                   (r"attention\.attention\.value", "attention.v_proj"),
                   (r"attention\.output\.dense", "attention.o_proj"), (r"intermediate\.dense", "mlp.fc1"),
                   (r"output\.dense", "mlp.fc2"))


DIALECTS = [("effnetv2s", timm_efficientnet, "timm's EfficientNet"), ("vit-b16", timm_vit, "timm's ViT"),
            ("vit-b16", transformers_5, "Hugging Face's ViT (transformers 5)"),
            ("vit-b16", lambda state: renamed(state, (r"^vit\.", "")), "Hugging Face's ViT")]


@pytest.mark.parametrize("name, rename, title", DIALECTS)
def test_dialects(name, rename, title, tmp_path):
    peer, model = peer_of(name), ours_of(name)
    report = weights.load(saved(rename(peer.state_dict()), tmp_path / "net.safetensors"), model, name)
    assert report.dialect == title
    if title == "timm's EfficientNet":   # of which the names do not tell what it differs in
        assert "two sides" in report.notes[0] and "eps 1e-5 in batch norm" in report.notes[0]
    np.testing.assert_allclose(logits(model, images()), logits_of(peer, images()), rtol=0, atol=1e-9)


PUBLISHED = {   # tensors (without counters), and some of their names and shapes as the published files have them
    "resnet50": (267, {"conv1.weight": (64, 3, 7, 7), "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                       "layer4.2.conv3.weight": (2048, 512, 1, 1), "layer3.5.bn2.running_var": (256,),
                       "fc.weight": (1000, 2048)}),
    "effnetv2s": (672, {"features.0.0.weight": (24, 3, 3, 3), "features.1.0.block.0.0.weight": (24, 24, 3, 3),
                        "features.4.0.block.2.fc1.weight": (16, 256, 1, 1),
                        "features.6.14.block.3.0.weight": (256, 1536, 1, 1), "features.7.0.weight": (1280, 256, 1, 1),
                        "classifier.1.weight": (1000, 1280)}),
    "vit-b16": (200, {"vit.embeddings.cls_token": (1, 1, 768), "vit.embeddings.position_embeddings": (1, 197, 768),
                      "vit.embeddings.patch_embeddings.projection.weight": (768, 3, 16, 16),
                      "vit.encoder.layer.11.attention.attention.query.weight": (768, 768),
                      "vit.encoder.layer.0.intermediate.dense.weight": (3072, 768), "classifier.bias": (1000,)}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_whole_nets(name, tmp_path, monkeypatch):
    """Names and shapes of the full-size nets, loaded in half precision; each tensor begins with its own numbers."""
    monkeypatch.setattr(Parameters, "initialise", lambda *_: None)   # drawn numbers take longest
    with torch.device("meta"):
        peer = {"resnet50": torch_peers.resnet50, "effnetv2s": torch_peers.effnetv2s,
                "vit-b16": torch_peers.vit_b16}[name]()
    state = {key: torch.full(value.shape, 0.5, dtype=torch.float16) for key, value in peer.state_dict().items()
             if value.ndim}
    count, anchors = PUBLISHED[name]
    assert len(state) == count and all(tuple(state[key].shape) == shape for key, shape in anchors.items())
    for number, key in enumerate(state):
        state[key].view(-1)[:3] = torch.tensor([number, number / 2, -1])
    model = MODELS[name](shape=(224, 224, 3), classes=1000).build(get_ops("reference"))
    report = weights.load(saved(state, tmp_path / "net.pth"), model, name)
    assert sorted(report.loaded) == sorted(state)
    last = list(state)[-1]
    assert last.endswith("bias") and np.array_equal(model.layers[-1].b[:3], state[last][:3].float().numpy())
    (tmp_path / "net.pth").unlink()


def test_recomputing_blocks_have_the_names_of_the_others(tmp_path):
    peer, model = peer_of("vit-b16"), ours_of("vit-b16", recompute=True)
    assert any(isinstance(layer, Recompute) for _, layer in model.walk())
    weights.load(saved(peer.state_dict(), tmp_path / "net.pth"), model, "vit-b16")
    np.testing.assert_allclose(logits(model, images()), logits_of(peer, images()), rtol=0, atol=1e-9)


# -- what need not fit -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NETS)
def test_a_head_of_other_classes_stays_as_it_was_drawn(name, tmp_path):
    peer, model = peer_of(name, classes=9), ours_of(name)
    before = everything(model)
    report = weights.load(saved(peer.state_dict(), tmp_path / "net.pth"), model, name)
    after = everything(model)
    assert report.initialised == ["head.W", "head.b"] and len(report.left_out) == 2
    assert {key for key in before if np.array_equal(before[key], after[key])} == {"head.W", "head.b"}
    assert any("newly initialised: head.W, head.b" in line for line in report.lines())


def test_pretrained_features_without_a_classifier(tmp_path):
    """As google/vit-base-patch16-224-in21k is published: no prefix, a pooler, no classifier."""
    peer, model = peer_of("vit-b16"), ours_of("vit-b16")
    state = {key[len("vit."):]: value for key, value in peer.state_dict().items() if key.startswith("vit.")}
    state |= {"pooler.dense.weight": torch.zeros(24, 24), "pooler.dense.bias": torch.zeros(24)}
    report = weights.load(saved(state, tmp_path / "net.safetensors"), model, "vit-b16")
    assert sorted(report.left_out) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert report.initialised == ["head.W", "head.b"] and len(report.loaded) == len(state) - 2


@pytest.mark.parametrize("name", NETS)
def test_a_grey_image_counts_as_three_equal_channels(name, tmp_path):
    peer, model = peer_of(name), ours_of(name, channels=1)
    report = weights.load(saved(peer.state_dict(), tmp_path / "net.pth"), model, name)
    assert len(report.notes) == 1 and "summed over its 3 channels" in report.notes[0]
    grey = images(1)
    np.testing.assert_allclose(logits(model, grey), logits_of(peer, np.repeat(grey, 3, axis=3)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", [16, 48, 56])
def test_positions_of_another_grid_are_interpolated(side, tmp_path):
    peer, model = peer_of("vit-b16"), ours_of("vit-b16", side=side)
    report = weights.load(saved(peer.state_dict(), tmp_path / "net.pth"), model, "vit-b16")
    assert len(report.notes) == 1 and f"from 4x4 to {side // 8}x{side // 8} patches" in report.notes[0]
    positions = peer.vit.embeddings.position_embeddings.detach()
    grid = F.interpolate(positions[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2), size=(side // 8, side // 8),
                         mode="bilinear", align_corners=False)
    wanted = torch.cat([positions[0, :1], grid[0].permute(1, 2, 0).reshape(-1, 24)])
    np.testing.assert_allclose(everything(model)["positions.P"], wanted.numpy(), rtol=0, atol=1e-12)


# -- files -------------------------------------------------------------------------------------------------------------

def tiny_state(dtype=torch.float32):
    chance = torch.Generator().manual_seed(3)
    shapes = {"1.weight": (3, 4), "1.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)}
    return {key: torch.randn(shape, generator=chance).to(dtype) for key, shape in shapes.items()}


def holds(model, state, dtype=torch.float32):
    """Whether the model has the numbers of a tiny_state()."""
    found = everything(model)
    return all(np.array_equal(found[f"{i}.{ours}"].T, state[f"{i}.{theirs}"].to(dtype).numpy())
               for i in (1, 2) for ours, theirs in (("W", "weight"), ("b", "bias")))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
def test_dtypes(stored, ending, tmp_path):
    state = tiny_state(getattr(torch, stored))
    path = saved(state, tmp_path / f"net.{ending}")
    for dtype in ("float32", "float64"):
        model = tiny(dtype)
        weights.load(path, model, "mlp")
        assert model.dtype == dtype and holds(model, state, getattr(torch, dtype))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64", "float8_e4m3fn"])
def test_other_dtypes_are_refused_by_name(dtype, ending, tmp_path):
    state = tiny_state()
    state["2.weight"] = state["2.weight"].to(getattr(torch, dtype))
    words = "asks for 'torch" if (dtype, ending) == ("float8_e4m3fn", "pth") else r"'2\.weight' as float64"
    refused(saved(state, tmp_path / f"net.{ending}"), words)


WRAPPINGS = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "loss": [0.5, None, True]},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "parameters": lambda state: {key: torch.nn.Parameter(value) for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_checkpoints_of_training(wrapping, protocol, tmp_path):
    state, model = tiny_state(), tiny()
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "net.bin", pickle_protocol=protocol)
    weights.load(tmp_path / "net.bin", model, "mlp")
    assert holds(model, state)


def test_views_of_one_storage(tmp_path):
    """Transposed, cut out of a larger one, expanded: PyTorch stores the storage once."""
    flat, model = torch.arange(40.0), tiny()
    state = {"1.weight": flat[:12].view(4, 3).T, "1.bias": flat[20:26:2], "2.weight": flat[30:33].expand(2, 3),
             "2.bias": flat[38:]}
    torch.save(state, tmp_path / "net.pth")
    weights.load(tmp_path / "net.pth", model, "mlp")
    assert holds(model, state)


# -- bad files: one sentence that tells, and nothing changed -----------------------------------------------------------

def test_other_files_of_torch_save(tmp_path):
    torch.save(tiny_state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pth", "bare pickle, as PyTorch wrote it before 1.6")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    refused(tmp_path / "whole.pth", "asks for 'torch.nn.modules.linear.Linear'")


def test_a_missing_misshapen_or_unknown_tensor(tmp_path):
    state = peer_of("resnet50").state_dict()
    make, path = lambda: ours_of("resnet50"), tmp_path / "net.pth"

    def check(changes, words, *, without=()):
        changed = {key: value for key, value in {**state, **changes}.items() if key not in without}
        refused(saved(changed, path), words, "resnet50", make)

    check({}, r"'layer2\.0\.bn2\.running_var' \(16,\), got none", without=["layer2.0.bn2.running_var"])
    check({"layer2.0.conv2.weight": torch.zeros(16, 16, 3, 1)},
          r"'layer2\.0\.conv2\.weight' \(16, 16, 3, 3\), got \(16, 16, 3, 1\)")
    check({"layer2.2.conv1.weight": torch.zeros(16, 64, 1, 1)}, r"no more, got 'layer2\.2\.conv1\.weight'")
    check({"fc.weight": torch.zeros(9, 63)}, r"'fc\.weight' \(5, 64\), got \(9, 63\)")
    check({}, r"'fc\.bias' \(5,\), got none", without=["fc.bias"])
    check({"bn1.weight": torch.full((16,), torch.nan)}, "finite numbers of float64 in 'bn1.weight'")
    check({"conv1.weight": torch.zeros(16, 2, 7, 7)}, r"'conv1\.weight' \(16, 3, 7, 7\), got \(16, 2")


def test_numbers_too_large_for_the_model(tmp_path):
    state = {**tiny_state(torch.float64), "2.bias": torch.tensor([1e300, 0.0], dtype=torch.float64)}
    refused(saved(state, tmp_path / "net.pth"), "finite numbers of float32 in '2.bias'")
    weights.load(tmp_path / "net.pth", tiny("float64"), "mlp")


@pytest.mark.parametrize("name, other, words", [
    ("resnet50", "vit-b16", r"looks like Hugging Face's ViT of 2 blocks"),
    ("vit-b16", "effnetv2s", r"looks like torchvision's EfficientNet of 2 \+ 2 \+ 2 \+ 1 blocks"),
    ("effnetv2s", "resnet50", r"looks like torchvision's ResNet of 1 \+ 2 blocks")])
def test_another_architecture(name, other, words, tmp_path):
    refused(saved(peer_of(other).state_dict(), tmp_path / "net.pth"), words, name, lambda: ours_of(name))
    refused(tmp_path / "net.pth", words.replace("looks", "it looks"))


def test_deeper_and_foreign_nets(tmp_path):
    deeper = torch_peers.ResNet([(8, 1), (16, 3)], stem=16, classes=CLASSES).state_dict()
    refused(saved(deeper, tmp_path / "a.pth"), r"layer2\.2.* it looks like torchvision's ResNet of 1 \+ 3 blocks",
            "resnet50", lambda: ours_of("resnet50"))
    refused(saved({"encoder.rnn.weight": torch.zeros(2)}, tmp_path / "b.pth"), "a model with 'encoder.rnn.weight'",
            "resnet50", lambda: ours_of("resnet50"))
    weights.save(tmp_path / "c.safetensors", tiny(), "mlp")
    refused(tmp_path / "c.safetensors", "looks like nnlite's mlp", "resnet50", lambda: ours_of("resnet50"))
    weights.load(tmp_path / "c.safetensors", tiny(), "mlp")
