"""Gradient checks that can fail: every backward against central differences of its forward, in float64.

    python -m nnlite.gradcheck my_layers.py:MyLinear --x 4,5 --args 5,3

The loss is sum(y * dy) with a random dy, so that numeric gradients are sums of dy (y(a + h) - y(a - h)) / 2h. What
makes the check able to fail:

- dy comes from the checker's own random stream. With dy = 1, or dy = x by the accident of equal seeds, a wrong
  backward of a normalising layer passes, because such a loss has no gradient through it.
- Parameters are moved away from their initial values: with g = 1 or b = 0 a forgotten g or b would not show.
- Inputs lie on a shuffled grid, further apart and further from zero than a step, so that no kink (ReLU, max) falls
  inside a step and no tolerance has to be loosened for one.
- Gradient arrays are filled with NaN first, a second backward must add, x and dy must stay as they are, and where
  the numeric gradient is zero everywhere nothing was checked, which counts as wrong.
"""

import argparse
import ast
import importlib.util
import inspect
import math
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import command
from .errors import NnliteError, expected
from .layers.base import Layer
from .ops import NAMES, get_ops
from .rng import Rng

STEP = 1e-5        # h: error of central differences h^2 f'''/6, of rounding 1e-16 y/h, both below 1e-10 for y near 1
RELATIVE = 1e-6    # of the larger of the two numbers
ABSOLUTE = 1e-8
ADJOINT = 1e-12    # of the sum of absolute terms
SPREAD = 2.0       # inputs lie in about [-SPREAD, SPREAD]
JITTER = 0.1       # standard deviation of what is added to every parameter before the check


# -- the report -----------------------------------------------------------------------------------------------------

@dataclass
class Finding:
    """What came out for one array, an input or a parameter."""

    name: str
    shape: tuple
    error: float = 0.0        # the largest |backward - numeric|
    index: tuple = None       # where backward and numeric are furthest apart, in multiples of what is allowed
    backward: float = None
    numeric: float = None
    wrong: str = ""           # what is wrong, in words; "" where nothing is
    line: str = ""            # the line of source to look at

    @property
    def ok(self):
        return not self.wrong


@dataclass
class Report:
    """`ok`, and as text what a person needs to find the mistake."""

    title: str
    findings: list = field(default_factory=list)
    faults: list = field(default_factory=list)    # sentences about what concerns no single array

    @property
    def ok(self):
        return not self.faults and bool(self.findings) and all(finding.ok for finding in self.findings)

    def __getitem__(self, name):
        return next(finding for finding in self.findings if finding.name == name)

    def __str__(self):
        wrong = len(self.faults) + sum(not finding.ok for finding in self.findings)
        lines = [f"{self.title}: " + ("every gradient agrees" if self.ok else f"{wrong or 'nothing checked, 1'} wrong")]
        width = max([len(finding.name) for finding in self.findings], default=0)
        for finding in self.findings:
            head = f"  {finding.name:<{width}}  {str(finding.shape):<12}"
            if finding.ok:
                lines.append(f"{head}  ok     largest difference {finding.error:.1e}")
                continue
            lines.append(f"{head}  WRONG  {finding.wrong}")
            indent = " " * (len(head) + 9)
            if finding.index is not None:
                lines.append(f"{indent}worst at {list(finding.index)}: backward {finding.backward:.8g}, "
                             f"numeric {finding.numeric:.8g}")
            if finding.line:
                lines.append(f"{indent}look at {finding.line}")
        return "\n".join(lines + [f"  WRONG  {fault}" for fault in self.faults])


# -- what is drawn --------------------------------------------------------------------------------------------------

