"""The presets against the published tables, typed in here once more; parameter counts; printing them."""

import math

import pytest

import small_runs
from nnlite import presets, train
from nnlite.models import MODELS
from nnlite.ops import get_ops
from nnlite.presets import BEST, PRESETS, PUBLISHED
from nnlite.settings import KNOWN, check

A, B = (498, 240, 120, 60, 30), (498, 480, 240, 120, 60, 30)
C, E = (498, 600, 400, 200, 100, 50), (498, 400, 200, 100, 50)
a, b, c = (279, 300, 400, 300, 249), (279, 300, 500, 300, 249), (299, 300, 400, 300, 249)
P, Q, R = (249, 120, 60, 30), (249, 240, 120, 60, 30), (249, 300, 200, 100, 50)

# family -> rows of (encoder, decoder, s^2, lambda, annealing in thousands); None: no triplet prior
TABLE = {
    "posed-m1": [(P, P[::-1], 1e-4, None, k) for k in (0, 50, 100)] +
                [(Q, Q[::-1], 1e-4, None, k) for k in (0, 50, 100)] +
                [(P, P[::-1], 1e-3, None, k) for k in (0, 50, 100)] +
                [(Q, Q[::-1], 1e-3, None, k) for k in (0, 50, 100)],
    "posed-m2": [(A, a, 1e-4, None, 0), (A, a, 1e-4, None, 50), (A, a, 1e-4, None, 100),
                 (A, a, 5e-4, None, 0), (A, a, 5e-4, None, 50), (A, a, 5e-4, None, 100),
                 (A, a, 1e-3, None, 0), (A, a, 1e-3, None, 50), (A, a, 1e-3, None, 100)],
    "posed-m3-kl": [(A, a, .001, .01, 0), (A, a, .001, .01, 50), (A, a, .001, .01, 100),
                    (A, a, .001, .04, 0), (A, a, .001, .04, 50), (A, a, .001, .04, 100),
                    (B, a, .001, .04, 100), (B, b, .001, .04, 100), (C, c, .001, .04, 100),
                    (A, a, .0005, .04, 100), (A, a, .0001, .04, 100)],
    "posed-m3-prior": [(A, a, .001, .04, 50), (A, a, .001, .04, 100), (B, a, .001, .04, 50), (C, c, .001, .04, 50),
                       (E, c, .001, .04, 50), (B, a, .001, .04, 100), (B, b, .001, .04, 100), (C, c, .001, .04, 100),
                       (B, a, .001, .04, 100), (A, a, .0005, .04, 100), (A, a, .0001, .04, 100)],
    "spontaneous-m1": [(net, net[::-1], 1e-4, None, k) for net in (P, Q, R) for k in (0, 50, 100)],
    "spontaneous-m2": [(A, a, .0001, None, 0), (A, a, .01, None, 0), (A, a, .01, None, 50), (A, a, .01, None, 100),
                       (A, a, .001, None, 0), (A, a, .001, None, 50), (A, a, .001, None, 100)],
    "spontaneous-m3-kl": [(A, a, .001, lam, k) for lam in (.001, .0001) for k in (0, 50, 100)],
    "spontaneous-m3-prior": [(A, a, .001, .001, 50), (A, a, .001, .001, 100), (A, a, .001, .0001, 50),
                             (A, a, .001, .0001, 100), (A, a, .001, .0005, 50), (B, a, .001, .0005, 50),
                             (C, c, .001, .0005, 50), (E, c, .001, .0005, 50)],
}
# The first published figure of each row on validation: accuracy (posed), F1 (spontaneous).
FIRST_FIGURE = {
    "posed-m1": ".544 .52 .544 .544 .556 .536 .536 .544 .544 .512 .524 .516",
    "posed-m2": ".62 .628 .664 .616 .636 .624 .592 .616 .62",
    "posed-m3-kl": ".62 .636 .644 .66 .604 .664 .724 .676 .708 .68 .656",
    "posed-m3-prior": ".676 .68 .676 .704 .7 .708 .704 .696 .696 .656 .648",
    "spontaneous-m1": ".576 .591 .594 .584 .589 .597 .58 .588 .586",
    "spontaneous-m2": ".603 .576 .588 .587 .602 .594 .596",
    "spontaneous-m3-kl": ".624 .61 .618 .622 .618 .614",
    "spontaneous-m3-prior": ".605 .606 .627 .62 .621 .603 .618 .62",
}
SECOND_FIGURE = {
    "posed-m1": ".563 .571 .565 .565 .575 .572 .572 .557 .56 .556 .554 .557",
    "posed-m2": ".594 .598 .595 .593 .58 .572 .606 .581 .572",
    "posed-m3-kl": ".742 .748 .754 .741 .734 .75 .761 .751 .76 .75 .693",
    "posed-m3-prior": ".747 .73 .746 .729 .725 .76 .748 .74 .745 .714 .674",
    "spontaneous-m3-kl": ".758 .741 .762 .837 .834 .848",
    "spontaneous-m3-prior": ".73 .736 .839 .839 .779 .767 .756 .779",
}
ACTIVE = {"posed-m1": "30 30 30 30 30 30 20 25 29 17 21 27", "posed-m2": "30 30 30 16 21 25 13 15 17",
          "posed-m3-kl": "30 30 30 24 22 30 30 30 39 30 30", "posed-m3-prior": "22 27 25 22 26 25 27 33 27 30 30",
          "spontaneous-m2": "30 5 9 11 13 16 19"}
