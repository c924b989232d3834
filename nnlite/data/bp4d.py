"""BP4D-Spontaneous (Zhang et al. 2014): 41 persons in 8 tasks, 83 3D landmarks per frame, coded action units.

BP4D's landmarks and head poses come in MATLAB files; read are text files exported from them, one per tracked frame,
anywhere below the folder: `F001_T1_0001.bndplus` or `.txt` (person, task, frame) with 83 lines `x y z` and a last line
`pitch yaw roll` (radians), blanks or commas between numbers. Axes: +y up, +z towards the viewer; points =
Rz(roll) Ry(yaw) Rx(pitch) straight points. The action units are read as published: `F001_T1.csv` (also anywhere
below) with the action units' numbers in its header, the frame in the first column, then 0 absent, 1 present, 9 not
coded. Frames without a line there are kept, all their action units not coded.
"""

import csv
import re
from pathlib import Path

import numpy as np

from nnlite.data.bu3dfe import POINTS, eyes_first, find_lids, number_lines, number_persons
from nnlite.data.landmarks import ACTION_UNITS, LandmarkSet
from nnlite.errors import expected

FRAME = re.compile(r"([FM]\d+)_T(\d+)_(\d+)\.(bndplus|txt)", re.IGNORECASE)
CODES = {"0": 0, "1": 1, "9": -1}


def recognises(folder):
    """Whether a landmark file of BP4D's naming lies in `folder` or below."""
    return any(FRAME.fullmatch(path.name) for path in Path(folder).rglob("*"))


def read(folder):
    """The LandmarkSet (spontaneous) of all frames below `folder`, ordered by person, task and frame."""
    folder = Path(folder)
    frames = sorted(_frames(folder))
    sequences = sorted({(person, task) for person, task, _, _ in frames})
    numbers, coded = _codes(folder, sequences)
    kept = [number for number in ACTION_UNITS if number in numbers] or numbers
    columns = [numbers.index(number) for number in kept]
    absent = [-1] * len(numbers)
    au = np.array([coded.get((person, task, frame), absent) for person, task, frame, _ in frames], np.int8)[:, columns]
    names = [person for person, _, _, _ in frames]
    without = sorted(set(names) - {name for name, row in zip(names, au) if not row.any()})
    if without:
        raise expected(folder, f"a frame of person {without[0]} with every action unit coded absent", "none")

    parts = [number_lines(path, [(POINTS, (3,)), (1, (3,))]) for _, _, _, path in frames]
    points = eyes_first(np.array([part[0] for part in parts]))
    lower, upper = find_lids(points)
    persons = number_persons(names)
    tasks = sorted({task for _, task, _, _ in frames})
    return LandmarkSet(
        points=points.astype(np.float32), person=np.array([persons[name] for name in names], np.int32),
        source="BP4D-Spontaneous", units="millimetres", lower_lids=lower, upper_lids=upper,
        au=au, au_numbers=tuple(kept), pose=np.array([part[1][0] for part in parts], np.float32),
        task=np.array([tasks.index(task) for _, task, _, _ in frames], np.int32),
        tasks=tuple(f"T{task}" for task in tasks), frame=np.array([frame for _, _, frame, _ in frames], np.int32),
    )


def _frames(folder):
    """(person, task, frame, path) of every landmark file."""
    for path in folder.rglob("*"):
        match = FRAME.fullmatch(path.name)
        if match:
            yield match[1].upper(), int(match[2]), int(match[3]), path


def _codes(folder, sequences):
    """(numbers of the action units, {(person, task, frame): codes}) of the given sequences' CSV files."""
    files = {path.stem.upper(): path for path in folder.rglob("*.csv")}
    numbers, coded = None, {}
    for person, task in sequences:
        path = files.get(f"{person}_T{task}") or files.get(f"{person}_T{task:02d}")
        if path is None:
            raise expected(folder, f"action units in {person}_T{task}.csv", "none")
        header, rows = _read_codes(path)
        if numbers not in (None, header):
            raise expected(f"{path}, line 1", f"the same action units as in the other files, {numbers}", header)
        numbers = header
        coded.update({(person, task, frame): codes for frame, codes in rows})
    return numbers, coded


def _read_codes(path):
    """(action unit numbers, [(frame, codes)]) of one file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [(i, [field.strip() for field in row]) for i, row in enumerate(csv.reader(file), 1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise expected(path, "a readable CSV file", "none") from error
    header = lines[0][1] if lines else []
    if len(header) < 2 or not all(field.isdecimal() for field in header[1:]):
        raise expected(f"{path}, line 1", "a frame column and numbers of action units", header[:4])
    header = [int(field) for field in header[1:]]
    rows = []
    for i, (frame, *codes) in lines[1:]:
        if not frame.isdecimal() or len(codes) != len(header) or not all(code in CODES for code in codes):
            raise expected(f"{path}, line {i}", f"a frame number and {len(header)} codes 0, 1, 9", (frame, *codes)[:8])
        rows.append((int(frame), [CODES[code] for code in codes]))
    return header, rows
