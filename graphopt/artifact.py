"""The artifact: a plain folder with the runtime's own files, manifest.json (what it is) and report.json (how it went).

The manifest is the same bytes for the same inputs; everything measured or machine-bound is in the report.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import FrozenError, GraphoptError, VerificationError
from graphopt.frontends.onnx import file_hash
from graphopt.ir.places import beside
from graphopt.ir.places import kind as kind_of

MANIFEST, REPORT, PLANS = "manifest.json", "report.json", "plans.json"
FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk."""

    path: Path
    manifest: dict[str, Any]
    report: dict[str, Any]

    @property
    def main(self) -> Path:
        """The file that the runtime loads."""
        return self.path / self.manifest["main"]

    @property
    def model(self) -> Path:
        """The ONNX file that the runtime's was made of: what the verbs that read models look at."""
        return self.path / self.manifest.get("model", self.manifest["main"])

    def check_files(self) -> None:
        """Compare every file with its hash in the manifest.

        Raises:
            VerificationError: a file is missing or its bytes differ.
        """
        for name, wanted in self.manifest["files"].items():
            if not (self.path / name).is_file():
                raise VerificationError(f"{self.path}: {name} is missing; the manifest lists it")
            if file_hash(self.path / name) != wanted:
                raise VerificationError(f"{self.path}: {name} differs from its hash in {MANIFEST}")


def is_artifact(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def load(path: str | Path) -> Artifact:
    """Read an artifact folder.

    Raises:
        GraphoptError: not an artifact, or its manifest is unreadable or lists a file outside the folder.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        report = json.loads((path / REPORT).read_text(encoding="utf-8")) if (path / REPORT).is_file() else {}
    except FileNotFoundError:
        raise GraphoptError(
            f"{path} is not an artifact: it has no {MANIFEST}; make one with: graphopt compile"
        ) from None
    except (OSError, ValueError) as error:
        raise GraphoptError(f"{path}: unreadable {MANIFEST} or {REPORT}: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise GraphoptError(f"{path}: {MANIFEST} is of another format; this version reads format {FORMAT}")
    for key, kind in (("main", str), ("files", dict), ("target", str), ("settings", dict)):
        if not isinstance(manifest.get(key), kind):
            raise GraphoptError(f"{path}: {MANIFEST} has no valid {key!r}; compile the model again")
    for name in [*manifest["files"], manifest["main"], manifest.get("model", manifest["main"])]:
        if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise GraphoptError(f"{path}: {MANIFEST} names a file outside the folder: {name!r}")
    return Artifact(path, manifest, report)


def check_frozen(out: Path, manifest: dict[str, Any]) -> None:
    """`--frozen`: compare a new manifest with that of the artifact at `out`.

    Raises:
        FrozenError: a field differs (named, with both values), or there is no artifact to compare with.
    """
    if not is_artifact(out):
        raise FrozenError(f"--frozen: there is no artifact at {out} to compare with; compile it once without --frozen")
    old = load(out).manifest
    for key in sorted({*old, *manifest} - {"files"}):
        if old.get(key) != manifest.get(key):
            raise FrozenError(f"--frozen: {key} differs: {_difference(old.get(key), manifest.get(key))}")
    for name in sorted({*old["files"], *manifest["files"]} - {*manifest["not_reproducible"]}):
        if old["files"].get(name) != manifest["files"].get(name):
            raise FrozenError(f"--frozen: the bytes of {name} differ from those in {out}")


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
        return f"{key}: {_difference(old.get(key), new.get(key))}"
    return f"{json.dumps(old)} in the artifact, {json.dumps(new)} now"


def dump(data: dict[str, Any]) -> str:
    """Canonical JSON text."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@contextmanager
def publish(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that becomes `out` when the block succeeds; an older artifact there is replaced.

    A link is written through.

    Raises:
        GraphoptError: `out` is a file, holds something that is no artifact, or its parent cannot be written.
    """
    if (there := kind_of(out)) not in ("", "folder"):
        raise GraphoptError(f"output {out} is a {there}; compile writes a folder")
    if out.is_dir() and any(out.iterdir()) and not is_artifact(out):
        raise GraphoptError(f"output {out} is a folder with other files in it; give a new or empty folder")
    out = Path(os.path.realpath(out)) if out.is_symlink() else out
    with beside(out) as scratch:
        try:
            yield scratch
            scratch.chmod(0o755)
            _swap(scratch, out)
        except OSError as error:
            if not str(error.filename or scratch).startswith((str(scratch), str(out))):
                raise  # some other file: not ours to explain
            raise GraphoptError(f"cannot write output {out}: {error.strerror or error}") from None


def empty(folder: Path) -> None:
    """Remove what a target wrote into the folder of an artifact that is not finished."""
    for path in folder.iterdir():
        path.unlink()


def _swap(scratch: Path, out: Path) -> None:
    if not out.exists():
        os.replace(scratch, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    os.replace(out, old / "artifact")
    try:
        os.replace(scratch, out)
    except OSError:
        os.replace(old / "artifact", out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
