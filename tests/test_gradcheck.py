"""The tester tested: right layers pass, each wrong one is caught and its mistake named; the command."""

import inspect
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wrong_layers
from nnlite.errors import NnliteError
from nnlite.gradcheck import STEP, Draws, check_adjoint, check_layer, check_loss, check_model, main
from nnlite.layers import Dropout, Layer, Linear, ReLU, Sequential
from nnlite.layers import base
from nnlite.ops import get_ops


@pytest.mark.parametrize("cls", wrong_layers.RIGHT, ids=lambda cls: cls.__name__)
def test_right_layers_pass(cls):
    args, shape = wrong_layers.RIGHT[cls]
    for direction in (False, True):
        report = check_layer(cls(*args), shape, direction=direction)
        assert report.ok, str(report)


@pytest.mark.parametrize("cls", wrong_layers.WRONG, ids=lambda cls: cls.__name__)
def test_wrong_layers_are_caught_and_the_mistake_is_named(cls):
    args, shape, words = wrong_layers.WRONG[cls]
    report = check_layer(cls(*args), shape)
    assert not report.ok
    for word in words:
        assert word in str(report), str(report)


@pytest.mark.parametrize("cls", wrong_layers.WRONG, ids=lambda cls: cls.__name__)
def test_one_direction_catches_them_too(cls):
    args, shape, _ = wrong_layers.WRONG[cls]
    assert not check_layer(cls(*args), shape, direction=True).ok


def test_every_layer_of_wrong_layers_is_in_one_of_its_tables():
    classes = {value for value in vars(wrong_layers).values() if isinstance(value, type) and issubclass(value, Layer)}
    assert classes - {Layer} == set(wrong_layers.RIGHT) | set(wrong_layers.WRONG)


def test_only_the_wrong_array_is_blamed():
    report = check_layer(wrong_layers.Sign(4, 3), (5, 4))
    assert [finding.name for finding in report.findings if not finding.ok] == ["W"]
    wrong = report["W"]
    assert math.isclose(wrong.backward, -wrong.numeric, rel_tol=1e-6) and len(wrong.index) == 2


def test_a_loss_without_weights_would_miss_the_variance_path():
    """The reason for a random dy: sum(y) has no gradient through a normalising layer, so 0 = 0 would pass."""
    layer = wrong_layers.ForgottenVariancePath().build(get_ops("reference"), dtype="float64")
    layer.forward(np.random.default_rng(0).normal(size=(6, 3)), train=True)
    assert np.abs(layer.backward(np.ones((6, 3)))).max() < 1e-12


def test_no_gradient_is_compared_with_a_layer_that_has_nothing_to_check():
    class Nothing(Layer):
        def forward(self, x, *, train=False):
            return x[:0]

        def backward(self, dy):
            return dy

    assert not check_layer(Nothing(), (3, 2)).ok


def test_several_inputs_and_missing_gradients():
    class Product(Layer):
        """y = a b; forgets db."""

        def forward(self, a, b, *, train=False):
            self.keep(a, b, train=train)
            return a * b

        def backward(self, dy):
            a, b = self.take()
            return dy * b

    report = check_layer(Product(), (3, 2), (3, 2))
    assert report["a"].ok and not report.ok and "no gradient of b" in str(report)
    with pytest.raises(NnliteError, match=r"expected 2 inputs \(a, b\), got 1"):
        check_layer(Product(), (3, 2))


def test_kinks_are_named():
    report = check_layer(ReLU(), np.array([[0.3, 0.0, -1.0]]))
    assert not report.ok and "kink" in str(report)


def test_arrays_given_are_used_and_left_alone():
    x = np.arange(1.0, 7).reshape(2, 3)
    before = x.copy()
    assert check_layer(Linear(3, 2), x).ok
    np.testing.assert_array_equal(x, before)


def test_forward_that_does_not_run_is_bad_input():
    with pytest.raises(NnliteError, match=r"Linear.*expected x \(\.\.\., 3\), got \(2, 4\)"):
        check_layer(Linear(3, 2), (2, 4))


# -- what is drawn ----------------------------------------------------------------------------------------------------

@given(st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple), st.integers(0, 2 ** 40))
def test_grid_has_no_kink_inside_a_step(shape, seed):
    values = Draws(seed).grid("x", shape)
    flat = np.sort(values.reshape(-1))
    assert values.shape == shape and np.abs(flat).max() <= max(2.0, 1.3 * STEP * flat.size)
    assert np.abs(flat).min() > STEP
    assert flat.size == 1 or np.diff(flat).min() >= 2.5 * STEP * (1 - 1e-9)


def test_grid_stays_apart_where_it_is_full():
    flat = np.sort(Draws(3).grid("x", (400_000,)))
    assert np.diff(flat).min() >= 2.5 * STEP * (1 - 1e-6) and np.abs(flat).min() > STEP


