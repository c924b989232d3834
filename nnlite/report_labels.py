"""The evaluation of a trained classifier: measures of every part, tables, confusion matrix, curves, saliency maps.

Everything lands in the run's folder `report/`: metrics.json and PNG files (these need matplotlib, of the extra
`report`; tables and metrics.json do not).
"""

import importlib.util
import json
from pathlib import Path

import numpy as np

from nnlite import metrics, plots, plots_labels
from nnlite.data.images import in_classes
from nnlite.errors import expected
from nnlite.report import aligned, read_records, three_digits, without_nan, write
from nnlite.saliency import saliency

TRAIN_ROWS = 5000   # images of the training part measured; of more, every k-th
FALL = 0.05         # of a class's F1 against the test part, above which the production check flags it
TITLES = {"precision": "precision", "recall": "recall", "f1": "F1"}
EXAMPLES = 2        # images of a class in the saliency picture that are called right, and as many called wrong
ALIKE = 0.8         # correlation of two images from which on only one of them is shown
MOST_CLASSES = 12   # rows of the saliency picture, classes of the confusion matrix printed
MEASURES = "precision", "recall", "f1"


def evaluate(run, *, progress=print, data=None):
    """Evaluates an opened run of a classifier: writes report/, reports the tables, gives the metrics.

    progress is called with lines of text. data: another ImageSet with the same classes (the production check): all its
    images are measured too, and each class is set against the run's own test part. Flagged are the classes whose F1
    fell by more than FALL, and in any case the one that fell most.

    The result, all of it fit for JSON, undefined values None: {"model", "preset", "data", "iterations", "best":
    {"iteration", "epoch", "watch", "value"} (what was watched, its best value and when) or None, "classes", "parts":
    {part: scores}, with data "production": {"source", scores, "changes": [{"class", measure: {"test",
    "production", "change"}}], "flagged": [classes, the largest fall first]}}. Scores are those of `scores`; of the
    training part (at most TRAIN_ROWS images, evenly spaced) only {"images", "measured", "accuracy", "cross_entropy"}.
    The same run gives the same bytes. Raises NnliteError where data do not fit the run.
    """
    experiment = run.experiment
    own, classes = experiment.data, tuple(experiment.classes)
    if data is not None:
        labels = check_same_kind(data, own, classes)
    result = {key: run.config.get(key) for key in ("model", "preset", "data", "iterations")}
    records = read_records(Path(run.path) / "metrics.jsonl")
    result.update(best=best(records, experiment), classes=list(classes), parts={})
    probabilities = {}
    for part, rows in own.split.items():
        if part == "train":
            some = rows[::-(-len(rows) // TRAIN_ROWS)] if len(rows) else rows
            measured = scores(own.labels[some], experiment.probabilities(own.images[some]), classes)
            result["parts"][part] = {"images": len(rows), "measured": len(some), "accuracy": measured["accuracy"],
                                     "cross_entropy": measured["cross_entropy"]}
        else:
            probabilities[part] = experiment.probabilities(own.images[rows])
            result["parts"][part] = scores(own.labels[rows], probabilities[part], classes)
    if data is not None:
        found = scores(labels, experiment.probabilities(data.images), classes)
        result["production"] = {"source": data.source, **found,
                                **changes(result["parts"]["test"], found)}
    result = without_nan(result)
    folder = Path(run.path) / "report"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("production*.png"):   # of other images than this time
        old.unlink()
    write(folder / "metrics.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    progress(format_tables(result))
    lacking = missing_extra()
    if lacking is None:
        progress("drawing the pictures")
        for name, figure in pictures(run, result, probabilities["test"]):
            write(folder / name, plots.png(figure))
    else:
        progress(f"no pictures: {lacking}")
    progress(f"report: {folder}")
    return result


def scores(truth, probabilities, classes):
    """The measures of n images, true classes (n,), probabilities (n, C): a dict.

    {"images": n, "accuracy", "cross_entropy" (nats), "collapsed_to": the one class that all images are given, or None,
    "per_class": [{"class", "images", "predicted", "precision", "recall", "f1"}], "macro" and "weighted": {"precision",
    "recall", "f1"}, "left_out": {measure: [classes]}, "confusion": C rows of counts, "confusion_normalised": the same
    divided by the images of each class}. An average, even or weighted by images, is over the classes in which the
    measure is defined; left_out names the others.
    """
    predicted = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(truth, predicted, len(classes))
    values = dict(zip(MEASURES, metrics.per_class(confusion)))
    images = confusion.sum(axis=1)
    per_class = [{"class": name, "images": int(images[i]), "predicted": int(confusion[:, i].sum()),
                  **{measure: float(values[measure][i]) for measure in MEASURES}} for i, name in enumerate(classes)]
    one = len(np.unique(predicted)) == 1 and len(np.unique(truth)) > 1
    return {
        "images": len(truth), "accuracy": metrics.accuracy(truth, predicted),
        "cross_entropy": metrics.cross_entropy(truth, probabilities),
        "collapsed_to": classes[predicted[0]] if one else None,
        "per_class": per_class,
        "macro": {measure: metrics.mean_of_defined(values[measure]) for measure in MEASURES},
        "weighted": {measure: metrics.mean_of_defined(values[measure], images) for measure in MEASURES},
        "left_out": {measure: [name for name, value in zip(classes, values[measure]) if np.isnan(value)]
                     for measure in MEASURES},
        "confusion": confusion.tolist(), "confusion_normalised": metrics.rows_to_shares(confusion).tolist(),
    }


def check_same_kind(data, own, classes):
    """The labels of data as numbers of the run's classes; raises NnliteError for other classes, in whatever order, and
    for other images."""
    labels = in_classes(data, classes).labels
    for name in classes:
        if name not in data.classes:
            raise expected(data.source, "images of the classes " + ", ".join(classes), f"no class '{name}'")
    if data.images.shape[1:] != own.images.shape[1:]:
        raise expected(data.source, f"images {own.images.shape[1:]} (height, width, channels)", data.images.shape[1:])
    if not len(data.images):
        raise expected(data.source, "at least one image", "none")
    return labels


def changes(test, other):
    """{"changes", "flagged"} of two results of `scores`, as `evaluate` describes them."""
    rows = []
    for before, after in zip(test["per_class"], other["per_class"]):
        rows.append({"class": before["class"], **{measure: {
            "test": before[measure], "production": after[measure], "change": after[measure] - before[measure]}
            for measure in MEASURES}})
    fallen = sorted((row for row in rows if row["f1"]["change"] < 0), key=lambda row: row["f1"]["change"])   # no nan
    return {"changes": rows, "flagged": [row["class"] for place, row in enumerate(fallen)
                                         if place == 0 or row["f1"]["change"] < -FALL]}


# Tables


def format_tables(result):
    """The tables of an evaluation as plain text: the parts, then the classes of each, and what must be said."""
    classes, parts = result["classes"], result["parts"]
    blocks = [_part_table(parts)]
    blocks += [_class_table(f"the {part} part", found) for part, found in parts.items() if "per_class" in found]
    if len(classes) <= MOST_CLASSES:
        blocks.append(_confusion_table(parts["test"], classes))
    if "production" in result:
        blocks.append(_class_table(f"the production images ({result['production']['source']})", result["production"]))
        blocks.append(_change_table(parts["test"], result["production"]))
    collapsed = parts["test"]["collapsed_to"]
    if collapsed is not None:
        blocks.append(f"every one of the {parts['test']['images']} test images is called '{collapsed}': "
                      "the model has collapsed to one class")
    return "\n\n".join(blocks)


def _part_table(parts):
    rows = [["part", "images", "accuracy", "cross entropy", "macro F1", "weighted F1"]]
    note = ""
    for part, found in parts.items():
        averages = [three_digits(found[kind]["f1"]) if kind in found else "" for kind in ("macro", "weighted")]
        rows.append([part, str(found["images"]), three_digits(found["accuracy"]),
                     three_digits(found["cross_entropy"]), *averages])
        if found.get("measured", found["images"]) < found["images"]:
            note = f"\n({part}: measured on {found['measured']} of its images, evenly spaced)"
    return aligned(rows) + note


def _class_table(part, found):
    rows = [["", "images", "predicted", "recall", "precision", "F1"]]
    order = ("recall", "precision", "f1")
    rows += [[row["class"], str(row["images"]), str(row["predicted"]), *(three_digits(row[key]) for key in order)]
             for row in found["per_class"]]
    rows += [[title, "", "", *(three_digits(found[kind][key]) for key in order)]
             for title, kind in (("macro average", "macro"), ("weighted average", "weighted"))]
    return f"Each class on {part}\n{aligned(rows)}{_undefined(found['left_out'], len(found['per_class']))}"


def _undefined(left_out, classes):
    """A line for each measure that some class lacks: why, and over how many classes its averages are."""
    why = {"precision": "never predicted", "recall": "without images", "f1": "without images, never predicted"}
    return "".join(f"\n-: {TITLES[measure]} is undefined for {', '.join(left_out[measure])} ({why[measure]}); its "
                   f"averages are over the other {classes - len(left_out[measure])} of {classes} classes"
                   for measure in ("recall", "precision", "f1") if left_out[measure])


def _confusion_table(found, classes):
    rows = [["", *classes]]
    rows += [[name, *map(str, counts)] for name, counts in zip(classes, found["confusion"])]
    return "Confusion on the test part: rows are true, columns predicted classes\n" + aligned(rows)


def _change_table(test, found):
    rows = [["", *("test", "production", "change") * len(MEASURES), ""]]
    for row in found["changes"]:
        rows.append([row["class"], *(text for measure in MEASURES for text in _change(row[measure])),
                     "fell" if row["class"] in found["flagged"] else ""])
    for title in ("macro", "weighted"):
        pairs = ((test[title][measure], found[title][measure]) for measure in MEASURES)
        rows.append([f"{title} average", *(text for pair in pairs for text in _change(_compared(*pair))), ""])
    spans = [(TITLES[measure], 1 + 3 * place, 4 + 3 * place) for place, measure in enumerate(MEASURES)]
    accuracy = _change(_compared(test["accuracy"], found["accuracy"]))
    return (f"Each class, production against test\n{aligned(rows, spans)}\n"
            "accuracy: test {}, production {}, change {}\n".format(*accuracy) + _verdict(found))


def _verdict(found):
    falls = {row["class"]: row["f1"]["change"] for row in found["changes"]}
    if not found["flagged"]:
        return "F1 fell for no class"
    fell = [f"{name} ({falls[name]:+.3f})" for name in found["flagged"]]
    first = f"F1 fell most: {fell[0]}"
    if falls[found["flagged"][0]] >= -FALL:
        return f"{first}; for no class by more than {FALL:g}"
    return first + (f"; also by more than {FALL:g}: {', '.join(fell[1:])}" if fell[1:] else
                    f"; for no other class by more than {FALL:g}")


def _compared(test, production):
    change = None if test is None or production is None else production - test
    return {"test": test, "production": production, "change": change}


def _change(values):
    """The texts of {"test", "production", "change"}."""
    change = values["change"]
    return [*(three_digits(values[key]) for key in ("test", "production")), "-" if change is None else f"{change:+.3f}"]


# Pictures


def pictures(run, result, probabilities):
    """Yields (file name, Figure) of every picture; result as `evaluate` makes it, probabilities of the test part."""
    classes, test = result["classes"], result["parts"]["test"]
    yield from _confusions("confusion", test, classes, "Test part")
    if "production" in result:
        yield from _confusions("production", result["production"], classes, "Production")
        yield "production_change.png", plots_labels.changes(result["production"]["changes"],
                                                            result["production"]["flagged"])
    records = read_records(Path(run.path) / "metrics.jsonl")
    if records:
        yield "learning.png", plots_labels.learning(curves(records, run.experiment.criterion),
                                                    run.experiment.criterion_label)
    data = run.experiment.data
    rows = data.split["test"]
    chosen = choose_examples(data.images[rows], data.labels[rows], probabilities, len(classes))
    if chosen:
        yield "saliency.png", _saliency(run.experiment, rows, probabilities, chosen)


def _confusions(name, found, classes, what):
    title, images = f"{what}: {found['images']} images", [row["images"] for row in found["per_class"]]
    accuracy = f"accuracy {100 * found['accuracy']:.1f} %"
    yield f"{name}.png", plots_labels.confusion(found["confusion"], classes, images, f"{title}, {accuracy}")
    shares = np.array(found["confusion_normalised"], dtype=np.float64)   # None -> nan
    yield f"{name}_normalised.png", plots_labels.confusion(
        shares, classes, images, f"{title}, {accuracy}; % of each true class", shares=True)


def best(records, experiment):
    """{"iteration", "epoch", "watch", "value"} of the validation that the run keeps the parameters of, from the objects
    of its metrics.jsonl; None where there is none."""
    place = _place_of_best(records, experiment.criterion)
    if place is None:
        return None
    return {"iteration": records[place]["iteration"], "epoch": records[place].get("epoch"),
            "watch": experiment.criterion_label,
            "value": experiment.criterion_sign * records[place][experiment.criterion]}


def _place_of_best(records, criterion):
    judged = np.array([_finite(record.get(criterion)) for record in records])
    return int(np.nanargmax(judged)) if np.isfinite(judged).any() else None   # the first of several


def curves(records, criterion):
    """What plots_labels.learning takes, from the objects of a run's metrics.jsonl; the best has the largest value of
    the criterion."""
    keys = "loss", "validation_loss", "training_accuracy", "validation_accuracy", "learning_rate"
    found = {key: np.array([_finite(record.get(key)) for record in records]) for key in keys}
    found["epoch"] = np.array([float(record.get("epoch", record["iteration"])) for record in records])
    found["best"] = _place_of_best(records, criterion)
    return found


def _finite(value):
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else np.nan


def choose_examples(images, labels, probabilities, classes):
    """{class: (right, wrong)}: places of the images of a class that the model is surest about and gets right, wrong.

    At most EXAMPLES places each, none that looks like another of them; of more than MOST_CLASSES classes the most
    frequent. Classes without images are left out.
    """
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    counts = np.bincount(labels, minlength=classes)
    shown = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    return {int(label): tuple(_surest(images, np.flatnonzero((labels == label) & ((predicted == label) == right)), sure)
                              for right in (True, False)) for label in shown if counts[label]}


def _surest(images, places, sure):
    chosen, seen = [], []
    for place in places[np.argsort(-sure[places], kind="stable")]:
        image = images[place].astype(np.float64).reshape(-1)
        image -= image.mean()
        image /= max(np.linalg.norm(image), 1e-12)
        if all(image @ other < ALIKE for other in seen):
            chosen.append(int(place))
            seen.append(image)
        if len(chosen) == EXAMPLES:
            break
    return chosen


def _saliency(experiment, rows, probabilities, chosen):
    places = [place for groups in chosen.values() for group in groups for place in group]
    images, labels = experiment.data.images[rows[places]], experiment.data.labels[rows[places]]
    predicted, classes = probabilities[places].argmax(axis=1), experiment.classes
    maps = saliency(experiment.model, experiment.normalise(images), predicted)
    examples = {place: (picture(image), heat, classes[label], probabilities[place, label], label == true)
                for place, image, heat, label, true in zip(places, images, maps, predicted, labels)}
    table = [(classes[label], [[examples[place] for place in group] for group in groups])
             for label, groups in chosen.items()]
    return plots_labels.saliency(
        table, title="Surest test images of each class, and how much each pixel moves the score of the class predicted",
        groups=[("called right", EXAMPLES), ("called wrong", EXAMPLES)])


def picture(image):
    """An image (H, W, C) as matplotlib takes it: (H, W) for one channel."""
    return image[:, :, 0] if image.shape[2] == 1 else image


def missing_extra():
    """What the pictures lack, in a sentence; None where matplotlib is there."""
    if importlib.util.find_spec("matplotlib") is None:
        return 'the report: expected matplotlib, got none: pip install -e ".[report]" brings it'
    return None
