"""A small matrix product in registers, on which convolutions stand.

`multiply` makes rows x columns sums c[m, n] = sum_k a[m, k] b[k, n] in blocks of 14 rows and two vectors: 28 of the 32
registers of AVX-512 hold sums, two hold a row of b, one a number of a. So every number loaded is used many times, and
the loop runs at the rate of the multipliers (here 170 to 190 of 192 GFLOP/s on a core, BLAS on such small matrices 120
to 140). Where a[m, k] lies is told by strides, so a matrix may as well be windows of an image: nothing is copied.

b comes in panels: 2 L columns side by side, row under row (L lanes of a vector); the last panel may be one vector wide.
"""

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .mathfun import FAST, kernel, straight
from .simd import (BYTES, VectorType, as_vector, element, everywhere, first_lanes, fused_multiply_add, llvm_type,
                   masked_load, masked_store)

ROWS = 14, 12, 7, 6, 4, 2, 1   # heights of blocks
UNROLL = 4

# The height to begin with where fewer than 28 rows are left: the blocks then need the fewest cycles in all. A block of
# two rows or fewer takes as long as one of four, because its few sums wait for each other.
HEIGHTS = np.zeros(28, np.int64)
_cycles = [0]
for _left in range(1, 28):
    _choices = [(max(4, _rows) + _cycles[_left - _rows], -_rows) for _rows in ROWS if _rows <= _left]
    _cycles.append(min(_choices)[0])
    HEIGHTS[_left] = -min(_choices)[1]


