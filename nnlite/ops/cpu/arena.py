"""Memory of one step: arrays of any size side by side, each in the first gap that those still in use leave.

A pool with a list for each size (../pool.py) is quicker to ask, but keeps the most that each size ever needed, at
different times. Where a step runs once and the places of its arrays are then kept, its memory is what counts.
"""

import ctypes
import math
from sys import getrefcount

import numpy as np

from ..pool import ALIGNMENT

REGION = 1 << 28   # bytes asked of the system at once, which gives those that are written to


class Arena:
    """`arena.empty(shape, dtype)`: an uninitialised array, C order, 64-byte aligned.

    Every array over a place keeps a reference to the place's holder, be it through a view of a view, so the holder's
    reference count says whether someone still does. An array that outlives the arena keeps its region's memory: copy
    what is to stay.
    """

    def __init__(self):
        self._regions = []
        # Python versions count differently: measure what an idle holder shows instead of assuming a number.
        self._idle = _references((0, 1, _holder(bytearray(1), 0, 1)))

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT or ALIGNMENT
        for region in self._regions:
            holder = region.place(size, self._idle)
            if holder is not None:
                break
        else:
            self._regions.append(_Region(max(size, REGION)))
            holder = self._regions[-1].place(size, self._idle)
        return np.ndarray(shape, dtype, holder)

    def owns(self, array):
        """Whether the array lies in a place that is in use here."""
        while isinstance(array, np.ndarray):
            array = array.base
        return any(array is holder for region in self._regions for _, _, holder in region.spans)

    def nbytes(self):
        """Bytes that the arrays took, and the gaps between them, when it was most."""
        return sum(region.used for region in self._regions)


class _Region:
    def __init__(self, size):
        memory = np.empty(size + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self.memory, self.size = memory[start:start + size], size
        self.spans = []   # (start, stop, holder), as they lie
        self.used = 0     # up to where anything ever lay

    def place(self, size, idle):
        """A holder of the first gap of that many bytes, or None."""
        self.spans = [span for span in self.spans if _references(span) > idle]
        end = 0
        for i, (start, stop, _) in enumerate([*self.spans, (self.size, None, None)]):
            if start - end >= size:
                holder = _holder(self.memory, end, size)
                self.spans.insert(i, (end, end + size, holder))
                self.used = max(self.used, end + size)
                return holder
            end = stop
        return None


def _holder(memory, start, size):
    """What keeps memory[start:start + size] in use. A view of NumPy's would not do: arrays over it refer to the memory
    that it is a view of, so it would look idle."""
    return (ctypes.c_char * size).from_buffer(memory, start)


def _references(span):
    return getrefcount(span[2])
