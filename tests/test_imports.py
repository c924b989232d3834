"""The floors: who may import what. Read from the source, and seen in a fresh process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nnlite

ROOT = Path(nnlite.__file__).parent
COMMANDS = {"nnlite.train", "nnlite.evaluate", "nnlite.collect", "nnlite.gradcheck", "nnlite.search",
            "nnlite.predict", "nnlite.export", "nnlite.ablate"}
MODULES = sorted(ROOT.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source, name, is_package):
    """Every module that the source names: (dotted name, inside a function)."""
    tree = ast.parse(source)
    inner = {id(node) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.Lambda))
             for node in ast.walk(function)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, id(node) in inner) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = name.split(".")
                base = parts[:len(parts) - node.level + is_package] + base
            # `from a import b`: b may be a module of a.
            found |= {(".".join(base), id(node) in inner)}
            found |= {(".".join([*base, alias.name]), id(node) in inner) for alias in node.names}
    return found


def imports_of(path):
    return imports(path.read_text(), module_name(path), path.name == "__init__.py")


def packages_of(path):
    return {name.partition(".")[0] for name, _ in imports_of(path)}


def test_the_reader_of_imports():
    source = "import numpy.linalg as la\nfrom . import base\nfrom ..ops import cuda\ndef f():\n    import cupy\n"
    assert imports(source, "nnlite.layers.linear", False) == {
        ("numpy.linalg", False), ("nnlite.layers", False), ("nnlite.layers.base", False), ("nnlite.ops", False),
        ("nnlite.ops.cuda", False), ("cupy", True)}
    assert ("nnlite.layers.base", False) in imports("from .base import Layer", "nnlite.layers", True)


def test_layers_import_no_arrays():
    paths = sorted((ROOT / "layers").glob("*.py"))
    assert len(paths) > 5
    for path in paths:
        assert not packages_of(path) & {"numpy", "cupy", "cupyx", "numba", "scipy", "torch"}, path.name


def test_layers_stand_on_nothing_above_them():
    allowed = ("nnlite.layers", "nnlite.errors", "nnlite.rng")
    for path in (ROOT / "layers").glob("*.py"):
        for name, _ in imports_of(path):
            if name.startswith("nnlite."):
                assert name.startswith(allowed), (path.name, name)


def test_ops_stand_on_nothing_above_them():
    for path in (ROOT / "ops").rglob("*.py"):
        for name, _ in imports_of(path):
            if name.startswith("nnlite."):
                assert name.startswith(("nnlite.ops", "nnlite.errors")), (path.name, name)


def test_cupy_is_imported_by_ops_cuda_alone():
    """Outside of it only inside functions of ops: to ask whether there is a device, and for CuPy's erf."""
    for path in MODULES:
        for name, inner in imports_of(path):
            if name.partition(".")[0] in ("cupy", "cupyx") and ROOT / "ops" / "cuda" not in path.parents:
                assert inner and path.parent == ROOT / "ops", (path, name)


def test_ops_cuda_is_imported_when_asked_for():
    for path in MODULES:
        for name, inner in imports_of(path):
            if name.startswith("nnlite.ops.cuda") and ROOT / "ops" / "cuda" not in path.parents:
                assert inner, (path, name)


def test_numba_is_imported_by_ops_cpu_alone():
    for path in MODULES:
        if packages_of(path) & {"numba", "llvmlite"}:
            assert path.parent == ROOT / "ops" / "cpu", path


def test_nothing_imports_a_command():
    for path in MODULES:
        taken = {name for name, _ in imports_of(path)} & COMMANDS
        assert not taken - {module_name(path)}, (path, taken)


def test_nothing_imports_a_peer():
    for path in MODULES:
        assert not packages_of(path) & {"torch", "tensorflow", "jax"}, path


LIGHT = {
    "nnlite": ("numba", "cupy", "h5py", "sklearn", "matplotlib"),
    "nnlite.layers, nnlite.losses, nnlite.optim, nnlite.models, nnlite.presets": ("numba", "cupy", "h5py"),
    "nnlite.ops": ("numba", "cupy"),
    "nnlite.train": ("sklearn", "matplotlib", "torch"),
}


@pytest.mark.parametrize("modules", LIGHT)
def test_imports_are_light(modules):
    code = f"import sys, {modules}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            cwd=ROOT.parent).stdout.split()
    assert "nnlite" in loaded and not set(loaded) & set(LIGHT[modules])
