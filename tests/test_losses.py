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


# -- softmax cross entropy --------------------------------------------------------------------------------------------

def naive_cross_entropy(z, labels, class_weight, smoothing, soft, alpha):
    """Sum by sum, with math.exp and math.log; the gradient as w / V (p - t)."""
    N, K = z.shape
    weights = [1.0 if class_weight is None else float(class_weight[labels[i]]) for i in range(N)]
    total, gradient = 0.0, np.zeros(z.shape)
    for i in range(N):
        row = [float(value) for value in z[i]]
        exponentials = [math.exp(value - max(row)) for value in row]
        log_p = [value - max(row) - math.log(sum(exponentials)) for value in row]
        target = [smoothing / K + (1 - smoothing if k == labels[i] else 0.0) for k in range(K)]
        cost = -alpha * sum(t * lp for t, lp in zip(target, log_p))
        aim = [alpha * t for t in target]
        if soft is not None:
            q = [float(value) for value in soft[i]]
            cost += (1 - alpha) * sum(a * (math.log(a) - lp) for a, lp in zip(q, log_p) if a > 0)
            aim = [t + (1 - alpha) * a for t, a in zip(aim, q)]
        total += weights[i] * cost
        for k in range(K):
            gradient[i, k] = weights[i] / sum(weights) * (math.exp(log_p[k]) - aim[k])
    return total / sum(weights), gradient


def probabilities(N, K, dtype="float64"):
    """Rows that sum to 1; where there are more than two classes, the label-free first class of each second row is 0."""
    q = np.random.default_rng([9, N, K]).uniform(0.1, 1, (N, K))
    q[::2, :1] *= K < 3
    return (q / q.sum(1, keepdims=True)).astype(dtype)


def entropy_inputs(N, K, dtype="float64", scale=2.0):
    logits = (scale * random(N, K)).astype(dtype)
    labels = np.random.default_rng([N, K]).integers(0, K, N).astype("int32")
    weight = np.random.default_rng(K).uniform(0.2, 3, K).astype(dtype)
    return logits, labels, weight, probabilities(N, K, dtype)


# name: (weighted, smoothing, distilled, alpha)
KINDS = {"plain": (False, 0.0, False, 1.0), "class weights": (True, 0.0, False, 1.0),
         "smoothing": (False, 0.1, False, 1.0), "smoothing and class weights": (True, 0.3, False, 1.0),
         "soft targets alone": (False, 0.0, True, 0.0), "distillation": (False, 0.0, True, 0.3),
         "all together": (True, 0.2, True, 0.6)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def options(kind, weight, soft, give=lambda array: array):
    weighted, smoothing, distilled, alpha = KINDS[kind]
    return dict(class_weight=give(weight) if weighted else None, smoothing=smoothing,
                soft=give(soft) if distilled else None, alpha=alpha)


@every_kind
@pytest.mark.parametrize("N, K", [(1, 1), (1, 7), (5, 1), (6, 2), (33, 7), (2, 1000), (70, 17)])
@both_dtypes
def test_cross_entropy_against_loops(kind, N, K, dtype, ops):
    logits, labels, weight, soft = entropy_inputs(N, K, dtype)
    arrays = [ops.asarray(array.copy()) for array in (logits, labels, weight, soft)]
    value, dlogits = losses.softmax_cross_entropy(ops, *arrays[:2], **options(kind, *arrays[2:]))
    wanted, gradient = naive_cross_entropy(logits, labels, **options(kind, weight, soft))
    assert np.ndim(value) == 0 and np.asarray(ops.to_host(value)).dtype == "float64"
    # A float32 row of soft targets sums to 1 only within its rounding.
    assert float(value) == pytest.approx(wanted, rel=10 * REL[dtype], abs=REL[dtype])
    assert dlogits.dtype == dtype and dlogits.shape == (N, K)
    np.testing.assert_allclose(ops.to_host(dlogits), gradient, rtol=10 * REL[dtype], atol=REL[dtype] / N)
    for array, before in zip(arrays, (logits, labels, weight, soft)):
        np.testing.assert_array_equal(ops.to_host(array), before)


@every_kind
def test_cross_entropy_gradients(kind, ops):
    logits, labels, weight, soft = entropy_inputs(5, 4)
    chosen = options(kind, weight, soft, ops.asarray)
    report = check_loss(lambda z: losses.softmax_cross_entropy(ops, z, ops.asarray(labels), **chosen), logits, ops=ops,
                        title=kind)
    assert report.ok, str(report)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(sorted(KINDS)), st.sampled_from(["float32", "float64"]))
