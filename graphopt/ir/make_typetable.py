"""Writes typetable.json: which operands of each operator may hold float32, and which narrower floats they may hold.

Run `python -m graphopt.ir.make_typetable` after raising the version of onnx or onnxruntime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("typetable.json")
_NARROW = {"tensor(float16)": "FLOAT16", "tensor(bfloat16)": "BFLOAT16"}


def row(since: int, inputs: list[tuple[str, bool]], outputs: list[tuple[str, bool]], types: dict[str, Any]) -> Any:
    """[since, inputs, outputs, {group: narrower floats}]; operands are type groups, '' where no float32 tensor fits.

    Args:
        since: opset of the schema.
        inputs, outputs: (type group, whether it repeats) of each formal operand; a repeating one ends with `*`.
        types: the type texts that each group allows; a group that is missing is a type text itself.
    """
    groups: dict[str, list[str]] = {}

    def slot(group: str, repeats: bool) -> str:
        allowed = types.get(group, [group])
        if "tensor(float)" not in allowed:
            return "*" if repeats else ""
        groups[group] = sorted(_NARROW[text] for text in allowed if text in _NARROW)
        return f"{group}*" if repeats else group

    return [since, [slot(*item) for item in inputs], [slot(*item) for item in outputs], groups]


def build() -> dict[str, Any]:
    import onnx
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    table: dict[str, dict[str, list[Any]]] = {}

    def add(schema: Any, type_of: Any) -> None:
        types = {item.type_param_str: list(item.allowed_type_strs) for item in schema.type_constraints}
        sides = [
            [(type_of(item), str(item.option).endswith("Variadic")) for item in side]
            for side in (schema.inputs, schema.outputs)
        ]
        made = row(schema.since_version, sides[0], sides[1], types)
        if made[3]:
            table.setdefault(schema.domain, {}).setdefault(schema.name, []).append(made)

    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            add(schema, lambda item: item.type_str)
    for schema in get_all_operator_schema():
        if schema.domain == "com.microsoft":
            add(schema, lambda item: item.typeStr)
    for ops in table.values():
        for rows in ops.values():
            rows.sort(key=lambda made: made[0])
    return {
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "domains": {domain: dict(sorted(ops.items())) for domain, ops in sorted(table.items())},
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(build(), separators=(",", ":"), sort_keys=True) + "\n")
    print(f"wrote {OUT.name}, {OUT.stat().st_size} bytes")
