"""A loss that becomes NaN: the run stops, the layer is named, the last good checkpoint stays."""

import math

import numpy as np
import pytest

import small_runs
from nnlite import checkpoint, train
from nnlite.diagnose import first_not_finite
from nnlite.runs import open_run
from small_runs import contents, make_run, metrics, options, posed_file

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")   # NumPy's, about the very infinities made here


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return posed_file(tmp_path_factory.mktemp("data") / "faces.h5")


@pytest.fixture()
def run(data, tmp_path):
    return make_run(data, tmp_path / "run", iterations=12, validate_every=6, checkpoint_every=2, anneal=0)


def broken(run, name, where, value=math.inf, step=0):
    """From that step on the layer puts `value` into one element of its output ("y"), of the gradient of its input
    ("dx") or of a parameter ("dW", "db")."""
    layer = dict(run.model.walk())[name]
    kind = type(layer)

    def spoil(array):
        if int(layer.rng.step) >= step and layer.rng.step < 2 ** 60:   # not in the validation
            array.reshape(-1)[array.size // 2] = value

    class Broken(kind):
        def forward(self, *inputs, **named):
            y = super().forward(*inputs, **named)
            if where == "y":
                spoil(y)
            return y

        def backward(self, *inputs, **named):
            dx = super().backward(*inputs, **named)
            if where != "y":
                spoil(dx if where == "dx" else getattr(self, where))
            return dx

    Broken.__name__ = kind.__name__
    layer.__class__ = Broken
    return kind.__name__


WORDS = {"y": "the output", "dx": "the gradient of the input", "dW": "the gradient of W", "db": "the gradient of b"}
LAYERS = ["encoder.0", "encoder.1", "encoder.2", "sample", "sample_triplets", "first", "decoder.0", "decoder.1"]
PLACES = [(name, where) for name in LAYERS for where in WORDS
          if not (name.startswith("sample") and where in ("dW", "db")) and (name, where) != ("encoder.0", "dx")]


def test_the_list_of_layers_is_the_models(run):
    assert {name for name, layer in run.model.walk() if not layer.children()} >= set(LAYERS)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name, where", PLACES)
def test_finds_the_very_layer(name, where, value, run):
    kind = broken(run, name, where, value, step=2)
    finding = first_not_finite(run.experiment, range(0, 5))
    assert finding == f"{WORDS[where]} of {kind} '{name}' in iteration 3"


def test_nothing_where_all_is_finite_and_the_layers_are_as_before(run):
    steps = int(run.experiment.optimiser.steps)
    assert first_not_finite(run.experiment, range(0, 3)) is None
    assert int(run.experiment.optimiser.steps) == steps + 3
    for _, layer in run.model.walk():
        assert "forward" not in vars(layer) and "backward" not in vars(layer)


def test_watching_does_what_training_does(data, tmp_path):
    """The search repeats the very steps: otherwise it would look for another run's NaN."""
    one, two = (make_run(data, tmp_path / name, iterations=12) for name in ("one", "two"))
    for iteration in range(4):
        one.experiment.step(iteration)
    first_not_finite(two.experiment, range(0, 4))
    np.testing.assert_array_equal(one.model.parameters.values, two.model.parameters.values)


def test_a_loss_term_that_overflows(data, tmp_path):
    """All outputs finite in float32, the sum of squares over a tiny s^2 is not."""
    run = make_run(data, tmp_path / "run", reconstruction_variance=1e-300)
    run.experiment.model.reconstruction_variance = 5e-324
    finding = first_not_finite(run.experiment, range(0, 1))
    assert finding is not None and "in iteration 1" in finding


@pytest.mark.parametrize("where", ["y", "dW"])
@pytest.mark.parametrize("step, kept", [(1, None), (2, 2), (5, 4), (7, 6)])
def test_the_run_stops_and_keeps_the_last_good_checkpoint(step, kept, where, run, capsys):
    kind = broken(run, "decoder.0", where, step=step)
    assert train.train_and_evaluate(run) == 1
    captured = capsys.readouterr()
    sentence = captured.err.splitlines()[-1]
    last = run.path / "last.h5"
    where_kept = f"{last} keeps iteration {kept}" if kept else \
        "no checkpoint was due yet: the run began with iteration 0"
    assert sentence == (f"nnlite: {run.path}: expected a finite loss, got NaN or infinity; the first was "
                        f"{WORDS[where]} of {kind} 'decoder.0' in iteration {step + 1} ({where_kept})")
    assert "Traceback" not in captured.err
    assert last.exists() == bool(kept)
    if kept:
        other = open_run(run.path, "reference")
        assert checkpoint.load(last, other.model, other.experiment.optimiser)["iteration"] == kept
        assert np.isfinite(other.model.parameters.values).all()


@pytest.mark.parametrize("checkpoint_every", [1, 2, 3])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_parameters_that_are_not_finite_are_never_saved(step, checkpoint_every, data, tmp_path):
    """The gradient is infinite in a step whose loss is finite: the checkpoint due just then must not be written."""
    run = make_run(data, tmp_path / "run", iterations=12, validate_every=12, checkpoint_every=checkpoint_every)
    broken(run, "first", "dW", math.nan, step=step)
    with small_runs.quiet():
        assert train.train_and_evaluate(run) == 1
    other = open_run(run.path, "reference")
    progress = other.load_last()
    assert (progress["iteration"] if progress else 0) == step // checkpoint_every * checkpoint_every
    assert np.isfinite(other.model.parameters.values).all()


def test_a_validation_that_is_not_finite_is_not_kept_as_best(data, tmp_path, monkeypatch, capsys):
    run = make_run(data, tmp_path / "run", iterations=12, validate_every=4, checkpoint_every=4)
    validate = run.experiment.validate

    def now_and_then():
        values = validate()
        return values if int(run.experiment.optimiser.steps) < 8 else {**values, "validation_elbo": math.nan}
    monkeypatch.setattr(run.experiment, "validate", now_and_then)
    assert train.train_and_evaluate(run) == 1
    assert "expected a finite loss" in capsys.readouterr().err
    assert contents(run.path / "best.h5")["@iteration"] == contents(run.path / "last.h5")["@iteration"] == 4
    assert [line["iteration"] for line in metrics(run.path)] == [4]


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_huge_learning_rate(device, data, tmp_path, capsys):
    cadence = {"iterations": 20, "validate_every": 5, "checkpoint_every": 5}
    assert train.main(options(data, tmp_path / "run", device=device, learning_rate=1e30, **cadence)) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith(f"nnlite: {tmp_path / 'run'}: expected a finite loss, got NaN or infinity; ")
    assert any(f" of {kind} '" in sentence for kind in ("Dense", "Linear", "ConditionalDense", "GaussianSample"))
    assert "not found again" not in sentence and "in iteration 2 " in sentence
    assert not (tmp_path / "run" / "last.h5").exists()
    assert not list((tmp_path / "run").glob("*.part"))
