"""Initial values of parameters: functions (ops, shape, key, dtype) -> array.

The last axis of a weight is its output axis, all others together are the fan-in.
"""

import math


def zeros(ops, shape, key, dtype):
    return ops.zeros(shape, dtype)


def ones(ops, shape, key, dtype):
    return ops.zeros(shape, dtype) + 1


def he_normal(ops, shape, key, dtype):
    """N(0, 2 / fan_in): He et al. 2015, eq. 10; keeps the variance through ReLU and its relatives."""
    return ops.normal(shape, key, dtype) * math.sqrt(2 / math.prod(shape[:-1]))


def lecun_normal(ops, shape, key, dtype):
    """N(0, 1 / fan_in): LeCun et al. 1998, eq. 16; keeps the variance through a linear layer."""
    return ops.normal(shape, key, dtype) * math.sqrt(1 / math.prod(shape[:-1]))


def small_normal(ops, shape, key, dtype):
    """N(0, 0.02^2): Devlin et al. 2019, for tokens and positions that are learnt."""
    return ops.normal(shape, key, dtype) * 0.02
