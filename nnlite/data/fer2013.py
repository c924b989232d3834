"""FER2013 (Goodfellow et al. 2013): 48x48 grey faces of seven expressions, from its CSV.

Read is the published file (`emotion,pixels,Usage`, columns in any order, also Kaggle's header with blanks), plain,
as .gz, or inside Kaggle's .tar.gz. It is streamed once into nnlite's own HDF5 in a cache folder, which later runs open
instead: $NNLITE_CACHE, else $XDG_CACHE_HOME/nnlite, else ~/.cache/nnlite. Usage Training is the part "train",
PublicTest "test", PrivateTest "private".
"""

import contextlib
import csv
import gzip
import hashlib
import io
import os
import sys
import tarfile
import zlib
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from nnlite.data import images
from nnlite.errors import NnliteError, expected
from nnlite.files import replacing

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SIDE = 48
PART_OF_USAGE = {"Training": "train", "PublicTest": "test", "PrivateTest": "private"}
COLUMNS = ("emotion", "pixels", "Usage")
LAYOUT = 1  # of the cached file: another number, another name
ROWS_AT_ONCE = 1024

NOT_PIXELS = {ord(character): None for character in "0123456789 "}  # str.translate leaves what is no pixel


def read(path, *, progress=None):
    """The ImageSet of the CSV at `path`, with the parts as published; converted into the cache where it is not there.

    progress: whether standard error shows a bar during the conversion (None: where it is a terminal). Raises
    NnliteError, one sentence with the line of the CSV (the header is line 1), for bad rows and damaged files.
    """
    cached = cache_path(path)
    with contextlib.suppress(NnliteError):  # not there yet, or damaged: made anew
        return images.read_hdf5(cached)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "a cache folder that can be made (NNLITE_CACHE names another)"
        raise expected(cached.parent, what, error.strerror) from error
    convert(path, cached, progress=progress)
    print(f"nnlite: {path} is kept as {cached}, which later runs open at once", file=sys.stderr)
    return images.read_hdf5(cached)


def cache_path(path):
    """Where the HDF5 of this CSV lies: named by a digest of its absolute path, size and time of change."""
    path = Path(path).resolve()
    stat = path.stat()
    key = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{LAYOUT}"
    return cache_folder() / f"fer2013-{hashlib.blake2b(os.fsencode(key), digest_size=10).hexdigest()}.h5"