def test_cross_entropy_for_any_shape(N, K, kind, dtype):
    logits, labels, weight, soft = entropy_inputs(N, K, dtype)
    turned = np.asfortranarray(logits)
    wanted, gradient = naive_cross_entropy(logits, labels, **options(kind, weight, soft))
    for z in (logits, turned):
        value, dlogits = losses.softmax_cross_entropy(get_ops("cpu"), z, labels, **options(kind, weight, soft))
        assert float(value) == pytest.approx(wanted, rel=10 * REL[dtype], abs=REL[dtype])
        np.testing.assert_allclose(dlogits, gradient, rtol=10 * REL[dtype], atol=REL[dtype] / N)


@pytest.mark.parametrize("K", [1, 2, 1000])
def test_equal_logits_cost_ln_K(K, ops):
    for shift in (0.0, 1e4, -1e4):
        logits, labels = ops.asarray(np.full((3, K), shift)), ops.asarray(np.array([0, K - 1, K // 2], "int32"))
        value, dlogits = losses.softmax_cross_entropy(ops, logits, labels)
        assert float(value) == pytest.approx(math.log(K), rel=1e-12, abs=1e-15)
        wanted = (1 / K - (np.arange(K) == [[0], [K - 1], [K // 2]])) / 3
        np.testing.assert_allclose(ops.to_host(dlogits), wanted, atol=1e-15)


@pytest.mark.parametrize("large", [1e4, 3e38])
@both_dtypes
def test_large_logits_do_not_overflow(large, dtype, ops):
    """Certain and right: cost 0, no gradient. Certain and wrong: the difference of the logits, gradient +-1/N."""
    logits = ops.asarray(np.array([[large, 0, -large / 3], [0, large, 0], [0.0, 0, 0]]), dtype)
    labels = ops.asarray(np.array([0, 2, 1], "int32"))
    with np.errstate(over="raise", invalid="raise"):
        value, dlogits = losses.softmax_cross_entropy(ops, logits, labels)
    assert float(value) == pytest.approx((large + math.log(3)) / 3, rel=1e-6)
    np.testing.assert_allclose(ops.to_host(dlogits), np.array([[0, 0, 0], [0, 1, -1], [1 / 3, -2 / 3, 1 / 3]]) / 3,
                               atol=1e-7)


@both_dtypes
def test_a_net_that_agrees_with_its_teacher_costs_nothing(dtype, ops):
    logits, labels, _, _ = entropy_inputs(6, 5)
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    value, dlogits = losses.softmax_cross_entropy(ops, ops.asarray(logits, dtype), ops.asarray(labels),
                                                  soft=ops.asarray(soft, dtype), alpha=0.0)
    assert abs(float(value)) < 1e-6 and np.abs(ops.to_host(dlogits)).max() < 1e-7


def test_a_class_of_weight_zero_does_not_count(ops):
    logits, labels, weight, _ = entropy_inputs(20, 3)
    weight[1] = 0
    rows = labels != 1
    assert 0 < rows.sum() < 20
    value, dlogits = losses.softmax_cross_entropy(ops, ops.asarray(logits), ops.asarray(labels),
                                                  class_weight=ops.asarray(weight))
    wanted, gradient = naive_cross_entropy(logits[rows], labels[rows], weight, 0.0, None, 1.0)
    assert float(value) == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(ops.to_host(dlogits)[rows], gradient, atol=1e-15)
    assert not ops.to_host(dlogits)[~rows].any()


@pytest.mark.parametrize("change, words", [
    (dict(logits=(4,)), r"softmax_cross_entropy: expected logits \(N, K\), got \(4,\)"),
    (dict(logits=(0, 3), labels=(0,)), r"expected logits \(N, K\), got \(0, 3\)"),
    (dict(labels=(5,)), r"expected labels \(4,\) for logits \(4, 3\), got \(5,\)"),
    (dict(labels=(4, 1)), r"expected labels \(4,\) for logits \(4, 3\), got \(4, 1\)"),
    (dict(class_weight=(4,)), r"expected class_weight \(3,\) for logits \(4, 3\), got \(4,\)"),
    (dict(soft=(4, 2)), r"expected soft \(4, 3\) for logits \(4, 3\), got \(4, 2\)"),
    (dict(alpha=0.5), "expected soft targets for alpha below 1, got none"),
])
def test_cross_entropy_of_wrong_shapes(change, words, ops):
    arguments = dict(logits=(4, 3), labels=(4,)) | change
    arguments = {name: value if name == "alpha" else ops.zeros(value, "int32" if name == "labels" else "float64")
                 for name, value in arguments.items()}
    with pytest.raises(NnliteError, match=words):
        losses.softmax_cross_entropy(ops, arguments.pop("logits"), arguments.pop("labels"), **arguments)