class Draws:
    """The checker's own random numbers: streams whose names no layer can have, so that they are nobody else's."""

    def __init__(self, seed):
        self.ops = get_ops("reference")
        self.rng = Rng(self.ops, seed)

    def normal(self, name, shape):
        """N(0, 1), float64, of any shape."""
        flat = self.ops.normal((1, max(math.prod(shape), 1)), self.rng.key("gradcheck " + name), "float64")
        return flat[0, :math.prod(shape)].reshape(shape)

    def grid(self, name, shape):
        """Values in about [-2, 2], in random order, at least 2.5 h from each other and more than h from zero."""
        n = math.prod(shape)
        words = self.ops.random_words(2, max(n, 1), self.rng.key("gradcheck " + name))[:, :n]
        spacing = max(2 * SPREAD / (n + 1), 2.5 * STEP)
        # Half a step off zero; moved a little, so that no two are equally far from zero.
        slack = (spacing - 2.5 * STEP) / 4 * (words[1] / 2.0 ** 31 - 1)
        values = (np.arange(n) - n // 2 + 0.5) * spacing + slack
        return values[np.argsort(words[0], kind="stable")].reshape(shape)

    def direction(self, name, shape):
        """A random direction with largest component 1: no element moves by more than a step."""
        v = self.normal("direction " + name, shape)
        return v / np.abs(v).max()

    def choice(self, name, size, count):
        """count different flat indices below size; all of them for count None."""
        if count is None or count >= size:
            return np.arange(size)
        words = self.ops.random_words(1, size, self.rng.key("gradcheck choice " + name))[0]
        return np.sort(np.argsort(words, kind="stable")[:count])


@dataclass
class Variable:
    """An array that the loss depends on: its value, a way to put another in its place, and who owns it."""

    name: str
    value: np.ndarray
    assign: object           # function of a host array
    owner: object = None     # the layer that holds the parameter, or the layer whose input this is
    attribute: str = ""      # the parameter's attribute; "" for an input


def central_difference(evaluate, dy, variable, direction):
    """sum(dy (y(a + h v) - y(a - h v))) / 2h."""
    results = []
    for sign in (1, -1):
        variable.assign(variable.value + sign * STEP * direction)
        results.append(evaluate())
    variable.assign(variable.value)
    plus, minus = results
    return float(np.sum((plus - minus) * dy)) / (2 * STEP)


def numeric_gradient(evaluate, dy, variable, entries):
    """The derivatives with respect to these flat entries of the variable, one by one."""
    gradient = np.empty(len(entries))
    for i, entry in enumerate(entries):
        one = np.zeros(variable.value.shape)
        one.reshape(-1)[entry] = 1
        gradient[i] = central_difference(evaluate, dy, variable, one)
    return gradient


# -- comparing ------------------------------------------------------------------------------------------------------

def compare(variable, backward, numeric, entries, batch, rounding=0.0):
    """The finding for one variable. backward: its whole gradient; numeric: that of the flat `entries`.

    rounding: what the rounding of the loss itself may do to a central difference, on top of the allowance.
    """
    finding = Finding(variable.name, variable.value.shape)
    b = backward.reshape(-1)[entries]
    difference = np.abs(b - numeric)
    finding.error = float(difference.max(initial=0))
    if not np.abs(numeric).max(initial=0) > ABSOLUTE + rounding:
        finding.wrong = "numeric gradient zero everywhere: nothing was checked (forward does not depend on it here)"
        return finding
    excess = difference / (ABSOLUTE + rounding + RELATIVE * np.maximum(np.abs(b), np.abs(numeric)))
    if excess.max() <= 1:
        return finding
    worst = int(excess.argmax())
    finding.index = tuple(int(i) for i in np.unravel_index(entries[worst], variable.value.shape))
    finding.backward, finding.numeric = float(b[worst]), float(numeric[worst])
    whole = len(entries) == variable.value.size
    shape = variable.value.shape if whole else (len(entries),)
    cause = likely_cause(b.reshape(shape), numeric.reshape(shape), batch)
    finding.wrong = cause or f"{int((excess > 1).sum())} of {len(entries)} numbers differ"
    return finding


def likely_cause(backward, numeric, batch):
    """In words, where the pattern of backward against numeric tells; else ""."""
    large = np.abs(numeric) > 1e-3 * np.abs(numeric).max()
    tolerance = 1e-4 * np.abs(numeric).max()
    if np.abs(backward).max() <= ABSOLUTE:
        return "backward is zero everywhere: not computed, or multiplied by 0"
    factor = float(np.median(backward[large] / numeric[large]))
    if np.allclose(backward, factor * numeric, rtol=1e-4, atol=tolerance):
        return f"backward/numeric is {factor:.6g} everywhere: {name_factor(factor, batch)}"
    if backward.ndim == 2 and backward.shape[0] == backward.shape[1] > 1 and np.allclose(backward.T, numeric):
        return "transposed: backward[i, j] is numeric[j, i]"
    zero_b, zero_n = np.abs(backward) <= ABSOLUTE, np.abs(numeric) <= ABSOLUTE
    both = ~zero_b & ~zero_n
    if zero_n.any() and both.any() and np.allclose(backward[both], numeric[both], rtol=1e-5):
        return ("zero at other places than numeric, equal where neither is zero: another mask in backward than in "
                "forward, or none")
    if zero_b.any() and np.allclose(backward[~zero_b], numeric[~zero_b], rtol=1e-5):
        missing = int((zero_b & ~zero_n).sum())
        return f"zero in {missing} places where numeric is not, right elsewhere: a part is left out"
    if backward.ndim > 1:
        for axis, place in ((-1, "column (index of the last axis)"), (0, "row (index of the first axis)")):
            if constant_along(backward, numeric, axis):
                return f"backward/numeric is one constant in each {place}: a factor for each is missing or extra"
    return ""


def constant_along(backward, numeric, axis):
    """True if backward/numeric depends on the index of this axis alone."""
    b = np.moveaxis(backward, axis, 0).reshape(backward.shape[axis], -1)
    n = np.moveaxis(numeric, axis, 0).reshape(b.shape)
    if b.shape[1] < 2:
        return False
    factors = (b * n).sum(1) / np.maximum((n * n).sum(1), 1e-30)
    return np.allclose(b, factors[:, None] * n, rtol=1e-4, atol=1e-4 * np.abs(n).max())


def name_factor(factor, batch):
    names = [(-1, "sign flipped"), (2, "counted twice"), (-2, "counted twice, sign flipped"),
             (0.5, "a factor 2 is missing"), (-0.5, "a factor -2 is missing")]
    if batch > 1:    # dy carries the 1/N of a mean loss already
        names += [(1 / batch, f"divided by the batch ({batch}) once too often"),
                  (1 / batch ** 2, f"divided by the batch ({batch}) twice too often"),
                  (batch, f"multiplied by the batch ({batch})")]
    found = [words for value, words in names if math.isclose(factor, value, rel_tol=1e-4)]
    return " or ".join(found) or "a constant factor is missing or extra"


def source_line(variable):
    """file:line: text of the line in backward that makes this gradient, as far as its text tells."""
    function = type(variable.owner).backward
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):    # typed at a prompt
        return ""
    marks = [f"d{variable.attribute}", f'"{variable.attribute}"', f"'{variable.attribute}'"]
    if not variable.attribute:
        marks = ["return "]
    found = [i for i, line in enumerate(lines) if any(mark in line for mark in marks)]
    at = found[-1] if found else 0
    return f"{os.path.relpath(inspect.getsourcefile(function))}:{first + at}: {lines[at].strip()}"


