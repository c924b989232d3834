"""Images in one folder per class, read through Pillow (the extra `images`).

    faces/angry/1.png  faces/happy/7.jpg ...                  parts are held out by images.read
    faces/train/angry/1.png  faces/test/happy/2.png ...       parts train, validation (or val), test as they lie there

Class names are the folders' names, sorted. All images become grey where all are grey, else RGB.
"""

import contextlib
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nnlite.data.images import ImageSet
from nnlite.errors import NnliteError, expected

FOLDER_OF_PART = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
GREY = ("1", "L", "LA")
COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")  # no 16-bit or floating-point ones: their full scale is unknown
NAMED = 10  # of the files that are no images: more would fill the screen
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises for damaged files


def read(folder, *, size=None, progress=None, skip_broken=False):
    """The ImageSet of the images in `folder`, ordered by part, class and file name; hidden files are passed over.

    size: (H, W) to which every image is resized (bilinear, averaging where it shrinks); without it all must have one
    size. progress, skip_broken: see `assemble`. Raises NnliteError, one sentence that names the file or folder.
    """
    folder = Path(folder)
    parts = _part_folders(folder)
    classes = tuple(sorted(path.name for path in _folders(parts["train"])))
    if len(classes) < 2:
        raise expected(parts["train"], "a folder per class, at least two", len(classes))
    files = [ImageFile(path, part, label) for part in parts for path, label in _labelled(parts[part], classes)]
    return assemble(files, folder, classes, f"images in {folder}", size=size, progress=progress,
                    skip_broken=skip_broken)


class ImageFile(NamedTuple):
    """An image to be read: the part and the class that it belongs to, and the box (left, top, right, bottom) in pixels
    that is cut out of it, or None."""

    path: Path
    part: str
    label: int
    box: tuple = None


def assemble(files, folder, classes, source, *, size=None, progress=None, skip_broken=False):
    """The ImageSet of `files` in `folder`, each an ImageFile, in their order; grey where all are grey, else RGB.

    size: as for `read`. progress: whether standard error shows a bar (None: where it is a terminal). skip_broken:
    whether files that are no images are named on standard error and left out, instead of being an error.
    """
    images, kept = _pixels_of(files, folder, size, progress, skip_broken)
    labels = np.array([files[row].label for row in kept], np.int32)
    part_of = np.array([files[row].part for row in kept])
    split = {part: np.flatnonzero(part_of == part).astype(np.int32)
             for part in dict.fromkeys(file.part for file in files)}
    for part, rows in split.items():
        if not len(rows):
            raise expected(folder, f"an image in the part '{part}'", "none that can be read")
    for label, name in enumerate(classes):
        if label not in labels[split["train"]]:
            raise expected(folder, f"at least one image of the class '{name}' for training", "none")
    return ImageSet(images, labels, tuple(classes), split, source)


def _pixels_of(files, folder, size, progress, skip_broken):
    """(images (n, H, W, C) uint8, which rows of `files` they are)."""
    _pillow()
    headers, broken = {}, {}                     # row -> its header, or its error
    for row, file in enumerate(files):
        with _noted(broken, row):
            headers[row] = _examined(file)
    _tell(broken, files, folder, skip_broken)
    if size is None:
        size = _one_size([files[row].path for row in headers], [shape for shape, _, _ in headers.values()])
    mode = "L" if all(grey for _, grey, _ in headers.values()) else "RGB"
    images, kept, broken = np.empty((len(headers), *size, 1 if mode == "L" else 3), np.uint8), [], {}
    bar = tqdm(headers.items(), desc=folder.name, unit="image", disable=None if progress is None else not progress)
    for row, (_, _, box) in bar:
        with _noted(broken, row):
            images[len(kept)] = pixels(files[row].path, mode, size, box).reshape(images.shape[1:])
            kept.append(row)
    _tell(broken, files, folder, skip_broken)
    return images[:len(kept)], kept


def _examined(file):
    """(H, W), whether it is grey, and what of its box lies in the image."""
    (height, width), grey = header(file.path)
    if file.box is None:
        return (height, width), grey, None
    left, top, right, bottom = file.box
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise expected(file.path, f"a face inside the image of {height} x {width} (height x width)",
                       f"one in the rows {top} to {bottom} and columns {left} to {right}")
    return (height, width), grey, inside


@contextlib.contextmanager
def _noted(broken, row):
    try:
        yield
    except NnliteError as error:
        broken[row] = error


def _tell(broken, files, folder, skip_broken):
    """Name and count the files that are no images: on standard error, or as the error. row -> error in `broken`."""
    paths = [files[row].path for row in broken]
    names = [str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in paths]
    if broken and skip_broken:
        listed = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        print(f"nnlite: {folder}: left out {len(names)} of {len(files)} files, which are no images: {listed}",
              file=sys.stderr)
        if len(broken) == len(files):
            raise expected(folder, "at least one image", "none that can be read")
    elif broken:
        others = ", ".join(names[1:NAMED]) + (", ..." if len(names) > NAMED else "")
        also = f", and so {len(names) - 1} of the other files: {others}" if others else ""
        raise NnliteError(f"{next(iter(broken.values()))}{also} (--skip-broken leaves such files out)")


def _pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise expected("image files", "Pillow (pip install \"nnlite[images]\")", "none installed") from error
    return Image


def _folders(folder):
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _part_folders(folder):
    """part -> the folder with its class folders; "train" -> `folder` itself where parts are not told apart."""
    own = {path.name: path for path in _folders(folder)}
    if "train" not in own or not set(own) <= {name for names in FOLDER_OF_PART.values() for name in names}:
        return {"train": folder}
    return {part: own[name] for part, names in FOLDER_OF_PART.items() for name in names if name in own}


def _labelled(folder, classes):
    """(file, label) of every image of one part."""
    for path in _folders(folder):
        if path.name not in classes:
            raise expected(path, f"one of the classes of the training part, {', '.join(classes)[:200]}", path.name)
        files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
        if not files:
            raise expected(path, "at least one image of the class", "none")
        for file in files:
            yield file, classes.index(path.name)


def header(path):
    """((H, W), whether it is grey) of an image, without decoding it."""
    Image = _pillow()
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
    except Image.DecompressionBombError as error:
        raise expected(path, "an image that is not larger than Pillow reads", str(error)) from error
    except UNREADABLE as error:
        there = "none that Pillow can read" if path.exists() else "no such file"
        raise expected(path, "an image", "a folder" if path.is_dir() else there) from error
    if mode not in GREY + COLOUR:
        raise expected(path, "an image of 8 bits a channel", f"one of mode {mode}")
    return (height, width), mode in GREY


def _one_size(paths, sizes):
    for path, size in zip(paths, sizes):
        if size != sizes[0]:
            (height, width), (h, w) = sizes[0], size
            what = f"an image of {height} x {width} (height x width) as {paths[0].name}, or a size to resize all to"
            raise expected(path, what, f"{h} x {w}")
    return sizes[0]


def pixels(path, mode, size, box=None):
    """The image, or the box (left, top, right, bottom) inside it, as (H, W) for mode "L", (H, W, 3) for "RGB", uint8,
    resized to `size` (bilinear, averaging where it shrinks)."""
    Image = _pillow()
    try:
        with Image.open(path) as image:
            image = (image if box is None else image.crop(box)).convert(mode)
            if (image.height, image.width) != tuple(size):
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise expected(path, "a whole image", f"one that is truncated or damaged ({error})") from error