FACES = [name for name, preset in PRESETS.items() if preset["model"].startswith("vae")]
ROWS = [(f"{family}-{number}", row) for family, rows in TABLE.items() for number, row in enumerate(rows, 1)]


def test_there_are_73_under_these_names():
    assert len(ROWS) == 73
    assert sorted(FACES) == sorted(name for name, _ in ROWS)
    assert sorted(PUBLISHED) == sorted(PRESETS)


@pytest.mark.parametrize("name, row", ROWS, ids=[name for name, _ in ROWS])
def test_row(name, row):
    encoder, decoder, variance, topological, anneal = row
    preset = PRESETS[name]
    kind, model = name.split("-")[:2]
    assert preset["kind"] == kind and preset["model"] == "vae" + model[1]
    assert preset["encoder"] == list(encoder) and preset["decoder"] == list(decoder)
    assert preset["reconstruction_variance"] == variance
    assert preset["anneal"] == 1000 * anneal
    if topological is not None:
        assert preset["topological_variance"] == topological
        assert preset["anneal_mode"] == name.split("-")[2]
    common = {"batch_size": 200 if kind == "posed" else 250, "triplet_batch": 10, "samples": 3, "triplet_samples": 10,
              "learning_rate": 1e-4, "keep_prob": 0.9, "iterations": 100_000, "validate_every": 2500}
    assert {key: preset[key] for key in common} == common


@pytest.mark.parametrize("place, table", [(0, FIRST_FIGURE), (1, SECOND_FIGURE), (2, ACTIVE)])
def test_published_figures(place, table):
    for family, figures in table.items():
        for number, figure in enumerate(figures.split(), 1):
            assert PUBLISHED[f"{family}-{number}"][place] == float(figure), (family, number)


def test_published_best():
    assert BEST["vae3", "posed"] == "posed-m3-kl-7" and BEST["vae3", "spontaneous"] == "spontaneous-m3-prior-3"
    for (model, kind), name in BEST.items():
        if name not in FACES:
            continue
        rows = {key: PUBLISHED[key] for key in PRESETS
                if PRESETS[key]["model"] == model and PRESETS[key]["kind"] == kind}
        assert rows[name][0] == max(row[0] for row in rows.values())


def test_presets_share_no_list():
    """Changing one preset's sizes in place must not change another's."""
    lists = [id(value) for preset in PRESETS.values() for value in preset.values() if isinstance(value, list)]
    assert len(set(lists)) == len(lists)
    assert not {id(sizes) for table in (presets.ENCODERS, presets.DECODERS, presets.PLAIN)
                for sizes in table.values()} & set(lists)


# -- classifiers -------------------------------------------------------------------------------------------------------

MLP = dict(model="mlp", hidden=[1000, 1000], keep_prob=1.0, optimiser="sgd", learning_rate=1e-3, momentum=0.5,
           inverse_decay=1e-3, lr_decay=1.0, l2=0.0, batch_size=10, flip=False)
CIFAR = dict(model="mlp", keep_prob=1.0, optimiser="sgd", learning_rate=1e-3, momentum=0.0, inverse_decay=0.0,
             lr_decay=0.9, l2=0.0, flip=False, kind="cifar")
CNN5 = dict(model="cnn5", keep_prob=0.5, optimiser="sgd", learning_rate=1e-3, momentum=0.9, inverse_decay=1e-5,
            lr_decay=1.0, l2=0.0, batch_size=32, epochs=50, flip=False)
CNN4 = dict(init_scale=1.0, model="cnn4", filters=[32, 64, 96, 128], hidden=200, batch_norm=True, optimiser="adam",
            learning_rate=0.00127, l2=0.00172, lr_decay=0.95, inverse_decay=0.0, batch_size=50, epochs=40, flip=True,
            normalise="standard", alpha=0.8)
