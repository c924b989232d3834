// Losses on class labels. One block of ROW_BLOCK threads a row of logits (N, K), all in double.

// The largest number of the block's threads, to all of them; NaN counts for nothing.
__device__ inline double row_max(double value)
{
    __shared__ double slots[ROW_BLOCK];
    slots[threadIdx.x] = value;
    __syncthreads();
    for (int i = 0; i < ROW_BLOCK; i++)
        value = slots[i] > value ? slots[i] : value;
    __syncthreads();   // the next call writes the slots
    return value;
}

// class_weight[label], 1 if that is null; a label that is none of the K spoils the loss, not the memory.
__device__ inline double weight_of(int label, const REAL *class_weight, int64 K)
{
    if (label < 0 || label >= K)
        return sqrt(-1.0);
    return class_weight ? (double)class_weight[label] : 1.0;
}

// total = sum of class_weight[label]. One block.
KERNEL sum_weights(const int *labels, const REAL *class_weight, int64 N, int64 K, double *total)
{
    double sum = 0;
    for (int64 i = threadIdx.x; i < N; i += BLOCK)
        sum += weight_of(labels[i], class_weight, K);
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0)
        *total = sum;
}

// With w = weight / total (null: N) and t = alpha ((1 - smoothing) e_label + smoothing / K) + (1 - alpha) soft:
// dlogits = w (p - t), partial[row] = w (-alpha sum label's part ln p + (1 - alpha) sum soft ln(soft / p)).
KERNEL softmax_cross_entropy(const REAL *logits, const int *labels, const REAL *soft, const REAL *class_weight,
                             const double *total, REAL *dlogits, double *partial, int64 N, int64 K, double alpha,
                             double smoothing)
{
    const int64 row = blockIdx.x, first = row * K;
    const int label = labels[row];
    double largest = log(0.0), sum = 0, loss = 0;
    for (int64 k = threadIdx.x; k < K; k += ROW_BLOCK)
        largest = logits[first + k] > largest ? (double)logits[first + k] : largest;
    largest = row_max(largest);
    for (int64 k = threadIdx.x; k < K; k += ROW_BLOCK)
        sum += exp(logits[first + k] - largest);
    const double log_sum = log(block_sum<ROW_BLOCK>(sum));
    const double w = weight_of(label, class_weight, K) / (total ? *total : (double)N);
    for (int64 k = threadIdx.x; k < K; k += ROW_BLOCK) {
        const double log_p = logits[first + k] - largest - log_sum;
        const double hard = (k == label ? 1 - smoothing : 0.0) + smoothing / K;
        double target = alpha * hard;
        loss -= target * log_p;
        if (soft) {
            const double q = soft[first + k];
            target += (1 - alpha) * q;
            loss += (1 - alpha) * q * ((q > 0 ? log(q) : 0.0) - log_p);
        }
        dlogits[first + k] = (REAL)(w * (exp(log_p) - target));
    }
    loss = block_sum<ROW_BLOCK>(loss);
    if (threadIdx.x == 0)
        partial[row] = w * loss;
}

// Whether the value at a place is larger than another, or as large and before it. NaN is larger than any number.
__device__ inline bool ahead(REAL value, int64 place, REAL other, int64 other_place)
{
    const bool nan = value != value, other_nan = other != other;
    return value > other || (nan && !other_nan) || ((value == other || (nan && other_nan)) && place < other_place);
}

// hit[row] = 1 where the row's largest logit (the first of equals) is its label's.
KERNEL hits(const REAL *logits, const int *labels, int64 K, unsigned char *hit)
{
    __shared__ REAL values[ROW_BLOCK];
    __shared__ int64 places[ROW_BLOCK];
    const REAL *row = logits + blockIdx.x * K;
    REAL largest = log(REAL(0));
    int64 where = K;
    for (int64 k = threadIdx.x; k < K; k += ROW_BLOCK)
        if (ahead(row[k], k, largest, where)) {
            largest = row[k];
            where = k;
        }
    values[threadIdx.x] = largest;
    places[threadIdx.x] = where;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (int i = 1; i < ROW_BLOCK; i++)
        if (ahead(values[i], places[i], largest, where)) {
            largest = values[i];
            where = places[i];
        }
    hit[blockIdx.x] = where == labels[blockIdx.x];
}

// total = sum of hit (N,). One block.
KERNEL count_hits(const unsigned char *hit, int64 N, int64 *total)
{
    double sum = 0;
    for (int64 i = threadIdx.x; i < N; i += BLOCK)
        sum += hit[i];
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0)
        *total = (int64)sum;
}
