// The activations and their slopes, as in nnlite.ops.reference.ACTIVATIONS and in its order. Comparisons are written
// so that NaN passes through.

enum Function { IDENTITY, RELU, LEAKY_RELU, ELU, SIGMOID, TANH, SILU, SOFTPLUS, GELU };

struct Activated { REAL y, slope; };

__device__ inline REAL sigmoid(REAL x)
{
    const REAL small = exp(-fabs(x));   // never overflows
    return (x < 0 ? small : REAL(1)) / (1 + small);
}

__device__ inline Activated activate(REAL x, int function, REAL alpha)
{
    const REAL zero = 0, one = 1;
    switch (function) {
    case RELU:
        return Activated{x <= 0 ? zero : x, x > 0 ? one : zero};
    case LEAKY_RELU: {
        const REAL slope = x > 0 ? one : alpha;
        return Activated{x * slope, slope};
    }
    case ELU:
        return x > 0 ? Activated{x, one} : Activated{alpha * expm1(x), alpha * exp(x)};
    case SIGMOID: {
        const REAL s = sigmoid(x);
        return Activated{s, s * (one - s)};
    }
    case TANH: {
        const REAL t = tanh(x);
        return Activated{t, one - t * t};
    }
    case SILU: {
        const REAL s = sigmoid(x);
        return Activated{x * s, s * (one + x * (one - s))};
    }
    case SOFTPLUS:
        return Activated{(x < 0 ? zero : x) + log1p(exp(-fabs(x))), sigmoid(x)};
    case GELU: {
        const REAL P = REAL(0.5) * (one + erf(x * REAL(0.70710678118654752440)));
        const REAL p = REAL(0.39894228040143267794) * exp(REAL(-0.5) * x * x);
        return Activated{x * P, P + x * p};
    }
    default:
        return Activated{x, one};
    }
}
