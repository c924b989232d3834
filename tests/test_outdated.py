"""A kernel compiled before is not used when a function that it calls, in another file, has changed."""

import os
import subprocess
import sys

KERNEL = """
import numba
from helper import help
@numba.njit(cache=True)
def kernel(x):
    return help(x)
"""
HELPER = """
import numba
@numba.njit
def help(x):
    return x + {number}
"""
RUN = """
import pathlib, sys
from kernel import kernel
from nnlite.ops.cpu.outdated import forget_outdated
forget_outdated(kernel, pathlib.Path.cwd())
print(kernel(1), sum(kernel.stats.cache_hits.values()))
"""


def run(folder, number, forget=True):
    """What the kernel gives, and whether it came out of the cache."""
    (folder / "helper.py").write_text(HELPER.format(number=number))
    script = RUN if forget else RUN.replace("forget_outdated(kernel", "(lambda *_: None)(kernel")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([str(folder), root, *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run([sys.executable, "-c", script], cwd=folder, text=True, capture_output=True,
                            env={**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder / "cache")})
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]


def test_kernels_of_changed_sources_are_compiled_again(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    assert run(tmp_path, 10) == [11, 0]
    assert run(tmp_path, 10) == [11, 1]
    assert run(tmp_path, 20) == [21, 0]
    assert run(tmp_path, 20) == [21, 1]
    assert run(tmp_path, 30, forget=False) == [21, 1]    # what Numba does by itself


def test_a_cache_that_may_not_be_written_is_left(tmp_path):
    from nnlite.ops.cpu.outdated import STAMP, forget_outdated

    class Kernel:
        class stats:
            cache_path = str(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder should be")
    forget_outdated(Kernel, tmp_path)
    assert not (tmp_path / STAMP).exists()
