"""What every optimiser has: the flat parameters, a learning rate that may change, weight decay by ranges."""

import math

from ..errors import expected


def has_decay(entry):
    """Weights decay, biases and the scales and shifts of norms do not."""
    return len(entry.shape) > 1


class Optimiser:
    """parameters: a model's Parameters; lr: the learning rate; decay: weight decay, on the parameters for which
    decays(entry) holds; frozen(entry): parameters that stay as they are."""

    slots = ()          # names of the moment arrays, each as long as the parameters

    def __init__(self, parameters, *, lr, decay=0.0, decays=has_decay, frozen=lambda entry: False):
        if not lr > 0 or not math.isfinite(lr):
            raise expected(type(self).__name__, "a learning rate above 0", lr)
        self.parameters, self.ops = parameters, parameters.ops
        self.ranges = parameters.ranges(
            lambda entry: (decay if decays(entry) else 0.0, 0.0 if frozen(entry) else 1.0))
        self.lr = self.ops.scalar(lr, parameters.dtype)
        self.steps = self.ops.scalar(0, "int64")
        for slot in self.slots:
            setattr(self, slot, self.ops.zeros((parameters.size,), parameters.dtype))

    def set_lr(self, lr):
        """The learning rate of the next step."""
        self.ops.set_scalar(self.lr, lr)

    def step(self, clip=1.0):
        """Move the parameters along their gradients, which are multiplied by clip (see clip_factor)."""
        self.parameters.settle()
        self.ops.increment(self.steps)
        self.update(self.parameters.values, self.parameters.grads, clip)

    def update(self, p, g, clip):
        raise NotImplementedError(f"{type(self).__name__}.update")

    def state(self):
        """Name -> array: what has to be saved to go on as if nothing had happened."""
        return {"steps": self.steps, **{slot: getattr(self, slot) for slot in self.slots}}


def clip_factor(parameters, max_norm):
    """min(1, max_norm / ||g||), the factor that brings the norm of all gradients together to at most max_norm
    (Pascanu et al. 2013, algorithm 1), a 0-d array. Give it to step(clip=...), which multiplies as it goes."""
    parameters.settle()
    ops = parameters.ops
    return ops.clip_factor(ops.sum_of_squares(parameters.grads), max_norm)