def test_grid_is_shuffled():
    values = Draws(0).grid("x", (1000,))
    assert abs(np.corrcoef(values, np.arange(1000))[0, 1]) < 0.15
    assert not np.array_equal(values, Draws(1).grid("x", (1000,)))


def test_dy_is_independent_of_the_input():
    for seed in range(5):
        draws = Draws(seed)
        x, dy = draws.grid("x", (100, 40)).reshape(-1), draws.normal("dy", (100, 40)).reshape(-1)
        assert abs(np.corrcoef(x, dy)[0, 1]) < 0.06    # 4 / sqrt(4000)
        other = np.random.default_rng(seed).normal(size=4000)
        assert abs(np.corrcoef(other, dy)[0, 1]) < 0.06


# -- linear layers ----------------------------------------------------------------------------------------------------

@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 5))
def test_adjoint(N, D, K):
    assert check_adjoint(Linear(D, K), (N, D)).ok
    assert check_adjoint(Dropout(0.6), (N, D)).ok


def test_adjoint_finds_what_is_wrong():
    for cls in (wrong_layers.Factor2, wrong_layers.ZeroGradient):
        assert not check_adjoint(cls(4, 3), (5, 4)).ok
    assert not check_adjoint(wrong_layers.OtherMask(), (5, 4)).ok


# -- losses and models ------------------------------------------------------------------------------------------------

def test_check_loss():
    def square(x, wrong=1.0):
        return (x * x).sum(), 2 * wrong * x

    assert check_loss(square, (3, 2)).ok
    assert "sign flipped" in str(check_loss(lambda x: square(x, -1.0), (3, 2)))
    assert "is 0.5 everywhere: a factor 2 is missing" in str(check_loss(lambda x: square(x, 0.5), (3, 3)))
    assert not check_loss(lambda x: (0.0 * x.sum(), 0 * x), (3, 2)).ok
    assert not check_loss(lambda x: (square(x)[0], square(x)[1].astype("float32")), (3, 2)).ok
    assert not check_loss(lambda x: (square(x)[0], square(x)[1][0]), (3, 2)).ok
    assert not check_loss(lambda x: (square(x)[0], x * np.nan), (3, 2)).ok

    def changes(x):
        result = square(x)
        x += 1
        return result

    assert "changed its input" in str(check_loss(changes, (3, 2)))
    both = check_loss(lambda a, b: ((a * b).sum(), (b.copy(), 2 * a)), (3, 2), (3, 2))
    assert both["input 0"].ok and "counted twice" in both["input 1"].wrong


def model_and_loss(last):
    ops = get_ops("reference")
    model = Sequential(Linear(3, 4), ReLU(), last).build(ops, dtype="float64", seed=2)
    x, target = Draws(8).grid("a", (5, 3)), Draws(8).grid("b", (5, 2))

    def loss():
        error = model.forward(x, train=True) - target
        model.backward(2 * error)
        return (error * error).sum()

    return model, loss


def test_check_model():
    for elements in (None, 3):
        model, loss = model_and_loss(Linear(4, 2))
        before = model.parameters.values.copy()
        report = check_model(model, loss, elements=elements)
        assert report.ok, str(report)
        np.testing.assert_array_equal(model.parameters.values, before)
        for cls in (wrong_layers.Sign, wrong_layers.UnwrittenRow, wrong_layers.Overwritten, wrong_layers.BatchMeanBias):
            report = check_model(*model_and_loss(cls(4, 2)), elements=elements)
            assert not report.ok
        report = check_model(*model_and_loss(wrong_layers.Factor2(4, 2)), elements=elements)
        assert [finding.ok for finding in report.findings] == [False, False, True, True]
        assert "counted twice" in report["0.W"].wrong


def test_check_model_one_wrong_number_is_seen_by_the_direction():
    class OneWrong(wrong_layers.Affine):
        def backward(self, dy):
            dx = super().backward(dy)
            self.dW[2, 1] += 0.01
            return dx

    assert not check_model(*model_and_loss(OneWrong(4, 2)), elements=1).ok


def test_check_model_wants_float64_and_the_same_loss_each_time():
    model, loss = model_and_loss(Linear(4, 2))
    values = iter(range(100))
    assert "differs from call to call" in str(check_model(model, lambda: loss() + next(values)))
    model.build(get_ops("reference"))
    with pytest.raises(NnliteError, match="float64"):
        check_model(model, loss)


# -- the command ------------------------------------------------------------------------------------------------------

HEAD = "from nnlite.layers import Layer, init\n\n\n"


def docstring_example():
    """The class in the docstring of Layer, word for word."""
    text = inspect.cleandoc(base.Layer.__doc__)
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("class "))
    stop = next(i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith(" "))
    return HEAD + textwrap.dedent("\n".join(lines[start:stop]))


