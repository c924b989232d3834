"""A line of text before a wait: kernels are compiled once for a machine, then read from a cache."""

import pathlib
import sys

from . import elementwise


def announce_compilation(stream=None):
    """Say so on standard error if no compiled kernel lies in the cache yet."""
    cache = pathlib.Path(elementwise.activation.stats.cache_path)
    if not any(cache.glob("*.nbi")):
        print("nnlite: compiling the kernels for this machine (once, about half a minute): matrix, activations, "
              "random numbers, losses, optimiser", file=stream or sys.stderr, flush=True)
