"""Face landmarks: what a file holds (LandmarkSet), what a model trains on (Faces), and the way from one to the other.

`read(path)` picks the reader by what lies there: nnlite's own HDF5 (described at `write`), a BU-3DFE folder, a BP4D
folder, an OpenFace CSV or a folder of them. `prepare` turns the set into rows of D = 3 P numbers without head
rotation, position and size, finds everybody's neutral face and splits by person.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from nnlite.errors import expected
from nnlite.files import dataset, opened, replacing

# Points per part of the face, in the order of the file, for the two layouts that are in use.
# 83 (BU-3DFE and, put in its order, BP4D): eyes, brows, nose, mouth (outer 12, inner 8), contour.
# 68 (iBUG, OpenFace): contour, brows, nose, eyes, mouth (outer 12, inner 8).
GROUP_SIZES = {83: (8, 8, 10, 10, 12, 20, 15), 68: (17, 5, 5, 9, 6, 6, 20)}

# The action units that the published evaluation of spontaneous faces counts.
ACTION_UNITS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)

BLINK_RATIO = 0.5  # of the person's own median lid distance; see `blinking`
ROWS_AT_ONCE = 8192  # bounds the float64 copies in `straighten` and the distances in `central_row`


@dataclass(frozen=True)
class LandmarkSet:
    """Faces as a file holds them, in the file's own units and pose.

    points (n, P, 3) float32, +x to one side, +y up, +z towards the viewer; person (n,) int32, any numbers;
    lower_lids and upper_lids: point indices (of the eye at negative x, of the eye at positive x).
    Posed: emotion (n,) int32 into emotions, level (n,) int32, 0 neutral to 4.
    Spontaneous: au (n, A) int8 for au_numbers (1 present, 0 absent, -1 not coded), pose (n, 3) float32 pitch, yaw,
    roll in radians with points = Rz(roll) Ry(yaw) Rx(pitch) straight points, task (n,) int32 into tasks, frame (n,).
    """

    points: np.ndarray
    person: np.ndarray
    source: str
    units: str
    lower_lids: tuple
    upper_lids: tuple
    emotion: np.ndarray | None = None
    emotions: tuple = ()
    level: np.ndarray | None = None
    au: np.ndarray | None = None
    au_numbers: tuple = ()
    pose: np.ndarray | None = None
    task: np.ndarray | None = None
    tasks: tuple = ()
    frame: np.ndarray | None = None

    @property
    def kind(self):
        """Either "posed" (emotions are given) or "spontaneous" (action units are)."""
        if self.emotion is not None:
            return "posed"
        if self.au is not None:
            return "spontaneous"
        raise expected("landmarks", "emotions (posed) or action units (spontaneous)", "neither")


@dataclass(frozen=True)
class Faces:
    """What a model trains on.

    x (n, D) float32, D = 3 P: straight, eyes' midpoint at the origin, eye distance 1, `mean` (D,) subtracted;
    neutral (n,) int32: the row of x with the neutral face of the same person, so y = x[neutral];
    split: "train", "validation", "test" -> (m,) int32 sorted rows, no person in two of them;
    landmarks: the labels, rows in the order of x.
    """

    x: np.ndarray
    neutral: np.ndarray
    mean: np.ndarray
    split: dict
    landmarks: LandmarkSet


# -- reading and writing ----------------------------------------------------------------------------------------------


def read(path):
    """The LandmarkSet at `path`: .h5/.hdf5 (own), .csv (OpenFace), or a folder (BU-3DFE, BP4D, OpenFace CSVs).

    Raises NnliteError, one sentence that names the file, for anything that `validate` would not let pass.
    """
    from nnlite.data import bp4d, bu3dfe, openface  # they build on this module

    path = Path(path)
    if not path.exists():
        raise expected(path, "an existing file or folder", "none")
    if path.is_dir():
        # BP4D before OpenFace: both hold CSV files, and only BP4D holds landmark files beside them.
        reader = next((r for r in (bu3dfe, bp4d, openface) if r.recognises(path)), None)
        if reader is None:
            raise expected(path, "a folder of BU-3DFE .bnd files, of BP4D landmarks or of OpenFace CSV files", "none")
        landmarks = reader.read(path)
    elif path.suffix.lower() in (".h5", ".hdf5"):
        landmarks = read_hdf5(path)
    elif path.suffix.lower() == ".csv":
        landmarks = openface.read(path)
    else:
        raise expected(path, "a .h5, .hdf5 or .csv file or a folder", f"a {path.suffix or 'nameless'} file")
    validate(landmarks, path)
    return landmarks


def read_hdf5(path):
    """The set in one file of the layout that `write` describes; not yet validated beyond its shapes."""
    with opened(path, "a file of landmarks") as file:
        return _read_open(file, path)


def _read_open(file, path):
    points = dataset(file, path, "points", "fiu", "real numbers (n, P, 3)",
                     lambda shape: len(shape) == 3 and shape[2] == 3)
    n = len(points)

    def column(name, kind="iu", width=None):
        shape = (n,) if width is None else (n, width)
        what = f"{'real numbers' if 'f' in kind else 'integers'} {shape}"
        return dataset(file, path, name, kind, what, lambda got: got == shape)

    common = {
        "points": points.astype(np.float32),
        "person": _int32(column("person"), path, "person"),
        "source": str(_text(file.attrs.get("source", ""))),
        "units": str(_text(file.attrs.get("units", ""))),
        "lower_lids": _lids(file, path, "lower"),
        "upper_lids": _lids(file, path, "upper"),
    }
    if "emotion" in file:
        emotions = _strings(file, path, "emotions")
        emotion, level = (_int32(column(name), path, name) for name in ("emotion", "level"))
        return LandmarkSet(**common, emotion=emotion, emotions=emotions, level=level)
    if "au" in file:
        au_numbers = tuple(int(number) for number in _indices(file, path, "au_numbers"))
        au = column("au", width=len(au_numbers))
        if not np.isin(au, (-1, 0, 1)).all():
            raise expected(path, "action units 1, 0 or -1 in 'au'", np.setdiff1d(au, (-1, 0, 1))[0])
        return LandmarkSet(
            **common, au=au.astype(np.int8), au_numbers=au_numbers,
            pose=column("pose", "fiu", 3).astype(np.float32), task=_int32(column("task"), path, "task"),
            tasks=_strings(file, path, "tasks"), frame=_int32(column("frame"), path, "frame"),
        )
    raise expected(path, "a dataset 'emotion' (posed) or 'au' (spontaneous)", "neither")


def _int32(values, path, name):
    limits = np.iinfo(np.int32)
    if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
        raise expected(path, f"32-bit integers in '{name}'", values.max())
    return values.astype(np.int32)


def _attribute(file, path, name):
    if name not in file.attrs:
        raise expected(path, f"an attribute '{name}'", "none")
    return np.atleast_1d(file.attrs[name])


def _indices(file, path, name):
    values = _attribute(file, path, name)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
        raise expected(path, f"a list of integers in attribute '{name}'", values.tolist())
    return values


def _lids(file, path, which):
    sides = ("negative_x", "positive_x")
    return tuple(tuple(int(i) for i in _indices(file, path, f"{which}_lid_{side}")) for side in sides)


def _strings(file, path, name):
    return tuple(str(_text(value)) for value in _attribute(file, path, name).tolist())


def _text(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def write(path, landmarks):
    """Writes `landmarks` as nnlite's own HDF5; the file appears whole or not at all.

    Datasets: points (n, P, 3) float32, person (n,) int32; posed: emotion, level (n,) int32; spontaneous: au (n, A)
    int8, pose (n, 3) float32, task, frame (n,) int32. Attributes: units, source, lower_lid_negative_x,
    lower_lid_positive_x, upper_lid_negative_x, upper_lid_positive_x (point indices), emotions or au_numbers and tasks;
    group_sizes for the 83- and 68-point layouts.
    """
    path = Path(path)
    validate(landmarks, path)
    if not path.parent.is_dir():
        raise expected(path, "an existing folder to write in", path.parent)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        _fill(file, landmarks)


def _fill(file, landmarks):
    names = ("points", "person") + (
        ("emotion", "level") if landmarks.kind == "posed" else ("au", "pose", "task", "frame"))
    for name in names:
        file.create_dataset(name, data=getattr(landmarks, name), compression="gzip", shuffle=True)
    file.attrs["units"] = landmarks.units
    file.attrs["source"] = landmarks.source
    for which, lids in (("lower", landmarks.lower_lids), ("upper", landmarks.upper_lids)):
        for side, indices in zip(("negative_x", "positive_x"), lids):
            file.attrs[f"{which}_lid_{side}"] = np.array(indices, np.int32)
    if landmarks.points.shape[1] in GROUP_SIZES:
        file.attrs["group_sizes"] = np.array(GROUP_SIZES[landmarks.points.shape[1]], np.int32)
    if landmarks.kind == "posed":
        file.attrs["emotions"] = np.array(landmarks.emotions, h5py.string_dtype())
    else:
        file.attrs["au_numbers"] = np.array(landmarks.au_numbers, np.int32)
        file.attrs["tasks"] = np.array(landmarks.tasks, h5py.string_dtype())


# -- validation -------------------------------------------------------------------------------------------------------


def validate(landmarks, where):
    """Raises NnliteError, one sentence that begins with `where`, unless `prepare` can use every row."""
    _validate_points(landmarks, where)
    n = len(landmarks.points)
    labels = {"posed": ("emotion", "level"), "spontaneous": ("au", "pose", "task", "frame")}[landmarks.kind]
    for name in ("person",) + labels:
        values = getattr(landmarks, name)
        width = {"au": (len(landmarks.au_numbers),), "pose": (3,)}.get(name, ())
        if values is None or values.shape != (n,) + width:
            raise expected(where, f"'{name}' {(n,) + width}", "none" if values is None else values.shape)
    if landmarks.kind == "posed":
        _in_range(landmarks.emotion, len(landmarks.emotions), "emotion", where)
        _validate_levels(landmarks, where)
    else:
        _in_range(landmarks.task, len(landmarks.tasks), "task", where)
        _finite(landmarks.pose, "pose", where)
    has_neutral = np.isin(landmarks.person, landmarks.person[neutral_candidates(landmarks)])
    if not has_neutral.all():
        person = landmarks.person[np.argmin(has_neutral)]
        raise expected(where, f"a neutral face of person {person}", "none")


def _validate_points(landmarks, where):
    points = landmarks.points
    if points.ndim != 3 or points.shape[2] != 3 or 0 in points.shape:
        raise expected(where, "points (n, P, 3) with at least one face", points.shape)
    _finite(points, "landmarks", where)
    for name, lids in (("lower lid", landmarks.lower_lids), ("upper lid", landmarks.upper_lids)):
        for index in (i for eye in lids for i in eye):
            if not 0 <= index < points.shape[1]:
                raise expected(where, f"{name} indices from 0 to {points.shape[1] - 1}", index)
    left, right = eyes(points, landmarks.lower_lids)
    size = np.ptp(points, axis=1).max(axis=1)
    apart = np.linalg.norm(right - left, axis=1)
    if (apart <= 1e-6 * size).any():
        row = int(np.argmax(apart <= 1e-6 * size))
        raise expected(where, f"a distance between the eyes in row {row}", apart[row])


def _validate_levels(landmarks, where):
    if "neutral" not in landmarks.emotions:
        raise expected(where, "'neutral' among the emotions", landmarks.emotions)
    bad = (landmarks.level == 0) != (landmarks.emotion == landmarks.emotions.index("neutral"))
    bad |= landmarks.level < 0
    if bad.any():
        row = int(np.argmax(bad))
        got = f"level {landmarks.level[row]} of {landmarks.emotions[landmarks.emotion[row]]} in row {row}"
        raise expected(where, "level 0 for neutral faces and 1 or more for others", got)


def _finite(values, what, where):
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise expected(where, f"finite {what}", f"NaN or infinity in row {row}")


def _in_range(values, count, name, where):
    bad = (values < 0) | (values >= count)
    if bad.any():
        row = int(np.argmax(bad))
        raise expected(where, f"'{name}' from 0 to {count - 1}", f"{values[row]} in row {row}")


# -- preprocessing ----------------------------------------------------------------------------------------------------


def prepare(landmarks, where="landmarks"):
    """Faces for training: pose, place and size taken out, neutral faces found, split by person, mean subtracted.

    Preprocessing of the landmark VAE experiments: `straighten`, then the mean of the training rows is subtracted.
    Raises NnliteError, beginning with `where`, for a set that `validate` refuses or of fewer than three persons.
    """
    validate(landmarks, where)
    persons = len(np.unique(landmarks.person))
    if persons < 3:
        raise expected(where, "at least 3 persons (train, validation, test)", persons)
    split = split_by_person(landmarks.person, landmarks.kind)
    rows = straighten(landmarks).reshape(len(landmarks.points), -1)  # (n, D)
    mean = rows[split["train"]].mean(axis=0, dtype=np.float64).astype(np.float32)
    x = rows - mean
    return Faces(x=x, neutral=neutral_rows(x, landmarks), mean=mean, split=split, landmarks=landmarks)


def rotation(pose):
    """Rz(roll) Ry(yaw) Rx(pitch), (n, 3, 3), for pose (n, 3) pitch, yaw, roll in radians (right-handed, columns)."""
    (cp, cy, cr), (sp, sy, sr) = np.cos(pose, dtype=np.float64).T, np.sin(pose, dtype=np.float64).T
    return np.stack([
        np.stack([cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp], axis=-1),
        np.stack([sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp], axis=-1),
        np.stack([-sy, cy * sp, cy * cp], axis=-1),
    ], axis=-2)


def eyes(points, lower_lids):
    """The eyes' positions, two arrays (n, 3): means of the lower lids, which a blink does not move."""
    return tuple(points[:, list(lids)].mean(axis=1, dtype=np.float64) for lids in lower_lids)


