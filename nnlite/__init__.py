"""nnlite: neural-network layers from scratch, each backward pass written out.

    from nnlite.layers import Linear, ELU, Sequential
    from nnlite.ops import get_ops

    net = Sequential(Linear(249, 60), ELU(), Linear(60, 30)).build(get_ops("auto"), seed=1)
    y = net.forward(x, train=True)
    dx = net.backward(dy)

Importing nnlite loads neither numba nor cupy: `get_ops` does, when it is asked for one.
"""

__version__ = "0.1.0"