# -- parameters -----------------------------------------------------------------------------------------------------

class Gradients:
    """The parameter gradients of a model built in float64, seen from outside its layers."""

    def __init__(self, model, draws):
        self.model, self.parameters, self.ops = model, model.parameters, model.parameters.ops
        self.arrays = {entry.name: getattr(entry.owner, "d" + entry.attribute) for entry in self.parameters.table}
        self.before = np.array(self.ops.to_host(self.parameters.values))
        jitter = JITTER * draws.normal("parameters", self.before.shape)
        self.ops.copy_into(self.parameters.values, self.before + jitter)
        self.start = np.array(self.ops.to_host(self.parameters.values))

    def restore(self):
        """The values that the parameters had before the check."""
        self.ops.copy_into(self.parameters.values, self.before)

    def variables(self):
        return [Variable(entry.name, np.array(self.ops.to_host(self.parameters.value(entry))),
                         lambda value, entry=entry: self.ops.copy_into(self.parameters.value(entry), value),
                         entry.owner, entry.attribute) for entry in self.parameters.table]

    def fill(self, number):
        """Leave a number in every gradient, which the next backward must write over."""
        self.parameters.grads[...] = number
        self.model.zero_grad()

    def read(self):
        return {entry.name: np.array(self.ops.to_host(self.parameters.grad(entry)))
                for entry in self.parameters.table}

    def moved(self):
        """Names of parameters that are not what they were at the start of the check."""
        now = np.array(self.ops.to_host(self.parameters.values))
        return [entry.name for entry in self.parameters.table
                if not np.array_equal(now[entry.start:entry.stop], self.start[entry.start:entry.stop])]

    def replaced(self, variable):
        """True if a layer bound its gradient to another array instead of writing into it; binds it back."""
        array, attribute = self.arrays[variable.name], "d" + variable.attribute
        if getattr(variable.owner, attribute) is array:
            return False
        setattr(variable.owner, attribute, array)
        return True


