// What stands between the convolutions of a block: the end of a residual one, and squeeze-and-excitation's product.

// y = max(a + b, 0). One thread an element.
KERNEL add_relu(const REAL *a, const REAL *b, REAL *y, int64 count)
{
    const int64 i = thread_index();
    if (i >= count)
        return;
    const REAL sum = a[i] + b[i];
    y[i] = sum <= 0 ? REAL(0) : sum;
}

// dx = dy where y > 0, else 0. One thread an element.
KERNEL relu_backward(const REAL *dy, const REAL *y, REAL *dx, int64 count)
{
    const int64 i = thread_index();
    if (i < count)
        dx[i] = dy[i] * (y[i] > 0 ? REAL(1) : REAL(0));
}

// dx = dy s, s (N, C), and sums[n, p] = the sum of dy x over the p-th stretch of the image's pixels; sums
// (N, parts, C). One thread an element of sums.
KERNEL scale_channels_backward(const REAL *dy, const REAL *x, const REAL *s, REAL *dx, REAL *sums, int64 N,
                               int64 pixels, int64 C, int64 parts, int64 stretch)
{
    const int64 i = thread_index();
    if (i >= N * parts * C)
        return;
    const int64 c = i % C, part = i / C % parts, n = i / C / parts;
    const int64 start = part * stretch, stop = start + stretch < pixels ? start + stretch : pixels;
    const REAL factor = s[n * C + c];
    REAL sum = 0;
    for (int64 pixel = n * pixels + start; pixel < n * pixels + stop; pixel++) {
        const int64 j = pixel * C + c;
        sum += dy[j] * x[j];
        dx[j] = dy[j] * factor;
    }
    sums[i] = sum;
}
