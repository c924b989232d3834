"""Folders of images, one per class, against Pillow's own pixels and against arithmetic."""

import sys

import numpy as np
import pytest

from nnlite.data import image_folder, images
from nnlite.errors import NnliteError

Image = pytest.importorskip("PIL.Image")


def picture(seed, size=(6, 5), channels=0):
    shape = size + ((channels,) if channels else ())
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


@pytest.fixture
def tree(tmp_path):
    """20 grey images in three classes, made in no order."""
    folder = tmp_path / "faces"
    for i in (7, 3, 19, 0, 12, 1, 2, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18):
        save(folder / ("sad", "angry", "happy")[i % 3] / f"{i:02}.png", picture(i))
    return folder


def test_one_folder_per_class(tree):
    (tree / "angry" / ".DS_Store").write_bytes(b"hidden")
    (tree / ".git").mkdir()
    (tree / "README.txt").write_text("not a class")
    got = image_folder.read(tree)
    images.validate(got, tree)
    order = [i for k in (1, 2, 0) for i in range(20) if i % 3 == k]  # angry, happy, sad
    np.testing.assert_array_equal(got.images[..., 0], [picture(i) for i in order])
    assert got.images.shape == (20, 6, 5, 1) and got.classes == ("angry", "happy", "sad")
    assert got.labels.tolist() == [(1, 2, 0).index(i % 3) for i in order] and list(got.split) == ["train"]
    whole = images.read(tree, held_out=0.15)
    assert {name: len(rows) for name, rows in whole.split.items()} == {"train": 14, "validation": 3, "test": 3}


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "val", "test"), ("train", "test")])
def test_parts_as_they_lie_there(names, tmp_path):
    count = 0
    for name, n in zip(names, (20, 2, 2) if len(names) == 3 else (20, 2)):
        for label in ("one", "two"):
            for _ in range(n):
                save(tmp_path / name / label / f"{count}.png", picture(count))
                count += 1
    whole = images.read(tmp_path)
    assert whole.classes == ("one", "two")
    assert {name: len(rows) for name, rows in whole.split.items()} == {
        "train": 36 if len(names) == 2 else 40, "validation": 4, "test": 4}
    for name, folder in (("test", "test"), ("train", "train")):
        inside = {np.asarray(Image.open(path)).tobytes() for path in (tmp_path / folder).rglob("*.png")}
        assert {whole.images[row].tobytes() for row in whole.split[name]} <= inside


def test_a_class_named_train_is_a_class(tmp_path):
    for label in ("train", "ship"):
        save(tmp_path / label / "1.png", picture(1))
    assert image_folder.read(tmp_path).classes == ("ship", "train")


