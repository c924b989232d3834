"""BU-3DFE (Yin et al. 2006): posed expressions of 100 persons, one `.bnd` file of 83 3D landmarks per face.

Read is any folder, flat or with a folder per person, with files such as `F0001_AN01WH_F3D.bnd`: sex and number of the
person, expression (NE AN DI FE HA SA SU), level (00 neutral, 01 to 04), ethnic group; in it 83 lines `index x y z`
(the index of the mesh vertex is not used). Axes: +y up, +z towards the viewer.
"""

import math
import re
from pathlib import Path

import numpy as np

from nnlite.data.landmarks import LandmarkSet
from nnlite.errors import expected

POINTS = 83
EMOTIONS = ("neutral", "angry", "disgust", "sad", "happy", "surprised", "fear")
CODES = ("NE", "AN", "DI", "SA", "HA", "SU", "FE")  # in the order of EMOTIONS
NAME = re.compile(r"([FM]\d+)_(" + "|".join(CODES) + r")(\d\d)([A-Z]{2})?_F3D\.bnd", re.IGNORECASE)


def recognises(folder):
    """Whether a `.bnd` file lies in `folder` or below."""
    return next(Path(folder).rglob("*.bnd"), None) is not None


def read(folder):
    """The LandmarkSet (posed) of all `.bnd` files in `folder` and below, ordered by file name."""
    paths = sorted(Path(folder).rglob("*.bnd"), key=lambda path: path.name)
    labels = [_labels(path) for path in paths]
    names, emotion, level = zip(*labels)
    without = sorted(set(names) - {name for name, _, degree in labels if degree == 0})
    if without:
        raise expected(folder, f"a neutral face (NE00) of person {without[0]}", "none")
    points = eyes_first(np.array([number_lines(path, [(POINTS, (4,))])[0] for path in paths])[:, :, 1:])
    lower, upper = find_lids(points)
    persons = number_persons(names)
    return LandmarkSet(
        points=points.astype(np.float32), person=np.array([persons[name] for name in names], np.int32),
        source="BU-3DFE", units="millimetres", lower_lids=lower, upper_lids=upper,
        emotion=np.array(emotion, np.int32), emotions=EMOTIONS, level=np.array(level, np.int32),
    )


def _labels(path):
    """(person, emotion, level) in the file's name."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise expected(path, "a name such as F0001_AN01WH_F3D.bnd", path.name)
    person, code, level = match[1].upper(), match[2].upper(), int(match[3])
    if level > 4 or (level == 0) != (code == "NE"):
        raise expected(path, "level 00 of NE or 01 to 04 of another expression", f"{code}{match[3]}")
    return person, CODES.index(code), level


# -- shared with BP4D, whose files hold the same 83 points -------------------------------------------------------------


def number_lines(path, parts):
    """The lines of `path`, numbers set apart by blanks or commas; `parts` says (how many lines, which widths) in turn.

    Returns one array (lines, width) per part; empty lines are passed over. Raises NnliteError naming file and line.
    """
    try:
        lines = [(i, line) for i, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise expected(path, "a readable text file", "none") from error
    total = sum(count for count, _ in parts)
    if len(lines) != total:
        raise expected(path, f"{total} lines of numbers", len(lines))
    result, start = [], 0
    for count, widths in parts:
        rows = [_numbers(f"{path}, line {i}", line, widths) for i, line in lines[start:start + count]]
        if len({len(row) for row in rows}) > 1:
            raise expected(path, "lines of equal length", f"{sorted({len(row) for row in rows})} numbers")
        result.append(np.array(rows))
        start += count
    return result


def _numbers(where, line, widths):
    fields = line.replace(",", " ").split()
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) not in widths or not all(map(math.isfinite, values)):
        raise expected(where, f"{' or '.join(map(str, widths))} finite numbers", repr(line.strip()[:60]))
    return values


def eyes_first(points):
    """points (n, 83, 3) in the order eyes 16, brows 20, nose 12, mouth 20, contour 15.

    BU-3DFE puts the eyes before the brows, BP4D after them; brows are above eyes (+y up).
    """
    height = points[:, :, 1].mean(axis=0)
    if height[20:36].mean() < height[:16].mean():
        points = np.concatenate([points[:, 20:36], points[:, :20], points[:, 36:]], axis=1)
    return points


def find_lids(points):
    """(lower, upper), each (indices of the eye at negative x, of the eye at positive x), of points in eyes-first order.

    Of an eye's ring of 8 points the two outermost in x are the corners, of the other six the three lower ones (+y up)
    are the lower lid, whatever point the ring starts at.
    """
    face = points.mean(axis=0)
    rings = sorted((range(0, 8), range(8, 16)), key=lambda ring: face[list(ring), 0].mean())
    lower, upper = [], []
    for ring in rings:
        lids = sorted(ring, key=lambda i: face[i, 0])[1:-1]
        by_height = sorted(lids, key=lambda i: face[i, 1])
        lower.append(tuple(sorted(by_height[:3])))
        upper.append(tuple(sorted(by_height[3:])))
    return tuple(lower), tuple(upper)


def number_persons(names):
    """name -> number from 0, for names that begin with F or M, women and men spread evenly.

    Splits take persons in the order of their numbers: by name all men would come last, into validation and test.
    """
    place = {}
    for sex in ("F", "M"):
        own = sorted(name for name in set(names) if name[0] == sex)
        place.update({name: (rank + 0.5) / len(own) for rank, name in enumerate(own)})
    return {name: number for number, name in enumerate(sorted(place, key=lambda name: (place[name], name)))}
