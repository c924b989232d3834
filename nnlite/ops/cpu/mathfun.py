"""exp, expm1, log, log1p, sin and cos, and the normal distribution, that LLVM can vectorise.

The math library's functions are calls, one element at a time. These are straight lines of arithmetic in float32, so a
loop around them becomes AVX code; the error is a few units in the last place. In float64, which is for gradient
checks, they are the math library's.

For code compiled by Numba; on Python numbers they are math's.
"""

import math

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# Flags that let LLVM reorder and contract, but keep NaN and infinity what they are.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}

# How every kernel is compiled. error_model: no test for a zero divisor, which would stop the vectoriser.
kernel = njit(parallel=True, cache=True, fastmath=FAST, error_model="numpy")
serial = njit(cache=True, fastmath=FAST, error_model="numpy")   # too little work for a second thread
straight = njit(fastmath=FAST, error_model="numpy")   # a loop that a kernel calls on each thread

LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)            # 9 bits, so that n * LN2_HIGH is exact
LN2_LOW = np.float32(-2.12194440e-4)
ONE, HALF = np.float32(1), np.float32(0.5)
NORMAL_P = np.float32(0.33)


@intrinsic
def _bits_to_float(typing, bits):
    """The float32 with these bits (an int32)."""
    def build(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))
    return types.float32(types.int32), build


@intrinsic
def _float_to_bits(typing, x):
    def build(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int32))
    return types.int32(types.float32), build


@intrinsic
def _rint(typing, x):
    """To the nearest integer, as the vector unit does it."""
    def build(context, builder, signature, args):
        real = context.get_value_type(types.float32)
        function = cgutils.get_or_insert_function(builder.module, _function_type(real), "llvm.rint.f32")
        return builder.call(function, args)
    return types.float32(types.float32), build


def _function_type(real):
    from llvmlite import ir
    return ir.FunctionType(real, [real])


@njit(inline="always")
def _expm1_parts(x):
    """s and q with e^x = s (1 + q), x <= 89: s = 2^n, n = round(x / ln 2), q = e^r - 1 by Taylor's series."""
    x = max(x, np.float32(-87))
    n = _rint(x * LOG2E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    q = np.float32(1 / 5040)
    q = q * r + np.float32(1 / 720)
    q = q * r + np.float32(1 / 120)
    q = q * r + np.float32(1 / 24)
    q = q * r + np.float32(1 / 6)
    q = q * r + HALF
    q = q * r * r + r
    s = _bits_to_float((np.int32(n) + np.int32(127)) << np.int32(23))
    return s, q


def exp(x):
    return math.exp(x)


def expm1(x):
    return math.expm1(x)


def log(x):
    return math.log(x)


def log1p(x):
    """ln(1 + x), 0 <= x <= 1."""
    return math.log1p(x)


def cos_sin_turn(x):
    """cos and sin of x full turns (2 pi x), 0 <= x <= 1."""
    return math.cos(2 * math.pi * x), math.sin(2 * math.pi * x)


def normal_cdf(x):
    """Phi(x) = (1 + erf(x / sqrt 2)) / 2, and e^(-x^2/2)."""
    return 0.5 * math.erfc(-x * math.sqrt(0.5)), math.exp(-0.5 * x * x)


def _exp32(x):
    s, q = _expm1_parts(min(x, np.float32(89)))
    return s * (q + ONE)    # s is infinite from e^88.4 on


def _expm1_32(x):
    s, q = _expm1_parts(min(x, np.float32(88)))
    return s * q + (s - ONE)


def _log32(x):
    # x = 2^e m with m in [1/sqrt 2, sqrt 2); ln m = 2 artanh((m - 1) / (m + 1))
    bits = _float_to_bits(x)
    e = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    m = _bits_to_float(bits - (e << np.int32(23)))
    t = (m - ONE) / (m + ONE)
    return np.float32(e) * LN2_HIGH + (_artanh2(t) + np.float32(e) * LN2_LOW)


@njit(inline="always")
def _artanh2(t):
    """2 artanh t = 2 (t + t^3/3 + t^5/5 + ...), |t| <= 1/3: the next term is below 3e-9."""
    u = t * t
    p = np.float32(2 / 13)
    p = p * u + np.float32(2 / 11)
    p = p * u + np.float32(2 / 9)
    p = p * u + np.float32(2 / 7)
    p = p * u + np.float32(2 / 5)
    p = p * u + np.float32(2 / 3)
    return p * u * t + np.float32(2) * t


def _log1p_32(x):
    return _artanh2(x / (np.float32(2) + x))


def _cos_sin_turn32(x):
    # x = k/4 + r, |r| <= 1/8 of a turn; Taylor's series in 2 pi r, then k quarter turns
    k = _rint(x * np.float32(4))
    r = (x - k * np.float32(0.25)) * np.float32(2 * math.pi)
    u = r * r
    s = np.float32(1 / 362880)
    s = s * u - np.float32(1 / 5040)
    s = s * u + np.float32(1 / 120)
    s = s * u - np.float32(1 / 6)
    s = s * u * r + r
    c = np.float32(1 / 40320)
    c = c * u - np.float32(1 / 720)
    c = c * u + np.float32(1 / 24)
    c = c * u - HALF
    c = c * u + ONE
    quarter = np.int32(k) & np.int32(3)
    if quarter & 1:
        c, s = -s, c
    if quarter & 2:
        c, s = -c, -s
    return c, s


def _normal_cdf32(x):
    s, q = _expm1_parts(-HALF * x * x)
    e = s * (q + ONE)
    u = ONE / (ONE + NORMAL_P * abs(x))
    tail = e * _normal_tail(u)
    return (ONE - tail if x > np.float32(0) else tail), e


@njit(inline="always")
def _normal_tail(u):
    """Phi(-x) e^(x^2/2), x >= 0, as a polynomial in u = 1 / (1 + 0.33 x): the form of Abramowitz & Stegun 26.2.17 with
    more terms. The coefficients are a fit in float64 for the least relative error, 5e-8, over 0 <= x <= 13.5, beyond
    which e^(-x^2/2) is 0 in float32: weighted least squares at 4001 Chebyshev points of u against scipy's erfcx,
    weights multiplied by the error 200 times (Lawson 1961)."""
    q = np.float32(-0.0211830833)
    q = q * u + np.float32(0.124867978)
    q = q * u - np.float32(0.2707938)
    q = q * u + np.float32(0.228646253)
    q = q * u - np.float32(0.0592150321)
    q = q * u + np.float32(0.122923858)
    q = q * u + np.float32(0.110794655)
    q = q * u + np.float32(0.132339057)
    q = q * u + np.float32(0.131620139)
    return q * u


def _by_type(function, single):
    """Let compiled code use `single` for float32, math's function otherwise."""
    single = njit(inline="always")(single)
    double = njit(function)

    @overload(function, inline="always")
    def choose(x):
        if x is types.float32:
            return lambda x: single(x)
        return lambda x: double(x)


for _pair in ((exp, _exp32), (expm1, _expm1_32), (log, _log32), (log1p, _log1p_32), (cos_sin_turn, _cos_sin_turn32),
              (normal_cdf, _normal_cdf32)):
    _by_type(*_pair)