def test_grey_and_colour(tmp_path):
    grey = save(tmp_path / "a" / "grey.png", picture(0))
    colour = save(tmp_path / "b" / "colour.png", picture(1, channels=3))
    clear = save(tmp_path / "b" / "with_alpha.png", picture(2, channels=4))
    palette = Image.fromarray(np.full((6, 5), 1, np.uint8), "P")
    palette.putpalette([0, 0, 0, 250, 20, 30])
    palette.save(tmp_path / "b" / "palette.png")
    got = image_folder.read(tmp_path)
    np.testing.assert_array_equal(got.images[0], np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(got.images[1], colour)
    np.testing.assert_array_equal(got.images[2], np.broadcast_to([250, 20, 30], (6, 5, 3)))
    np.testing.assert_array_equal(got.images[3], clear[:, :, :3])


def test_resizing(tmp_path):
    flat = np.full((40, 20), 77, np.uint8)
    save(tmp_path / "a" / "flat.png", flat)
    save(tmp_path / "a" / "as_it_is.png", picture(3, (12, 10)))
    ramp = save(tmp_path / "b" / "ramp.png", np.tile(np.arange(0, 200, 2, dtype=np.uint8), (36, 1)))
    got = image_folder.read(tmp_path, size=(12, 10))
    assert got.images.shape == (3, 12, 10, 1)
    np.testing.assert_array_equal(got.images[0, :, :, 0], picture(3, (12, 10)))
    assert (got.images[1] == 77).all()
    centres = ramp[0].reshape(10, 10).mean(axis=1)  # a ramp stays one, where the window is whole
    np.testing.assert_allclose(got.images[2, :, 1:-1, 0], np.tile(centres[1:-1], (12, 1)), atol=1)
    enlarged = image_folder.read(tmp_path, size=(80, 40)).images[1]
    assert (enlarged == 77).all()
    with pytest.raises(NnliteError, match="faces|an image of"):
        image_folder.read(tmp_path)


def test_jpeg(tmp_path):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(smooth).save(tmp_path / label / "1.jpg", quality=95)
    got = image_folder.read(tmp_path)
    assert abs(got.images[0, :, :, 0].astype(int) - smooth).max() < 6


def test_progress(tree, capsys):
    image_folder.read(tree, progress=False)
    image_folder.read(tree)
    assert capsys.readouterr().err == ""
    image_folder.read(tree, progress=True)
    assert "20/20" in capsys.readouterr().err


# -- bad input --------------------------------------------------------------------------------------------------------


def empty_class(tree):
    (tree / "tired").mkdir()
    (tree / "tired" / ".hidden").write_bytes(b"")


def other_size(tree):
    save(tree / "happy" / "99.png", picture(0, (7, 5)))


def no_image(tree):
    (tree / "sad" / "notes.txt").write_text("dear diary")


def truncated(tree):
    path = tree / "sad" / "00.png"
    save(path, picture(0, (60, 50)))
    for other in tree.rglob("*.png"):
        save(other, picture(0, (60, 50)))
    path.write_bytes(path.read_bytes()[:1500])


def nested(tree):
    save(tree / "sad" / "more" / "1.png", picture(0))


def deep(tree):
    save(tree / "sad" / "deep.png", picture(0).astype(np.uint16) * 200)


def one_class(tree):
    for name in ("sad", "happy"):
        for path in (tree / name).iterdir():
            path.unlink()
        (tree / name).rmdir()


def strange_class(tree):
    for name in ("angry", "sad", "happy"):
        (tree / "train").mkdir(exist_ok=True)
        (tree / name).rename(tree / "train" / name)
    save(tree / "test" / "bored" / "1.png", picture(0))


BAD = {
    empty_class: "tired: expected at least one image of the class, got none",
    other_size: r"happy.99.png: expected an image of 6 x 5 \(height x width\) as .*, or a size to resize all to, got "
                "7 x 5",
    no_image: "sad.notes.txt: expected an image, got none that Pillow can read",
    truncated: "sad.00.png: expected a whole image, got one that is truncated or damaged",
    nested: "sad.more: expected an image, got a folder",
    deep: "sad.deep.png: expected an image of 8 bits a channel, got one of mode I",
    one_class: "faces: expected a folder per class, at least two, got 1",
    strange_class: "test.bored: expected one of the classes of the training part, angry, happy, sad, got bored",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_bad_folders(damage, tree):
    damage(tree)
    with pytest.raises(NnliteError, match=BAD[damage]) as error:
        images.read(tree)
    assert "\n" not in str(error.value)


def test_an_image_that_pillow_finds_too_large(tree, monkeypatch, capsys):
    save(tree / "sad" / "huge.png", picture(0, (60, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)   # twice as many are an error
    sentence = "sad.huge.png: expected an image that is not larger than Pillow reads, got .*3000 pixels"
    with pytest.raises(NnliteError, match=sentence):
        image_folder.read(tree)
    assert len(image_folder.read(tree, skip_broken=True).images) == 20
    assert "left out 1 of 21 files, which are no images: sad" in capsys.readouterr().err


def test_an_empty_folder(tmp_path):
    with pytest.raises(NnliteError, match="a folder per class, at least two, got 0"):
        images.read(tmp_path)


def test_without_pillow(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(NnliteError, match=r"Pillow \(pip install \"nnlite\[images\]\"\), got none installed"):
        images.read(tree)
