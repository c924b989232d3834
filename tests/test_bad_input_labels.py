"""Bad input for classifiers: exit code 2, one sentence that names the thing, and nothing written."""

import dataclasses
import json
import shutil

import pytest

import small_runs
from nnlite import evaluate, presets, train
from nnlite.data import images
from nnlite.errors import NnliteError
from nnlite.experiments import LabelExperiment
from nnlite.experiments import label_options as label_options_
from nnlite.ops import get_ops
from small_runs import begun, image_file, label_options, options, posed_file, quiet
from test_bad_input import refused


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return image_file(tmp_path_factory.mktemp("data") / "images.h5")


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(good, tmp_path_factory):
    """model -> folder of a run that has a best.h5."""
    root, found = tmp_path_factory.mktemp("trained"), {}

    def of(model="cnn4", data=good):
        if (model, data) not in found:
            out = root / f"{model}{len(found)}"
            run = begun(label_options(data, out, model, epochs=1), out)
            with quiet():
                train.fit(run, lambda: False)
            found[model, data] = run.path
        return found[model, data]
    return of


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, side", [("cnn4", 3), ("cnn5", 9), ("cnn3", 1)])
def test_a_model_that_does_not_fit_the_images(model, side, folder, capsys):
    image_file(folder / "images.h5", side=max(side, 3))
    if side < 3:
        few = small_runs.image_set(side=3)
        images.write(folder / "images.h5", dataclasses.replace(few, images=few.images[:, :1, :1]))
    refused(label_options("images.h5", "run", model), folder, capsys, f"{model}: expected images of which",
            f"{side}x{side}")


def test_missing_data(folder, capsys):
    refused(label_options("nowhere.csv", "run"), folder, capsys, "nowhere.csv: expected an existing file or folder")


@pytest.mark.parametrize("option", ["--skip-broken", "--resize 48x48"])
def test_options_of_files_without_data(option, folder, capsys):
    refused(["--model", "cnn4", *option.split()], folder, capsys, f"{option.split()[0]}: expected a folder of image",
            "built-in faces")


def test_landmarks_are_no_images(folder, capsys):
    posed_file(folder / "faces.h5")
    refused(label_options("faces.h5", "run"), folder, capsys, "faces.h5: expected ", "'images'")


def test_images_are_no_landmarks(good, folder, capsys):
    refused(options(good, "run"), folder, capsys, "images.h5: expected ", "'points'")


def test_preset_for_cifar_without_data(folder, capsys):
    refused(["--preset", "mlp-cifar"], folder, capsys, "--data", "CIFAR-10", "mlp-cifar", "got none")


@pytest.mark.parametrize("words", ["size=[16,16] move=2", "rotate=5 move=2"])
def test_moves_beside_a_warp(words, good, folder, capsys):
    settings = dict(word.split("=") for word in words.split())
    refused(label_options(good, "run", **settings), folder, capsys, "--set move", "0 beside size, rotate", "2")


def test_images_that_no_patches_fit(good, folder, capsys):
    refused(label_options(good, "run", "vit-tiny"), folder, capsys, "vit-tiny: expected images of whole patches", "8x8")


def test_labels_that_are_no_classes():
    few = small_runs.image_set()
    labels = few.labels.copy()
    labels[7] = 3
    wrong = dataclasses.replace(few, labels=labels)
    settings = {**presets.PRESETS["cnn4"], **small_runs.NET["cnn4"], "iterations": 1}
    for build in (lambda: LabelExperiment(settings, wrong, get_ops("reference")),
                  lambda: label_options_.in_classes(wrong, ["cross", "round", "square"])):
        with pytest.raises(NnliteError, match="^images of a test: expected labels from 0 to 2, got 3 in row 7$"):
            build()


def test_weights_beside_another_run(good, trained, folder, capsys):
    refused([*label_options(good, "run"), "--init-from", trained(), "--weights", "x.pth"], folder, capsys, "--weights",
            "both")


@pytest.mark.parametrize("model", ["cnn4", "resnet-small"])
def test_weights_that_are_not_there(model, folder, capsys):
    image_file(folder / "images.h5", side=small_runs.SIDE[model])
    refused([*label_options("images.h5", "run", model), "--weights", "none.pth"], folder, capsys, "none.pth")


def test_subset_larger_than_the_data(good, folder, capsys):
    refused(label_options(good, "run", subset="[49,1]"), folder, capsys, "from 1 to 36 images of the train part", "49")


