"""Built-in faces: 48x48 grey pictures of seven expressions, drawn from nnlite's own parametric face. No file is needed.

The points of nnlite.data.synthetic (nobody was measured for it) are moved by the action units of an expression, turned
and seen straight from the front. Head, hair, eyes, brows, nose and mouth are drawn between two curves through points:
at x the piecewise linear curve through (x_j, y_j) has the height

    y(x) = y_0 + sum_j (y_j+1 - y_j) clip((x - x_j) / (x_j+1 - x_j), 0, 1)

and a pixel belongs to a shape by the part of its height that lies between the two. Persons differ in face, hair and
skin, pictures in pose, place, light, contrast and noise.
"""

import numpy as np

from nnlite.data import synthetic
from nnlite.data.images import ImageSet
from nnlite.data.landmarks import rotation, split_by_person

# FER2013's order, and the names that the parametric face has for them.
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprised", "neutral")
SIDE = 48
FINE = 2  # columns drawn for each column of the picture: the curves' ends get soft, too
FACES_AT_ONCE = 128  # what is drawn together stays in the cache
MILLIMETRES = 3.35  # a pixel
MIDDLE = 2.0  # mm: the height in the middle of the picture

# Scatter.
STYLE, LEAK = 0.4, 0.1  # as in nnlite.data.synthetic, but smaller: people differ, expressions can be told
LEVELS = (0.8, 1.4)  # range of the strength, as for a caricature
MOST = 1.7  # activation
TURN = (0.06, 0.1, 0.05)  # radians: nod, shake, tilt
PLACE, ZOOM = 0.8, 0.04  # pixels; logarithm
NOISE = (2.0, 9.0)  # range of the deviation, of 255

# Indices of the 83 points: left to right, upper and lower edge.
EYE_EDGES = (((0, 1, 2, 3, 4), (0, 7, 6, 5, 4)), ((8, 9, 10, 11, 12), (8, 15, 14, 13, 12)))
BROW_EDGES = (((16, 17, 18, 19, 20), (25, 24, 23, 22, 21)), ((26, 27, 28, 29, 30), (35, 34, 33, 32, 31)))
INNER_BROWS = (20, 21, 26, 35)
LIPS = ((48, 49, 50, 51, 52, 53, 54), (48, 59, 58, 57, 56, 55, 54))
MOUTH = ((60, 61, 62, 63, 64), (60, 67, 66, 65, 64))
WINGS = (45, 41, 40, 47, 42, 43, 46)
NOSTRILS = (41, 43)
RIDGE, NOSE_TIP = (36, 37, 38, 39), 39
IRIS = 3.3  # fine pixels
CONTOUR = tuple(range(68, 83))
CROWN, SKULL = 9, 54  # points of the arc that closes the contour; its height, mm
OUTLINE = tuple(range(83, 83 + CROWN))


def faces(seed=0, *, persons=107, per_class=4):
    """ImageSet of persons x 7 expressions x per_class pictures (n, 48, 48, 1), split by person 80/10/10.

    Deterministic in `seed`.
    """
    rng = np.random.default_rng([seed, 3])
    labels = np.tile(np.repeat(np.arange(len(CLASSES)), per_class), persons)
    person = np.repeat(np.arange(persons), len(CLASSES) * per_class)
    points = _points(rng, person, labels)
    looks, light = _looks(rng, persons)[person], _light(rng, len(person))
    images = np.empty((len(person), SIDE, SIDE, 1), np.uint8)
    for start in range(0, len(person), FACES_AT_ONCE):
        part = slice(start, start + FACES_AT_ONCE)
        images[part, :, :, 0] = _photograph(rng, _draw(points[part], looks[part], light[part, 0]), light[part])
    return ImageSet(images, labels.astype(np.int32), CLASSES, split_by_person(person, "posed"), "built-in faces")


# -- where the points are ---------------------------------------------------------------------------------------------


def _points(rng, person, labels):
    """(n, 83 + CROWN, 2) float32: column and row, in fine pixels, of the points as the camera sees them."""
    prototype = synthetic.activation_table(synthetic.AU_OF_EMOTION, EMOTIONS)
    style = np.exp(STYLE * rng.standard_normal((person[-1] + 1,) + prototype.shape))
    activation = (prototype * style)[person, labels] * rng.uniform(*LEVELS, (len(person), 1))
    activation += LEAK * np.abs(rng.standard_normal(activation.shape)) * (np.array(synthetic.UNITS) != 45)
    points = synthetic.moved_faces(rng, person, np.clip(activation, 0, MOST))
    points[:, INNER_BROWS, 1] += 3  # level brows at rest: as outlines, those of the table look cross in a picture
    points = np.concatenate([points, _crown(points)], axis=1)
    turned = points @ rotation(TURN * rng.standard_normal((len(person), 3))).transpose(0, 2, 1)  # rows: (R p)^T
    seen = (turned[:, :, :2] - (0, MIDDLE)) * (1, -1) / MILLIMETRES * np.exp(
        ZOOM * rng.standard_normal((len(person), 1, 1)))
    seen += SIDE / 2 + PLACE * rng.standard_normal((len(person), 1, 2))
    return (FINE * seen).astype(np.float32)


