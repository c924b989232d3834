"""Matrix products in blocks (nnlite/ops/cpu/product.py) against float64, on every way of sharing and cutting them."""

import math

import numpy as np
import pytest
from fenced_memory import fenced

from nnlite.ops.cpu import CpuOps
from nnlite.ops.cpu import product as kernels
from nnlite.ops.cpu.block import lanes

SPLITS = {"columns": kernels.BY_COLUMNS, "rows": kernels.BY_ROWS, "depth": kernels.BY_DEPTH}
# Rows, depth, columns, whether a lies column by column -> what threads share.
CASES = [(700, 40, 600, False, "columns"), (100, 30, 70, False, "columns"), (2100, 20, 50, False, "rows"),
         (300, 1030, 90, False, "rows"), (20, 1100, 530, False, "columns"),
         (30, 25, 900, True, "columns"), (800, 40, 1000, True, "columns"), (2000, 16, 60, True, "rows"),
         (90, 1200, 70, True, "depth"), (9, 2100, 3, True, "depth"), (1, 600, 1, True, "depth"),
         (10, 5, 17, True, "columns"), (2, 2, 3, True, "depth"), (4, 1, 3, False, "columns")]


def multiply(a, b, turned_a, turned_b, c, threads, accumulate):
    """c = a b with a, b laid out row by row or column by column."""
    ops = CpuOps()
    ops._chunks = lambda work: threads
    (rows, depth), columns = a.shape, b.shape[1]
    a = np.ascontiguousarray(a.T if turned_a else a)
    b = np.ascontiguousarray(b.T if turned_b else b)
    with fenced(ops):
        out = ops.empty(c.shape, c.dtype)
        out[...] = c
        ops._multiply(a, rows if turned_a else 1, b, depth if turned_b else 1, out, rows, depth, columns, accumulate)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows, depth, columns, turned_a, shared", CASES)
def test_products(rows, depth, columns, turned_a, shared, threads, dtype):
    assert kernels.plan(rows, depth, columns, turned_a, lanes(dtype))[0] == SPLITS[shared]
    rng = np.random.default_rng(rows + depth)
    a, b = rng.normal(size=(rows, depth)).astype(dtype), rng.normal(size=(depth, columns)).astype(dtype)
    before = rng.normal(size=(rows, columns)).astype(dtype)
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    # Each of so many roundings is at most half a unit of the sum so far; they partly cancel.
    bound = np.finfo(dtype).eps * math.sqrt(depth) * (np.abs(a) @ np.abs(b))
    for turned_b in (False, True):
        for accumulate in (False, True):
            c = multiply(a, b, turned_a, turned_b, before.copy() if accumulate else np.full_like(before, np.nan),
                         threads, accumulate)
            error = np.abs(c - (exact + before * accumulate))
            assert (error <= bound + np.finfo(dtype).eps * np.abs(before)).all(), error.max()


def test_a_long_sum_is_made_of_pieces():
    """The error of one running sum grows as the depth, of pieces as DEPTH and the square root of the pieces."""
    rng, depth = np.random.default_rng(0), 16 * kernels.DEPTH
    a, b = rng.uniform(size=(64, depth)).astype("float32"), rng.uniform(size=(depth, 64)).astype("float32")
    c = multiply(a, b, False, False, np.empty((64, 64), "float32"), 1, False)
    exact = a.astype(float) @ b.astype(float)
    running = np.zeros((64, 64), "float32")
    for k in range(depth):
        running += a[:, k:k + 1] * b[k]
    error, worse = (math.sqrt(np.mean((x - exact) ** 2)) for x in (c, running))
    assert error < worse / 4
