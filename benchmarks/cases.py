"""What bench_models.py measures: a preset with what the command line puts over it, PyTorch's ways, the operations."""

from counting import classifier_forward, classifier_step, vae_step

from nnlite import settings as settings_
from nnlite.errors import expected
from nnlite.models import MODELS
from nnlite.presets import PRESETS

PRESETS_HERE = sorted(name for name, p in PRESETS.items() if p["kind"] != "cifar" and "distilled" not in p)
PUBLISHED = ("effnetv2s", "effnetv2s-small", "resnet50", "resnet-small", "vit-b16", "vit-tiny")   # in torch_peers.py
FEW = dict.fromkeys(("resnet50", "vit-b16", "vit-b16-slow"), 4)   # images a step, where the preset has 256
SHAPE, CLASSES = (48, 48, 1), 7   # of FER2013, and of the built-in faces
MODES = {"eager": "PyTorch", "compiled": "PyTorch, compiled", "graphs": "PyTorch, compiled to CUDA graphs"}
FROZEN = {"frozen": "PyTorch, compiled with frozen weights"}
FORMATS = {"channels_last": "channels last", "contiguous": "contiguous"}
NAMES = {"sgd": "SGD", "adam": "Adam", "adagrad": "Adagrad", "rmsprop": "RMSProp"}
OURS = ("nnlite", "captured")   # contestants that are nnlite's; x nnlite is by the first one

ROUND, MOST, LEAST = 1000, 100, 3   # GFLOP of a round, and how many steps it has at most and at least
WARM_UP = 20                        # steps before the first round; of large nets as many as a tenth of a round's GFLOP


def settings_of(preset, assignments=(), batch_size=None):
    """The preset's settings, over them FEW, `key=value` strings, and the batch size. NnliteError for what does not
    fit."""
    settings = {key: list(value) if isinstance(value, list) else value for key, value in PRESETS[preset].items()}
    settings["batch_size"] = FEW.get(preset, settings["batch_size"])
    settings_.apply(settings["model"], settings, assignments)
    if batch_size is not None:
        settings["batch_size"] = settings_.check(settings["model"], "batch_size", batch_size, "--batch-size")
    for key in ("freeze", "micro_batch"):
        if settings.get(key):
            raise expected(f"--set {key}", "none: PyTorch's step has no such thing here", settings[key])
    return settings


def is_vae(settings):
    return settings["model"].startswith("vae")


def seen_shape(settings):
    """(H, W, C) of what a classifier sees."""
    return (*(settings["size"] or SHAPE[:2]), settings["channels"] or SHAPE[2])


def make_model(settings):
    """The classifier, not yet built."""
    name = settings["model"]
    return MODELS[name](shape=seen_shape(settings), classes=CLASSES,
                        **{key: settings[key] for key in settings_.SHAPES[name]})


def gflop(settings):
    """Of a training step."""
    if not is_vae(settings):
        return 1e-9 * classifier_step(make_model(settings), (settings["batch_size"], *seen_shape(settings)))
    return 1e-9 * vae_step(settings["encoder"], settings["decoder"], conditional=settings["model"] != "vae1",
                           batch_size=settings["batch_size"], samples=settings["samples"],
                           triplet_batch=settings["triplet_batch"] if settings["model"] == "vae3" else 0)


def forward_gflop(settings, batch):
    """Of `batch` images in evaluation."""
    return 1e-9 * classifier_forward(make_model(settings), (batch, *seen_shape(settings)))


def steps_of(work):
    """How many steps of so many GFLOP a round has where nobody says it."""
    return max(LEAST, min(MOST, round(ROUND / work)))


def warm_up_of(work):
    return max(LEAST, min(WARM_UP, round(ROUND / work / 10)))


# -- ways: contestants, name -> what it is; nnlite's are the first ----------------------------------------------------

def ways(settings, device):
    """Of a training step."""
    modes = _modes(device)
    if is_vae(settings):
        return {"nnlite": "nnlite", "adam": "PyTorch, Adam", "fused": "PyTorch, fused Adam",
                **{name: f"{label}, fused Adam" for name, label in modes.items() if name != "eager"}}
    found, optimiser = {"nnlite": "nnlite"}, NAMES[settings["optimiser"]]
    for mode, label in modes.items():
        for implementation in ("default", "foreach", "fused"):
            for memory, words in _formats(settings).items():
                how = optimiser if implementation == "default" else f"{implementation} {optimiser}"
                found[f"{mode}-{implementation}-{memory}"] = ", ".join(filter(None, [label, how, words]))
    return found


def inference_ways(settings, device):
    """Of a forward pass in evaluation."""
    return {"nnlite": "nnlite", "captured": "nnlite, captured",
            **{f"{mode}-{memory}": ", ".join(filter(None, [label, words]))
               for mode, label in {**_modes(device), **FROZEN}.items()
               for memory, words in _formats(settings).items()}}


def _modes(device):
    return {name: label for name, label in MODES.items() if name != "graphs" or device == "cuda"}


def _formats(settings):
    """PyTorch's memory formats; a net of matrices knows one alone."""
    return {"contiguous": None} if settings["model"] in ("mlp", "vit-b16", "vit-tiny") else FORMATS


def chosen(labels, parts):
    """The ways whose name holds one of the parts, and nnlite's; all where there are no parts."""
    return {name: label for name, label in labels.items()
            if name in OURS or not parts or any(part in name for part in parts)}