# -- settings and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assignment, words", [
    ("learning_rat=1", ("of cnn4", "'learning_rat' (nearest: learning_rate)")),
    ("samples=3", ("of cnn4", "'samples'")), ("encoder=[3,4]", ("of cnn4", "'encoder'")),
    ("filters=32", ("--set filters", "a list of sizes", "32")), ("filters=[0]", ("--set filters", "[0]")),
    ("hidden=[200]", ("--set hidden", "a whole number", "[200]")),
    ("init_scale=0", ("--set init_scale", "above 0", "0.0")), ("batch_norm=1", ("--set batch_norm", "True or False")),
    ("optimiser=lion", ("--set optimiser", "sgd, adagrad, rmsprop, adam, adamw", "'lion'")),
    ("momentum=1", ("--set momentum", "below 1", "1.0")), ("l2=-1", ("--set l2", "at least 0", "-1.0")),
    ("lr_decay=0", ("--set lr_decay", "0.0")), ("lr_decay=1.1", ("--set lr_decay", "at most 1", "1.1")),
    ("inverse_decay=-1", ("--set inverse_decay", "-1.0")), ("epochs=0", ("--set epochs", "at least 1", "0")),
    ("patience=-1", ("--set patience", "0 for no early stopping", "-1")),
    ("normalise=max", ("--set normalise", "'standard' or 'centred' or 'raw'", "'max'")),
    ("flip=yes", ("--set flip", "True or False", "'yes'")),
    ("class_weights=all", ("--set class_weights", "'none' or 'balanced'", "'all'")),
    ("smoothing=1", ("--set smoothing", "below 1", "1.0")), ("alpha=2", ("--set alpha", "from 0 to 1", "2.0")),
    ("alpha=0.5", ("--set alpha", "--teacher RUN", "none")),
    ("rotate=181", ("--set rotate", "degrees from 0 to 180", "181.0")), ("shift=1", ("--set shift", "below 1", "1.0")),
    ("zoom=-0.1", ("--set zoom", "-0.1")), ("contrast=1", ("--set contrast", "1.0")),
    ("brightness=2", ("--set brightness", "2.0")),
    ("size=48", ("--set size", "[height, width]", "48")), ("size=[48,0]", ("--set size", "from 1 to 4096", "[48, 0]")),
    ("channels=2", ("--set channels", "or 3", "2")), ("normalise=imagenet", ("channels=3", "images of 1")),
    ("split=[0.7,0.3]", ("--set split", "three shares", "[0.7, 0.3]")),
    ("split=[0.7,0.2,0.2]", ("--set split", "add up to 1")), ("watch=auc", ("--set watch", "'loss' or 'f1'", "'auc'")),
    ("f1_decay=0", ("--set f1_decay", "above 0", "0.0")), ("micro_batch=-1", ("--set micro_batch", "-1")),
    ("freeze=[3]", ("--set freeze", "patterns", "[3]")),
    ("freeze=0.*,stem.*", ("--set freeze", "names of parameters, as 0.W", "'stem.*', which none has")),
    ("freeze=*", ("--set freeze", "something to learn", "*")),
    ("subset=[49]", ("--set subset", "[training images, validation images]", "[49]")),
    ("batch_size=361", ("--set batch_size", "at most 360", "361")),
])
def test_wrong_settings(assignment, words, good, folder, capsys):
    refused([*label_options(good, "run"), "--set", assignment], folder, capsys, "--set", *words)


@pytest.mark.parametrize("option, words", [
    ("--epochs 0", ("--epochs", "at least 1", "got 0")), ("--iterations -3", ("--iterations", "-3")),
    ("--epochs 2 --iterations 3", ("--epochs", "epochs or iterations", "both")),
    ("--seed -1", ("--seed", "-1")), ("--triplets t.h5", ("--triplets", "a model of vae1, vae2, vae3", "cnn4")),
    ("--preset mlp-raw", ("--preset", "a preset of cnn4", "'mlp-raw' of mlp")),
    ("--preset cnn4-distiled", ("--preset", "'cnn4-distiled' (nearest: cnn4-distilled)")),
    ("--preset cnn4-distilled", ("--teacher", "cnn4-distilled learns from", "none")),
    ("--add-class new", ("--add-class", "--init-from RUN", "none")),
    ("--resize 48", ("--resize", "height x width", "'48'")), ("--resize 0x9", ("--resize", "'0x9'")),
    ("--resize 9x9", ("a folder per class", "images of a fixed size")),
    ("--skip-broken", ("--skip-broken: expected a folder of image files, got a .h5 file",)),
    ("--init-from nowhere", ("nowhere", "a run folder")), ("--teacher nowhere", ("nowhere", "a run folder"))])
def test_wrong_options(option, words, good, folder, capsys):
    refused([*label_options(good, "run"), *option.split()], folder, capsys, *words)


@pytest.mark.parametrize("option", ["--epochs 3", "--init-from x", "--add-class x", "--teacher x", "--weights x",
                                    "--skip-broken"])
def test_options_that_faces_do_not_have(option, folder, capsys):
    refused(["--model", "vae1", *option.split()], folder, capsys, option.split()[0],
            "a model of mlp, cnn3, cnn4, cnn5, effnetv2s, effnetv2s-small, resnet50, resnet-small, vit-b16, vit-tiny",
            "vae1")


# -- other runs --------------------------------------------------------------------------------------------------------


def test_init_from_another_model(good, trained, folder, capsys):
    refused([*label_options(good, "run"), "--init-from", trained("mlp")], folder, capsys, "a run of cnn4", "one of mlp")


