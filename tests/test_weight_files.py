"""Weight files without PyTorch: hostile, lying and damaged ones, what is exported and what that tells of a training."""

import importlib.util
import itertools
import json
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from nnlite import export, train, weights
from nnlite.errors import NnliteError
from nnlite.models import MODELS
from nnlite.ops import get_ops
from small_runs import begun, image_file, label_options
from small_weights import archive, everything, refused, same, state_file, state_pickle, tensor, tiny

needs_safetensors = pytest.mark.skipif(importlib.util.find_spec("safetensors") is None,
                                       reason="safetensors, of the extra weights, is missing")


def arrays():
    """The state dict of a tiny()."""
    chance = np.random.default_rng(3)
    shapes = {"1.weight": (3, 4), "1.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)}
    return {name: chance.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def holds(model, state):
    found = everything(model)
    return all(np.array_equal(found[f"{i}.{ours}"].T, state[f"{i}.{theirs}"])
               for i in (1, 2) for ours, theirs in (("W", "weight"), ("b", "bias")))


# -- pickles -----------------------------------------------------------------------------------------------------------


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("function, words", [(os.system, "asks for '(posix|nt).system'"),
                                             (eval, r"asks for '(__builtin__|builtins)\.eval'"),
                                             (getattr, r"asks for '(__builtin__|builtins)\.getattr'")])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(function, words, protocol, tmp_path):
    target = tmp_path / "ran"
    command = f"open({str(target)!r}, 'w')" if function is eval else f"touch {target}"
    arguments = (command, "strip") if function is getattr else (command,)
    path = archive(tmp_path / "net.pth", pickle.dumps({"1.weight": Calls(function, *arguments)}, protocol))
    refused(path, words if protocol else "a pickle with DICT")   # the instructions of protocol 0 are not needed either
    assert not target.exists()


def nested(depth):
    """The instructions for ((((),),),): a tuple in a tuple in a tuple."""
    return b")" + b"\x85" * depth


ORDERED = b"ccollections\nOrderedDict\n"
HOSTILE = {   # pickles by hand
    "an object": (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "NEWOBJ"),
    "a registered class": (b"\x80\x02\x82\x01.", "EXT1"),
    "an old object": (b"\x80\x02(ios\nsystem\n.", "INST"),
    "a place far away": (b"\x80\x02}r\xff\xff\xff\xff.", "an empty one"),
    "a long string": (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "BINUNICODE8"),
    "no instruction": (b"\x80\x02}\xff.", "damaged"),
    "a class changed": (b"\x80\x02" + ORDERED + b"}X\x05\x00\x00\x00itemsK\x01sb.", "a state dict, got a _OrderedDict"),
    "a stand-in changed": (b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x08\x00\x00\x00__call__K\x01s\x86b.",
                           "a state dict, got a _RebuildParameter"),
    "a storage called": (b"\x80\x02ctorch\nFloatStorage\n)R.", "damaged"),
    "a name of two lines": (b"\x80\x04X\x03\x00\x00\x00a\nbX\x01\x00\x00\x00c\x93.", r"asks for 'a\\nb\.c'"),
    "not a dict": (b"\x80\x02K\x05.", "a state dict, got a int"),
    "nothing": (b"\x80\x02}.", "an empty one"),
    "a number": (b"\x80\x02}X\x01\x00\x00\x00aK\x05s.", "'a', a int"),
    "a number for a name": (b"\x80\x02}K\x01K\x05s.", "a int for a name"),
    "no pair": (b"\x80\x02}(X\x01\x00\x00\x00au.", "damaged"),
    "cut": (b"\x80\x02}X\x01\x00\x00\x00a", "ends too early"),
    # To compute the hash of a nested tuple takes a call in C for each level, and no Python notices how many.
    "a deep key": (b"\x80\x02}" + nested(200_000) + b"K\x01s.", "other keys than"),
    "a less deep key": (b"\x80\x02}" + nested(3000) + b"K\x01s.", "other keys than"),
    "a deep key among others": (b"\x80\x02}(K\x01K\x02" + nested(200_000) + b"K\x01u.", "other keys than"),
    "a deep key of an OrderedDict": (b"\x80\x02" + ORDERED + b")R" + nested(200_000) + b"K\x01s.", "other keys than"),
    "an OrderedDict of deep pairs": (b"\x80\x02" + ORDERED + b"]" + nested(200_000) + b"K\x01\x86a\x85R.", "damaged"),
    "a deep value": (b"\x80\x02}X\x01\x00\x00\x00a" + nested(200_000) + b"s.", "'a', a tuple"),
    "a deep class": (b"\x80\x04" + nested(200_000) + b"K\x01\x93.", "damaged"),
    "a deep storage": (b"\x80\x02(" + nested(200_000) + b"K\x01K\x02K\x03K\x04tQ.", "damaged"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_pickles_by_hand(what, tmp_path):
    pickled, words = HOSTILE[what]
    refused(archive(tmp_path / "net.pth", pickled), words)


@pytest.mark.parametrize("wrong, words", [
    ({"offset": 1}, "ends behind its 12 numbers"), ({"stride": (5, 1)}, "ends behind"), ({"offset": -1}, "damaged"),
    ({"stride": (-4, 1)}, "damaged"), ({"size": (3,)}, "damaged"), ({"count": 2 ** 60}, "entry 'net/data/0' of"),
    ({"count": 2 ** 63}, "damaged"), ({"size": (1,) * 65, "stride": (0,) * 65}, "damaged"),
    ({"key": "7"}, "entry 'net/data/7' of 12 numbers, got none"), ({"key": "../data.pkl"}, "got none"),
    ({"storage": "QInt8Storage"}, "asks for 'torch.QInt8Storage'"), ({"storage": "load"}, "asks for 'torch.load'"),
    ({"size": (2 ** 40, 2 ** 40), "stride": (0, 0)}, r"'1\.weight' \(3, 4\), got \(1099511627776"),
    ({"storage": "DoubleStorage"}, "of 96 bytes, got 48")])
def test_tensors_that_lie(wrong, words, tmp_path):
    refused(one_matrix_file(tmp_path / "net.pth", bytes(48), **wrong), words, make=one_matrix)


def one_matrix():
    return MODELS["mlp"](shape=(2, 2, 1), hidden=(), classes=3).build(get_ops("reference"))


def one_matrix_file(path, numbers, **weight):
    """For one_matrix(): these bytes, described as `weight` says, and a good bias in half precision."""
    pickled = state_pickle({"1.weight": tensor(**weight), "1.bias": tensor(6, 0, (3,), (1,), "b", "HalfStorage")})
    return archive(path, pickled, [("data/0", numbers), ("data/b", bytes(12))])


def test_a_tensor_that_does_not_lie(tmp_path):
    model, numbers = one_matrix(), np.arange(12, dtype=np.float32)
    weights.load(one_matrix_file(tmp_path / "net.pth", numbers.tobytes()), model, "mlp")
    assert np.array_equal(everything(model)["1.W"], numbers.reshape(3, 4).T)


# -- archives ----------------------------------------------------------------------------------------------------------


def test_archives_of_other_kinds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("word/document.xml", "<w/>")
    refused(tmp_path / "a.pth", "another zip archive, with 'word/document.xml'")
    with zipfile.ZipFile(state_file(tmp_path / "good.pth", arrays())) as good:
        entries = {info.filename.partition("/")[2]: good.read(info) for info in good.infolist()}
    pickled = entries.pop("data.pkl")
    for name, change, words in (("big", {"byteorder": b"big"}, "byte order"),
                                ("script", {"constants.pkl": b""}, "TorchScript"),
                                ("short", {"data/0": entries["data/0"][:-4]}, "of 48 bytes, got 44")):
        refused(archive(tmp_path / f"{name}.pth", pickled, {**entries, **change}.items()), words)
    refused(archive(tmp_path / "packed.pth", pickled, entries.items(), kind=zipfile.ZIP_DEFLATED), "not compressed")
    for name, content, words in (("empty", b"", "an empty file"), ("text", b"hello, weights", "another kind"),
                                 ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, words)
    refused(tmp_path / "none.pth", "got none")
    refused(tmp_path, "got a folder")


# -- safetensors -------------------------------------------------------------------------------------------------------


def lying(header, content=bytes(92), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


HEADER = {"1.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
          "1.bias": {"dtype": "F32", "shape": [3], "data_offsets": [48, 60]},
          "2.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [60, 84]},
          "2.bias": {"dtype": "F32", "shape": [2], "data_offsets": [84, 92]}}


@needs_safetensors
@pytest.mark.parametrize("what, content", {
    "truncated": lying(HEADER)[:-1], "too long": lying(HEADER) + b"1", "only a length": lying(HEADER)[:8],
    "a header cut": lying(HEADER)[:40], "a length beyond the file": lying(HEADER, length=10 ** 9),
    "a length beyond all": lying(HEADER, length=2 ** 63), "no JSON": lying(b"{'1': " + b" " * 200),
    "behind the end": lying({**HEADER, "2.bias": {"dtype": "F32", "shape": [2], "data_offsets": [84, 1092]}}),
    "over another": lying({**HEADER, "2.bias": {"dtype": "F32", "shape": [2], "data_offsets": [80, 88]}}),
    "shape and bytes": lying({**HEADER, "2.bias": {"dtype": "F32", "shape": [200], "data_offsets": [84, 92]}}),
    "negative": lying({**HEADER, "2.bias": {"dtype": "F32", "shape": [-2], "data_offsets": [84, 92]}}),
    "no shape": lying({**HEADER, "2.bias": {"dtype": "F32", "data_offsets": [84, 92]}}),
    # These two pass in the package safetensors.
    "an entry that is a list": lying({**HEADER, "2.bias": ["F32", [2], [84, 92]]}),
    "a dtype that is no text": lying({**HEADER, "2.bias": {"dtype": {"F32": None}, "shape": [2],
                                                           "data_offsets": [84, 92]}}),
}.items())
def test_safetensors_that_lie(what, content, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(content)
    refused(tmp_path / "net.safetensors", "a whole safetensors file, got a (truncated or )?damaged one")


@needs_safetensors
@pytest.mark.parametrize("more", [{}, {"comment": "more than is needed"}, {"path": "x", "begin": 3, "name": "y"}])
def test_safetensors_by_hand(more, tmp_path):
    """The header of the test above, when it does not lie; what else an entry has does not matter."""
    model, header = tiny(), {**HEADER, "2.bias": {**HEADER["2.bias"], **more}}
    (tmp_path / "net.safetensors").write_bytes(lying(header, np.arange(23, dtype=np.float32).tobytes()))
    weights.load(tmp_path / "net.safetensors", model, "mlp")
    found = everything(model)
    assert np.array_equal(found["1.W"], np.arange(12).reshape(3, 4).T) and np.array_equal(found["2.b"], [21, 22])


@pytest.mark.parametrize("ending", ["pth", pytest.param("safetensors", marks=needs_safetensors)])
def test_damaged_files_give_a_sentence_or_load(ending, tmp_path):
    """Whatever byte is another, and wherever the file ends."""
    state, path = arrays(), tmp_path / f"net.{ending}"
    if ending == "pth":
        state_file(path, state)
    else:
        path.write_bytes(lying(HEADER, b"".join(array.tobytes() for array in state.values())))
    model = tiny()
    weights.load(path, model, "mlp")
    assert holds(model, state)
    whole, chance = path.read_bytes(), np.random.default_rng(4)
    for place in itertools.chain(range(0, len(whole), 7), (-n for n in range(1, 60))):
        cut = place % 2
        changed = whole[:place] if cut else whole[:place] + bytes([whole[place] ^ 1 << chance.integers(8)]) + (
            whole[place:][1:])
        path.write_bytes(changed)
        model = tiny()
        before = everything(model)
        try:
            weights.load(path, model, "mlp")
            assert not cut
        except NnliteError as error:
            assert "\n" not in str(error) and same(before, everything(model))


@needs_safetensors
def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    weights.save(path, tiny(), "mlp")
    before = path.read_bytes()

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    with pytest.raises(NnliteError, match="can be written, got No space left"):
        weights.save(path, tiny(), "mlp")
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_without_the_package(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    path.write_bytes(lying(HEADER))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    refused(path, r'got none: pip install -e "\.\[weights\]" brings it')
    with pytest.raises(NnliteError, match="package safetensors to write it with"):
        weights.save(path, tiny(), "mlp")
    model, state = tiny(), arrays()
    weights.load(state_file(tmp_path / "net.pth", state), model, "mlp")   # which needs no package
    assert holds(model, state)


# -- the command -------------------------------------------------------------------------------------------------------


def trained(folder, **settings):
    """A Run whose best parameters are not those that it began with."""
    data = folder / "data.h5"
    run = begun(label_options(data if data.exists() else image_file(data), folder / "run", iterations=4, **settings),
                folder / "run")
    run.model.parameters.values[...] += 0.125
    run.save_best(iteration=3, validation_accuracy=0.5)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run):
    """The file of `run`, beside its folder."""
    pytest.importorskip("safetensors", reason="safetensors, of the extra weights, is missing")
    path = run.path.parent / "net.safetensors"
    assert export.main([str(run.path), str(path)]) == 0
    return path


def told_by(path):
    from safetensors import safe_open
    with safe_open(path, "numpy") as file:
        return file.metadata()


def test_export_writes_the_best_parameters(run, exported, tmp_path, capsys):
    from safetensors.numpy import load_file
    path, told = tmp_path / "net.safetensors", told_by(exported)
    assert np.array_equal(load_file(exported)["0.weight"], everything(run.model)["0.W"].transpose(3, 2, 0, 1))
    assert told["model"] == "cnn4" and json.loads(told["classes"]) == ["round", "square", "cross"]
    assert json.loads(told["shape"]) == [8, 8, 1] and json.loads(told["normalise"]) == "standard"
    pixels = run.experiment.data.images[run.experiment.data.split["train"]] / 255
    assert json.loads(told["pixel_mean"]) == pytest.approx([pixels.mean()])
    assert json.loads(told["pixel_std"]) == pytest.approx([pixels.std()])
    assert export.main([str(run.path), str(path)]) == 0
    assert "cnn4 of iteration 3" in capsys.readouterr().out
    before = path.read_bytes()
    assert export.main([str(run.path), str(path)]) == 2
    assert "expected a name that is free, or --force, got a file" in capsys.readouterr().err
    assert path.read_bytes() == before and export.main([str(run.path), str(path), "--force"]) == 0


@pytest.mark.parametrize("arguments, words", [
    (["RUN", "OUT/net.pth"], "ends in .safetensors"), (["OUT", "OUT/net.safetensors"], "run folder"),
    pytest.param(["RUN", "OUT/no/net.safetensors"], "can be written", marks=needs_safetensors)])
def test_export_refuses(arguments, words, run, tmp_path, capsys):
    arguments = [text.replace("RUN", str(run.path)).replace("OUT", str(tmp_path)) for text in arguments]
    assert export.main(arguments) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


@needs_safetensors
@pytest.mark.parametrize("settings, C", [
    ({"normalise": "half"}, 1), ({"normalise": "imagenet", "channels": 3}, 3), ({"channels": 3}, 3),
    ({"normalise": "centred", "channels": 3, "size": [10, 12]}, 3), ({"normalise": "raw"}, 1)])
def test_what_export_tells_makes_the_input_of_the_net(settings, C, tmp_path):
    """Pixels by the formulas of the export's docstring, against what the experiment makes of them."""
    run = trained(tmp_path, **settings)
    assert export.main([str(run.path), str(tmp_path / "net.safetensors")]) == 0
    told = {name: json.loads(value) for name, value in told_by(tmp_path / "net.safetensors").items()
            if name.startswith(("pixel", "norm", "shape"))}
    grey = np.arange(0, 250, 50, dtype=np.uint8)
    found = run.experiment.normalise(np.broadcast_to(grey[:, None, None, None], (5, 8, 8, 1)).copy())
    assert told["shape"] == list(found.shape[1:]) and told["shape"][2] == C
    wanted, kind = np.repeat(grey[:, None].astype(float), C, 1), told["normalise"]
    assert [told["pixel_mean"] is None, told["pixel_std"] is None] == [kind == "raw", kind in ("raw", "centred")]
    for name in ("pixel_mean", "pixel_std"):
        assert told[name] is None or len(told[name]) == C
    if kind != "raw":
        wanted = wanted - 255 * np.array(told["pixel_mean"])
    if kind not in ("raw", "centred"):
        wanted = wanted / (255 * np.array(told["pixel_std"]))
    np.testing.assert_allclose(found, np.broadcast_to(wanted[:, None, None], found.shape), rtol=1e-5, atol=1e-5)


# -- what the metadata tell of the training ----------------------------------------------------------------------------


def begin_with(file, data, folder, **settings):
    """The lines of a run that begins with this file, of which one is written without an iteration."""
    words = [*label_options(data, folder / "run", iterations=1, **settings), "--weights", file]
    run = begun(words, folder / "run")
    run.experiment.restart()
    return run.experiment.told


def test_the_same_training(exported, run, tmp_path):
    told = begin_with(exported, run.path.parent / "data.h5", tmp_path)
    assert not [line for line in told if "pixel" in line or "normalise" in line]


@pytest.mark.parametrize("classes", [("square", "round", "cross"), ("round", "square", "star")])
def test_other_classes_than_those_of_the_file(classes, exported, tmp_path, capsys):
    words = label_options(image_file(tmp_path / "data.h5", classes=classes), tmp_path / "run", iterations=1)
    assert train.main([*words, "--weights", str(exported)]) == 2
    told = capsys.readouterr().err
    assert ", ".join(map(repr, classes)) + ", got 'round', 'square', 'cross'" in told and str(exported) in told
    assert not (tmp_path / "run").exists()


def test_another_number_of_classes_begins_a_new_head(exported, tmp_path):
    data = image_file(tmp_path / "data.h5", classes=("square", "round", "cross", "star"))
    told = begin_with(exported, data, tmp_path)
    assert any("newly initialised" in line for line in told)


def test_other_pixels_than_those_of_the_file(exported, run, tmp_path):
    lines = begin_with(exported, run.path.parent / "data.h5", tmp_path, normalise="half")
    mean, std = (run.config[name][0] for name in ("pixel_mean", "pixel_std"))
    assert "weights: normalise: 'standard' where these weights were trained, here 'half'" in lines
    assert f"weights: pixel_mean: {mean:.4f} where these weights were trained, here 0.5000" in lines
    assert f"weights: pixel_std: {std:.4f} where these weights were trained, here 0.5000" in lines


def test_other_images_than_those_of_the_file(exported, tmp_path):
    lines = begin_with(exported, image_file(tmp_path / "data.h5", seed=5), tmp_path)
    assert [line.split(": ")[1] for line in lines if "were trained" in line] == ["pixel_mean", "pixel_std"]


@needs_safetensors
@pytest.mark.parametrize("text", ["", "no JSON", "7", '"a\\nb"', "[1, 2]", '{"a": 1}', "[" * 100_000, "9" * 5000,
                                  "[" + "9" * 5000 + "]"])
def test_metadata_of_others(text, tmp_path):
    """Which mean something else by these names, or nothing."""
    path = tmp_path / "net.safetensors"
    weights.save(path, tiny(), "mlp", dict.fromkeys(("classes", "pixel_mean", "normalise"), text))
    report = weights.load(path, tiny(), "mlp", classes=("a", "b"),
                          pixels={"normalise": "half", "pixel_mean": [0.5], "pixel_std": None})
    assert all("\n" not in line for line in report.lines())
