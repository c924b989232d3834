"""AffectNet's three forms, each written small with Pillow, against the pixels that went in; and broken image files."""

import csv
import sys

import numpy as np
import pytest

from nnlite.data import affectnet, image_folder, images
from nnlite.data.affectnet import CLASSES, COLUMNS
from nnlite.errors import NnliteError

Image = pytest.importorskip("PIL.Image")

FACE = (10, 8)      # pixels of a face, height and width
CONTEMPT, NONE, UNCERTAIN, NO_FACE = 7, 8, 9, 10


def face(number):
    """One colour each, so that no way of resizing changes it."""
    return np.broadcast_to(np.array([number, 255 - number, 7 * number % 256], np.uint8), (*FACE, 3))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path)


def expressions(part):
    """(number, expression) of the images of a part: all expressions, the first ones more than once."""
    count, first = {"train": (40, 0), "test": (22, 100)}[part]
    return [(first + i, i % 11) for i in range(count)]


def lists(folder, change=None, header=True):
    """The form with boxes: every face in a picture of another colour, which must not be seen."""
    folder.mkdir(exist_ok=True)
    for part, name in (("train", "training.csv"), ("test", "validation.csv")):
        rows = []
        for number, expression in expressions(part):
            picture = np.full((30, 40, 3), 99, np.uint8)
            top, left = number % 17, number % 13
            picture[top:top + FACE[0], left:left + FACE[1]] = face(number)
            place = f"{number % 3}/{number:03}.png"
            save(folder / "Manually_Annotated_Images" / place, picture)
            box = [left, top, FACE[1], FACE[0]] if expression < NO_FACE else ["NULL"] * 4
            rows.append([place, *box, "1.5;2.5", expression, 0.1, -0.2])
        rows = change(part, rows) if change else rows
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS] * (header or part == "train") + rows)
    return folder


def numbers(folder, kind="<U2"):
    """The form with a file of one number for each image."""
    for part, name in (("train", "train_set"), ("test", "val_set")):
        for number, expression in expressions(part):
            save(folder / name / "images" / f"{number}.png", face(number))
            path = folder / name / "annotations" / f"{number}_exp.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.array(expression).astype(kind))
            np.save(path.with_name(f"{number}_val.npy"), 0.5)
    return folder


def folders(folder):
    """The form with a folder for each expression."""
    for part, name in (("train", "train_class"), ("test", "val_class")):
        for number, expression in expressions(part):
            if expression <= CONTEMPT:
                save(folder / name / f"class{expression + 1:03}" / f"image{number:07}.png", face(number))
    return folder


FORMS = [lists, numbers, folders]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def seen(image_set, part):
    """{(number of a face, name of its class)} of a part, each image one colour all over."""
    found = set()
    for row in image_set.split[part]:
        image = image_set.images[row]
        np.testing.assert_array_equal(image, np.broadcast_to(face(int(image[0, 0, 0]))[0, 0], image.shape))
        found.add((int(image[0, 0, 0]), image_set.classes[image_set.labels[row]]))
    assert len(found) == len(image_set.split[part])
    return found


NAMES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry")


def wanted(part):
    return {(number, NAMES[expression]) for number, expression in expressions(part) if expression < CONTEMPT}


@every_form
def test_the_published_parts(form, tmp_path):
    got = affectnet.read(form(tmp_path / "set"))
    images.validate(got, "set")
    assert got.classes == NAMES == CLASSES and got.images.shape[1:] == (48, 48, 3)
    for part in ("train", "test"):
        assert seen(got, part) == wanted(part)


@every_form
def test_reading_holds_a_validation_part_out_of_training(form, tmp_path):
    whole = images.read(form(tmp_path / "set"), size=(12, 9), held_out=0.3, seed=2)
    assert list(whole.split) == ["train", "validation", "test"] and whole.images.shape[1:] == (12, 9, 3)
    assert seen(whole, "test") == wanted("test")
    train, held = seen(whole, "train"), seen(whole, "validation")
    assert train | held == wanted("train") and not train & held
    assert {name for _, name in held} == set(NAMES)       # of each class


def test_a_list_without_a_header(tmp_path):
    got = affectnet.read(lists(tmp_path / "set", header=False))
    assert seen(got, "test") == wanted("test")


