"""Labelled images: what a file holds (ImageSet), its parts, and the numbers that normalise it.

`read(path)` picks the reader by what lies there: FER2013's CSV, CIFAR-10's python batches, AffectNet's folders, a
folder per class, or nnlite's own HDF5 (described at `write`). A reader gives the parts that were published; `hold_out`
takes the missing ones (validation, test) out of the training part, stratified by class, copies of an image always on
one side.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from nnlite.data.batches import Batches
from nnlite.errors import expected
from nnlite.files import dataset, opened, replacing

PARTS = ("train", "validation", "test")
ROWS_AT_ONCE = 1024  # bounds the copies of larger numbers
BT_601 = np.array([19595, 38470, 7471], np.uint32)  # 0.299, 0.587, 0.114 in units of 2^-16: as Pillow makes grey


@dataclass(frozen=True)
class ImageSet:
    """Images with one label each.

    images (n, H, W, C) uint8, C = 1 grey or 3 RGB; labels (n,) int32 into classes, names; split: "train",
    "validation", "test" -> sorted rows (m,) int32, none in two parts, further parts may follow (FER2013's "private");
    source: where it came from, for people.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple
    split: dict
    source: str


def read(path, *, size=None, held_out=0.1, seed=0, progress=None, skip_broken=False):
    """The ImageSet at `path`: .csv, .csv.gz, .tar.gz or .tgz (FER2013), .h5 or .hdf5 (own), or a folder (CIFAR-10's
    batches, AffectNet, or one folder per class).

    size: (H, W) to which image files are resized; held_out: the share of the images for training that goes to
    validation, and again to test, where the source has no such part (see `hold_out`); progress: whether standard error
    shows a bar (None: where it is a terminal); skip_broken: whether files of a folder that are no images are named on
    standard error and left out, instead of being an error. Raises NnliteError, one sentence that names the file.
    """
    path = Path(path)
    if not path.exists():
        raise expected(path, "an existing file or folder", "none")
    return hold_out(_read_published(path, size, progress, skip_broken), held_out, seed, where=path)


def _read_published(path, size, progress, skip_broken):
    """What lies at `path`, with the parts that it comes with."""
    from nnlite.data import affectnet, cifar10, fer2013, image_folder  # they build on this module

    if has_files(path):
        reader = affectnet if affectnet.recognises(path) else image_folder
        return reader.read(path, size=size, progress=progress, skip_broken=skip_broken)
    if size is not None:
        raise expected(path, "a folder per class where images are to be resized", "images of a fixed size")
    if skip_broken:
        there = "CIFAR-10's batches" if path.is_dir() else f"a {path.suffix or 'nameless'} file"
        raise expected("--skip-broken", "a folder of image files", there)
    if path.is_dir():
        return cifar10.read(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return read_hdf5(path)
    if path.name.lower().endswith((".csv", ".csv.gz", ".tar.gz", ".tgz")):
        return fer2013.read(path, progress=progress)
    what = "a .csv, .csv.gz, .tar.gz, .tgz, .h5 or .hdf5 file or a folder"
    raise expected(path, what, f"a {path.suffix or 'nameless'} file")


def has_files(path):
    """Whether `path` is a folder of image files, which can be resized."""
    from nnlite.data import cifar10

    return Path(path).is_dir() and not cifar10.recognises(Path(path))


# -- parts ------------------------------------------------------------------------------------------------------------


def hold_out(image_set, share, seed, where="images"):
    """The set with a validation and a test part, those that it lacks held out of its training part.

    Each takes `share` of the training images (of those there were at first), or share[its name], chosen by `stratified`
    with the copies of an image as groups, so that no validation image was trained on. Parts that are there stay as they
    are, whatever copies of training images they hold. Raises NnliteError, beginning with `where`, where a part would be
    empty.
    """
    shares = share if isinstance(share, dict) else dict.fromkeys(PARTS[1:], share)
    if not all(0 < some < 0.5 for some in shares.values()):
        raise expected(where, "a held-out share above 0 and below 0.5", share)
    train = image_set.split["train"]
    taken = {}
    missing = [name for name in ("test", "validation") if name not in image_set.split]
    groups = duplicates(image_set.images[train]) if missing else None
    left = np.arange(len(train))
    for name in missing:
        part = shares[name] * len(train) / len(left)
        held = stratified(image_set.labels[train[left]], part, seed, groups[left], name=name)
        if not 0 < len(held) < len(left):
            raise expected(where, f"enough different images to hold a {name} part out", f"{len(train)} for training")
        taken[name] = train[left[held]]
        left = np.delete(left, held)
    parts = {**image_set.split, **taken, "train": train[left]}
    order = PARTS + tuple(name for name in image_set.split if name not in PARTS)
    return replace(image_set, split={name: parts[name].astype(np.int32) for name in order})


def split_anew(image_set, validation, test, seed):
    """The set with these shares of all its images held out (see `hold_out`), whatever parts it came with."""
    whole = replace(image_set, split={"train": np.arange(len(image_set.labels), dtype=np.int32)})
    return hold_out(whole, {"validation": validation, "test": test}, seed, where=image_set.source)


def duplicates(images):
    """(n,) int32: images with the same number are equal byte by byte; numbered by first appearance."""
    numbers = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images)
    return np.fromiter((numbers.setdefault(digest, len(numbers)) for digest in digests), np.int32, len(images))


def stratified(labels, share, seed, groups=None, *, name="validation"):
    """Sorted rows held out: round(share n), at least 1, every class by its share (largest remainders), in random order.

    labels (n,) integers; groups (n,) integers: rows of one group stay on one side, those of several classes counting
    for the class of their first row; a group larger than what its class has left to give stays in. `name` is the
    stream of random numbers: the choice is a function of (labels, share, groups, seed, name) alone.
    """
    labels = np.asarray(labels)
    n = len(labels)
    groups = np.arange(n) if groups is None else np.asarray(groups)
    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    class_of = np.unique(labels, return_inverse=True)[1][first]  # of each group
    left = _quotas(np.bincount(class_of, weights=sizes), share)
    held = np.zeros(len(sizes), bool)
    for i in Batches(len(sizes), 1, seed=seed, name=f"{name} part").permutation(0):
        if sizes[i] <= left[class_of[i]]:
            held[i] = True
            left[class_of[i]] -= sizes[i]
    return np.flatnonzero(held[group.reshape(-1)]).astype(np.int32)


def _quotas(counts, share):
    """(K,) whole numbers close to share counts that add up to round(share sum), at least 1: largest remainders."""
    total = max(1, int(share * counts.sum() + 0.5))
    exact = share * counts
    quotas = np.floor(exact + 1e-9).astype(int)
    by_remainder = np.argsort(quotas - exact, kind="stable")
    quotas[by_remainder[:total - quotas.sum()]] += 1
    return quotas


def take(image_set, train, validation, seed):
    """The set with only `train` images to train on and `validation` to validate, drawn at random from those parts.

    The other parts stay. Raises NnliteError where a part has fewer.
    """
    split = dict(image_set.split)
    for name, count in (("train", train), ("validation", validation)):
        rows = split[name]
        if not 1 <= count <= len(rows):
            raise expected(image_set.source, f"from 1 to {len(rows)} images of the {name} part", count)
        split[name] = np.sort(rows[Batches(len(rows), 1, seed=seed, name=f"few of {name}").permutation(0)[:count]])
    return replace(image_set, split=split)


def in_classes(image_set, classes):
    """The same images with labels counted in `classes`; NnliteError where one of the set's is not among them."""
    for name in image_set.classes:
        if name not in classes:
            raise expected(image_set.source, "images of the classes " + ", ".join(classes), f"'{name}'")
    validate_labels(image_set.labels, image_set.classes, image_set.source)
    numbers = np.array([classes.index(name) for name in image_set.classes], np.int32)
    return replace(image_set, labels=numbers[image_set.labels], classes=tuple(classes))


def in_channels(images, channels):
    """The images (n, H, W, C) uint8 with 1 channel, grey of (0.299, 0.587, 0.114) times RGB (ITU-R BT.601), or with 3,
    equal where they were grey."""
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    grey = np.empty((*images.shape[:3], 1), np.uint8)
    for start in range(0, len(images), ROWS_AT_ONCE):
        some = images[start:start + ROWS_AT_ONCE].astype(np.uint32)
        grey[start:start + ROWS_AT_ONCE, :, :, 0] = some @ BT_601 + 2 ** 15 >> 16
    return grey


def statistics(images, rows, where="image statistics"):
    """(mean, std), each (C,) float32: of every channel of images[rows] over all pixels, in units of full scale (0..1).

    std² = E[x²] - E[x]²; both sums are whole numbers, so float64 holds them exactly. Raises NnliteError for no rows,
    and for a channel that is the same everywhere, by whose deviation nothing can be divided.
    """
    if not len(rows):
        raise expected(where, "at least one image for training", "none")
    total = square = 0.0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        x = images[rows[start:start + ROWS_AT_ONCE]].reshape(-1, images.shape[-1]).astype(np.float64)
        total += x.sum(axis=0)
        square += np.einsum("pc,pc->c", x, x)
    count = len(rows) * images[0, ..., 0].size
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean ** 2, 0))
    if not (std > 0).all():
        channel = int(np.argmin(std))
        raise expected(where, "training pixels that differ in every channel", f"{mean[channel]:g} everywhere")
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