def test_init_from_other_shapes(good, trained, folder, capsys):
    refused([*label_options(good, "run", filters=[4, 6]), "--init-from", trained()], folder, capsys, "best.h5",
            "parameter '2.W' (3, 3, 4, 6)", "'2.W' (3, 3, 4, 5)")
    refused([*label_options(good, "run"), "--set", "hidden=12", "--init-from", trained()], folder, capsys,
            "parameter '5.W' (20, 12)", "'5.W' (20, 9)")


@pytest.mark.parametrize("option", ["--init-from", "--teacher"])
def test_a_run_of_other_images(option, trained, folder, capsys):
    image_file(folder / "larger.h5", side=9)
    refused([*label_options("larger.h5", "run"), option, trained()], folder, capsys,
            "a run of images (9, 9, 1) (height, width, channels)", "(8, 8, 1)")


def test_init_from_a_run_without_a_best(good, folder, capsys):
    begun(label_options(good, "begun"), "begun")
    refused([*label_options(good, "run"), "--init-from", "begun"], folder, capsys, "begun/best.h5", "got none")


def test_classes_that_the_older_run_does_not_have(trained, folder, capsys):
    image_file(folder / "four.h5", classes=("round", "square", "cross", "star"))
    words = [*label_options("four.h5", "run"), "--init-from", trained()]
    refused(words, folder, capsys, "the classes round, square, cross", "'star'")
    refused([*words, "--add-class", "cross"], folder, capsys, "--add-class", "does not have", "'cross'")
    refused([*words, "--add-class", "moon"], folder, capsys, "--add-class", "a class of the data: ", "'moon'")


def test_a_teacher_of_other_classes(good, trained, folder, capsys):
    image_file(folder / "two.h5", classes=("round", "square"))
    refused([*label_options("two.h5", "run"), "--teacher", trained()], folder, capsys,
            "a teacher of the classes round, square", "round, square, cross")


def test_a_teacher_that_is_a_face_vae(good, folder, capsys):
    posed_file(folder / "faces.h5")
    small_runs.make_run(folder / "faces.h5", folder / "vae")
    refused([*label_options(good, "run"), "--teacher", "vae"], folder, capsys, "vae: expected a run of a classifier",
            "vae3")


def test_resume_whose_data_changed(good, folder, capsys):
    shutil.copy(good, folder / "images.h5")
    begun(label_options(folder / "images.h5", "run"), "run")
    image_file(folder / "images.h5", n=50)
    refused(["--resume", "run"], folder, capsys, "the 60 images that the run was begun with", "50")
    image_file(folder / "images.h5", side=9)
    refused(["--resume", "run"], folder, capsys, "images (8, 8, 1)", "(9, 9, 1)")


@pytest.mark.parametrize("option", ["--epochs 5", "--init-from x", "--add-class x", "--teacher x", "--weights x"])
def test_options_that_resume_refuses(option, good, folder, capsys):
    begun(label_options(good, "run"), "run")
    refused(["--resume", "run", *option.split()], folder, capsys, "--resume", option.split()[0])


@pytest.mark.parametrize("key", ["classes", "images", "init_from", "teacher"])
def test_a_damaged_config(key, good, folder, capsys):
    begun(label_options(good, "run"), "run")
    config = json.loads((folder / "run" / "config.json").read_text())
    for change in ({**config, key: 1.5}, {k: v for k, v in config.items() if k != key}):
        (folder / "run" / "config.json").write_text(json.dumps(change))
        refused(["--resume", "run"], folder, capsys, "config.json", f"'{key}'")


def test_evaluate_on_other_data(trained, folder, capsys):
    image_file(folder / "two.h5", classes=("round", "moon"))
    refused([trained(), "--data", "two.h5", "--device", "reference"], folder, capsys, "moon", command=evaluate.main)
    refused([trained(), "--data", "nowhere", "--device", "reference"], folder, capsys, "nowhere", "an existing file",
            command=evaluate.main)


@pytest.mark.parametrize("side, channels, words", [
    (9, 1, "expected images of 8 x 8 (height x width), as the run's are, got 9 x 9"),
    (32, 3, "expected images of 8 x 8 (height x width), as the run's are, got 32 x 32")])
def test_evaluate_on_images_of_another_size(side, channels, words, trained, folder, capsys):
    """No option would change that of a file."""
    image_file(folder / "other.h5", side=side, channels=channels)
    refused([trained(), "--data", "other.h5", "--device", "reference"], folder, capsys, f"other.h5: {words}",
            command=evaluate.main)


def test_evaluate_faces_on_other_data(good, folder, capsys):
    posed_file(folder / "faces.h5")
    run = small_runs.make_run(folder / "faces.h5", folder / "vae", iterations=1)
    with quiet():
        train.fit(run, lambda: False)
    refused(["vae", "--data", good, "--device", "reference"], folder, capsys, "--data", "a classifier", "vae3",
            command=evaluate.main)
