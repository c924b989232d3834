"""CIFAR-10's python batches: the published dialect, files that ask for more than data, and every bad input."""

import copyreg
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from nnlite.data import cifar10, images
from nnlite.errors import NnliteError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar-10-batches-py"
NAMES = [b"airplane", b"automobile", b"bird", b"cat"]


def dump(value):
    """A pickle as Python 2 wrote it, protocol 2, from its published instructions."""
    return b"\x80\x02" + _dump(value) + b"."


def _dump(value):
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_dump, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_dump, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(_dump(key) + _dump(item) for key, item in value.items()) + b"u"
    code = value.dtype.str[1:].encode()
    state = _dump((3, b"|", None, None, None, -1, -1, 0))
    dtype = b"cnumpy\ndtype\n" + _dump((code, 0, 1)) + b"R" + state + b"b"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _dump((0,)) + _dump(b"b") + b"tR"
    return array + b"(" + _dump(1) + _dump(value.shape) + dtype + _dump(False) + _dump(value.tobytes()) + b"tb"


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    return {b"data": rng.integers(0, 256, (n, 3072), np.uint8), b"labels": rng.integers(0, 4, n).tolist(),
            b"batch_label": b"training batch 1 of 5", b"filenames": [b"a.png"] * n}


META = {b"num_cases_per_batch": 10000, b"label_names": NAMES, b"num_vis": 3072}


def write(folder, sizes=(20, 13), test=9, dumps=dump):
    """Writes a folder of batches; returns what went into the data batches and the test batch."""
    folder.mkdir(exist_ok=True)
    content = {f"data_batch_{i}": batch(n, i) for i, n in enumerate(sizes, 1)}
    content["test_batch"] = batch(test, 99)
    for name, value in {**content, "batches.meta": META}.items():
        (folder / name).write_bytes(dumps(value))
    return list(content.values())


def check(got, batches):
    data = np.concatenate([part[b"data"] for part in batches])
    for i in (0, 7, len(data) - 1):
        for row, column, channel in ((0, 0, 0), (0, 31, 1), (31, 0, 2), (5, 17, 1)):
            assert got.images[i, row, column, channel] == data[i, 1024 * channel + 32 * row + column]
    assert got.images.shape == (len(data), 32, 32, 3) and got.images.dtype == np.uint8
    assert np.bincount(got.images.ravel(), minlength=256).tolist() == np.bincount(data.ravel(), minlength=256).tolist()
    assert got.labels.tolist() == sum((part[b"labels"] for part in batches), []) and got.labels.dtype == np.int32
    n = sum(len(part[b"labels"]) for part in batches[:-1])
    assert got.split["train"].tolist() == list(range(n)) and got.split["test"].tolist() == list(range(n, len(data)))
    assert got.classes == ("airplane", "automobile", "bird", "cat")


