// A batch of images from where all of them lie, as they are or warped.

// bytes = 1: unsigned char, 4: float, 8: double
__device__ inline REAL read_pixel(const void *images, int64 i, int bytes)
{
    if (bytes == 1)
        return (REAL)((const unsigned char *)images)[i];
    return bytes == 4 ? (REAL)((const float *)images)[i] : (REAL)((const double *)images)[i];
}

__device__ inline int inside(int place, int size)
{
    return place < 0 ? 0 : place < size ? place : size - 1;
}

// Where image b of the batch lies among the n. A row beyond them counts on from the other end, as with CuPy's take;
// rows null: all images as they lie.
__device__ inline int64 source_of(int64 b, const int *rows, int64 n)
{
    return rows ? (rows[b] % n + n) % n : b;
}

// out (count / (H W C), H, W, C) = (images[rows] - shift) scale, mirrored left to right where flip is not 0, then moved
// down and right by moves (n, 2) pixels, edges repeated. One thread an element.
KERNEL image_batch(const void *images, int bytes, const int *rows, const unsigned char *flip, const int *moves,
                   const REAL *shift, const REAL *scale, REAL *out, int64 count, int64 n, int H, int W, int64 C)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const Place at = place_of(i, H, W, C);
    const int64 row = source_of(at.n, rows, n);
    const int h = inside(at.h - moves[2 * at.n], H), right = inside(at.w - moves[2 * at.n + 1], W);
    const int w = flip[at.n] ? W - 1 - right : right;
    const REAL value = read_pixel(images, ((row * H + h) * W + w) * C + at.c, bytes);
    out[i] = (value - shift[at.c]) * scale[at.c];
}

// mean (B, C): of each channel of images[rows]. One block a number.
KERNEL image_means(const void *images, int bytes, const int *rows, REAL *mean, int64 n, int H, int W, int64 C)
{
    const int64 pixels = (int64)H * W, first = source_of(blockIdx.x / C, rows, n) * pixels * C + blockIdx.x % C;
    double sum = 0;
    for (int64 pixel = threadIdx.x; pixel < pixels; pixel += BLOCK)
        sum += read_pixel(images, first + pixel * C, bytes);
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0)
        mean[blockIdx.x] = (REAL)(sum / pixels);
}

// The pixels on both sides of a place along one axis, and the second one's share.
struct Between { int first, second; REAL share; };

__device__ inline Between between(REAL place, int size)
{
    const REAL last = size - 1, held = place < 0 ? REAL(0) : place < last ? place : last;
    const int first = (int)held;
    return Between{first, inside(first + 1, size), held - first};
}

// out[b, h, w] = (clip((v - mean) c + mean + 255 l, 0, 255) - shift) scale, v = images[rows[b]] at row and column
// maps[b] (h, w, 1), bilinear, edges repeated; maps (B, 2, 3), tone (B, 2) = c, l. One thread an element.
KERNEL warp_batch(const void *images, int bytes, const int *rows, const REAL *maps, const REAL *tone,
                  const REAL *mean, const REAL *shift, const REAL *scale, REAL *out, int64 count, int64 n, int H,
                  int W, int Ho, int Wo, int64 C)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const Place at = place_of(i, Ho, Wo, C);
    const REAL *map = maps + 6 * at.n, m = mean[at.n * C + at.c];
    const Between row = between(map[0] * at.h + map[1] * at.w + map[2], H);
    const Between column = between(map[3] * at.h + map[4] * at.w + map[5], W);
    const int64 first = source_of(at.n, rows, n) * H * W;
    const auto pixel = [&](int h, int w) { return read_pixel(images, (first + (int64)h * W + w) * C + at.c, bytes); };
    const REAL rest = 1 - column.share;
    const REAL upper = pixel(row.first, column.first) * rest + pixel(row.first, column.second) * column.share;
    const REAL lower = pixel(row.second, column.first) * rest + pixel(row.second, column.second) * column.share;
    const REAL v = upper * (1 - row.share) + lower * row.share;
    const REAL lit = (v - m) * tone[2 * at.n] + m + 255 * tone[2 * at.n + 1];
    out[i] = ((lit < 0 ? REAL(0) : lit > 255 ? REAL(255) : lit) - shift[at.c]) * scale[at.c];
}