def check_written(step, gradients):
    """Runs step() into gradients filled with NaN, then once more on top of them, and looks at what it wrote.

    Returns the gradients after the first, and name -> what is wrong with how they were written.
    """
    gradients.fill(np.nan)
    step()
    first, wrong = gradients.read(), {}
    for variable in gradients.variables():
        if gradients.replaced(variable):
            wrong[variable.name] = (f"not written: self.d{variable.attribute} was bound to another array; write into "
                                    f"it with self.add_grad(\"{variable.attribute}\", value)")
    unwritten = [name for name, value in first.items() if np.isnan(value).any() and name not in wrong]
    if unwritten:
        marker = 12345.5
        gradients.fill(marker)
        step()
        again = gradients.read()
        wrong.update({name: name_unwritten(first[name], again[name], marker) for name in unwritten})
        gradients.fill(0)
        step()
        first = {name: gradients.read()[name] if name in unwritten else value for name, value in first.items()}
    before = gradients.read()
    step()
    for name, value in gradients.read().items():
        if name in wrong or np.allclose(value - before[name], first[name], rtol=1e-9, atol=1e-12):
            continue
        if np.allclose(value, first[name], rtol=1e-9, atol=1e-12):
            wrong[name] = "overwritten: a second backward without zero_grad() must add"
        else:
            wrong[name] = "a second backward without zero_grad() adds something else than the first one wrote"
    return first, wrong


def name_unwritten(with_nan, with_marker, marker):
    """What is wrong with a gradient in which NaN was left."""
    if np.isnan(with_marker).any():
        return f"NaN in {int(np.isnan(with_marker).sum())} places: backward computes it"
    left = np.isnan(with_nan)
    if not (with_marker[left] == marker).any():
        return "added to instead of written: after zero_grad() the first backward must write (self.add_grad does)"
    if left.ndim > 1 and (left == left.reshape(len(left), -1)[:, :1].reshape(-1, *[1] * (left.ndim - 1))).all():
        return f"not written: {int(left.reshape(len(left), -1)[:, 0].sum())} of {len(left)} rows"
    return f"not written: {int(left.sum())} of {left.size} numbers"


# -- the checks -----------------------------------------------------------------------------------------------------

def check_layer(layer, *inputs, seed=0, ops=None, direction=False):
    """Check a layer's backward: every input that it returns a gradient for, every parameter of it and below it.

    layer: a Layer; it is built here, in float64, with this seed.
    inputs: for each argument of forward a shape, filled from a kink-free grid, or an array, used as it is.
    ops: the ops to build for; the reference if not given.
    direction: compare the derivative along one random direction for each array, instead of every number.

    Returns a Report. The layer must give the same random numbers each time, as those of `self.rng.key(...)` do.
    Raises NnliteError if forward does not run on these inputs.
    """
    ops, draws = ops or get_ops("reference"), Draws(seed)
    build(layer, ops, seed)
    gradients = Gradients(layer, draws)
    check = LayerRun(layer, ops, inputs, draws)
    report = Report(f"{type(layer).__name__} {', '.join(str(value.shape) for value in check.values)} on {ops.name}")
    state = {name: np.array(ops.to_host(value)) for name, value in layer.state.items()}
    try:
        check_run(check, gradients, report, draws, direction)
    finally:
        gradients.restore()
        for name, value in layer.state.items():
            ops.copy_into(value, state[name])
    return report


def build(layer, ops, seed):
    try:
        layer.build(ops, dtype="float64", seed=seed)
    except NnliteError:
        raise
    except Exception as error:
        raise expected(type(layer).__name__, "parameters that can be made",
                       f"{type(error).__name__}: {error} ({where(error)})") from error