@pytest.fixture
def my_layers(tmp_path, monkeypatch):
    """Writes my_layers.py and runs the command on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(source, *arguments):
        (tmp_path / "my_layers.py").write_text(source)
        return main(list(arguments))

    return run


def test_the_example_of_the_docstring(my_layers, capsys):
    source = docstring_example()
    assert my_layers(source, "my_layers.py:Scale", "--x", "4,5", "--args", "5") == 0
    assert "every gradient agrees" in capsys.readouterr().out
    wrong = source.replace("return dy * self.g", "return dy")
    assert wrong != source
    assert my_layers(wrong, "my_layers.py:Scale", "--x", "4,5", "--args", "features=5") == 1
    out = capsys.readouterr().out
    line = 1 + wrong[:wrong.index("return dy")].count("\n")
    assert "x  (4, 5)        WRONG" in out and "g  (5,)          ok" in out and f"my_layers.py:{line}: return dy" in out
    wrong = source.replace("(dy * x).sum(0)", "-(dy * x).sum(0)")
    assert my_layers(wrong, "my_layers.py:Scale", "--x", "4,5", "--args", "5") == 1
    assert "sign flipped" in capsys.readouterr().out


def test_a_process_of_its_own(tmp_path):
    (tmp_path / "my_layers.py").write_text(docstring_example())
    done = subprocess.run([sys.executable, "-m", "nnlite.gradcheck", "my_layers.py:Scale", "--x", "4,5", "--args", "5"],
                          cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert "every gradient agrees" in done.stdout and done.stderr == ""


def test_several_inputs_and_keywords_and_seed(my_layers, capsys):
    source = HEAD + textwrap.dedent("""\
        class Mix(Layer):
            def __init__(self, a=1.0, *, b=1.0):
                super().__init__()
                self.a, self.b = a, b

            def forward(self, x, c, *, train=False):
                self.keep(train=train)
                return self.a * x + self.b * c

            def backward(self, dy):
                self.take()
                return self.a * dy, self.b * dy
        """)
    assert my_layers(source, "my_layers.py:Mix", "--x", "4,5", "--x", "(4,5)", "--args", "3, b=-2.5",
                     "--seed", "7") == 0
    assert "c  (4, 5)        ok" in capsys.readouterr().out


BAD = {
    "no file": (["nowhere.py:Scale", "--x", "4,5"], "nowhere.py: expected a Python file"),
    "no class": (["my_layers.py:Skale", "--x", "4,5"], "expected a class Skale, got only Scale"),
    "not a layer": (["my_layers.py:init", "--x", "4,5"], "expected a subclass of nnlite.layers.Layer"),
    "no colon": (["my_layers.py", "--x", "4,5"], "expected FILE.py:CLASS"),
    "arguments missing": (["my_layers.py:Scale", "--x", "4,5"], "Scale: expected --args for its constructor (feat"),
    "too many arguments": (["my_layers.py:Scale", "--x", "4,5", "--args", "1,2"], "Scale: expected --args"),
    "no literals": (["my_layers.py:Scale", "--x", "4,5", "--args", "n"], "--args: expected Python literals"),
    "shape": (["my_layers.py:Scale", "--x", "4,five", "--args", "5"], "--x: expected a shape such as 4,5"),
    "empty shape": (["my_layers.py:Scale", "--x", "4,0", "--args", "5"], "--x: expected a shape such as 4,5"),
    "forward raises": (["my_layers.py:Scale", "--x", "4,6", "--args", "5"], "ValueError: operands could not"),
    "too many inputs": (["my_layers.py:Scale", "--x", "4,5", "--x", "4,5", "--args", "5"], "1 inputs (x), got 2"),
    "parameter shape": (["my_layers.py:Scale", "--x", "4,5", "--args", "'five'"], "Scale: expected parameters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(case, my_layers, capsys):
    arguments, words = BAD[case]
    assert my_layers(docstring_example(), *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("source, words", [
    ("import nowhere_to_be_found\n", "ModuleNotFoundError"),
    ("class A(\n", "SyntaxError"),
    (HEAD + "class A(Layer):\n    def __init__(self):\n        self.n = 1\n", "super().__init__()"),
    (HEAD + "class A(Layer):\n    def __init__(self):\n        self.n = 1 / 0\n", "ZeroDivisionError"),
    (HEAD + "class A(Layer):\n    pass\n", "forward"),
    ("class A:\n    pass\n", "expected a subclass of nnlite.layers.Layer"),
])
def test_files_that_are_no_layers(source, words, my_layers, capsys):
    assert my_layers(source, "my_layers.py:A", "--x", "4,5") == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1


def test_a_layer_of_nnlite_itself(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main([inspect.getsourcefile(Linear) + ":Linear", "--x", "4,5", "--args", "5,3"]) == 0
