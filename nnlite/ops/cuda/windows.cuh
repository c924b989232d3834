// Where the windows of images lie: kernel, stride, padding, dilation, the images' size and the number of windows, each
// of rows and of columns. Images are (n, h, w, c) with c fastest.

#define WINDOWS int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw, int H, int W, int Ho, int Wo
#define THE_WINDOWS kh, kw, sh, sw, ph, pw, dh, dw, H, W, Ho, Wo

struct Place { int64 n; int h, w; int64 c; };

// Of element i of an array (N, H, W, C).
__device__ inline Place place_of(int64 i, int H, int W, int64 C)
{
    const int64 pixel = i / C, row = pixel / W;
    return Place{row / H, (int)(row % H), (int)(pixel % W), i % C};
}

// Along one axis: the pixel that the window has as its i-th, or -1 where that lies beyond the edges.
__device__ inline int pixel_of(int window, int i, int stride, int padding, int dilation, int pixels)
{
    const int pixel = window * stride - padding + i * dilation;
    return pixel < pixels ? pixel : -1;   // below 0 it is negative already
}

// Along one axis: the window that has the pixel as its i-th, or -1.
__device__ inline int window_of(int pixel, int i, int stride, int padding, int dilation, int windows)
{
    const int start = pixel + padding - i * dilation;
    return start >= 0 && start % stride == 0 && start / stride < windows ? start / stride : -1;
}

// use(tap, pixel) for each place i, j of the window that lies inside the image; tap = i kw + j, and pixel is counted
// through the image.
template <class Use> __device__ inline void each_pixel(const Place &window, WINDOWS, Use use)
{
    for (int i = 0; i < kh; i++) {
        const int h = pixel_of(window.h, i, sh, ph, dh, H);
        if (h < 0)
            continue;
        for (int j = 0; j < kw; j++) {
            const int w = pixel_of(window.w, j, sw, pw, dw, W);
            if (w >= 0)
                use(i * kw + j, (int64)h * W + w);
        }
    }
}

// use(tap, window) for each window that sees the pixel, as its place i, j; window is counted through the image.
template <class Use> __device__ inline void each_window(const Place &pixel, WINDOWS, Use use)
{
    for (int i = 0; i < kh; i++) {
        const int h = window_of(pixel.h, i, sh, ph, dh, Ho);
        if (h < 0)
            continue;
        for (int j = 0; j < kw; j++) {
            const int w = window_of(pixel.w, j, sw, pw, dw, Wo);
            if (w >= 0)
                use(i * kw + j, (int64)h * Wo + w);
        }
    }
}
