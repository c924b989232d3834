// Convolutions. Conv2d is a matrix product over windows that lie in the rows of a matrix, which unfold writes;
// DepthwiseConv2d is direct. Gradients are gathered, never scattered: the same bits at each run.

// columns (windows, groups, kh kw, C / groups): what each window sees, 0 beyond the edges. One thread for each window
// and channel.
KERNEL unfold(const REAL *x, REAL *columns, int64 count, int64 C, int64 groups, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, Ho, Wo, C);
    const int64 width = C / groups, group = at.c / width;
    const REAL *image = x + at.n * H * W * C + at.c;
    REAL *out = columns + (thread / C * groups + group) * kh * kw * width + at.c % width;
    for (int i = 0; i < kh; i++) {
        const int h = pixel_of(at.h, i, sh, ph, dh, H);
        for (int j = 0; j < kw; j++, out += width) {
            const int w = pixel_of(at.w, j, sw, pw, dw, W);
            *out = h >= 0 && w >= 0 ? image[((int64)h * W + w) * C] : REAL(0);
        }
    }
}

// dx = the sum of the gradients of the columns that hold it. One thread an element of dx.
KERNEL fold(const REAL *columns, REAL *dx, int64 count, int64 C, int64 groups, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, H, W, C);
    const int64 width = C / groups, group = at.c / width;
    const REAL *image = columns + (at.n * Ho * Wo * groups + group) * kh * kw * width + at.c % width;
    REAL sum = 0;
    each_window(at, THE_WINDOWS, [&](int tap, int64 window) {
        sum += image[(window * groups * kh * kw + tap) * width];
    });
    dx[thread] = sum;
}

// dh = dy where y > 0 (y null: dh is dy and not written), and partial (threads,) the sums of dh; see columns.cuh.
KERNEL rectified(const REAL *dy, const REAL *y, REAL *dh, double *partial, int64 count, int64 threads)
{
    const int64 thread = thread_index();
    if (thread >= threads)
        return;
    REAL sum = 0;
    for (int64 i = thread; i < count; i += threads) {
        REAL value = dy[i];
        if (y) {
            value *= y[i] > 0 ? REAL(1) : REAL(0);
            dh[i] = value;
        }
        sum += value;
    }
    partial[thread] = sum;
}

// y[n, h, w] = b + sum_ij x[n, h s + i d - p, ...] K[i, j], channel by channel; b may be null. One thread an element.
KERNEL depthwise(const REAL *x, const REAL *K, const REAL *b, REAL *y, int64 count, int64 C, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, Ho, Wo, C);
    const REAL *image = x + at.n * H * W * C + at.c;
    REAL sum = 0;
    each_pixel(at, THE_WINDOWS, [&](int tap, int64 pixel) { sum += image[pixel * C] * K[tap * C + at.c]; });
    y[thread] = b ? sum + b[at.c] : sum;
}

// dx = the sum of dy K over the windows that see it. One thread an element of dx.
KERNEL depthwise_dx(const REAL *dy, const REAL *K, REAL *dx, int64 count, int64 C, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, H, W, C);
    const REAL *image = dy + at.n * Ho * Wo * C + at.c;
    REAL sum = 0;
    each_window(at, THE_WINDOWS, [&](int tap, int64 window) { sum += image[window * C] * K[tap * C + at.c]; });
    dx[thread] = sum;
}

// partial (parts, kh kw C): the sum of x dy over every parts-th of the windows. One thread an element.
KERNEL depthwise_dW(const REAL *dy, const REAL *x, double *partial, int64 windows, int64 parts, int64 C, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= parts * kh * kw * C)
        return;
    const int64 c = thread % C, tap = thread / C % (kh * kw), part = thread / C / (kh * kw);
    REAL sum = 0;
    for (int64 window = part; window < windows; window += parts) {
        const Place at = place_of(window, Ho, Wo, 1);
        const int h = pixel_of(at.h, (int)tap / kw, sh, ph, dh, H), w = pixel_of(at.w, (int)tap % kw, sw, pw, dw, W);
        if (h >= 0 && w >= 0)
            sum += x[((at.n * H + h) * W + w) * C + c] * dy[window * C + c];
    }
    partial[thread] = sum;
}
