"""Triplets: of three faces, the first is closer to the second than to the third.

`artificial_splits` derives them from the labels of a posed set, `read` and `write` keep them in HDF5, `satisfied`
tells which of them a space obeys. Triplets that people are asked for are made in nnlite.data.collection.
"""

from dataclasses import dataclass

import h5py
import numpy as np

from nnlite.errors import expected
from nnlite.files import dataset, opened, replacing

SPLITS = ("train", "validation", "test")
PER_ROW = 4  # artificial triplets per face: 8 000, 1 000, 1 000 for 2 000, 250, 250 faces
PROPOSALS, ROUNDS = 32, 100  # see `_draw`


@dataclass(frozen=True)
class Triplets:
    """T statements d(reference, plus) <= d(reference, minus).

    rows (T, 3) int32: reference, plus (closer), minus (farther), rows of Faces.x;
    weight (T,) float32: vote difference 5, 3 or 1 for collected triplets, 1 for artificial ones.
    """

    rows: np.ndarray
    weight: np.ndarray


def satisfied(z, triplets):
    """(T,) bool: d(z_ref, z_plus) <= d(z_ref, z_minus), Euclidean, for z (n, K), one point per row of Faces.x."""
    reference, plus, minus = triplets.rows.T
    return _distance(z, reference, plus) <= _distance(z, reference, minus)


def _distance(z, one, other):
    difference = z[one].astype(np.float64) - z[other]
    return np.einsum("tk,tk->t", difference, difference)  # squared: the order is the same


# -- artificial triplets ----------------------------------------------------------------------------------------------


def artificial_splits(faces, seed=0):
    """"train", "validation", "test" -> artificial Triplets, PER_ROW for every face of the split."""
    return {
        name: artificial(faces.landmarks, faces.split[name], PER_ROW * len(faces.split[name]), [seed, index])
        for index, name in enumerate(SPLITS)
    }