def test_the_writer_of_these_tests():
    loaded = pickle.loads(dump({b"a": np.arange(6, dtype=np.uint8).reshape(2, 3), b"b": [1, b"x", (2, None)]}),
                          encoding="bytes")
    assert loaded[b"a"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded[b"b"] == [1, b"x", (2, None)]


@pytest.mark.parametrize("sizes", [(20,), (20, 13), (8, 8, 8, 8, 8)])
def test_batches(sizes, tmp_path):
    batches = write(tmp_path / "batches", sizes)
    check(cifar10.read(tmp_path / "batches"), batches)


@pytest.mark.parametrize("protocol", [3, 4])
def test_batches_that_python_3_wrote_again(protocol, tmp_path):
    batches = write(tmp_path / "batches", dumps=lambda value: pickle.dumps(value, protocol))
    check(cifar10.read(tmp_path / "batches"), batches)


def test_read_holds_validation_out_of_training(tmp_path):
    write(tmp_path / "batches", (30, 30))
    whole = images.read(tmp_path / "batches", held_out=0.2, seed=1)
    assert {name: len(rows) for name, rows in whole.split.items()} == {"train": 48, "validation": 12, "test": 9}
    assert whole.split["test"].tolist() == list(range(60, 69)) and str(tmp_path) in whole.source


def test_published_batches():
    if not SHARED.exists():
        pytest.skip("shared/data/cifar-10-batches-py is not here")
    got = cifar10.read(SHARED)
    assert got.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert len(got.split["train"]) == 10000 and len(got.split["test"]) == 5000
    labels = []
    for name, start in (("data_batch_1", 0), ("test_batch", 10000)):
        content = pickle.loads((SHARED / name).read_bytes(), encoding="bytes")  # a file known to hold data alone
        labels += content[b"labels"]
        for i in (0, 1234, len(content[b"data"]) - 1):
            for c in range(3):
                plane = content[b"data"][i, 1024 * c:1024 * (c + 1)].reshape(32, 32)
                np.testing.assert_array_equal(got.images[start + i, :, :, c], plane)
    assert got.labels.tolist() == labels


# -- files that ask for more than data --------------------------------------------------------------------------------


class Reduced:
    """Pickled as the call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Plain:
    def __init__(self):
        self.value = 1


class Persistent(pickle.Pickler):
    def persistent_id(self, value):
        return "a secret" if value == "secret" else None


def persistent(protocol):
    file = io.BytesIO()
    Persistent(file, protocol).dump({"data": "secret"})
    return file.getvalue()


HOSTILE = {
    "os.system": (lambda mark, p: pickle.dumps(Reduced(os.system, f"touch {mark}"), p), r"system"),
    "builtins.eval": (lambda mark, p: pickle.dumps(Reduced(eval, f"open({str(mark)!r}, 'w')"), p), r"eval"),
    "in a list": (lambda mark, p: pickle.dumps({"data": [Reduced(os.system, f"touch {mark}")]}, p), "system"),
    "numpy.load": (lambda mark, p: pickle.dumps(Reduced(np.load, str(mark)), p), r"numpy.*load"),
    "numpy.fromfile": (lambda mark, p: pickle.dumps(Reduced(np.fromfile, str(mark)), p), r"fromfile"),
    "a class": (lambda mark, p: pickle.dumps({"data": Plain()}, p), "Plain|copy_?reg|_reconstructor"),
    "getattr": (lambda mark, p: pickle.dumps(Reduced(getattr, "x", "upper"), p), "getattr"),
    "persistent id": (lambda mark, p: persistent(p), "PERSID"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles(case, protocol, tmp_path):
    make, _ = HOSTILE[case]
    write(tmp_path / "batches")
    mark = tmp_path / "mark"
    for name in ("data_batch_2", "batches.meta"):
        (tmp_path / "batches" / name).write_bytes(make(mark, protocol))
        with pytest.raises(NnliteError, match=f"{name}: expected nothing but arrays, lists and byte strings, got a "
                                              f"pickle (that asks for|with) .*") as error:
            images.read(tmp_path / "batches")
        assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(tmp_path))
    assert not mark.exists()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_named(case, tmp_path):
    make, asked = HOSTILE[case]
    write(tmp_path / "batches")
    (tmp_path / "batches" / "test_batch").write_bytes(make(tmp_path / "mark", 2))
    with pytest.raises(NnliteError, match=f"test_batch: .*({asked})"):
        images.read(tmp_path / "batches")


RAW = {
    "INST": b"(S'touch x'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch x'\no.",
    "the name of a module alone": b"cos\nsystem\n.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.fill\x93.",
    "numpy.ndarray called for its size": b"\x80\x02cnumpy\nndarray\n" + _dump(((2 ** 30, 2 ** 10),)) + b"R.",
    "numpy.dtype of objects": b"\x80\x02cnumpy\ndtype\n" + _dump((b"O8", 0, 1)) + b"R.",
    "NEWOBJ": b"\x80\x02cnumpy\nndarray\n" + _dump(((2, 2),)) + b"\x81.",
    "a memo of 4 GiB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "attributes of a stand-in": b"\x80\x02cnumpy\ndtype\n" + _dump({b"__call__": 1}) + b"b.",
    "slots of a stand-in": b"\x80\x02cnumpy\ndtype\n(N" + b"}(X\x08\x00\x00\x00__call__K\x01utb.",
    "a long number": b"\x80\x02\x8a\x01\x05.",
    "an empty file": b"",
    "text": b"hello, I am no pickle",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "nothing on the stack": b"\x80\x02.",
    "a protocol of the future": b"\x80\x63}.",
    "no dict": dump([1, 2]),
    "a list as a key": b"\x80\x02}(]K\x01u.",
}


@pytest.mark.parametrize("case", RAW)
def test_raw_pickles(case, tmp_path):
    batches = write(tmp_path / "batches")
    path = tmp_path / "batches" / "data_batch_1"
    before = path.read_bytes()
    path.write_bytes(RAW[case])
    with pytest.raises(NnliteError, match="data_batch_1: expected ") as error:
        images.read(tmp_path / "batches")
    assert "\n" not in str(error.value)
    path.write_bytes(before)
    check(cifar10.read(tmp_path / "batches"), batches)  # nothing is left behind that changes the next file


def test_extension_codes_are_refused(tmp_path):
    """Registered ones, even in the unpickler's own memory of them."""
    write(tmp_path / "batches")
    copyreg.add_extension("builtins", "eval", 77)
    try:
        content = pickle.dumps(Reduced(eval, "1"), 2)
        assert pickle.loads(content) == 1
        (tmp_path / "batches" / "test_batch").write_bytes(content)
        with pytest.raises(NnliteError, match="test_batch: expected nothing but .* EXT1 77"):
            images.read(tmp_path / "batches")
    finally:
        copyreg.remove_extension("builtins", "eval", 77)


def test_room_for_remembered_values_is_bounded(tmp_path):
    write(tmp_path / "batches")
    (tmp_path / "batches" / "test_batch").write_bytes(RAW["a memo of 4 GiB"])
    with pytest.raises(NnliteError, match="test_batch: expected nothing but .* remembers value number 2147483647"):
        images.read(tmp_path / "batches")


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9, 0.999])
def test_truncated(share, tmp_path):
    write(tmp_path / "batches")
    path = tmp_path / "batches" / "test_batch"
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(NnliteError, match="test_batch: expected a whole pickle of a CIFAR-10 batch, got a damaged one"):
        images.read(tmp_path / "batches")


