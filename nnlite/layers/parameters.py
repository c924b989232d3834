"""All parameters of a model as views into one flat array, all gradients into another.

An optimiser step is then one fused pass, clearing the gradients is one flag, a checkpoint is one dataset with a
table of names, and weight decay or freezing are ranges.
"""

import math
from typing import NamedTuple


class Entry(NamedTuple):
    """One parameter's place in the flat array: values[start:stop] reshaped."""

    name: str
    shape: tuple
    start: int
    stop: int
    owner: object    # the layer
    attribute: str   # "W": the layer's views are owner.W and owner.dW


class Parameters:
    """The flat arrays `values` and `grads` of a model, and the `table` of who owns which range."""

    def __init__(self, ops, layers, dtype):
        self.ops, self.dtype = ops, dtype
        self.table, start = [], 0
        for layer in layers:
            for attribute, (shape, _) in layer.param_specs.items():
                stop = start + math.prod(shape)
                name = f"{layer.name}.{attribute}" if layer.name else attribute
                self.table.append(Entry(name, shape, start, stop, layer, attribute))
                start = stop
        self.size = start
        self.values = ops.zeros((start,), dtype)
        self.grads = ops.zeros((start,), dtype)
        for entry in self.table:
            setattr(entry.owner, entry.attribute, self.value(entry))
            setattr(entry.owner, "d" + entry.attribute, self.grad(entry))
        self.owners = [layer for layer in layers if layer.param_specs]

    def value(self, entry):
        return self.values[entry.start:entry.stop].reshape(entry.shape)

    def grad(self, entry):
        return self.grads[entry.start:entry.stop].reshape(entry.shape)

    def initialise(self, rng):
        for entry in self.table:
            _, init = entry.owner.param_specs[entry.attribute]
            self.value(entry)[...] = init(self.ops, entry.shape, rng.key("init " + entry.name), self.dtype)
        self.ops.release()    # no step asks for arrays as large as a parameter's

    def zero_grad(self):
        """The next backward of each layer writes its gradients instead of adding to them: no fill pass."""
        for layer in self.owners:
            layer.written.clear()

    def settle(self):
        """Zero the gradients that no backward has written since zero_grad(): nothing stale is applied."""
        for entry in self.table:
            if entry.attribute not in entry.owner.written:
                self.ops.fill(self.grad(entry), 0)
                entry.owner.written.add(entry.attribute)

    def ranges(self, chosen):
        """The flat array in parts (start, stop, value), value = chosen(entry); neighbours of one value are merged."""
        merged = []
        for entry in self.table:
            value = chosen(entry)
            if merged and merged[-1][2] == value:
                merged[-1][1] = entry.stop
            else:
                merged.append([entry.start, entry.stop, value])
        return tuple(tuple(part) for part in merged)
