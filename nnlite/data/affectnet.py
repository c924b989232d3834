"""AffectNet (Mollahosseini, Hasani and Mahoor 2017): faces from the web in seven expressions, from its folders.

Three forms of it are in use, told apart by the names of their folders:

    Manually_Annotated_Images/<n>/<file>            whole pictures; training.csv and validation.csv, in the same folder
                                                    or in Manually_Annotated_file_lists, give the expression and the
                                                    box of the face, which is cut out
    train_set/images/<n>.jpg                        faces; train_set/annotations/<n>_exp.npy holds the expression,
                                                    val_set the same
    train_class/class001/<file>                     faces; the folder's number is the expression's + 1; val_class alike

Expressions are numbered as CLASSES, then 7 contempt, 8 none, 9 uncertain, 10 no face, which are left out. The
validation part, which everybody reports on, is the part "test"; images.read holds a validation part out of the rest.
Names of classes are those of FER2013, so that a model trained on the one set can be tried on the other.
"""

import csv
import io
import itertools
from pathlib import Path

import numpy as np

from nnlite.data.image_folder import ImageFile, assemble
from nnlite.errors import expected

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry")
EXPRESSIONS = 11        # numbers from 0 to 10
SIZE = (48, 48)         # of the faces, where no other is asked for
LISTS = {"train": "training.csv", "test": "validation.csv"}
SETS = {"train": "train_set", "test": "val_set"}
CLASS_FOLDERS = {"train": "train_class", "test": "val_class"}
IMAGES = "Manually_Annotated_Images"
PUBLISHED = ("Manually_Annotated", IMAGES, "Manually_Annotated_file_lists")
COLUMNS = ("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression",
           "valence", "arousal")
BOX = COLUMNS[1:5]
LARGEST_ANNOTATION = 4096  # bytes that are read; one number takes about 130


def recognises(folder):
    """Whether `folder` holds AffectNet in one of its forms."""
    folder = Path(folder)
    return (any((folder / name).is_dir() for name in (*PUBLISHED, CLASS_FOLDERS["train"]))
            or any((folder / SETS["train"] / name).is_dir() for name in ("images", "annotations")))


def read(folder, *, size=None, progress=None, skip_broken=False):
    """The ImageSet of AffectNet in `folder`, with the parts train and test; colour unless every image is grey.

    size: (H, W) of the faces, 48 x 48 without it. progress, skip_broken: as in image_folder.assemble. Raises
    NnliteError, one sentence that names the file, its line or the folder.
    """
    folder = Path(folder)
    if any((folder / name).is_dir() for name in PUBLISHED):
        files = [file for part in LISTS for file in _listed(folder, part)]
    elif (folder / SETS["train"]).is_dir():
        files = [file for part in SETS for file in _annotated(folder / SETS[part], part)]
    else:
        files = [file for part in CLASS_FOLDERS for file in _sorted(folder / CLASS_FOLDERS[part], part)]
    return assemble(files, folder, CLASSES, f"AffectNet in {folder}", size=size or SIZE, progress=progress,
                    skip_broken=skip_broken)


# -- lists with boxes -------------------------------------------------------------------------------------------------


def _listed(folder, part):
    """The ImageFiles of one CSV; the published validation.csv has no header."""
    images = _there(folder, [IMAGES, f"Manually_Annotated/{IMAGES}"], "a folder")
    places = ["", "Manually_Annotated_file_lists/", "Manually_Annotated/",
              "Manually_Annotated/Manually_Annotated_file_lists/"]
    path = _there(folder, [place + LISTS[part] for place in places], "a file")
    rows = _rows(path)
    number, first = next(rows, (1, []))
    names = [cell.strip() for cell in first]
    if len(names) == len(COLUMNS) and names[COLUMNS.index("expression")].isdecimal():
        names, rows = COLUMNS, itertools.chain([(number, first)], rows)
    place = _places(path, names)
    for number, row in rows:
        where = f"{path}, line {number}"
        if len(row) != len(names):
            raise expected(where, f"{len(names)} columns", len(row))
        label = _expression(row[place["expression"]], where)
        if label < len(CLASSES):
            yield ImageFile(images / row[place[COLUMNS[0]]].strip(), part, label,
                            _box([row[place[name]] for name in BOX], where))


