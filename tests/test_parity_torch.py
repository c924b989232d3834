"""nnlite against PyTorch in float64: the same weights, the same noise, the same loss and every gradient."""

import sys
from pathlib import Path

import numpy as np
import pytest

import nnlite.layers as nl
from nnlite import losses
from nnlite.models import MODELS
from nnlite.models.vae import Batch
from nnlite.optim import Adam
from nnlite.presets import PRESETS

torch = pytest.importorskip("torch")
F = torch.nn.functional
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import peers  # noqa: E402

RELATIVE = 1e-10   # of the largest number of an array


def draw(name, *shape):
    return np.random.default_rng(sum(name.encode())).normal(size=shape)


def assert_same(got, wanted, what=""):
    wanted = wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else wanted
    assert got.shape == wanted.shape, what
    np.testing.assert_allclose(got, wanted, rtol=0, atol=RELATIVE * np.abs(wanted).max(), err_msg=what)


def tensor(ops, array, grad=False):
    return torch.tensor(ops.to_host(array), requires_grad=grad)


# -- the three VAEs ---------------------------------------------------------------------------------------------------

class Masked(torch.nn.Module):
    """Dropout with a mask that is given."""

    mask = None

    def forward(self, x):
        return x * self.mask


class Pair:
    """A preset's model in nnlite and in PyTorch with the same parameters, on a batch of B rows and V triplets."""

    def __init__(self, preset, ops, B=7, V=3):
        p, self.ops = PRESETS[preset], ops
        self.conditional = p["model"] != "vae1"
        options = {name: p[name] for name in ("reconstruction_variance", "samples", "triplet_samples", "keep_prob")}
        self.model = MODELS[p["model"]](p["encoder"], p["decoder"], topological_variance=p["topological_variance"],
                                        **options).build(ops, dtype="float64", seed=5)
        self.model.set_weights(points=1000, batch_size=B, beta=0.4, triplets=500, triplet_batch=V, triplet_beta=0.7)
        self.peer = peers.Vae(p["encoder"], p["decoder"], conditional=self.conditional, **options).double()
        peers.copy_parameters(self.model.parameters, self.peer)
        for net in (self.peer.encoder, self.peer.decoder):
            for i, module in enumerate(net):
                if isinstance(module, torch.nn.Dropout):
                    net[i] = Masked()
        self.B, self.V, self.features = B, V if p["model"] == "vae3" else 0, p["decoder"][-1]

    def batch(self, step):
        D, B, rows = self.features, self.B, self.B + 3 * self.V
        faces, neutral = 0.1 * draw(f"x{step}", rows, D), 0.1 * draw(f"y{step}", rows, D)
        inputs = np.concatenate([faces, neutral], 1) if self.conditional else faces
        return Batch(*(None if a is None else self.ops.asarray(a, "float64") for a in (
            inputs, faces[:B], neutral[:B] if self.conditional else None,
            [1, 3, 5][:self.V] if self.V else None)))

    def terms(self, step):
        """nnlite's terms and gradients, and PyTorch's terms with the graph behind them, at this step's noise."""
        self.model.rng.set_step(step)
        batch = self.batch(step)
        self.model.zero_grad()
        ours = self.model.terms(batch, train=True)
        self.give_noise()
        theirs = self.peer.terms(*(None if a is None else tensor(self.ops, a) for a in batch),
                                 float(self.model.kl_scale), float(self.model.triplet_scale),
                                 noise=lambda like: self.noise.pop(0))
        assert not self.noise
        return [float(value) for value in ours.values()], theirs

    def give_noise(self):
        """eps and dropout masks as nnlite's streams have them."""
        ops, rng, K = self.ops, self.model.rng, self.model.latent_size
        B, L, M = self.B, self.model.samples, self.model.triplet_samples
        self.noise = [tensor(ops, ops.normal((B * L, K), rng.key("sample"), "float64"))]
        if self.V:
            self.noise.append(tensor(ops, ops.normal((3 * self.V * M, K), rng.key("sample_triplets"), "float64")))
        dense = [layer for _, layer in self.model.walk() if isinstance(layer, (nl.Dense, nl.ConditionalDense))]
        masked = [module for module in self.peer.modules() if isinstance(module, Masked)]
        assert len(dense) == len(masked)
        for layer, module in zip(dense, masked):
            rows = B + 3 * self.V if layer.name.startswith("encoder") else B * L
            module.mask = tensor(ops, ops.dropout_mask((rows, layer.out_features), layer.keep_prob,
                                                       rng.key(layer.name), "float64"))

    def compare(self, ours, of_torch):
        """ours: values or grads of the flat array; of_torch(parameter) -> tensor."""
        entries = iter(self.model.parameters.table)
        for module in peers.linears(self.peer):
            for theirs in (of_torch(module.weight).T, of_torch(module.bias)):
                entry = next(entries)
                assert_same(self.ops.to_host(ours(entry)), theirs, entry.name)
        assert next(entries, None) is None


