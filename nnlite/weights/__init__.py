"""Weights from PyTorch's files and for them, without PyTorch.

    load(path, model, name)    safetensors, or a state dict in PyTorch's zip (.pth, .pt, .bin), into a built model
    save(path, model, name)    safetensors under the names that PyTorch's model has

files and pth read, names says what a tensor is called elsewhere, layout how it lies there.
"""

from .loading import Report, load
from .saving import save

__all__ = ["Report", "load", "save"]
