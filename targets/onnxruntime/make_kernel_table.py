"""Writes kernel_table.json: which ops ONNX Runtime's CPU and CUDA providers have kernels for.

    python -m graphopt.targets.onnxruntime.make_kernel_table

Read from the installed package's registry, and the version stamped into the table; the part of a provider that the
package lacks stays as it is. onnxruntime-gpu has both, but lists kernels only where there is a GPU and the libraries of
all its providers load, TensorRT's too: without libnvinfer it crashes.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("kernel_table.json")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPE = re.compile(r"tensor\((\w+)\)")
# One entry: [first opset version, last one or None, element types of its data or None when any will do].
Entry = list[Any]


def main() -> None:
    """Parse the arguments and write the table beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TABLE)
    output = parser.parse_args().output
    made = table({device: read_registry(provider) for device, provider in PROVIDERS.items()})
    output.write_text(_one_op_per_line(made), encoding="utf-8")
    print(f"{output}: {len(made['cpu'])} CPU ops, {len(made['cuda'])} CUDA ops")


def table(read: dict[str, tuple[str, dict[str, list[Entry]]]]) -> dict[str, Any]:
    """The shipped table with the parts that were read; a part without kernels is that of the shipped one."""
    out = json.loads(TABLE.read_text(encoding="utf-8"))
    for device, (version, kernels) in read.items():
        if kernels:
            package = "onnxruntime-gpu" if device == "cuda" else "onnxruntime"
            out["sources"][device] = f"{package} {version}, get_all_opkernel_def"
            out[device] = kernels
    return out


def read_registry(provider: str) -> tuple[str, dict[str, list[Entry]]]:
    """The installed package's version, and its kernels as {'domain::Op': [entry, ...]}."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    first, legal = {}, {}
    for schema in state.get_all_operator_schema():
        parameters = schema.inputs or schema.outputs
        if parameters:
            first[schema.domain, schema.name, schema.since_version] = parameters[0].typeStr
            legal[schema.domain, schema.name] = (
                parameters[0].typeStr,
                _element_types(" ".join(parameters[0].types)),
            )
    out: dict[str, list[Entry]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider != provider:
            continue
        since, until = kernel.version_range
        constraints = {name: " ".join(types) for name, types in kernel.type_constraints.items()}
        types = _element_types(_data_types([_newest(first, kernel.domain, kernel.op_name, since)], constraints))
        symbol, allowed = legal.get((kernel.domain, kernel.op_name), ("", None))
        same = types == _element_types(constraints.get(symbol, ""))
        if types and allowed and same and kernel.domain == "com.microsoft":
            types = [name for name in types if name in allowed]
            if not types:
                continue  # registered for a type that the op's schema refuses
        _add(out, kernel.domain, kernel.op_name, [since, None if until > 10_000 else until, types])
    return onnxruntime.__version__, _sorted(out)


def _data_types(firsts: list[str], constraints: dict[str, str]) -> str:
    # T is the data by ONNX's custom, also where a condition comes first (Where, If).
    return next((constraints[name] for name in ("T", *firsts) if name in constraints), "")


def _element_types(text: str) -> list[str] | None:
    return sorted(set(_TYPE.findall(text))) or None


def _newest(first: dict[tuple[str, str, int], str], domain: str, op: str, version: int) -> str:
    fitting = [since for there, name, since in first if (there, name) == (domain, op) and since <= version]
    return first[domain, op, max(fitting)] if fitting else ""


def _add(out: dict[str, list[Entry]], domain: str, op: str, entry: Entry) -> None:
    entries = out.setdefault(f"{domain}::{op}", [])
    for there in entries:
        if there[:2] == entry[:2]:  # one kernel per element type: join them
            there[2] = None if there[2] is None or entry[2] is None else sorted({*there[2], *entry[2]})
            return
    entries.append(entry)


def _sorted(table: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    return {name: sorted(table[name], key=lambda entry: entry[0]) for name in sorted(table)}


def _one_op_per_line(table: dict[str, Any]) -> str:
    parts = [f'"sources": {json.dumps(table["sources"], indent=1)}']
    for device in ("cpu", "cuda"):
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(table[device][name])}" for name in table[device])
        parts.append(f'"{device}": {{\n{rows}\n}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
