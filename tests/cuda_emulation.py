"""CUDA without a GPU: the kernels compiled by g++ and run thread by thread, behind a CuPy that is NumPy.

`emulated_cuda()` gives nnlite's CudaOps on it. What is real: the kernels' text, the grids, the arguments (their number,
kind and size are checked as a launch would need them), the calls of cuBLAS. What is not: the compiler, rounding of the
device's functions, threads that truly run at once.

Threads of a block are fibers: each runs up to __syncthreads(), then the next one does, in an order that changes, so
that a barrier which is missing shows. New memory holds NaN, and so does a guard before and behind it, which no kernel
may write, and which spoils the result of one that reads it.
"""

import contextlib
import ctypes
import functools
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

SHIM = r"""
#include <cmath>
#include <functional>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>
using std::erf; using std::exp; using std::expm1; using std::fabs; using std::log; using std::log1p; using std::pow;
using std::sqrt; using std::tanh;
#define cospi shim_cospi
#define sinpi shim_sinpi
static REAL cospi(REAL x) { return (REAL)std::cos(M_PI * (double)x); }
static REAL sinpi(REAL x) { return (REAL)std::sin(M_PI * (double)x); }
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
struct Extent { unsigned x; };
static Extent threadIdx, blockIdx, blockDim, gridDim;
static ucontext_t scheduler, fibers[1024];
static bool finished[1024];
static unsigned order;
static std::function<void()> body;
static void __syncthreads() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static void enter() { body(); finished[threadIdx.x] = true; }

static bool run_block(unsigned threads)   // false: some threads ended while others wait for them
{
    const size_t size = 64 << 10;
    static std::vector<char> stacks(1024 * size);
    for (unsigned t = 0; t < threads; t++) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = &stacks[t * size];
        fibers[t].uc_stack.ss_size = size;
        fibers[t].uc_link = &scheduler;
        makecontext(&fibers[t], enter, 0);
        finished[t] = false;
    }
    while (true) {
        unsigned ended = 0;
        order = order * 1664525 + 1013904223;   // another order each time: odd steps through a power of 2
        for (unsigned i = 0; i < threads; i++) {
            const unsigned t = (i * (order >> 8 | 1) + (order >> 4)) % threads;
            threadIdx.x = t;
            swapcontext(&scheduler, &fibers[t]);
            ended += finished[t];
        }
        if (ended)
            return ended == threads;
    }
}

template <class T> static bool fits(char kind, int size)
{
    const char expected = std::is_pointer<T>::value ? 'p' : std::is_floating_point<T>::value ? 'f' : 'i';
    return size == sizeof(T) && kind == expected;
}

template <class... A, size_t... I>
static int run(void (*kernel)(A...), int grid, int block, int count, void **args, const char *kinds, int *sizes,
               std::index_sequence<I...>)
{
    if (count != sizeof...(A))
        return -1;
    int wrong = 0;
    (void)std::initializer_list<int>{(wrong = wrong || fits<A>(kinds[I], sizes[I]) ? wrong : int(I) + 1)...};
    if (wrong)
        return wrong;
    body = [&] { kernel(*(A *)args[I]...); };
    gridDim.x = grid;
    blockDim.x = block;
    for (int b = 0; b < grid; b++) {
        blockIdx.x = b;
        if (!run_block(block))
            return -2;
    }
    return 0;
}

template <class... A>
static int start(void (*kernel)(A...), int grid, int block, int count, void **args, const char *kinds, int *sizes)
{
    return run(kernel, grid, block, count, args, kinds, sizes, std::index_sequence_for<A...>());
}
"""

GUARD = 256   # bytes
CANARY = 0xFF   # NaN for floats


class Memory:
    """Every block handed out, to look at its guard at the end."""

    def __init__(self):
        self.blocks = []

    def empty(self, shape, dtype):
        shape = (shape,) if np.isscalar(shape) else tuple(shape)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = np.full(size + 2 * GUARD, CANARY, np.uint8)
        self.blocks.append((block, size))
        return np.ndarray(shape, dtype, block, GUARD).view(Array)

    def check(self):
        for block, size in self.blocks:
            assert (block[:GUARD] == CANARY).all() and (block[GUARD + size:] == CANARY).all(), "written outside"
        self.blocks.clear()


