"""The house rules that a reader cannot see at a glance: who may import what, and that names meet in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "graphopt": ROOT / "graphopt",
    "graphopt.passes": ROOT / "passes",
    "graphopt.targets": ROOT / "targets",
    "graphopt.models": ROOT / "models",
}
LINKS = {"passes", "targets", "models"}

# layer -> what it may import from graphopt (prefixes); one way only
ALLOWED = {
    "graphopt.ir": ("graphopt.errors", "graphopt.ir", "graphopt.spec"),
    "graphopt.analysis": ("graphopt.errors", "graphopt.ir", "graphopt.analysis"),
    "graphopt.quantization": (
        "graphopt.errors",
        "graphopt.ir",
        "graphopt.spec",
        "graphopt.analysis",
        "graphopt.quantization",
    ),
    "graphopt.manager": (
        "graphopt.errors",
        "graphopt.ir",
        "graphopt.spec",
        "graphopt.analysis",
        "graphopt.manager",
        "graphopt.target",
    ),
    "graphopt.passes": (
        "graphopt.errors",
        "graphopt.ir",
        "graphopt.spec",
        "graphopt.analysis",
        "graphopt.manager",
        "graphopt.quantization",
        "graphopt.passes",
    ),
    "graphopt.targets": (
        "graphopt",
        "graphopt.errors",
        "graphopt.ir",
        "graphopt.spec",
        "graphopt.analysis",
        "graphopt.target",
        "graphopt.numerics",
        "graphopt.quantization",
        "graphopt.targets",
    ),
    "graphopt.models": ("graphopt.errors", "graphopt.ir", "graphopt.models"),
}
ONNX_ALLOWED = ("graphopt.ir", "graphopt.frontends", "graphopt.interop", "graphopt.backend", "graphopt.models")
EAGER = {"click", "graphopt"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "graphopt" and parts[0] in LINKS:
                continue
            name = ".".join((package, *parts)).removesuffix(".__init__")
            yield name, ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Imported module names, and whether the import runs when the module is loaded."""

    def visit(node: ast.AST, eager: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, eager) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module or "", eager
                yield from (
                    (f"{child.module}.{alias.name}", eager) for alias in child.names if child.module == "graphopt"
                )
            yield from visit(child, eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from visit(tree, True)


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_go_one_way(layer: str) -> None:
    wrong = [
        f"{name} imports {found}"
        for name, tree in modules()
        if name == layer or name.startswith(f"{layer}.")
        for found, _ in imports(tree)
        if found.startswith("graphopt.") and not found.startswith(ALLOWED[layer])
    ]
    assert not wrong


def test_onnx_is_imported_only_at_the_edges() -> None:
    wrong = [
        f"{name} imports {found}"
        for name, tree in modules()
        if not name.startswith(ONNX_ALLOWED)
        for found, _ in imports(tree)
        if found.split(".")[0] in ("onnx", "onnx_ir")
    ]
    assert not wrong


def test_heavy_modules_are_never_imported_when_a_module_is_loaded() -> None:
    heavy = {
        "numpy",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "torch",
        "sympy",
        "networkx",
        "onnx_graphsurgeon",
        "transformers",
        "tvm",
        "tvm_ffi",
    }
    # The worker is a process of its own; the others are modules about that library, imported when they are asked for.
    exempt = (
        "graphopt.targets.onnxruntime.worker",
        "graphopt.targets.onnxruntime.observer",
        "graphopt.targets.onnxruntime.session",
        "graphopt.targets.onnxruntime.wire",
        "graphopt.targets.tvm.cpu.",
        "graphopt.targets.tvm.gpu.",
        "graphopt.targets.tvm.library",
        "graphopt.targets.tvm.tuning.bench",
        "graphopt.targets.tvm.tuning.kernel",
        "graphopt.targets.tvm.tuning.worker",
        "graphopt.targets.tvm.worker",
        "graphopt.backend",
        "graphopt.interop",
        "graphopt.models.cnn",
        "graphopt.models.transformer",
    )
    wrong = [
        f"{name} imports {found}"
        for name, tree in modules()
        if not name.startswith(exempt)
        for found, eager in imports(tree)
        if eager and found.split(".")[0] in heavy
    ]
    assert not wrong


def test_a_second_copy_of_the_passes_cannot_be_imported() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("passes", ROOT / "passes" / "__init__.py")
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match="import graphopt.passes"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_pickle_is_nowhere() -> None:
    wrong = [
        name
        for name, tree in modules()
        for found, _ in imports(tree)
        if found.split(".")[0] in ("pickle", "cloudpickle", "dill", "marshal", "shelve")
    ]
    assert not wrong


def test_no_file_is_longer_than_it_is_readable() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for folder in FOLDERS.values()
        for path in folder.rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 450
    }
    assert not long
