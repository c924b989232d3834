// Batch normalisation over the rows of x (rows, columns), alone or with ReLU and 2x2 max pooling behind it. Sums over
// rows are made in two stages, as columns.cuh says.
//
// Variances: a thread takes the mean of its own few numbers, then their squared distances from that (the corrected
// two-pass algorithm: what rounding left of their sum goes back into mean and square), and the parts are joined in
// double as sum of squares + n (mean - all's mean)^2 (Chan, Golub & LeVeque 1983). Nothing large is ever subtracted
// from something as large, whatever the mean of x, and no element is converted to double, in which many devices are
// slow.

// n = (x - mean) inv_std of column c.
__device__ inline REAL normal_of(REAL x, int64 c, const REAL *mean, const REAL *inv_std)
{
    return (x - mean[c]) * inv_std[c];
}

#define NORM const REAL *mean, const REAL *inv_std, const REAL *g, const REAL *b

// h = g n + b: in the same rounding forward and backward, so that both see the same side of a kink.
__device__ inline REAL scaled(REAL x, int64 c, NORM)
{
    return (x - mean[c]) * (g[c] * inv_std[c]) + b[c];
}

__device__ inline REAL norm_dx(REAL dh, REAL n, int64 c, int64 rows, int64 columns, const REAL *sums, REAL factor)
{
    return factor * (dh - sums[c] / rows - n * (sums[columns + c] / rows));
}

// means, squares (parts, columns): mean and sum of squared distances from it, of each thread's numbers.
KERNEL column_moments(const REAL *x, double *means, double *squares, int64 count, int64 threads)
{
    const int64 thread = thread_index();
    if (thread >= threads)
        return;
    REAL sum = 0, left = 0, square = 0;
    int64 numbers = 0;
    for (int64 i = thread; i < count; i += threads, numbers++)
        sum += x[i];
    const REAL centre = sum / numbers;
    for (int64 i = thread; i < count; i += threads) {
        const REAL distance = x[i] - centre;
        left += distance;
        square += distance * distance;
    }
    means[thread] = centre + (double)left / numbers;
    squares[thread] = square - (double)left * left / numbers;
}

// mean and inv_std of each column, and the running statistics moved towards them. One block a column.
KERNEL norm_statistics(const double *means, const double *squares, int64 rows, int64 parts, int64 columns, REAL *mean,
                       REAL *inv_std, REAL *running_mean, REAL *running_var, double momentum, double eps)
{
    const int64 column = blockIdx.x;
    double sum = 0, square = 0;
    for (int64 part = threadIdx.x; part < parts; part += COLUMN_BLOCK)
        sum += (double)((rows - part + parts - 1) / parts) * means[part * columns + column];
    const double centre = block_sum<COLUMN_BLOCK>(sum) / rows;
    for (int64 part = threadIdx.x; part < parts; part += COLUMN_BLOCK) {
        const double distance = means[part * columns + column] - centre;
        square += squares[part * columns + column] + (double)((rows - part + parts - 1) / parts) * distance * distance;
    }
    square = block_sum<COLUMN_BLOCK>(square);
    if (threadIdx.x != 0)
        return;
    const double var = square / rows, unbiased = square / (rows > 1 ? rows - 1 : 1);
    mean[column] = (REAL)centre;
    inv_std[column] = (REAL)(1 / sqrt(var + eps));
    running_mean[column] += (REAL)(momentum * (centre - running_mean[column]));
    running_var[column] += (REAL)(momentum * (unbiased - running_var[column]));
}

// inv_std of running statistics. One thread a column.
KERNEL inverse_deviation(const REAL *running_var, REAL *inv_std, int64 columns, double eps)
{
    const int64 c = thread_index();
    if (c < columns)
        inv_std[c] = 1 / sqrt(running_var[c] + (REAL)eps);
}

// y = f(g n + b). One thread an element.
KERNEL batch_norm(const REAL *x, REAL *y, int64 count, int64 columns, NORM, int function)
{
    const int64 i = thread_index();
    if (i < count)
        y[i] = activate(scaled(x[i], i % columns, mean, inv_std, g, b), function, REAL(1)).y;
}

// partial (2, threads): the sums of dh = dy f'(g n + b), and of dh n.
KERNEL batch_norm_sums(const REAL *dy, const REAL *x, double *partial, int64 count, int64 threads, int64 columns, NORM,
                       int function)
{
    const int64 thread = thread_index();
    if (thread >= threads)
        return;
    const int64 c = thread % columns;
    REAL shift = 0, stretch = 0;
    for (int64 i = thread; i < count; i += threads) {
        const REAL dh = dy[i] * activate(scaled(x[i], c, mean, inv_std, g, b), function, REAL(1)).slope;
        shift += dh;
        stretch += dh * normal_of(x[i], c, mean, inv_std);
    }
    partial[thread] = shift;
    partial[threads + thread] = stretch;
}

