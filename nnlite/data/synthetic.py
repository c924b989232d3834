"""Synthetic landmark sets: a parametric 83-point face, written by hand, moved by action units. No file is needed.

Nobody was measured for it. The face at rest is a table of millimetres; an action unit (Ekman & Friesen, Facial Action
Coding System) is a table of bumps, each a displacement that fades with the distance from a centre; persons differ by a
smooth random field over the face, by strength, style and asymmetry of their movements. Points, in order: eye at
negative x 8, eye at positive x 8, brow at negative x 10, brow at positive x 10, nose 12, mouth 20 (outer 12, inner 8),
contour 15; +y up, +z towards the viewer. The scatter is set so that emotions are about as hard to tell apart from raw
coordinates as in sets of real faces, and easier once the person's neutral face is known.
"""

import numpy as np

from nnlite.data.landmarks import ACTION_UNITS, GROUP_SIZES, LandmarkSet, rotation

LOWER_LIDS = ((5, 6, 7), (13, 14, 15))
UPPER_LIDS = ((1, 2, 3), (9, 10, 11))
EMOTIONS = ("neutral", "angry", "disgust", "sad", "happy", "surprised", "fear")
TASKS = ("amusement", "sadness", "startle", "embarrassment", "fear", "pain", "anger", "disgust")

# Action units of an emotion in full strength (after Ekman & Friesen's prototypes).
AU_OF_EMOTION = {
    "neutral": {},
    "angry": {4: 0.9, 5: 0.3, 7: 0.7, 17: 0.4, 23: 0.7, 24: 0.6},
    "disgust": {4: 0.4, 6: 0.3, 7: 0.4, 9: 0.8, 10: 0.8, 15: 0.3, 17: 0.4, 25: 0.3},
    "sad": {1: 0.7, 4: 0.6, 7: 0.2, 15: 0.8, 17: 0.5},
    "happy": {6: 0.7, 7: 0.2, 10: 0.2, 12: 1.0, 25: 0.6, 26: 0.1},
    "surprised": {1: 0.8, 2: 0.8, 5: 0.7, 25: 0.6, 26: 0.8},
    "fear": {1: 0.8, 2: 0.5, 4: 0.5, 5: 0.6, 7: 0.2, 20: 0.7, 25: 0.6, 26: 0.4},
}

# The same for a task of the spontaneous set: mean activations, rarer and weaker than posed ones.
AU_OF_TASK = {
    "amusement": {6: 0.5, 12: 0.7, 10: 0.4, 7: 0.3, 25: 0.5, 26: 0.2, 14: 0.2},
    "sadness": {1: 0.4, 4: 0.5, 15: 0.4, 17: 0.4, 7: 0.2, 24: 0.2},
    "startle": {1: 0.5, 2: 0.5, 5: 0.4, 25: 0.4, 26: 0.4, 12: 0.2},
    "embarrassment": {12: 0.5, 14: 0.5, 6: 0.3, 24: 0.3, 17: 0.3, 2: 0.2},
    "fear": {1: 0.5, 2: 0.4, 4: 0.4, 5: 0.3, 20: 0.4, 25: 0.4, 10: 0.2},
    "pain": {4: 0.6, 6: 0.5, 7: 0.6, 9: 0.3, 10: 0.5, 25: 0.3, 17: 0.2, 12: 0.2},
    "anger": {4: 0.6, 7: 0.5, 23: 0.5, 24: 0.4, 17: 0.4, 14: 0.2},
    "disgust": {9: 0.5, 10: 0.6, 4: 0.4, 17: 0.4, 15: 0.3, 7: 0.3, 23: 0.2},
}

# One side of the face at rest (x > 0 is the side at positive x), millimetres; the other side is its mirror image.
EYE = ((16, 35, 55), (21, 39, 59), (31, 41, 61), (40, 39, 57), (46, 35, 51), (40, 32, 56), (31, 30.5, 58), (21, 32, 58))
BROW = ((10, 50, 68), (22, 55, 68), (34, 58, 66), (46, 56, 60), (56, 50, 50),
        (56, 47, 51), (46, 51, 61), (34, 52, 66), (22, 49, 67), (10, 45, 67))
RIDGE = ((0, 36, 68), (0, 24, 75), (0, 12, 82), (0, 0, 88))
NOSE = ((0, -11, 79), (8, -12, 74), (15, -9, 69), (18, -2, 66))  # under the tip, then outwards to the wing
MOUTH_OUTER = ((0, -25, 77), (6, -23.5, 77), (15, -27, 74), (25, -33, 64),  # from the middle of the upper lip
               (17, -40, 71), (8, -43, 75), (0, -44, 76))  # round the corner to the middle of the lower lip
