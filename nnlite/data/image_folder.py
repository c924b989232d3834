"""Images in one folder per class, read through Pillow (the extra `images`).

    faces/angry/1.png  faces/happy/7.jpg ...                  parts are held out by images.read
    faces/train/angry/1.png  faces/test/happy/2.png ...       parts train, validation (or val), test as they lie there

Class names are the folders' names, sorted. All images become grey where all are grey, else RGB.
"""

import struct
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnlite.data.images import ImageSet
from nnlite.errors import expected

FOLDER_OF_PART = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
GREY = ("1", "L", "LA")
COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")  # no 16-bit or floating-point ones: their full scale is unknown
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises for damaged files


def read(folder, *, size=None, progress=None):
    """The ImageSet of the images in `folder`, ordered by part, class and file name; hidden files are passed over.

    size: (H, W) to which every image is resized (bilinear, averaging where it shrinks); without it all must have one
    size. progress: whether standard error shows a bar (None: where it is a terminal). Raises NnliteError, one sentence
    that names the file or folder.
    """
    _pillow()
    folder = Path(folder)
    parts = _part_folders(folder)
    classes = tuple(sorted(path.name for path in _folders(parts["train"])))
    if len(classes) < 2:
        raise expected(parts["train"], "a folder per class, at least two", len(classes))
    files = [(path, part, label) for part in parts for path, label in _labelled(parts[part], classes)]
    headers = [header(path) for path, _, _ in files]
    if size is None:
        size = _one_size([path for path, _, _ in files], [shape for shape, _ in headers])
    mode = "L" if all(grey for _, grey in headers) else "RGB"
    images = np.empty((len(files), *size, 1 if mode == "L" else 3), np.uint8)
    bar = tqdm(files, desc=folder.name, unit="image", disable=None if progress is None else not progress)
    for (path, _, _), image in zip(bar, images):
        image[...] = pixels(path, mode, size).reshape(image.shape)
    labels = np.array([label for _, _, label in files], np.int32)
    part_of = np.array([part for _, part, _ in files])
    split = {part: np.flatnonzero(part_of == part).astype(np.int32) for part in parts}
    return ImageSet(images, labels, classes, split, f"images in {folder}")


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
    try:
        with _pillow().open(path) as image:
            mode, (width, height) = image.mode, image.size
    except UNREADABLE as error:
        raise expected(path, "an image", "a folder" if path.is_dir() else "none that Pillow can read") from error
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


def pixels(path, mode, size):
    """The image as (H, W) for mode "L", (H, W, 3) for "RGB", uint8, resized to `size` (bilinear, averaging where it
    shrinks)."""
    Image = _pillow()
    try:
        with Image.open(path) as image:
            image = image.convert(mode)
            if (image.height, image.width) != tuple(size):
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except UNREADABLE as error:
        raise expected(path, "a whole image", f"one that is truncated or damaged ({error})") from error