def test_lists_and_images_where_the_archives_put_them(tmp_path):
    source, folder = lists(tmp_path / "one"), tmp_path / "two"
    (folder / "Manually_Annotated").mkdir(parents=True)
    (folder / "Manually_Annotated_file_lists").mkdir()
    (source / "Manually_Annotated_Images").rename(folder / "Manually_Annotated" / "Manually_Annotated_Images")
    for name in ("training.csv", "validation.csv"):
        (source / name).rename(folder / "Manually_Annotated_file_lists" / name)
    assert seen(images.read(folder), "test") == wanted("test")


def test_a_box_over_the_edge_is_cut_at_it(tmp_path):
    def change(part, rows):
        if part == "train":
            rows[0][0] = "far.png"
            rows[0][1:5] = [-3, 26, 8, 20]
        return rows
    folder = lists(tmp_path / "set", change)
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    save(folder / "Manually_Annotated_Images" / "far.png", picture)
    got = affectnet.read(folder, size=(4, 5))
    np.testing.assert_array_equal(got.images[0], picture[26:30, :5])


def test_grey_where_all_are_grey(tmp_path):
    folder = folders(tmp_path / "set")
    for path in folder.rglob("*.png"):
        save(path, np.full(FACE, 50, np.uint8))
    assert affectnet.read(folder).images.shape[3] == 1
    save(path, face(3))
    assert affectnet.read(folder).images.shape[3] == 3


@pytest.mark.parametrize("kind", ["<U1", "S2", "int64", "float32", "uint8"])
def test_kinds_of_numbers(kind, tmp_path):
    path = tmp_path / "3_exp.npy"
    for shape in ((), (1,)):
        np.save(path, np.full(shape, 6).astype(kind))
        assert affectnet._number(path) == 6


def test_class_folders_are_told_from_it(tmp_path):
    for label in ("happy", "sad"):
        save(tmp_path / label / "1.png", face(1))
    (tmp_path / "training.csv").write_text("about something else")
    assert not affectnet.recognises(tmp_path)
    assert images._read_published(tmp_path, None, None, False).classes == ("happy", "sad")


# -- bad input --------------------------------------------------------------------------------------------------------


def cell(row, column, value, part="train"):
    """A damage: this value in that row and column of a list."""
    def change(here, rows):
        if here == part:
            rows[row][COLUMNS.index(column)] = value
        return rows
    return lambda folder: lists(folder, change)


def without(*names):
    def damage(folder):
        lists(folder)
        for name in names:
            path = folder / name
            path.unlink() if path.is_file() else path.rename(folder.parent / "gone")
    return damage


def first_line(text):
    def damage(folder):
        lists(folder)
        lines = (folder / "training.csv").read_text().splitlines()
        (folder / "training.csv").write_text("\n".join([text, *lines[1:]]))
    return damage


def number_file(content, part="train_set"):
    def damage(folder):
        numbers(folder)
        path = folder / part / "annotations" / "3_exp.npy"
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content, allow_pickle=True)
    return damage


def no_picture(folder):
    numbers(folder)
    (folder / "train_set" / "images" / "3.png").unlink()


def no_fear(folder):
    folders(folder)
    (folder / "train_class" / "class005").rename(folder / "gone")


def strange_folder(folder):
    folders(folder)
    (folder / "train_class" / "class012").mkdir()


def no_test_part(folder):
    folders(folder)
    (folder / "val_class").rename(folder / "gone")


