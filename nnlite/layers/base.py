"""What every layer has: parameters as views, one saved slot, checks in words."""

from ..errors import NnliteError, expected
from ..rng import Rng
from .parameters import Parameters


class Layer:
    """A function y = f(x; parameters) with a hand-written derivative.

    A layer of your own declares its parameters and writes two methods:

        class Scale(Layer):
            def __init__(self, features):
                super().__init__()
                self.add_param("g", (features,), init.ones)

            def forward(self, x, *, train=False):
                self.keep(x, train=train)
                return x * self.g

            def backward(self, dy):
                x, = self.take()
                self.add_grad("g", (dy * x).sum(0))
                return dy * self.g

    and is checked by `python -m nnlite.gradcheck my_layers.py:Scale --x 4,5 --args 5`.
    """

    can_skip_dx = False   # True: backward takes need_dx=False, for a first layer whose dx nobody asks for

    def __init__(self):
        self.param_specs = {}   # attribute -> (shape, init)
        self.state_specs = {}   # attribute -> (shape, fill)
        self.name = ""
        self.ops = None
        self.rng = None
        self._kept = None
        self.frozen = False     # whether nobody asks for the gradients of its own parameters
        self.written = set()    # parameters whose gradient has been written since zero_grad(): adding starts there

    # -- declaring ---------------------------------------------------------------------------------------------

    def add_param(self, attribute, shape, init):
        """Declare a trainable array: after build() it is self.<attribute>, its gradient self.d<attribute>."""
        self.param_specs[attribute] = (tuple(shape), init)

    def add_state(self, attribute, shape, fill):
        """Declare an array that is saved but not trained (running statistics)."""
        self.state_specs[attribute] = (tuple(shape), fill)

    def children(self):
        """Name -> layer, in the order of the forward pass."""
        found = {}
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                found[name] = value
        return found

    def walk(self, name=""):
        """This layer and all below it, parents first, as (path, layer)."""
        yield name, self
        for child, layer in self.children().items():
            yield from layer.walk(f"{name}.{child}" if name else child)

    def build(self, ops, *, dtype="float32", seed=0):
        """Give this layer and all below it their ops, names, memory and initial values; returns self."""
        if dtype not in ("float32", "float64"):
            raise expected("dtype", "float32 or float64", repr(dtype))
        self.dtype = dtype
        self.rng = Rng(ops, seed)
        layers, paths = [], {}
        for name, layer in self.walk():
            if id(layer) in paths:
                raise NnliteError(f"{type(layer).__name__} '{name}': expected a layer of its own, got the one that is "
                                  f"also '{paths[id(layer)]}'; join the batches to use a layer twice")
            paths[id(layer)] = name
            layer.name, layer.ops, layer.rng, layer.dtype = name, ops, self.rng, dtype
            layer._dtype = ops.dtype(dtype)
            layers.append(layer)
            for attribute, (shape, fill) in layer.state_specs.items():
                setattr(layer, attribute, ops.zeros(shape, dtype) + ops.asarray(fill, dtype))
        self.parameters = Parameters(ops, layers, dtype)
        self.parameters.initialise(self.rng)
        return self

    # -- the model's arrays ------------------------------------------------------------------------------------

    @property
    def params(self):
        """Attribute -> array of this layer's own parameters."""
        return {attribute: getattr(self, attribute) for attribute in self.param_specs}

    @property
    def state(self):
        """Path -> array of everything below here that is saved but not trained."""
        return {f"{name}.{attribute}" if name else attribute: getattr(layer, attribute)
                for name, layer in self.walk() for attribute in layer.state_specs}

    def zero_grad(self):
        """The next backward writes the parameter gradients instead of adding to them: no fill pass."""
        self.parameters.zero_grad()

    def add_grad(self, attribute, value):
        """Add to self.d<attribute>, or write it if this is the first backward after zero_grad()."""
        grad = getattr(self, "d" + attribute)
        if attribute in self.written:
            grad += value
        else:
            grad[...] = value
            self.written.add(attribute)

    def accumulate(self, *attributes):
        """For ops that write these gradients in one call: False after zero_grad(), then True."""
        accumulate = self.written.issuperset(attributes)
        self.written.update(attributes)
        return accumulate

    # -- the saved slot ----------------------------------------------------------------------------------------

    def keep(self, *values, train):
        """Save what backward needs; only when train is True. Of a function, backward takes what it then gives."""
        if train:
            self._kept = values

    def take(self):
        """What forward kept; once."""
        kept, self._kept = self._kept, None
        if kept is None:
            raise NnliteError(f"{self.label}: expected forward(x, train=True) before backward, got none since the "
                              "last backward")
        return tuple(value() if callable(value) else value for value in kept)

    def drop(self):
        """Forget what forward kept, here and below."""
        for _, layer in self.walk():
            layer._kept = None

    # -- checks ------------------------------------------------------------------------------------------------

    @property
    def label(self):
        return f"{type(self).__name__} '{self.name}'"

    def check(self, x, shape, what="x", text=None):
        """Raise unless x is an array of this layer's ops and dtype, and fits shape (None: any extent; a leading
        Ellipsis: any leading axes). text: the expected shape in letters."""
        ops, got = self.ops, getattr(x, "shape", None)
        if ops is not None and type(x) is ops.array_type and x.dtype == self._dtype and _fits(got, shape):
            return
        if ops is None:
            raise NnliteError(f"{self.label}: expected build(ops) before the first use, got a layer without memory")
        if not isinstance(x, ops.array_type):
            raise expected(self.label, f"{what} as {ops.array_name} array for ops '{ops.name}'", ops.describe(x))
        if not _fits(got, shape):
            raise expected(self.label, f"{what} {text or _letters(shape)}", got)
        if x.dtype != self._dtype:
            raise expected(self.label, f"{what} of dtype {self.dtype}", str(x.dtype))

    def out_shape(self, x_shape):
        """The shape of y for an x of this shape; most layers keep it."""
        return tuple(x_shape)

    def forward(self, x, *, train=False):
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def backward(self, dy):
        raise NotImplementedError(f"{type(self).__name__}.backward")


def _fits(got, shape):
    """Whether the shape got is as wanted: None stands for any extent, a leading Ellipsis for one or more axes."""
    if got == shape:
        return True
    if shape and shape[0] is Ellipsis:
        shape = shape[1:]
        if len(got) <= len(shape):
            return False
        got = got[len(got) - len(shape):]
    if len(got) != len(shape):
        return False
    for a, b in zip(got, shape):
        if a != b and b is not None:
            return False
    return True


def _letters(shape):
    names = iter("NABC")
    return "(" + ", ".join("..." if s is Ellipsis else next(names) if s is None else str(s) for s in shape) + \
        (",)" if len(shape) == 1 else ")")
