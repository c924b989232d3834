"""Image sets: the choice of a reader, parts, statistics, own HDF5, and the built-in faces, against naive code."""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnlite.data import images, synthetic_images
from nnlite.data.images import ImageSet, duplicates, hold_out, statistics, stratified, take
from nnlite.errors import NnliteError


def random_set(n=60, shape=(5, 4, 3), classes=3, parts=("train",), seed=0):
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    split = {name: np.sort(rows).astype(np.int32) for name, rows in zip(parts, np.array_split(order, len(parts)))}
    return ImageSet(rng.integers(0, 256, (n, *shape), np.uint8), rng.integers(0, classes, n).astype(np.int32),
                    tuple("abcdefgh"[:classes]), split, "made up")


def same(a, b):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.images.dtype == b.images.dtype == np.uint8 and a.labels.dtype == b.labels.dtype == np.int32
    assert (a.classes, a.source, list(a.split)) == (b.classes, b.source, list(b.split))
    for name in a.split:
        np.testing.assert_array_equal(a.split[name], b.split[name])
        assert a.split[name].dtype == b.split[name].dtype == np.int32


# -- held-out rows ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.floats(0.05, 0.6), st.integers(0, 2 ** 40))
def test_stratified(labels, share, seed):
    held = stratified(np.array(labels), share, seed)
    assert held.dtype == np.int32 and (np.diff(held) > 0).all()
    assert len(held) == max(1, math.floor(share * len(labels) + 0.5))
    of_class = Counter(labels[i] for i in held)
    for label, count in Counter(labels).items():
        assert abs(of_class[label] - share * count) < 1 + 1e-9


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=2, max_size=60), st.integers(0, 99))
def test_stratified_keeps_groups_together(rows, seed):
    labels, groups = np.array(rows).T
    held = stratified(labels, 0.3, seed, groups)
    inside = {groups[i] for i in held}
    assert inside.isdisjoint(groups[i] for i in range(len(groups)) if i not in set(held.tolist()))
    assert len(held) <= max(1, math.floor(0.3 * len(labels) + 0.5))


def test_stratified_with_copies_still_holds_the_share():
    labels = np.repeat([0, 1], [900, 100])
    groups = np.arange(1000)
    groups[:200] //= 4  # 50 images of class 0 occur four times
    held = stratified(labels, 0.1, 0, groups)
    assert Counter(labels[held].tolist()) == {0: 90, 1: 10}
    assert 0 < np.isin(held, np.arange(200)).sum() < 90 and np.isin(held, np.arange(200, 900)).sum() > 0