class LayerRun:
    """One layer, its inputs and dy: forward and backward again and again from fresh copies."""

    def __init__(self, layer, ops, inputs, draws):
        self.layer, self.ops = layer, ops
        self.state = {name: np.array(ops.to_host(value)) for name, value in layer.state.items()}
        self.names = input_names(layer, len(inputs))
        self.values = [draws.grid(name, given) if isinstance(given, tuple) else np.array(ops.to_host(given), "float64")
                       for name, given in zip(self.names, inputs)]
        self.faults = []
        self.y = self.forward()
        self.dy = draws.normal("dy", self.y.shape)

    def fault(self, words):
        if words not in self.faults:
            self.faults.append(words)

    def fresh(self, value, read_only=False):
        array = self.ops.asarray(value.copy())
        if read_only and isinstance(array, np.ndarray):
            array.flags.writeable = False
        return array

    def forward(self, read_only=False):
        """y of fresh inputs, with the running statistics as they were at first."""
        for name, value in self.layer.state.items():
            self.ops.copy_into(value, self.state[name])
        arrays = [self.fresh(value, read_only) for value in self.values]
        try:
            y = self.layer.forward(*arrays, train=True)
        except NnliteError:
            raise
        except Exception as error:
            if read_only and "read-only" in str(error):
                self.fault(f"forward writes into its input ({where(error)})")
                return self.forward()
            shapes = ", ".join(str(value.shape) for value in self.values)
            raise expected(f"{self.layer.label}, forward", f"it to run on {shapes}",
                           f"{type(error).__name__}: {error} ({where(error)})") from error
        self.look(arrays, "forward")
        if not isinstance(y, self.ops.array_type):
            raise expected(f"{self.layer.label}, forward", f"y as {self.ops.array_name} array", self.ops.describe(y))
        self.present = arrays
        return y

    def look(self, arrays, who):
        for name, array, value in zip(self.names, arrays, self.values):
            if not np.array_equal(self.ops.to_host(array), value):
                self.fault(f"{who} changed {name}: it belongs to the caller")

    def evaluate(self):
        return np.array(self.ops.to_host(self.forward()))

    def step(self, read_only=False):
        """Forward and backward; the gradients of the inputs, as host arrays."""
        self.forward(read_only)
        dy = self.fresh(self.dy, read_only)
        try:
            dx = self.layer.backward(dy)
        except Exception as error:
            if not (read_only and "read-only" in str(error)):
                raise BackwardFailed(f"backward raises {type(error).__name__}: {error} ({where(error)})") from error
            if not any(fault.startswith("backward changed") for fault in self.faults):
                self.fault(f"backward writes into dy or into what forward kept of its input ({where(error)})")
            return self.step()
        self.look(self.present, "backward")
        if not np.array_equal(self.ops.to_host(dy), self.dy):
            self.fault("backward changed dy: it belongs to the caller")
        dx = dx if isinstance(dx, tuple) else (dx,)
        for i, array in enumerate(dx):
            if not isinstance(array, self.ops.array_type):
                raise BackwardFailed(f"backward returns {self.ops.describe(array)}, not an array, as gradient "
                                     f"of {self.names[i]}")
        return [np.array(self.ops.to_host(array)) for array in dx]

    def set_value(self, i, value):
        self.values[i] = value

    def variables(self):
        return [Variable(name, self.values[i], lambda value, i=i: self.set_value(i, value), self.layer)
                for i, name in enumerate(self.names)]


class BackwardFailed(Exception):
    """What is wrong with backward, where no gradient came out of it."""


def check_run(check, gradients, report, draws, direction):
    """Fill the report of one layer."""
    report.faults = check.faults
    if check.y.dtype != "float64":
        check.fault(f"y is {check.y.dtype} for a float64 input: a dtype must not change on the way")
        return
    if not np.array_equal(check.evaluate(), check.evaluate()):
        check.fault("forward gives another y for the same x: draw random numbers with self.rng.key(self.name)")
        return
    try:
        found = []
        written, wrong = check_written(lambda: found.append(check.step()), gradients)
        dx = found[0]
        for name, a, b in zip(check.names, dx, check.step(read_only=True)):
            if a.shape == b.shape and not np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True):
                check.fault(f"another gradient of {name} for the same dy: backward must use forward's random numbers")
    except BackwardFailed as failure:
        check.fault(str(failure))
        return
    for name in gradients.moved():
        check.fault(f"parameter {name} changed during forward or backward")
        return
    batch = check.values[0].shape[0] if check.values[0].ndim else 1
    for i, variable in enumerate(check.variables()):
        if i >= len(dx):
            check.fault(f"no gradient of {variable.name}: backward returns {len(dx)} of {len(check.names)}")
        else:
            report.findings.append(examine(check, variable, dx[i], "", batch, draws, direction))
    for variable in gradients.variables():
        name = variable.name
        report.findings.append(examine(check, variable, written[name], wrong.get(name, ""), batch, draws, direction))


