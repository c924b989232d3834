"""The mathematics: one file a family, forward and under it the same lines upside down as backward.

Letters, everywhere the same:

    N batch    D features in    K features out, latent dimensions    H, W image height and width, hidden width H
    T tokens   C channels in    L samples of a latent                    i, j place in a window, Ho, Wo windows
    x, y input and output       W, b weight and bias        dx, dy, dW, db gradients of the loss with respect to them
"""

from .activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .attention import Block, FeedForward, MultiHeadAttention
from .base import Layer
from .bottleneck import Bottleneck
from .container import Concat, Recompute, Residual, Sequential
from .conv import Conv2d, DepthwiseConv2d
from .dense import ConditionalDense, Dense
from .dropout import Dropout, StochasticDepth
from .embed import ClassToken, PatchEmbed, PositionEmbedding, TakeToken
from .linear import Linear
from .mbconv import FusedMBConv, MBConv
from .norm import BatchNorm, LayerNorm, NormPool
from .pool import AvgPool2d, GlobalAvgPool, MaxPool2d
from .reshape import Flatten
from .sampling import GaussianSample
from .squeeze_excite import SqueezeExcite

__all__ = ["AvgPool2d", "BatchNorm", "Block", "Bottleneck", "ClassToken", "Concat", "ConditionalDense", "Conv2d",
           "Dense", "DepthwiseConv2d", "Dropout", "ELU", "FeedForward", "Flatten", "FusedMBConv", "GELU",
           "GaussianSample", "GlobalAvgPool", "Layer", "LayerNorm", "LeakyReLU", "Linear", "MBConv", "MaxPool2d",
           "MultiHeadAttention", "NormPool", "PatchEmbed", "PositionEmbedding", "ReLU", "Recompute", "Residual",
           "Sequential", "SiLU", "Sigmoid", "Softplus", "SqueezeExcite", "StochasticDepth", "TakeToken", "Tanh"]
