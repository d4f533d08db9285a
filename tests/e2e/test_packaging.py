"""What is installed: the wheel's contents, the package list, and a plug-in package found through its entry points."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("setuptools", minversion="77")


def pip(*args: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, args)],
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    source = folder / "source"
    for name in filter(None, tracked):
        path = ROOT / name
        if not path.exists() or name.startswith(("tests/", "docs/", "benchmarks/")):
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            os.symlink(os.readlink(path), source / name)
        else:
            shutil.copy(path, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_one_package_and_every_module_and_data_file(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"graphopt"}
    inside = {name.removeprefix("graphopt/") for name in names}
    for top, prefix in (("graphopt", ""), ("passes", "passes/"), ("targets", "targets/"), ("models", "models/")):
        tracked = subprocess.run(
            ["git", "ls-files", top], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        wanted = {
            prefix + name.removeprefix(f"{top}/") for name in tracked if name.endswith((".py", ".json", "py.typed"))
        }
        assert wanted <= inside, sorted(wanted - inside)


def test_the_package_list_is_the_folders() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top, name in (
        ("graphopt", "graphopt"),
        ("passes", "graphopt.passes"),
        ("targets", "graphopt.targets"),
        ("models", "graphopt.models"),
    ):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / top).parts
            if top != "graphopt" or not parts or parts[0] not in ("passes", "targets", "models"):
                found.add(".".join((name, *parts)))
    assert listed == found


@pytest.fixture(scope="module")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example plug-in is installed beside this graphopt."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    shutil.copytree(ROOT / "tests" / "plugin", source)
    pip("install", "--no-deps", "--no-build-isolation", "--target", folder / "site", source)
    path = os.pathsep.join([str(folder / "site"), *sys.path])
    return {**os.environ, "PYTHONPATH": path}


def test_an_installed_plugin_joins_the_pipeline_and_the_targets(plugged: dict[str, str]) -> None:
    def graphopt(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "graphopt", *args], capture_output=True, text=True, env=plugged, check=True
        ).stdout

    assert "Relu(x) -> Max(x, 0)" in graphopt("passes")
    assert "relu-to-max" in graphopt("passes", "--pipeline", "O2")
    assert "relu-to-max" not in graphopt("passes", "--pipeline", "O1")
    assert "example" in graphopt("targets")
