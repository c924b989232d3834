"""The table of all layers: every layer of nnlite.layers has a row here, and every row runs through test_battery.py.

A new layer adds one row.
"""

from typing import NamedTuple

from nnlite import layers as nl


class Row(NamedTuple):
    cls: type
    make: object             # (D, K) -> layer; D features of x, K what else can be chosen
    shapes: object           # (N, D, K) -> the input shapes, N the batch
    linear: bool = False     # linear in x, up to a constant: has the adjoint test
    noisy: bool = False      # draws random numbers in training
    any_width: bool = False  # takes any shape, so that no shape is wrong


def one(N, D, K):
    return [(N, D)]


ROWS = {
    "Linear": Row(nl.Linear, lambda D, K: nl.Linear(D, K), one, linear=True),
    "Linear without bias": Row(nl.Linear, lambda D, K: nl.Linear(D, K, bias=False), one, linear=True),
    "Linear on three axes": Row(nl.Linear, lambda D, K: nl.Linear(D, K), lambda N, D, K: [(N, 3, D)], linear=True),
    "ReLU": Row(nl.ReLU, lambda D, K: nl.ReLU(), one, any_width=True),
    "LeakyReLU": Row(nl.LeakyReLU, lambda D, K: nl.LeakyReLU(0.1), one, any_width=True),
    "ELU": Row(nl.ELU, lambda D, K: nl.ELU(), one, any_width=True),
    "ELU, alpha 0.5": Row(nl.ELU, lambda D, K: nl.ELU(0.5), one, any_width=True),
    "Sigmoid": Row(nl.Sigmoid, lambda D, K: nl.Sigmoid(), one, any_width=True),
    "Tanh": Row(nl.Tanh, lambda D, K: nl.Tanh(), one, any_width=True),
    "SiLU": Row(nl.SiLU, lambda D, K: nl.SiLU(), one, any_width=True),
    "Softplus": Row(nl.Softplus, lambda D, K: nl.Softplus(), one, any_width=True),
    "GELU": Row(nl.GELU, lambda D, K: nl.GELU(), lambda N, D, K: [(N, D, K)], any_width=True),
    "Dropout": Row(nl.Dropout, lambda D, K: nl.Dropout(0.7), one, linear=True, noisy=True, any_width=True),
    "Dense": Row(nl.Dense, lambda D, K: nl.Dense(D, K), one),
    "Dense with GELU and dropout": Row(nl.Dense, lambda D, K: nl.Dense(D, K, activation="gelu", keep_prob=0.8), one,
                                       noisy=True),
    "ConditionalDense": Row(nl.ConditionalDense,
                            lambda D, K: nl.ConditionalDense(D, 4, K, keep_prob=0.8, condition_gradient=True),
                            lambda N, D, K: [(3 * N, D), (N, 4)], noisy=True),
    "GaussianSample": Row(nl.GaussianSample, lambda D, K: nl.GaussianSample(3), lambda N, D, K: [(N, 2 * K)],
                          noisy=True),
    "Sequential": Row(nl.Sequential, lambda D, K: nl.Sequential(nl.Linear(D, 5), nl.SiLU(), nl.Dropout(0.8),
                                                                nl.Linear(5, K)), one, noisy=True),
    "Residual": Row(nl.Residual, lambda D, K: nl.Residual(nl.Sequential(nl.Linear(D, K), nl.Tanh(), nl.Linear(K, D))),
                    one),
    "Concat": Row(nl.Concat, lambda D, K: nl.Concat(nl.Linear(D, K), nl.Sigmoid(), nl.Linear(D, 2)), one),
}