memory = Memory()
recorder = None   # the launches of the graph that is being captured


def execute(launch):
    """Run it now, or record it in the graph."""
    (launch() if recorder is None else recorder.append(launch))


class Array(np.ndarray):
    """cupy.ndarray: the parts that nnlite uses."""

    @property
    def data(self):
        return types.SimpleNamespace(
            ptr=self.ctypes.data,
            copy_from_host_async=lambda source, size, stream: ctypes.memmove(self.ctypes.data, source, size))


@functools.cache
def compiled(code, options):
    """The kernels as a library of functions run_<kernel>."""
    names = re.findall(r"^KERNEL (?:[A-Z_]+ )?(\w+)\(", code, re.MULTILINE)
    runners = "".join(f'extern "C" int run_{name}(int grid, int block, int count, void **args, const char *kinds, '
                      f'int *sizes) {{ return start({name}, grid, block, count, args, kinds, sizes); }}\n'
                      for name in names)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        source.write_text(f"{SHIM}\n{code}\n{runners}")
        # No contraction of products and sums: the plain rounding of IEEE 754.
        subprocess.run(["g++", "-std=c++14", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w", *options, "-o",
                        library, source], check=True)
        return ctypes.CDLL(str(library))


class RawModule:
    def __init__(self, *, code, options):
        self.library = compiled(code, options)

    def get_function(self, name):
        function = self.library[f"run_{name}"]

        def launch(grid, block, arguments):
            kinds, values = zip(*(argument(value) for value in arguments))
            places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            sizes = (ctypes.c_int * len(values))(*(ctypes.sizeof(value) for value in values))
            kinds = "".join(kinds)
            held = arguments, values

            def execute_now():
                code = function(grid[0], block[0], len(held[1]), places, kinds.encode(), sizes)
                problems = {-1: f"not {len(values)} arguments", -2: "a barrier that not all threads reach"}
                assert code == 0, f"{name}: " + problems.get(code, f"argument {code - 1} of the wrong kind or size")
            execute(execute_now)
        return launch


def argument(value):
    """Its kind (pointer, integer, float) and the bytes that a launch passes."""
    if isinstance(value, Array):
        assert value.flags.c_contiguous, "a kernel takes arrays in C order"
        return "p", ctypes.c_void_p(value.ctypes.data)
    if value is NULL:
        return "p", ctypes.c_void_p(None)
    if isinstance(value, np.generic):
        return ("f" if value.dtype.kind == "f" else "i"), np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
    if isinstance(value, float):
        return "f", ctypes.c_double(value)
    if isinstance(value, int):
        return "i", ctypes.c_longlong(value)
    raise TypeError(f"CuPy takes no {type(value).__name__}")


class NullPointer(int):
    """What stands for nnlite.ops.cuda.kernels.NULL here, told from other zeros."""


NULL = NullPointer(0)


class Graph:
    def __init__(self, launches):
        self.launches = launches

    def launch(self):
        for launch in self.launches:
            launch()


class Event:
    done = True

    def __init__(self, disable_timing=False):
        pass

    def record(self, stream):
        pass

    def synchronize(self):
        pass


class Stream:
    current = []
    made = 0

    def __init__(self, non_blocking=False):
        Stream.made += 1
        self.ptr = Stream.made

    def __enter__(self):
        Stream.current.append(self)

    def __exit__(self, *_):
        Stream.current.pop()

    def record(self):
        return Event()

    def wait_event(self, event):
        assert isinstance(event, Event)

    def begin_capture(self):
        global recorder
        recorder = []

    def end_capture(self):
        global recorder
        launches, recorder = recorder, None
        return Graph(launches)


NULL_STREAM = Stream()
NULL_STREAM.ptr = 0


class CublasFunction:
    """Converts as ctypes does: without argtypes an integer goes as a C int, and a pointer would lose its upper half."""

    argtypes = None

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        if self.argtypes is None:
            assert all(abs(value) < 2 ** 31 for value in arguments if isinstance(value, int))
        else:
            assert len(arguments) == len(self.argtypes)
            for kind, value in zip(self.argtypes, arguments):
                kind.from_param(value)
        return self.function(*arguments)


