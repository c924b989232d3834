"""Adagrad."""

from .base import Optimiser


class Adagrad(Optimiser):
    """v += g^2;  p -= lr g / (sqrt v + eps)        (Duchi et al. 2011)

    decay adds decay * p to g (L2).
    """

    slots = ("v",)

    def __init__(self, parameters, *, lr=1e-2, eps=1e-10, **options):
        self.eps = eps
        super().__init__(parameters, lr=lr, **options)

    def update(self, p, g, clip):
        self.ops.adagrad(p, g, self.v, self.ranges, self.lr, clip, self.eps)