BEST = ["posed-m1-5", "posed-m2-3", "posed-m3-kl-7"]


@pytest.mark.parametrize("preset", BEST)
def test_loss_and_every_gradient(preset, ops):
    pair = Pair(preset, ops)
    ours, theirs = pair.terms(step=11)
    assert len(ours) == len(theirs) == (3 if pair.V else 2)
    for a, b in zip(ours, theirs):
        assert a == pytest.approx(b.item(), rel=RELATIVE)
    sum(theirs).backward()
    pair.compare(pair.model.parameters.grad, lambda p: p.grad)


@pytest.mark.parametrize("preset", BEST)
def test_parameters_after_20_steps_of_adam(preset, ops):
    pair = Pair(preset, ops)
    start = ops.to_host(pair.model.parameters.values).copy()
    ours, theirs = Adam(pair.model.parameters, lr=1e-3), torch.optim.Adam(pair.peer.parameters(), lr=1e-3)
    for step in range(20):
        theirs.zero_grad()
        loss, torch_terms = pair.terms(step)
        sum(torch_terms).backward()
        ours.step()
        theirs.step()
    assert sum(loss) == pytest.approx(sum(torch_terms).item(), rel=RELATIVE)
    pair.compare(pair.model.parameters.value, lambda p: p)
    assert np.abs(ops.to_host(pair.model.parameters.values) - start).max() > 1e-3   # they did move


def test_decoding_from_the_mean(ops):
    """encode and decode, without dropout."""
    pair = Pair("posed-m3-kl-7", ops)
    x, y = 0.1 * draw("x", 4, 249), 0.1 * draw("y", 4, 249)
    for module in pair.peer.modules():
        if isinstance(module, Masked):
            module.mask = 1.0
    mu, log_var = pair.peer.encoder(torch.tensor(np.concatenate([x, y], 1))).chunk(2, 1)
    got = pair.model.encode(x, y)
    assert_same(got[0], mu)
    assert_same(got[1], log_var)
    assert_same(pair.model.decode(got[0], y), pair.peer.decoder(torch.cat([mu, torch.tensor(y)], 1)))


# -- layers -----------------------------------------------------------------------------------------------------------

N, D, K, L = 6, 5, 4, 3


def mask(layer, *shape):
    return tensor(layer.ops, layer.ops.dropout_mask(shape, layer.keep_prob, layer.rng.key(layer.name), "float64"))


def eps(layer, *shape):
    return tensor(layer.ops, layer.ops.normal(shape, layer.rng.key(layer.name), "float64"))


def conditional_dense(layer, z, c, W, b):
    return mask(layer, N * L, K) * F.elu(torch.cat([z, c.repeat_interleave(L, 0)], 1) @ W + b)


def gaussian_sample(layer, h):
    mu, log_var = h.chunk(2, 1)
    return mu.repeat_interleave(L, 0) + (log_var / 2).exp().repeat_interleave(L, 0) * eps(layer, N * L, K)


