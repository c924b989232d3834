"""Architectures as data, constructors short and keyword-only."""

from .cnn import cnn3, cnn4, cnn5
from .efficientnet import effnetv2s, effnetv2s_small
from .mlp import mlp
from .resnet import resnet50, resnet_small
from .vae import vae1, vae2, vae3
from .vit import vit_b16, vit_tiny

MODELS = {"vae1": vae1, "vae2": vae2, "vae3": vae3, "mlp": mlp, "cnn3": cnn3, "cnn4": cnn4, "cnn5": cnn5,
          "effnetv2s": effnetv2s, "effnetv2s-small": effnetv2s_small, "resnet50": resnet50,
          "resnet-small": resnet_small, "vit-b16": vit_b16, "vit-tiny": vit_tiny}
