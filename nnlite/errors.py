"""The one exception class of nnlite, and the one way to word it.

A message is one sentence that names the thing, what was expected and what came:

    Linear 'encoder.0': expected x (N, 498), got (200, 249)
    faces.h5: expected a dataset 'points' (n, P, 3), got none
"""


class NnliteError(ValueError):
    """Bad input: a command prints the sentence and ends with exit code 2."""


def expected(where, what, got):
    """The error for `where` (a layer's name, a file, an option): what was expected, what came."""
    return NnliteError(f"{where}: expected {what}, got {got}")
