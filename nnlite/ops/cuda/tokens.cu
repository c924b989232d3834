// Layer normalisation over each row of x (rows, columns): one block of ROW_BLOCK threads a row.

// y = g n + b, n = (x - mean) inv_std, and mean and inv_std of each row. The variance as in norm.cu: distances from
// a first mean, which itself is made of distances from the row's first number, so that nothing large is subtracted
// from something as large.
KERNEL layer_norm(const REAL *x, const REAL *g, const REAL *b, REAL *y, REAL *mean, REAL *inv_std, int64 columns,
                  double eps)
{
    const int64 row = blockIdx.x, first = row * columns;
    REAL sum = 0, left = 0, square = 0;
    for (int64 c = threadIdx.x; c < columns; c += ROW_BLOCK)
        sum += x[first + c] - x[first];
    const REAL centre = (REAL)(x[first] + block_sum<ROW_BLOCK>(sum) / columns);
    for (int64 c = threadIdx.x; c < columns; c += ROW_BLOCK) {
        const REAL distance = x[first + c] - centre;
        left += distance;
        square += distance * distance;
    }
    const double moved = block_sum<ROW_BLOCK>(left) / columns;
    const double var = block_sum<ROW_BLOCK>(square) / columns - moved * moved;
    const REAL m = (REAL)(centre + moved), r = (REAL)(1 / sqrt((var < 0 ? 0 : var) + eps));
    for (int64 c = threadIdx.x; c < columns; c += ROW_BLOCK)
        y[first + c] = (x[first + c] - m) * r * g[c] + b[c];
    if (threadIdx.x == 0) {
        mean[row] = m;
        inv_std[row] = r;
    }
}

// dx = inv_std (dn - mean of dn - n mean of dn n), dn = dy g.
KERNEL layer_norm_dx(const REAL *dy, const REAL *x, const REAL *mean, const REAL *inv_std, const REAL *g, REAL *dx,
                     int64 columns)
{
    const int64 row = blockIdx.x, first = row * columns;
    const REAL m = mean[row], r = inv_std[row];
    REAL shift = 0, stretch = 0;
    for (int64 c = threadIdx.x; c < columns; c += ROW_BLOCK) {
        const REAL dn = dy[first + c] * g[c];
        shift += dn;
        stretch += dn * ((x[first + c] - m) * r);
    }
    shift = (REAL)(block_sum<ROW_BLOCK>(shift) / columns);
    stretch = (REAL)(block_sum<ROW_BLOCK>(stretch) / columns);
    for (int64 c = threadIdx.x; c < columns; c += ROW_BLOCK)
        dx[first + c] = r * (dy[first + c] * g[c] - shift - (x[first + c] - m) * r * stretch);
}

// partial (2, threads): the sums of dy and of dy n down the columns; see columns.cuh.
KERNEL layer_norm_sums(const REAL *dy, const REAL *x, const REAL *mean, const REAL *inv_std, double *partial,
                       int64 count, int64 threads, int64 columns)
{
    const int64 thread = thread_index();
    if (thread >= threads)
        return;
    REAL shift = 0, stretch = 0;
    for (int64 i = thread; i < count; i += threads) {
        const int64 row = i / columns;
        shift += dy[i];
        stretch += dy[i] * ((x[i] - mean[row]) * inv_std[row]);
    }
    partial[thread] = shift;
    partial[threads + thread] = stretch;
}