def block_product(rows, vectors, across):
    """A function that makes one block of rows x vectors sums; its arguments are those of `multiply_along`, or of
    `multiply_across`."""
    @intrinsic
    def product(typing, a, at, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, ct, c_row, columns,
                accumulate):
        vector, integer = VectorType(a.dtype), types.intp

        def build(context, builder, signature, args):
            (a_, at_, a_row_, outer_, a_outer_, middle_, a_middle_, inner_, a_inner_, b_, bt_, c_, ct_, c_row_,
             columns_, accumulate_) = args
            kind, lanes, align = llvm_type(vector), vector.lanes, vector.dtype.bitwidth // 8
            blocks = [(r, v) for r in range(rows) for v in range(vectors)]
            sums = {block: cgutils.alloca_once(builder, kind) for block in blocks}

            def number(n):
                return ir.Constant(ir.IntType(64), n)

            def after(place, index):
                return as_vector(builder, vector, builder.gep(place, [index]))

            pa, pb, pc = (element(context, builder, signature.args[i], array, index) for i, array, index in
                          ((0, a_, at_), (9, b_, bt_), (11, c_, ct_)))
            targets = {(r, v): after(pc, builder.add(builder.mul(c_row_, number(r)), number(v * lanes)))
                       for r, v in blocks}
            masks = [first_lanes(builder, lanes, builder.sub(columns_, number(v * lanes))) for v in range(vectors)]
            with builder.if_else(accumulate_) as (adding, writing):
                with adding:
                    for r, v in blocks:
                        builder.store(masked_load(builder, vector, targets[r, v], masks[v]), sums[r, v])
                with writing:
                    for block in blocks:
                        builder.store(ir.Constant(kind, None), sums[block])

            # Pointers to some rows of a: the others are addressed from these by one or two strides.
            every, a_step = (rows, a_inner_) if across else (3, number(1))
            row_of_b = cgutils.alloca_once_value(builder, pb)
            heads = [cgutils.alloca_once(builder, pa.type) for _ in range(0, rows, every)]

            def steps(count):
                """The next count terms of every sum; the loop around it is left to count addresses only now and then:
                additions of addresses take turns from the multipliers."""
                starts, place = [builder.load(head) for head in heads], builder.load(row_of_b)
                for k in range(count):
                    row = [builder.load(after(place, number((k * vectors + v) * lanes)), align=align)
                           for v in range(vectors)]
                    for r in range(rows):
                        p = builder.gep(starts[r // every], [builder.mul(a_step, number(k))])
                        p = builder.gep(p, [number(r) if across else builder.mul(a_row_, number(r % 3))])
                        x = everywhere(builder, builder.load(p), lanes)
                        for v in range(vectors):
                            total = fused_multiply_add(builder, vector, x, row[v], builder.load(sums[r, v]))
                            builder.store(total, sums[r, v])
                for head, start in zip(heads, starts):
                    builder.store(builder.gep(start, [builder.mul(a_step, number(count))]), head)
                builder.store(builder.gep(place, [number(count * vectors * lanes)]), row_of_b)

            with cgutils.for_range(builder, outer_) as i:
                pi = builder.gep(pa, [builder.mul(i.index, a_outer_)])
                with cgutils.for_range(builder, middle_) as j:
                    pj = builder.gep(pi, [builder.mul(j.index, a_middle_)])
                    for r, head in zip(range(0, rows, every), heads):
                        builder.store(opaque(builder, builder.gep(pj, [builder.mul(a_row_, number(r))])), head)
                    with cgutils.for_range(builder, builder.sdiv(inner_, number(UNROLL))):
                        steps(UNROLL)
                    with cgutils.for_range(builder, builder.srem(inner_, number(UNROLL))):
                        steps(1)

            for r, v in blocks:
                masked_store(builder, vector, builder.load(sums[r, v]), targets[r, v], masks[v])
            return context.get_dummy_value()
        return types.none(a, *[integer] * 8, b, integer, c, *[integer] * 3, types.boolean), build

    @njit(fastmath=FAST, error_model="numpy")
    def block(a, at, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, ct, c_row, columns, accumulate):
        product(a, at, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, ct, c_row, columns,
                accumulate)
    return block


def opaque(builder, pointer):
    """The pointer as a value of which LLVM knows nothing: else it finds that all rows are a stride apart and walks from
    one to the next, which is a chain of additions longer than the arithmetic."""
    kind = ir.FunctionType(pointer.type, [pointer.type])
    return builder.asm(kind, "", "=r,0", [pointer], False)


def multiplier(across):
    wide14, wide12, wide7, wide6, wide4, wide2, wide1 = (block_product(rows, 2, across) for rows in ROWS)
    slim14, slim12, slim7, slim6, slim4, slim2, slim1 = (block_product(rows, 1, across) for rows in ROWS)

    @straight
    def multiply(rows, a, at, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, wide, c, ct, c_row,
                 columns, accumulate):
        m = 0
        while m < rows:
            p, q, left = at + m * a_row, ct + m * c_row, rows - m
            height = 14 if left >= 28 else HEIGHTS[left]
            if wide and height == 14:
                wide14(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                      accumulate)
            elif wide and height == 12:
                wide12(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                      accumulate)
            elif wide and height == 7:
                wide7(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif wide and height == 6:
                wide6(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif wide and height == 4:
                wide4(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif wide and height == 2:
                wide2(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif wide and height == 1:
                wide1(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif height == 14:
                slim14(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                      accumulate)
            elif height == 12:
                slim12(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                      accumulate)
            elif height == 7:
                slim7(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif height == 6:
                slim6(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif height == 4:
                slim4(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            elif height == 2:
                slim2(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                     accumulate)
            else:
                slim1(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row, columns,
                      accumulate)
            m += height
    return multiply


multiply_along = multiplier(False)
multiply_across = multiplier(True)


# -- panels -----------------------------------------------------------------------------------------------------------

def lanes(dtype):
    """Numbers in a vector."""
    return BYTES // np.dtype(dtype).itemsize


def padded(columns, dtype):
    """The columns of a matrix in panels: a multiple of the lanes."""
    return -(-columns // lanes(dtype)) * lanes(dtype)


@kernel
def pack(source, at, outer, s_outer, middle, s_middle, inner, s_inner, columns, s_column, panels, to, L, chunks):
    """panels[to:] = the matrix with rows (i, j, k) and columns n, source[at + i s_outer + j s_middle + k s_inner +
    n s_column], in panels; columns beyond the last are 0. All arrays flat."""
    rows, across = outer * middle * inner, (columns + 2 * L - 1) // (2 * L)
    for chunk in prange(chunks):
        for row in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
            i, j, k = row // (middle * inner), row // inner % middle, row % inner
            start = at + i * s_outer + j * s_middle + k * s_inner
            for p in range(across):
                n0 = p * 2 * L
                width = min(2 * L, (columns - n0 + L - 1) // L * L)
                target = panels[to + n0 * rows + row * width:to + n0 * rows + (row + 1) * width]
                for n in range(width):
                    target[n] = source[start + (n0 + n) * s_column] if n0 + n < columns else 0
