// Optimisers: one pass over the flat arrays, one thread a parameter. bounds (parts + 1,), decay (parts,), rate
// (parts,) describe neighbouring ranges; learning rate and step count are read from device memory.

#define RANGES const int64 *bounds, const double *decay, const double *rate

__device__ inline int range_of(int64 i, const int64 *bounds)
{
    int part = 0;
    while (i >= bounds[part + 1])
        part++;
    return part;
}

// m null: no momentum.
KERNEL sgd(REAL *p, const REAL *g, REAL *m, int64 count, RANGES, SCALAR(lr), SCALAR(clip), double momentum,
           int nesterov)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const int part = range_of(i, bounds);
    REAL d = (REAL)READ(clip) * g[i] + (REAL)decay[part] * p[i];
    if (m) {
        const REAL moment = (REAL)momentum * m[i] + d;
        m[i] = moment;
        d = nesterov ? d + (REAL)momentum * moment : moment;
    }
    p[i] -= (REAL)(rate[part] * READ(lr)) * d;
}

KERNEL adagrad(REAL *p, const REAL *g, REAL *v, int64 count, RANGES, SCALAR(lr), SCALAR(clip), double eps)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const int part = range_of(i, bounds);
    const REAL d = (REAL)READ(clip) * g[i] + (REAL)decay[part] * p[i], sum = v[i] + d * d;
    v[i] = sum;
    p[i] -= (REAL)(rate[part] * READ(lr)) * d / (sqrt(sum) + (REAL)eps);
}

KERNEL rmsprop(REAL *p, const REAL *g, REAL *v, int64 count, RANGES, SCALAR(lr), SCALAR(clip), double rho,
               double eps)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const int part = range_of(i, bounds);
    const REAL d = (REAL)READ(clip) * g[i] + (REAL)decay[part] * p[i];
    const REAL mean = (REAL)rho * v[i] + (REAL)(1 - rho) * d * d;
    v[i] = mean;
    p[i] -= (REAL)(rate[part] * READ(lr)) * d / (sqrt(mean) + (REAL)eps);
}

KERNEL adam(REAL *p, const REAL *g, REAL *m, REAL *v, int64 count, RANGES, SCALAR(lr), SCALAR(clip), double beta1,
            double beta2, double eps, const int64 *t, int decoupled)
{
    // The bias corrections are the same for all; one thread of a block takes the powers.
    __shared__ REAL first, second;
    if (threadIdx.x == 0) {
        first = (REAL)(1 / (1 - pow(beta1, (double)*t)));
        second = (REAL)(1 / sqrt(1 - pow(beta2, (double)*t)));
    }
    __syncthreads();
    const int64 i = thread_index();
    if (i >= count)
        return;
    const int part = range_of(i, bounds);
    const double step = rate[part] * READ(lr);
    REAL d = (REAL)READ(clip) * g[i], value = p[i];
    if (decoupled)
        value *= (REAL)(1 - step * decay[part]);
    else
        d += (REAL)decay[part] * value;
    const REAL moment = (REAL)beta1 * m[i] + (REAL)(1 - beta1) * d;
    const REAL square = (REAL)beta2 * v[i] + (REAL)(1 - beta2) * d * d;
    m[i] = moment;
    v[i] = square;
    p[i] = value - (REAL)step * (moment * first) / (sqrt(square) * second + (REAL)eps);
}
