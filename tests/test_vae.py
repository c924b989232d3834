"""The three VAEs: the gradient of the whole loss, the loss against its formula, sizes, the shared condition."""

import math

import numpy as np
import pytest

from nnlite.errors import NnliteError
from nnlite.gradcheck import Draws, check_model
from nnlite.models import vae1, vae2, vae3
from nnlite.models.vae import Batch
from nnlite.ops import get_ops

D, K, B, V, L, M = 6, 3, 4, 2, 3, 2
VAES = {"vae1": vae1, "vae2": vae2, "vae3": vae3}
OPTIONS = dict(reconstruction_variance=0.5, topological_variance=0.7, samples=L, triplet_samples=M)
SIZES = {"vae1": ([D, 5, K], [K, 5, D]), "vae2": ([2 * D, 7, 5, K], [K + D, 5, 4, D]),
         "vae3": ([2 * D, 7, 5, K], [K + D, 5, 4, D])}


def small(name, ops, dtype="float64", **changes):
    encoder, decoder = SIZES[name]
    model = VAES[name](encoder, decoder, **{**OPTIONS, **changes}).build(ops, dtype=dtype, seed=5)
    model.set_weights(points=40, batch_size=B, beta=0.6, triplets=30 if name == "vae3" else 0, triplet_batch=V,
                      triplet_beta=0.8)
    return model


def small_batch(name, ops, dtype="float64"):
    draws = Draws(4)
    rows = B + 3 * V if name == "vae3" else B
    x, y = draws.normal("x", (rows, D)), draws.normal("y", (rows, D))
    inputs = x if name == "vae1" else np.concatenate([x, y], 1)
    asarray = lambda array: ops.asarray(np.ascontiguousarray(array), dtype)    # noqa: E731
    return Batch(asarray(inputs), asarray(x[:B]), None if name == "vae1" else asarray(y[:B]),
                 asarray([5.0, 1.0]) if name == "vae3" else None)


@pytest.mark.parametrize("name", VAES)
def test_gradient_of_the_whole_loss(name, ops):
    model, batch = small(name, ops), small_batch(name, ops)
    report = check_model(model, lambda: sum(float(term) for term in model.terms(batch, train=True).values()))
    assert report.ok, str(report)
    assert len(report.findings) == len(model.parameters.table) and all(f.error < 1e-5 for f in report.findings)


def test_the_check_sees_a_wrong_weight_of_one_term():
    """The reported KL is multiplied by beta; a gradient that is not would train another model."""
    ops = get_ops("reference")
    model, batch = small("vae3", ops), small_batch("vae3", ops)

    def loss():
        terms = model.terms(batch, train=True)
        return sum(float(value) for value in terms.values()) + 0.01 * float(terms["kl"])

    report = check_model(model, loss)
    assert not report["encoder.2.W"].ok and report["decoder.1.W"].ok


# -- the loss as MODELS.md writes it ----------------------------------------------------------------------------------

def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def naive_terms(model, batch):
    """The three terms in evaluation (no dropout), sample by sample, [z, y] repeated in full."""
    layers = {name: layer for name, layer in model.walk()}
    inputs = np.asarray(batch.inputs)

    def encode(row):
        for i in range(len(model.encoder.layers) - 1):
            row = elu(row @ layers[f"encoder.{i}"].W + layers[f"encoder.{i}"].b)
        last = layers[f"encoder.{len(model.encoder.layers) - 1}"]
        h = row @ last.W + last.b
        return h[:K], h[K:]

    def decode(z, y):
        h = z if y is None else np.concatenate([z, y])
        h = elu(h @ model.first.W + model.first.b)
        for i in range(len(model.decoder.layers) - 1):
            h = elu(h @ layers[f"decoder.{i}"].W + layers[f"decoder.{i}"].b)
        last = layers[f"decoder.{len(model.decoder.layers) - 1}"]
        return h @ last.W + last.b

    ops = model.ops
    eps = ops.normal((B * L, K), model.rng.key("sample"), "float64").reshape(B, L, K)
    reconstruction = kl = triplets = 0.0
    for i in range(B):
        mu, log_var = encode(inputs[i])
        kl += -0.5 * (1 + log_var - mu ** 2 - np.exp(log_var)).sum()
        for l in range(L):
            f = decode(mu + np.exp(log_var / 2) * eps[i, l], None if batch.y is None else batch.y[i])
            reconstruction += ((batch.x[i] - f) ** 2).sum() / (2 * model.reconstruction_variance * L)
    terms = {"reconstruction": reconstruction / B, "kl": 0.6 * kl / B}
    if batch.weight is not None:
        eps = ops.normal((3 * V * M, K), model.rng.key("sample_triplets"), "float64").reshape(3, V, M, K)
        for t in range(V):
            for m in range(M):
                z = []
                for role in range(3):
                    mu, log_var = encode(inputs[B + role * V + t])
                    z.append(mu + np.exp(log_var / 2) * eps[role, t, m])
                gap = math.dist(z[0], z[1]) - math.dist(z[0], z[2])
                triplets += batch.weight[t] / (model.topological_variance * M) * math.log(1 + math.exp(gap))
        terms["triplets"] = 0.8 * 30 / V * triplets / 40
    return terms


