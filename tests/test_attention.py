"""Attention against loops and against PyTorch, and the normal distribution that GELU is made of."""

import math

import numba
import numpy as np
import pytest

from nnlite.ops import get_ops
from nnlite.ops.cpu import mathfun
from nnlite.ops.cpu.attention import KEYS, QUERIES

BEYOND = KEYS + 37   # more than one block of keys, and no multiple of it
CLOSE = {"float32": 2e-6, "float64": 1e-13}
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
# (N, T, heads, d): one token; ViT-B/16's tokens; odd numbers; several blocks
SHAPES = [(3, 1, 2, 5), (2, 197, 3, 8), (1, 65, 4, 7), (1, BEYOND, 1, 6), (2, QUERIES + 1, 2, 3)]


@pytest.fixture(params=["reference", "one thread", "many threads", pytest.param("cuda", marks=pytest.mark.gpu)])
def ops(request, monkeypatch):
    """On the CPU with one thread and with more than there are heads, so that the queries of a head are cut."""
    if request.param in ("reference", "cuda"):
        return get_ops(request.param)
    cpu = get_ops("cpu")
    monkeypatch.setattr(cpu, "threads", 7 if request.param == "many threads" else 1)
    monkeypatch.setattr("nnlite.ops.cpu.GRAIN", 1)
    return cpu


def draw(shape, heads, d, scale=1.0):
    """qkv (N, T, 3 heads d) and dy (N, T, heads d) in float64."""
    random = np.random.default_rng(4)
    return scale * random.normal(size=(*shape, 3 * heads * d)), random.normal(size=(*shape, heads * d))


def naive(qkv, heads):
    """y and ln sum e^s, number by number."""
    N, T, width = qkv.shape
    D, d = width // 3, width // 3 // heads
    y, log_sum = np.zeros((N, T, D)), np.zeros((N, heads, T))
    for n, h, i in np.ndindex(N, heads, T):
        block = slice(h * d, (h + 1) * d)
        q, k, v = qkv[n, i, :D][block], qkv[n, :, D:2 * D][:, block], qkv[n, :, 2 * D:][:, block]
        s = [sum(q[a] * k[j, a] for a in range(d)) / math.sqrt(d) for j in range(T)]
        most = max(s)
        mass = sum(math.exp(each - most) for each in s)
        log_sum[n, h, i] = most + math.log(mass)
        y[n, i, block] = sum(math.exp(each - most) / mass * v[j] for j, each in enumerate(s))
    return y, log_sum


def with_torch(qkv, dy, heads):
    """y and dqkv."""
    torch = pytest.importorskip("torch")
    leaf = torch.tensor(qkv, requires_grad=True)
    N, T, width = qkv.shape
    q, k, v = leaf.reshape(N, T, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, T, width // 3)
    y.backward(torch.tensor(dy))
    return y.detach().numpy(), leaf.grad.numpy()


def both_ways(ops, qkv, dy, heads, dtype):
    """y, log_sum and dqkv as host arrays."""
    given = ops.asarray(qkv, dtype), ops.asarray(dy, dtype)
    y, log_sum = ops.attention(given[0], heads, True)
    results = y, log_sum, ops.attention_backward(given[1], y, log_sum, given[0], heads)
    np.testing.assert_array_equal(ops.to_host(given[0]), qkv.astype(dtype))
    np.testing.assert_array_equal(ops.to_host(given[1]), dy.astype(dtype))
    assert all(result.dtype == dtype for result in results)
    return [np.array(ops.to_host(result)) for result in results]


def near(got, wanted, dtype, factor=1):
    """Up to what numbers of the result's size, or of the input's, leave of precision."""
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=factor * CLOSE[dtype] * max(1, np.abs(wanted).max()))


@both_dtypes
@pytest.mark.parametrize("N, T, heads, d", [(2, 1, 2, 3), (2, 5, 3, 4), (1, 33, 2, 5)])
def test_attention_is_the_loop(ops, dtype, N, T, heads, d):
    qkv, dy = draw((N, T), heads, d)
    y, log_sum, _ = both_ways(ops, qkv, dy, heads, dtype)
    for got, wanted in zip((y, log_sum), naive(qkv, heads)):
        near(got, wanted, dtype)
    evaluated, nothing = ops.attention(ops.asarray(qkv, dtype), heads, False)
    assert nothing is None
    np.testing.assert_array_equal(ops.to_host(evaluated), y)


@both_dtypes
@pytest.mark.parametrize("N, T, heads, d", SHAPES)
def test_attention_and_its_gradient_are_those_of_torch(ops, dtype, N, T, heads, d):
    qkv, dy = draw((N, T), heads, d)
    y, _, dqkv = both_ways(ops, qkv, dy, heads, dtype)
    wanted_y, wanted_dqkv = with_torch(qkv, dy, heads)
    near(y, wanted_y, dtype)
    near(dqkv, wanted_dqkv, dtype)


