// Attention whose scores never lie in memory (Dao et al. 2022, FlashAttention; the running softmax: Milakov and
// Gimelshein 2018). A block has TILE rows of one head and goes over the others TILE at a time.
//
// Products: 16 x 16 threads, EACH x EACH numbers of a tile in the registers of each, SLICE numbers of the common axis
// in shared memory at a time. A block makes TILE columns of its result; heads wider than that get several blocks a
// tile, which make the same scores. Gradients are gathered: one kernel goes over the keys for dq, another over the
// queries for dk and dv, so that no two blocks write the same place: the same bits at each run.

#define SIDE 16
#define EACH 4
#define TILE (SIDE * EACH)
#define SLICE (64 / (int)sizeof(REAL))
#define PITCH (TILE + 4)   // rows begin at whole vectors of 16 bytes, and on different banks

// Few enough registers that one block computes while another waits for memory.
#define TWO_AT_ONCE __launch_bounds__(BLOCK, sizeof(REAL) == 4 ? 2 : 1)

// a, b: slices of two factors, the common axis first. weights: a tile of scores or of their gradients.
struct alignas(16) Tiles { REAL a[SLICE][PITCH], b[SLICE][PITCH], weights[TILE][PITCH]; };

// A matrix (count, width), its rows `distance` apart.
struct Rows { const REAL *first; int64 distance; int count, width; };

// What a block makes: TILE rows from `row` on and TILE columns from `column` on, of a head counted through all images.
struct Task { int64 head; int row, column; };

__device__ inline Task task_of_block(int T, int d)
{
    const int columns = (d + TILE - 1) / TILE, rows = (T + TILE - 1) / TILE, tile = blockIdx.x / columns;
    return Task{tile / rows, tile % rows * TILE, (int)blockIdx.x % columns * TILE};
}

// Where a head begins in an array (N, T, parts, heads, d).
__device__ inline int64 start_of(int64 head, int part, int parts, int T, int heads, int d)
{
    return (head / heads * T * parts * heads + part * heads + head % heads) * d;
}

__device__ inline Rows rows_of(const REAL *x, int64 head, int part, int parts, int T, int heads, int d)
{
    return Rows{x + start_of(head, part, parts, T, heads, d), (int64)parts * heads * d, T, d};
}

// The thread's numbers of a tile: rows top() + i, columns left() + j.
__device__ inline int top()
{
    return threadIdx.x / SIDE * EACH;
}

__device__ inline int left()
{
    return threadIdx.x % SIDE * EACH;
}

// to[k][r] = x[row + r][column + k], 0 beyond the edges.
__device__ inline void load_transposed(REAL (*to)[PITCH], Rows x, int row, int column)
{
    for (int i = threadIdx.x; i < TILE * SLICE; i += BLOCK) {
        const int r = i / SLICE, k = i % SLICE;
        const bool inside = row + r < x.count && column + k < x.width;
        to[k][r] = inside ? x.first[(row + r) * x.distance + column + k] : REAL(0);
    }
}

// to[k][c] = x[row + k][column + c], 0 beyond the edges.
__device__ inline void load(REAL (*to)[PITCH], Rows x, int row, int column)
{
    for (int i = threadIdx.x; i < SLICE * TILE; i += BLOCK) {
        const int k = i / TILE, c = i % TILE;
        const bool inside = row + k < x.count && column + c < x.width;
        to[k][c] = inside ? x.first[(row + k) * x.distance + column + c] : REAL(0);
    }
}

// sums[i][j] += sum over k of a[k][top() + i] b[k][left() + j]
__device__ inline void multiply(REAL (&sums)[EACH][EACH], const REAL (*a)[PITCH], const REAL (*b)[PITCH])
{
    const int row = top(), column = left();
    #pragma unroll
    for (int k = 0; k < SLICE; k++) {
        REAL u[EACH], v[EACH];
        for (int i = 0; i < EACH; i++) {
            u[i] = a[k][row + i];
            v[i] = b[k][column + i];
        }
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++)
                sums[i][j] += u[i] * v[j];
    }
}

