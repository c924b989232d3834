"""Image layers, batch norm and the classification loss against PyTorch in float64: y, gradients, running statistics.

nnlite's images are channels last (N, H, W, C), its kernels (kh, kw, C, K); PyTorch's (N, C, H, W) and (K, C, kh, kw).
"""

import numpy as np
import pytest

import nnlite.layers as nl
from nnlite import losses

torch = pytest.importorskip("torch")
from test_parity_torch import LAYERS as OTHER_LAYERS  # noqa: E402
from test_parity_torch import RELATIVE, assert_same, draw, tensor  # noqa: E402

F = torch.nn.functional
N, H, W, C, K = 3, 7, 9, 4, 6


def first(x):
    """Channels first."""
    return x.permute(0, 3, 1, 2)


def last(x):
    return x.permute(0, 2, 3, 1)


def conv(layer, x, W, b=None):
    y = last(F.conv2d(first(x), W.permute(3, 2, 0, 1), b, layer.stride, layer.padding, layer.dilation, layer.groups))
    return F.relu(y) if layer.relu else y


def depthwise(layer, x, W, b=None):
    return last(F.conv2d(first(x), W.permute(2, 0, 1)[:, None], b, layer.stride, layer.padding, layer.dilation,
                         layer.channels))


def max_pool(layer, x):
    return last(F.max_pool2d(first(x), layer.kernel, layer.stride, layer.padding))


def avg_pool(layer, x):
    return last(F.avg_pool2d(first(x), layer.kernel, layer.stride))


class Norm:
    """PyTorch's batch norm of rows or images with its own running statistics; then what comes after it."""

    def __init__(self, after=lambda y: y):
        self.after = after

    def __call__(self, layer, x, g, b):
        self.mean, self.var = torch.zeros(layer.channels).double(), torch.ones(layer.channels).double()
        shifted = x.movedim(-1, 1)
        y = F.batch_norm(shifted, self.mean, self.var, g, b, True, layer.momentum, layer.eps)
        return self.after(y.movedim(1, -1))

    def evaluate(self, layer, x, g, b):
        y = F.batch_norm(x.movedim(-1, 1), self.mean, self.var, g, b, False, 0.0, layer.eps)
        return self.after(y.movedim(1, -1))


def relu_and_pool(y):
    return last(F.max_pool2d(F.relu(first(y)), 2))


def norm(x, g, b, eps=1e-5):
    """Batch norm in training."""
    return F.batch_norm(x.movedim(-1, 1), None, None, g, b, True, 0.0, eps).movedim(1, -1)


