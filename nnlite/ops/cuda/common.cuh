// What all kernels share. REAL is float or double, an option of the compiler.
//
// Arrays lie in C order. Where a kernel says "one thread an element" the grid is rounded up to whole blocks, and
// threads past the end return.

#define KERNEL extern "C" __global__ void
#define BLOCK 256
#define ROW_BLOCK 32   // of a block that has one row to itself

typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

__device__ inline int64 thread_index()
{
    return (int64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ inline int64 thread_count()
{
    return (int64)gridDim.x * blockDim.x;
}

// A number that the host knows, or one that lies in device memory (bytes = 4: float, 8: double; 0: the host's), so
// that a captured graph reads what is there when it runs.
#define SCALAR(name) double name##_number, const void *name##_array, int name##_bytes
#define READ(name) read_scalar(name##_number, name##_array, name##_bytes)

__device__ inline double read_scalar(double number, const void *array, int bytes)
{
    if (bytes == 0)
        return number;
    return bytes == 4 ? *(const float *)array : *(const double *)array;
}

// The sum over the SIZE threads of a block, to all of them, always added in the same order. SIZE is a power of 2.
template <int SIZE> __device__ double block_sum(double value)
{
    __shared__ double slots[SIZE];
    const int thread = threadIdx.x;
    slots[thread] = value;
    for (int half = SIZE / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half)
            slots[thread] += slots[thread + half];
    }
    __syncthreads();
    const double sum = slots[0];
    __syncthreads();   // the next call writes the slots
    return sum;
}
