// Pooling: one thread an element, of y forward and of dx backward.

// y = the largest of each window, and its place i kw + j (the first of equals) unless place is null. NaN is larger
// than any number, as in NumPy.
KERNEL max_pool(const REAL *x, REAL *y, unsigned char *place, int64 count, int64 C, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, Ho, Wo, C);
    const REAL *image = x + at.n * H * W * C + at.c;
    REAL largest = log(REAL(0));   // -infinity
    int where = 0;
    each_pixel(at, THE_WINDOWS, [&](int tap, int64 pixel) {
        const REAL value = image[pixel * C];
        if (value > largest || (value != value && largest == largest)) {
            largest = value;
            where = tap;
        }
    });
    y[thread] = largest;
    if (place)
        place[thread] = (unsigned char)where;
}

// dx = the sum of dy over the windows in which it was the largest.
KERNEL max_pool_backward(const REAL *dy, const unsigned char *place, REAL *dx, int64 count, int64 C, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, H, W, C);
    const int64 image = at.n * Ho * Wo * C + at.c;
    REAL sum = 0;
    each_window(at, THE_WINDOWS, [&](int tap, int64 window) {
        sum += place[image + window * C] == tap ? dy[image + window * C] : REAL(0);
    });
    dx[thread] = sum;
}

// y = the mean of each window.
KERNEL avg_pool(const REAL *x, REAL *y, int64 count, int64 C, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, Ho, Wo, C);
    const REAL *first = x + ((at.n * H + at.h * sh) * W + at.w * sw) * C + at.c;
    REAL sum = 0;
    for (int i = 0; i < kh; i++)
        for (int j = 0; j < kw; j++)
            sum += first[((int64)i * W + j) * C];
    y[thread] = sum / (kh * kw);
}

// dx = the sum of dy / (kh kw) over the windows that see it.
KERNEL avg_pool_backward(const REAL *dy, REAL *dx, int64 count, int64 C, WINDOWS)
{
    const int64 thread = thread_index();
    if (thread >= count)
        return;
    const Place at = place_of(thread, H, W, C);
    const REAL *image = dy + at.n * Ho * Wo * C + at.c;
    REAL sum = 0;
    each_window(at, THE_WINDOWS, [&](int, int64 window) { sum += image[window * C]; });
    dx[thread] = sum / (kh * kw);
}

// dx (N, pixels, C) = dy (N, C) / pixels.
KERNEL global_avg_pool_backward(const REAL *dy, REAL *dx, int64 count, int64 pixels, int64 C)
{
    const int64 thread = thread_index();
    if (thread < count)
        dx[thread] = dy[thread / C / pixels * C + thread % C] / pixels;
}