def _rows(path):
    """(number of the line, cells) of every row that is not empty; what the file lacks becomes one sentence."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            try:
                yield from ((reader.line_num, row) for row in reader if row)
            except (UnicodeDecodeError, csv.Error) as error:
                what = "lines of comma-separated text"
                raise expected(f"{path}, line {reader.line_num + 1}", what, str(error)) from error
    except OSError as error:
        raise expected(path, "a file that can be read", error.strerror or str(error)) from error


def _there(folder, names, what):
    """The first of the paths that is there."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise expected(folder, f"{what} {names[0]}", "none")


def _places(path, names):
    """Where the columns that are needed stand."""
    needed = (COLUMNS[0], *BOX, "expression")
    for name in needed:
        if name not in names:
            raise expected(f"{path}, line 1", f"a column '{name}'", ",".join(names)[:80] or "none")
    return {name: names.index(name) for name in needed}


def _expression(text, where):
    text = text.strip()
    if not (text.isdecimal() and len(text) <= 2 and int(text) < EXPRESSIONS):
        raise expected(where, f"an expression from 0 to {EXPRESSIONS - 1}", repr(text[:40]))
    return int(text)


def _box(cells, where):
    """(left, top, right, bottom) of the texts of left, top, width and height."""
    try:
        left, top, width, height = map(int, cells)
    except ValueError:
        left = top = width = height = 0
    if width < 1 or height < 1:
        got = ", ".join(cells)[:80]
        raise expected(where, "whole numbers face_x, face_y, and face_width, face_height above 0", got)
    return left, top, left + width, top + height


# -- a file of one number for each image ------------------------------------------------------------------------------


def _annotated(folder, part):
    """The ImageFiles of images/ and annotations/ in `folder`; every image has an annotation, and the other way."""
    images, annotations = ({_stem(path): path for path in _content(folder / name, ending)}
                           for name, ending in (("images", ""), ("annotations", "_exp.npy")))
    for stem in sorted(images.keys() | annotations.keys(), key=lambda stem: (len(stem), stem)):
        if stem not in annotations:
            raise expected(folder / "annotations" / f"{stem}_exp.npy", f"the expression of {images[stem].name}",
                           "no such file")
        if stem not in images:
            raise expected(folder / "images" / f"{stem}.jpg", f"the image of {annotations[stem].name}", "no such file")
        label = _number(annotations[stem])
        if label < len(CLASSES):
            yield ImageFile(images[stem], part, label)


def _stem(path):
    return path.stem.removesuffix("_exp")


def _content(folder, ending):
    """The files in `folder` whose names end so, but hidden ones."""
    if not folder.is_dir():
        raise expected(folder, "a folder", "none")
    return [path for path in sorted(folder.iterdir()) if path.name.endswith(ending) and path.name[0] != "."]


def _number(path):
    """The expression in a .npy file, as a number or as its digits; no pickle is read."""
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(io.BytesIO(file.read(LARGEST_ANNOTATION)), allow_pickle=False)
    except (OSError, EOFError, MemoryError, ValueError) as error:
        raise expected(path, "a .npy file of one number", " ".join(str(error).split())) from error
    if array.size != 1 or array.dtype.kind not in "iufSU":
        raise expected(path, "one number", f"{array.dtype} {array.shape}")
    value = array.item()
    value = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return _expression(f"{value:g}" if isinstance(value, float) else str(value), path)


# -- a folder for each expression -------------------------------------------------------------------------------------


def _sorted(folder, part):
    """The ImageFiles of class001 and so on in `folder`."""
    for path in _content(folder, ""):
        digits = path.name.removeprefix("class")
        if len(digits) != 3 or not digits.isdecimal() or not 1 <= int(digits) <= EXPRESSIONS:
            raise expected(path, f"a folder from class001 to class{EXPRESSIONS:03}", path.name)
        if int(digits) <= len(CLASSES):
            for file in _content(path, ""):
                yield ImageFile(file, part, int(digits) - 1)