def artificial(landmarks, rows, count, seed):
    """`count` different Triplets among `rows` of a posed LandmarkSet, derived from its labels.

    The rules are `ordered`'s. Rows take turns as reference, so that each of them is in a triplet; given its reference,
    every pair that the rules put in order is equally likely, whoever the persons are. (In a set with all expressions
    of all persons about three quarters then compare classes, a fifth the neutral face, one in twenty degrees.) A row
    with no pair in order about it, such as the only neutral face of a split, is put in as plus or minus instead.
    Triplets repeat only where the labels leave no other. Raises NnliteError where a row fits in no triplet, or where
    `count` is below the number of rows.
    """
    if landmarks.kind != "posed":
        raise expected("artificial triplets", "a posed set, with emotions and levels", f"a {landmarks.kind} one")
    if count < len(rows):
        raise expected("artificial triplets", f"at least one per row, {len(rows)}", count)
    rng = np.random.default_rng(seed)
    labels = _labels(landmarks, rows)
    turns = [rng.permutation(len(rows)) for _ in range(-(-count // len(rows)))]
    local = _draw(labels, np.concatenate(turns)[:count], rows, rng)
    return Triplets(np.asarray(rows)[local].astype(np.int32), np.ones(count, np.float32))


def ordered(a, b, c):
    """Whether the labels put b closer to a than c is; a, b, c are pairs (emotion, level) of broadcastable arrays.

    One of three rules (e emotion, l level, 0 neutral; a, b, c three different faces):
      same class closer than another:   e_b = e_a,  e_c != e_a,  c not neutral
      closer degree closer:             e_b = e_c = e_a,  |l_a - l_b| < |l_a - l_c|
      neutral closer than another:      l_b = 0,  e_c != e_a,  c not neutral
    Neutral faces are a class of their own, but none that an expression is far from: whether a weak smile is closer to
    a strong one or to the neutral face, no rule says.
    """
    (emotion_a, level_a), (emotion_b, level_b), (emotion_c, level_c) = a, b, c
    other = (emotion_c != emotion_a) & (level_c != 0)
    same = emotion_b == emotion_a
    degree = same & (emotion_c == emotion_a) & (abs(level_a - level_b) < abs(level_a - level_c))
    return (same & other) | degree | ((level_b == 0) & other)


def _labels(landmarks, rows):
    level = landmarks.level[rows]
    return np.where(level == 0, -1, landmarks.emotion[rows]), level


def _draw(labels, reference, rows, rng):
    """(T, 3) indices into the labels: pairs proposed at random until each reference has one in order, no two alike."""
    emotion, level = labels
    n = len(emotion)
    result = np.full((len(reference), 3), -1)
    result[:, 0] = reference
    seen, open_slots = set(), np.arange(len(reference))
    for _ in range(ROUNDS):
        a = reference[open_slots, None]
        b, c = rng.integers(n, size=(2, len(open_slots), PROPOSALS))
        good = ordered(*((emotion[i], level[i]) for i in (a, b, c))) & (a != b) & (b != c) & (a != c)
        first = good.argmax(axis=1)
        still_open = []
        for slot, proposal, found in zip(open_slots, np.stack([b, c], axis=2)[np.arange(len(a)), first], good.any(1)):
            triplet = (int(reference[slot]), int(proposal[0]), int(proposal[1]))
            if found and triplet not in seen:
                seen.add(triplet)
                result[slot, 1:] = proposal
            else:
                still_open.append(slot)
        open_slots = np.array(still_open, int)
        if not len(open_slots):
            break
    for slot in open_slots:  # hardly any: a row about which the labels order few pairs, or none
        choice = _all_about(labels, reference[slot], rows[reference[slot]])
        fresh = [triplet for triplet in map(tuple, choice.tolist()) if triplet not in seen]
        result[slot] = fresh[rng.integers(len(fresh))] if fresh else choice[rng.integers(len(choice))]
        seen.add(tuple(result[slot].tolist()))
    return result


def _all_about(labels, index, row):
    """(m, 3): every triplet with `index` as the reference; where there is none, as plus; where none, as minus."""
    emotion, level = labels
    every = np.arange(len(emotion))
    for place in range(3):
        one, two = every[:, None], every[None, :]
        a, b, c = [(index, one, two), (one, index, two), (one, two, index)][place]
        good = ordered(*((emotion[i], level[i]) for i in (a, b, c))) & (one != two) & (one != index) & (two != index)
        if good.any():
            pairs = np.argwhere(good)
            return np.insert(pairs, place, index, axis=1)
    raise expected("artificial triplets", f"labels that order row {row} among the others of its split", "none")


# -- files ------------------------------------------------------------------------------------------------------------


def write(path, splits, *, source=""):
    """Writes split -> Triplets as HDF5: groups train, validation, test with rows (T, 3) int32, weight (T,) float32.

    `source` says in words where they come from (an attribute). The file appears whole or not at all.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["source"] = source
        for name in SPLITS:
            file[f"{name}/rows"] = splits[name].rows.astype(np.int32)
            file[f"{name}/weight"] = splits[name].weight.astype(np.float32)


def read(path, faces):
    """split -> Triplets from the file that `write` describes, checked against `faces`.

    Raises NnliteError, one sentence, for a missing or damaged file, another layout, no triplet to train on, a triplet
    that points outside the data or into another split or names a face twice, and a weight that is not a finite
    positive number.
    """
    with opened(path, "a file of triplets") as file:
        splits = {name: Triplets(*_read_split(file, path, name)) for name in SPLITS}
    for name, triplets in splits.items():
        _validate(path, name, triplets, faces)
    return {name: Triplets(t.rows.astype(np.int32), t.weight.astype(np.float32)) for name, t in splits.items()}


def _read_split(file, path, name):
    rows = dataset(file, path, f"{name}/rows", "iu", "integers (T, 3)", lambda shape: len(shape) == 2 and shape[1] == 3)
    n = len(rows)
    return rows, dataset(file, path, f"{name}/weight", "fiu", f"real numbers ({n},)", lambda shape: shape == (n,))


def _validate(path, name, triplets, faces):
    n = len(faces.x)
    rows = triplets.rows
    if name == "train" and not len(rows):
        raise expected(path, "at least one train triplet", "none")
    member = np.zeros(n, bool)
    member[faces.split[name]] = True
    outside = (rows < 0) | (rows >= n)
    for bad, what, where in (
        (outside, f"rows from 0 to {n - 1}, the data's {n} faces,", ""),
        (~member[np.where(outside, 0, rows)], f"rows of the {name} part of the data's {n} faces", ", of another part"),
        (np.stack([rows[:, 0] == rows[:, 1], rows[:, 1] == rows[:, 2], rows[:, 2] == rows[:, 0]], axis=1),
         "three different faces", " twice"),
    ):
        if bad.any():
            number, place = np.argwhere(bad)[0]
            raise expected(path, f"{what} in {name} triplet {number}", f"row {rows[number, place]}{where}")
    weight = triplets.weight.astype(np.float32)
    bad = ~(np.isfinite(weight) & (weight > 0))
    if bad.any():
        number = int(np.argmax(bad))
        raise expected(path, f"a finite positive weight of {name} triplet {number}", triplets.weight[number])
