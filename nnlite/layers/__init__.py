"""The mathematics: one file a family, forward and under it the same lines upside down as backward.

Letters, everywhere the same:

    N batch    D features in    K features out, latent dimensions    H, W image height and width, hidden width H
    T tokens   C channels in    L samples of a latent                    i, j place in a window, Ho, Wo windows
    x, y input and output       W, b weight and bias        dx, dy, dW, db gradients of the loss with respect to them
"""

from .activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .base import Layer
from .container import Concat, Residual, Sequential
from .conv import Conv2d, DepthwiseConv2d
from .dense import ConditionalDense, Dense
from .dropout import Dropout
from .linear import Linear
from .norm import BatchNorm, NormPool
from .pool import AvgPool2d, GlobalAvgPool, MaxPool2d
from .reshape import Flatten
from .sampling import GaussianSample

__all__ = ["AvgPool2d", "BatchNorm", "Concat", "ConditionalDense", "Conv2d", "Dense", "DepthwiseConv2d", "Dropout",
           "ELU", "Flatten", "GELU", "GaussianSample", "GlobalAvgPool", "Layer", "LeakyReLU", "Linear", "MaxPool2d",
           "NormPool", "ReLU", "Residual", "Sequential", "SiLU", "Sigmoid", "Softplus", "Tanh"]