EFFNET = dict(model="effnetv2s", learning_rate=0.0009986, width=0.75, depth=1.25, keep_prob=0.95, top_filters=24,
              optimiser="adam", epochs=100, patience=10, watch="loss", class_weights="balanced", flip=True, rotate=10.0,
              shift=0.1, zoom=0.1, contrast=0.1, brightness=0.1, size=[], f1_decay=1.0, lr_decay=1.0)
EFFNET_SMALL = {**EFFNET, "model": "effnetv2s-small", "learning_rate": 0.0001972, "width": 1.3, "depth": 0.55,
                "keep_prob": 0.8}
FINE_TUNED = dict(model="vit-b16", optimiser="adam", learning_rate=1e-3, batch_size=256, epochs=3, f1_decay=0.8,
                  class_weights="balanced", split=[0.7, 0.2, 0.1], size=[224, 224], channels=3, normalise="half",
                  freeze=[], lr_decay=1.0)
OUR_SMALL = dict(optimiser="adam", learning_rate=1e-3, batch_size=64, f1_decay=0.8, class_weights="balanced",
                 split=[0.7, 0.2, 0.1], size=[], channels=0)
CLASSIFIERS = {
    "mlp-fer2013": {**MLP, "normalise": "standard"}, "mlp-raw": {**MLP, "normalise": "raw"},
    "mlp-cifar": {**CIFAR, "hidden": [80, 80], "batch_size": 10, "epochs": 30, "subset": []},
    "mlp-cifar-overfit": {**CIFAR, "hidden": [40, 40], "batch_size": 20, "epochs": 20, "subset": [49, 1]},
    "cnn5": {**CNN5, "normalise": "standard"}, "cnn5-raw": {**CNN5, "normalise": "raw"},
    "cnn3": {"model": "cnn3", "filters": 32, "hidden": 200, "flip": True, "optimiser": "adam"},
    "cnn4": CNN4, "cnn4-plain": {**CNN4, "batch_norm": False},
    **{f"cnn4-{name}": {**CNN4, "optimiser": name, "learning_rate": PRESETS[f"cnn4-{name}"]["learning_rate"]}
       for name in ("sgd", "adagrad", "rmsprop")},
    "cnn4-distilled": CNN4,
    "effnetv2s": EFFNET, "effnetv2s-small": EFFNET_SMALL,
    "effnetv2s-small-unweighted": {**EFFNET_SMALL, "class_weights": "none"},
    "effnetv2s-small-affectnet": {**EFFNET_SMALL, "learning_rate": 0.0003622, "width": 1.0545, "depth": 1.2,
                                  "keep_prob": 0.85},
    "vit-b16": FINE_TUNED, "vit-b16-slow": {**FINE_TUNED, "learning_rate": 3e-5},
    "resnet50": {**FINE_TUNED, "model": "resnet50", "normalise": "imagenet"},
    "vit-tiny": {**OUR_SMALL, "model": "vit-tiny", "learning_rate": 3e-4},
    "resnet-small": {**OUR_SMALL, "model": "resnet-small"},
    # ours
    "cnn4-moved": {"model": "cnn4", "batch_norm": True, "optimiser": "adam", "flip": True, "move": 4},
    "mlp-moved": {"model": "mlp", "hidden": [1000, 1000], "optimiser": "sgd", "flip": True, "move": 2},
    "effnetv2s-small-decayed": {**EFFNET_SMALL, "learning_rate": 0.001, "lr_decay": 0.9, "class_weights": "none",
                                "watch": "accuracy", "patience": 0, "epochs": 32},
    "effnetv2s-small-restarted": {**EFFNET_SMALL, "learning_rate": 0.0005, "lr_decay": 0.85, "class_weights": "none",
                                  "watch": "accuracy", "patience": 0, "epochs": 18},
    "effnetv2s-small-restarted-twice": {**EFFNET_SMALL, "learning_rate": 0.001, "lr_decay": 0.92,
                                        "class_weights": "none", "watch": "accuracy", "patience": 0, "epochs": 36},
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name):
    assert {key: PRESETS[name][key] for key in CLASSIFIERS[name]} == CLASSIFIERS[name]


def test_every_classifier_is_there_with_all_its_settings():
    assert sorted(CLASSIFIERS) == sorted(name for name in PRESETS if name not in FACES)
    for name in CLASSIFIERS:
        preset = PRESETS[name]
        told = {"iterations", "validate_every", "checkpoint_every"}   # follow from the number of images
        extra = {"model", "kind"} | ({"distilled"} if name == "cnn4-distilled" else set())
        assert set(preset) == set(KNOWN[preset["model"]]) - told | extra, name
        for key in set(preset) - extra:
            assert check(preset["model"], key, preset[key], key) == preset[key]


