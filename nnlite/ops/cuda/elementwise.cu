// Element by element, and the sum that the gradient norm needs.

// y = f(x); slope = f'(x) unless it is null. One thread an element.
KERNEL activation(const REAL *x, REAL *y, REAL *slope, int64 count, int function, double alpha)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const Activated a = activate(x[i], function, (REAL)alpha);
    y[i] = a.y;
    if (slope)
        slope[i] = a.slope;
}

// y = m x and the mask m: `scale` where the word is below the threshold, else 0. One thread a Philox block.
KERNEL dropout(const REAL *x, REAL *y, REAL *mask, int64 rows, int64 columns, uint64 threshold, double scale, KEY)
{
    const int64 quarter = (columns + 3) / 4, block = thread_index();
    if (block >= rows * quarter)
        return;
    const int64 row = block / quarter, q = block % quarter;
    const Words words = PHILOX(block);
    for (int part = 0; part < 4; part++) {
        const int64 column = part * quarter + q;
        if (column < columns) {
            const int64 i = row * columns + column;
            const REAL m = words.word[part] < threshold ? (REAL)scale : REAL(0);
            mask[i] = m;
            y[i] = m * x[i];
        }
    }
}

// partial[block] = sum x^2 over the block's share.
KERNEL sum_of_squares(const REAL *x, int64 count, double *partial)
{
    double sum = 0;
    for (int64 i = thread_index(); i < count; i += thread_count())
        sum += (double)x[i] * x[i];
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

// value = factor * scale * sum of partial (count,): the second stage of every reduction, one block.
KERNEL finish_sum(const double *partial, int64 count, double factor, SCALAR(scale), double *value)
{
    double sum = 0;
    for (int64 i = threadIdx.x; i < count; i += BLOCK)
        sum += partial[i];
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0)
        *value = factor * READ(scale) * sum;
}
