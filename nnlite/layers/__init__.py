"""The mathematics: one file a family, forward and under it the same lines upside down as backward.

Letters, everywhere the same:

    N batch    D features in    K features out, latent dimensions    H, W image height and width, hidden width H
    T tokens   C channels in    L samples of a latent
    x, y input and output       W, b weight and bias        dx, dy, dW, db gradients of the loss with respect to them
"""

from .activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .base import Layer
from .container import Concat, Residual, Sequential
from .dense import ConditionalDense, Dense
from .dropout import Dropout
from .linear import Linear
from .sampling import GaussianSample

__all__ = ["Concat", "ConditionalDense", "Dense", "Dropout", "ELU", "GELU", "GaussianSample", "Layer", "LeakyReLU",
           "Linear", "ReLU", "Residual", "Sequential", "SiLU", "Sigmoid", "Softplus", "Tanh"]