def cache_folder():
    """$NNLITE_CACHE, else $XDG_CACHE_HOME/nnlite, else ~/.cache/nnlite."""
    if os.environ.get("NNLITE_CACHE"):
        return Path(os.environ["NNLITE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "nnlite"


def convert(path, target, *, progress=None):
    """Writes the CSV at `path` as nnlite's own HDF5 (see images.write) at `target`, whole or not at all."""
    parts = tuple(PART_OF_USAGE.values())
    labels, part = [], []
    with replacing(target) as temporary, h5py.File(temporary, "w") as file:
        # Without compression: reading 74 MB takes less time than unpacking 60.
        pictures = file.create_dataset("images", (0, SIDE, SIDE, 1), "u1", maxshape=(None, SIDE, SIDE, 1),
                                       chunks=(256, SIDE, SIDE, 1))
        block = np.empty((ROWS_AT_ONCE, SIDE, SIDE, 1), np.uint8)
        for where, cells in _rows(Path(path), COLUMNS, progress):
            label, pixels, usage = _row(where, *cells)
            block[len(labels) % ROWS_AT_ONCE] = pixels.reshape(SIDE, SIDE, 1)
            labels.append(label)
            part.append(parts.index(PART_OF_USAGE[usage]))
            if len(labels) % ROWS_AT_ONCE == 0:
                _append(pictures, block)
        _append(pictures, block[:len(labels) % ROWS_AT_ONCE])
        if parts.index("train") not in part:
            raise expected(path, "a row of usage Training", "none")
        images.describe(file, labels, CLASSES, part, parts, f"FER2013 ({path})")


def read_pictures(path, *, progress=None):
    """(images (n, 48, 48, 1) uint8, lines (n,) of the CSV, the header being line 1) of the column `pixels` alone.

    For a CSV to be classified: there may be other columns, or none. Nothing is cached. Raises NnliteError as `read`.
    """
    found, lines = [], []
    for where, (pixels,) in _rows(Path(path), ("pixels",), progress):
        found.append(_pixels(where, pixels).astype(np.uint8))
        lines.append(int(where.rpartition(" ")[2]))
    if not found:
        raise expected(path, "at least one row below the header", "none")
    return np.stack(found).reshape(-1, SIDE, SIDE, 1), np.array(lines)


def _append(pictures, block):
    pictures.resize(len(pictures) + len(block), axis=0)
    pictures[len(pictures) - len(block):] = block


def _rows(path, columns, progress):
    """("FILE, line 2", cells of `columns`) of every row; what the file or a row lacks becomes one sentence."""
    disable = None if progress is None else not progress
    try:
        with (open(path, "rb") as raw, _unpacked(path, raw) as binary,
              io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text,
              tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=disable) as bar):
            reader = csv.reader(text)
            try:
                places = _places(path, next(reader, None), columns)
                for row in reader:
                    if row:
                        where = f"{path}, line {reader.line_num}"
                        yield where, _cells(where, row, places)
                    if reader.line_num % 256 == 0:
                        bar.update(raw.tell() - bar.n)
            except (UnicodeDecodeError, csv.Error) as error:
                what = "lines of comma-separated text"
                raise expected(f"{path}, line {reader.line_num + 1}", what, str(error)) from error
            bar.update(raw.tell() - bar.n)
    except (EOFError, zlib.error) as error:
        raise expected(path, "a whole gzip file", "one that is truncated or damaged") from error
    except gzip.BadGzipFile as error:
        raise expected(path, "a whole gzip file", "one that is damaged, or none") from error
    except tarfile.TarError as error:
        raise expected(path, "a tar archive packed by gzip", "one that is truncated, or none") from error
    except OSError as error:
        raise expected(path, "a file that can be read", error.strerror or str(error)) from error


@contextlib.contextmanager
def _unpacked(path, raw):
    """The CSV as a binary file: `raw` itself, unpacked, or out of an archive, streamed."""
    name = path.name.lower()
    if not name.endswith((".gz", ".tgz")):
        yield raw
        return
    with gzip.open(raw, "rb") as file:
        if not name.endswith((".tar.gz", ".tgz")):
            yield file
            return
        with tarfile.open(fileobj=file, mode="r:") as archive:  # forwards alone, so still streamed
            for member in archive:
                if member.isfile() and member.name.endswith("fer2013.csv"):
                    yield archive.extractfile(member)
                    return
        raise expected(path, "an archive with a fer2013.csv in it", "none")


def _places(path, header, columns):
    """Where each of `columns` stands, and how many columns there are."""
    if header is None:
        raise expected(path, f"a header {','.join(columns)}", "an empty file")
    names = [name.strip() for name in header]
    for name in columns:
        if name not in names:
            raise expected(f"{path}, line 1", f"a column '{name}'", ",".join(names)[:80] or "none")
    return [names.index(name) for name in columns], len(names)


def _cells(where, row, places):
    places, columns = places
    if len(row) != columns:
        raise expected(where, f"{columns} columns", len(row))
    return [row[place].strip() for place in places]


def _row(where, emotion, pixels, usage):
    if emotion not in ("0", "1", "2", "3", "4", "5", "6"):
        raise expected(where, "an emotion from 0 to 6", repr(emotion[:40]))
    if usage not in PART_OF_USAGE:
        raise expected(where, f"a usage {', '.join(PART_OF_USAGE)}", repr(usage[:40]))
    return int(emotion), _pixels(where, pixels), usage


def _pixels(where, text):
    """(2304,) int64. NumPy's own reader of numbers, three times as fast as split(), sees digits and blanks only."""
    if text.translate(NOT_PIXELS):
        bad = next(word for word in text.split(" ") if word.translate(NOT_PIXELS))
        raise expected(where, "pixels from 0 to 255", repr(bad[:40]))
    pixels = np.fromstring(text, np.int64, sep=" ") if text else np.empty(0, np.int64)
    if len(pixels) != SIDE * SIDE:
        raise expected(where, f"{SIDE * SIDE} pixels", len(pixels))
    if pixels.max() > 255:
        raise expected(where, "pixels from 0 to 255", pixels.max())
    return pixels