// sums[i][j] = x[row + top() + i] . y[column + left() + j]
__device__ inline void inner_products(REAL (&sums)[EACH][EACH], Tiles &tiles, Rows x, int row, Rows y, int column)
{
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++)
            sums[i][j] = 0;
    for (int k = 0; k < x.width; k += SLICE) {
        load_transposed(tiles.a, x, row, k);
        load_transposed(tiles.b, y, column, k);
        __syncthreads();
        multiply(sums, tiles.a, tiles.b);
        __syncthreads();
    }
}

// sums[i][j] += sum over r of weights[r][top() + i] x[row + r][column + left() + j]
__device__ inline void weighted_sums(REAL (&sums)[EACH][EACH], Tiles &tiles, Rows x, int row, int column)
{
    for (int r = 0; r < TILE && row + r < x.count; r += SLICE) {
        load(tiles.b, x, row + r, column);
        __syncthreads();   // the first one waits for the weights too
        multiply(sums, tiles.weights + r, tiles.b);
        __syncthreads();
    }
}

// The thread's sums to their places in a head's rows (T, d) from `first` on.
__device__ inline void store(REAL *first, int64 distance, int T, int d, Task task, const REAL (&sums)[EACH][EACH])
{
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) {
            const int row = task.row + top() + i, column = task.column + left() + j;
            if (row < T && column < d)
                first[row * distance + column] = sums[i][j];
        }
}

// y (N, T, heads d) and, unless it is null, log_sum (N, heads, T). One block a task.
KERNEL TWO_AT_ONCE attention(const REAL *qkv, REAL *y, REAL *log_sum, int T, int heads, int d)
{
    __shared__ Tiles tiles;
    const Task task = task_of_block(T, d);
    const Rows q = rows_of(qkv, task.head, 0, 3, T, heads, d), k = rows_of(qkv, task.head, 1, 3, T, heads, d);
    const Rows v = rows_of(qkv, task.head, 2, 3, T, heads, d);
    const REAL scale = 1 / sqrt((REAL)d);
    const int lane = threadIdx.x % SIDE;
    REAL sums[EACH][EACH] = {}, total[EACH] = {}, most[EACH], s[EACH][EACH];
    for (int i = 0; i < EACH; i++)
        most[i] = log(REAL(0));
    for (int key = 0; key < T; key += TILE) {
        inner_products(s, tiles, q, task.row, k, key);
        for (int i = 0; i < EACH; i++) {
            REAL largest = most[i];
            for (int j = 0; j < EACH; j++) {
                s[i][j] = key + left() + j < T ? s[i][j] * scale : log(REAL(0));
                largest = s[i][j] > largest ? s[i][j] : largest;
            }
            tiles.weights[lane][top() + i] = largest;
        }
        __syncthreads();
        for (int i = 0; i < EACH; i++) {
            const REAL before = most[i];
            for (int other = 0; other < SIDE; other++) {
                const REAL largest = tiles.weights[other][top() + i];
                most[i] = largest > most[i] ? largest : most[i];
            }
            const REAL shrink = exp(before - most[i]);
            total[i] *= shrink;
            for (int j = 0; j < EACH; j++)
                sums[i][j] *= shrink;
        }
        __syncthreads();
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++) {
                const REAL e = exp(s[i][j] - most[i]);
                total[i] += e;
                tiles.weights[left() + j][top() + i] = e;
            }
        weighted_sums(sums, tiles, v, key, task.column);
    }
    for (int i = 0; i < EACH; i++)
        tiles.weights[lane][top() + i] = total[i];
    __syncthreads();
    for (int i = 0; i < EACH; i++) {
        REAL all = 0;
        for (int other = 0; other < SIDE; other++)
            all += tiles.weights[other][top() + i];
        for (int j = 0; j < EACH; j++)
            sums[i][j] /= all;
        const int row = task.row + top() + i;
        if (log_sum && task.column == 0 && lane == 0 && row < T)
            log_sum[task.head * T + row] = most[i] + log(all);
    }
    store(y + start_of(task.head, 0, 1, T, heads, d), (int64)heads * d, T, d, task, sums);
}

