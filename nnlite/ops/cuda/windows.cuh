// Where the windows of images lie: kernel, stride, padding, dilation, the images' size and the number of windows, each
// of rows and of columns. Images are (n, h, w, c) with c fastest.

#define WINDOWS int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw, int H, int W, int Ho, int Wo

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
