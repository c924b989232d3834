"""Bad input: exit code 2, one sentence that names the thing, and nothing written."""

import functools
import shutil

import h5py
import numpy as np
import pytest

import small_runs
from nnlite import evaluate, train
from nnlite.data import triplets as triplet_files
from nnlite.experiments.face_options import load_faces
from nnlite.ops import _cuda_problem
from small_runs import SIZES, make_run, options, posed_file

refused = functools.partial(small_runs.refused, command=train.main)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return posed_file(tmp_path_factory.mktemp("data") / "faces.h5")


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- data --------------------------------------------------------------------------------------------------------------


def set_point(value, row=7):
    def change(file):
        file["points"][row, 3, 1] = value
    return change


def without_neutral(file):
    """Person 2 keeps strong expressions only."""
    keep = ~((file["person"][()] == 2) & (file["level"][()] == 0))
    for name in ("points", "person", "emotion", "level"):
        values = file[name][()][keep]
        del file[name]
        file[name] = values


def renamed(old, new):
    return lambda file: file.move(old, new)


def replaced(name, values):
    def change(file):
        del file[name]
        file[name] = values
    return change


def no_attribute(name):
    return lambda file: file.attrs.__delitem__(name)


FILES = {
    "NaN": (set_point(np.nan), ("finite landmarks", "row 7")),
    "infinity": (set_point(-np.inf, 31), ("finite landmarks", "row 31")),
    "no neutral face": (without_neutral, ("a neutral face of person 2",)),
    "no points": (renamed("points", "landmarks"), ("'points'", "(n, P, 3)", "got none")),
    "two coordinates": (replaced("points", np.zeros((125, 83, 2), "f4")), ("'points'", "(n, P, 3)", "(125, 83, 2)")),
    "text for points": (replaced("points", [b"x"] * 125), ("'points'", "(125,)")),
    "no person": (renamed("person", "who"), ("'person'", "(125,)", "got none")),
    "persons missing": (replaced("person", np.zeros(124, "i4")), ("'person'", "(125,)", "(124,)")),
    "broken persons": (replaced("person", np.zeros(125, "f4")), ("'person'", "integers", "float32")),
    "no labels": (renamed("emotion", "mood"), ("'emotion' (posed) or 'au' (spontaneous)", "neither")),
    "no names": (no_attribute("emotions"), ("an attribute 'emotions'", "got none")),
    "no lids": (no_attribute("lower_lid_negative_x"), ("an attribute 'lower_lid_negative_x'", "got none")),
}


@pytest.mark.parametrize("change, words", FILES.values(), ids=FILES)
def test_wrong_landmarks(change, words, folder, capsys):
    posed_file(folder / "bad.h5", change=change)
    refused(options("bad.h5", "run"), folder, capsys, "bad.h5: expected ", *words)


def test_too_few_persons(folder, capsys):
    """Nobody would be left to validate or test on."""
    posed_file(folder / "bad.h5", persons=2)
    refused(options("bad.h5", "run"), folder, capsys, "at least 3 persons", "got 2")


def test_missing_file(folder, capsys):
    refused(options("nowhere.h5", "run"), folder, capsys, "nowhere.h5", "an existing file or folder", "got none")


def test_empty_folder(folder, capsys):
    (folder / "faces").mkdir()
    refused(options("faces", "run"), folder, capsys, "faces: ", "BU-3DFE", "BP4D", "OpenFace")


@pytest.mark.parametrize("name, text", [("faces.h5", b""), ("faces.h5", b"not HDF5"), ("faces.csv", b""),
                                        ("faces.csv", b"a,b\n1,2\n"), ("faces.txt", b"x"), ("faces", b"x")])
def test_foreign_file(name, text, folder, capsys):
    (folder / name).write_bytes(text)
    refused(options(name, "run"), folder, capsys, f"{name}: expected ")


def test_truncated_file(good, folder, capsys):
    (folder / "half.h5").write_bytes(good.read_bytes()[:20_000])
    refused(options("half.h5", "run"), folder, capsys, "half.h5: expected a readable HDF5 file")


# -- triplets ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_triplets(good):
    return triplet_files.artificial_splits(load_faces(str(good)))


def spoilt(group, name, place, value):
    def change(file):
        file[group][name][place] = value
    return change


TRIPLETS = {
    "beyond": (spoilt("train", "rows", (4, 1), 125), ("rows from 0 to 124", "train triplet 4", "row 125")),
    "negative": (spoilt("validation", "rows", (0, 0), -1), ("rows from 0 to 124", "validation triplet 0", "row -1")),
    "another split": (spoilt("test", "rows", (2, 2), 0), ("rows of the test part", "test triplet 2", "row 0")),
    "NaN weight": (spoilt("train", "weight", 3, np.nan), ("weight of train triplet 3", "nan")),
    "no group": (lambda file: file.__delitem__("validation"), ("validation/rows", "got none")),
    "no weights": (lambda file: file.__delitem__("train/weight"), ("train/weight", "got none")),
    "pairs": (replaced("train/rows", np.zeros((9, 2), "i4")), ("train/rows", "(9, 2)")),
}


