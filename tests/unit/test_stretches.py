"""What lies between lossy passes is judged against the model that it received."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from graphopt import RewritePass
from graphopt.blame import bisect
from graphopt.driver import Options, optimize
from graphopt.errors import VerificationError
from graphopt.ir.text import from_text
from graphopt.manager import registry

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 8] x) => (float[N, 4] y) <float[8, 4] w> {
  a = Abs (x)
  h = MatMul (a, w)
  t = Tanh (h)
  y = Sigmoid (t) }"""


@dataclass(frozen=True)
class ShrinkTanh(RewritePass):
    """Tanh(x) -> Tanh(x) * 0.75, which loses"""

    name: ClassVar[str] = "test-shrink-tanh"
    tolerance = "lossy"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Tanh(x)

    def rewrite(self, op: Any, m: Any, x: Any) -> Any:
        users = [use.node.op_type for out in m.root.outputs for use in out.uses()]
        m.require("Mul" not in users, "done already")
        return op.Mul(op.Tanh(x), np.float32(0.75))


@dataclass(frozen=True)
class DropAbs(RewritePass):
    """Abs(x) -> x, which is wrong and says that it is exact"""

    name: ClassVar[str] = "test-drop-abs"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Abs(x)

    def rewrite(self, op: Any, m: Any, x: Any) -> Any:
        return x


@dataclass(frozen=True)
class RelaySigmoid(RewritePass):
    """Sigmoid(x) -> Sigmoid(Neg(Neg(x))), which is exact"""

    name: ClassVar[str] = "test-relay-sigmoid"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Sigmoid(x)

    def rewrite(self, op: Any, m: Any, x: Any) -> Any:
        m.require(x.producer().op_type != "Neg", "done already")
        return op.Sigmoid(op.Neg(op.Neg(x)))


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (ShrinkTanh, DropAbs, RelaySigmoid):
        monkeypatch.setitem(registry._loaded, cls.name, cls)


def run(tmp_path: Path, passes: str, **options: Any) -> Any:
    return optimize(from_text(NET), options=Options(passes=passes, repro=None, **options), output=tmp_path / "y.onnx")


@pytest.mark.parametrize("numerics", ["end", "each"])
@pytest.mark.parametrize("order", ["test-shrink-tanh,test-drop-abs", "test-drop-abs,test-shrink-tanh"])
def test_a_wrong_pass_beside_a_lossy_one_is_found(tmp_path: Path, order: str, numerics: Any) -> None:
    with pytest.raises(VerificationError, match="differs by"):
        run(tmp_path, order, numerics=numerics)
    assert not (tmp_path / "y.onnx").exists()


def test_right_passes_around_a_lossy_one_pass_and_the_loss_is_told(tmp_path: Path) -> None:
    numbers = run(tmp_path, "test-relay-sigmoid,test-shrink-tanh,dce").numerics
    assert numbers.status == "not-checked" and "lossy passes are measured" in numbers.reason
    stretches = numbers.details["stretches"]
    assert [(s["where"], s["status"], s["tolerance"]) for s in stretches] == [
        ("before the first lossy pass", "passed", "exact")
    ]
    assert numbers.details["outputs"][0]["max_rel"] > 0.01


def test_the_stretch_after_a_lossy_pass_is_judged_against_its_result(tmp_path: Path) -> None:
    numbers = run(tmp_path, "test-shrink-tanh,test-relay-sigmoid").numerics
    assert [(s["where"], s["status"]) for s in numbers.details["stretches"]] == [("after 'test-shrink-tanh'", "passed")]


def test_bisect_finds_the_wrong_rewrite_behind_a_lossy_one(tmp_path: Path) -> None:
    from graphopt.ir.writer import write

    write(from_text(NET), tmp_path / "x.onnx")
    blame = bisect(tmp_path / "x.onnx", options=Options(passes="test-shrink-tanh,test-relay-sigmoid,test-drop-abs"))
    assert blame.rewrite is not None and blame.rewrite.pass_name == "test-drop-abs"
