"""A model's weights as a safetensors file that PyTorch's model opens."""

import numpy as np

from .. import __version__
from ..errors import expected
from ..files import replacing
from .files import EXTRA
from .layout import rows
from .names import dialects


def save(path, model, name, metadata=None):
    """Write `model`, a built MODELS[name]: parameters and running statistics, in its dtype, under torchvision's names
    for resnet50 and effnetv2s and their small siblings, Hugging Face's for the ViTs, nnlite's own for all others.

    metadata: {name: text} beside format, nnlite and model. The file appears whole or not at all; what is at `path` is
    replaced. Returns how many tensors it has.
    """
    try:
        from safetensors import SafetensorError, numpy
    except ImportError:
        raise expected(path, "the package safetensors to write it with", EXTRA) from None
    dialect, tensors = dialects(name)[0], {}
    for row in rows(model, dialect, dialect.prefixes[0]):
        parts = np.split(row.turn.theirs(model.ops.to_host(row.array)), len(row.theirs))
        tensors.update((key, np.ascontiguousarray(part)) for key, part in zip(row.theirs, parts))
    try:
        with replacing(path) as temporary:
            numpy.save_file(tensors, temporary, {"format": "pt", "nnlite": __version__, "model": name,
                                                 **(metadata or {})})
    except SafetensorError as error:
        raise expected(path, "a place that can be written", str(error)) from error
    return len(tensors)
