"""Philox 4x32-10: known answers, layout, distribution, independence."""

import math

import numpy as np
import pytest
from scipy import stats

from nnlite.ops import get_ops
from nnlite.ops.cpu.philox import philox as kernel
from nnlite.ops.reference import philox as reference
from nnlite.rng import Key, Rng

MASK = 0xFFFFFFFF


def naive(counter, key):
    """Philox 4x32-10 on Python's integers, as in fig. 2 of Salmon et al. 2011."""
    left, right, k0, k1 = counter[:2], counter[2:], *key
    for _ in range(10):
        (c0, c1), (c2, c3) = left, right
        high0, low0 = divmod(0xD2511F53 * c0, 2 ** 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2 ** 32)
        left, right = (high1 ^ c1 ^ k0, low1), (high0 ^ c3 ^ k1, low0)
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return (*left, *right)


# The known-answer vectors of Random123 for philox4x32, 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd)),
    ((0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), (0xa4093822, 0x299f31d0),
     (0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1)),
]
known = pytest.mark.parametrize("counter, key, result", KNOWN, ids=["zeros", "ones", "pi"])


@known
def test_known_answers_of_the_reference(counter, key, result):
    assert naive(counter, key) == result
    words = reference([np.array([c], np.uint64) for c in counter], *key)
    assert tuple(int(word[0]) for word in words) == result


@known
def test_known_answers_of_the_kernel(counter, key, result):
    assert tuple(int(word) for word in kernel(*map(np.uint32, (*counter, *key)))) == result


def test_known_answers_through_every_ops(ops):
    """Seed, stream and step as the words of key and counter; the counter's first word is the block, here 0."""
    words = ops.to_host(ops.random_words(1, 4, Key(0, 0, ops.scalar(0, "int64"))))
    assert tuple(words[0]) == KNOWN[0][2]
    (_, c1, c2, c3), (k0, k1), _ = KNOWN[2]
    words = ops.to_host(ops.random_words(1, 4, Key(k0 | k1 << 32, c1, ops.scalar(c2 | c3 << 32, "int64"))))
    assert tuple(words[0]) == naive((0, c1, c2, c3), (k0, k1))


# -- layout -----------------------------------------------------------------------------------------------------------

SEED, STREAM, STEP = 0x0123456789ABCDEF, 0xDEADBEEF, 0x300000007


def block(number):
    return naive((number, STREAM, STEP & MASK, STEP >> 32), (SEED & MASK, SEED >> 32))


def a_key(ops, seed=SEED, stream=STREAM, step=STEP):
    return Key(seed, stream, ops.scalar(step, "int64"))


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 4), (2, 5), (3, 30), (5, 8)])
def test_layout(ops, rows, columns):
    """Block r ceil(C/4) + q gives the words of columns q, q + ceil(C/4), ... of row r."""
    quarter = math.ceil(columns / 4)
    wanted = np.zeros((rows, columns), np.uint32)
    for r in range(rows):
        for q in range(quarter):
            for part, word in enumerate(block(r * quarter + q)):
                if q + part * quarter < columns:
                    wanted[r, q + part * quarter] = word
    np.testing.assert_array_equal(ops.to_host(ops.random_words(rows, columns, a_key(ops))), wanted)