# -- wrong contents ---------------------------------------------------------------------------------------------------


def changed(**items):
    return {**batch(9), **{key.encode(): item for key, item in items.items()}}


WRONG = {
    "no data": ({b"labels": [1]}, r"an array 'data' \(n, 3072\) of bytes, got none"),
    "list as data": (changed(data=[1, 2]), "an array 'data' .* got list"),
    "flat data": (changed(data=np.zeros(3072, np.uint8)), r"an array 'data' .* got array \(3072,\)"),
    "other width": (changed(data=np.zeros((9, 3073), np.uint8)), r"got array \(9, 3073\)"),
    "no image": (changed(data=np.zeros((0, 3072), np.uint8), labels=[]), r"got array \(0, 3072\)"),
    "float data": (changed(data=np.zeros((9, 3072), np.float32)), "damaged one .*dtype f4"),
    "signed data": (changed(data=np.zeros((9, 3072), np.int8)), "damaged one .*dtype i1"),
    "no labels": ({b"data": np.zeros((9, 3072), np.uint8)}, "a list 'labels' of 9 numbers, got none"),
    "too few labels": (changed(labels=[1] * 8), "a list 'labels' of 9 numbers, got 8"),
    "byte string as label": (changed(labels=[1] * 8 + [b"2"]), "labels from 0 to 3, got bytes"),
    "truth as label": (changed(labels=[1] * 8 + [True]), "labels from 0 to 3, got bool"),
    "label 4": (changed(labels=[4] + [1] * 8), "labels from 0 to 3, got 4"),
    "label -1": (changed(labels=[-1] + [1] * 8), "labels from 0 to 3, got -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_contents(case, tmp_path):
    value, words = WRONG[case]
    write(tmp_path / "batches")
    (tmp_path / "batches" / "test_batch").write_bytes(dump(value))
    with pytest.raises(NnliteError, match=f"test_batch: expected .*{words}"):
        images.read(tmp_path / "batches")


def test_an_array_longer_or_shorter_than_its_bytes(tmp_path):
    write(tmp_path / "batches")
    path = tmp_path / "batches" / "test_batch"
    good = path.read_bytes()
    for n in (8, 10, 2 ** 30):
        path.write_bytes(good.replace(_dump((9, 3072)), _dump((n, 3072))))
        with pytest.raises(NnliteError, match=f"test_batch: .*an array \\({n}, 3072\\) in {9 * 3072} bytes"):
            images.read(tmp_path / "batches")
    path.write_bytes(good.replace(_dump((9, 3072)), _dump((-9, -3072))))
    with pytest.raises(NnliteError, match="test_batch: expected"):
        images.read(tmp_path / "batches")


@pytest.mark.parametrize("names", [None, [], [b"one"], b"airplane", [1, 2], [b"one", None]])
def test_wrong_class_names(names, tmp_path):
    write(tmp_path / "batches")
    (tmp_path / "batches" / "batches.meta").write_bytes(dump({b"label_names": names}))
    with pytest.raises(NnliteError, match="batches.meta: expected a list 'label_names' of at least two names"):
        images.read(tmp_path / "batches")


@pytest.mark.parametrize("removed, missing", [
    (["test_batch"], "test_batch"), (["batches.meta"], "batches.meta"), (["data_batch_2"], "data_batch_2"),
    (["data_batch_1"], "data_batch_1"), (["data_batch_1", "data_batch_2", "data_batch_3"], "data_batch_1"),
])
def test_missing_files(removed, missing, tmp_path):
    write(tmp_path / "batches", (5, 5, 5))
    for name in removed:
        (tmp_path / "batches" / name).unlink()
    with pytest.raises(NnliteError, match=f"batches: expected a file {missing}, got none"):
        images.read(tmp_path / "batches")