// db = sum dh, dg = sum dh n, added to what is there if accumulate, and both by themselves to sums (2, columns). One
// block a column.
KERNEL norm_gradients(const double *partial, int64 parts, int64 columns, REAL *sums, REAL *dg, REAL *db,
                      int accumulate)
{
    const int64 column = blockIdx.x;
    const double shift = column_sum(partial, parts, columns);
    const double stretch = column_sum(partial + parts * columns, parts, columns);
    if (threadIdx.x != 0)
        return;
    sums[column] = (REAL)shift;
    sums[columns + column] = (REAL)stretch;
    db[column] = (REAL)(accumulate ? db[column] + shift : shift);
    dg[column] = (REAL)(accumulate ? dg[column] + stretch : stretch);
}

// dx = g inv_std (dh - db / rows - n dg / rows). One thread an element.
KERNEL batch_norm_dx(const REAL *dy, const REAL *x, REAL *dx, const REAL *sums, int64 count, int64 rows,
                     int64 columns, NORM, int function)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const int64 c = i % columns;
    const REAL dh = dy[i] * activate(scaled(x[i], c, mean, inv_std, g, b), function, REAL(1)).slope;
    dx[i] = norm_dx(dh, normal_of(x[i], c, mean, inv_std), c, rows, columns, sums, g[c] * inv_std[c]);
}

// -- with ReLU and 2x2 max pooling: x (N, H, W, C), y and place (N, H / 2, W / 2, C) ---------------------------------

// Where the 2x2 window of element i of y begins in x.
__device__ inline int64 first_of(int64 i, int H, int W, int64 C)
{
    const Place at = place_of(i, H / 2, W / 2, C);
    return ((at.n * H + 2 * at.h) * W + 2 * at.w) * C + at.c;
}

// y = the largest of max(g n + b, 0), and its place unless that is null: 0 to 3 (the first of equals), 4 where nothing
// is above 0. One thread an element of y.
KERNEL norm_pool(const REAL *x, REAL *y, unsigned char *place, int64 count, int H, int W, int64 C, NORM)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const int64 first = first_of(i, H, W, C);
    REAL largest = 0;
    int where = 4;
    for (int k = 0; k < 4; k++) {
        const REAL h = scaled(x[first + ((int64)(k / 2) * W + k % 2) * C], i % C, mean, inv_std, g, b);
        if (h > largest)
            where = k;
        if (h > largest || h != h)
            largest = h;
    }
    y[i] = largest;
    if (place)
        place[i] = (unsigned char)(largest > 0 ? where : 4);
}

// partial (2, threads): the sums of dy and of dy n over the places that were the largest.
KERNEL norm_pool_sums(const REAL *dy, const unsigned char *place, const REAL *x, double *partial, int64 count,
                      int64 threads, int H, int W, int64 C, const REAL *mean, const REAL *inv_std)
{
    const int64 thread = thread_index();
    if (thread >= threads)
        return;
    REAL shift = 0, stretch = 0;
    for (int64 i = thread; i < count; i += threads) {
        const int where = place[i];
        if (where == 4)
            continue;
        const REAL value = x[first_of(i, H, W, C) + ((int64)(where / 2) * W + where % 2) * C];
        shift += dy[i];
        stretch += dy[i] * normal_of(value, thread % C, mean, inv_std);
    }
    partial[thread] = shift;
    partial[threads + thread] = stretch;
}

// dx = g inv_std (dh - db / rows - n dg / rows), dh = dy at the places, 0 elsewhere. One thread an element.
KERNEL norm_pool_dx(const REAL *dy, const unsigned char *place, const REAL *x, REAL *dx, const REAL *sums,
                    int64 count, int64 rows, int H, int W, int64 C, const REAL *mean, const REAL *inv_std,
                    const REAL *g)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const Place at = place_of(i, H, W, C);
    const int h = at.h / 2, w = at.w / 2;
    REAL dh = 0;
    if (h < H / 2 && w < W / 2) {
        const int64 window = ((at.n * (H / 2) + h) * (W / 2) + w) * C + at.c;
        dh = place[window] == at.h % 2 * 2 + at.w % 2 ? dy[window] : REAL(0);
    }
    dx[i] = norm_dx(dh, normal_of(x[i], at.c, mean, inv_std), at.c, rows, C, sums, g[at.c] * inv_std[at.c]);
}