@pytest.mark.parametrize("dtype, close", [("float32", 2e-6), ("float64", 1e-13)])
def test_normals_are_box_and_muller_of_the_words(ops, dtype, close):
    rows, columns = 6, 11
    quarter = 3
    wanted = np.zeros((rows, 4 * quarter))
    for r in range(rows):
        for q in range(quarter):
            a, b, c, d = block(r * quarter + q)
            for first, (u, v) in ((q, (a, b)), (q + 2 * quarter, (c, d))):
                radius = math.sqrt(-2 * math.log((u + 0.5) / 2 ** 32))
                wanted[r, first] = radius * math.cos(2 * math.pi * v / 2 ** 32)
                wanted[r, first + quarter] = radius * math.sin(2 * math.pi * v / 2 ** 32)
    got = ops.to_host(ops.normal((2, 3, columns), a_key(ops), dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.reshape(rows, columns), wanted[:, :columns], atol=close, rtol=0)


def test_a_mask_keeps_words_below_the_threshold(ops):
    words = ops.to_host(ops.random_words(20, 13, a_key(ops)))
    mask = ops.to_host(ops.dropout_mask((4, 5, 13), 0.3, a_key(ops), "float64"))
    np.testing.assert_array_equal(mask.reshape(20, 13), np.where(words < round(0.3 * 2 ** 32), 1 / 0.3, 0))
    assert (ops.to_host(ops.dropout_mask((4, 13), 1.0, a_key(ops), "float32")) == 1).all()


def test_gaussian_sample_draws_the_same_normals(ops):
    """With mu 0 and sigma 1, z is the array of normals."""
    z = ops.gaussian_sample(ops.zeros((4, 10), "float64"), 3, a_key(ops))
    np.testing.assert_allclose(ops.to_host(z), ops.to_host(ops.normal((12, 5), a_key(ops), "float64")), rtol=1e-14)


def test_any_number_of_pieces_gives_the_same(monkeypatch):
    import nnlite.ops.cpu as cpu
    ops = get_ops("cpu")
    monkeypatch.setattr(cpu, "GRAIN", 1)
    results = []
    for pieces in (1, 2, 3, 7, 64):
        monkeypatch.setattr(ops, "threads", pieces)
        results.append([np.array(a) for a in (ops.random_words(31, 10, a_key(ops)),
                                              ops.normal((31, 10), a_key(ops), "float32"))])
    for words, normals in results[1:]:
        np.testing.assert_array_equal(words, results[0][0])
        np.testing.assert_array_equal(normals, results[0][1])


# -- distribution and independence ------------------------------------------------------------------------------------

N = 200_000   # of two rows; bounds are about five standard deviations


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals_are_normal(ops, dtype):
    x = ops.to_host(ops.normal((2, N), a_key(ops), dtype)).astype("float64")
    n = x.size
    assert np.isfinite(x).all() and np.abs(x).max() < math.sqrt(2 * 33 * math.log(2)) + 1e-6
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x ** 3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((x ** 4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert stats.kstest(x[0], "norm").pvalue > 1e-4


def correlation(a, b):
    """In standard deviations of the correlation of independent numbers."""
    return np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1] * math.sqrt(a.size)


@pytest.mark.parametrize("name", ["x", "square"])
def test_normals_are_independent(ops, name):
    """Neighbours, the four numbers of one block, and rows; squares show a shared radius."""
    x = ops.to_host(ops.normal((2, N), a_key(ops), "float32")).astype("float64")
    x = x if name == "x" else x * x
    quarter = N // 4
    assert abs(correlation(x[0], x[1])) < 5
    for lag in (1, 2, 3, quarter, 2 * quarter, 3 * quarter):
        assert abs(correlation(x[:, lag:], x[:, :-lag])) < 5, lag


OTHERS = {"seed": dict(seed=SEED + 1), "high word of the seed": dict(seed=SEED + 2 ** 32),
          "stream": dict(stream=STREAM ^ 1), "step": dict(step=STEP + 1),
          "high word of the step": dict(step=STEP + 2 ** 32)}


@pytest.mark.parametrize("what", OTHERS)
def test_other_keys_give_other_numbers(ops, what):
    words = ops.to_host(ops.random_words(100, 100, a_key(ops)))
    others = ops.to_host(ops.random_words(100, 100, a_key(ops, **OTHERS[what])))
    assert (words == others).mean() < 1e-3
    assert abs(correlation(words.astype("float64"), others.astype("float64"))) < 5
    bits = np.bitwise_xor(words, others).view(np.uint8)
    assert np.unpackbits(bits).mean() == pytest.approx(0.5, abs=5 / 2 / math.sqrt(8 * bits.size))


def test_words_are_uniform(ops):
    words = ops.to_host(ops.random_words(4, 50_000, a_key(ops)))
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((words >> np.uint32(shift)) & np.uint32(255)).reshape(-1).astype(int), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_rng_of_a_model(ops):
    """A key follows the step in place; a name has a stream of its own; seeds beyond 64 bits wrap."""
    rng = Rng(ops, 2 ** 64 + 5)
    key = rng.key("encoder.0")
    first = ops.to_host(ops.random_words(2, 8, key)).copy()
    rng.set_step(1)
    second = ops.to_host(ops.random_words(2, 8, key)).copy()
    assert (first != second).all()
    rng.set_step(0)
    np.testing.assert_array_equal(ops.to_host(ops.random_words(2, 8, key)), first)
    assert key.seed == 5 and key.stream != rng.key("encoder.1").stream
