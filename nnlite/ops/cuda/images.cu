// A batch of images from where all of them lie.

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

// out (count / (H W C), H, W, C) = (images[rows] - shift) scale, mirrored left to right where flip is not 0, then moved
// down and right by moves (n, 2) pixels, edges repeated. A row beyond the n images counts on from the other end, as
// with CuPy's take; rows null: all images as they lie. One thread an element.
KERNEL image_batch(const void *images, int bytes, const int *rows, const unsigned char *flip, const int *moves,
                   const REAL *shift, const REAL *scale, REAL *out, int64 count, int64 n, int H, int W, int64 C)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const Place at = place_of(i, H, W, C);
    const int64 row = rows ? (rows[at.n] % n + n) % n : at.n;
    const int h = inside(at.h - moves[2 * at.n], H), right = inside(at.w - moves[2 * at.n + 1], W);
    const int w = flip[at.n] ? W - 1 - right : right;
    const REAL value = read_pixel(images, ((row * H + h) * W + w) * C + at.c, bytes);
    out[i] = (value - shift[at.c]) * scale[at.c];
}
