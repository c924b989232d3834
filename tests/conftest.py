"""Markers, fixtures and the hypothesis profile of all tests."""

import pytest
from hypothesis import settings

from nnlite.errors import NnliteError
from nnlite.ops import get_ops

# The same examples at each run, and few of them: a test either fails always or never.
settings.register_profile("nnlite", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("nnlite")

FAST_OPS = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALL_OPS = ["reference", *FAST_OPS]


def pytest_collection_modifyitems(config, items):
    """Without a GPU the gpu tests are counted as deselected, so that among the skipped ones the others are seen."""
    if "gpu" in config.option.markexpr or _has_cuda():
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def _has_cuda():
    try:
        get_ops("cuda")
    except NnliteError:
        return False
    return True


def _ops_or_skip(name):
    try:
        return get_ops(name)
    except NnliteError as error:
        pytest.skip(str(error))


@pytest.fixture(params=ALL_OPS)
def ops(request):
    """Every ops object of this machine, one after the other."""
    return _ops_or_skip(request.param)


@pytest.fixture(params=FAST_OPS)
def fast_ops(request):
    """Every ops object but the reference."""
    return _ops_or_skip(request.param)
