"""Memory that is used again: a pool of NumPy blocks.

A block is handed out again only when nobody holds it any more. Every array over a block keeps a reference to it
(`array.base`), so the block's reference count says whether someone still does, be it through a view of a view.
Thus computing the same again allocates nothing, and no result ever changes under its owner.
"""

import math
from sys import getrefcount

import numpy as np

PAGE = 4096
ALIGNMENT = 64   # one cache line, one AVX-512 register


class Pool:
    """`pool.empty(shape, dtype)`: an uninitialised array, C order, 64-byte aligned."""

    def __init__(self):
        self._blocks = {}    # size in bytes -> [(block, offset of its first aligned byte)]
        self._classes = {}   # (shape, dtype) as asked for -> (the list of its size, dtype)
        # Python versions count differently: measure what an idle block shows instead of assuming a number.
        self._idle = _first_idle([_new_block(PAGE)], None)

    def empty(self, shape, dtype):
        found = self._classes.get((shape, dtype))
        if found is None:
            found = self._classes[shape, dtype] = self._class(shape, np.dtype(dtype))
        blocks, size, dtype = found
        block = _first_idle(blocks, self._idle)
        if block is None:
            block = _new_block(size)
            blocks.append(block)
        return np.ndarray(shape, dtype, *block)

    def _class(self, shape, dtype):
        size = -(-math.prod(shape) * dtype.itemsize // PAGE) * PAGE or PAGE
        return self._blocks.setdefault(size, []), size, dtype

    def release(self):
        """Give back the blocks that are idle."""
        for blocks in self._blocks.values():
            for i in reversed(range(len(blocks))):
                if _first_idle(blocks[i:i + 1], self._idle) is not None:
                    del blocks[i]

    def nbytes(self):
        """Bytes held, in use or idle."""
        return sum(size * len(blocks) for size, blocks in self._blocks.items())


def _new_block(size):
    block = np.empty(size + ALIGNMENT, np.uint8)
    return block, -block.ctypes.data % ALIGNMENT


def _first_idle(blocks, idle):
    """The first (block, offset) that only the list holds, or None; without idle, the count that the first one shows."""
    for block, offset in blocks:
        references = getrefcount(block)
        if references == idle:
            return block, offset
        if idle is None:
            return references
    return None
