"""`bisect`: each oracle names the first bad rewrite; then the runtime's own optimizers are searched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.blame import bisect
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager import registry

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
CHAIN = """g (float[4] x) => (float[4] y)
{ [a] a = Identity (x) [b] b = Neg (a) [c] c = Identity (b) [d] d = Abs (c) [e] e = Identity (d) [f] y = Relu (e) }"""
# ONNX Runtime makes y / x of it, also for integers, where 1 / x is 0.
QUOTIENT = "g (int64[4] x, int64[4] y) => (int64[4] z) <int64 one = {1}> { [r] r = Div (one, x) [z] z = Mul (r, y) }"
PLUGIN = '''
from typing import ClassVar
from graphopt import NodePass, Pass

class Rename(Pass):
    """Renames an output: a broken rule of the IR"""
    name: ClassVar[str] = "rename"

    def run(self, model, ctx):
        ctx.rewriter.count_model()
        model.graph.outputs[0].name = "other"
'''


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    write(from_text(f"{HEAD} {CHAIN}"), tmp_path / "chain.onnx")
    return tmp_path / "chain.onnx"


def script(folder: Path, text: str) -> str:
    """A command that gets the model's path."""
    (folder / "oracle.py").write_text(f"import sys, onnx\nmodel = onnx.load(sys.argv[1])\n{text}\n")
    return f"{sys.executable} {folder / 'oracle.py'} {{}}"


def test_a_users_command_decides(chain: Path, tmp_path: Path) -> None:
    command = script(tmp_path, "sys.exit('too few' if len(model.graph.node) < 5 else 0)")
    blame = bisect(chain, options=Options(passes="eliminate-identity"), command=command)
    assert blame.culprit == "rewrite" and blame.rewrite is not None
    assert (blame.rewrite.number, blame.rewrite.pass_name) == (2, "eliminate-identity")
    assert blame.rewrites == 3 and "too few" in blame.reason
    assert "rewrite 2 is the first bad one: pass 'eliminate-identity'" in str(blame)


def test_a_model_that_is_bad_already(chain: Path, tmp_path: Path) -> None:
    blame = bisect(chain, options=Options(passes="eliminate-identity"), command=script(tmp_path, "sys.exit(3)"))
    assert (blame.culprit, blame.rewrite) == ("input", None)
    assert "the command exited 3" in blame.reason


def test_a_command_that_cannot_be_run_is_an_error(chain: Path) -> None:
    with pytest.raises(GraphoptError, match="--oracle 'no-such-command' cannot be run"):
        bisect(chain, options=Options(passes="eliminate-identity"), command="no-such-command")


def test_a_broken_rule_of_the_ir_is_bad(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text(PLUGIN)
    registry.load_file(tmp_path / "plug.py")
    blame = bisect(chain, options=Options(passes="eliminate-identity,rename,dce"))
    assert blame.rewrite is not None and blame.rewrite.pass_name == "rename"
    assert "the outputs changed from ['y'] to ['other']" in blame.reason


def quotient(folder: Path) -> dict[str, Any]:
    write(from_text(f"{HEAD} {QUOTIENT}"), folder / "quotient.onnx")
    np.savez(folder / "feeds.npz", x=np.array([1, 2, 3, 4]), y=np.array([5, 6, 7, 8]))
    return {"source": folder / "quotient.onnx", "options": Options(passes="dce", data=folder / "feeds.npz")}


def test_an_optimizer_of_the_runtime_is_named(tmp_path: Path) -> None:
    blame = bisect(**quotient(tmp_path))
    assert (blame.culprit, blame.optimizer, blame.rewrite) == ("runtime-optimizer", "DivMulFusion", None)
    assert blame.evaluations <= 10
    assert "ONNX Runtime's optimizer 'DivMulFusion' is to blame" in str(blame) and "output 'z' moves by 3" in str(blame)


def test_the_runtime_is_left_alone_when_asked(tmp_path: Path) -> None:
    assert bisect(**quotient(tmp_path), runtime=False).culprit == "none"


def test_nothing_is_bad(chain: Path) -> None:
    blame = bisect(chain, options=Options(passes="eliminate-identity"))
    assert blame.culprit == "none" and str(blame).startswith("nothing is bad")
