"""A whole step as one CUDA graph, and host values on their way to it."""

import contextlib
from collections import deque

import cupy
import cupyx
import numpy as np

WARM_UP = 2   # calls that run as they are before the capture: kernels are compiled, memory is in the pool
DEPTH = 4     # copies of one size under way at once


class Capture:
    """capture() does what step() does.

    The first calls run step() as it is, the next one records it, and from then on a call is one launch of the graph.
    Every call counts as one step; nothing runs twice.

    The step's memory comes from a pool of its own that lives as long as this object, from the arena of a stream of its
    own, so no block of it is ever handed to anybody else. The result is that of the recording: arrays at fixed
    places, which the next call overwrites.

    What the step does in Python is done at the recording for the last time. So it must neither wait for the device
    nor read numbers from it, must do the same work each time, must change arrays in place (an attribute that is bound
    to a new array is read at its old place again), and takes what changes from 0-d arrays and fixed input arrays
    that set_scalar and copy_into write between the calls.
    """

    def __init__(self, step):
        self._step, self._calls, self._graph, self._result = step, 0, None, None
        self._pool = cupy.cuda.MemoryPool()
        self._stream = cupy.cuda.Stream(non_blocking=True)   # the default stream cannot be captured

    def __call__(self):
        if self._calls < WARM_UP:
            self._calls += 1
            return self._run()
        if self._graph is None:
            self._record()
        self._graph.launch()
        return self._result

    @contextlib.contextmanager
    def _own_stream_and_memory(self):
        with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
            yield

    def _run(self):
        caller = cupy.cuda.get_current_stream()
        self._stream.wait_event(caller.record())
        with self._own_stream_and_memory():
            result = self._step()
        caller.wait_event(self._stream.record())
        return result

    def _record(self):
        with self._own_stream_and_memory():
            self._stream.begin_capture()
            try:
                self._result = self._step()
            except BaseException:
                with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                    self._stream.end_capture()   # leave the stream usable; the step's own error is the one to show
                raise
            self._graph = self._stream.end_capture()


class Staging:
    """Copies from the host in stream order that nobody waits for: through pinned buffers, each used again only when
    its copy has been made."""

    def __init__(self):
        self._rings = {}   # (shape, dtype) -> buffers with the events of their copies, oldest first

    def copy(self, target, values):
        """target[...] = values; target in C order. The caller may change values at once."""
        ring = self._rings.setdefault((target.shape, target.dtype), deque())
        if len(ring) == DEPTH or ring and ring[0][1].done:
            buffer, event = ring.popleft()
            event.synchronize()
        else:
            buffer = cupyx.empty_pinned(target.shape, target.dtype)
            event = cupy.cuda.Event(disable_timing=True)
        buffer[...] = np.asarray(values)
        stream = cupy.cuda.get_current_stream()
        target.data.copy_from_host_async(buffer.ctypes.data, target.nbytes, stream)
        event.record(stream)
        ring.append((buffer, event))
