"""OpenFace 2 (Baltrušaitis et al. 2018): the CSV that FeatureExtraction writes, a line per video frame.

Used columns: frame, success, face_id (where there is one), X_0 … Y_0 … Z_0 … (millimetres), pose_Rx, pose_Ry, pose_Rz
(radians), AU01_c … (presence). A file is one person; lines with success 0 are left out. The first 48 points have to
follow the iBUG scheme of 68 points, in which the eyes are points 36 to 47.

Axes. OpenFace looks along +z with y down: x, y, z become x, -y, -z (F = diag(1, -1, -1), +y up, +z towards the
viewer). Its pose is R = Rx(a) Ry(b) Rz(c); seen in the new axes that is F R F = Rx(a) Ry(-b) Rz(-c), of which pitch,
yaw, roll of Rz(roll) Ry(yaw) Rx(pitch) are read off.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np

from nnlite.data.landmarks import ACTION_UNITS, LandmarkSet
from nnlite.errors import expected

LOWER_LIDS = ((40, 41), (46, 47))
UPPER_LIDS = ((37, 38), (43, 44))
LEAST_POINTS = 48  # so that both eyes are there


def recognises(folder):
    """Whether a CSV file lies in `folder` or below."""
    return next(Path(folder).rglob("*.csv"), None) is not None


def read(path):
    """The LandmarkSet (spontaneous) of one CSV file, or of all below a folder: person = number of the file by name."""
    path = Path(path)
    paths = sorted(path.rglob("*.csv")) if path.is_dir() else [path]
    parts = [_read_file(file) for file in paths]
    first = parts[0]
    for file, part in zip(paths, parts):
        if part["points"].shape[1] != first["points"].shape[1] or part["numbers"] != first["numbers"]:
            raise expected(file, f"the landmarks and action units of {paths[0].name}", "others")
        if not (part["au"] == 0).all(axis=1).any():
            raise expected(file, "a frame with every action unit absent (the neutral face)", "none")

    def joined(name):
        return np.concatenate([part[name] for part in parts])

    n = [len(part["frame"]) for part in parts]
    return LandmarkSet(
        points=joined("points"), person=np.repeat(np.arange(len(parts)), n).astype(np.int32),
        source="OpenFace: " + path.name, units="millimetres", lower_lids=LOWER_LIDS, upper_lids=UPPER_LIDS,
        au=joined("au"), au_numbers=first["numbers"], pose=joined("pose"),
        task=np.zeros(sum(n), np.int32), tasks=("video",), frame=joined("frame"),
    )


def _read_file(path):
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [field.strip() for field in next(lines, [])]
            columns, points, numbers = _columns(path, header)
            rows = [_row(f"{path}, line {i}", row, columns, len(header))
                    for i, row in enumerate(lines, 2) if any(field.strip() for field in row)]
            rows = np.array([row for row in rows if row is not None])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise expected(path, "a readable CSV file", "none") from error
    if len(rows) == 0:
        raise expected(path, "at least one frame with success 1", "none")
    face, frame, pose, rest = rows[:, 1], rows[:, 2], rows[:, 3:6], rows[:, 6:]
    if (face != face[0]).any():
        raise expected(path, "one face_id", np.unique(face).astype(int).tolist())
    xyz = rest[:, :3 * points].reshape(-1, 3, points).transpose(0, 2, 1)  # (n, P, 3)
    return {
        "points": (xyz * (1, -1, -1)).astype(np.float32), "pose": turn_pose(pose), "numbers": numbers,
        "frame": frame.astype(np.int32), "au": (rest[:, 3 * points:] != 0).astype(np.int8),
    }


def _columns(path, header):
    """(positions in a line, number of landmarks, action unit numbers).

    Positions: success, face_id, frame, pose (3), X (P), Y (P), Z (P), action units; without a face_id column success,
    which is 1 in every line that is kept, stands in its place.
    """
    at = {name: i for i, name in enumerate(header)}
    points = sum(re.fullmatch(r"X_\d+", name) is not None for name in header)
    if points < LEAST_POINTS:
        raise expected(path, f"an OpenFace CSV with at least {LEAST_POINTS} columns X_0, X_1 …", points)
    found = {int(name[2:-2]): name for name in header if re.fullmatch(r"AU\d+_c", name)}
    if not found:
        raise expected(path, "columns of action units such as AU01_c", "none")
    numbers = tuple(number for number in ACTION_UNITS if number in found) or tuple(sorted(found))
    names = ["success", "face_id" if "face_id" in at else "success", "frame", "pose_Rx", "pose_Ry", "pose_Rz"]
    names += [f"{axis}_{i}" for axis in "XYZ" for i in range(points)] + [found[number] for number in numbers]
    missing = next((name for name in names if name not in at), None)
    if missing:
        raise expected(path, f"a column {missing}", "none")
    return [at[name] for name in names], points, numbers


def _row(where, row, columns, width):
    """The numbers at `columns`, success first; None where it is 0, whatever else stands there."""
    if len(row) != width:
        raise expected(where, f"{width} values", len(row))
    try:
        if float(row[columns[0]]) == 0:
            return None
        values = [float(row[i]) for i in columns]
    except ValueError as error:
        raise expected(where, "numbers", str(error).rpartition(": ")[2]) from error
    if not all(map(math.isfinite, values)):
        raise expected(where, "finite numbers", "NaN or infinity")
    return values


def turn_pose(pose):
    """pitch, yaw, roll (n, 3) float32 in nnlite's axes and order for OpenFace's pose_Rx, pose_Ry, pose_Rz (n, 3)."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(pose).T, np.sin(pose).T
    sb, sc = -sb, -sc  # Rx(a) Ry(-b) Rz(-c); its first column and last row follow
    r11, r21, r31 = cb * cc, ca * sc + sa * sb * cc, sa * sc - ca * sb * cc
    r32, r33 = sa * cc + ca * sb * sc, ca * cb
    pitch, yaw, roll = np.arctan2(r32, r33), np.arcsin(np.clip(-r31, -1, 1)), np.arctan2(r21, r11)
    return np.stack([pitch, yaw, roll], axis=1).astype(np.float32)
