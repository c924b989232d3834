// What stands around the matrix products of Linear and Dense: one pass behind the product forward, one before the
// products backward.

// y holds h = x W on entry and m f(h + b) after; slope = m f'(h + b) unless it is null. y (rows, columns); row r takes
// row r / each of b. threshold 0: no dropout, and the key is not read. One thread a Philox block, four columns.
KERNEL dense_forward(REAL *y, REAL *slope, const REAL *b, int64 rows, int64 columns, int64 each, int function,
                     uint64 threshold, double scale, KEY)
{
    const int64 quarter = (columns + 3) / 4, block = thread_index();
    if (block >= rows * quarter)
        return;
    const int64 row = block / quarter, q = block % quarter;
    const REAL *bias = b + row / each * columns;
    Words words = {};
    if (threshold)
        words = PHILOX(block);
    for (int part = 0; part < 4; part++) {
        const int64 column = part * quarter + q;
        if (column < columns) {
            const int64 i = row * columns + column;
            Activated a = activate(y[i] + bias[column], function, REAL(1));
            if (threshold) {
                const REAL m = words.word[part] < threshold ? (REAL)scale : REAL(0);
                a.y *= m;
                a.slope *= m;
            }
            y[i] = a.y;
            if (slope)
                slope[i] = a.slope;
        }
    }
}

// dh = dy slope (slope null: dh is dy and not written), and sums[g, p] = sum of dh over the p-th stretch of the rows
// of group g, added to what is there if accumulate. A group has `each` rows; sums (groups, parts, columns). One thread
// an element of sums.
KERNEL dense_backward(const REAL *dy, const REAL *slope, REAL *dh, REAL *sums, int64 groups, int64 each,
                      int64 columns, int64 parts, int64 stretch, int accumulate)
{
    const int64 i = thread_index();
    if (i >= groups * parts * columns)
        return;
    const int64 column = i % columns, part = i / columns % parts, group = i / columns / parts;
    const int64 start = part * stretch, stop = start + stretch < each ? start + stretch : each;
    REAL sum = 0;
    for (int64 row = group * each + start; row < group * each + stop; row++) {
        const int64 j = row * columns + column;
        REAL value = dy[j];
        if (slope) {
            value *= slope[j];
            dh[j] = value;
        }
        sum += value;
    }
    sums[i] = accumulate ? sums[i] + sum : sum;
}

// db[g] = sum over p of sums[g, p], added if accumulate. One thread an element of db.
KERNEL add_parts(const REAL *sums, REAL *db, int64 groups, int64 parts, int64 columns, int accumulate)
{
    const int64 i = thread_index();
    if (i >= groups * columns)
        return;
    const REAL *first = sums + i / columns * parts * columns + i % columns;
    REAL sum = 0;
    for (int64 part = 0; part < parts; part++)
        sum += first[part * columns];
    db[i] = accumulate ? db[i] + sum : sum;
}