def examine(check, variable, backward, wrong, batch, draws, direction):
    """The finding for one input or parameter of a layer; `wrong`: what is known to be wrong already."""
    finding = Finding(variable.name, variable.value.shape, wrong=wrong)
    if backward.shape != variable.value.shape:
        finding.wrong = f"backward returns shape {backward.shape}, expected {variable.value.shape}"
    elif not np.isfinite(backward).all() and not wrong:
        finding.wrong = f"not finite in {int((~np.isfinite(backward)).sum())} places"
    elif not wrong and direction:
        finding = along_direction(check.evaluate, check.dy, variable, backward, draws)
    elif not wrong:
        entries = np.arange(variable.value.size)
        numeric = numeric_gradient(check.evaluate, check.dy, variable, entries)
        finding = compare(variable, backward, numeric, entries, batch)
        if finding.wrong and finding.index and has_kink(check.evaluate, check.dy, variable, finding.index):
            finding.wrong += "; forward has a kink inside this step: try another seed"
    if backward.dtype != "float64":
        finding.wrong = f"{backward.dtype} for a float64 input: a dtype must not change on the way"
    finding.line = "" if finding.ok else source_line(variable)
    return finding


def along_direction(evaluate, dy, variable, backward, draws, rounding=0.0):
    """The finding for the derivative along one random direction."""
    v = draws.direction(variable.name, variable.value.shape)
    numeric = np.array([central_difference(evaluate, dy, variable, v)])
    along = Variable(variable.name, np.zeros(1), None)
    finding = compare(along, np.array([(backward * v).sum()]), numeric, np.arange(1), 1, rounding)
    finding.shape, finding.index = variable.value.shape, None
    if finding.backward is not None:
        finding.wrong = (f"along a random direction: backward {finding.backward:.8g}, numeric {finding.numeric:.8g}")
    return finding


def has_kink(evaluate, dy, variable, index):
    """True if the derivatives to the left and to the right differ by more than curvature explains."""
    values = []
    for multiple in (-1, -0.5, 0, 0.5, 1):
        moved = variable.value.copy()
        moved[index] += multiple * STEP
        variable.assign(moved)
        values.append(evaluate())
    variable.assign(variable.value)
    slopes = [float(np.sum((b - a) * dy)) / (STEP / 2) for a, b in zip(values, values[1:])]
    jumps = np.abs(np.diff(slopes))
    # On a smooth function the slope changes evenly, by f'' h/2; at a kink nearly all of the change is in one place.
    return bool(jumps.max() > 1e-4 * np.abs(slopes).max() and jumps.max() > 0.9 * jumps.sum())


def check_adjoint(layer, shape, *, seed=0, ops=None):
    """<f(x) - f(0), dy> = <x, backward(dy)> for a layer that is linear in x up to a constant: exact to rounding."""
    ops, draws = ops or get_ops("reference"), Draws(seed)
    build(layer, ops, seed)
    check = LayerRun(layer, ops, (shape,), draws)
    report = Report(f"{type(layer).__name__} {shape} on {ops.name}, adjoint", faults=check.faults)
    x, y = check.values[0], check.evaluate()
    try:
        dx, = check.step()
    except BackwardFailed as failure:
        check.fault(str(failure))
        return report
    check.set_value(0, np.zeros_like(x))
    forward, backward = (y - check.evaluate()) * check.dy, x * dx
    finding = Finding(check.names[0], shape, abs(forward.sum() - backward.sum()))
    if not finding.error <= ADJOINT * (np.abs(forward).sum() + np.abs(backward).sum()):
        finding.wrong = f"<x, backward(dy)> is {backward.sum():.12g}, <f(x) - f(0), dy> is {forward.sum():.12g}"
        finding.line = source_line(check.variables()[0])
    report.findings.append(finding)
    return report


