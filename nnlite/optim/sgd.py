"""Stochastic gradient descent."""

from .base import Optimiser


class SGD(Optimiser):
    """m = momentum m + g;  p -= lr m        (nesterov: p -= lr (g + momentum m); Sutskever et al. 2013)

    decay adds decay * p to g (L2).
    """

    def __init__(self, parameters, *, lr=1e-2, momentum=0.0, nesterov=False, **options):
        self.momentum, self.nesterov, self.m = momentum, nesterov, None
        self.slots = ("m",) if momentum else ()
        super().__init__(parameters, lr=lr, **options)

    def update(self, p, g, clip):
        self.ops.sgd(p, g, self.m, self.ranges, self.lr, clip, self.momentum, self.nesterov)
