"""Artificial triplets, the share that a space satisfies, and the file of triplets."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from nnlite.data import landmarks as marks
from nnlite.data import triplets
from nnlite.errors import NnliteError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "landmarks_posed.h5"
EMOTIONS = ("neutral", "angry", "happy", "sad")


def posed(persons, levels=(1, 2, 3, 4), expressions=(1, 2, 3), seed=0):
    """A small posed set in shuffled order: for each person one neutral face, every expression in every degree."""
    cells = [(p, e, l) for p in persons for e, l in [(0, 0)] + [(e, l) for e in expressions for l in levels]]
    rng = np.random.default_rng(seed)
    person, emotion, level = np.array(cells, np.int32)[rng.permutation(len(cells))].T
    return marks.LandmarkSet(
        points=rng.normal(size=(len(cells), 4, 3)).astype(np.float32), person=person, source="test", units="none",
        lower_lids=((0,), (1,)), upper_lids=((2,), (3,)), emotion=emotion, emotions=EMOTIONS, level=level,
    )


def faces_of(landmarks, split):
    x = landmarks.points.reshape(len(landmarks.points), -1)
    zeros = np.zeros(len(x), np.int32)
    return marks.Faces(x=x, neutral=zeros, mean=np.zeros(x.shape[1], np.float32), landmarks=landmarks,
                       split={name: np.array(rows, np.int32) for name, rows in split.items()})


def small_faces():
    landmarks = posed(range(5))
    parts = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
    return faces_of(landmarks, {n: np.flatnonzero(np.isin(landmarks.person, p)) for n, p in parts.items()})


def rule(landmarks, a, b, c):
    """The name of the rule that puts b closer to a than c, said for one triplet in plain words; None without one."""
    if len({a, b, c}) < 3:
        return None
    ea, eb, ec = (landmarks.emotions[landmarks.emotion[i]] for i in (a, b, c))
    la, lb, lc = (int(landmarks.level[i]) for i in (a, b, c))
    if eb == ea and ec != ea and ec != "neutral":
        return "class"
    if ea == eb == ec and ea != "neutral" and abs(la - lb) < abs(la - lc):
        return "degree"
    if eb == "neutral" and ea != "neutral" and ec not in ("neutral", ea):
        return "neutral"
    return None


def names_of_rules(landmarks, found):
    names = [rule(landmarks, *row) for row in found.rows.tolist()]
    bad = [row for row, name in zip(found.rows.tolist(), names) if name is None]
    assert not bad, f"no rule says {bad[0]}"
    return names


def test_every_artificial_triplet_follows_a_rule_and_all_rules_occur():
    landmarks = posed(range(7))
    rows = np.flatnonzero(landmarks.person > 1)
    found = triplets.artificial(landmarks, rows, 4 * len(rows), seed=3)
    names = names_of_rules(landmarks, found)
    assert set(names) == {"class", "degree", "neutral"}
    assert found.rows.shape == (4 * len(rows), 3) and found.rows.dtype == np.int32
    assert found.weight.dtype == np.float32 and (found.weight == 1).all()
    assert set(found.rows.ravel().tolist()) == set(rows.tolist())  # every row, and no row of another split
    assert len(set(map(tuple, found.rows.tolist()))) == len(found.rows)
    assert np.bincount(found.rows[:, 0])[rows].tolist() == [4] * len(rows)  # each is the reference equally often


def test_ordered_agrees_with_the_plain_words_on_all_triplets():
    landmarks = posed(range(2), levels=(1, 3), expressions=(1, 2))
    n = len(landmarks.person)
    label = np.where(landmarks.level == 0, -1, landmarks.emotion)
    for a in range(n):
        for b in range(n):
            for c in range(n):
                if len({a, b, c}) == 3:
                    got = triplets.ordered(*((label[i], landmarks.level[i]) for i in (a, b, c)))
                    assert bool(got) == (rule(landmarks, a, b, c) is not None), (a, b, c)


def test_pairs_about_a_reference_are_equally_likely():
    landmarks = posed(range(2), levels=(1, 2), expressions=(1, 2))
    rows = np.arange(len(landmarks.person))
    reference = int(np.flatnonzero(landmarks.level == 1)[0])
    possible = [(b, c) for b in rows for c in rows if rule(landmarks, reference, b, c)]
    drawn = {}
    for seed in range(600):
        for a, b, c in triplets.artificial(landmarks, rows, len(rows), seed).rows.tolist():
            if a == reference:
                drawn[b, c] = drawn.get((b, c), 0) + 1
    assert set(drawn) == set(possible)
    mean = 600 / len(possible)
    chi2 = sum((drawn[pair] - mean) ** 2 / mean for pair in possible)
    assert chi2 < len(possible) + 6 * np.sqrt(2 * len(possible))


def test_a_split_of_one_person_still_places_the_only_neutral_face():
    landmarks = posed([0])
    found = triplets.artificial(landmarks, np.arange(13), 52, seed=0)
    names_of_rules(landmarks, found)
    assert set(found.rows.ravel().tolist()) == set(range(13))
    assert len(set(map(tuple, found.rows.tolist()))) == 52


def test_few_possible_triplets_repeat_rather_than_hang():
    landmarks = posed([0], levels=(1, 2), expressions=(1, 2))  # 5 faces
    possible = {(a, b, c) for a in range(5) for b in range(5) for c in range(5) if rule(landmarks, a, b, c)}
    found = triplets.artificial(landmarks, np.arange(5), 60, seed=0)
    assert len(found.rows) == 60
    assert set(map(tuple, found.rows.tolist())) == possible  # nothing repeats before all have occurred


def test_artificial_triplets_depend_on_the_seed_alone():
    landmarks = posed(range(4))
    rows = np.arange(len(landmarks.person))
    one, two, three = (triplets.artificial(landmarks, rows, 300, seed).rows for seed in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, three)


def test_artificial_splits_stay_apart():
    faces = small_faces()
    splits = triplets.artificial_splits(faces)
    assert {name: len(t.rows) for name, t in splits.items()} == {"train": 156, "validation": 52, "test": 52}
    for name, found in splits.items():
        assert set(found.rows.ravel().tolist()) == set(faces.split[name].tolist())


@pytest.mark.parametrize("count, rows, words", [
    (3, 13, "at least one per row, 13, got 3"),
    (2, 2, "order row"),
])
def test_artificial_refuses_what_cannot_be(count, rows, words):
    landmarks = posed([0])
    with pytest.raises(NnliteError, match=words):
        triplets.artificial(landmarks, np.arange(rows), count, seed=0)


def test_satisfied_is_the_naive_distance_comparison():
    rng = np.random.default_rng(0)
    z = rng.integers(-2, 3, size=(30, 2)).astype(np.float32)  # a grid: many ties
    rows = np.array([rng.permutation(30)[:3] for _ in range(400)], np.int32)
    got = triplets.satisfied(z, triplets.Triplets(rows, np.ones(400, np.float32)))
    squares = [[sum((float(z[a, k]) - float(z[i, k])) ** 2 for k in range(2)) for i in (b, c)] for a, b, c in rows]
    assert got.dtype == bool and got.tolist() == [plus <= minus for plus, minus in squares]
    assert any(plus == minus for plus, minus in squares)


@pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA.name}")
def test_posed_set_has_the_published_counts_and_about_the_published_share():
    faces = marks.prepare(marks.read(DATA))
    splits = triplets.artificial_splits(faces)
    assert {name: len(t.rows) for name, t in splits.items()} == {"train": 8000, "validation": 1000, "test": 1000}
    for name, found in splits.items():
        names_of_rules(faces.landmarks, found)
        assert set(found.rows.ravel().tolist()) == set(faces.split[name].tolist())
        assert len(np.unique(found.rows, axis=0)) == len(found.rows)
        assert 0.53 < triplets.satisfied(faces.x, found).mean() < 0.63  # published 0.614, 0.564, 0.593


# -- the file ---------------------------------------------------------------------------------------------------------


def test_file_round_trip_leaves_nothing_beside_it(tmp_path):
    faces = small_faces()
    splits = triplets.artificial_splits(faces)
    splits["test"].weight[:3] = 5, 3, 1
    triplets.write(tmp_path / "t.h5", splits, source="made up")
    assert os.listdir(tmp_path) == ["t.h5"]
    back = triplets.read(tmp_path / "t.h5", faces)
    for name in triplets.SPLITS:
        assert np.array_equal(back[name].rows, splits[name].rows) and back[name].rows.dtype == np.int32
        assert np.array_equal(back[name].weight, splits[name].weight) and back[name].weight.dtype == np.float32
    with h5py.File(tmp_path / "t.h5") as file:
        assert file.attrs["source"] == "made up"


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "t.h5"
    path.write_text("old")
    with pytest.raises(KeyError):
        triplets.write(path, {"train": triplets.artificial_splits(small_faces())["train"]})
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["t.h5"]


def test_write_says_where_it_cannot(tmp_path):
    with pytest.raises(NnliteError, match="t.h5: expected a place that can be written"):
        triplets.write(tmp_path / "none" / "t.h5", triplets.artificial_splits(small_faces()))


def set_rows(place, value):
    def change(file, faces):
        file["validation/rows"][place] = value(faces) if callable(value) else value
    return change


def set_weight(value):
    def change(file, faces):
        file["test/weight"][4] = value
    return change


def replace(name, values):
    def change(file, faces):
        del file[name]
        if values is not None:
            file[name] = values
    return change


BAD = {
    "beyond the data": (set_rows((7, 1), 65), r"0 to 64, the data's 65 faces, in validation triplet 7, got row 65$"),
    "negative": (set_rows((0, 2), -1), r"in validation triplet 0, got row -1$"),
    "across splits": (set_rows((3, 0), lambda f: f.split["train"][0]),
                      r"rows of the validation part of the data's 65 faces in validation triplet 3, got row \d+, of"),
    "twice": (set_rows((2, 0), lambda f: 0), "validation triplet 2"),
    "NaN weight": (set_weight(np.nan), r"finite positive weight of test triplet 4, got nan"),
    "infinite weight": (set_weight(np.inf), r"test triplet 4, got inf"),
    "zero weight": (set_weight(0), r"test triplet 4, got 0"),
    "negative weight": (set_weight(-3), r"test triplet 4, got -3"),
    "no split": (replace("validation", None), r"a dataset 'validation/rows' of integers \(T, 3\), got none"),
    "no weight": (replace("test/weight", None), r"a dataset 'test/weight' of real numbers \(52,\), got none"),
    "weights too few": (replace("test/weight", np.ones(51)), r"'test/weight' of real numbers \(52,\), got .*\(51,\)"),
    "pairs": (replace("test/rows", np.zeros((5, 2), int)), r"'test/rows' of integers \(T, 3\), got int64 \(5, 2\)"),
    "real rows": (replace("test/rows", np.zeros((5, 3))), r"'test/rows' of integers \(T, 3\), got float64"),
    "a dataset for a group": (replace("train", np.zeros(3)), r"train"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name):
    faces = small_faces()
    path = tmp_path / "t.h5"
    triplets.write(path, triplets.artificial_splits(faces))
    change, words = BAD[name]
    with h5py.File(path, "r+") as file:
        change(file, faces)
        if name == "twice":
            file["validation/rows"][2] = file["validation/rows"][2][[1, 1, 2]]
    with pytest.raises(NnliteError, match=words) as caught:
        triplets.read(path, faces)
    assert str(caught.value).startswith(f"{path}: expected ") and "\n" not in str(caught.value)


def test_no_train_triplets_is_refused_and_an_empty_test_part_is_not(tmp_path):
    faces = small_faces()
    none = triplets.Triplets(np.empty((0, 3), np.int32), np.empty(0, np.float32))
    splits = triplets.artificial_splits(faces)
    triplets.write(tmp_path / "t.h5", {**splits, "test": none})
    assert triplets.read(tmp_path / "t.h5", faces)["test"].rows.shape == (0, 3)
    triplets.write(tmp_path / "t.h5", {**splits, "train": none})
    with pytest.raises(NnliteError, match="at least one train triplet, got none"):
        triplets.read(tmp_path / "t.h5", faces)


@pytest.mark.parametrize("content", [None, b"", b"not HDF5", "truncated", "folder"])
def test_missing_and_damaged_files(tmp_path, content):
    faces, path = small_faces(), tmp_path / "t.h5"
    if content == "folder":
        path.mkdir()
    elif content == "truncated":
        triplets.write(path, triplets.artificial_splits(faces))
        path.write_bytes(path.read_bytes()[:-500])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(NnliteError) as caught:
        triplets.read(path, faces)
    assert str(caught.value).startswith(f"{path}: expected ") and "\n" not in str(caught.value)
