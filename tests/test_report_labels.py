"""The evaluation of classifiers on made-up images: scikit-learn, closed forms and what a reader must be told."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnlite import metrics, plots_labels, report_labels
from nnlite.data.images import ImageSet
from nnlite.errors import NnliteError
from nnlite.layers import Conv2d, Flatten, Linear, NormPool, Sequential
from nnlite.ops import get_ops

CLASSES = ("angry", "fear", "happy", "neutral")
PARTS = {"train": 60, "validation": 30, "test": 50, "private": 20}


def image_set(classes=CLASSES, parts=PARTS, seed=0, channels=1, **changes):
    rng = np.random.default_rng(seed)
    n = sum(parts.values())
    ends = np.cumsum([0, *parts.values()])
    split = {part: np.arange(a, b, dtype=np.int32) for part, a, b in zip(parts, ends, ends[1:])}
    values = dict(images=rng.integers(0, 256, (n, 8, 8, channels), dtype=np.uint8),
                  labels=rng.integers(0, len(classes), n).astype(np.int32), classes=classes, split=split,
                  source="made up")
    return ImageSet(**{**values, **changes})


class Experiment:
    """A classifier that looks its probabilities up by the first pixels, and a model for the saliency maps."""

    criterion, criterion_label, criterion_sign = "validation_accuracy", "accuracy", 1

    def __init__(self, data, probabilities):
        self.data, self.classes = data, data.classes
        self.known = {image.tobytes(): p for image, p in zip(data.images, probabilities)}
        C = data.images.shape[3]
        self.model = Sequential(Conv2d(C, 4, 3, padding=1), NormPool(4), Flatten(), Linear(64, len(data.classes)))
        self.model.build(get_ops("reference"))
        self.asked = []

    def normalise(self, images):
        return ((images - 127.5) / 64).astype(np.float32)

    def probabilities(self, images):
        self.asked.append(len(images))
        uniform = np.full(len(self.classes), 1 / len(self.classes))
        return np.array([self.known.get(image.tobytes(), uniform) for image in images], dtype=np.float32)


def some_probabilities(data, strength=1.5, seed=1):
    """Better than chance."""
    z = np.random.default_rng(seed).normal(size=(len(data.labels), len(data.classes)))
    z[np.arange(len(z)), data.labels] += strength
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def make_run(folder, data, probabilities, records=()):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return SimpleNamespace(path=folder, experiment=Experiment(data, probabilities),
                           config={"model": "cnn4", "preset": "cnn4-bn", "data": "made up", "iterations": 40})


def records(epochs=12):
    return [{"iteration": 10 * (i + 1), "epoch": i + 1.0, "loss": 2 / (i + 1), "training_accuracy": 1 - 0.8 / (i + 1),
             "learning_rate": 0.001 if i < 6 else 0.0001, "validation_loss": 1.2 / (i + 1) + 0.02 * i,
             "validation_accuracy": 0.6 - 0.01 * abs(i - 7)} for i in range(epochs)]


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing them is most of the time."""
    monkeypatch.setattr(report_labels, "missing_extra", lambda: "asked not to")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    data = image_set()
    probabilities = some_probabilities(data)
    run = make_run(tmp_path_factory.mktemp("runs") / "run", data, probabilities, records())
    said = []
    return SimpleNamespace(run=run, data=data, probabilities=probabilities, said=said,
                           result=report_labels.evaluate(run, progress=said.append))


def test_scores_agree_with_scikit_learn(evaluated):
    sk = pytest.importorskip("sklearn.metrics")
    assert list(evaluated.result["parts"]) == ["train", "validation", "test", "private"]
    for part in ("validation", "test", "private"):
        rows, found = evaluated.data.split[part], evaluated.result["parts"][part]
        truth, p = evaluated.data.labels[rows], evaluated.probabilities[rows]
        predicted = p.argmax(axis=1)
        assert found["images"] == len(rows)
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
        assert found["cross_entropy"] == pytest.approx(sk.log_loss(truth, p, labels=range(4)), rel=1e-5)
        assert found["confusion"] == sk.confusion_matrix(truth, predicted, labels=range(4)).tolist()
        np.testing.assert_allclose(found["confusion_normalised"],
                                   sk.confusion_matrix(truth, predicted, labels=range(4), normalize="true"))
        columns = sk.precision_recall_fscore_support(truth, predicted, labels=range(4))
        for measure, column in zip(("precision", "recall", "f1", "images"), columns):
            np.testing.assert_allclose([row[measure] for row in found["per_class"]], column)
        for average in ("macro", "weighted"):
            wanted = sk.precision_recall_fscore_support(truth, predicted, labels=range(4), average=average)[:3]
            np.testing.assert_allclose(list(found[average].values()), wanted)
        assert found["left_out"] == {"precision": [], "recall": [], "f1": []} and found["collapsed_to"] is None


