"""Counted randomness: every random number is a function of (seed, stream, step, index).

The generator is Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a keyed
permutation of a 128-bit counter. There is no state that moves, so the same dropout mask comes out on the CPU and
on the GPU, in any thread, after a resume, and again when the gradient checker repeats a forward pass.

    key      = (seed, low and high 32 bits)
    counter  = (block, stream, step, low and high 32 bits)

An array of R rows and C columns (all leading axes are rows) needs ceil(C/4) blocks a row. Block
r * ceil(C/4) + q gives four words, for the columns q, q + ceil(C/4), q + 2 ceil(C/4) and q + 3 ceil(C/4) of row r:
neighbouring blocks serve neighbouring columns, which is what vector units and GPU warps want.
"""

import zlib
from typing import NamedTuple


class Key(NamedTuple):
    """Which random numbers: (seed, stream, step); the index is the place in the array."""

    seed: int
    stream: int
    step: object   # a 0-d int64 array of the ops, so that a captured step reads its present value


class Rng:
    """The random numbers of one model: a seed, and the step that the trainer sets.

    seed: 0 <= seed < 2**64.
    """

    def __init__(self, ops, seed=0):
        self.ops = ops
        self.seed = int(seed) & 0xFFFFFFFFFFFFFFFF
        self.step = ops.scalar(0, "int64")
        self._streams = {}

    def set_step(self, step):
        """From now on the numbers of this step are drawn."""
        self.ops.set_scalar(self.step, step)

    def key(self, name):
        """The key of the stream with this name (a layer's path), at the present step."""
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = zlib.crc32(name.encode())
        return Key(self.seed, stream, self.step)
