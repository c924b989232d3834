"""A small matrix product in registers, on which convolutions stand.

`multiply_along` makes rows x columns sums c[m, n] = sum_k a[m, k] b[k, n] in blocks of up to 9 rows and three vectors:
27 of the 32 registers of AVX-512 hold sums, three hold a row of b, one a number of a. So every number loaded is used
many times, and the loop runs at the rate of the multipliers (here 189 to 209 of 217 GFLOP/s on a core, where BLAS gives
such small matrices 120 to 140). Where a[m, k] lies is told by strides, so a matrix may as well be windows of an image:
nothing is copied.

b comes in panels, columns side by side, row under row: three vectors wide, the first ones two, so that it comes out
even (`panel_width`). The panel of column n begins at n times the number of rows.
"""

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .mathfun import FAST, kernel, straight
from .simd import (BYTES, VectorType, as_vector, element, everywhere, fetch, first_lanes, fused_multiply_add, llvm_type,
                   load, load_some, masked_load, masked_store, prefetch, store, transpose)

# Vectors side by side -> the heights that blocks have: those that fill the registers, and some for what is left over.
SHAPES = {3: (9, 7, 6, 4, 2, 1), 2: (14, 9, 7, 4, 2, 1), 1: (14, 4, 1)}
LATENCY = 4   # cycles until a sum can be added to again: fewer sums than 2 LATENCY wait for each other
OVERHEAD = 0.3
AHEAD = 32   # rows of a matrix that are fetched before they are laid in panels
SOON = 16    # rows of a panel that are fetched before they are multiplied


def _best_heights(vectors, most=60):
    """(most,): which height to begin with where so many rows are left, for the fewest cycles in all."""
    cycles, first = [0.0], [0]
    for left in range(1, most):
        choices = [(max(LATENCY, rows * vectors / 2) + OVERHEAD + cycles[left - rows], -rows)
                   for rows in SHAPES[vectors] if rows <= left]
        cycles.append(min(choices)[0])
        first.append(-min(choices)[1])
    return np.array(first, np.int64)


