"""onnx_ir comes without sympy, and sympy is all there once it is needed."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_loading_and_inferring_needs_no_sympy() -> None:
    code = """
import sys
from graphopt.ir.text import from_text
from graphopt.analysis.shapes import Shapes
head = '<ir_version: 10, opset_import: ["" : 21]> '
model = from_text(head + 'g (float[N,3,H,W] x) => (float[N,M] y) { a = Relu(x) y = Flatten(a) }')
Shapes(model).infer()
print("sympy.core" in sys.modules)
"""
    assert run(code) == "False"


def test_arithmetic_on_symbolic_dims_works_as_ever() -> None:
    code = """
from graphopt import ir
print(ir.SymbolicDim("N") * 2 + 1, (ir.SymbolicDim("a") + ir.SymbolicDim("b")).evaluate({"a": 2, "b": 3}))
import sympy
from sympy.core import Symbol
print(sympy.Symbol is Symbol, sympy.__name__)
"""
    assert run(code) == "2*N + 1 5\nTrue sympy"


def test_a_level_and_the_cpu_import_neither_lossy_passes_nor_tvms_target() -> None:
    code = """
import sys
from graphopt.manager.levels import for_level
from graphopt.manager.registry import get, make_target
for_level(3), make_target("cpu"), get("cse")
print([name for name in sys.modules if name.startswith(("graphopt.passes.quantize", "graphopt.targets.tvm"))])
print(get("quantize-static").name, make_target("tvm"))
"""
    assert run(code) == "[]\nquantize-static tvm"
