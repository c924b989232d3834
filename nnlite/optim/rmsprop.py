"""RMSProp."""

from .base import Optimiser


class RMSProp(Optimiser):
    """v = rho v + (1 - rho) g^2;  p -= lr g / (sqrt v + eps)        (Tieleman & Hinton 2012, lecture 6.5)

    decay adds decay * p to g (L2).
    """

    slots = ("v",)

    def __init__(self, parameters, *, lr=1e-3, rho=0.99, eps=1e-8, **options):
        self.rho, self.eps = rho, eps
        super().__init__(parameters, lr=lr, **options)

    def update(self, p, g, clip):
        self.ops.rmsprop(p, g, self.v, self.ranges, self.lr, clip, self.rho, self.eps)
