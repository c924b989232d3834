"""Compiled kernels are forgotten when the code that they are made of changes.

Numba keeps a compiled kernel until the file that defines it changes. But kernels here are made of functions of other
files of this folder, of block.py and simd.py above all: after an update of these alone, the old machine code would go
on running.
"""

import hashlib
from pathlib import Path

STAMP = "nnlite-sources.txt"


def forget_outdated(kernel, sources=Path(__file__).parent):
    """Delete the files of Numba's cache of this package, where any kernel's cache lies, unless its stamp shows that
    they were made of `sources` as they are now."""
    folder = kernel.stats.cache_path
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    stamp = Path(folder) / STAMP
    try:
        if stamp.is_file() and stamp.read_text() == digest.hexdigest():
            return
        for file in stamp.parent.glob("*.nb[ic]"):    # indexes, and code
            file.unlink(missing_ok=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest.hexdigest())    # half of it, after a crash, is not it either
    except OSError:    # a cache that may not be written: nor has Numba
        return
