"""Checkpoints: what comes back is what was saved, and a file that does not fit changes nothing."""

import os

import h5py
import numpy as np
import pytest

from nnlite import checkpoint
from nnlite.errors import NnliteError
from nnlite.layers import Dense, Layer, Linear, Sequential
from nnlite.optim import SGD, Adam
from small_runs import snapshot


class Counted(Layer):
    """Something with a state that is saved but not trained."""

    def __init__(self, features):
        super().__init__()
        self.add_state("mean", (features,), 0.5)


def model(ops, sizes=(5, 4, 3), seed=0, dtype="float32", state=2):
    layers = [Dense(a, b, keep_prob=1.0) for a, b in zip(sizes[:-2], sizes[1:-1])]
    return Sequential(*layers, Linear(*sizes[-2:]), Counted(state)).build(ops, seed=seed, dtype=dtype)


def host(model, optimiser=None):
    arrays = {"values": model.parameters.values, **model.state, **(optimiser.state() if optimiser else {})}
    return {name: model.ops.to_host(array).copy() for name, array in arrays.items()}


def trained(ops, **options):
    """A model and optimiser with numbers in all their arrays."""
    net = model(ops, **options)
    optimiser = Adam(net.parameters, lr=1e-3)
    numbers = np.random.default_rng(3)
    for array in [net.parameters.values, *net.state.values(), optimiser.m, optimiser.v]:
        ops.copy_into(array, numbers.random(array.shape).astype(net.dtype))
    optimiser.steps += 7
    return net, optimiser


def same(one, two):
    return one.keys() == two.keys() and all(one[k].dtype == two[k].dtype and np.array_equal(one[k], two[k])
                                            for k in one)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(ops, dtype, tmp_path):
    net, optimiser = trained(ops, dtype=dtype)
    checkpoint.save(tmp_path / "a.h5", net, optimiser, iteration=12, best=-3.25, note="words")
    other = model(ops, seed=9, dtype=dtype)
    moments = Adam(other.parameters, lr=1e-3)
    attributes = checkpoint.load(tmp_path / "a.h5", other, moments)
    assert same(host(net, optimiser), host(other, moments))
    assert attributes == {"iteration": 12, "best": -3.25, "note": "words"}
    assert other.layers[0].W[0, 0] == other.parameters.values[0]   # still views into the flat array


def test_without_the_optimiser(ops, tmp_path):
    """best.h5 has none; and a file with one serves whoever wants the parameters only."""
    net, optimiser = trained(ops)
    other = model(ops, seed=9)
    for given in (None, optimiser):
        checkpoint.save(tmp_path / "a.h5", net, given)
        assert checkpoint.load(tmp_path / "a.h5", other) == {}
        assert same(host(net), host(other))


def test_what_lies_in_the_file(tmp_path):
    """A reader of other software finds every parameter by name."""
    from nnlite.ops import get_ops
    net, optimiser = trained(get_ops("reference"))
    checkpoint.save(tmp_path / "a.h5", net, optimiser)
    with h5py.File(tmp_path / "a.h5") as file:
        flat, start = file["parameters"], 0
        assert list(flat.attrs["names"]) == ["0.W", "0.b", "1.W", "1.b"]
        for name, layer in (("0", net.layers[0]), ("1", net.layers[1])):
            for attribute in "Wb":
                array = getattr(layer, attribute)
                np.testing.assert_array_equal(flat[start:start + array.size].reshape(array.shape), array)
                start += array.size
        assert start == len(flat)
        assert sorted(file["optimiser"]) == ["m", "steps", "v"]


WRONG = {"a layer's size": (dict(sizes=(5, 6, 3)), r"parameter '0\.W' \(5, 6\), got '0\.W' \(5, 4\)"),
         "the last layer": (dict(sizes=(5, 4, 2)), r"parameter '1\.W' \(4, 2\), got '1\.W' \(4, 3\)"),
         "one layer more": (dict(sizes=(5, 4, 3, 2)), r"6 parameters, got 4"),
         "one layer less": (dict(sizes=(5, 4)), r"parameter '0\.W' \(5, 4\)|2 parameters, got 4"),
         "dtype": (dict(dtype="float64"), r"float64"),
         "state": (dict(state=3), r"\(3,\)")}