BAD = [
    (without("training.csv"), "set: expected a file training.csv, got none"),
    (without("validation.csv"), "set: expected a file validation.csv, got none"),
    (first_line("subDirectory_filePath,face_x,face_y,face_width,face_height,emotion"),
     r"training.csv, line 1: expected a column 'expression', got subDirectory"),
    (first_line("path,label"), "training.csv, line 1: expected a column 'subDirectory_filePath', got path,label"),
    (first_line(",".join([*COLUMNS, "more"])), "training.csv, line 2: expected 10 columns, got 9"),
    (cell(4, "expression", 11), "training.csv, line 6: expected an expression from 0 to 10, got '11'"),
    (cell(4, "expression", "sad", "test"), "validation.csv, line 6: expected an expression from 0 to 10, got 'sad'"),
    (cell(2, "face_width", 0), "training.csv, line 4: expected whole numbers face_x, face_y, and face_width, .* got "
                               "2, 2, 0, 10"),
    (cell(2, "face_x", "NULL"), "training.csv, line 4: expected whole numbers .* got NULL, 2, 8, 10"),
    (cell(2, "face_x", 40), r"2.002.png: expected a face inside the image of 30 x 40 \(height x width\), got one in "
                            "the rows 2 to 12 and columns 40 to 48"),
    (cell(0, "subDirectory_filePath", "9/none.png"), "9.none.png: expected an image, got no such file"),
    (number_file(None), "3_exp.npy: expected the expression of 3.png, got no such file"),
    (no_picture, "3.jpg: expected the image of 3_exp.npy, got no such file"),
    (number_file(b"no numbers"), "3_exp.npy: expected a .npy file of one number, got "),
    (number_file(b""), "3_exp.npy: expected a .npy file of one number, got "),
    (number_file(np.zeros(3)), r"3_exp.npy: expected one number, got float64 \(3,\)"),
    (number_file(np.array(2.5)), "3_exp.npy: expected an expression from 0 to 10, got '2.5'"),
    (number_file(np.array(float("nan"))), "3_exp.npy: expected an expression from 0 to 10, got 'nan'"),
    (number_file(np.array("-1")), "3_exp.npy: expected an expression from 0 to 10, got '-1'"),
    (number_file(np.array([{}], object)), "3_exp.npy: expected a .npy file of one number, got Object arrays cannot be"),
    (no_fear, "set: expected at least one image of the class 'fear' for training, got none"),
    (strange_folder, "class012: expected a folder from class001 to class011, got class012"),
    (no_test_part, "val_class: expected a folder, got none"),
]


@pytest.mark.parametrize("damage, sentence", BAD, ids=[sentence[:50] for _, sentence in BAD])
def test_bad_folders(damage, sentence, tmp_path):
    damage(tmp_path / "set")
    with pytest.raises(NnliteError, match=sentence) as error:
        images.read(tmp_path / "set")
    assert "\n" not in str(error.value)


def test_a_truncated_number_file_with_a_large_shape(tmp_path):
    """Neither a terabyte of memory nor a pickle, whatever the header says."""
    path = tmp_path / "1_exp.npy"
    np.save(path, np.int64(3))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'shape': (), }" + 13 * b" ", b"'shape': (999999999999,), }"))
    assert path.read_bytes() != content
    with pytest.raises(NnliteError, match="a .npy file of one number"):
        affectnet._number(path)


def test_lists_without_their_images(tmp_path):
    folder = lists(tmp_path / "set")
    (folder / "Manually_Annotated_Images").rename(folder / "Manually_Annotated_file_lists")
    with pytest.raises(NnliteError, match="set: expected a folder Manually_Annotated_Images, got none"):
        images.read(folder)


# -- files that are no images -----------------------------------------------------------------------------------------


def number_of(path):
    return int(path.stem.removeprefix("image"))


def break_files(folder):
    """A text, a truncated image and an empty file instead of the faces 0, 1 and 2; their paths."""
    paths = [next(path for path in folder.rglob("*.png") if number_of(path) == number) for number in range(3)]
    save(paths[1], np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8))
    content = paths[1].read_bytes()
    paths[0].write_text("dear diary")
    paths[1].write_bytes(content[:2000])
    paths[2].write_bytes(b"")
    return paths


@pytest.mark.parametrize("form", [numbers, folders], ids=lambda form: form.__name__)
def test_broken_files_are_an_error(form, tmp_path):
    folder = form(tmp_path / "set")
    paths = break_files(folder)
    with pytest.raises(NnliteError) as error:
        images.read(folder)
    text = str(error.value)
    assert text == (f"{paths[0]}: expected an image, got none that Pillow can read, and so 1 of the other files: "
                    f"{paths[2].relative_to(folder)} (--skip-broken leaves such files out)")
    for path in (paths[0], paths[2]):
        save(path, face(200))
    with pytest.raises(NnliteError, match="a whole image, got one that is truncated") as error:
        images.read(folder)
    assert str(error.value).startswith(str(paths[1]))