def test_undefined_values_are_left_out_of_averages():
    """Class 2 is never predicted, class 3 neither there nor predicted; averages as scikit-learn's with nan left out."""
    sk = pytest.importorskip("sklearn.metrics")
    truth = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0, 1, 1, 1])
    found = report_labels.scores(truth, np.eye(4)[predicted], CLASSES)
    assert found["left_out"] == {"precision": ["happy", "neutral"], "recall": ["neutral"], "f1": ["neutral"]}
    for average in ("macro", "weighted"):
        wanted = sk.precision_recall_fscore_support(truth, predicted, labels=range(4), average=average,
                                                    zero_division=np.nan)[:3]
        np.testing.assert_allclose(list(found[average].values()), wanted)
    assert found["macro"]["precision"] == pytest.approx((2 / 4 + 1 / 5) / 2)
    assert found["weighted"]["precision"] == pytest.approx((3 * 2 / 4 + 2 * 1 / 5) / 5)
    assert np.isnan(found["confusion_normalised"][3]).all()
    assert found["cross_entropy"] == pytest.approx(-6 / 9 * np.log(np.finfo(float).tiny))   # sure, and wrong


def test_cross_entropy_closed_forms():
    assert metrics.cross_entropy([0, 1], [[0.5, 0.5], [0.75, 0.25]]) == pytest.approx((np.log(2) + np.log(4)) / 2)
    sure = np.array([[0, 1]], dtype=np.float32)
    assert metrics.cross_entropy([0], sure) == pytest.approx(-np.log(np.finfo(np.float32).tiny))
    assert np.isnan(metrics.cross_entropy([], np.zeros((0, 2))))


