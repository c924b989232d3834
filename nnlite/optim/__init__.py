"""Optimisers, one fused pass over all parameters each, and learning-rate schedules."""

from .adagrad import Adagrad
from .adam import Adam, AdamW
from .base import Optimiser, clip_factor
from .rmsprop import RMSProp
from .schedule import Constant, Cosine, InverseTime, StepDecay, Warmup
from .sgd import SGD

OPTIMISERS = {"sgd": SGD, "adagrad": Adagrad, "rmsprop": RMSProp, "adam": Adam, "adamw": AdamW}

__all__ = ["Adagrad", "Adam", "AdamW", "Constant", "Cosine", "InverseTime", "OPTIMISERS", "Optimiser", "RMSProp",
           "SGD", "StepDecay", "Warmup", "clip_factor"]
