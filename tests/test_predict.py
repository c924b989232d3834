"""`python -m nnlite.predict`: what it prints and writes for image files and CSVs, and what it refuses."""

import csv
import gzip
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from nnlite import predict, runs, train
from nnlite.data import images
from nnlite.data.images import ImageSet
from nnlite.saliency import saliency

Image = pytest.importorskip("PIL.Image")

CLASSES = ("angry", "happy", "neutral")


def made_up(side, channels, n=60):
    """Images whose brightness tells the class, so that a short training leaves probabilities that differ."""
    rng = np.random.default_rng(0)
    labels = np.arange(n, dtype=np.int32) % 3
    grey = 60 + 60 * labels[:, None, None, None] + rng.normal(0, 30, (n, side, side, channels))
    split = {part: np.arange(a, b, dtype=np.int32) for part, a, b in (("train", 0, 40), ("validation", 40, 50),
                                                                      ("test", 50, 60))}
    return ImageSet(grey.clip(0, 255).astype(np.uint8), labels, CLASSES, split, "made up")


def trained(folder, data, monkeypatch):
    """The folder of a run of a small mlp."""
    monkeypatch.setattr("nnlite.report_labels.evaluate", lambda run: None)
    images.write(folder / "data.h5", data)
    words = ["--model", "mlp", "--data", folder / "data.h5", "--out", folder / "run", "--iterations", 30,
             "--device", "reference", "--set", "hidden=[6]", "--set", "batch_size=20", "--set", "learning_rate=0.01"]
    assert train.main([str(word) for word in words]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A run on 48 x 48 grey images: its folder, its data, and the probabilities that its model gives."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        data = made_up(48, 1)
        path = trained(tmp_path_factory.mktemp("grey"), data, monkeypatch)
    run = runs.open_run(path, "reference")
    run.load_best()
    return SimpleNamespace(path=path, data=data, run=run, probabilities=run.experiment.probabilities(data.images))


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        data = made_up(8, 3)
        path = trained(tmp_path_factory.mktemp("colour"), data, monkeypatch)
    run = runs.open_run(path, "reference")
    run.load_best()
    return SimpleNamespace(path=path, data=data, run=run, probabilities=run.experiment.probabilities(data.images))


@pytest.fixture
def call(capsys):
    """Runs the command; gives (exit code, lines on standard output, text on standard error)."""
    def call(*words):
        capsys.readouterr()
        code = predict.main([*map(str, words), "--device", "reference"])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err
    return call


def save(path, image):
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)
    return path


def write_csv(path, pictures, columns=("pixels",), opened=open):
    """A CSV with those columns; emotion and Usage are without meaning."""
    other = {"emotion": "0", "Usage": "PublicTest", "note": "\"a, b\""}
    with opened(path, "wt") as file:
        file.write(",".join(columns) + "\n")
        for picture in pictures:
            pixels = " ".join(map(str, picture.reshape(-1)))
            file.write(",".join(pixels if name == "pixels" else other[name] for name in columns) + "\n")
    return path


def wanted_line(p):
    first, second = np.argsort(-p)[:2]
    return [CLASSES[first], f"{p[first]:.3f}", CLASSES[second], f"{p[second]:.3f}"]


def test_image_files(grey, call, tmp_path):
    files = [save(tmp_path / f"{i}.png", grey.data.images[i]) for i in range(4)]
    code, out, err = call(grey.path, *files)
    assert code == 0 and err == ""
    wanted = [[str(path), *wanted_line(p)] for path, p in zip(files, grey.probabilities)]
    assert [line.split() for line in out] == wanted
    assert len({line.split()[1] for line in out}) > 1


def test_colour_images(colour, call, tmp_path):
    files = [save(tmp_path / f"{i}.png", colour.data.images[i]) for i in range(3)]
    code, out, err = call(colour.path, *files)
    assert code == 0 and err == ""
    assert [line.split()[1:] for line in out] == [wanted_line(p) for p in colour.probabilities[:3]]