@pytest.mark.parametrize("options, words", WRONG.values(), ids=WRONG)
def test_another_models_file_is_refused(options, words, fast_ops, tmp_path):
    path = tmp_path / "a.h5"
    checkpoint.save(path, *trained(fast_ops))
    net, optimiser = trained(fast_ops, **options)
    before, files = host(net, optimiser), snapshot(tmp_path)
    with pytest.raises(NnliteError, match=f"^{path}: expected .*{words}"):
        checkpoint.load(path, net, optimiser)
    assert same(before, host(net, optimiser))
    assert snapshot(tmp_path) == files


def test_another_optimisers_file_is_refused(fast_ops, tmp_path):
    net, _ = trained(fast_ops)
    checkpoint.save(tmp_path / "a.h5", net, SGD(net.parameters, lr=0.1))
    other, optimiser = trained(fast_ops, seed=1)
    before = host(other, optimiser)
    with pytest.raises(NnliteError, match=f"^{tmp_path / 'a.h5'}: expected "):
        checkpoint.load(tmp_path / "a.h5", other, optimiser)
    assert same(before, host(other, optimiser))


def rewritten(change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)
    return damage


def truncated(length):
    def damage(path):
        data = path.read_bytes()
        path.write_bytes(data[:length] if length >= 0 else data[:len(data) + length])
    return damage


def no_parameters(file):
    del file["parameters"]


def group_for_parameters(file):
    del file["parameters"]
    file.create_group("parameters").attrs.update({"names": ["0.W"], "shapes": ["(5, 4)"]})


def shorter_parameters(file):
    """The right names, but numbers missing."""
    attributes = dict(file["parameters"].attrs)
    values = file["parameters"][:-1]
    del file["parameters"]
    file["parameters"] = values
    file["parameters"].attrs.update(attributes)


DAMAGES = {
    "gone": os.unlink, "empty": truncated(0), "100 bytes": truncated(100), "half": truncated(1500),
    "last byte missing": truncated(-1), "text": lambda path: path.write_text("{}"),
    "no format": rewritten(lambda file: file.attrs.__delitem__("format")),
    "other format": rewritten(lambda file: file.attrs.__setitem__("format", "nnlite checkpoint 99")),
    "format of numbers": rewritten(lambda file: file.attrs.__setitem__("format", [1, 2])),
    "no parameters": rewritten(no_parameters), "a group": rewritten(group_for_parameters),
    "no names": rewritten(lambda file: file["parameters"].attrs.__delitem__("names")),
    "a number for names": rewritten(lambda file: file["parameters"].attrs.__setitem__("names", 3)),
    "shorter": rewritten(shorter_parameters),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_changes_nothing(damage, tmp_path):
    from nnlite.ops import get_ops
    path = tmp_path / "a.h5"
    checkpoint.save(path, *trained(get_ops("reference")))
    damage(path)
    net, optimiser = trained(get_ops("reference"), seed=5)
    net.parameters.values += 1
    before, files = host(net, optimiser), snapshot(tmp_path)
    with pytest.raises(NnliteError) as caught:
        checkpoint.load(path, net, optimiser)
    assert str(caught.value).startswith(f"{path}: expected ") and "\n" not in str(caught.value)
    assert same(before, host(net, optimiser))
    assert snapshot(tmp_path) == files


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_saving_that_fails_keeps_the_old_file(call, tmp_path, monkeypatch):
    from nnlite.ops import get_ops
    path = tmp_path / "a.h5"
    net, optimiser = trained(get_ops("reference"))
    checkpoint.save(path, net, optimiser)
    before = snapshot(tmp_path)

    def fails(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, call, fails)
    net.parameters.values += 1
    with pytest.raises(NnliteError, match=f"^{path}: expected a place that can be written, got No space left"):
        checkpoint.save(path, net, optimiser)
    assert snapshot(tmp_path) == before


def test_an_exception_while_writing_keeps_the_old_file(tmp_path):
    from nnlite.ops import get_ops
    path = tmp_path / "a.h5"
    net, optimiser = trained(get_ops("reference"))
    checkpoint.save(path, net, optimiser)
    before = snapshot(tmp_path)
    with pytest.raises(TypeError):
        checkpoint.save(path, net, optimiser, note={"h5py": "has no attribute of this kind"})
    assert snapshot(tmp_path) == before


def test_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    from nnlite.ops import get_ops
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("renamed"), replace(a, b)))
    checkpoint.save(tmp_path / "a.h5", model(get_ops("reference")))
    assert calls == [(tmp_path / "a.h5").stat().st_ino, "renamed"]
