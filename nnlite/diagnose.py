"""Which layer was it? Finds where the first NaN or infinity of a training run came from."""

import math


def first_not_finite(experiment, iterations):
    """One phrase naming the first array that is not finite when the given iterations are done (again) from the
    experiment's present state; None if all stay finite. The optimiser moves only while all is well."""
    for iteration in iterations:
        experiment.prepare(iteration)
        finding = _watch(experiment)
        if finding:
            return f"{finding} in iteration {iteration + 1}"
        experiment.optimiser.step()
    return None


def _watch(experiment):
    """Forward and backward once, with every layer's output, input gradient and parameter gradients looked at."""
    findings, ops = [], experiment.ops
    leaves = [layer for _, layer in experiment.model.walk() if not layer.children()]

    def look(array, what, layer):
        if array is not None and not findings and not ops.all_finite(array):
            findings.append(f"{what} of {layer.label}")

    def watched(layer):
        def forward(*inputs, **options):
            y = type(layer).forward(layer, *inputs, **options)
            look(y, "the output", layer)
            return y

        def backward(*inputs, **options):
            dx = type(layer).backward(layer, *inputs, **options)
            for attribute in layer.param_specs:
                look(getattr(layer, "d" + attribute), f"the gradient of {attribute}", layer)
            look(dx if not isinstance(dx, tuple) else dx[0], "the gradient of the input", layer)
            return dx
        return forward, backward

    for layer in leaves:
        layer.forward, layer.backward = watched(layer)
    try:
        terms = experiment.forward_backward()
    finally:
        for layer in leaves:
            del layer.forward, layer.backward
    for name, value in terms.items():
        if not findings and not math.isfinite(float(value)):
            findings.append(f"the loss term '{name}'")
    return findings[0] if findings else None
