"""Memory for kernels under test, which shows what they read before it was written, and writes outside of an array."""

import contextlib
import math

import numpy as np

FENCE, ALIGNMENT = 4096, 64   # bytes
UNWRITTEN = 0xFF              # in every byte: NaN in every float


class FencedMemory:
    """`empty` gives arrays full of NaN between fences of it; `check` finds them still standing, and forgets them."""

    def __init__(self):
        self.blocks = []

    def empty(self, shape, dtype):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        block = np.full(size + 2 * FENCE + ALIGNMENT, UNWRITTEN, np.uint8)
        start = FENCE + -block.ctypes.data % ALIGNMENT
        self.blocks.append((block, start, start + size))
        return np.ndarray(shape, dtype, block, start)

    def check(self):
        for block, start, stop in self.blocks:
            outside = np.concatenate([block[:start], block[stop:]])
            assert (outside == UNWRITTEN).all(), "written outside of an array"
        self.blocks.clear()


@contextlib.contextmanager
def fenced(ops):
    """Inside, the arrays of ops are fenced; at the end they are checked."""
    before, memory = ops.empty, FencedMemory()
    ops.empty = memory.empty
    try:
        yield ops
        memory.check()
    finally:
        ops.empty = before