// dots (N, heads, T) = dy . y = sum_j p_j dp_j of each row of scores. One thread a row.
KERNEL attention_dots(const REAL *dy, const REAL *y, REAL *dots, int64 count, int64 T, int64 heads, int64 d)
{
    const int64 i = thread_index();   // n, t, head
    if (i >= count)
        return;
    REAL sum = 0;
    for (int64 c = i * d; c < (i + 1) * d; c++)
        sum += dy[c] * y[c];
    const int64 token = i / heads, n = token / T;
    dots[(n * heads + i % heads) * T + token % T] = sum;
}

// What the gradients of a head are made of.
struct Head { Rows q, k, v, dy; const REAL *log_sum, *dots; };

__device__ inline Head head_of(const REAL *qkv, const REAL *dy, const REAL *log_sum, const REAL *dots, int64 head,
                               int T, int heads, int d)
{
    return Head{rows_of(qkv, head, 0, 3, T, heads, d), rows_of(qkv, head, 1, 3, T, heads, d),
                rows_of(qkv, head, 2, 3, T, heads, d), rows_of(dy, head, 0, 1, T, heads, d), log_sum + head * T,
                dots + head * T};
}

// p and ds = p (dp - dots) / sqrt(d) of the thread's queries (down) and keys (across), 0 beyond the edges.
__device__ inline void score_gradients(REAL (&p)[EACH][EACH], REAL (&ds)[EACH][EACH], Tiles &tiles, const Head &head,
                                       int query, int key)
{
    const REAL scale = 1 / sqrt((REAL)head.q.width);
    inner_products(p, tiles, head.q, query, head.k, key);
    inner_products(ds, tiles, head.dy, query, head.v, key);
    for (int i = 0; i < EACH; i++) {
        const int row = query + top() + i;
        for (int j = 0; j < EACH; j++) {
            const bool inside = row < head.q.count && key + left() + j < head.k.count;
            p[i][j] = inside ? exp(p[i][j] * scale - head.log_sum[row]) : REAL(0);
            ds[i][j] = inside ? p[i][j] * (ds[i][j] - head.dots[row]) * scale : REAL(0);
        }
    }
}

// dq = ds k. One block a task.
KERNEL TWO_AT_ONCE attention_dq(const REAL *qkv, const REAL *dy, const REAL *log_sum, const REAL *dots, REAL *dqkv,
                                int T, int heads, int d)
{
    __shared__ Tiles tiles;
    const Task task = task_of_block(T, d);
    const Head head = head_of(qkv, dy, log_sum, dots, task.head, T, heads, d);
    REAL dq[EACH][EACH] = {}, p[EACH][EACH], ds[EACH][EACH];
    for (int key = 0; key < T; key += TILE) {
        score_gradients(p, ds, tiles, head, task.row, key);
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++)
                tiles.weights[left() + j][top() + i] = ds[i][j];
        weighted_sums(dq, tiles, head.k, key, task.column);
    }
    store(dqkv + start_of(task.head, 0, 3, T, heads, d), head.q.distance, T, d, task, dq);
}

// dv = p^T dy and dk = ds^T q. One block a task, whose rows are keys.
KERNEL TWO_AT_ONCE attention_dk_dv(const REAL *qkv, const REAL *dy, const REAL *log_sum, const REAL *dots,
                                   REAL *dqkv, int T, int heads, int d)
{
    __shared__ Tiles tiles;
    const Task task = task_of_block(T, d);
    const Head head = head_of(qkv, dy, log_sum, dots, task.head, T, heads, d);
    REAL dk[EACH][EACH] = {}, dv[EACH][EACH] = {}, p[EACH][EACH], ds[EACH][EACH];
    for (int query = 0; query < T; query += TILE) {
        score_gradients(p, ds, tiles, head, query, task.row);
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++)
                tiles.weights[top() + i][left() + j] = p[i][j];
        weighted_sums(dv, tiles, head.dy, query, task.column);
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++)
                tiles.weights[top() + i][left() + j] = ds[i][j];
        weighted_sums(dk, tiles, head.q, query, task.column);
    }
    store(dqkv + start_of(task.head, 1, 3, T, heads, d), head.q.distance, T, d, task, dk);
    store(dqkv + start_of(task.head, 2, 3, T, heads, d), head.q.distance, T, d, task, dv);
}