def check_loss(function, *inputs, seed=0, ops=None, title="loss"):
    """Check a loss: function(*arrays) -> (value, gradient of the first input, or a tuple of them).

    inputs: shapes, filled from a kink-free grid, or arrays, used as they are.
    """
    ops, draws = ops or get_ops("reference"), Draws(seed)
    values = [draws.grid(f"x{i}", given) if isinstance(given, tuple) else np.array(ops.to_host(given), "float64")
              for i, given in enumerate(inputs)]
    report = Report(f"{title} {', '.join(str(value.shape) for value in values)} on {ops.name}")

    def call():
        arrays = [ops.asarray(value.copy()) for value in values]
        result = function(*arrays)
        for i, (array, value) in enumerate(zip(arrays, values)):
            if not np.array_equal(ops.to_host(array), value) and not report.faults:
                report.faults.append(f"the loss changed its input {i}")
        return result

    value, gradients = call()
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    rounding = rounding_of(float(value))
    for i, gradient in enumerate(gradients):
        gradient = np.array(ops.to_host(gradient))
        variable = Variable(f"input {i}", values[i], lambda new, i=i: values.__setitem__(i, new))
        if gradient.shape != values[i].shape or gradient.dtype != "float64":
            report.findings.append(Finding(variable.name, values[i].shape, wrong=(
                f"gradient {gradient.shape} of {gradient.dtype}, expected {values[i].shape} of float64")))
            continue
        if not np.isfinite(gradient).all():
            report.findings.append(Finding(variable.name, gradient.shape, wrong="gradient not finite"))
            continue
        entries = np.arange(gradient.size)
        numeric = numeric_gradient(lambda: float(call()[0]), 1.0, variable, entries)
        report.findings.append(compare(variable, gradient, numeric, entries, len(gradient), rounding))
    return report


def rounding_of(value):
    """What rounding of a loss of this size does to a central difference."""
    return 4 * np.finfo("float64").eps * abs(value) / STEP


def check_model(model, loss, *, seed=0, elements=None):
    """Check all parameter gradients of a model against a scalar loss.

    model: a Layer (or whatever has `parameters` and `zero_grad()`), built in float64.
    loss: a function without arguments: forward and backward of the model on fixed data; returns the loss. Backward adds
    to the gradients, as always.
    elements: how many randomly chosen numbers of each parameter are compared, all for None; and in any case each
    parameter along one random direction.
    """
    draws = Draws(seed)
    if model.parameters.dtype != "float64":
        raise expected("check_model", "a model built with dtype float64", model.parameters.dtype)
    gradients = Gradients(model, draws)
    report = Report(f"{type(model).__name__} with {model.parameters.size} parameters on {model.parameters.ops.name}")
    try:
        values = []
        written, wrong = check_written(lambda: values.append(float(loss())), gradients)
        if len(set(values)) > 1:
            report.faults.append("the loss differs from call to call: it must use the same data and random numbers")
            return report
        for variable in gradients.variables():
            report.findings.append(examine_parameter(
                lambda: float(loss()), variable, written[variable.name], wrong.get(variable.name, ""),
                rounding_of(values[0]), elements, draws))
    finally:
        gradients.restore()
    return report


def examine_parameter(evaluate, variable, backward, wrong, rounding, elements, draws):
    """The finding for one parameter of a model."""
    finding = Finding(variable.name, variable.value.shape, wrong=wrong)
    if not wrong:
        entries = draws.choice(variable.name, variable.value.size, elements)
        numeric = numeric_gradient(evaluate, 1.0, variable, entries)
        finding = compare(variable, backward, numeric, entries, 1, rounding)
        if finding.ok:
            along = along_direction(evaluate, 1.0, variable, backward, draws, rounding)
            finding.error, finding.wrong = max(finding.error, along.error), along.wrong
    finding.line = "" if finding.ok else source_line(variable)
    return finding


