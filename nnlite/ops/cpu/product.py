"""c = a b for matrices of many rows and columns, in blocks that fit the levels of the cache.

Each thread takes some columns of c. It lays three vectors of columns of b side by side (a panel, see block.py), and
multiplies all rows of a with it while it lies in the second-level cache. So each number of b is read once, and c is
gone through once for each piece of the depth. Where a lies column by column, as x^T in a weight's gradient, its rows
are laid out first, in tiles as high as a block of registers, and each is multiplied with several panels while it is
near; if the rows are more than the columns, threads share these instead, so that not every one of them lays all.

A thread's own panel is what makes it faster than BLAS called from several threads: nothing that one core writes is read
by another.
"""

from numba import njit, prange

from .block import AHEAD, lay_panels, lay_turned, panel_at, panel_width, product_across, product_along
from .mathfun import kernel, straight
from .matrix import add_to
from .simd import load, load_some, prefetch, store

BY_COLUMNS, BY_ROWS, BY_DEPTH = range(3)   # what the threads share
NARROW, TALL = 512, 256                    # columns up to which, and rows from which on, they share rows
LARGEST_PART = 1 << 20                     # numbers of c that every thread may make a sum of its own for

ROWS = 800                                 # of a, for one panel
DEPTH = 512                                # of a panel: more of one column summed in a row would lose digits
PANELS = 8                                 # that a tile is multiplied with
TILE = 9                                   # rows of a block of registers
GROUP = 28 * TILE                          # rows that are laid out side by side


def plan(rows, depth, columns, tiled, L):
    """How threads share the work, and the numbers that each needs: of panels, of rows of a laid out, of a sum."""
    split = BY_COLUMNS
    if tiled and is_worth_parts(rows, depth, columns):
        split = BY_DEPTH
    elif rows > columns if tiled else columns <= NARROW and rows >= TALL:
        split = BY_ROWS
    deep, tiles = min(depth, DEPTH), -(-min(rows, ROWS) // TILE)
    wide = min((PANELS if tiled else 1) * 3 * L, -(-columns // L) * L)
    return (split, wide * deep, tiles * TILE * tile_row.py_func(deep) if tiled else 1,
            rows * columns if split == BY_DEPTH else 1)


def is_worth_parts(rows, depth, columns):
    """Whether threads that share the depth, with a sum of its own for each, read less of what another has written, half
    of a sum, than half of b and a quarter of a."""
    return rows * columns < min(depth * (columns + rows / 2), LARGEST_PART)


@njit(inline="always")
def tile_row(depth):
    """Numbers of a tile for each of its rows; two more, since vectors are stored whole."""
    return depth + 2


@kernel
def product(a, a_row, a_inner, b, b_row, b_column, c, rows, depth, columns, split, accumulate, L, panel, room, parts):
    """c (rows, columns) = a b, or added to c; a[m, k] lies at m a_row + k a_inner, b[k, n] at k b_row + n b_column, one
    of each two being 1. split: what the threads share; by depth, each makes a sum of its own, all but the first in
    parts. a, b, c are flat; panel, room, parts (chunks, numbers as of `plan`) are scratch."""
    chunks = len(panel)
    for chunk in prange(chunks):
        first, last, front, back, begin, end = 0, rows, 0, depth, 0, columns
        if split == BY_ROWS:
            first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        elif split == BY_DEPTH:
            front, back = depth * chunk // chunks, depth * (chunk + 1) // chunks
        else:
            begin, end = panel_at(columns, L, chunk, chunks), panel_at(columns, L, chunk + 1, chunks)
        target, add = c, accumulate
        if split == BY_DEPTH and chunk > 0:
            target, add = parts[chunk], False
        for m in range(first, last, ROWS):
            # The depth outside the columns: so what a piece needs of a stays in the second-level cache.
            pieces = (back - front + DEPTH - 1) // DEPTH
            for piece in range(pieces):
                k, stop = front + (back - front) * piece // pieces, front + (back - front) * (piece + 1) // pieces
                multiply(a, m * a_row + k * a_inner, a_row, a_inner, min(ROWS, last - m), stop - k, b,
                         k * b_row + begin * b_column, b_row, b_column, end - begin, target, m * columns + begin,
                         columns, add or piece > 0, L, panel[chunk], room[chunk])
    if split == BY_DEPTH:
        for chunk in prange(chunks):
            start, stop = c.size * chunk // chunks, c.size * (chunk + 1) // chunks
            for part in range(1, chunks):
                add_to(c[start:stop], parts[part, start:stop])


@straight
def multiply(a, at, a_row, a_inner, rows, depth, b, bt, b_row, b_column, columns, c, ct, c_row, accumulate, L, panel,
             room):
    """A thread's part of the columns, for a block of rows and a piece of the depth."""
    if a_inner != 1:
        lay_tiles(a, at, a_inner, rows, depth, L, room)
    start = 0
    while start < columns:
        stop = start
        for _ in range(1 if a_inner == 1 else PANELS):
            stop += panel_width(columns - stop, L) * L if stop < columns else 0
        wide = min(stop, columns) - start
        if b_column == 1:
            lay_panels(b, bt + start, depth, b_row, wide, L, panel)
        else:
            lay_turned(b, bt + start * b_column, depth, wide, b_column, L, panel)
        if a_inner == 1:
            product_along(rows, a, at, a_row, 1, depth, panel, 0, L, wide, c, ct + start, c_row, accumulate)
        else:
            for m in range(0, rows, TILE):
                product_across(min(TILE, rows - m), room, m * tile_row(depth), 1, TILE, depth, panel, 0, L, wide, c,
                               ct + m * c_row + start, c_row, accumulate)
        start = stop


@straight
def lay_tiles(a, at, a_inner, rows, depth, L, room):
    """The matrix a[at + m + k a_inner] in tiles of TILE rows, each TILE tile_row numbers: within its tile, m and k lie
    at k TILE + m % TILE. Whole vectors are copied; what is too much, the next copy overwrites, or it stays behind the
    tile's last column."""
    size = TILE * tile_row(depth)
    for group in range(0, rows, GROUP):
        stop = min(rows, group + GROUP)
        for k in range(depth):
            start = at + k * a_inner
            for m in range(group, stop, L):
                prefetch(a, start + AHEAD * a_inner + m)
            for m in range(group, stop, TILE):
                place = m // TILE * size + k * TILE
                for v in range(0, TILE, L):
                    if m + v + L <= rows:
                        store(room, place + v, load(a, start + m + v))
                    else:
                        store(room, place + v, load_some(a, start + m + v, rows - m - v))
