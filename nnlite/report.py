"""The evaluation of a trained face VAE: a linear SVM and triplets on every representation, tables and pictures.

What is compared: the raw D numbers of a face, linear PCA with 50, 40, 30 and 20 dimensions, and the latent mean mu of
the model. Everything lands in the run's folder `report/`: metrics.json and PNG files. Needs the extra `report`
(scikit-learn, matplotlib).
"""

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnlite import metrics, plots
from nnlite.errors import NnliteError
from nnlite.files import replacing

SPLITS = ("train", "validation", "test")
PCA_SIZES = (50, 40, 30, 20)
CHOICES_OF_C = (0.1, 1, 10, 100)
SVM_ROWS = 10_000    # at most so many training faces; of more, every k-th (frames of a video repeat themselves)
SVM_STEPS = 10_000   # Newton steps; most fits take 5 to 30, small sets that a plane separates up to 2000
PLOT_ROWS = 3000     # points of a scatter plot
COLUMNS = 8          # faces in the picture of reconstructions
GRID = (-5.0, -2.5, 0.0, 2.5, 5.0)
CHUNK = 8192         # faces encoded at once


@dataclass(frozen=True)
class Representation:
    """Every face as k numbers."""

    name: str
    z: np.ndarray         # (n, k), rows in the order of Faces.x
    explained: np.ndarray  # share of the training part's variance along its first principal components