class CublasLibrary:
    """The functions of cuBLAS that nnlite calls. A matrix lies in columns: element (i, j) at i + j * ld."""

    def __init__(self):
        for name in "cublasCreate_v2", "cublasSetMathMode", "cublasSetStream_v2", "cublasSetWorkspace_v2":
            setattr(self, name, CublasFunction(lambda *_: 0))
        for letter, real in ("S", np.float32), ("D", np.float64):
            def gemm(handle, a_form, b_form, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, real=real):
                assert lda >= max(1, k if a_form else m) and ldb >= max(1, n if b_form else k) and ldc >= max(1, m)
                A = columns(a, (k, m) if a_form else (m, k), lda, real)
                B = columns(b, (n, k) if b_form else (k, n), ldb, real)
                C = columns(c, (m, n), ldc, real)
                factor, keep = alpha.contents.value, beta.contents.value

                def execute_now():
                    product = factor * ((A.T if a_form else A) @ (B.T if b_form else B))
                    C[...] = product + keep * C if keep else product
                execute(execute_now)
                return 0
            setattr(self, f"cublas{letter}gemm_v2", CublasFunction(gemm))


def columns(address, shape, ld, real):
    rows, count = shape
    if rows == 0 or count == 0:
        return np.empty(shape, real)
    flat = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(np.ctypeslib.as_ctypes_type(real))),
                                 (ld * (count - 1) + rows,))
    return np.lib.stride_tricks.as_strided(flat, shape, (real().itemsize, ld * real().itemsize))


def fake_cupy():
    def asarray(values, dtype=None):
        values = np.asarray(values, dtype)
        out = memory.empty(values.shape, values.dtype)
        out[...] = values
        return out

    cupy = types.ModuleType("cupy")
    cupy.__getattr__ = lambda name: getattr(np, name)
    cupy.ndarray, cupy.empty, cupy.asarray, cupy.RawModule = Array, memory.empty, asarray, RawModule
    cupy.asnumpy = lambda array: np.array(array)
    cupy.ascontiguousarray = lambda x: x if x.flags.c_contiguous else asarray(x)
    cupy.cuda = types.SimpleNamespace(
        get_current_stream=lambda: Stream.current[-1] if Stream.current else NULL_STREAM, Stream=Stream, Event=Event,
        alloc=lambda size: types.SimpleNamespace(ptr=1), using_allocator=lambda allocator: contextlib.nullcontext(),
        MemoryPool=lambda: types.SimpleNamespace(malloc=None),
        Device=lambda: types.SimpleNamespace(synchronize=lambda: None),
        runtime=types.SimpleNamespace(CUDARuntimeError=RuntimeError, getDevice=lambda: 0,
                                      getDeviceProperties=lambda device: {"name": b"no GPU"}))
    cupyx = types.ModuleType("cupyx")
    cupyx.empty_pinned = np.empty
    return cupy, cupyx


@contextlib.contextmanager
def emulated_cuda():
    """CudaOps on the emulation; afterwards nnlite.ops.cuda is as if never imported."""
    ours = ("cupy", "cupyx", "nnlite.ops.cuda")
    before = {name: module for name, module in sys.modules.items()
              if any(name == own or name.startswith(own + ".") for own in ours)}
    for name in before:
        del sys.modules[name]
    sys.modules["cupy"], sys.modules["cupyx"] = fake_cupy()
    try:
        package = importlib.import_module("nnlite.ops.cuda")
        kernels, images = (importlib.import_module(f"nnlite.ops.cuda.{name}") for name in ("kernels", "images"))
        importlib.import_module("nnlite.ops.cuda.blas").load = CublasLibrary
        kernels.NULL = images.NULL = NULL
        kernels.NO_KEY = package.NO_KEY = *kernels.NO_KEY[:3], NULL
        yield package.CudaOps
    finally:
        for name in [name for name in sys.modules if any(name == own or name.startswith(own + ".") for own in ours)]:
            del sys.modules[name]
        sys.modules.update(before)


def missing():
    """Why there is no emulation here; None where there is."""
    if shutil.which("g++") is None:
        return "no g++ to compile the kernels for the processor"
    if sys.platform != "linux":
        return "the emulation needs Linux's ucontext"
    return None