def _crown(points):
    """(n, CROWN, 3): the arc of the skull over the contour's two ends, from one to the other."""
    left, right = points[:, CONTOUR[0], None], points[:, CONTOUR[-1], None]
    angle = np.linspace(np.pi, 0, CROWN + 2)[1:-1, None]
    return (left + right) / 2 + (right - left) / 2 * np.cos(angle) + (0, SKULL, 20) * np.sin(angle)


def _looks(rng, persons):
    """(persons, 4) float32: tone of the skin, of the hair, of the lips relative to the skin, height of the forehead."""
    skin = rng.uniform(120, 215, persons)
    hair = rng.uniform(0.12, 0.75, persons) * skin
    return np.stack([skin, hair, rng.uniform(0.62, 0.8, persons), rng.uniform(0.5, 0.8, persons)], 1, dtype=np.float32)


def _light(rng, n):
    """(n, 6) float32: background, slopes of the light to the right and down, contrast, brightness, noise."""
    return np.stack([
        rng.uniform(10, 220, n), 0.12 * rng.standard_normal(n), 0.08 * rng.standard_normal(n),
        rng.uniform(0.7, 1.1, n), 12 * rng.standard_normal(n), rng.uniform(*NOISE, n),
    ], 1, dtype=np.float32)


# -- drawing ----------------------------------------------------------------------------------------------------------


def _draw(points, looks, background):
    """(n, F, F) float32, F = FINE SIDE: grey tones of heads before `background` (n,), without light and noise."""
    skin, hair, lips, forehead = looks.T
    canvas = np.empty((len(points), FINE * SIDE, FINE * SIDE), np.float32)
    canvas[...] = background[:, None, None]
    _head(canvas, points, skin, hair, forehead)
    for edges in BROW_EDGES:
        _fill(canvas, *(points[:, edge] for edge in edges), 0.8 * hair)
    for edges in EYE_EDGES:
        _eye(canvas, *(points[:, edge] for edge in edges), skin)
    _nose(canvas, points, skin)
    _mouth(canvas, points, skin * lips)
    return canvas


def _head(canvas, points, skin, hair, forehead):
    """Head and hair: closed outlines, each between the curves over and under it, the skin darker to its edge."""
    contour, crown = points[:, CONTOUR], points[:, OUTLINE]
    ends = points[:, CONTOUR[:1]], points[:, CONTOUR[-1:]]
    middle = (ends[0] + ends[1]) / 2
    top = np.concatenate([ends[0], crown, ends[1]], axis=1)
    _fill(canvas, middle + 1.1 * (top - middle), middle + 1.1 * (contour - middle) * (1, 0.25), hair)
    tones = _shaded(canvas.shape, skin, points)
    _fill(canvas, top, contour, tones)
    hairline = middle + (top - middle) * np.stack([np.ones_like(forehead), forehead], 1)[:, None]
    _fill(canvas, middle + 1.05 * (top - middle), hairline, hair)


def _shaded(shape, skin, points):
    """(n, F, F): the skin's tone, falling off from the tip of the nose to the edge of the head by a third."""
    tip = points[:, NOSE_TIP] + (0, -6)
    place = np.arange(shape[-1], dtype=np.float32) + 0.5
    square = [((place - tip[:, axis, None]) / (0.5 * shape[-1])) ** 2 for axis in (0, 1)]
    return skin[:, None, None] * (1.05 - 0.3 * (square[0][:, None, :] + 0.6 * square[1][:, :, None]))


def _eye(canvas, upper, lower, skin):
    """The white, the iris in the middle of the corners, a shadow under the brow, the upper lid's edge."""
    shadow = upper - (0, 2.2)
    _fill(canvas, shadow, upper, 0.72 * skin, 0.7)
    _fill(canvas, upper, lower, 0.5 * skin + 110)
    centre = (upper[:, 0] + upper[:, -1]) / 2
    angle = np.linspace(np.pi, 0, 7)
    arc = np.stack([np.cos(angle), -np.sin(angle)], 1) * IRIS
    over, under = centre[:, None] + arc, centre[:, None] + arc * (1, -1)
    _fill(canvas, _lower_of(over, upper), _upper_of(under, lower), 20.0)
    _fill(canvas, upper - (0, 0.9), upper + (0, 0.5), 0.3 * skin)
    _fill(canvas, lower - (0, 0.2), lower + (0, 0.6), 0.6 * skin, 0.6)


