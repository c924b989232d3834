"""Where the speed lives: a layer says what is computed, an ops object says how.

    reference   plain array code: the specification, for NumPy and CuPy alike
    cpu         Numba kernels; matrix products of our own, or BLAS where registers are short
    cuda        CuPy and CUDA C

All have the same methods with the same signatures; see `nnlite.ops.reference.ReferenceOps`.
"""

from ..errors import expected

NAMES = ("auto", "cpu", "cuda", "reference")
_made = {}


def get_ops(name="auto"):
    """The ops object of that name; one object a process and name.

    "auto" is cuda where CuPy and a device are found, else cpu.
    Raises NnliteError for an unknown name, or when cuda is asked for where none is.
    """
    if name not in NAMES:
        raise expected("device", "one of " + ", ".join(NAMES), repr(name))
    if name == "auto":
        name = "cuda" if _cuda_problem() is None else "cpu"
    if name not in _made:
        _made[name] = _make(name)
    return _made[name]


def _make(name):
    if name == "cuda":
        problem = _cuda_problem()
        if problem:
            raise expected("device 'cuda'", "an NVIDIA GPU and CuPy", problem)
        from .cuda import CudaOps
        return CudaOps()
    if name == "cpu":
        from .cpu import CpuOps
        return CpuOps()
    from .reference import ReferenceOps
    return ReferenceOps()


def _cuda_problem():
    """Why CUDA cannot be used here, in words; None where it can."""
    try:
        import cupy
    except ImportError:
        return "no CuPy (pip install \"nnlite[gpu13]\" or \"nnlite[gpu12]\")"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no usable device ({error})"
    return None if count else "no device"
