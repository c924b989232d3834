"""Memory for kernels under test, which shows what they read before it was written, and writes outside of an array."""

import contextlib
import math

import numpy as np

FENCE, POST, UNWRITTEN = 64, 0xA5, 0xFF   # bytes on either side; UNWRITTEN is NaN in every float


@contextlib.contextmanager
def fenced(ops):
    """Inside, ops.empty gives arrays full of NaN between fences; at the end all fences must stand."""
    before, memories = ops.empty, []

    def empty(shape, dtype):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = np.full(size + 3 * FENCE, POST, np.uint8)
        start = FENCE + -memory.ctypes.data % FENCE
        memory[start:start + size] = UNWRITTEN
        memories.append((memory, start, start + size, shape, dtype))
        return np.ndarray(shape, dtype, memory, start)

    ops.empty = empty
    try:
        yield ops
        for memory, start, stop, shape, dtype in memories:
            outside = np.concatenate([memory[:start], memory[stop:]])
            assert (outside == POST).all(), f"something was written outside of the array {shape} of {dtype}"
    finally:
        ops.empty = before
