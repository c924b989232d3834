"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary path beside `path`; when the block ends well, that file is flushed to the disk and renamed to
    `path`. On any error it is removed, and what was at `path` stays."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder):
    """Remove temporary files that a killed process left in folder."""
    for path in pathlib.Path(folder).glob("*.part"):
        path.unlink(missing_ok=True)
