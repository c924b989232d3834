"""Convolutions, norms, pooling and cross entropy of image classifiers, one by one, nnlite beside PyTorch.

    python benchmarks/bench_images.py [NAME ...] [--device cpu|cuda] [--json FILE]

Both get the same numbers, and their results are compared before anything is timed. See benchmarks/README.md.
"""

import math
import sys
from typing import NamedTuple

import common

sys.path.insert(0, str(common.ROOT))
import rows  # noqa: E402
from counting import product  # noqa: E402
from rows import Row, Work, nothing  # noqa: E402


class Conv(NamedTuple):
    """N square images of `side` pixels and C channels; K outputs, or None: depthwise. padding None: half the kernel."""

    N: int
    side: int
    C: int
    K: int | None
    kernel: int = 3
    stride: int = 1
    padding: int | None = None

    @property
    def pad(self):
        return self.kernel // 2 if self.padding is None else self.padding

    @property
    def name(self):
        kernel = f"{self.kernel}x{self.kernel}" + (f"/{self.stride}" if self.stride > 1 else "")
        x = f"{self.N}x{self.side}x{self.side}x{self.C}"
        return f"depthwise {kernel} {x}" if self.K is None else f"conv {kernel} {x} -> {self.K}"

    @property
    def outputs(self):
        return (self.side + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def row(self):
        """Nobody asks for the gradient of the images, so a first layer (C up to 3) has none for its input."""
        flop = product(self.N * self.outputs ** 2, self.kernel ** 2 * (self.C if self.K else 1), self.K or self.C, 1)
        directions = {"forward": flop, "weights": flop}
        if self.C > 3:
            directions.update(input=flop, backward=2 * flop)
        return Row(self.name, directions, self.group)

    @property
    def group(self):
        if self.K is None:
            return "depthwise 3x3"
        if self.stride > 1:
            return "strided"
        if self.kernel == 3:
            return "3x3, stride 1, 32 to 512 channels" if self.C >= 32 else "3x3, stride 1, one channel"
        return f"{self.kernel}x{self.kernel}"


CONVS = {conv.name: conv for conv in [
    Conv(50, 48, 1, 32), Conv(50, 24, 32, 64), Conv(50, 12, 64, 96), Conv(50, 6, 96, 128),             # cnn4
    Conv(8, 56, 64, 64), Conv(8, 28, 128, 128), Conv(8, 14, 256, 256), Conv(8, 7, 512, 512),           # ResNet-50
    Conv(50, 24, 32, 64, 5), Conv(32, 48, 1, 36, 5, padding=1),                                        # the last: cnn5
    Conv(8, 56, 64, 256, 1), Conv(8, 28, 512, 128, 1), Conv(8, 7, 2048, 512, 1),
    Conv(8, 56, 128, 128, stride=2), Conv(8, 28, 256, 256, stride=2), Conv(8, 224, 3, 64, 7, 2),
    Conv(8, 56, 256, 512, 1, 2),
    Conv(32, 24, 128, None), Conv(32, 12, 256, None), Conv(8, 56, 64, None), Conv(32, 24, 96, None, stride=2),
]}
# name -> shape of x; of y where it is another
OTHERS = {
    "BatchNorm, ReLU 50x48x48x32": ((50, 48, 48, 32),),
    "BatchNorm, ReLU 10x1000": ((10, 1000),),
    "MaxPool 50x48x48x32": ((50, 48, 48, 32), (50, 24, 24, 32)),
    "NormPool 50x48x48x32": ((50, 48, 48, 32), (50, 24, 24, 32)),
    "NormPool 50x12x12x96": ((50, 12, 12, 96), (50, 6, 6, 96)),
}
LOSSES = {"cross entropy 50x7": (50, 7), "cross entropy 256x1000": (256, 1000)}
ROWS = [*(conv.row for conv in CONVS.values()),
        *(Row(name, {"forward": None, "backward": None}, "") for name in OTHERS),
        *(Row(name, {"both": None}, "") for name in LOSSES)]


# -- the numbers that everybody gets, in nnlite's layout --------------------------------------------------------------

def numbers(name):
    """x, dy and the parameters of a row, NumPy float32 arrays by name."""
    import numpy as np
    rng = np.random.default_rng(0)
    draw = lambda shape, scale=1.0: (scale * rng.standard_normal(shape, dtype="float32")).astype("float32")
    if name in CONVS:
        c = CONVS[name]
        W = (c.kernel, c.kernel, c.C, c.K) if c.K else (c.kernel, c.kernel, c.C)
        K, fan_in = W[-1], math.prod(W[:3]) if c.K else c.kernel ** 2
        return {"x": draw((c.N, c.side, c.side, c.C)), "dy": draw((c.N, c.outputs, c.outputs, K)),
                "W": draw(W, (2 / fan_in) ** 0.5), "b": draw(K, 0.1)}
    x, y = OTHERS[name][0], OTHERS[name][-1]
    norm = {} if name.startswith("MaxPool") else {"g": 1 + draw(x[-1], 0.1), "b": draw(x[-1], 0.1)}
    # Steps of 1/64: no number is so near to ReLU's kink, or to its neighbour, that rounding decides.
    return {"x": np.round(64 * draw(x)) / 64, "dy": draw(y), **norm}


def loss_numbers(name):
    import numpy as np
    rng, (N, K) = np.random.default_rng(0), LOSSES[name]
    return 3 * rng.standard_normal((N, K), dtype="float32"), rng.integers(0, K, N).astype("int32")


# -- nnlite -----------------------------------------------------------------------------------------------------------

def nnlite_layer(name):
    from nnlite import layers as nl
    if name in CONVS:
        c = CONVS[name]
        if c.K is None:
            return nl.DepthwiseConv2d(c.C, c.kernel, stride=c.stride, padding=c.pad)
        return nl.Conv2d(c.C, c.K, c.kernel, stride=c.stride, padding=c.pad)
    C = OTHERS[name][0][-1]
    return {"BatchNorm": lambda: nl.BatchNorm(C, activation="relu"), "MaxPool": lambda: nl.MaxPool2d(2),
            "NormPool": lambda: nl.NormPool(C)}[name.split()[0].rstrip(",")]()


def nnlite_work(name, device):
    from nnlite.ops import get_ops
    ops, given = get_ops(device), numbers(name)
    layer = nnlite_layer(name).build(ops)
    x, dy = ops.asarray(given["x"]), ops.asarray(given["dy"])
    for attribute, array in layer.params.items():
        array[...] = ops.asarray(given[attribute])

    def forward(_=None):
        layer.zero_grad()
        y = layer.forward(x, train=True)
        ops.synchronize()
        return y

    def backward(_, **options):
        dx = layer.backward(dy, **options)
        ops.synchronize()
        return dx

    def results():
        y = forward()
        dx = backward(None) if has_dx(name) else backward(None, need_dx=False)
        found = {"y": y, **{"d" + attribute: getattr(layer, "d" + attribute) for attribute in layer.params}}
        if dx is not None:
            found["dx"] = dx
        return {key: ops.to_host(array) for key, array in found.items()}

    directions = {"forward": (nothing, forward)}
    if name in CONVS:
        directions["weights"] = (forward, lambda _: backward(_, need_dx=False))
    if has_dx(name):
        directions["backward"] = (forward, backward)
    return Work(directions, results)


def has_dx(name):
    return name not in CONVS or "backward" in CONVS[name].row.flop


def nnlite_loss(name, device):
    from nnlite import losses
    from nnlite.ops import get_ops
    ops = get_ops(device)
    logits, labels = map(ops.asarray, loss_numbers(name))

    def both(_=None):
        found = losses.softmax_cross_entropy(ops, logits, labels)
        ops.synchronize()
        return found
    return Work({"both": (nothing, both)}, lambda: dict(zip(("value", "dlogits"), map(ops.to_host, both()))))


# -- PyTorch, in either memory format ---------------------------------------------------------------------------------

def tensor(array, way, device):
    """(N, H, W, C) -> (N, C, H, W), (kh, kw, C, K) -> (K, C, kh, kw), (kh, kw, C) -> (C, 1, kh, kw), in the format."""
    import torch
    found = torch.tensor(array)
    if array.ndim < 3:
        return found.to(device)
    return found.to(device).contiguous(memory_format=getattr(torch, way + "_format" * (way == "contiguous")))


def images(array, way, device):
    return tensor(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array, way, device)


def from_images(found):
    found = found.detach().cpu()
    return (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).numpy()


def torch_conv(name, device, way):
    import torch

    import peers
    c, given, wait = CONVS[name], numbers(name), peers.waiter(device)
    x, dy = images(given["x"], way, device), images(given["dy"], way, device)
    turned = given["W"].transpose(3, 2, 0, 1) if c.K else given["W"].transpose(2, 0, 1)[:, None]
    W, b = tensor(turned, way, device), tensor(given["b"], way, device)
    size = [c.stride] * 2, [c.pad] * 2, [1, 1], False, [0, 0], 1 if c.K else c.C

    def forward(_=None):
        with torch.no_grad():
            y = torch.ops.aten.convolution(x, W, b, *size)
        wait()
        return y

    def backward(dx, dW):
        def work(_):
            found = torch.ops.aten.convolution_backward(dy, x, W, [len(b)], *size, [dx, dW, dW])
            wait()
            return found
        return work

    def results():
        dx, dW, db = backward(has_dx(name), True)(None)
        dW = from_images(dW.permute(2, 0, 3, 1)) if c.K else dW.cpu().permute(2, 3, 0, 1)[..., 0].numpy()
        found = {"y": from_images(forward()), "dW": dW, "db": db.cpu().numpy()}
        return {**found, "dx": from_images(dx)} if has_dx(name) else found

    directions = {"forward": (nothing, forward), "weights": (forward, backward(False, True))}
    if has_dx(name):
        directions.update(input=(forward, backward(True, False)), backward=(forward, backward(True, True)))
    return Work(directions, results)


def torch_other(name, device, way):
    import torch
    from torch import nn

    import peers
    given, wait = numbers(name), peers.waiter(device)
    x, dy = images(given["x"], way, device).requires_grad_(), images(given["dy"], way, device)
    C, norm = given["x"].shape[-1], nn.BatchNorm2d if given["x"].ndim == 4 else nn.BatchNorm1d
    net = {"BatchNorm": lambda: nn.Sequential(norm(C), nn.ReLU(inplace=True)), "MaxPool": lambda: nn.MaxPool2d(2),
           "NormPool": lambda: nn.Sequential(norm(C), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
           }[name.split()[0].rstrip(",")]().to(device)
    parameters = dict(zip(("g", "b"), net.parameters()))
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(torch.tensor(given[key]))

    def graph(_=None):
        for leaf in (x, *parameters.values()):
            leaf.grad = None
        y = net(x)
        wait()
        return y

    def forward(_=None):
        with torch.no_grad():
            y = net(x)
        wait()
        return y

    def backward(y):
        y.backward(dy)
        wait()

    def results():
        y = graph()
        found = {"y": from_images(y)}
        backward(y)
        return {**found, "dx": from_images(x.grad),
                **{"d" + key: parameter.grad.cpu().numpy() for key, parameter in parameters.items()}}
    return Work({"forward": (nothing, forward), "backward": (graph, backward)}, results)


def torch_loss(name, device, _):
    import torch
    from torch.nn import functional as F

    import peers
    wait = peers.waiter(device)
    logits, labels = (torch.tensor(array).to(device) for array in loss_numbers(name))
    logits, labels = logits.requires_grad_(), labels.long()

    def both(_=None):
        logits.grad = None
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        wait()
        return loss
    return Work({"both": (nothing, both)},
                lambda: {"value": both().detach().cpu().numpy(), "dlogits": logits.grad.cpu().numpy()})


WAYS = "channels_last", "contiguous"


def make(contestant, name, device):
    if contestant == "nnlite":
        return (nnlite_loss if name in LOSSES else nnlite_work)(name, device)
    work = torch_conv if name in CONVS else torch_loss if name in LOSSES else torch_other
    return work(name, device, contestant)


if __name__ == "__main__":
    rows.main(__file__, __doc__, ROWS, make, WAYS)