@both_dtypes
@pytest.mark.parametrize("T", [6, BEYOND])
def test_large_scores_do_not_overflow(ops, dtype, T):
    """Scores of thousands, whose exponentials fit no float: softmax is then nearly a choice of one key."""
    qkv, dy = draw((1, T), 2, 4, scale=60.0)
    y, log_sum, dqkv = both_ways(ops, qkv, dy, 2, dtype)
    assert log_sum.max() > 1000
    wanted_y, wanted_dqkv = with_torch(qkv, dy, 2)
    # The rounding of s, some thousand units of 6e-8, is what p is off by.
    near(y, wanted_y, dtype, 1e3)
    near(dqkv, wanted_dqkv, dtype, 1e3)


@both_dtypes
def test_the_largest_score_may_be_in_any_block_of_keys(ops, dtype):
    """Rising and falling scores: sums of a block are scaled down, or are already small."""
    T, sign = BEYOND, np.array([1.0, -1.0])
    qkv, dy = draw((1, T), 1, 2)
    qkv[0, :, :2] = sign[np.arange(T) % 2][:, None]
    qkv[0, :, 2:4] += np.linspace(-30, 30, T)[:, None]
    y, _, dqkv = both_ways(ops, qkv, dy, 1, dtype)
    wanted_y, wanted_dqkv = with_torch(qkv, dy, 1)
    near(y, wanted_y, dtype, 30)
    near(dqkv, wanted_dqkv, dtype, 30)


@both_dtypes
@pytest.mark.parametrize("T", [1, 3, 8, 16, 21, 50, 70])
def test_the_largest_score_may_stand_anywhere(ops, dtype, T):
    """Image n has its one large score, above what e^s holds, at key n: that key's value is what comes out."""
    qkv = np.ones((T, T, 3))
    qkv[..., 2] = np.random.default_rng(2).normal(size=(T, T))
    for other in (0, -1000):
        qkv[..., 1] = other + 1000 * np.eye(T)
        y, _ = ops.attention(ops.asarray(qkv, dtype), 1, True)
        near(np.array(ops.to_host(y)), np.repeat(np.diagonal(qkv[..., 2])[:, None, None], T, 1), dtype)


@both_dtypes
@pytest.mark.parametrize("T, heads", [(65, 4), (BEYOND, 1)])
def test_a_captured_attention_gives_the_same_numbers(dtype, T, heads):
    ops, (qkv, dy) = get_ops("cpu"), draw((2, T), heads, 4)
    qkv, dy = qkv.astype(dtype), dy.astype(dtype)

    def step():
        y, log_sum = ops.attention(qkv, heads, True)
        return y, log_sum, ops.attention_backward(dy, y, log_sum, qkv, heads)

    captured = ops.capture(step)
    captured()
    qkv[...] = qkv[:, ::-1].copy()
    dy *= 2
    for got, wanted in zip(captured(), step()):
        np.testing.assert_array_equal(got, wanted)


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    ops = get_ops("cpu")

    def bytes_for(T):
        qkv, dy = (array.astype("float32") for array in draw((1, T), 2, 4))
        return ops.bytes_of(lambda: ops.attention_backward(dy, *ops.attention(qkv, 2, True), qkv, 2))

    few, more, most = (bytes_for(blocks * KEYS) for blocks in (1, 2, 4))
    assert most - more < 2.1 * (more - few)


# -- the normal distribution ------------------------------------------------------------------------------------------

@numba.njit(fastmath=mathfun.FAST, error_model="numpy")
def loop(x, P, e):
    for i in range(x.size):
        P[i], e[i] = mathfun.normal_cdf(x[i])


def normal_cdf(x):
    P, e = np.empty_like(x), np.empty_like(x)
    loop(x, P, e)
    return P, e


def test_normal_cdf():
    x = np.concatenate([np.linspace(-6, 6, 60001), np.geomspace(1e-20, 1, 2001), -np.geomspace(1e-20, 1, 2001),
                        np.linspace(-13, -6, 7001), [0.0, 20.0, 1e4]])
    for dtype, relative, absolute in (("float32", 6e-7, 2e-7), ("float64", 1e-14, 2e-16)):
        given = x.astype(dtype)
        P, e = normal_cdf(given)
        wanted = np.array([math.erf(v / math.sqrt(2)) for v in given.astype("float64")])
        np.testing.assert_allclose(2.0 * P - 1, wanted, rtol=0, atol=2 * absolute)
        tail = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in given.astype("float64")])
        # e^(-x^2/2) is off by the rounding of x^2/2.
        allowed = relative + np.finfo(dtype).eps * np.minimum(x * x, 200)
        assert (np.abs(P / tail - 1) <= allowed).all()
        density = np.exp(-0.5 * given.astype("float64") ** 2)
        normal = density > 1e-36
        assert (np.abs(e[normal] / density[normal] - 1) <= allowed[normal]).all()
        assert (np.diff(P[:60001]) >= -absolute).all()


def test_normal_cdf_far_out():
    """0 and 1 to rounding, and NaN for NaN."""
    for dtype in ("float32", "float64"):
        P, e = normal_cdf(np.array([-1e30, -100, 100, 1e30, math.inf, -math.inf, math.nan], dtype))
        np.testing.assert_allclose(P[:6], [0, 0, 1, 1, 1, 0], atol=1e-36, rtol=0)
        np.testing.assert_allclose(e[:6], 0, atol=1e-36)
        assert math.isnan(P[6])
