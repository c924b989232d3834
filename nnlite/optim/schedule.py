"""Learning rates as functions of the step: schedule(step) -> lr, step counted from 0."""

import math


class Constant:
    """lr"""

    def __init__(self, lr):
        self.lr = lr

    def __call__(self, step):
        return self.lr


class StepDecay:
    """lr * factor^floor(step / every)"""

    def __init__(self, lr, *, factor, every):
        self.lr, self.factor, self.every = lr, factor, every

    def __call__(self, step):
        return self.lr * self.factor ** (step // self.every)


class InverseTime:
    """lr / (1 + decay * step): 1/t decay"""

    def __init__(self, lr, *, decay):
        self.lr, self.decay = lr, decay

    def __call__(self, step):
        return self.lr / (1 + self.decay * step)


class Cosine:
    """end + (lr - end) (1 + cos(pi step / steps)) / 2, then end        (Loshchilov & Hutter 2017, eq. 5)"""

    def __init__(self, lr, *, steps, end=0.0):
        self.lr, self.steps, self.end = lr, steps, end

    def __call__(self, step):
        part = min(step, self.steps) / self.steps
        return self.end + (self.lr - self.end) * (1 + math.cos(math.pi * part)) / 2


class Warmup:
    """Rises linearly from lr/steps to the first value of `after` in `steps` steps, then after(step - steps)."""

    def __init__(self, after, *, steps):
        self.after, self.steps = after, steps

    def __call__(self, step):
        if step < self.steps:
            return self.after(0) * (step + 1) / self.steps
        return self.after(step - self.steps)