@pytest.mark.parametrize("form", [numbers, folders], ids=lambda form: form.__name__)
def test_broken_files_are_left_out_if_asked(form, tmp_path, capsys):
    folder = form(tmp_path / "set")
    whole = affectnet.read(folder)
    paths = break_files(folder)
    got = images.read(folder, held_out=0.2, skip_broken=True)
    left = {pair for part in ("train", "test") for pair in seen(whole, part) if pair[0] > 2}
    assert set().union(*(seen(got, part) for part in got.split)) == left
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"{folder}: left out 2 of " in lines[0] and f"{folder}: left out 1 of " in lines[1]
    for path, line in zip(paths, (lines[0], lines[1], lines[0])):
        assert str(path.relative_to(folder)) in line


def test_a_missing_file_of_a_list_may_be_left_out(tmp_path, capsys):
    folder = lists(tmp_path / "set")
    (folder / "Manually_Annotated_Images" / "0" / "000.png").unlink()
    got = affectnet.read(folder, skip_broken=True)
    assert seen(got, "train") == wanted("train") - {(0, "neutral")}
    assert "left out 1 of " in capsys.readouterr().err


def test_a_broken_file_by_its_whole_path(tmp_path, capsys):
    """A list may name files outside of its folder."""
    outside = tmp_path / "elsewhere.png"
    folder = lists(tmp_path / "set", change=lambda part, rows: [
        [outside if row[0] == "0/000.png" else row[0], *row[1:]] for row in rows])
    with pytest.raises(NnliteError, match="elsewhere.png: expected an image, got no such file"):
        affectnet.read(folder)
    assert seen(affectnet.read(folder, skip_broken=True), "train") == wanted("train") - {(0, "neutral")}
    assert capsys.readouterr().err.endswith(f": {outside}\n")


def class_folders(folder, count=3):
    for label in ("a", "b"):
        for i in range(count):
            save(folder / label / f"{i:02}.png", face(i))
    return folder


def test_broken_files_in_class_folders(tmp_path, capsys):
    folder = class_folders(tmp_path / "set")
    (folder / "a" / "00.png").write_text("dear diary")
    with pytest.raises(NnliteError, match="00.png: expected an image, got none that Pillow can read .--skip-broken"):
        images.read(folder)
    got = image_folder.read(folder, skip_broken=True)
    assert got.images.shape == (5, *FACE, 3) and got.labels.tolist() == [0, 0, 1, 1, 1]
    assert got.images[:, 0, 0, 0].tolist() == [1, 2, 0, 1, 2] and got.split["train"].tolist() == [0, 1, 2, 3, 4]
    assert "left out 1 of 6 files, which are no images: a" in capsys.readouterr().err


def test_many_broken_files_are_named_to_a_limit(tmp_path):
    folder = class_folders(tmp_path / "set", 30)
    for path in (folder / "a").iterdir():
        path.write_text("dear diary")
    with pytest.raises(NnliteError, match="and so 29 of the other files") as error:
        images.read(folder)
    assert len(str(error.value)) < 500 and "..." in str(error.value)


def test_nothing_is_left_of_a_class_of_a_part_or_of_all(tmp_path):
    folder = class_folders(tmp_path / "set")
    for path in (folder / "a").iterdir():
        path.write_text("dear diary")
    with pytest.raises(NnliteError, match="set: expected at least one image of the class 'a' for training, got none"):
        images.read(folder, skip_broken=True)
    for path in (folder / "b").iterdir():
        path.write_text("dear diary")
    with pytest.raises(NnliteError, match="set: expected at least one image, got none that can be read"):
        images.read(folder, skip_broken=True)
    parts = tmp_path / "parts"
    class_folders(parts / "train")
    class_folders(parts / "test", 1)
    for path in (parts / "test").rglob("*.png"):
        path.write_text("dear diary")
    with pytest.raises(NnliteError, match="parts: expected an image in the part 'test', got none that can be read"):
        images.read(parts, skip_broken=True)


def test_skipping_is_for_folders(tmp_path):
    (tmp_path / "faces.csv").write_text("emotion,pixels,Usage\n")
    with pytest.raises(NnliteError, match="^--skip-broken: expected a folder of image files, got a .csv file$"):
        images.read(tmp_path / "faces.csv", skip_broken=True)


def test_without_pillow(tmp_path, monkeypatch):
    folder = folders(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(NnliteError, match=r"Pillow \(pip install \"nnlite\[images\]\"\), got none installed"):
        images.read(folder)
