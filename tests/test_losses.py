"""Losses against naive loops, closed forms and numerical integration; their gradients against central differences."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnlite import losses
from nnlite.errors import NnliteError
from nnlite.gradcheck import Draws, check_loss
from nnlite.ops import get_ops

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
REL = {"float32": 2e-6, "float64": 1e-13}


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


# -- naive references: loops over numbers ------------------------------------------------------------------------------

def naive_squared_error(f, x, scale):
    total, gradient, L = 0.0, np.zeros(f.shape), len(f) // len(x)
    for row in range(len(f)):
        for j in range(f.shape[1]):
            error = float(f[row, j]) - float(x[row // L, j])
            total += error ** 2
            gradient[row, j] = 2 * scale * error
    return scale * total, gradient


def naive_kl(h, scale):
    N, K = h.shape[0], h.shape[1] // 2
    total, gradient = 0.0, np.zeros(h.shape)
    for n in range(N):
        for k in range(K):
            mu, log_var = float(h[n, k]), float(h[n, K + k])
            total += -0.5 * (1 + log_var - mu ** 2 - math.exp(log_var))
            gradient[n, k], gradient[n, K + k] = scale * mu, scale * (math.exp(log_var) - 1) / 2
    return scale * total, gradient


def naive_triplets(z, weight, scale):
    V = len(weight)
    M = len(z) // (3 * V)
    r, p, n = np.split(z.astype("float64"), 3)
    total, gradient = 0.0, np.zeros(z.shape)
    for t in range(V):
        for m in range(M):
            i = t * M + m
            a, b = math.dist(r[i], p[i]), math.dist(r[i], n[i])
            total += float(weight[t]) * math.log(1 + math.exp(a - b))
            g = scale * float(weight[t]) / (1 + math.exp(b - a))
            gradient[i] += g * ((r[i] - p[i]) / a - (r[i] - n[i]) / b)
            gradient[V * M + i] -= g * (r[i] - p[i]) / a
            gradient[2 * V * M + i] += g * (r[i] - n[i]) / b
    return scale * total, gradient


CASES = {
    "squared_error": (losses.squared_error, naive_squared_error, [(6, 5), (2, 5)]),
    "squared_error, one sample": (losses.squared_error, naive_squared_error, [(3, 4), (3, 4)]),
    "gaussian_kl": (losses.gaussian_kl, naive_kl, [(4, 6)]),
    "triplet_softplus": (losses.triplet_softplus, naive_triplets, [(24, 3), (4,)]),
    "triplet_softplus, one sample": (losses.triplet_softplus, naive_triplets, [(3, 2), (1,)]),
    "squared_error, large": (losses.squared_error, naive_squared_error, [(90, 101), (30, 101)]),
    "gaussian_kl, large": (losses.gaussian_kl, naive_kl, [(75, 122)]),
    "triplet_softplus, large": (losses.triplet_softplus, naive_triplets, [(450, 30), (15,)]),
}


def inputs(case):
    arrays = [random(*shape, seed=i) for i, shape in enumerate(CASES[case][2])]
    if case.startswith("triplet"):
        arrays[1] = np.resize([5.0, 3.0, 1.0], len(arrays[1]))
    return arrays


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [1, 0.37, -2.5])
@both_dtypes
def test_against_loops(case, scale, dtype, ops):
    loss, naive, _ = CASES[case]
    host = [array.astype(dtype) for array in inputs(case)]
    arrays = [ops.asarray(array) for array in host]
    value, gradient = loss(ops, *arrays, scale)
    expected_value, expected_gradient = naive(*host, scale)
    assert float(value) == pytest.approx(expected_value, rel=REL[dtype])
    assert gradient.dtype == dtype and gradient.shape == arrays[0].shape
    np.testing.assert_allclose(ops.to_host(gradient), expected_gradient, rtol=10 * REL[dtype],
                               atol=10 * REL[dtype] * np.abs(expected_gradient).max())
    for array, before in zip(arrays, host):
        np.testing.assert_array_equal(ops.to_host(array), before)


@pytest.mark.parametrize("case", CASES)
def test_the_value_is_a_float64_number(case, ops):
    value, _ = CASES[case][0](ops, *[ops.asarray(array, "float32") for array in inputs(case)], 1.0)
    assert np.ndim(value) == 0 and np.asarray(ops.to_host(value)).dtype == "float64"


@pytest.mark.parametrize("case", [case for case in CASES if "large" not in case])
def test_gradients(case, ops):
    loss = CASES[case][0]
    x, *rest = inputs(case)
    rest = [ops.asarray(array) for array in rest]
    report = check_loss(lambda a: loss(ops, a, *rest, 0.7), x, ops=ops, title=case)
    assert report.ok, str(report)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_gradients_for_any_shape(N, L, D, seed):
    for ops in (get_ops("reference"), get_ops("cpu")):
        x = ops.asarray(Draws(seed).normal("x", (N, D)))
        weight = ops.asarray(np.resize([5.0, 3.0, 1.0], N))
        for function, shape in ((lambda f: losses.squared_error(ops, f, x, 0.3), (N * L, D)),
                                (lambda h: losses.gaussian_kl(ops, h, 0.3), (N, 2 * D)),
                                (lambda z: losses.triplet_softplus(ops, z, weight, 0.3), (3 * N * L, D))):
            report = check_loss(function, shape, seed=seed, ops=ops)
            # In one dimension both distances have slope +-1, and where they cancel the gradient is zero for good.
            assert report.ok or (D == 1 and "zero everywhere" in str(report)), str(report)


@pytest.mark.parametrize("case", CASES)
@both_dtypes
def test_scale_as_number_and_as_scalar_of_the_ops(case, dtype, ops):
    arrays = [ops.asarray(array, dtype) for array in inputs(case)]
    scale = ops.scalar(9, "float64")
    ops.set_scalar(scale, 0.25)    # a power of two: no rounding tells the two apart
    value, gradient = CASES[case][0](ops, *arrays, 0.25)
    value, gradient = float(value), np.array(ops.to_host(gradient))
    value2, gradient2 = CASES[case][0](ops, *arrays, scale)
    assert float(value2) == value
    np.testing.assert_array_equal(ops.to_host(gradient2), gradient)
    assert gradient2.dtype == dtype


# -- KL ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mu, log_var", [(0.0, 0.0), (1.5, 0.0), (0.0, -2.0), (-0.7, 1.3), (3.0, -4.0)])
def test_kl_is_the_integral(mu, log_var, ops):
    """KL = integral of q ln(q / p), by the trapezoid rule, which is exact to rounding for such an integrand."""
    sigma = math.exp(log_var / 2)
    t = np.linspace(mu - 14 * sigma, mu + 14 * sigma, 4001)
    log_q = -0.5 * math.log(2 * math.pi) - log_var / 2 - (t - mu) ** 2 / (2 * sigma ** 2)
    log_p = -0.5 * math.log(2 * math.pi) - t ** 2 / 2
    integrand = np.exp(log_q) * (log_q - log_p)
    expected = float(((integrand[1:] + integrand[:-1]) / 2 * np.diff(t)).sum())
    value, _ = losses.gaussian_kl(ops, ops.asarray([[mu, log_var]], "float64"), 1.0)
    assert float(value) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_kl_is_zero_with_zero_gradient_at_the_prior(ops):
    value, gradient = losses.gaussian_kl(ops, ops.zeros((5, 8), "float64"), 3.0)
    assert float(value) == 0 and not ops.to_host(gradient).any()


def test_squared_error_is_the_log_likelihood(ops):
    """With scale 1/(2 s^2): -ln N(x | f, s^2 I) but for its constant."""
    f, x, s = random(3, 4), random(3, 4, seed=1), 0.3
    value, _ = losses.squared_error(ops, ops.asarray(f), ops.asarray(x), 1 / (2 * s * s))
    density = np.prod(np.exp(-(x - f) ** 2 / (2 * s * s)) / math.sqrt(2 * math.pi * s * s))
    assert float(value) == pytest.approx(-math.log(density) - 6 * math.log(2 * math.pi * s * s), rel=1e-12)


# -- triplets ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("same", ["reference and plus", "reference and minus", "all three", "plus and minus"])
@both_dtypes
def test_coinciding_latents_give_zero_not_nan(same, dtype, ops):
    r, p, n = np.array([[0.3, -1.0]]), np.array([[1.1, 0.2]]), np.array([[-0.5, 0.9]])
    if same in ("reference and plus", "all three"):
        p = r.copy()
    if same in ("reference and minus", "all three"):
        n = r.copy()
    if same == "plus and minus":
        n = p.copy()
    value, gradient = losses.triplet_softplus(ops, ops.asarray(np.concatenate([r, p, n]), dtype),
                                              ops.asarray([1.0], dtype), 1.0)
    gap = math.dist(r[0], p[0]) - math.dist(r[0], n[0])
    dr, dp, dn = np.array(ops.to_host(gradient))
    g = 1 / (1 + math.exp(-gap))
    unit_plus = (r - p)[0] / (np.linalg.norm(r - p) or 1)
    unit_minus = (r - n)[0] / (np.linalg.norm(r - n) or 1)
    assert float(value) == pytest.approx(math.log(1 + math.exp(gap)), rel=1e-6)
    for found, wanted in ((dr, g * (unit_plus - unit_minus)), (dp, -g * unit_plus), (dn, g * unit_minus)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    if same == "all three":
        assert not dr.any() and not dp.any() and not dn.any()


@pytest.mark.parametrize("gap", [1e4, -1e4])
@both_dtypes
def test_large_gaps_do_not_overflow(gap, dtype, ops):
    far, near = np.array([[abs(gap) + 1, 0.0]]), np.array([[0.0, 1.0]])
    p, n = (far, near) if gap > 0 else (near, far)
    z = ops.asarray(np.concatenate([np.zeros((1, 2)), p, n]), dtype)
    with np.errstate(over="ignore"):
        value, gradient = losses.triplet_softplus(ops, z, ops.asarray([3.0], dtype), 0.5)
    gradient = np.array(ops.to_host(gradient))
    if gap > 0:    # ln(1 + e^gap) = gap, slope 1
        assert float(value) == pytest.approx(1.5 * gap, rel=1e-6)
        np.testing.assert_allclose(gradient, 1.5 * np.array([[-1, 1], [1, 0], [0, -1]]), atol=1e-6)
    else:
        assert 0 <= float(value) < 1e-30 and np.abs(gradient).max() < 1e-30


def test_a_triplet_that_is_satisfied_costs_less(ops):
    r, near, far = [0.0, 0.0], [1.0, 0.0], [0.0, 3.0]
    weight = ops.asarray([1.0], "float64")
    right, _ = losses.triplet_softplus(ops, ops.asarray([r, near, far], "float64"), weight, 1.0)
    wrong, gradient = losses.triplet_softplus(ops, ops.asarray([r, far, near], "float64"), weight, 1.0)
    assert float(right) == pytest.approx(math.log(1 + math.exp(-2))) and float(wrong) == pytest.approx(
        math.log(1 + math.exp(2)))
    # Going down pulls plus to the reference and pushes minus away.
    _, dp, dn = ops.to_host(gradient)
    assert dp[1] > 0 and dn[0] < 0


# -- errors in words --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, words", [
    (lambda o, a: losses.squared_error(o, a(5, 3), a(2, 3), 1.0), r"squared_error: expected f \(N L, D\).*\(5, 3\)"),
    (lambda o, a: losses.squared_error(o, a(4, 2), a(2, 3), 1.0), r"squared_error: expected .*\(2, 3\), got \(4, 2\)"),
    (lambda o, a: losses.squared_error(o, a(4, 2), a(0, 2), 1.0), "squared_error: expected"),
    (lambda o, a: losses.gaussian_kl(o, a(4, 3), 1.0), r"gaussian_kl: expected h \(N, 2K\), got \(4, 3\)"),
    (lambda o, a: losses.gaussian_kl(o, a(4), 1.0), r"gaussian_kl: expected h \(N, 2K\), got \(4,\)"),
    (lambda o, a: losses.triplet_softplus(o, a(7, 3), a(2), 1.0), r"triplet_softplus: .*2 weights, got \(7, 3\)"),
    (lambda o, a: losses.triplet_softplus(o, a(6, 3), a(0), 1.0), "triplet_softplus: expected .*0 weights"),
])
def test_wrong_shapes(call, words, ops):
    with pytest.raises(NnliteError, match=words):
        call(ops, lambda *shape: ops.zeros(shape, "float64"))
