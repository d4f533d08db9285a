"""Passes that plan: plans are printed, edited, replayed, refused for another model, and kept with the artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from graphopt import artifact as artifacts
from graphopt.cli import cli
from graphopt.driver import Options, compile, make_plans, optimize
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager import registry
from graphopt.manager.plan import PlanPass, read_plans, to_json

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[2, 4] x) => (float[2, 4] y) { a = Relu (x)  b = Tanh (a)  y = Relu (b) }"""


@dataclass(frozen=True)
class DropRelu(PlanPass):
    """Relu(x) -> x + 0, at planned sites"""

    name: ClassVar[str] = "test-drop-relu"
    tolerance = "lossy"

    def plan(self, model: Any, ctx: Any) -> Mapping[str, Any]:
        return {"sites": [ctx.rewriter.site(node) for node in model.graph if node.op_type == "Relu"]}

    def apply(self, model: Any, ctx: Any, decisions: Mapping[str, Any]) -> None:
        there = {ctx.rewriter.site(node): node for node in model.graph}
        for site in decisions["sites"]:
            if site not in there:
                raise GraphoptError(f"there is no site {site!r}")
            op = ctx.rewriter.builder(there[site])
            ctx.rewriter.replace(there[site], op.Add(there[site].inputs[0], np.zeros(1, np.float32)), op)


@pytest.fixture(autouse=True)
def _pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._loaded, DropRelu.name, DropRelu)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    write(from_text(NET), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


OPTIONS = Options(passes="test-drop-relu", repro=None)


def ops(path: Path, plan: Path) -> list[str]:
    from dataclasses import replace

    return [node.op_type for node in optimize(path, options=replace(OPTIONS, plan=plan)).model.graph]


def test_a_plan_is_made_edited_and_carried_out(net: Path, tmp_path: Path) -> None:
    plans = make_plans(net, options=OPTIONS)
    assert [len(plan.decisions["sites"]) for plan in plans] == [2]
    file = tmp_path / "plan.json"
    file.write_text(to_json(plans))
    assert read_plans(file) == plans
    assert ops(net, file) == ["Add", "Tanh", "Add"]
    data = json.loads(file.read_text())
    del data["plans"][0]["decisions"]["sites"][0]
    file.write_text(json.dumps(data))
    assert ops(net, file) == ["Relu", "Tanh", "Add"]


def test_plan_only_prints_the_plan_and_writes_nothing(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = CliRunner().invoke(cli, ["opt", str(net), "-p", "test-drop-relu", "--plan-only", "-o", str(out)])
    assert done.exit_code == 0 and not out.exists()
    assert json.loads(done.stdout)["plans"][0]["pass"] == "test-drop-relu"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda plan: plan.update(model="0" * 64), "made for another model"),
        (lambda plan: plan["decisions"].update(sites=["nowhere"]), "no site 'nowhere'"),
        (lambda plan: plan.update({"pass": "dce"}), "no pass 'dce' of the pipeline took its plan"),
        (lambda plan: plan.pop("decisions"), "a plan wants the keys"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(net: Path, tmp_path: Path, edit: Any, message: str) -> None:
    data = json.loads(to_json(make_plans(net, options=OPTIONS)))
    edit(data["plans"][0])
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(GraphoptError, match=message):
        ops(net, tmp_path / "plan.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "plans": []}', '{"format": 1, "plans": {}}'])
def test_a_file_that_holds_no_plans_is_refused(net: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(GraphoptError, match=r"--plan .*plan\.json"):
        ops(net, tmp_path / "plan.json")


def test_an_artifact_keeps_its_plans(net: Path, tmp_path: Path) -> None:
    artifact = compile(net, "cpu", tmp_path / "out", OPTIONS)
    plans = read_plans(tmp_path / "out" / artifacts.PLANS)
    assert plans[0].decisions["sites"] and artifacts.PLANS in artifact.manifest["files"]
    artifacts.load(tmp_path / "out").check_files()
