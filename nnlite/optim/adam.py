"""Adam, and AdamW whose weight decay does not pass through the moments."""

from .base import Optimiser


class Adam(Optimiser):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)        (Kingma & Ba 2015, algorithm 1)

    decay adds decay * p to g (L2).
    """

    slots = ("m", "v")
    decoupled = False

    def __init__(self, parameters, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, **options):
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        super().__init__(parameters, lr=lr, **options)

    def update(self, p, g, clip):
        self.ops.adam(p, g, self.m, self.v, self.ranges, self.lr, clip, self.beta1, self.beta2, self.eps, self.steps,
                      self.decoupled)


class AdamW(Adam):
    """Adam, with p multiplied by 1 - lr decay before the step instead of decay * p in g (Loshchilov & Hutter 2019)."""

    decoupled = True
