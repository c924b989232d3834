"""Architectures as data, constructors short and keyword-only."""

from .cnn import cnn3, cnn4, cnn5
from .mlp import mlp
from .vae import vae1, vae2, vae3

MODELS = {"vae1": vae1, "vae2": vae2, "vae3": vae3, "mlp": mlp, "cnn3": cnn3, "cnn4": cnn4, "cnn5": cnn5}