def evaluate(run, *, progress=print):
    """Evaluates an opened run: writes report/metrics.json and the pictures, reports the tables, gives the metrics.

    progress is called with lines of text. The result, all of it fit for JSON: {"model", "preset", "data",
    "iterations", "kind", "faces": {split: n}, "svm": {...}, "representations": [{"name", "dimensions", "C",
    split: scores}], "classes": [...] (of the model, on the test part), "active": {...}}. Scores of posed faces are
    {"accuracy", "triplets"}, of spontaneous ones {"precision", "recall", "f1", "auc", "triplets"}; triplets are
    {"all": share, "5": share, …} or {}. Undefined values are None. The same run gives the same bytes. Raises
    NnliteError where the extra `report` is missing.
    """
    _require_extra()
    faces = run.faces
    mu, log_var = encode(run.model, faces)
    spaces = representations(faces, mu, run.config["model"])
    result = {key: run.config.get(key) for key in ("model", "preset", "data", "iterations")}
    result.update(kind=faces.landmarks.kind, faces={split: len(faces.split[split]) for split in SPLITS})
    every = -(-len(faces.split["train"]) // SVM_ROWS)
    result["svm"] = {
        "loss": "squared hinge, one against the rest", "choices_of_C": list(CHOICES_OF_C), "every": every,
        "training_faces": len(faces.split["train"][::every]), "not_converged": 0,
    }
    result["representations"] = []
    for space in spaces:
        progress(f"linear SVM on {space.name} ({space.z.shape[1]} dimensions)")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Liblinear failed to converge")  # counted instead
            row, details, failures = _judge(space, faces, run.triplets, every)
        result["representations"].append(row)
        result["svm"]["not_converged"] += failures
    result["classes"] = details  # of the last one, the model
    result["active"] = usage(run.model, mu[faces.split["train"]], log_var[faces.split["train"]])
    result = without_nan(result)
    folder = Path(run.path) / "report"
    folder.mkdir(exist_ok=True)
    write(folder / "metrics.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    progress(format_tables(result))
    progress("drawing the pictures")
    for name, figure in pictures(run, spaces, result["active"]):
        write(folder / name, plots.png(figure))
    progress(f"report: {folder}")
    return result


def encode(model, faces):
    """(mu, log_var), each (n, K) float32, of all faces."""
    parts = []
    for start in range(0, len(faces.x), CHUNK):
        rows = slice(start, start + CHUNK)
        parts.append(model.encode(faces.x[rows], faces.x[faces.neutral[rows]]))
    mu, log_var = (np.concatenate(part) for part in zip(*parts))
    return mu, log_var


def representations(faces, mu, model):
    """The list of Representation: raw, PCA-50, -40, -30, -20 (those below D), the model's latent mean."""
    train = faces.x[faces.split["train"]]
    most = min(len(train) - 1, train.shape[1])
    pca = metrics.fit_pca(train, most)
    scores = pca.transform(faces.x)
    spaces = [Representation("raw", faces.x, pca.explained)]
    spaces += [Representation(f"PCA-{k}", scores[:, :k], pca.explained) for k in PCA_SIZES if k < most]
    return spaces + [Representation(f"{model}, mu", mu, np.ones(0))]


def usage(model, mu, log_var):
    """Which dimensions the model uses: mean KL and weight norms in the first decoding layer, as a dict of lists."""
    kl = metrics.kl_per_dimension(mu, log_var)
    latent, neutral = metrics.weight_norms(model.first_decoder_weights(), model.latent_size)
    return {
        "count": int(metrics.active_dimensions(kl).sum()), "of": len(kl), "threshold": metrics.ACTIVE_KL,
        "kl": kl.tolist(), "weight_norm": latent.tolist(), "neutral_weight_norm": neutral.tolist(),
    }


# Linear SVM


def _judge(space, faces, triplets, every):
    """(row of the table, per class details on the test part, fits that did not converge) of one representation.

    C is the one with the best validation accuracy or F1, the smallest of equals; fits see every k-th training face.
    """
    fit, score = {"posed": (_fit_emotions, _score_emotions),
                  "spontaneous": (_fit_units, _score_units)}[faces.landmarks.kind]
    z = np.ascontiguousarray(space.z, dtype=np.float64)
    rows, failures, best = faces.split["train"][::every], 0, None
    for c in CHOICES_OF_C:
        decide, failed = fit(z, faces.landmarks, rows, c)
        failures += failed
        value, _ = score(decide, z, faces.landmarks, faces.split["validation"])
        value = value.get("accuracy", value.get("f1"))
        if best is None or value > best[0]:
            best = value, c, decide
    _, c, decide = best
    row = {"name": space.name, "dimensions": z.shape[1], "C": c}
    for split in SPLITS:
        row[split], details = score(decide, z, faces.landmarks, faces.split[split])
        row[split]["triplets"] = metrics.triplet_shares(z, triplets[split]) if split in triplets else {}
    return row, details, failures


def _svm(z, truth, c, balanced):
    """A fitted LinearSVC: min |w|²/2 + C sum max(0, 1 - t (w x + b))², solved in the primal by trust-region Newton.

    The primal solver draws no random numbers and needs few steps even at C = 100, where the dual one runs out of them.
    """
    from sklearn.svm import LinearSVC

    return LinearSVC(C=c, dual=False, class_weight="balanced" if balanced else None, max_iter=SVM_STEPS,
                     random_state=0).fit(z, truth)


def _fit_emotions(z, landmarks, rows, c):
    svm = _svm(z[rows], landmarks.emotion[rows], c, balanced=False)
    return svm.predict, int(svm.n_iter_ >= SVM_STEPS)


def _score_emotions(decide, z, landmarks, rows):
    truth, predicted = landmarks.emotion[rows], decide(z[rows])
    confusion = metrics.confusion_matrix(truth, predicted, len(landmarks.emotions))
    columns = zip(landmarks.emotions, confusion.sum(axis=1), *metrics.per_class(confusion), confusion)
    details = [{"class": str(name), "faces": int(count), "precision": float(p), "recall": float(r), "f1": float(f),
                "predicted": row.tolist()} for name, count, p, r, f, row in columns]
    return {"accuracy": metrics.accuracy(truth, predicted)}, details


def _fit_units(z, landmarks, rows, c):
    def fit(unit):
        coded = rows[landmarks.au[rows, unit] >= 0]
        truth = landmarks.au[coded, unit]
        return _svm(z[coded], truth, c, balanced=True) if len(np.unique(truth)) == 2 else None

    # liblinear lets go of Python while it solves, so threads share the units.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        svms = list(pool.map(fit, range(landmarks.au.shape[1])))

    def decide(points):
        nothing = np.full(len(points), np.nan)  # a unit that is never, or always, there cannot be learnt
        return np.stack([nothing if svm is None else svm.decision_function(points) for svm in svms], axis=1)

    return decide, sum(int(svm.n_iter_ >= SVM_STEPS) for svm in svms if svm is not None)


def _score_units(decide, z, landmarks, rows):
    scores = metrics.unit_scores(landmarks.au[rows], decide(z[rows]))
    columns = zip(landmarks.au_numbers, scores["positives"], scores["precision"], scores["recall"], scores["auc"])
    details = [{"class": f"AU {number}", "faces": int(count), "precision": float(p), "recall": float(r),
                "f1": float(metrics.harmonic_mean(p, r)), "auc": float(auc)} for number, count, p, r, auc in columns]
    return metrics.weighted_scores(scores), details


# Tables


def format_tables(result):
    """The tables of an evaluation as plain text: representations by validation and test, classes, dimensions."""
    active = result["active"]
    used = (f"Active latent dimensions: {active['count']} of {active['of']} "
            f"(mean KL above {active['threshold']:g} nats on the training part)")
    return "\n\n".join([_representation_table(result), _svm_note(result["svm"]), _class_table(result), used])


def _representation_table(result):
    posed, levels = result["kind"] == "posed", _confidences(result)
    measures = {"accuracy": "accuracy"} if posed else {"f1": "F1", "auc": "AUC"}
    heads = list(measures.values())
    heads += ["triplets" if level == "all" else f"conf. {level}" for level in levels]
    rows = [["representation", "dim", "C"] + heads * 2]
    for row in result["representations"]:
        cells = [row["name"], str(row["dimensions"]), f"{row['C']:g}"]
        for split in ("validation", "test"):
            cells += [three_digits(row[split][measure]) for measure in measures]
            cells += [three_digits(row[split]["triplets"].get(level)) for level in levels]
        rows.append(cells)
    title = "Emotion by linear SVM" if posed else "Action units by linear SVM"
    title += ", share of satisfied triplets" * bool(levels) + " by confidence (vote difference)" * (len(levels) > 1)
    middle, end = 3 + len(heads), 3 + 2 * len(heads)
    return title + "\n" + aligned(rows, spans=[("validation", 3, middle), ("test", middle, end)])


def _class_table(result):
    posed = result["kind"] == "posed"
    keys = ["precision", "recall", "f1"] + ["auc"] * (not posed)
    rows = [["", "faces" if posed else "present", "precision", "recall", "F1"] + ["AUC"] * (not posed)]
    rows += [[row["class"], str(row["faces"])] + [three_digits(row[key]) for key in keys] for row in result["classes"]]
    title = f"Each {'emotion' if posed else 'unit'} on the test part by {result['representations'][-1]['name']}"
    return title + "\n" + aligned(rows)


def _confidences(result):
    """Which triplet columns there are: "all", or the confidences 5, 3, 1 of collected triplets."""
    found = {level for row in result["representations"] for split in SPLITS for level in row[split]["triplets"]}
    return sorted(found - {"all"}, key=float, reverse=True) or sorted(found)


def _svm_note(svm):
    text = f"C chosen on validation from {', '.join(f'{c:g}' for c in svm['choices_of_C'])}"
    if svm["every"] > 1:
        text += f"; SVMs fitted on {svm['training_faces']} training faces (1 in {svm['every']})"
    if svm["not_converged"]:
        text += f"; {svm['not_converged']} fits not converged after {SVM_STEPS} steps"
    return text


def three_digits(value):
    """A number for a table, "-" where it is undefined."""
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def aligned(rows, spans=()):
    """Rows of cells as aligned text, the first column to the left, all others to the right.

    spans: (title, first column, column after the last) each, to stand in a line above, over their columns.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    ends = np.cumsum([width + 2 for width in widths]) - 2
    lines = ["  ".join([row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])])
             for row in rows]
    above = ""
    for title, first, after in spans:
        start, end = ends[first - 1] + 2, ends[after - 1]
        above = above.ljust(start) + f" {title} ".center(end - start, "-")
    return "\n".join(line.rstrip() for line in [above] * bool(spans) + lines)


# Pictures


def pictures(run, spaces, active):
    """Yields (file name, Figure) of every picture; spaces from `representations`, active from `usage`."""
    records = read_records(Path(run.path) / "metrics.jsonl")
    if records:
        yield "learning.png", plots.learning(records)
    yield "dimensions.png", plots.dimensions(*(np.array(active[key]) for key in ("kl", "weight_norm",
                                             "neutral_weight_norm")), active["threshold"])
    yield "reconstruction.png", _reconstruction(run, spaces[-1].z)
    raw, latent, classes = _scatter_data(run.faces, spaces)
    yield "pca_2d.png", plots.scatter_2d([raw, latent], classes)
    if min(raw[1].shape[1], latent[1].shape[1]) >= 3:
        yield "pca_3d.png", plots.scatter_3d([raw, latent], classes)
    yield "generated.png", _generated(run)


def read_records(path):
    """The objects of a metrics.jsonl in order of iteration, [] without a file.

    Of several for one iteration the last counts (a resumed run writes some again); a line cut short is left out.
    """
    if not path.exists():
        return []
    records = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            records[record["iteration"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return [records[iteration] for iteration in sorted(records)]


def classes(landmarks):
    """What a face is coloured by: (label (n,), names, strength (n,)); label -1 is the rest, whose name stands last.

    Posed faces: emotion and degree. Spontaneous ones: task and number of units present, or, without tasks, the rarest
    unit that is present; frames with no unit coded present are the rest.
    """
    if landmarks.kind == "posed":
        strength, value, names = landmarks.level, landmarks.emotion, landmarks.emotions
        rest = "neutral"
    else:
        present = landmarks.au == 1
        strength, rest = present.sum(axis=1), "no action unit"
        if landmarks.task is not None and len(landmarks.tasks):
            value, names = landmarks.task, landmarks.tasks
        else:
            value = np.where(present, present.sum(axis=0), len(present) + 1).argmin(axis=1)
            names = [f"AU {number}" for number in landmarks.au_numbers]
    used = np.unique(value[strength > 0])
    label = np.where(strength > 0, np.searchsorted(used, value), -1)
    return label, [str(names[index]) for index in used] + [rest], strength


def _points(faces, rows):
    """(m, P, 3): rows (m, D) of centred numbers as faces."""
    return (np.asarray(rows) + faces.mean).reshape(len(rows), -1, 3)


def _reconstruction(run, mu):
    """The strongest test face of each class, persons taken in turn."""
    faces, test = run.faces, run.faces.split["test"]
    label, names, strength = classes(faces.landmarks)
    persons = np.unique(faces.landmarks.person[test])
    rows, titles = [], []
    for value in range(min(len(names) - 1, COLUMNS)):
        own = test[label[test] == value]
        wanted = own[faces.landmarks.person[own] == persons[value % len(persons)]]
        own = wanted if len(wanted) else own
        if len(own):
            rows.append(own[np.argmax(strength[own])])
            titles.append(names[value])
    if not rows:
        rows, titles = list(test[:1]), [names[-1]]
    neutral = faces.x[faces.neutral[rows]]
    made = run.model.decode(mu[rows], neutral)
    columns = zip(titles, _points(faces, neutral), _points(faces, faces.x[rows]), _points(faces, made))
    return plots.reconstructions(list(columns), neutral=run.model.conditional)


def _scatter_data(faces, spaces):
    """((title, z, explained) of raw and latent space, classes), of training faces in their principal components."""
    train = faces.split["train"]
    some = train[::-(-len(train) // PLOT_ROWS)]
    panels = []
    for space in (spaces[0], spaces[-1]):
        pca = metrics.fit_pca(space.z[train], min(3, space.z.shape[1]))
        panels.append((f"{space.name} ({space.z.shape[1]} dimensions)", pca.transform(space.z[some]), pca.explained))
    label, names, strength = classes(faces.landmarks)
    size = 10 + 24 * strength[some] / max(1, strength.max())  # square points
    return *panels, (label[some], names, size)


def _generated(run):
    model, faces = run.model, run.faces
    y = faces.x[faces.neutral[faces.split["train"][:1]]]
    across, down = clearest_dimensions(model, y)
    z = np.zeros((len(GRID), len(GRID), model.latent_size), dtype=np.float32)
    z[:, :, across] = np.array(GRID)
    z[:, :, down] = np.array(GRID)[::-1, None]
    z = z.reshape(-1, model.latent_size)
    made = _points(faces, model.decode(z, np.repeat(y, len(z), axis=0)))
    neutral = _points(faces, y)[0] if model.conditional else None
    return plots.generated(made.reshape(len(GRID), len(GRID), -1, 3), GRID, across, down, neutral)


def clearest_dimensions(model, y):
    """The two latent dimensions that move the face y (1, D) most, in different ways.

    m_k = f(z_k = 5) - f(z_k = -5), all other z 0. First the largest |m_k|; then the largest |m_k| (1 - |cos|) with
    cos the cosine between m_k and the first one's motion.
    """
    size = model.latent_size
    ends = np.concatenate([np.eye(size), -np.eye(size)]).astype(np.float32) * GRID[-1]
    made = np.asarray(model.decode(ends, np.repeat(y, 2 * size, axis=0)), dtype=np.float64)
    motion = made[:size] - made[size:]
    length = np.linalg.norm(motion, axis=1)
    first = int(length.argmax())
    cosine = motion @ motion[first] / np.maximum(length * length[first], np.finfo(float).tiny)
    other = length * (1 - np.abs(cosine))
    other[first] = -1
    return first, int(other.argmax())


# Files


def missing_extra():
    """What the report lacks, in a sentence; None where scikit-learn and matplotlib are there."""
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        return (f'the report: expected scikit-learn and matplotlib, got no {error.name}: '
                'pip install -e ".[report]"')
    return None


def _require_extra():
    if missing_extra():
        raise NnliteError(missing_extra())


def without_nan(value):
    """The same with None for nan, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def write(path, data):
    """Writes the bytes, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