@pytest.mark.parametrize("name", VAES)
def test_the_loss_is_the_formula(name):
    ops = get_ops("reference")
    model, batch = small(name, ops), small_batch(name, ops)
    found, wanted = model.terms(batch, train=False), naive_terms(model, batch)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert float(found[key]) == pytest.approx(value, rel=1e-12), key


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("dtype, rel", [("float64", 1e-11), ("float32", 2e-5)])
def test_every_ops_the_same(name, dtype, rel, fast_ops):
    """Loss and every gradient, dropout and samples included."""
    found = []
    for ops in (get_ops("reference"), fast_ops):
        model = small(name, ops, dtype)
        ops.copy_into(model.parameters.values, 0.3 * Draws(2).normal("p", (model.parameters.size,)))
        terms = model.terms(small_batch(name, ops, dtype), train=True)
        found.append(([float(term) for term in terms.values()], np.array(ops.to_host(model.parameters.grads))))
    (slow_terms, slow_grads), (fast_terms, fast_grads) = found
    np.testing.assert_allclose(fast_terms, slow_terms, rtol=rel)
    np.testing.assert_allclose(fast_grads, slow_grads, rtol=rel, atol=rel * np.abs(slow_grads).max())


@pytest.mark.parametrize("keep_prob", [1.0, 0.9])
def test_the_condition_computed_once_a_row_equals_it_repeated(keep_prob, ops):
    """The decoder's first layer on z (B L, K) and y (B, D), against [z, y] with y repeated L times."""
    model, batch = small("vae3", ops, keep_prob=keep_prob), small_batch("vae3", ops)
    z, dh = Draws(6).normal("z", (B * L, K)), Draws(6).normal("dh", (B * L, 5))
    b = Draws(6).normal("b", (5,))
    ops.copy_into(model.first.b, b)
    W, y = np.array(ops.to_host(model.first.W)), np.array(ops.to_host(batch.y))
    h = np.array(ops.to_host(model.first.forward(ops.asarray(z), batch.y, train=True)))
    model.zero_grad()
    dz = np.array(ops.to_host(model.first.backward(ops.asarray(dh))))

    both = np.concatenate([z, np.repeat(y, L, 0)], 1)                     # (B L, K + D)
    a = both @ W + b
    mask = np.ones_like(a)
    if keep_prob < 1:
        reference = get_ops("reference")
        mask = reference.dropout_mask(a.shape, keep_prob, small("vae3", reference).rng.key("first"), "float64")
        assert (mask == 0).any()
    da = dh * mask * np.where(a > 0, 1, np.exp(np.minimum(a, 0)))
    np.testing.assert_allclose(h, mask * elu(a), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dz, (da @ W.T)[:, :K], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ops.to_host(model.first.dW), both.T @ da, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ops.to_host(model.first.db), da.sum(0), rtol=1e-12, atol=1e-13)


# -- sizes ------------------------------------------------------------------------------------------------------------

A, A_DECODER = [498, 240, 120, 60, 30], [279, 300, 400, 300, 249]
B7 = [498, 480, 240, 120, 60, 30]


@pytest.mark.parametrize("encoder, count", [(B7, 794_449), (A, 559_249)])
def test_parameter_counts(encoder, count):
    model = vae3(encoder, A_DECODER, reconstruction_variance=1e-3, topological_variance=0.04)
    model.build(get_ops("reference"))
    assert model.parameters.size == count == sum(
        math.prod(array.shape) for _, layer in model.walk() for array in layer.params.values())


@pytest.mark.parametrize("make, encoder, decoder, words", [
    (vae1, [6, 5, 3], [3, 5, 7], "encoder: expected .7, hidden sizes, K. for faces of 7 numbers"),
    (vae2, [6, 5, 3], [9, 5, 6], "encoder: expected .12, "),
    (vae3, [12, 5, 3], [3, 5, 6], "decoder: expected .9, hidden sizes, 6. for 3 latent dimensions"),
    (vae1, [6, 3], [3, 5, 6], "encoder: expected"),
    (vae1, [6, 5, 3], [3, 6], "decoder: expected"),
])
def test_sizes_that_do_not_fit(make, encoder, decoder, words):
    with pytest.raises(NnliteError, match=words):
        make(encoder, decoder, reconstruction_variance=1e-3)


def test_elbo_constant():
    """The ELBO of a reconstruction without error and with q = p is the density at the mean."""
    model = small("vae1", get_ops("reference"))
    assert model.elbo_constant() == pytest.approx(D * math.log(1 / math.sqrt(2 * math.pi * 0.5)), rel=1e-12)


@pytest.mark.parametrize("name", VAES)
def test_encode_and_decode(name, ops):
    model, batch = small(name, ops), small_batch(name, ops)
    y = None if batch.y is None else ops.to_host(batch.y)
    mu, log_var = model.encode(ops.to_host(batch.x), y)
    h = np.array(ops.to_host(model.encoder.forward(batch.inputs)))[:B]
    np.testing.assert_allclose(np.concatenate([mu, log_var], 1), h, rtol=1e-12)
    assert model.decode(mu, y).shape == (B, D) and isinstance(model.decode(mu, y), np.ndarray)