@pytest.mark.parametrize("change, words", TRIPLETS.values(), ids=TRIPLETS)
def test_wrong_triplets(change, words, good, good_triplets, folder, capsys):
    triplet_files.write(folder / "triplets.h5", good_triplets)
    with h5py.File(folder / "triplets.h5", "r+") as file:
        change(file)
    refused([*options(good, "run"), "--triplets", "triplets.h5"], folder, capsys, "triplets.h5: expected ", *words)


def test_missing_triplets(good, folder, capsys):
    refused([*options(good, "run"), "--triplets", "none.h5"], folder, capsys, "none.h5: expected ", "got none")


def test_triplets_that_are_landmarks(good, folder, capsys):
    refused([*options(good, "run"), "--triplets", good], folder, capsys, "faces.h5: expected ", "train/rows")


# -- presets and settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, nearest", [("posed-m3-kl-77", "posed-m3-kl-7"), ("spontanous-m2-1", "spontaneous-m2-1"),
                                           ("posed_m1_4", "posed-m1-4")])
def test_unknown_preset(name, nearest, good, folder, capsys):
    refused(["--preset", name, "--data", good], folder, capsys, "--preset", f"'{name}' (nearest: {nearest})")


def test_preset_that_is_like_nothing(folder, capsys):
    assert "nearest" not in refused(["--preset", "\t%"], folder, capsys, "--preset", "--list-presets")


@pytest.mark.parametrize("model, preset", [("vae1", "posed-m3-kl-7"), ("vae3", "posed-m2-3")])
def test_preset_of_another_model(model, preset, good, folder, capsys):
    refused(["--model", model, "--preset", preset, "--data", good], folder, capsys, "--preset", model, f"'{preset}'")


def test_preset_for_another_kind_of_data(good, folder, capsys):
    refused(["--preset", "spontaneous-m2-1", "--data", good], folder, capsys,
            "--preset", "a preset for posed data", "'spontaneous-m2-1' for spontaneous data")


def test_nothing_to_train(folder, capsys):
    refused([], folder, capsys, "--model", "vae1, vae2, vae3", "cnn4", "got none")


@pytest.mark.parametrize("assignment, words", [
    ("learning_rat=1", ("'learning_rat' (nearest: learning_rate)",)),
    ("checkpoint=5", ("'checkpoint' (nearest: checkpoint_every)",)),
    ("batch_size", ("key=value", "'batch_size'")),
    ("=3", ("a known setting", "''")),
    ("batch_size=many", ("--set batch_size", "a whole number of at least 1", "'many'")),
    ("batch_size=2.5", ("--set batch_size", "2.5")),
    ("batch_size=0", ("--set batch_size", "at least 1", "got 0")),
    ("batch_size=True", ("--set batch_size", "True")),
    ("samples=-3", ("--set samples", "-3")),
    ("triplet_samples=", ("--set triplet_samples", "''")),
    ("learning_rate=fast", ("--set learning_rate", "above 0", "'fast'")),
    ("learning_rate=0", ("--set learning_rate", "above 0", "0.0")),
    ("learning_rate=-1e-4", ("--set learning_rate", "-0.0001")),
    ("learning_rate=1e999", ("--set learning_rate", "finite", "inf")),
    ("learning_rate=nan", ("--set learning_rate", "'nan'")),
    ("learning_rate=[1]", ("--set learning_rate", "[1]")),
    ("reconstruction_variance=None", ("--set reconstruction_variance", "None")),
    ("topological_variance=1e999", ("--set topological_variance", "inf")),
    ("keep_prob=0", ("--set keep_prob", "at most 1", "0.0")),
    ("keep_prob=1.5", ("--set keep_prob", "at most 1", "1.5")),
    ("anneal=-1", ("--set anneal", "0 for none", "-1")),
    ("anneal={[]:1}", ("--set anneal", "{[]:1}")),
    ("anneal_mode=both", ("--set anneal_mode", "'kl' or 'prior'", "'both'")),
    ("iterations=0", ("--set iterations", "at least 1", "got 0")),
    ("checkpoint_every=0", ("--set checkpoint_every", "at least 1", "got 0")),
    ("encoder=498", ("--set encoder", "a list of sizes", "498")),
    ("encoder=[]", ("--set encoder", "a list of sizes", "[]")),
    ("decoder=[]", ("--set decoder", "a list of sizes", "[]")),
    ("encoder=[498,0,4]", ("--set encoder", "[498, 0, 4]")),
    ("encoder=[498,12.5,4]", ("--set encoder", "[498, 12.5, 4]")),
    ("encoder=[498,True,4]", ("--set encoder", "[498, True, 4]")),
    ("encoder=[498,'a',4]", ("--set encoder", "[498, 'a', 4]")),
])
def test_wrong_settings(assignment, words, good, folder, capsys):
    refused([*options(good, "run"), "--set", assignment], folder, capsys, "--set", *words)