# -- own HDF5 ---------------------------------------------------------------------------------------------------------


def write(path, image_set):
    """Writes the set as nnlite's own HDF5; the file appears whole or not at all.

    Datasets: images (n, H, W, C) uint8, labels (n,) int32, part (n,) int8 into attribute `parts`, -1 for none.
    Attributes: classes, parts (names), source.
    """
    path = Path(path)
    validate(image_set, path)
    if not path.parent.is_dir():
        raise expected(path, "an existing folder to write in", path.parent)
    part = np.full(len(image_set.labels), -1, np.int8)
    for number, rows in enumerate(image_set.split.values()):
        part[rows] = number
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("images", data=image_set.images)
        describe(file, image_set.labels, image_set.classes, part, tuple(image_set.split), image_set.source)


def describe(file, labels, classes, part, parts, source):
    """Everything but the images of an open own file."""
    file["labels"] = np.asarray(labels, np.int32)
    file["part"] = np.asarray(part, np.int8)
    file.attrs["classes"] = np.array(classes, h5py.string_dtype())
    file.attrs["parts"] = np.array(parts, h5py.string_dtype())
    file.attrs["source"] = source


def read_hdf5(path):
    """The ImageSet in a file of the layout that `write` describes; parts without a row are left out."""
    with opened(path, "a file of images") as file:
        images = dataset(file, path, "images", "u", "8-bit numbers (n, H, W, 1 or 3)", lambda shape: len(shape) == 4)
        n = len(images)
        labels, part = (
            dataset(file, path, name, "iu", f"integers ({n},)", lambda shape: shape == (n,)).astype(np.int64)
            for name in ("labels", "part")
        )
        classes, parts = (_names(file, path, name) for name in ("classes", "parts"))
        source = _text(file.attrs.get("source", str(path)))
    bad = (part < -1) | (part >= len(parts))
    if bad.any():
        row = int(np.argmax(bad))
        raise expected(path, f"'part' from -1 to {len(parts) - 1}", f"{part[row]} in row {row}")
    split = {name: np.flatnonzero(part == number).astype(np.int32) for number, name in enumerate(parts)}
    split = {name: rows for name, rows in split.items() if len(rows)}
    validate_labels(labels, classes, path)
    image_set = ImageSet(images, labels.astype(np.int32), classes, split, source)
    validate(image_set, path)
    return image_set