MOUTH_INNER = ((0, -31.5, 75), (11, -32, 72), (21, -33, 66), (11, -34.5, 71), (0, -35, 74))
CONTOUR = ((0, -78, 66), (18, -75, 62), (34, -65, 50), (47, -48, 34), (56, -28, 18), (62, -8, 6), (66, 14, -2),
           (67, 36, -6))  # from the chin upwards

# Action unit -> bumps: (parts it moves, centre x, y of the side at positive x, radius, displacement x, y, z), mm at
# full strength; mirrored for the other side. Parts: e eyes, u upper lids, l lower lids, b brows, n nose, m mouth,
# o upper lip, i lower lip, c contour.
BUMPS = {
    1: (("b", 10, 50, 16, 1, 7, 0),),
    2: (("b", 50, 53, 18, 0, 7, 0),),
    4: (("b", 14, 50, 24, -3.5, -5, 1),),
    5: (("u", 31, 40, 14, 0, 3, 0),),
    6: (("l", 36, 31, 16, 0, 2.2, 1), ("u", 44, 37, 8, 0, -1.2, 0), ("b", 54, 50, 10, 0, -1.5, 0)),
    7: (("l", 28, 31, 14, 0, 2, 0), ("u", 31, 40, 14, 0, -1.6, 0)),
    9: (("n", 12, -4, 22, 0, 4, 1), ("b", 10, 48, 12, -1, -3, 0), ("o", 6, -25, 14, 0, 3, 0)),
    10: (("o", 11, -26, 12, 0.5, 5, 0.5), ("n", 16, -5, 9, 1.5, 2.5, 0)),
    12: (("m", 25, -33, 14, 8, 7, -4), ("c", 50, -40, 20, 1.5, 1, 0)),
    14: (("m", 25, -33, 9, 3.5, 0.5, -4),),
    15: (("m", 25, -33, 11, 1, -6, -1.5),),
    17: (("i", 0, -42, 16, 0, 4.5, 2), ("c", 0, -77, 22, 0, 4, 2)),
    20: (("m", 25, -34, 13, 7, -2, -3), ("i", 12, -40, 12, 1, -1.5, -1)),
    23: (("m", 25, -33, 16, -4, 0, 1), ("o", 6, -26, 16, 0, -1.5, -1), ("i", 6, -42, 16, 0, 1.5, -1)),
    24: (("o", 6, -26, 18, 0, -2.5, -2), ("i", 6, -42, 18, 0, 2.5, -2), ("m", 25, -33, 10, -1.5, 0, 0)),
    25: (("i", 0, -39, 16, 0, -5, -0.5), ("o", 0, -29, 14, 0, 1, 0)),
    26: (("i", 0, -40, 22, 0, -12, -3), ("m", 25, -33, 9, -1.5, -4, -1), ("c", 0, -76, 36, 0, -13, -4)),
    45: (("u", 31, 40, 30, 0, -8.5, 0),),
}
UNITS = tuple(BUMPS)  # the order of activations' columns

# Scatter: what makes the sets as hard as real ones (millimetres where not said otherwise).
IDENTITY_SCALES = ((60.0, 3.5), (22.0, 1.5), (8.0, 0.5))  # (length of the smooth field, its standard deviation)
UNEVEN_FACE = 0.25  # share of the identity field that is not mirrored
TRACKER_NOISE = 0.9
POSED_TURN = 0.035  # radians
SPONTANEOUS_TURN = 0.11
STYLE = 0.85  # standard deviation of the log of a person's share of every action unit in an emotion
LEAK = 0.25  # movement that does not belong to the emotion, activation
LEVELS = (0.0, 0.4, 0.6, 0.8, 1.0)
PRESENT = 0.3  # an activation from here on is coded present


def posed(seed=0, persons=100):
    """`persons` × (neutral + 6 expressions × 4 levels) faces: LandmarkSet, 25 faces a person.

    A person keeps their style of an emotion through its four levels. Deterministic in `seed`.
    """
    rng = np.random.default_rng([seed, 1])
    emotion = np.array([0] + [e for e in range(1, 7) for _ in range(4)])
    level = np.array([0] + [1, 2, 3, 4] * 6)
    prototype = activation_table(AU_OF_EMOTION, EMOTIONS)[1:]  # (6, A)
    shape = (persons,) + prototype.shape
    style = prototype * np.exp(STYLE * rng.standard_normal(shape)) * (rng.random(shape) > 0.15)
    style += LEAK * np.abs(rng.standard_normal(shape)) * (_column(45) == 0)
    strength = np.exp(0.25 * rng.standard_normal((persons, 1, 1)))
    full = np.concatenate([np.zeros((persons, 1, len(UNITS))), style * strength], axis=1)  # (persons, 7, A)
    degree = np.array(LEVELS)[level] * np.exp(0.12 * rng.standard_normal((persons, len(level))))
    activation = full[:, emotion] * degree[:, :, None]
    activation += 0.03 * np.abs(rng.standard_normal(activation.shape)) * (_column(45) == 0)
    person = np.repeat(np.arange(persons), len(level))
    points = moved_faces(rng, person, np.clip(activation, 0, 1.4).reshape(len(person), -1))
    turn = rotation(POSED_TURN * rng.standard_normal((len(person), 3)))
    return LandmarkSet(
        points=_place(rng, points, turn), person=person.astype(np.int32), **_description("posed"),
        emotion=np.tile(emotion, persons).astype(np.int32), emotions=EMOTIONS,
        level=np.tile(level, persons).astype(np.int32),
    )


