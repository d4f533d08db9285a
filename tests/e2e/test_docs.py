"""Every snippet of README and docs runs: python blocks of a file as one script, console lines of graphopt in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.ir.text import from_text
from graphopt.ir.writer import write

ROOT = Path(__file__).parents[2]
# The snippets of tvm.md need a compiled library: tests/targets/test_tvm_artifact.py runs them.
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES.remove(ROOT / "docs" / "tvm.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODEL = """<ir_version: 10, opset_import: ["" : 17]>
agraph (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w, float[4] s, float[4] b, float[4] mean, float[4] var>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w)
  [bn] z = BatchNormalization(h, s, b, mean, var)
  [relu] y = Relu(z) }"""
# Set-up commands: CI runs them as they stand (.ci/run); a test cannot, since it would build an environment inside one.
SET_UP = ("make", "pip", "apt-get", "python3.11", "python", "git", "cd")


def blocks(path: Path, kind: str) -> list[str]:
    return [body for language, body in BLOCK.findall(path.read_text()) if language == kind]


def with_blocks(kind: str) -> list[Path]:
    return [path for path in FILES if blocks(path, kind)]


def identifier(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", with_blocks("python"), ids=identifier)
def test_python_snippets_run(path: Path, tmp_path: Path) -> None:
    (tmp_path / "snippets.py").write_text("\n\n".join(blocks(path, "python")))
    write(from_text(MODEL), tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "snippets.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", with_blocks("console"), ids=identifier)
def test_console_snippets_run(path: Path, tmp_path: Path) -> None:
    write(from_text(MODEL), tmp_path / "model.onnx")
    samples = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=samples)
    for name, body in zip(
        ("my_pass.py", "recipe.toml"), (blocks(path, "python")[-1:], blocks(path, "toml")[-1:]), strict=True
    ):
        (tmp_path / name).write_text("\n".join(body))
    for line in (line for body in blocks(path, "console") for line in body.splitlines() if line.startswith("$ ")):
        words = shlex.split(line[2:], comments=True)
        if words[0] in SET_UP:
            continue
        assert words[0] == "graphopt", f"{line}: this test runs only graphopt; add a set-up command to SET_UP"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", FILES, ids=identifier)
def test_links_point_at_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{identifier(path)} links to {target}"