def test_the_files(evaluated):
    folder = evaluated.run.path / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png", "confusion_normalised.png", "learning.png", "metrics.json", "saliency.png"]
    written = json.loads((folder / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written == evaluated.result
    assert written["classes"] == list(CLASSES) and written["model"] == "cnn4" and written["iterations"] == 40
    assert written["best"] == {"iteration": 80, "epoch": 8, "watch": "accuracy", "value": 0.6}
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert evaluated.said[-1] == f"report: {folder}"


def test_undefined_values_are_null_in_the_file(tmp_path, no_pictures):
    data = image_set()
    truth = data.labels.copy()
    truth[data.split["test"]] %= 3   # nobody is neutral there
    p = np.eye(4)[np.where(truth == 2, 0, truth)] * 0.97 + 0.01
    data = image_set(labels=truth)
    run, said = make_run(tmp_path / "run", data, p), []
    found = report_labels.evaluate(run, progress=said.append)["parts"]["test"]
    assert found["per_class"][2]["precision"] is None and found["per_class"][3]["f1"] is None
    assert found["confusion_normalised"][3] == [None] * 4
    table = said[0].partition("Each class on the test part")[2]
    row = next(line for line in table.splitlines() if line.startswith("neutral"))
    assert row.split() == ["neutral", "0", "0", "-", "-", "-"]
    assert "precision is undefined for happy, neutral (never predicted)" in table
    assert "recall is undefined for neutral (without images)" in table
    assert "averages are over the other 2 of 4 classes" in table


def test_of_the_training_part_a_few_evenly_spaced_images(tmp_path, no_pictures, monkeypatch):
    monkeypatch.setattr(report_labels, "TRAIN_ROWS", 25)
    data = image_set()
    p = some_probabilities(data)
    run = make_run(tmp_path / "run", data, p)
    found = report_labels.evaluate(run, progress=lambda line: None)["parts"]["train"]
    rows = data.split["train"][::3]
    assert run.experiment.asked[0] == 20 and found["images"] == 60 and found["measured"] == 20
    assert found["accuracy"] == np.mean(p[rows].argmax(axis=1) == data.labels[rows])
    assert set(found) == {"images", "measured", "accuracy", "cross_entropy"}


def test_a_collapse_is_said(tmp_path, no_pictures):
    data, said = image_set(), []
    p = np.full((len(data.labels), 4), 0.2)
    p[:, 2] = 0.4
    result = report_labels.evaluate(make_run(tmp_path / "run", data, p), progress=said.append)
    assert "every one of the 50 test images is called 'happy': the model has collapsed to one class" in said[0]
    assert result["parts"]["test"]["collapsed_to"] == "happy"


def test_no_collapse_is_said_of_a_model_that_is_right(evaluated):
    assert "collapsed" not in evaluated.said[0]
    one = report_labels.scores(np.ones(5, int), np.eye(4)[[1] * 5], CLASSES)   # all are of one class, and called so
    assert one["collapsed_to"] is None


def test_the_tables(evaluated):
    text, found = evaluated.said[0], evaluated.result["parts"]["test"]
    block = text.partition("Each class on the test part\n")[2].splitlines()
    assert block[0].split() == ["images", "predicted", "recall", "precision", "F1"]
    row = found["per_class"][1]
    assert block[2].split() == ["fear", str(row["images"]), str(row["predicted"]), f"{row['recall']:.3f}",
                                f"{row['precision']:.3f}", f"{row['f1']:.3f}"]
    assert block[5].split()[:2] == ["macro", "average"] and block[5].split()[-1] == f"{found['macro']['f1']:.3f}"
    confusion = text.partition("predicted classes\n")[2].splitlines()
    assert confusion[0].split() == list(CLASSES)
    assert confusion[3].split() == ["happy", *map(str, found["confusion"][2])]
    assert "Each class on the private part" in text


# The production check


def other_set(run, order, called, seed=5):
    """40 images whose classes come in another order; the model calls one of class c what called(c) says."""
    other = image_set(order, {"train": 40}, seed=seed, source="another set")
    number = np.array([CLASSES.index(name) for name in order])[other.labels]
    said = np.array([called(c) for c in number])
    for image, p in zip(other.images, np.eye(4)[said]):
        run.experiment.known[image.tobytes()] = p
    return other, number, said


def test_the_production_check(tmp_path):
    """The other set has its classes in another order; all of 'fear' is called happy there."""
    sk = pytest.importorskip("sklearn.metrics")
    data = image_set()
    run = make_run(tmp_path / "run", data, some_probabilities(data, 9.0))
    other, number, called = other_set(run, ("happy", "neutral", "fear", "angry"), lambda c: 2 if c == 1 else c)
    said = []
    result = report_labels.evaluate(run, progress=said.append, data=other)
    found = result["production"]
    assert found["source"] == "another set" and found["images"] == 40
    assert found["accuracy"] == np.mean(number != 1)
    rows = data.split["test"]
    truth, own = data.labels[rows], some_probabilities(data, 9.0)[rows].argmax(axis=1)
    before = dict(zip(("precision", "recall", "f1"), sk.precision_recall_fscore_support(truth, own, labels=range(4))))
    after = dict(zip(("precision", "recall", "f1"),
                     sk.precision_recall_fscore_support(number, called, labels=range(4), zero_division=np.nan)))
    assert [row["class"] for row in found["changes"]] == list(CLASSES)
    for place, row in enumerate(found["changes"]):
        for measure in ("precision", "recall", "f1"):
            old, new = before[measure][place], after[measure][place]
            if np.isnan(new):   # precision of fear, which is never predicted
                assert (row["class"], measure) == ("fear", "precision")
                assert row[measure] == {"test": pytest.approx(old), "production": None, "change": None}
            else:
                assert row[measure] == pytest.approx({"test": old, "production": new, "change": new - old})
    assert found["flagged"] == ["fear", "happy"]
    assert json.loads((run.path / "report" / "metrics.json").read_text())["production"] == found
    table = said[0].partition("Each class, production against test\n")[2].splitlines()
    assert [word for word in table[0].split() if word.strip("-")] == ["precision", "recall", "F1"]
    cells = next(line for line in table if line.startswith("fear")).split()
    assert cells[2:4] == ["-", "-"] and cells[5] == "0.000"
    assert cells[8:] == ["0.000", f"{-before['f1'][1]:+.3f}", "fell"]
    assert next(line for line in table if line.startswith("angry")).split()[-1] != "fell"
    happy = after["f1"][2] - before["f1"][2]
    assert f"F1 fell most: fear ({-before['f1'][1]:+.3f}); also by more than 0.05: happy ({happy:+.3f})" in said[0]
    names = {path.name for path in (run.path / "report").iterdir()}
    assert {"production.png", "production_normalised.png", "production_change.png"} <= names


def scored(*f1):
    return {"per_class": [{"class": name, "precision": 0.5, "recall": 0.5, "f1": value}
                          for name, value in zip(CLASSES, f1)]}


@pytest.mark.parametrize("after, flagged, words", [
    ((0.5, 0.5, 0.5, 0.5), [], "F1 fell for no class"),
    ((0.6, 0.5, 0.48, 0.49), ["happy"], "F1 fell most: happy (-0.020); for no class by more than 0.05"),
    ((0.6, 0.5, 0.40, 0.49), ["happy"], "F1 fell most: happy (-0.100); for no other class by more than 0.05"),
    ((0.4, 0.3, 0.44, 0.46), ["fear", "angry", "happy"],
     "F1 fell most: fear (-0.200); also by more than 0.05: angry (-0.100), happy (-0.060)"),
    ((np.nan, 0.5, 0.44, np.nan), ["happy"], "F1 fell most: happy (-0.060); for no other class by more than 0.05"),
])
def test_which_classes_are_flagged(after, flagged, words):
    found = report_labels.changes(scored(0.5, 0.5, 0.5, 0.5), scored(*after))
    assert found["flagged"] == flagged and report_labels._verdict(found) == words


def test_the_same_images_change_nothing(tmp_path, no_pictures):
    data, said = image_set(parts={"train": 20, "validation": 10, "test": 40}), []
    run = make_run(tmp_path / "run", data, some_probabilities(data))
    rows = data.split["test"]
    same = image_set(parts={"train": 40}, images=data.images[rows], labels=data.labels[rows])
    result = report_labels.evaluate(run, progress=said.append, data=same)
    assert all(row[measure]["change"] == 0 for row in result["production"]["changes"]
               for measure in ("precision", "recall", "f1"))
    assert "F1 fell for no class" in said[0] and result["production"]["flagged"] == []


@pytest.mark.parametrize("other, message", [
    (lambda: image_set(("angry", "bored"), source="b.h5"),
     "b.h5: expected images of the classes angry, fear, happy, neutral, got 'bored'"),
    (lambda: image_set(("angry", "fear", "neutral"), source="d.h5"),
     "d.h5: expected images of the classes angry, fear, happy, neutral, got no class 'happy'"),
    (lambda: image_set(channels=3, source="c.h5"), r"c.h5: expected images \(8, 8, 1\) .*, got \(8, 8, 3\)"),
])
def test_another_set_that_does_not_fit(tmp_path, other, message):
    run = make_run(tmp_path / "run", image_set(), some_probabilities(image_set()))
    with pytest.raises(NnliteError, match=message):
        report_labels.evaluate(run, progress=lambda line: None, data=other())
    assert not (run.path / "report").exists()


def test_the_bars_of_the_production_check():
    pytest.importorskip("matplotlib")
    found = report_labels.changes(scored(0.5, 0.9, 0.5, 0.5), scored(0.6, 0.3, 0.45, 0.5))
    found["changes"][3]["f1"] = {"test": 0.5, "production": None, "change": None}
    figure = plots_labels.changes(found["changes"], found["flagged"])
    f1 = figure.axes[0]
    assert [bar.get_width() for bar in f1.patches] == pytest.approx([0.5, 0.9, 0.5, 0.5, 0.6, 0.3, 0.45, 0])
    assert [text.get_text() for text in f1.texts] == ["+0.100", "-0.600", "-0.050", "undefined"]
    assert [label.get_text() for label in f1.get_yticklabels() if label.get_fontweight() == "bold"] == found["flagged"]


# Pictures


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("size", [7, 10])
def test_the_cells_of_a_confusion_matrix(size):
    pytest.importorskip("matplotlib")
    matrix = np.arange(size * size).reshape(size, size)
    classes = [f"class {i}" for i in range(size)]
    figure = plots_labels.confusion(matrix, classes, matrix.sum(axis=1), "title")
    assert texts(figure) == [str(value) for value in matrix.reshape(-1)]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == classes
    assert axes.get_yticklabels()[1].get_text() == f"class 1 ({matrix[1].sum()})"
    shares = metrics.rows_to_shares(np.array([[3, 1], [0, 0]]))
    figure = plots_labels.confusion(shares, "ab", [4, 0], "title", shares=True)
    assert texts(figure) == ["75.0", "25.0", "–", "–"]


@pytest.mark.parametrize("names", [["a", "b", "c"], [f"automobile {i}" for i in range(10)]])
def test_nothing_of_a_confusion_matrix_is_cut_off(names):
    """The outermost pixels are white, so that no label goes on behind them."""
    pytest.importorskip("matplotlib")
    C = len(names)
    figure = plots_labels.confusion(np.full((C, C), 1234), names, [1234 * C] * C, "a title")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in edges)


def test_curves_and_the_best_epoch(tmp_path):
    found = report_labels.curves(records(), "validation_accuracy")
    assert found["best"] == 7 and found["epoch"][7] == 8
    np.testing.assert_allclose(found["validation_loss"][:3], [1.2, 0.62, 0.44])
    figure = plots_labels.learning(found, "accuracy")
    assert figure.axes[1].get_title("right") == "final model: epoch 8, validation accuracy 60.0 %"
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in lines] == [8]
    falls = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in falls] == [6]   # the seventh epoch is the first with the lower rate