def spontaneous(seed=0, persons=41, frames=60):
    """`persons` × 8 tasks × `frames` frames of smooth movement with head turns and blinks: LandmarkSet.

    Every sequence starts with a face at rest, so that everybody has frames without any action unit. Deterministic in
    `seed`; 12 action units are coded, those that the published evaluation counts.
    """
    rng = np.random.default_rng([seed, 2])
    sequences = persons * len(TASKS)
    mean = np.tile(activation_table(AU_OF_TASK, TASKS), (persons, 1))  # (sequences, A)
    taste = np.repeat(np.exp(STYLE * rng.standard_normal((persons, len(UNITS)))), len(TASKS), axis=0)
    wave = _smooth(rng, sequences, frames, len(UNITS))
    rise = np.clip((np.arange(frames) / frames - 0.08) / 0.15, 0, 1)[:, None]
    activation = np.clip((mean * taste)[:, None] + 0.35 * wave - 0.15, 0, 1.2) * rise
    activation[:, :, UNITS.index(45)] = _blinks(rng, sequences, frames)
    activation = activation.reshape(-1, len(UNITS))

    person = np.repeat(np.arange(persons), len(TASKS) * frames)
    pose = SPONTANEOUS_TURN * _smooth(rng, sequences, frames, 3).reshape(-1, 3)
    points = moved_faces(rng, person, activation)
    coded = activation[:, [UNITS.index(number) for number in ACTION_UNITS]] >= PRESENT
    return LandmarkSet(
        points=_place(rng, points, rotation(pose)), person=person.astype(np.int32), **_description("spontaneous"),
        au=coded.astype(np.int8), au_numbers=ACTION_UNITS, pose=pose.astype(np.float32),
        task=np.tile(np.repeat(np.arange(len(TASKS)), frames), persons).astype(np.int32), tasks=TASKS,
        frame=np.tile(np.arange(frames), sequences).astype(np.int32),
    )


def _description(kind):
    return {
        "source": f"synthetic: nnlite's own parametric face ({kind})", "units": "millimetres",
        "lower_lids": LOWER_LIDS, "upper_lids": UPPER_LIDS,
    }


def face_at_rest():
    """(83, 3) float64, millimetres."""
    def mirror(points):
        return [(-x, y, z) for x, y, z in points]

    eye, brow = list(EYE), list(BROW)
    # The side at negative x runs from the outer corner over the top inwards, the other from the inner corner outwards.
    left_eye = mirror(eye[4::-1] + eye[:4:-1])
    left_brow = mirror(brow[4::-1] + brow[:4:-1])
    base = NOSE[:3]
    nose = list(RIDGE) + mirror(base[:0:-1]) + list(base) + mirror(NOSE[3:]) + list(NOSE[3:]) + [(0, -14, 75)]
    upper, lower = MOUTH_OUTER[:4], MOUTH_OUTER[4:]
    outer = mirror(upper[:0:-1]) + list(upper) + list(lower) + mirror(lower[1::-1])
    top, bottom = MOUTH_INNER[:3], MOUTH_INNER[3:]
    inner = mirror(top[:0:-1]) + list(top) + list(bottom) + mirror(bottom[:1])
    contour = mirror(CONTOUR[:0:-1]) + list(CONTOUR)
    return np.array(left_eye + eye + left_brow + brow + nose + outer + inner + contour, np.float64)


def _parts():
    """Letter of BUMPS -> (83,) bool."""
    e, _, b, _, n, m, c = GROUP_SIZES[83]
    order = np.repeat(list("ebnmc"), [2 * e, 2 * b, n, m, c])
    parts = {letter: order == letter for letter in "ebnmc"}
    index = np.arange(len(order))
    height = face_at_rest()[:, 1]
    parts["u"] = np.isin(index, np.concatenate(UPPER_LIDS))
    parts["l"] = np.isin(index, np.concatenate(LOWER_LIDS))
    parts["o"] = parts["m"] & (height > -33)  # the corners, at -33, move with the whole mouth only
    parts["i"] = parts["m"] & (height < -33)
    return parts