def straighten(landmarks):
    """points (n, P, 3) float32 with the head rotation undone, the eyes' midpoint at 0 and the eye distance 1."""
    result = np.empty(landmarks.points.shape, np.float32)
    for start in range(0, len(result), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        points = landmarks.points[part].astype(np.float64)
        if landmarks.pose is not None:
            points = points @ rotation(landmarks.pose[part])  # rows: (R^T p)^T = p^T R
        left, right = eyes(points, landmarks.lower_lids)
        points -= (left + right)[:, None] / 2
        result[part] = points / np.linalg.norm(right - left, axis=1)[:, None, None]
    return result


def neutral_candidates(landmarks):
    """(n,) bool: posed, level 0; spontaneous, every action unit coded absent."""
    if landmarks.kind == "posed":
        return landmarks.level == 0
    return (landmarks.au == 0).all(axis=1)


def neutral_rows(x, landmarks):
    """(n,) int32: for every row that of the same person's neutral face.

    Of a person's candidates the one with the smallest sum of Euclidean distances to the others, in the rows x (n, D).
    """
    neutral = np.empty(len(x), np.int32)
    candidates = neutral_candidates(landmarks)
    for person in np.unique(landmarks.person):
        own = landmarks.person == person
        rows = np.flatnonzero(own & candidates)
        neutral[own] = rows[central_row(x[rows])]
    return neutral


def central_row(x):
    """Index of the row of x (n, D) with the smallest sum of Euclidean distances to the others (the medoid)."""
    x = x - x.mean(axis=0, dtype=np.float64)  # |a - b|² = |a|² + |b|² - 2ab loses least near the origin
    square = (x * x).sum(axis=1)
    step = max(1, ROWS_AT_ONCE * 128 // len(x))  # a block of distances holds about a million numbers
    sums = [
        np.sqrt(np.maximum(square[i:i + step, None] + square - 2 * x[i:i + step] @ x.T, 0)).sum(axis=1)
        for i in range(0, len(x), step)
    ]
    return int(np.argmin(np.concatenate(sums)))


def split_by_person(person, kind):
    """The dict "train", "validation", "test" -> sorted rows (m,) int32, persons in ascending order of their numbers.

    Posed 80/10/10 of 100 persons, spontaneous 25/8/8 of 41; for another number the same shares rounded to the
    nearest whole person, at least one each.
    """
    persons = np.unique(person)
    share = {"posed": 10 / 100, "spontaneous": 8 / 41}[kind]
    held = max(1, int(share * len(persons) + 0.5))  # persons in validation, and again in test
    train = len(persons) - 2 * held
    parts = {"train": persons[:train], "validation": persons[train:train + held], "test": persons[train + held:]}
    return {name: np.flatnonzero(np.isin(person, part)).astype(np.int32) for name, part in parts.items()}


def blinking(landmarks):
    """(n,) bool: frames with closed or half-closed lids, not to be shown to people who compare faces.

    The opening of a frame is the distance between the mean upper-lid and the mean lower-lid point, averaged over the
    two eyes and divided by the distance between the eyes; a frame blinks where its opening is below BLINK_RATIO times
    the median opening of the same person.
    """
    left, right = eyes(landmarks.points, landmarks.lower_lids)
    above_left, above_right = eyes(landmarks.points, landmarks.upper_lids)
    gap = np.linalg.norm(above_left - left, axis=1) + np.linalg.norm(above_right - right, axis=1)
    opening = gap / 2 / np.linalg.norm(right - left, axis=1)
    usual = np.empty(len(opening))
    for person in np.unique(landmarks.person):
        own = landmarks.person == person
        usual[own] = np.median(opening[own])
    return opening < BLINK_RATIO * usual
