"""Layers made of layers."""

from ..errors import expected
from .base import Layer


class Sequential(Layer):
    """y = f_n(... f_2(f_1(x)))

        dx = f_1'(... f_n'(dy))     each layer's backward, last first

    The layers are called 0, 1, ... or as the keywords say.
    """

    can_skip_dx = True

    def __init__(self, *layers, **named):
        super().__init__()
        self.named = {**{str(i): layer for i, layer in enumerate(layers)}, **named}

    @property
    def layers(self):
        """In the order of the forward pass."""
        return tuple(self.named.values())

    def children(self):
        return self.named

    def out_shape(self, x_shape):
        for layer in self.layers:
            x_shape = layer.out_shape(x_shape)
        return x_shape

    def forward(self, x, *, train=False):
        for layer in self.layers:
            x = layer.forward(x, train=train)
        return x

    def backward(self, dy, *, need_dx=True):
        """Without need_dx it ends at the first layer that learns."""
        layers, first = self.layers, 0 if need_dx else self.first_that_learns()
        for layer in reversed(layers[first:]):
            dy = backward_of(layer, dy, need_dx or layer is not layers[first])
        for below in layers[:first]:    # what they kept is not needed any more
            below.drop()
        return dy if need_dx else None

    def first_that_learns(self):
        """The number of the first layer with parameters that are not frozen; of the last layer where none has any."""
        learns = (i for i, layer in enumerate(self.layers)
                  if any(part.param_specs and not part.frozen for _, part in layer.walk()))
        return next(learns, len(self.layers) - 1)


class Residual(Layer):
    """y = x + f(x);  dx = dy + f'(dy) (He et al. 2016, eq. 1)."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *, train=False):
        f = self.inner.forward(x, train=train)
        if f.shape != x.shape:
            raise expected(self.label, f"an inner layer that keeps the shape {x.shape}", f.shape)
        return self.ops.add(x, f)

    def backward(self, dy):
        return self.ops.add(dy, self.inner.backward(dy))


class Concat(Layer):
    """y = [f_1(x), f_2(x), ...] along the last axis

        dx = f_1'(dy_1) + f_2'(dy_2) + ...     dy_i the columns that f_i made

    Keeps the widths.
    """

    def __init__(self, *branches):
        super().__init__()
        self.branches = branches

    def children(self):
        return {str(i): layer for i, layer in enumerate(self.branches)}

    def out_shape(self, x_shape):
        shapes = [branch.out_shape(x_shape) for branch in self.branches]
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def forward(self, x, *, train=False):
        parts = [branch.forward(x, train=train) for branch in self.branches]
        leading = {part.shape[:-1] for part in parts}
        if len(leading) != 1:
            raise expected(self.label, "branches that agree in all axes but the last", [p.shape for p in parts])
        self.keep([part.shape[-1] for part in parts], leading.pop(), train=train)
        return self.ops.concat(parts, -1)

    def backward(self, dy):
        widths, leading = self.take()
        self.check(dy, (*leading, sum(widths)), "dy")
        dx, start = None, 0
        for branch, width in zip(self.branches, widths):
            part = branch.backward(self.ops.contiguous(dy[..., start:start + width]))
            dx = part if dx is None else self.ops.add(dx, part)
            start += width
        return dx


class Recompute(Layer):
    """y = f(x), of which only x is kept: backward computes f anew, so that memory is paid with time (Chen et al. 2016).

    The random numbers of f are those of the step, so it draws the same ones again. f may have no state, which a second
    forward would move twice. Its parts are named as if they stood in its place: with and without Recompute a model has
    the same parameters. Keeps x.
    """

    can_skip_dx = True

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        stateful = [name for name, layer in inner.walk() if layer.state_specs]
        if stateful:
            raise expected("Recompute", "layers without running statistics", f"'{stateful[0]}'")

    def walk(self, name=""):
        yield name, self
        yield from self.inner.walk(name)

    def out_shape(self, x_shape):
        return self.inner.out_shape(x_shape)

    def forward(self, x, *, train=False):
        y = self.inner.forward(x, train=train)
        self.inner.drop()
        self.keep(x, train=train)
        return y

    def backward(self, dy, *, need_dx=True):
        x, = self.take()
        self.inner.forward(x, train=True)
        return backward_of(self.inner, dy, need_dx)


def backward_of(layer, dy, need_dx):
    """The layer's backward; where nobody asks for dx without it, if the layer can leave it out."""
    return layer.backward(dy) if need_dx or not layer.can_skip_dx else layer.backward(dy, need_dx=False)