def input_names(layer, count):
    """The names of forward's arguments."""
    kinds = inspect.Parameter
    names = [name for name, parameter in inspect.signature(layer.forward).parameters.items()
             if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    if len(names) != count:
        raise expected(f"{type(layer).__name__}, forward", f"{len(names)} inputs ({', '.join(names)})", count)
    return names


def where(error):
    """file:line of the deepest place outside this file and nnlite.layers.base that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = (__file__, inspect.getsourcefile(Layer))
    frames = [frame for frame in frames if frame.filename not in own] or frames
    return f"{os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}"


# -- the command ----------------------------------------------------------------------------------------------------

def load_class(target):
    """The class of `path/to/file.py:Name`."""
    path, _, name = target.rpartition(":")
    if not path or not name:
        raise expected("gradcheck", "FILE.py:CLASS", repr(target))
    path = Path(path)
    if not path.is_file():
        raise expected(str(path), "a Python file", "none there")
    module = import_file(path)
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items()
                   if is_layer(value) and value.__module__ == module.__name__]
        raise expected(str(path), f"a class {name}", "only " + (", ".join(classes) or "no layers"))
    if not is_layer(found):
        raise expected(f"{path}:{name}", "a subclass of nnlite.layers.Layer", type(found).__name__
                       if not isinstance(found, type) else f"a subclass of {found.__mro__[1].__name__}")
    return found


def is_layer(value):
    return isinstance(value, type) and issubclass(value, Layer) and value is not Layer


def import_file(path):
    """The module in this file, as a part of its package where it lies in one."""
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").exists():
        parts.insert(0, root.name)
        root = root.parent
    sys.path.insert(0, str(root))
    # A name of its own, so that a user's linear.py or test.py hides no module of that name.
    name = ".".join(parts) if len(parts) > 1 else "nnlite_gradcheck_" + path.stem
    try:
        if len(parts) > 1:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        raise expected(str(path), "a file that can be imported", f"{type(error).__name__}: {error}") from error


def parse_arguments(text):
    """"5, 3, bias=False" -> ((5, 3), {"bias": False}): Python literals."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        return (tuple(ast.literal_eval(value) for value in call.args),
                {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords})
    except (SyntaxError, ValueError, AttributeError) as error:
        raise expected("--args", "Python literals such as 5,3,bias=False", repr(text)) from error


def parse_shape(text):
    try:
        shape = tuple(int(extent) for extent in text.strip("()").rstrip(",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise expected("--x", "a shape such as 4,5", repr(text))
    return shape


def make_layer(cls, text):
    """The layer with these constructor arguments."""
    args, kwargs = parse_arguments(text)
    signature = inspect.signature(cls)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        needed = ", ".join(str(parameter) for parameter in signature.parameters.values())
        given = repr(text) if text else "none"
        raise expected(cls.__name__, f"--args for its constructor ({needed})", given) from error
    try:
        layer = cls(*args, **kwargs)
    except NnliteError:
        raise
    except Exception as error:
        raise expected(f"{cls.__name__}({text})", "a constructor that runs",
                       f"{type(error).__name__}: {error} ({where(error)})") from error
    if not hasattr(layer, "param_specs"):
        raise expected(f"{cls.__name__}.__init__", "a first line super().__init__()", "none")
    return layer


def main(argv=None):
    """0: every gradient agrees; 1: one is wrong; 2: the input of this command is."""
    parser = argparse.ArgumentParser(prog="python -m nnlite.gradcheck", description=(
        "Compare a layer's backward with central differences of its forward, in float64. "
        "Exit code 0: every gradient agrees, 1: one is wrong, 2: bad input."))
    parser.add_argument("target", metavar="FILE.py:CLASS", help="your file and the class in it, a subclass of Layer")
    parser.add_argument("--x", action="append", required=True, metavar="4,5",
                        help="shape of the input; again for each further argument of forward")
    parser.add_argument("--args", default="", metavar="5,3", help="constructor arguments: literals, name=value too")
    parser.add_argument("--ops", default="reference", choices=[name for name in NAMES if name != "auto"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return command.run(lambda: check_and_report(options))


def check_and_report(options):
    shapes = [parse_shape(text) for text in options.x]
    layer = make_layer(load_class(options.target), options.args)
    report = check_layer(layer, *shapes, seed=options.seed, ops=get_ops(options.ops))
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
