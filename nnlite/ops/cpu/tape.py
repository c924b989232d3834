"""A training step without its Python: the calls of kernels, written down once and made again.

A step asks for the same kernels on arrays of the same sizes each time, and between two kernels of 20 to 1000
microseconds the way through layers, checks and memory pool is a tenth of the step. So the first run of a captured step
writes down every call that `CpuOps.launch` makes; later runs go down that list. What changes from step to step (the
step's number, the learning rate, a weight of the loss) stands in 0-d arrays and is read when its turn comes: `Late`.

A frozen step is a forward pass whose parameters stay what they are: what is made of them alone (weights in panels, or
transformed; norms' deviations) is made at the first call and not written down.

This is to the CPU what a CUDA graph is to a GPU, with the same rules for the step: arrays at fixed places, all
arithmetic through ops (a layer in plain array code is not written down), no decision that depends on a value.
"""

import ctypes

import numpy as np

from .arena import Arena


class Late:
    """An argument evaluated at each call: convert(array)."""

    __slots__ = ("convert", "array")

    def __init__(self, convert, array):
        self.convert, self.array = convert, array

    def now(self):
        return self.convert(self.array)


def now(value):
    return value.now() if type(value) is Late else value


class Tape:
    """step() as a list of calls. The first call runs step() and writes down; each call is one step.

    The list does not hold the arrays of the tape's own arena, only their places: so, as in a step not captured, a
    place comes to use again as soon as nobody needs its content, and the step's memory stays small enough for the
    caches. The arena lives as long as the tape, and nobody else is given its places.
    """

    def __init__(self, ops, step, frozen):
        self._ops, self._step, self.frozen = ops, step, frozen
        self._calls = None   # [(function, arguments, places of Late ones)]

    def __call__(self):
        if self._calls is None:
            self._writing, self._arena = [], Arena()
            with self._ops.recording(self):
                self._result = self._step()
            self._calls = self._writing   # only now: a step that failed is begun anew
            return self._result
        for function, arguments, late in self._calls:
            if late:
                arguments = arguments.copy()
                for place in late:
                    arguments[place] = arguments[place].now()
            function(*arguments)
        return self._result

    def write_down(self, function, arguments):
        arguments = [self._place(argument) for argument in arguments]
        self._writing.append((function, arguments, [i for i, a in enumerate(arguments) if type(a) is Late]))

    def empty(self, shape, dtype):
        return self._arena.empty(shape, dtype)

    def _place(self, argument):
        """The argument; an array in the tape's arena as an array over the same memory that does not hold it."""
        if type(argument) is list:
            return [self._place(part) for part in argument]
        if type(argument) is not np.ndarray or not self._arena.owns(argument):
            return argument
        extent = argument.itemsize + sum((n - 1) * stride for n, stride in zip(argument.shape, argument.strides) if n)
        memory = (ctypes.c_char * extent).from_address(argument.__array_interface__["data"][0])
        return np.ndarray(argument.shape, argument.dtype, memory, strides=argument.strides)