@pytest.mark.parametrize("assignment, words", [
    ("encoder=[249,12,4]", ("encoder", "[498, hidden sizes, K]", "[249, 12, 4]")),
    ("encoder=[498,4]", ("encoder", "[498, hidden sizes, K]", "[498, 4]")),
    ("encoder=[498]", ("encoder", "[498]")),
    ("encoder=[498,12,5]", ("decoder", "[254, hidden sizes, 249]", "[253, 10, 12, 249]")),
    ("decoder=[253,10,204]", ("decoder", "249 numbers", "204")),
    ("decoder=[4,10,249]", ("decoder", "[253, hidden sizes, 249]", "[4, 10, 249]")),
    ("decoder=[249]", ("decoder", "[249]")),
])
def test_sizes_that_do_not_fit(assignment, words, good, folder, capsys):
    refused([*options(good, "run"), "--set", assignment], folder, capsys, *words)


def test_sizes_that_do_not_fit_the_datas_points(folder, capsys):
    """68 points: 204 numbers; the sizes were given for 249."""
    posed_file(folder / "faces.h5", points=68)
    refused(options("faces.h5", "run"), folder, capsys, "decoder", "204", "249")


# -- other options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option, words", [
    ("--iterations 0", ("--iterations", "at least 1", "got 0")), ("--iterations -5", ("--iterations", "-5")),
    ("--seed -1", ("--seed", "0 to 2^64 - 1", "-1")), (f"--seed {2 ** 64}", ("--seed", str(2 ** 64)))])
def test_numbers_out_of_range(option, words, good, folder, capsys):
    refused([*options(good, "run"), *option.split()], folder, capsys, *words)


@pytest.mark.skipif(_cuda_problem() is None, reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["train", "summary", "resume", "evaluate"])
def test_cuda_where_there_is_none(command, good, folder, capsys):
    begun = make_run(good, folder / "begun").path
    arguments, main = {"train": (options(good, "run"), train.main),
                       "summary": ([*options(good, "run"), "--summary"], train.main),
                       "resume": (["--resume", begun], train.main), "evaluate": ([begun], evaluate.main)}[command]
    refused([*arguments, "--device", "cuda"], folder, capsys, "device 'cuda'", "an NVIDIA GPU", command=main)


@pytest.mark.parametrize("option", ["--device tpu", "--dtype float16", "--model vae4", "--iterations many", "--seed x",
                                    "--sett a=1", "--model", "faces.h5"])
def test_argparse_refuses(option, folder, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(option.split())
    assert caught.value.code == 2
    assert option.split()[-1].lstrip("-") in capsys.readouterr().err
    assert not list(folder.iterdir())


# -- run folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "last.h5", "best.h5"])
def test_a_folder_that_holds_a_run(file, good, folder, capsys):
    (folder / "run").mkdir()
    (folder / "run" / file).write_text("a run's")
    refused(options(good, "run"), folder, capsys, "run: expected a folder without a run", "--resume run", file)


def test_the_run_folder_is_a_file(good, folder, capsys):
    (folder / "run").write_text("notes")
    refused(options(good, "run"), folder, capsys, "run: expected a folder", "a file")


@pytest.mark.parametrize("out", ["notes/run", "notes/a/b"])
def test_a_run_folder_below_a_file(out, good, folder, capsys):
    (folder / "notes").write_text("notes")
    refused(options(good, out), folder, capsys, f"{out}: expected a folder that can be made")


def test_a_folder_that_cannot_be_written(good, folder, capsys, monkeypatch):
    """The administrator may write anywhere, so the refusal is made here."""
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    refused(options(good, "run"), folder, capsys, "run: expected a folder that can be made, got Permission denied")


def test_no_run_to_resume(good, folder, capsys):
    (folder / "empty").mkdir()
    for name in ("nowhere", "empty"):
        refused(["--resume", name], folder, capsys, f"{name}: expected a run folder with a config.json, got none")


def test_resume_whose_data_are_gone(good, folder, capsys):
    shutil.copy(good, folder / "faces.h5")
    make_run(folder / "faces.h5", folder / "run")
    (folder / "faces.h5").rename(folder / "elsewhere.h5")
    refused(["--resume", "run"], folder, capsys, folder / "faces.h5", "an existing file", "got none")


def test_evaluate(good, folder, capsys):
    """A folder that is none, one without a run, and a run without a checkpoint."""
    (folder / "empty").mkdir()
    make_run(good, folder / "begun")
    for name in ("nowhere", "empty"):
        refused([name], folder, capsys, f"{name}: expected a run folder", command=evaluate.main)
    refused(["begun", "--device", "reference"], folder, capsys, "begun/best.h5: expected a checkpoint of nnlite",
            "got none", command=evaluate.main)


def test_sizes_used_here_are_known_to_fit(good, folder):
    """The refusals above come from what they name: without it the same options train."""
    for model in SIZES:
        assert train.resolve(train.parser().parse_args(options(good, folder / model, model)))