def _names(file, path, name):
    values = np.atleast_1d(file.attrs.get(name, np.array([], object))).tolist()
    if not values or not all(isinstance(value, (str, bytes)) for value in values):
        raise expected(path, f"an attribute '{name}' of names", values or "none")
    return tuple(_text(value) for value in values)


def _text(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def validate(image_set, where):
    """Raises NnliteError, one sentence that begins with `where`, unless the set is as ImageSet says."""
    images, labels, split = image_set.images, image_set.labels, image_set.split
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape or images.shape[3] not in (1, 3):
        raise expected(where, "images (n, H, W, 1 or 3) of 8 bits", f"{images.dtype} {images.shape}")
    if labels.shape != images.shape[:1]:
        raise expected(where, f"labels ({len(images)},)", labels.shape)
    validate_labels(labels, image_set.classes, where)
    if len(split.get("train", ())) == 0:
        raise expected(where, "images in the part 'train'", "none")
    seen = np.zeros(len(images), int)
    for name, rows in split.items():
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(images) or (np.diff(rows) <= 0).any():
            raise expected(where, f"ascending rows from 0 to {len(images) - 1} in the part '{name}'", "others")
        seen[rows] += 1
    if seen.max() > 1:
        raise expected(where, "no image in two parts", f"row {int(np.argmax(seen > 1))}")


def validate_labels(labels, classes, where):
    """Raises NnliteError, one sentence that begins with `where`, unless all labels are numbers of the classes."""
    bad = (labels < 0) | (labels >= len(classes))
    if bad.any():
        row = int(np.argmax(bad))
        raise expected(where, f"labels from 0 to {len(classes) - 1}", f"{labels[row]} in row {row}")
