"""Architectures as data, constructors short and keyword-only."""

from .vae import vae1, vae2, vae3

MODELS = {"vae1": vae1, "vae2": vae2, "vae3": vae3}