def movements():
    """(A, 2, 83, 3) millimetres: displacement by each of UNITS at full strength, of the sides at negative, positive x.

    displacement = sum over bumps of d · exp(-((x - cx)² + (y - cy)²) / (2 r²)), the middle of the face belonging to
    both sides by half.
    """
    rest, parts = face_at_rest(), _parts()
    field = np.zeros((len(UNITS), 2, len(rest), 3))
    for unit, bumps in enumerate(BUMPS.values()):
        for side, sign in enumerate((-1, 1)):
            # The shares of both sides add up to 1: a point in the middle is not moved twice.
            share = np.clip(0.5 + sign * rest[:, 0] / 12, 0, 1)
            for letter, cx, cy, radius, dx, dy, dz in bumps:
                distance = (sign * rest[:, 0] - cx) ** 2 + (rest[:, 1] - cy) ** 2
                fade = np.exp(-distance / (2 * radius ** 2)) * share * parts[letter]
                field[unit, side] += fade[:, None] * np.array([sign * dx, dy, dz])
    return field


def moved_faces(rng, person, activation):
    """(n, 83, 3) millimetres: faces moved by activation (n, A), columns as UNITS, not yet turned or placed.

    person (n,) ascending numbers from 0: each has an own face at rest and an own asymmetry.
    """
    persons = int(person[-1]) + 1
    uneven = 1 + 0.12 * rng.standard_normal((persons, len(UNITS), 1)) * np.array([-1, 1])  # (persons, A, 2)
    uneven[:, UNITS.index(45)] = 1
    sides = (activation[:, :, None] * uneven[person]).reshape(len(person), -1)
    moved = (sides @ movements().reshape(sides.shape[1], -1)).reshape(len(person), -1, 3)
    return _identities(rng, persons)[person] + moved


def _identities(rng, persons):
    """(persons, 83, 3): faces at rest, each the common one plus a smooth random field, mostly symmetric."""
    rest = face_at_rest()
    mirror = rest * (-1, 1, 1)
    faces = np.tile(rest, (persons, 1, 1))
    for length, size in IDENTITY_SCALES:
        even = (_kernel(rest, rest, length) + _kernel(rest, mirror, length)) / 2
        odd = (_kernel(rest, rest, length) - _kernel(rest, mirror, length)) / 2
        for axis, sign in enumerate((-1, 1, 1)):  # mirrored faces have x of opposite sign
            same, other = (even, odd) if sign > 0 else (odd, even)
            covariance = (1 - UNEVEN_FACE) * 2 * same + UNEVEN_FACE * 2 * other
            values, vectors = np.linalg.eigh(covariance)
            root = vectors * np.sqrt(np.maximum(values, 0))
            faces[:, :, axis] += size / np.sqrt(2) * rng.standard_normal((persons, len(rest))) @ root.T
    return faces * np.exp(0.05 * rng.standard_normal((persons, 1, 1)))


def _kernel(a, b, length):
    """(n, m): exp(-|a - b|² / (2 length²)), the covariance of a smooth field."""
    return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=-1) / (2 * length ** 2))


def _place(rng, points, turn):
    """Tracker noise, then the head turn, then a place in front of the camera: (n, 83, 3) float32."""
    points = points + TRACKER_NOISE * rng.standard_normal(points.shape)
    points = points @ turn.transpose(0, 2, 1)  # rows: (R p)^T = p^T R^T
    return (points + 10 * rng.standard_normal((len(points), 1, 3))).astype(np.float32)


def activation_table(table, names):
    """(len(names), A): the activations of each name in AU_OF_EMOTION or AU_OF_TASK, columns as UNITS."""
    return np.array([[table[name].get(unit, 0.0) for unit in UNITS] for name in names])


def _column(unit):
    """(A,) bool: where activations of `unit` stand."""
    return np.array(UNITS) == unit


def _smooth(rng, sequences, frames, width):
    """(sequences, frames, width): sums of four slow cosines, standard deviation about 1."""
    time = np.arange(frames) / frames
    order = np.arange(1, 5)
    phase = 2 * np.pi * rng.random((sequences, width, len(order), 1))
    size = rng.standard_normal((sequences, width, len(order), 1)) * np.sqrt(2 / len(order))
    # cos(a + p) = cos a cos p - sin a sin p: two small products instead of a cosine per number
    angle = 2 * np.pi * order[:, None] * time
    waves = np.concatenate([size * np.cos(phase), -size * np.sin(phase)], axis=2)[..., 0]
    return (waves @ np.concatenate([np.cos(angle), np.sin(angle)])).transpose(0, 2, 1)


def _blinks(rng, sequences, frames):
    """(sequences, frames): closure of the lids from 0 to 1, one short blink a sequence."""
    at = rng.random((sequences, 1)) * frames
    return np.clip(1.6 - 0.6 * np.abs(np.arange(frames) - at), 0, 1)
