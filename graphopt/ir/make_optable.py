"""Writes optable.json: the operator schemas of the installed onnx and onnxruntime, reduced to what passes need.

Run `python -m graphopt.ir.make_optable` after raising either version. Reading schemas at run time would cost 0.2 s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("optable.json")
UNBOUNDED = 2147483647


def row(schema: Any) -> list[Any]:
    """[since_version, min inputs, max inputs (-1: any), min outputs, max outputs, {attribute: type}, deprecated]."""
    kinds = {name: str(attr.type).rsplit(".", 1)[-1] for name, attr in sorted(schema.attributes.items())}
    return [
        schema.since_version,
        schema.min_input,
        _bound(schema.max_input),
        schema.min_output,
        _bound(schema.max_output),
        kinds,
        bool(schema.deprecated),
    ]


def _bound(count: int) -> int:
    return -1 if count == UNBOUNDED else count


def build() -> dict[str, Any]:
    import onnx
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    table: dict[str, dict[str, list[Any]]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in ("", "ai.onnx.ml"):
            table.setdefault(schema.domain, {}).setdefault(schema.name, []).append(row(schema))
    for schema in get_all_operator_schema():
        if schema.domain == "com.microsoft":
            table.setdefault(schema.domain, {}).setdefault(schema.name, []).append(row(schema))
    for ops in table.values():
        for rows in ops.values():
            rows.sort(key=lambda r: r[0])
    return {
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "newest": onnx.defs.onnx_opset_version(),
        "domains": {domain: dict(sorted(ops.items())) for domain, ops in sorted(table.items())},
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(build(), separators=(",", ":"), sort_keys=True) + "\n")
    print(f"wrote {OUT.name}, {OUT.stat().st_size} bytes")