def _nose(canvas, points, skin):
    """The shadow under the wings, the nostrils, and a soft one on either side of the ridge."""
    wings = points[:, WINGS]
    _fill(canvas, wings - (0, 0.4), wings + (0, 1.2), 0.62 * skin, 0.8)
    for nostril in NOSTRILS:
        _fill(canvas, points[:, (nostril, nostril)] + ((-2, -0.6), (2, -0.6)),
              points[:, (nostril, nostril)] + ((-2, 1.0), (2, 1.0)), 0.35 * skin)
    turned = canvas.swapaxes(1, 2)  # a curve from top to bottom: columns and rows change places
    for side, wing in ((-1, WINGS[1]), (1, WINGS[-2])):
        edge = np.concatenate([points[:, RIDGE[:3]] + (4.0 * side, 0), points[:, (wing,)]], axis=1)[:, :, ::-1]
        _fill(turned, edge - (0, 1.2), edge + (0, 1.2), 0.75 * skin, 0.4)
        # From the wing round the corner of the mouth.
        corner = LIPS[0][0] if side < 0 else LIPS[0][-1]
        start = points[:, (WINGS[0] if side < 0 else WINGS[-1],)] + (3.0 * side, 0)
        fold = np.concatenate([start, points[:, (corner,)] + (5.0 * side, 2)], axis=1)[:, :, ::-1]
        _fill(turned, fold - (0, 0.7), fold + (0, 0.7), 0.7 * skin, 0.5)


def _mouth(canvas, points, lips):
    """Lips, the dark between them, the upper teeth in it."""
    _fill(canvas, *(points[:, edge] for edge in LIPS), lips)
    upper, lower = (points[:, edge] for edge in MOUTH)
    _fill(canvas, upper, lower, 25.0)
    _fill(canvas, _upper_of(upper + (0, 1.2), lower), _upper_of(upper + (0, 4.2), lower), 215.0)


def _lower_of(one, other):
    """The curve `one`, but where `other` is further down, that."""
    return np.stack([one[..., 0], np.maximum(one[..., 1], _heights(other, one[..., 0]))], axis=-1)


def _upper_of(one, other):
    """The curve `one`, but where `other` is further up, that."""
    return np.stack([one[..., 0], np.minimum(one[..., 1], _heights(other, one[..., 0]))], axis=-1)


def _fill(canvas, upper, lower, tone, share=1.0):
    """Blends `tone`, a number, (n,) or like the canvas, into the pixels between two curves (n, V, 2), by `share`.

    Points of a curve run from left to right; the shape ends where both curves have ended on a side. Writes canvas.
    """
    left, right = (np.concatenate([f(c[..., 0], axis=1)[:, None] for c in (upper, lower)], 1) for f in (np.min, np.max))
    left, right = left.min(axis=1), right.max(axis=1)
    columns = _window(left, right, canvas.shape[2])
    rows = _window(upper[..., 1], lower[..., 1], canvas.shape[1])
    x = np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5
    x = np.broadcast_to(x, (len(canvas), len(x)))
    over, under = (_heights(curve, x)[:, None, :].astype(np.float32) for curve in (upper, lower))
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    cover = np.maximum(np.minimum(under, y + 1) - np.maximum(over, y), 0)
    ends = np.minimum(x - left[:, None], right[:, None] - x) + 0.5
    cover *= (share * np.clip(ends, 0, 1))[:, None, :].astype(np.float32)
    part = canvas[:, rows, columns]
    tone = np.asarray(tone, np.float32)
    tone = tone[:, rows, columns] if tone.ndim == 3 else tone.reshape(-1, 1, 1)
    part += cover * (tone - part)


def _window(low, high, size):
    """The pixels that shapes from low to high touch, within 0 to size."""
    start = int(np.clip(np.floor(low.min()) - 1, 0, size - 1))
    return slice(start, int(np.clip(np.ceil(high.max()) + 1, start + 1, size)))


def _heights(curve, x):
    """(n, m): y(x) of the curve (n, V, 2) through points from left to right; level beyond its ends."""
    y = np.repeat(curve[:, :1, 1], x.shape[1], axis=1)
    for j in range(curve.shape[1] - 1):
        start, step = curve[:, j, None], np.maximum(curve[:, j + 1, None, 0] - curve[:, j, None, 0], 1e-3)
        y += (curve[:, j + 1, None, 1] - start[..., 1]) * np.clip((x - start[..., 0]) / step, 0, 1)
    return y


def _photograph(rng, canvas, light):
    """(n, SIDE, SIDE) uint8: FINE x FINE pixels averaged, lit from a side, with contrast, brightness and noise."""
    n = len(canvas)
    picture = canvas.reshape(n, SIDE, FINE, SIDE, FINE).mean(axis=(2, 4))
    _, right, down, contrast, brightness, noise = light.T[:, :, None, None]
    place = np.linspace(-1, 1, SIDE, dtype=np.float32)
    picture *= 1 + right * place + down * place[:, None]
    picture = 128 + contrast * (picture - 128) + brightness
    picture += noise * rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