HEIGHTS3, HEIGHTS2, HEIGHTS1 = (_best_heights(vectors) for vectors in (3, 2, 1))


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
            for block in blocks:
                builder.store(ir.Constant(kind, None), sums[block])

            # Pointers to some rows of a: the others are addressed from these by one or two strides.
            every = rows if across else 3
            row_of_b = cgutils.alloca_once_value(builder, pb)
            heads = [cgutils.alloca_once(builder, pa.type) for _ in range(0, rows, every)]
            with cgutils.for_range(builder, outer_) as i:
                pi = builder.gep(pa, [builder.mul(i.index, a_outer_)])
                with cgutils.for_range(builder, middle_) as j:
                    pj = builder.gep(pi, [builder.mul(j.index, a_middle_)])
                    for r, head in zip(range(0, rows, every), heads):
                        builder.store(opaque(builder, builder.gep(pj, [builder.mul(a_row_, number(r))])), head)
                    with cgutils.for_range(builder, inner_):
                        starts, place = [builder.load(head) for head in heads], builder.load(row_of_b)
                        row = [builder.load(after(place, number(v * lanes)), align=align) for v in range(vectors)]
                        for v in range(vectors):    # the second-level cache is too far for the processor alone
                            fetch(builder, after(place, number((SOON * vectors + v) * lanes)))
                        for r in range(rows):
                            step = number(r) if across else builder.mul(a_row_, number(r % 3))
                            x = everywhere(builder, builder.load(builder.gep(starts[r // every], [step])), lanes)
                            for v in range(vectors):
                                total = fused_multiply_add(builder, vector, x, row[v], builder.load(sums[r, v]))
                                builder.store(total, sums[r, v])
                        for head, start in zip(heads, starts):
                            builder.store(builder.gep(start, [a_inner_ if across else number(1)]), head)
                        builder.store(builder.gep(place, [number(vectors * lanes)]), row_of_b)

            with builder.if_then(accumulate_):    # only now: a long sum keeps more digits in pieces
                for r, v in blocks:
                    before = masked_load(builder, vector, targets[r, v], masks[v])
                    builder.store(builder.fadd(before, builder.load(sums[r, v])), sums[r, v])
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
    three9, three7, three6, three4, three2, three1 = (block_product(rows, 3, across) for rows in SHAPES[3])
    two14, two9, two7, two4, two2, two1 = (block_product(rows, 2, across) for rows in SHAPES[2])
    one14, one4, one1 = (block_product(rows, 1, across) for rows in SHAPES[1])

    @straight
    def multiply(rows, a, at, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, vectors, c, ct, c_row,
                 columns, accumulate):
        heights = HEIGHTS3 if vectors == 3 else HEIGHTS2 if vectors == 2 else HEIGHTS1
        m = 0
        while m < rows:
            p, q, left = at + m * a_row, ct + m * c_row, rows - m
            height = heights[min(left, heights.size - 1)]
            if vectors == 3:
                if height == 9:
                    three9(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                           columns, accumulate)
                elif height == 7:
                    three7(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                           columns, accumulate)
                elif height == 6:
                    three6(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                           columns, accumulate)
                elif height == 4:
                    three4(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                           columns, accumulate)
                elif height == 2:
                    three2(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                           columns, accumulate)
                else:
                    three1(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                           columns, accumulate)
            elif vectors == 2:
                if height == 14:
                    two14(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                          columns, accumulate)
                elif height == 9:
                    two9(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                         columns, accumulate)
                elif height == 7:
                    two7(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                         columns, accumulate)
                elif height == 4:
                    two4(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                         columns, accumulate)
                elif height == 2:
                    two2(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                         columns, accumulate)
                else:
                    two1(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                         columns, accumulate)
            else:
                if height == 14:
                    one14(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                          columns, accumulate)
                elif height == 4:
                    one4(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                         columns, accumulate)
                else:
                    one1(a, p, a_row, outer, a_outer, middle, a_middle, inner, a_inner, b, bt, c, q, c_row,
                         columns, accumulate)
            m += height
    return multiply


multiply_along, multiply_across = multiplier(False), multiplier(True)


# -- panels -----------------------------------------------------------------------------------------------------------

def lanes(dtype):
    """Numbers in a vector."""
    return BYTES // np.dtype(dtype).itemsize


def padded(columns, dtype):
    """The columns of a matrix in panels: a multiple of the lanes."""
    return -(-columns // lanes(dtype)) * lanes(dtype)


@njit(inline="always")
def panel_width(columns, L):
    """Vectors of the next panel where so many columns are left: twos until the rest is threes; one if it is all."""
    vectors = (columns + L - 1) // L
    return 3 if vectors % 3 == 0 else min(vectors, 2)


@njit(inline="always")
def panel_of(column, columns, L):
    """First column and vectors of the panel that holds `column` of a matrix with so many columns."""
    vectors = (columns + L - 1) // L
    place, twos = column // L, (3 - vectors % 3) % 3
    if vectors == 1:
        return 0, 1
    if place < 2 * twos:
        return place // 2 * 2 * L, 2
    return (2 * twos + (place - 2 * twos) // 3 * 3) * L, 3


@njit(inline="always")
def panel_at(columns, L, share, shares):
    """The first column of the panel nearest to so many shares of a matrix's columns."""
    vectors = (columns + L - 1) // L
    wanted, start = vectors * share / shares, 0
    while start < vectors:
        width = panel_width(columns - start * L, L)
        if start + width / 2 > wanted:
            break
        start += width
    return min(start * L, columns)


@kernel
def pack(source, at, outer, s_outer, middle, s_middle, inner, s_inner, columns, s_column, panels, to, L, chunks):
    """panels[to:] = the matrix with rows (i, j, k) and columns n, source[at + i s_outer + j s_middle + k s_inner +
    n s_column], in panels; columns beyond the last are 0. All arrays flat."""
    rows, vectors = outer * middle * inner, (columns + L - 1) // L
    for chunk in prange(chunks):
        if s_column == 1:    # row by row, as the source lies
            for row in range(rows * chunk // chunks, rows * (chunk + 1) // chunks):
                i, j, k = row // (middle * inner), row // inner % middle, row % inner
                start, n = at + i * s_outer + j * s_middle + k * s_inner, 0
                while n < columns:
                    width = panel_width(columns - n, L) * L
                    target = panels[to + n * rows + row * width:to + n * rows + (row + 1) * width]
                    copy(source[start + n:start + min(n + width, columns)], target)
                    n += width
            continue
        for v in range(vectors * chunk // chunks, vectors * (chunk + 1) // chunks):
            # Along the source's rows, which are the panel's columns: every line of it is read once.
            first, width = panel_of(v * L, columns, L)
            place, target, step = at + v * L * s_column, to + first * rows + v * L - first, width * L
            for i in range(outer):
                for j in range(middle):
                    lay_columns(source, place + i * s_outer + j * s_middle, s_inner, inner, s_column,
                                min(L, columns - v * L), L, panels, target + (i * middle + j) * inner * step, step)


@straight
def copy(source, target):
    for n in range(source.size):
        target[n] = source[n]
    for n in range(source.size, target.size):
        target[n] = 0


@straight
def lay_columns(source, at, s_row, rows, s_column, there, L, panels, to, step):
    """A vector of columns, panels[to + k step + n] = source[at + k s_row + n s_column], zeros from column `there` on.
    Columns that lie in one piece go through the registers, square by square."""
    done = rows // L * L if s_row == 1 and there == L else 0
    for k in range(0, done, L):
        transpose(source, at + k, s_column, panels, to + k * step, step)
    for n in range(L):
        start, place = at + n * s_column, to + n
        for k in range(done, rows):
            panels[place + k * step] = source[start + k * s_row] if n < there else 0


@straight
def lay_panels(source, at, rows, s_row, columns, L, panels):
    """The matrix source[at + k s_row + n] of so many rows k and columns n in panels, by one thread."""
    n = 0
    while n < columns:
        width, to = panel_width(columns - n, L) * L, n * rows
        for k in range(rows):
            start, ahead = at + k * s_row + n, at + (k + AHEAD) * s_row + n
            for v in range(0, width, L):
                prefetch(source, ahead + v)    # rows lie far apart: the processor would not see them coming
                if n + v + L <= columns:
                    store(panels, to + v, load(source, start + v))
                else:
                    store(panels, to + v, load_some(source, start + v, columns - n - v))
            to += width
        n += width


@straight
def lay_turned(source, at, rows, columns, s_column, L, panels):
    """The matrix source[at + k + n s_column], which lies column by column, in panels, by one thread."""
    for n in range(0, columns, L):
        first, vectors = panel_of(n, columns, L)
        lay_columns(source, at + n * s_column, 1, rows, s_column, min(L, columns - n), L, panels,
                    first * rows + n - first, vectors * L)


def over_panels(multiply):
    @straight
    def product(rows, a, at, a_row, a_inner, depth, panels, start, L, columns, c, ct, c_row, accumulate):
        """c[m, n] = sum_k a[at + m a_row + k a_inner] b[k, n] with b in panels from start on, or added to c."""
        n = 0
        while n < columns:
            vectors = panel_width(columns - n, L)
            multiply(rows, a, at, a_row, 1, 0, 1, 0, depth, a_inner, panels, start + n * depth, vectors, c, ct + n,
                     c_row, columns - n, accumulate)
            n += vectors * L
    return product


product_along, product_across = over_panels(multiply_along), over_panels(multiply_across)
