// Gaussian latents and the losses on them. A loss writes its gradient and the first stage of its value; finish_sum
// is the second.

// z = mu + sigma eps; h (N, 2K) = [mu, ln sigma^2], z (rows, K), `samples` rows for each row of h. One thread a
// Philox block.
KERNEL gaussian_sample(const REAL *h, REAL *z, int64 rows, int64 K, int64 samples, KEY)
{
    const int64 quarter = (K + 3) / 4, block = thread_index();
    if (block >= rows * quarter)
        return;
    const int64 row = block / quarter, q = block % quarter;
    const REAL *mu = h + row / samples * 2 * K, *log_var = mu + K;
    const Normals eps = normals(PHILOX(block));
    for (int part = 0; part < 4; part++) {
        const int64 k = part * quarter + q;
        if (k < K)
            z[row * K + k] = mu[k] + exp(REAL(0.5) * log_var[k]) * eps.value[part];
    }
}

// dh = [sum dz, sum dz (z - mu) / 2] over the samples of each row. One thread an element of mu.
KERNEL gaussian_sample_backward(const REAL *dz, const REAL *h, const REAL *z, REAL *dh, int64 N, int64 K,
                                int64 samples)
{
    const int64 i = thread_index();
    if (i >= N * K)
        return;
    const int64 n = i / K, k = i % K, mu = n * 2 * K + k;
    REAL sum = 0, product = 0;
    for (int64 row = n * samples; row < (n + 1) * samples; row++) {
        const REAL d = dz[row * K + k];
        sum += d;
        product += d * (z[row * K + k] - h[mu]);
    }
    dh[mu] = sum;
    dh[mu + K] = REAL(0.5) * product;
}

// df = 2 scale (f - x), partial[block] = sum (f - x)^2; f (rows, D), each row of x for `samples` rows of f.
KERNEL squared_error(const REAL *f, const REAL *x, REAL *df, int64 rows, int64 D, int64 samples, SCALAR(scale),
                     double *partial)
{
    const REAL twice_scale = (REAL)(2 * READ(scale));
    double sum = 0;
    for (int64 i = thread_index(); i < rows * D; i += thread_count()) {
        const REAL error = f[i] - x[i / D / samples * D + i % D];
        df[i] = twice_scale * error;
        sum += (double)error * error;
    }
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

// dmu = scale mu, d ln sigma^2 = scale (sigma^2 - 1) / 2, partial[block] = sum (mu^2 + sigma^2 - 1 - ln sigma^2).
KERNEL gaussian_kl(const REAL *h, REAL *dh, int64 N, int64 K, SCALAR(scale), double *partial)
{
    const REAL factor = (REAL)READ(scale);
    double sum = 0;
    for (int64 i = thread_index(); i < N * K; i += thread_count()) {
        const int64 at = i / K * 2 * K + i % K;
        const REAL mu = h[at], log_var = h[at + K];
        const REAL excess = expm1(log_var);   // sigma^2 - 1, exact where sigma is near 1
        dh[at] = factor * mu;
        dh[at + K] = factor * REAL(0.5) * excess;
        sum += (double)mu * mu + ((double)excess - log_var);
    }
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

#define TRIPLET_BLOCK 64

// One block a sample of a triplet: z (3 rows, K) holds `rows` references, plus and minus faces; weight (rows /
// samples,). dz of all three, and partial[block] = w ln(1 + exp(d(r, p) - d(r, n))).
KERNEL triplet_softplus(const REAL *z, const REAL *weight, REAL *dz, int64 rows, int64 K, int64 samples,
                        SCALAR(scale), double *partial)
{
    const int64 row = blockIdx.x, r = row * K, p = (rows + row) * K, n = (2 * rows + row) * K;
    double plus = 0, minus = 0;
    for (int64 k = threadIdx.x; k < K; k += TRIPLET_BLOCK) {
        const double to_plus = (double)z[r + k] - z[p + k], to_minus = (double)z[r + k] - z[n + k];
        plus += to_plus * to_plus;
        minus += to_minus * to_minus;
    }
    plus = sqrt(block_sum<TRIPLET_BLOCK>(plus));
    minus = sqrt(block_sum<TRIPLET_BLOCK>(minus));
    const double w = weight[row / samples], gap = plus - minus, small = exp(-fabs(gap));
    const double slope = w * READ(scale) * (gap < 0 ? small : 1.0) / (1.0 + small);
    // Where two latents coincide the distance has no derivative; 0 is taken.
    const double toward = plus > 0 ? slope / plus : 0.0, away = minus > 0 ? slope / minus : 0.0;
    for (int64 k = threadIdx.x; k < K; k += TRIPLET_BLOCK) {
        const double dp = toward * ((double)z[r + k] - z[p + k]), dn = away * ((double)z[r + k] - z[n + k]);
        dz[r + k] = (REAL)(dp - dn);
        dz[p + k] = (REAL)-dp;
        dz[n + k] = (REAL)dn;
    }
    if (threadIdx.x == 0)
        partial[row] = w * ((gap < 0 ? 0.0 : gap) + log1p(small));
}
