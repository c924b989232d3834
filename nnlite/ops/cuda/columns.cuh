// Sums over the rows of a matrix (rows, columns), in two stages.
//
// First, thread t of parts * columns adds up the elements t, t + threads, ...: all of column t % columns, while
// neighbours read neighbours. A thread adds few numbers, in REAL; what it found is kept and added up in double.
// Then one block a column adds up the parts.

#define COLUMN_BLOCK 128

// The sum of partial (parts, columns) over the parts, of the block's column, to all its threads.
__device__ inline double column_sum(const double *partial, int64 parts, int64 columns)
{
    double sum = 0;
    for (int64 part = threadIdx.x; part < parts; part += COLUMN_BLOCK)
        sum += partial[part * columns + blockIdx.x];
    return block_sum<COLUMN_BLOCK>(sum);
}

// out = the sum of partial (parts, columns) over the parts, added to what is there if accumulate.
KERNEL finish_columns(const double *partial, int64 parts, int64 columns, REAL *out, int accumulate)
{
    const double sum = column_sum(partial, parts, columns);
    if (threadIdx.x == 0)
        out[blockIdx.x] = accumulate ? (REAL)(out[blockIdx.x] + sum) : (REAL)sum;
}