ONE = [(N, D)]
# name: (layer, input shapes, (layer, inputs, parameters) -> y in PyTorch)
LAYERS = {
    "Linear": (nl.Linear(D, K), ONE, lambda l, x, W, b: F.linear(x, W.T, b)),
    "Linear without bias": (nl.Linear(D, K, bias=False), ONE, lambda l, x, W: F.linear(x, W.T)),
    "Linear on three axes": (nl.Linear(D, K), [(2, 3, D)], lambda l, x, W, b: F.linear(x, W.T, b)),
    "Dense": (nl.Dense(D, K, keep_prob=0.7), ONE, lambda l, x, W, b: mask(l, N, K) * F.elu(F.linear(x, W.T, b))),
    "Dense with GELU": (nl.Dense(D, K, activation="gelu"), ONE, lambda l, x, W, b: F.gelu(F.linear(x, W.T, b))),
    "ConditionalDense": (nl.ConditionalDense(D, 7, K, keep_prob=0.7, condition_gradient=True), [(N * L, D), (N, 7)],
                         conditional_dense),
    "ReLU": (nl.ReLU(), ONE, lambda l, x: F.relu(x)),
    "LeakyReLU": (nl.LeakyReLU(0.2), ONE, lambda l, x: F.leaky_relu(x, 0.2)),
    "ELU": (nl.ELU(), ONE, lambda l, x: F.elu(x)),
    "ELU, alpha 0.5": (nl.ELU(0.5), ONE, lambda l, x: F.elu(x, 0.5)),
    "Sigmoid": (nl.Sigmoid(), ONE, lambda l, x: torch.sigmoid(x)),
    "Tanh": (nl.Tanh(), ONE, lambda l, x: torch.tanh(x)),
    "SiLU": (nl.SiLU(), ONE, lambda l, x: F.silu(x)),
    "Softplus": (nl.Softplus(), ONE, lambda l, x: F.softplus(x, threshold=40)),
    "GELU": (nl.GELU(), ONE, lambda l, x: F.gelu(x)),
    "Dropout": (nl.Dropout(0.6), [(2, 3, D)], lambda l, x: x * mask(l, 2, 3, D)),
    "GaussianSample": (nl.GaussianSample(L), [(N, 2 * K)], gaussian_sample),
    "Sequential": (nl.Sequential(nl.Linear(D, K), nl.Tanh(), nl.Linear(K, 2)), ONE,
                   lambda l, x, W, b, V, c: F.linear(torch.tanh(F.linear(x, W.T, b)), V.T, c)),
    "Residual": (nl.Residual(nl.Sequential(nl.Linear(D, D), nl.SiLU())), ONE,
                 lambda l, x, W, b: x + F.silu(F.linear(x, W.T, b))),
    "Concat": (nl.Concat(nl.Linear(D, K), nl.ELU(), nl.Linear(D, 2, bias=False)), ONE,
               lambda l, x, W, b, V: torch.cat([F.linear(x, W.T, b), F.elu(x), F.linear(x, V.T)], 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, ops):
    layer, shapes, peer = LAYERS[name]
    layer.build(ops, dtype="float64", seed=2)
    parameters = layer.parameters
    ops.copy_into(parameters.values, 0.5 * draw("parameters", parameters.size))
    layer.rng.set_step(4)
    xs = [2 * draw(f"x{i}", *shape) for i, shape in enumerate(shapes)]
    torch_xs = [torch.tensor(x, requires_grad=True) for x in xs]
    torch_parameters = [tensor(ops, parameters.value(entry), grad=True) for entry in parameters.table]

    wanted = peer(layer, *torch_xs, *torch_parameters)
    dy = draw("dy", *wanted.shape)
    wanted.backward(torch.tensor(dy))
    layer.zero_grad()
    y = layer.forward(*(ops.asarray(x) for x in xs), train=True)
    assert_same(ops.to_host(y), wanted, "y")
    dx = layer.backward(ops.asarray(dy))
    for got, x in zip(dx if isinstance(dx, tuple) else (dx,), torch_xs, strict=True):
        assert_same(ops.to_host(got), x.grad, "dx")
    for entry, p in zip(parameters.table, torch_parameters):
        assert_same(ops.to_host(parameters.grad(entry)), p.grad, entry.name)


# -- losses -----------------------------------------------------------------------------------------------------------

def torch_kl(h):
    """From torch.distributions."""
    mu, log_var = h.chunk(2, 1)
    normal = torch.distributions.Normal
    return torch.distributions.kl_divergence(normal(mu, (log_var / 2).exp()), normal(0.0, 1.0)).sum()


def torch_triplets(z, weight, samples):
    r, p, n = z.chunk(3)
    gap = F.pairwise_distance(r, p, eps=0) - F.pairwise_distance(r, n, eps=0)
    return (weight.repeat_interleave(samples) * F.softplus(gap, threshold=40)).sum()


def test_losses(ops):
    f, x, h, z = draw("f", N * L, D), draw("x", N, D), draw("h", N, 2 * K), draw("z", 3 * 2 * 4, K)
    z[9], weight = z[1], np.array([5.0, 3.0])   # a plus face where its reference is
    cases = [
        (losses.squared_error(ops, ops.asarray(f), ops.asarray(x), 0.3), f,
         lambda f: F.mse_loss(f, torch.tensor(x).repeat_interleave(L, 0), reduction="sum")),
        (losses.gaussian_kl(ops, ops.asarray(h), 0.3), h, torch_kl),
        (losses.triplet_softplus(ops, ops.asarray(z), ops.asarray(weight), 0.3), z,
         lambda z: torch_triplets(z, torch.tensor(weight), 4)),
    ]
    for (value, gradient), start, peer in cases:
        start = torch.tensor(start, requires_grad=True)
        wanted = 0.3 * peer(start)
        wanted.backward()
        assert float(value) == pytest.approx(wanted.item(), rel=RELATIVE)
        assert_same(ops.to_host(gradient), start.grad)