def test_stratified_is_random_and_repeatable():
    labels = np.zeros(2000, int)
    one, two, other = (stratified(labels, 0.25, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    shared = len(set(one.tolist()) & set(other.tolist()))
    assert 75 < shared < 175  # 125 expected of independent choices, deviation 10
    assert 0 < len(set(one.tolist()) & set(stratified(labels, 0.25, 1, name="test").tolist())) < 175
    counts = np.histogram(one, 4, (0, 2000))[0]
    assert (abs(counts - 125) < 45).all()


def test_stratified_does_not_depend_on_numpys_generators():
    np.random.seed(0)
    one = stratified(np.arange(50) % 3, 0.2, 5)
    np.random.seed(1)
    np.testing.assert_array_equal(one, stratified(np.arange(50) % 3, 0.2, 5))


def test_duplicates():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 2, (300, 2, 2, 2), np.uint8)
    seen, want = {}, []
    for picture in pictures:
        want.append(seen.setdefault(str(picture.tolist()), len(seen)))
    assert duplicates(pictures).tolist() == want
    assert duplicates(pictures[:, :, ::-1]).tolist() != list(range(300))  # not contiguous


def test_hold_out():
    complete = random_set(300, parts=("train", "validation", "test", "private"))
    same(hold_out(complete, 0.1, 0), complete)

    done = hold_out(random_set(200, parts=("train",)), 0.1, 3)
    assert {name: len(rows) for name, rows in done.split.items()} == {"train": 160, "validation": 20, "test": 20}
    images.validate(done, "done")

    tested = random_set(300, parts=("test", "private", "train"))
    done = hold_out(tested, 0.2, 3)
    assert list(done.split) == ["train", "validation", "test", "private"]
    np.testing.assert_array_equal(done.split["test"], tested.split["test"])
    assert len(done.split["validation"]) == 20
    np.testing.assert_array_equal(np.union1d(done.split["train"], done.split["validation"]), tested.split["train"])
    images.validate(done, "done")


def test_hold_out_keeps_copies_on_one_side():
    original = random_set(200)
    pictures = original.images.copy()
    pictures[100:150] = pictures[:50]
    done = hold_out(replace(original, images=pictures), 0.2, 0)
    side = defaultdict(set)
    for name, rows in done.split.items():
        for row in rows:
            side[pictures[row].tobytes()].add(name)
    assert all(len(names) == 1 for names in side.values())
    both = sum(np.isin([i, i + 100], done.split["validation"]).all() for i in range(50))
    assert both > 0


@pytest.mark.parametrize("share", [0, -0.1, 0.5, 1, float("nan")])
def test_hold_out_refuses_a_share(share):
    with pytest.raises(NnliteError, match="where: expected a held-out share above 0"):
        hold_out(random_set(), share, 0, where="where")


def test_hold_out_needs_different_images():
    one = random_set(20)
    with pytest.raises(NnliteError, match="enough different images to hold a test part out, got 20"):
        hold_out(replace(one, images=np.zeros_like(one.images)), 0.1, 0)


def test_take():
    whole = hold_out(random_set(300), 0.1, 0)
    few = take(whole, 49, 1, 7)
    images.validate(few, "few")
    assert len(few.split["train"]) == 49 and len(few.split["validation"]) == 1
    assert set(few.split["train"]) <= set(whole.split["train"])
    assert set(few.split["validation"]) <= set(whole.split["validation"])
    np.testing.assert_array_equal(few.split["test"], whole.split["test"])
    np.testing.assert_array_equal(take(whole, 49, 1, 7).split["train"], few.split["train"])
    assert few.split["train"].tolist() != take(whole, 49, 1, 8).split["train"].tolist()
    assert few.split["train"].tolist() != whole.split["train"][:49].tolist()
    for train, validation in ((241, 1), (0, 1), (1, 31), (1, 0)):
        with pytest.raises(NnliteError, match="made up: expected from 1 to"):
            take(whole, train, validation, 0)


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics(channels, monkeypatch):
    monkeypatch.setattr(images, "ROWS_AT_ONCE", 7)
    pictures = random_set(50, (6, 5, channels)).images // np.array([1, 2, 3][:channels], np.uint8)
    rows = np.array([1, 4, 9, 16, 25, 26, 27, 28, 29, 30, 31, 49])
    mean, std = statistics(pictures, rows)
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (channels,)
    for c in range(channels):
        values = [int(v) / 255 for row in rows for v in pictures[row, :, :, c].ravel()]
        m = math.fsum(values) / len(values)
        assert mean[c] == pytest.approx(m, rel=1e-6)
        assert std[c] == pytest.approx(math.sqrt(math.fsum((v - m) ** 2 for v in values) / len(values)), rel=1e-6)


def test_statistics_lose_nothing():
    """A deviation that float32 sums would not see: one pixel in ten thousand is 255 instead of 254."""
    pictures = np.full((100, 10, 10, 1), 254, np.uint8)
    pictures[17, 3, 3] = 255
    _, std = statistics(pictures, np.arange(100))
    assert std[0] * 255 == pytest.approx(math.sqrt(1e-4 - 1e-8), rel=1e-5)


def test_in_channels(monkeypatch):
    """Grey as Pillow makes it; grey in three channels is that again."""
    pillow = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(images, "ROWS_AT_ONCE", 7)
    colour = np.random.default_rng(0).integers(0, 256, (50, 40, 30, 3), np.uint8)
    grey = images.in_channels(colour, 1)
    assert grey.shape == (50, 40, 30, 1) and grey.dtype == np.uint8
    for one, other in zip(colour, grey[..., 0]):
        np.testing.assert_array_equal(other, np.asarray(pillow.fromarray(one).convert("L")))
    three = images.in_channels(grey, 3)
    assert all((three[..., c:c + 1] == grey).all() for c in range(3))
    assert images.in_channels(colour, 3) is colour and images.in_channels(grey, 1) is grey


def test_statistics_refuse():
    pictures = random_set().images.copy()
    with pytest.raises(NnliteError, match="at least one image"):
        statistics(pictures, np.array([], int))
    pictures[..., 1] = 7
    with pytest.raises(NnliteError, match="differ in every channel, got 7 everywhere"):
        statistics(pictures, np.arange(60))


# -- own HDF5 ---------------------------------------------------------------------------------------------------------


def test_own_hdf5_round_trip(tmp_path):
    original = random_set(90, parts=("train", "validation", "test", "private"))
    images.write(tmp_path / "set.h5", original)
    assert [path.name for path in tmp_path.iterdir()] == ["set.h5"]
    same(images.read(tmp_path / "set.h5"), original)


def test_own_hdf5_with_rows_in_no_part_and_parts_to_hold_out(tmp_path):
    original = random_set(90, parts=("train", "unused"))
    kept = replace(original, split={"train": original.split["train"]})
    images.write(tmp_path / "set.hdf5", kept)
    got = images.read(tmp_path / "set.hdf5", held_out=0.2, seed=4)
    same(got, hold_out(kept, 0.2, 4))
    assert {name: len(rows) for name, rows in got.split.items()} == {"train": 27, "validation": 9, "test": 9}


def put(name, value):
    def change(file):
        del file[name]
        file[name] = value
    return change


DAMAGE = {
    "no images": (lambda file: file.__delitem__("images"), "'images'.*none"),
    "float images": (put("images", np.zeros((60, 5, 4, 3))), r"'images' of 8-bit numbers .*, got float64"),
    "16 bits": (put("images", np.zeros((60, 5, 4, 3), np.uint16)), r"images .* of 8 bits, got uint16"),
    "two channels": (put("images", np.zeros((60, 5, 4, 2), np.uint8)), r"got uint8 \(60, 5, 4, 2\)"),
    "no labels": (lambda file: file.__delitem__("labels"), "'labels'.*none"),
    "too few labels": (put("labels", np.zeros(59, int)), r"'labels' of integers \(60,\), got int64 \(59,\)"),
    "label too large": (put("labels", np.full(60, 3)), "labels from 0 to 2, got 3 in row 0"),
    "label beyond 32 bits": (put("labels", np.full(60, 2 ** 32)), "labels from 0 to 2, got 4294967296"),
    "part too large": (put("part", np.full(60, 3)), "'part' from -1 to 2, got 3 in row 0"),
    "no training part": (put("part", np.full(60, 1)), "images in the part 'train', got none"),
    "no classes": (lambda file: file.attrs.__delitem__("classes"), "attribute 'classes' of names, got none"),
    "numbers as parts": (lambda file: file.attrs.__setitem__("parts", [1, 2]), "attribute 'parts' of names"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_hdf5(case, tmp_path):
    change, words = DAMAGE[case]
    path = tmp_path / "set.h5"
    images.write(path, random_set(parts=("train", "validation", "test")))
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(NnliteError, match=f"set.h5: expected .*{words}"):
        images.read(path)


def test_write_refuses_what_is_no_image_set(tmp_path):
    good = random_set(parts=("train", "test"))
    for bad, words in (
        (replace(good, labels=good.labels - 5), "labels from 0"),
        (replace(good, split={**good.split, "extra": good.split["test"][:1]}), "no image in two parts"),
        (replace(good, split={"train": good.split["train"][::-1]}), "ascending rows"),
        (replace(good, split={"train": np.array([0, 60])}), "rows from 0 to 59"),
    ):
        with pytest.raises(NnliteError, match=words):
            images.write(tmp_path / "set.h5", bad)
    with pytest.raises(NnliteError, match="existing folder"):
        images.write(tmp_path / "nowhere" / "set.h5", good)
    assert not list(tmp_path.iterdir())


# -- read -------------------------------------------------------------------------------------------------------------


def test_read_refuses(tmp_path):
    with pytest.raises(NnliteError, match="missing.csv: expected an existing file or folder, got none"):
        images.read(tmp_path / "missing.csv")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(NnliteError, match=r"set.zip: expected a .csv, .csv.gz, .* file or a folder, got a .zip file"):
        images.read(tmp_path / "set.zip")
    (tmp_path / "set.h5").write_bytes(b"no HDF5")
    with pytest.raises(NnliteError, match="set.h5: expected a readable HDF5 file"):
        images.read(tmp_path / "set.h5")
    with pytest.raises(NnliteError, match="set.h5: expected a folder per class where images are to be resized"):
        images.read(tmp_path / "set.h5", size=(8, 8))


# -- built-in faces ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces():
    return synthetic_images.faces()


def test_faces_make_up(faces):
    images.validate(faces, "faces")
    assert faces.images.shape == (2996, 48, 48, 1) and faces.source == "built-in faces"
    assert faces.classes == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert np.bincount(faces.labels).tolist() == [428] * 7
    assert sum(map(len, faces.split.values())) == 2996 and list(faces.split) == ["train", "validation", "test"]
    person = np.arange(2996) // 28
    parts = [set(person[rows]) for rows in faces.split.values()]
    assert [len(part) for part in parts] == [85, 11, 11]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    for rows in faces.split.values():
        assert len(set(np.bincount(faces.labels[rows]))) == 1
    assert len(np.unique(duplicates(faces.images))) == 2996


def test_faces_by_seed():
    a, b, c = (synthetic_images.faces(seed, persons=4) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.images, b.images)
    assert (a.images != c.images).mean() > 0.9
    assert synthetic_images.faces(persons=3, per_class=1).images.shape == (21, 48, 48, 1)


def test_faces_are_neither_blank_nor_clipped(faces):
    flat = faces.images.reshape(len(faces.images), -1)
    assert np.percentile(flat.std(axis=1), 1) > 12
    assert (flat == 255).mean() < 0.05 and (flat == 0).mean() < 0.05
    mean, std = statistics(faces.images, faces.split["train"])
    assert 0.4 < mean[0] < 0.6 and 0.12 < std[0] < 0.3


def test_faces_show_their_expressions(faces):
    """A surprised mouth is open, dark and low; happy lips end higher and further out than sad ones."""
    contrast = faces.images[..., 0] - faces.images[..., 0].mean(axis=(1, 2), keepdims=True)
    mean = {name: contrast[faces.labels == i].mean(axis=0) for i, name in enumerate(faces.classes)}
    low = (slice(35, 39), slice(21, 27))
    others = [mean[name][low].mean() for name in faces.classes if name != "surprise"]
    assert mean["surprise"][low].mean() < min(others) - 8
    for side in (slice(14, 18), slice(30, 34)):
        assert mean["happy"][30:33, side].mean() < mean["sad"][30:33, side].mean() - 8


def test_faces_are_not_trivial(faces):
    """A linear softmax learns something, and far from all."""
    linear = pytest.importorskip("sklearn.linear_model")
    x = faces.images.reshape(len(faces.images), -1) / 255.0
    train, test = faces.split["train"], np.concatenate([faces.split["validation"], faces.split["test"]])
    x = (x - x[train].mean(axis=0)) / x[train].std()
    model = linear.RidgeClassifier(alpha=300).fit(x[train], faces.labels[train])
    assert 0.4 < model.score(x[test], faces.labels[test]) < 0.8


def test_curves():
    rng = np.random.default_rng(0)
    curve = np.sort(rng.uniform(0, 20, (6, 5, 1)), axis=1)
    curve = np.concatenate([curve, rng.uniform(0, 20, (6, 5, 1))], axis=2)
    x = np.tile(np.linspace(-3, 23, 60), (6, 1))
    want = [np.interp(x[i], curve[i, :, 0], curve[i, :, 1]) for i in range(6)]
    np.testing.assert_allclose(synthetic_images._heights(curve, x), want, atol=1e-9)


def test_fill_covers_what_lies_between_the_curves():
    upper = np.array([[[2.0, 8.0], [8.0, 3.5], [13.3, 8.0]]])
    lower = np.array([[[2.0, 8.0], [7.0, 12.2], [13.3, 8.0]]])
    canvas = np.full((1, 16, 16), 100, np.float32)
    synthetic_images._fill(canvas, upper, lower, 200.0, 0.5)
    fine = (np.arange(16 * 20) + 0.5) / 20
    inside = ((fine[:, None] > np.interp(fine, upper[0, :, 0], upper[0, :, 1]))
              & (fine[:, None] < np.interp(fine, lower[0, :, 0], lower[0, :, 1])))
    cover = inside.reshape(16, 20, 16, 20).mean(axis=(1, 3))
    np.testing.assert_allclose((canvas[0] - 100) / 50, cover, atol=0.11)  # the curves' bends within a column
    assert abs(((canvas[0] - 100) / 50).sum() - cover.sum()) < 0.02 * cover.sum()