def test_the_best_epoch_is_that_of_what_is_watched():
    """The smallest loss, first of two, in an epoch of another accuracy than the best."""
    seen = [{**record, "validation_minus_loss": -record["validation_loss"]} for record in records()]
    seen[5]["validation_minus_loss"] = seen[8]["validation_minus_loss"] = -0.125
    found = report_labels.curves(seen, "validation_minus_loss")
    assert found["best"] == 5
    watching = SimpleNamespace(criterion="validation_minus_loss", criterion_label="loss", criterion_sign=-1)
    assert report_labels.best(seen, watching) == {"iteration": 60, "epoch": 6, "watch": "loss", "value": 0.125}
    assert report_labels.best(records(), watching) is report_labels.best([], watching) is None
    pytest.importorskip("matplotlib")
    figure = plots_labels.learning(found, "loss")
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"] == [6]
    assert figure.axes[1].get_title("right") == "final model: epoch 6, of the best loss, validation accuracy 58.0 %"


def test_curves_without_a_value():
    """An old or interrupted run: nothing but the loss, or a NaN."""
    found = report_labels.curves([{"iteration": 1, "loss": float("nan")}, {"iteration": 2, "loss": 1.0}],
                                 "validation_accuracy")
    assert found["best"] is None and np.isnan(found["loss"][0])
    plots_labels.learning(found, "accuracy")