def test_published_accuracies():
    assert PUBLISHED["cnn4"] == {"validation": 0.607} and PUBLISHED["cnn5-raw"] == {"test": 0.244}
    assert PUBLISHED["mlp-raw"]["test"] == 0.248 and PUBLISHED["mlp-cifar"] == {"train": 0.61, "validation": 0.45}


def test_published_figures_of_large_nets():
    assert PUBLISHED["effnetv2s"] == {"test": 0.658, "loss": 0.963, "precision": 0.631, "recall": 0.649, "f1": 0.637}
    assert PUBLISHED["effnetv2s-small"] == {"test": 0.657, "loss": 0.959, "precision": 0.637, "recall": 0.649,
                                            "f1": 0.641}
    assert PUBLISHED["effnetv2s-small-affectnet"] == {"test": 0.613, "f1": 0.611}
    assert PUBLISHED["effnetv2s-small-unweighted"] == {"test": 0.645}
    assert PUBLISHED["vit-b16"]["test"] == 0.99 and PUBLISHED["resnet50"]["test"] == 0.895
    assert PUBLISHED["vit-b16-slow"] == {"test": 0.998, "production": 0.971, "production f1": 0.946}


def test_best_of_a_classifier():
    assert {model: BEST[model, "faces"] for model in ("mlp", "cnn3", "cnn4", "cnn5")} == {
        "mlp": "mlp-fer2013", "cnn3": "cnn3", "cnn4": "cnn4", "cnn5": "cnn5"}
    assert {model for model, _ in BEST} == set(MODELS)
    assert all(PRESETS[name]["model"] == model for (model, _), name in BEST.items())


def built(preset):
    s = PRESETS[preset]
    model = MODELS[s["model"]](s["encoder"], s["decoder"], reconstruction_variance=s["reconstruction_variance"])
    return model.build(get_ops("reference"))


def counted(encoder, decoder):
    """Weights and biases of a chain of matrices, the encoder's last one twice as wide (mu and ln sigma^2)."""
    wide = [*encoder[:-1], 2 * encoder[-1]]
    return sum(m * n + n for sizes in (wide, decoder) for m, n in zip(sizes, sizes[1:]))


@pytest.mark.parametrize("preset, count", [("posed-m3-kl-7", 794_449), ("posed-m3-kl-1", 559_249)])
def test_published_parameter_counts(preset, count):
    assert built(preset).parameters.size == count


@pytest.mark.parametrize("preset", [f"{family}-{len(rows)}" for family, rows in TABLE.items()] + ["posed-m3-kl-9"])
def test_parameter_counts(preset):
    encoder, decoder = dict(ROWS)[preset][:2]
    assert built(preset).parameters.size == counted(encoder, decoder)


# -- printing ----------------------------------------------------------------------------------------------------------


def test_list_presets(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--list-presets"]) == 0
    faces, labels = capsys.readouterr().out.split("\n\n")
    head, *lines = faces.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in ROWS]
    for line, (name, (encoder, decoder, variance, topological, anneal)) in zip(lines, ROWS):
        cells = line.split()
        assert cells[2:4] == ["-".join(map(str, encoder)), "-".join(map(str, decoder))]
        assert math.isclose(float(cells[4]), variance) and int(cells[6]) == 1000 * anneal
        assert cells[5] == "-" if topological is None else math.isclose(float(cells[5]), topological)
    assert max(map(len, [head, *lines])) <= 130
    head, *lines = labels.splitlines()
    assert [line.split()[0] for line in lines] == [name for name in PRESETS if name not in FACES]
    assert lines[[line.split()[0] for line in lines].index("cnn4")].split() == (
        "cnn4 cnn4 faces 32-64-96-128-200 adam 0.00127 0.95/ep 0.00172 50 40 standard yes validation 0.607".split())
    assert max(map(len, [head, *lines])) <= 175
    small = next(line for line in lines if line.startswith("effnetv2s-small "))
    assert small.split()[2:6] == ["faces", "w1.3", "d0.55", "top24"] and small.endswith("test 0.657, f1 0.641")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset, count", [("posed-m3-kl-7", "794,449"), ("posed-m3-kl-1", "559,249")])
def test_summary_counts_and_writes_nothing(preset, count, tmp_path, monkeypatch, capsys):
    data = small_runs.posed_file(tmp_path / "faces.h5")
    monkeypatch.chdir(tmp_path)
    assert train.main(["--preset", preset, "--data", str(data), "--summary", "--device", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    total = lines[-1].split()
    assert total == ["total", count]
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("layer")) + 1:-1]
    assert sum(int(line.split()[-1].replace(",", "")) for line in table) == int(count.replace(",", ""))
    assert [path.name for path in tmp_path.iterdir()] == ["faces.h5"]
