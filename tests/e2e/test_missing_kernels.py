"""Results that the CPU has no kernel for: not checked where they are made for elsewhere, a failure where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from graphopt.checks import Check
from graphopt.cli import cli
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
NET = """g (float[2, 8] x) => (float[2, 5] y) <float[8, 6] w, float[6] b, float[6, 5] v> {
  t = Gemm (x, w, b)
  r = Relu (t)
  y = MatMul (r, v) }"""
NO_KERNEL = """g (float[2, 8] x) => (float[2, 8] y) {
  a = Cast <to = 16> (x)
  b = Mul (a, a)
  y = Cast <to = 1> (b) }"""
KERNEL = """g (float[2, 8] x) => (float[2, 8] y) { y = Mul (x, x) }"""
INVALID = """g (float[2, 8] x) => (float[2, 8] y) { y = acme.Mystery (x) }"""


def saved(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.onnx"
    write(from_text(f"{HEAD}\n{text}"), path)
    return path


def call(*words: Any) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


@pytest.mark.parametrize("target", [[], ["--target", "cuda"]])
def test_bfloat16_is_written_and_not_checked(tmp_path: Path, target: list[str]) -> None:
    net, out = saved(tmp_path, "net", NET), tmp_path / "out.onnx"
    done = call("opt", net, *target, "-p", "convert-bfloat16", "-o", out, "--json")
    assert done.exit_code == 0 and out.exists(), done.output
    numbers = json.loads(done.stdout)["numerics"]
    assert numbers["status"] == "not-checked"
    assert numbers["reason"].startswith("it cannot run here: Could not find an implementation for")
    strict = call("opt", net, *target, "-p", "convert-bfloat16", "-o", out, "--require-numerics")
    assert strict.exit_code == 1 and "--require-numerics" in str(strict.exception)


@pytest.mark.parametrize(
    ("text", "elsewhere", "status", "reason"),
    [
        (NO_KERNEL, True, "not-checked", "it cannot run here: Could not find an implementation for Mul"),
        (NO_KERNEL, False, "failed", "the result does not run on"),
        (KERNEL, True, "passed", ""),
        (INVALID, True, "failed", "the result does not run on"),
    ],
)
def test_only_a_missing_kernel_is_excused_and_only_elsewhere(
    tmp_path: Path, text: str, elsewhere: bool, status: str, reason: str
) -> None:
    net = saved(tmp_path, "net", KERNEL)
    head = HEAD.replace("]>", ', "acme": 1]>')
    write(from_text(f"{head}\n{text}"), tmp_path / "made.onnx")
    model = from_text(f"{HEAD}\n{KERNEL}")
    report = Check(model, net, None, tmp_path, elsewhere=elsewhere).compare(tmp_path / "made.onnx", "exact")
    assert report.status == status and report.reason.startswith(reason)


def test_what_is_made_for_the_cpu_must_run_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.targets.onnxruntime.target import Cpu

    monkeypatch.setattr(Cpu, "supports", lambda *_: None)  # a table that promises kernels which are not there
    net, out = saved(tmp_path, "net", NET), tmp_path / "out.onnx"
    done = call("opt", net, "--target", "cpu", "-p", "convert-bfloat16", "-o", out)
    assert done.exit_code == 1 and not out.exists() and "Could not find an implementation" in str(done.exception)
