"""Which rows a step sees: a pure function of (seed, name, step), so that a resumed run sees the same."""

import math

import numpy as np

from ..ops.reference import ReferenceOps
from ..rng import Rng

SMALL_IMAGE = 64 * 64 * 3   # numbers

def images_at_once(most, shape):
    """How many images of this shape (H, W, C) a net evaluates at once: `most` of at most SMALL_IMAGE numbers each, of
    larger ones fewer in proportion, at least 1."""
    return max(1, min(most, most * SMALL_IMAGE // math.prod(shape)))


class Batches:
    """rows(step): `size` row numbers below `count`.

    The steps walk through one endless sequence: a permutation of all rows for each epoch, one behind the other, so
    every row comes once an epoch, also where size does not divide count. Each permutation sorts that epoch's Philox
    words.
    """

    def __init__(self, count, size, *, seed, name):
        self.count, self.size, self.name = count, size, name
        self._rng = Rng(ReferenceOps(), seed)
        self._cached = {}

    def permutation(self, epoch):
        if epoch not in self._cached:
            self._cached = {e: p for e, p in self._cached.items() if e == epoch - 1}
            self._rng.set_step(epoch)
            words = self._rng.ops.random_words(1, self.count, self._rng.key(self.name))[0]
            self._cached[epoch] = np.argsort(words, kind="stable").astype(np.int32)
        return self._cached[epoch]

    def rows(self, step):
        first = step * self.size
        epoch, offset = divmod(first, self.count)
        parts = [self.permutation(epoch + k) for k in range(math.ceil((offset + self.size) / self.count))]
        return np.concatenate(parts)[offset:offset + self.size] if len(parts) > 1 else parts[0][offset:][:self.size]
