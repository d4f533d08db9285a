"""File types: magika on real files of this machine whose extension says what they are.

The files are those of the running Python, of the environment's packages and of /usr: their set differs between
machines, so figures compare models on one machine. The input is made as magika's own feature extraction does.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quant import sources, training
from benchmarks.quant.export import to_opset
from benchmarks.quant.task import LABEL, Spec, top1, write

CALIBRATION = 256
PER_EXTENSION = 120
HALF, BLOCK, PADDING = 1024, 4096, 256
_SMALLEST = 64  # bytes; shorter files say too little
_CONFIG = "magika/models/standard_v3_3/config.min.json"

# Extensions whose content has one right answer among the model's labels.
LABELS = {
    **{name: name for name in ("bmp", "c", "cmake", "css", "csv", "gif", "go", "html", "ico", "ini", "jar")},
    **{name: name for name in ("java", "jinja", "json", "m4", "npy", "npz", "onnx", "otf", "pdf", "php", "png")},
    **{name: name for name in ("rst", "sql", "svg", "tcl", "tiff", "toml", "ttf", "wav", "woff", "woff2", "xml")},
    **{name: name for name in ("xz", "yaml", "zip")},
    **{"bat": "batch", "cc": "cpp", "cpp": "cpp", "exe": "pebin", "f90": "fortran", "gz": "gzip", "hpp": "cpp"},
    **{"jpg": "jpeg", "js": "javascript", "md": "markdown", "pl": "perl", "pm": "perl", "ps": "postscript"},
    **{"ps1": "powershell", "py": "python", "pyc": "pythonbytecode", "rb": "ruby", "sh": "shell", "so": "elf"},
    **{"ts": "typescript", "txt": "txt", "yml": "yaml"},
}


def features(head: bytes, tail: bytes) -> list[int]:
    """2,048 tokens: the first 1,024 bytes without leading white space, the last 1,024 without trailing.

    Args:
        head, tail: the first and the last block (4,096 bytes) of the file.
    """
    first, last = head.lstrip()[:HALF], tail.rstrip()[-HALF:]
    return [*first, *[PADDING] * (HALF - len(first)), *[PADDING] * (HALF - len(last)), *last]


def known_files(folders: list[Path]) -> dict[str, list[Path]]:
    """Files by known extension, in an order that depends on their names only."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        for path in _walk(folder):
            extension = path.suffix[1:].lower()
            if extension in LABELS:
                found[extension].append(path)
    return {extension: sorted(found[extension], key=_shuffled) for extension in sorted(found)}


def _walk(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _shuffled(path: Path) -> bytes:
    return hashlib.sha256(str(path).encode(errors="replace")).digest()


def _read(path: Path) -> list[int] | None:
    """The features of a file; None when it is short, unreadable, or no plain file."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size < _SMALLEST:
            return None
        with path.open("rb") as stream:
            head = stream.read(BLOCK)
            stream.seek(max(0, path.stat().st_size - BLOCK))
            return features(head, stream.read(BLOCK))
    except OSError:
        return None


def samples(files: dict[str, list[Path]], most: int) -> tuple[list[list[int]], list[str]]:
    """Features and labels of at most `most` files of each extension, each content once."""
    rows: list[list[int]] = []
    labels: list[str] = []
    seen: set[tuple[int, ...]] = set()
    for extension, paths in files.items():
        taken = 0
        for path in paths:
            row = _read(path)
            if row is None or tuple(row) in seen:
                continue
            seen.add(tuple(row))
            rows.append(row)
            labels.append(LABELS[extension])
            taken += 1
            if taken == most:
                break
    return rows, labels


def _build(folder: Path) -> None:
    import numpy as np

    from graphopt import models
    from graphopt.models.registry import MAGIKA

    names = json.loads(sources.wheel_member(MAGIKA, _CONFIG).read_text(encoding="utf-8"))["target_labels_space"]
    places = [Path(sysconfig.get_path("stdlib")), Path(sys.prefix), Path("/usr/share"), Path("/usr/lib")]
    rows, labels = samples(known_files(places), PER_EXTENSION)
    order = np.random.default_rng(training.SEED).permutation(len(rows))
    tokens = np.array(rows, np.int32)[order]
    truth = np.array([names.index(label) for label in labels], np.int64)[order]
    to_opset(models.fetch("magika"), folder / "model.onnx")
    write(folder / "calibration.npz", {"bytes": tokens[:CALIBRATION]})
    write(folder / "test.npz", {"bytes": tokens[CALIBRATION:], LABEL: truth[CALIBRATION:]})


_ACCURACY: dict[str, Any] = {"top-1": top1}

SPECS = (Spec("magika", "magika, real files by extension", _build, _ACCURACY),)