def plain_conv(x, W, stride=1, groups=1):
    """Without bias, padded so that a stride of 1 keeps the size; W (kh, kw, C / groups, K)."""
    return last(F.conv2d(first(x), W.permute(3, 2, 0, 1), None, stride, W.shape[0] // 2, 1, groups))


def squeeze_excite(layer, x, W1, b1, W2, b2):
    s = torch.sigmoid(F.silu(x.mean((1, 2)) @ W1 + b1) @ W2 + b2)
    return x * s[:, None, None]


def mbconv(layer, x, W1, g1, b1, W2, g2, b2, Wr, br, We, be, W3, g3, b3):
    stride = layer.branch.layers[2].stride[0]
    h = F.silu(norm(plain_conv(x, W1), g1, b1, 1e-3))
    h = F.silu(norm(plain_conv(h, W2[:, :, None], stride, h.shape[-1]), g2, b2, 1e-3))
    f = norm(plain_conv(squeeze_excite(None, h, Wr, br, We, be), W3), g3, b3, 1e-3)
    return x + f if f.shape == x.shape else f


def fused_mbconv(layer, x, W1, g1, b1, W2=None, g2=None, b2=None):
    f = F.silu(norm(plain_conv(x, W1, layer.branch.layers[0].stride[0]), g1, b1, 1e-3))
    f = f if W2 is None else norm(plain_conv(f, W2), g2, b2, 1e-3)
    return x + f if f.shape == x.shape else f


def bottleneck(layer, x, W1, g1, b1, W2, g2, b2, W3, g3, b3, Ws=None, gs=None, bs=None):
    stride = layer.branch.layers[2].stride[0]
    h = F.relu(norm(plain_conv(x, W1), g1, b1))
    h = F.relu(norm(plain_conv(h, W2, stride), g2, b2))
    return F.relu(norm(plain_conv(h, W3), g3, b3) + (x if Ws is None else norm(plain_conv(x, Ws, stride), gs, bs)))


def attention(layer, x, W, b, Wo, bo):
    q, k, v = (x @ W + b).reshape(*x.shape[:2], 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape) @ Wo + bo


def block(layer, x, g1, b1, W, b, Wo, bo, g2, b2, W1, c1, W2, c2):
    width = x.shape[-1:]
    x = x + attention(layer.attention, F.layer_norm(x, width, g1, b1, layer.norm1.eps), W, b, Wo, bo)
    return x + F.gelu(F.layer_norm(x, width, g2, b2, layer.norm2.eps) @ W1 + c1) @ W2 + c2


def patch_embed(layer, x, W, b):
    p = layer.size
    kernel = W.reshape(p, p, -1, W.shape[1]).permute(3, 2, 0, 1)
    return F.conv2d(first(x), kernel, b, p).flatten(2).transpose(1, 2)


def class_token(layer, x, c):
    return torch.cat([c.expand(len(x), 1, -1), x], 1)


IMAGE, ROWS, TOKENS = (N, H, W, C), (8, C), (N, 5, 2 * C)
# name: (layer, input shape, (layer, x, *parameters) -> y in PyTorch)
LAYERS = {
    "Conv2d": (nl.Conv2d(C, K, 3, padding=1), IMAGE, conv),
    "Conv2d without padding and bias": (nl.Conv2d(C, K, 3, bias=False), IMAGE, conv),
    "Conv2d 1x1": (nl.Conv2d(C, K, 1), IMAGE, conv),
    "Conv2d 5x5": (nl.Conv2d(C, K, 5, padding=1), IMAGE, conv),
    "Conv2d 7x7 with stride": (nl.Conv2d(C, K, 7, stride=2, padding=3), IMAGE, conv),
    "Conv2d, rows and columns unlike": (nl.Conv2d(C, K, (3, 2), stride=(1, 3), padding=(2, 0)), IMAGE, conv),
    "Conv2d with gaps between windows": (nl.Conv2d(C, K, 2, stride=3), IMAGE, conv),
    "Conv2d with dilation": (nl.Conv2d(C, K, 3, padding=2, dilation=2), IMAGE, conv),
    "Conv2d in groups": (nl.Conv2d(C, K, 3, padding=1, groups=2, relu=True), IMAGE, conv),
    "Conv2d with ReLU": (nl.Conv2d(C, K, 3, padding=1, relu=True), IMAGE, conv),
    "Conv2d, kernel beyond the image": (nl.Conv2d(C, K, 5, padding=2), (2, 2, 1, C), conv),
    "DepthwiseConv2d": (nl.DepthwiseConv2d(C, 3, padding=1), IMAGE, depthwise),
    "DepthwiseConv2d with stride": (nl.DepthwiseConv2d(C, 5, stride=2, padding=2, bias=False), IMAGE, depthwise),
    "DepthwiseConv2d with dilation": (nl.DepthwiseConv2d(C, 3, dilation=(3, 2)), IMAGE, depthwise),
    "MaxPool2d": (nl.MaxPool2d(2), IMAGE, max_pool),
    "MaxPool2d with overlap": (nl.MaxPool2d(3, stride=2, padding=1), IMAGE, max_pool),
    "AvgPool2d": (nl.AvgPool2d(2), IMAGE, avg_pool),
    "AvgPool2d with overlap": (nl.AvgPool2d(3, stride=(1, 2)), IMAGE, avg_pool),
    "GlobalAvgPool": (nl.GlobalAvgPool(), IMAGE, lambda l, x: F.adaptive_avg_pool2d(first(x), 1).flatten(1)),
    "Flatten": (nl.Flatten(), IMAGE, lambda l, x: x.flatten(1)),
    "BatchNorm": (nl.BatchNorm(C), ROWS, Norm()),
    "BatchNorm of images": (nl.BatchNorm(C, eps=1e-3, momentum=0.3), IMAGE, Norm()),
    "BatchNorm with ReLU": (nl.BatchNorm(C, activation="relu"), IMAGE, Norm(F.relu)),
    "BatchNorm with SiLU": (nl.BatchNorm(C, activation="silu"), IMAGE, Norm(F.silu)),
    "NormPool": (nl.NormPool(C), IMAGE, Norm(relu_and_pool)),
    "LayerNorm": (nl.LayerNorm(2 * C, eps=1e-3), TOKENS, lambda l, x, g, b: F.layer_norm(x, (2 * C,), g, b, 1e-3)),
    "SqueezeExcite": (nl.SqueezeExcite(C, 3), IMAGE, squeeze_excite),
    "MBConv": (nl.MBConv(C, C, expansion=3), IMAGE, mbconv),
    "MBConv with stride": (nl.MBConv(C, K, expansion=2, stride=2), IMAGE, mbconv),
    "FusedMBConv": (nl.FusedMBConv(C, C, expansion=3), IMAGE, fused_mbconv),
    "FusedMBConv without expansion": (nl.FusedMBConv(C, K, expansion=1, stride=2), IMAGE, fused_mbconv),
    "Bottleneck": (nl.Bottleneck(C, 3, C), IMAGE, bottleneck),
    "Bottleneck with stride": (nl.Bottleneck(C, 3, K, stride=2), IMAGE, bottleneck),
    "MultiHeadAttention": (nl.MultiHeadAttention(2 * C, 2), TOKENS, attention),
    "FeedForward": (nl.FeedForward(2 * C, 7), TOKENS, lambda l, x, W1, b1, W2, b2: F.gelu(x @ W1 + b1) @ W2 + b2),
    "Block": (nl.Block(2 * C, 4, 7), TOKENS, block),
    "PatchEmbed": (nl.PatchEmbed(C, K, 3), (N, 6, 9, C), patch_embed),
    "ClassToken": (nl.ClassToken(2 * C), TOKENS, class_token),
    "PositionEmbedding": (nl.PositionEmbedding(5, 2 * C), TOKENS, lambda l, x, P: x + P),
    "TakeToken": (nl.TakeToken(2), TOKENS, lambda l, x: x[:, 2]),
    "Recompute": (nl.Recompute(nl.Linear(2 * C, K)), TOKENS, lambda l, x, W, b: x @ W + b),
    "NormPool of even sizes": (nl.NormPool(C, eps=1e-3, momentum=0.2), (2, 4, 6, C), Norm(relu_and_pool)),
}


def test_every_layer_is_compared():
    compared = {type(layer).__name__ for layer, *_ in (*LAYERS.values(), *OTHER_LAYERS.values())}
    assert compared == set(nl.__all__) - {"Layer", "StochasticDepth"}


def test_stochastic_depth(ops):
    """Against its mask: which samples stay is what PyTorch would draw otherwise."""
    layer = nl.StochasticDepth(0.7).build(ops, dtype="float64", seed=2)
    x, dy = draw("x", 40, 3, C), draw("dy", 40, 3, C)
    y = ops.to_host(layer.forward(ops.asarray(x), train=True))
    kept = (y != 0).all((1, 2))
    assert 20 <= kept.sum() <= 36
    mask = torch.tensor(kept).double()[:, None, None] / 0.7
    assert_same(y, torch.tensor(x) * mask, "y")
    assert_same(ops.to_host(layer.backward(ops.asarray(dy))), torch.tensor(dy) * mask, "dx")


def statistics(layer):
    return layer.running_mean, layer.running_var


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, ops):
    layer, shape, peer = LAYERS[name]
    layer.build(ops, dtype="float64", seed=2)
    parameters = layer.parameters
    ops.copy_into(parameters.values, 0.5 * draw("parameters", parameters.size))
    x = torch.tensor(2 * draw("x", *shape), requires_grad=True)
    torch_parameters = [tensor(ops, parameters.value(entry), grad=True) for entry in parameters.table]

    wanted = peer(layer, x, *torch_parameters)
    dy = draw("dy", *wanted.shape)
    wanted.backward(torch.tensor(dy))
    layer.zero_grad()
    host_x = x.detach().numpy()
    y = layer.forward(ops.asarray(host_x), train=True)
    assert_same(ops.to_host(y), wanted, "y")
    assert_same(ops.to_host(layer.backward(ops.asarray(dy))), x.grad, "dx")
    for entry, p in zip(parameters.table, torch_parameters):
        assert_same(ops.to_host(parameters.grad(entry)), p.grad, entry.name)
    if isinstance(peer, Norm):
        for got, value in zip(statistics(layer), (peer.mean, peer.var)):
            assert_same(ops.to_host(got), value, "running")
        evaluated = layer.forward(ops.asarray(0.5 * host_x))
        assert_same(ops.to_host(evaluated), peer.evaluate(layer, torch.tensor(0.5 * host_x), *torch_parameters))


# -- nets -------------------------------------------------------------------------------------------------------------

def ours():
    """Three blocks of convolution, batch norm, ReLU and pooling, each written in another way, and two dense layers."""
    return nl.Sequential(
        nl.Conv2d(1, 8, 3, padding=1), nl.NormPool(8),
        nl.Conv2d(8, 6, 5, padding=1, relu=True), nl.MaxPool2d(2),
        nl.Conv2d(6, 10, 3, padding=1), nl.BatchNorm(10, activation="relu"), nl.MaxPool2d(3, stride=2, padding=1),
        nl.Flatten(), nl.Linear(2 * 2 * 10, 12), nl.BatchNorm(12), nl.ReLU(), nl.Linear(12, 7))


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        t = torch.nn
        self.images = t.Sequential(
            t.Conv2d(1, 8, 3, padding=1), t.BatchNorm2d(8), t.ReLU(), t.MaxPool2d(2),
            t.Conv2d(8, 6, 5, padding=1), t.ReLU(), t.MaxPool2d(2),
            t.Conv2d(6, 10, 3, padding=1), t.BatchNorm2d(10), t.ReLU(), t.MaxPool2d(3, 2, 1))
        self.rows = t.Sequential(t.Linear(2 * 2 * 10, 12), t.BatchNorm1d(12), t.ReLU(), t.Linear(12, 7))
        self.double()

    def forward(self, x):
        return self.rows(last(self.images(first(x))).flatten(1))

    def parameters_of(self):
        """(parameter, its array in nnlite's order of axes) in the order of nnlite's table."""
        for module in (*self.images, *self.rows):
            if isinstance(module, torch.nn.Conv2d):
                yield module.weight, lambda p: p.permute(2, 3, 1, 0)
            elif isinstance(module, torch.nn.Linear):
                yield module.weight, lambda p: p.T
            elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                yield module.weight, lambda p: p
            else:
                continue
            yield module.bias, lambda p: p

    def statistics(self):
        for module in self.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                yield from (module.running_mean, module.running_var)


def test_a_net_over_several_steps_of_descent(ops):
    """20 x 18 pixels; three steps of plain gradient descent, then evaluation with the running statistics."""
    net, peer = ours().build(ops, dtype="float64", seed=3), Theirs()
    entries = list(net.parameters.table)
    for entry, (parameter, turn) in zip(entries, peer.parameters_of(), strict=True):
        value = net.parameters.value(entry)
        if len(value.shape) == 1:      # away from 0 and 1
            ops.copy_into(value, ops.to_host(value) + 0.3 * draw(entry.name, *value.shape))
        with torch.no_grad():
            turn(parameter).copy_(tensor(ops, value))
    labels = np.random.default_rng(1).integers(0, 7, 5).astype("int32")
    for step in range(3):
        x = draw(f"x{step}", 5, 20, 18, 1)
        wanted = F.cross_entropy(peer(torch.tensor(x)), torch.tensor(labels).long())
        peer.zero_grad()
        wanted.backward()
        net.zero_grad()
        logits = net.forward(ops.asarray(x), train=True)
        value, dlogits = losses.softmax_cross_entropy(ops, logits, ops.asarray(labels))
        net.backward(dlogits)
        assert float(value) == pytest.approx(wanted.item(), rel=RELATIVE)
        for entry, (parameter, turn) in zip(entries, peer.parameters_of()):
            grad = ops.to_host(net.parameters.grad(entry))
            # A bias before batch norm has no gradient but rounding.
            np.testing.assert_allclose(grad, turn(parameter.grad).numpy(), rtol=0, err_msg=entry.name,
                                       atol=RELATIVE * max(np.abs(grad).max(), 1e-4))
            new = ops.to_host(net.parameters.value(entry)) - 0.1 * grad
            ops.copy_into(net.parameters.value(entry), new)
            with torch.no_grad():
                parameter -= 0.1 * parameter.grad
    for got, wanted in zip(net.state.values(), peer.statistics(), strict=True):
        np.testing.assert_allclose(ops.to_host(got), wanted.numpy(), rtol=1e-9, atol=1e-10)
    x = draw("evaluation", 5, 20, 18, 1)
    np.testing.assert_allclose(ops.to_host(net.forward(ops.asarray(x))), peer.eval()(torch.tensor(x)).detach().numpy(),
                               rtol=0, atol=1e-9)


# -- the loss ---------------------------------------------------------------------------------------------------------

def distillation(z, labels, soft, alpha):
    """alpha CE + (1 - alpha) KL(soft || p)."""
    kl = F.kl_div(F.log_softmax(z, 1), soft, reduction="batchmean")
    return alpha * F.cross_entropy(z, labels) + (1 - alpha) * kl


def weighted_smoothing(z, labels, weight, smoothing):
    """A row's weight is that of its label, for all of its target; PyTorch's own weighs each class of the target."""
    target = (1 - smoothing) * F.one_hot(labels, z.shape[1]).double() + smoothing / z.shape[1]
    w = weight[labels]
    return (w * -(target * F.log_softmax(z, 1)).sum(1)).sum() / w.sum()


# name: (options of ours, (z, labels, weight, soft) -> loss in PyTorch)
LOSSES = {
    "plain": (lambda w, q: {}, lambda z, t, w, q: F.cross_entropy(z, t)),
    "class weights": (lambda w, q: dict(class_weight=w), lambda z, t, w, q: F.cross_entropy(z, t, w)),
    "smoothing": (lambda w, q: dict(smoothing=0.1), lambda z, t, w, q: F.cross_entropy(z, t, label_smoothing=0.1)),
    "smoothing and class weights": (lambda w, q: dict(class_weight=w, smoothing=0.2),
                                    lambda z, t, w, q: weighted_smoothing(z, t, w, 0.2)),
    "equal class weights change nothing": (lambda w, q: dict(class_weight=w * 0 + 3, smoothing=0.2),
                                           lambda z, t, w, q: F.cross_entropy(z, t, w * 0 + 3, label_smoothing=0.2)),
    "soft targets": (lambda w, q: dict(soft=q, alpha=0.0),
                     lambda z, t, w, q: F.cross_entropy(z, q) + (q * torch.log(q)).sum(1).mean()),
    "distillation": (lambda w, q: dict(soft=q, alpha=0.7), lambda z, t, w, q: distillation(z, t, q, 0.7)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows, classes, scale", [(6, 5, 2.0), (1, 7, 2.0), (4, 1, 2.0), (3, 1000, 2.0), (8, 4, 1e4)])
def test_softmax_cross_entropy(name, rows, classes, scale, ops):
    options, peer = LOSSES[name]
    rng = np.random.default_rng([rows, classes])
    z, labels = scale * draw("logits", rows, classes), rng.integers(0, classes, rows).astype("int32")
    weight, soft = rng.uniform(0.2, 3, classes), rng.uniform(0.1, 1, (rows, classes))
    soft /= soft.sum(1, keepdims=True)
    value, dlogits = losses.softmax_cross_entropy(ops, ops.asarray(z), ops.asarray(labels),
                                                  **options(ops.asarray(weight), ops.asarray(soft)))
    torch_z = torch.tensor(z, requires_grad=True)
    wanted = peer(torch_z, torch.tensor(labels).long(), torch.tensor(weight), torch.tensor(soft))
    wanted.backward()
    assert float(value) == pytest.approx(wanted.item(), rel=RELATIVE, abs=1e-13)
    np.testing.assert_allclose(ops.to_host(dlogits), torch_z.grad.numpy(), rtol=0, atol=RELATIVE / rows)
