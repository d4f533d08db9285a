"""What takes the room on a device: code, weights, and TVM's runtime beside them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graphopt.targets.tvm.plan import Part
from graphopt.targets.tvm.runtime import RUNTIME, known_runtime

_CODE = b".text"


def size_report(folder: Path, parts: Iterable[Part], rows: Iterable[Mapping[str, Any]], triple: str) -> dict[str, Any]:
    """Bytes of the files of a compiled model.

    Returns:
        `files`: all parts; `code` and `weights` in libraries (weights as they are packed); `runtime`: TVM's libraries
        by name, None for a machine that there is no known build for.
    """
    parts, rows = list(parts), list(rows)
    libraries = [folder / part.file for part in parts if part.runtime == "tvm"]
    return {
        "files": sum((folder / part.file).stat().st_size for part in parts),
        "code": sum(map(code_bytes, libraries)),
        "weights": sum(row.get("weights", 0) for row in rows),
        "runtime": dict(zip(RUNTIME, sizes, strict=True)) if (sizes := known_runtime(triple)) else None,
    }


def code_bytes(library: Path) -> int:
    """Bytes of the section with machine code of a little-endian ELF file; 0 when it has none."""
    data = library.read_bytes()
    wide = data[4] == 2
    table, entry, count, names = (
        (struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HHH", data, 58))
        if wide
        else (struct.unpack_from("<I", data, 32)[0], *struct.unpack_from("<HHH", data, 46))
    )

    def section(index: int) -> tuple[int, int, int]:
        at = table + index * entry
        (name,) = struct.unpack_from("<I", data, at)
        offset, size = struct.unpack_from("<QQ", data, at + 24) if wide else struct.unpack_from("<II", data, at + 16)
        return name, offset, size

    _, start, length = section(names)
    strings = data[start : start + length]
    found = (section(index) for index in range(count))
    return sum(size for name, _, size in found if strings[name : strings.index(b"\0", name)] == _CODE)