def test_examples_are_the_surest_and_not_alike():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 6, 6, 1), dtype=np.uint8)
    images[1] = images[0] // 2   # the same face, darker
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    p = np.array([[.9, .1], [.8, .2], [.6, .4], [.7, .3], [.3, .7], [.4, .6], [.95, .05], [.45, .55]])
    assert report_labels.choose_examples(images, labels, p, 3) == {0: ([0, 3], [4]), 1: ([5, 7], [6])}


def test_the_saliency_picture_shows_what_was_asked_for(evaluated, monkeypatch):
    seen = {}
    monkeypatch.setattr(plots_labels, "saliency", lambda rows, **words: seen.update(rows=rows) or "figure")
    run, data = evaluated.run, evaluated.data
    p = evaluated.probabilities[data.split["test"]]
    assert dict(report_labels.pictures(run, evaluated.result, p))["saliency.png"] == "figure"
    assert [name for name, _ in seen["rows"]] == list(CLASSES)
    for label, (_, groups) in enumerate(seen["rows"]):
        for group, right in zip(groups, (True, False)):
            assert len(group) == 2
            for image, heat, predicted, probability, correct in group:
                place = next(i for i in data.split["test"] if np.array_equal(data.images[i, :, :, 0], image))
                assert data.labels[place] == label and correct == right == (predicted == CLASSES[label])
                assert predicted == CLASSES[evaluated.probabilities[place].argmax()]
                assert heat.shape == (8, 8) and probability == pytest.approx(evaluated.probabilities[place].max())


def test_without_matplotlib_tables_and_metrics_remain(tmp_path, monkeypatch):
    data, said = image_set(), []
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    run = make_run(tmp_path / "run", data, some_probabilities(data), records())
    report_labels.evaluate(run, progress=said.append)
    assert [path.name for path in (run.path / "report").iterdir()] == ["metrics.json"]
    assert any("expected matplotlib, got none" in line for line in said)


def test_colour_images_and_the_same_bytes_again(tmp_path):
    data = image_set(channels=3)
    run = make_run(tmp_path / "run", data, some_probabilities(data), records())

    def files():
        report_labels.evaluate(run, progress=lambda line: None)
        return {path.name: path.read_bytes() for path in Path(run.path / "report").iterdir()}

    assert files() == files()
