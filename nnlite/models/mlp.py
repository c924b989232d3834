"""A fully connected classifier: linear layers with ReLU and dropout, then one number a class."""

import math

from ..layers import Dense, Flatten, Linear, Sequential


def mlp(*, shape=(48, 48, 1), classes=7, hidden=(1000, 1000), keep_prob=1.0):
    """Images (H, W, C) -> logits (classes,): a Dense layer of ReLU with dropout for each hidden size, then Linear."""
    sizes = [math.prod(shape), *hidden]
    layers = [Dense(D, K, activation="relu", keep_prob=keep_prob) for D, K in zip(sizes, sizes[1:])]
    return Sequential(Flatten(), *layers, Linear(sizes[-1], classes))