@pytest.mark.parametrize("columns", [("pixels",), ("emotion", "pixels", "Usage"), ("pixels", "note", "emotion")])
def test_rows_of_a_csv(grey, call, tmp_path, columns):
    path = write_csv(tmp_path / "some.csv", grey.data.images[:5], columns)
    code, out, err = call(grey.path, path)
    assert code == 0 and err == ""
    wanted = [[f"{path}:{i + 2}", *wanted_line(p)] for i, p in enumerate(grey.probabilities[:5])]
    assert [line.split() for line in out] == wanted


def test_a_packed_csv_beside_an_image(grey, call, tmp_path):
    path = write_csv(tmp_path / "some.CSV.gz", grey.data.images[:2], opened=gzip.open)
    code, out, _ = call(grey.path, save(tmp_path / "a.png", grey.data.images[7]), path)
    assert code == 0
    assert [line.split()[1:] for line in out] == [wanted_line(grey.probabilities[i]) for i in (7, 0, 1)]


def test_the_csv_of_all_probabilities(grey, call, tmp_path):
    files = [save(tmp_path / f"{i}, b.png", grey.data.images[i]) for i in range(3)]
    assert call(grey.path, *files, "--csv", tmp_path / "out.csv")[0] == 0
    with open(tmp_path / "out.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["picture", "class", *CLASSES]
    for row, path, p in zip(rows, files, grey.probabilities):
        assert row[:2] == [str(path), CLASSES[p.argmax()]]
        np.testing.assert_allclose([float(value) for value in row[2:]], p, rtol=1e-5)
    assert len(rows) == 3


def test_a_colour_image_for_a_grey_model(grey, call, tmp_path):
    rgb = np.repeat(grey.data.images[:2], 3, axis=3)
    rgb[0, :24] = (10, 200, 90)
    files = [save(tmp_path / f"{i}.png", image) for i, image in enumerate(rgb)]
    code, out, err = call(grey.path, *files)
    assert code == 0 and err == f"nnlite: made grey, as the model sees: {files[0]} and 1 more, stored in colour\n"
    luma = np.rint(rgb[:1] @ [0.299, 0.587, 0.114])[..., None].astype(np.uint8)   # ITU-R 601, as Pillow has it
    assert out[0].split()[1] == CLASSES[grey.run.experiment.probabilities(luma)[0].argmax()]
    assert out[1].split()[1:] == wanted_line(grey.probabilities[1])


def test_resize_on_request(grey, call, tmp_path):
    large = save(tmp_path / "large.png", np.repeat(np.repeat(grey.data.images[3], 2, axis=0), 2, axis=1))
    code, out, err = call(grey.path, large)
    assert code == 2 and out == []
    assert err == f"nnlite: {large}: expected an image of 48 x 48 (height x width), or --resize, got 96 x 96\n"
    code, out, _ = call(grey.path, large, "--resize")
    assert code == 0 and out[0].split()[1] == CLASSES[grey.probabilities[3].argmax()]


def test_saliency_pictures(grey, call, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    real = predict.plots_labels.one_saliency
    monkeypatch.setattr(predict.plots_labels, "one_saliency",
                        lambda image, heat, caption: drawn.append((image, heat, caption)) or real(image, heat, caption))
    monkeypatch.setattr(predict, "MOST_MAPS", 2)
    files = [save(tmp_path / "a b.png", grey.data.images[5]), write_csv(tmp_path / "c.csv", grey.data.images[:2])]
    code, out, err = call(grey.path, *files, "--saliency", tmp_path / "deep" / "maps")
    assert code == 0 and len(out) == 3 and "saliency maps of the first 2 of 3 pictures" in err
    made = sorted(path.name for path in (tmp_path / "deep" / "maps").iterdir())
    assert made == ["001-a-b.png", "002-c.csv-2.png"]
    assert (tmp_path / "deep" / "maps" / made[0]).read_bytes().startswith(b"\x89PNG")
    (first, heat, caption), (second, _, _) = drawn
    np.testing.assert_array_equal(first, grey.data.images[5, :, :, 0])
    np.testing.assert_array_equal(second, grey.data.images[0, :, :, 0])
    best = grey.probabilities[5].argmax()
    assert caption == f"a b.png: {CLASSES[best]} {100 * grey.probabilities[5].max():.0f} %"
    x = grey.run.experiment.normalise(grey.data.images[5:6])
    np.testing.assert_allclose(heat, saliency(grey.run.model, x, [best])[0], rtol=1e-5)


def test_the_training_images_are_not_needed(grey, call, tmp_path):
    """What was learnt of their mean and deviation stands in config.json."""
    run = shutil.copytree(grey.path, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone.csv")}))
    picture = save(tmp_path / "one.png", grey.data.images[3])
    assert call(run, picture)[:2] == call(grey.path, picture)[:2]


def test_what_is_refused(grey, colour, call, tmp_path):
    good = save(tmp_path / "good.png", grey.data.images[0])
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture")
    cut.write_bytes(good.read_bytes()[:300])
    bad = write_csv(tmp_path / "bad.csv", grey.data.images[:2])
    bad.write_text(bad.read_text().replace(" ", " 300 ", 1))
    no_column = tmp_path / "columns.csv"
    no_column.write_text("emotion,picture\n0,1 2 3\n")
    empty = write_csv(tmp_path / "empty.csv", [])
    csv_48 = write_csv(tmp_path / "48.csv", grey.data.images[:1])
    cases = [
        ((grey.path, tmp_path / "none.png"), f"{tmp_path}/none.png: expected an image or CSV file, got none"),
        ((grey.path, tmp_path), f"{tmp_path}: expected an image or CSV file, got a folder"),
        ((grey.path, text), f"{text}: expected an image, got none that Pillow can read"),
        ((grey.path, cut), f"{cut}: expected a whole image, got one that is truncated or damaged"),
        ((grey.path, bad), f"{bad}, line 2: expected"),
        ((grey.path, no_column), f"{no_column}, line 1: expected a column 'pixels'"),
        ((grey.path, empty), f"{empty}: expected at least one row below the header, got none"),
        ((colour.path, csv_48), f"{csv_48}: expected images (8, 8, 3) (height, width, channels), as the run was "
                                "trained on, got (48, 48, 1)"),
        ((tmp_path / "no run", good), f"{tmp_path}/no run: expected a run folder"),
        ((grey.path, good, "--csv", tmp_path / "no" / "out.csv"), "--csv: expected a file in a folder that exists"),
        ((grey.path, good, "--csv", ""), "--csv: expected a name, got nothing"),
        ((grey.path, good, "--saliency", ""), "--saliency: expected a name, got nothing"),
        ((grey.path, good, "--saliency", good), f"{good}: expected a folder that can be made"),
    ]
    before = sorted(tmp_path.iterdir())
    for words, message in cases:
        code, _, err = call(*words)
        assert code == 2 and err.startswith(f"nnlite: {message}"), (words, err)
        assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_of_another_kind(tmp_path, call, grey):
    from small_runs import make_run, posed_file

    vae = make_run(posed_file(tmp_path / "faces.h5"), tmp_path / "vae", model="vae1")
    code, _, err = call(vae.path, save(tmp_path / "a.png", grey.data.images[0]))
    assert code == 2 and err == f"nnlite: {vae.path}: expected a run of a classifier, got one of vae1\n"


def test_a_bad_picture_last_leaves_nothing_behind(grey, call, tmp_path):
    good = save(tmp_path / "good.png", grey.data.images[0])
    code, out, _ = call(grey.path, good, tmp_path / "none.png", "--csv", tmp_path / "out.csv")
    assert code == 2 and out == [] and not (tmp_path / "out.csv").exists()
