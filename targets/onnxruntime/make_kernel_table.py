"""Writes kernel_table.json: which ops ONNX Runtime's CPU and CUDA providers have kernels for.

    python -m graphopt.targets.onnxruntime.make_kernel_table [--document OperatorKernels.md --source "URL, V, commit C"]

The CPU part is read from the installed package's registry. No package lists CUDA kernels without a GPU, so that part
comes from docs/OperatorKernels.md of the onnxruntime repository, or stays as it is. Both are stamped into the table.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("kernel_table.json")
_DOMAIN = re.compile(r"\|\*\*Operator Domain:\*\* \*([\w.]+)\*")
_CONSTRAINT = re.compile(r"\*\*(\w+)\*\* = ([^<|]+)")
_FIRST_PARAMETER = re.compile(r"\*(?:in|out)\* \w+:\*\*([^*]+)\*\*")
_TYPE = re.compile(r"tensor\((\w+)\)")
# One entry: [first opset version, last one or None, element types of its data or None when any will do].
Entry = list[Any]


def main() -> None:
    """Parse the arguments and write the table beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, help="docs/OperatorKernels.md; without it the CUDA part stays")
    parser.add_argument("--source", help="where the document was taken from, its version and commit")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    if (options.document is None) != (options.source is None):
        parser.error("--document and --source belong together")
    version, cpu = read_registry("CPUExecutionProvider")
    old = json.loads(TABLE.read_text(encoding="utf-8"))
    source, cuda = old["sources"]["cuda"], old["cuda"]
    if options.document is not None:
        source = f"{options.source}, docs/OperatorKernels.md"
        cuda = read_document(options.document.read_text(encoding="utf-8"), "CUDAExecutionProvider")
    table = {
        "sources": {"cpu": f"onnxruntime {version}, get_all_opkernel_def", "cuda": source},
        "cpu": cpu,
        "cuda": cuda,
    }
    options.output.write_text(_one_op_per_line(table), encoding="utf-8")
    print(f"{options.output}: {len(cpu)} CPU ops, {len(cuda)} CUDA ops")


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


def read_document(text: str, provider: str) -> dict[str, list[Entry]]:
    """The kernels that the document lists for `provider`, in the form of `read_registry`.

    Raises:
        ValueError: no such provider in the document, or a table row that does not follow its form.
    """
    sections = re.split(r"\n## Operators implemented by (\w+)\n", text)
    by_name = dict(zip(sections[1::2], sections[2::2], strict=True))
    if provider not in by_name:
        raise ValueError(f"the document has no section for {provider}; it has {', '.join(by_name)}")
    out: dict[str, list[Entry]] = {}
    domain = op = ""
    firsts: list[str] = []  # the first parameter's type variable, once per schema that the row tells of
    for line in by_name[provider].splitlines():
        found = _DOMAIN.match(line)
        if found:
            domain = "" if found.group(1) == "ai.onnx" else found.group(1)
            continue
        if not line.startswith("|") or line.startswith(("| Op Name", "|Op Name", "|---", "| |")):
            continue
        if not line.startswith("|||"):
            name, parameters = line.split("|")[1:3]
            op = name
            found_in = [_FIRST_PARAMETER.search(part) for part in parameters.split("<br>or<br>")]
            firsts = [first.group(1) for first in found_in if first]
        versions, types = line.rstrip("|").split("|")[-2:]
        constraints = dict(_CONSTRAINT.findall(types))
        _add(out, domain, op, [*_versions(versions, line), _element_types(_data_types(firsts, constraints))])
    return _sorted(out)


def _versions(text: str, line: str) -> tuple[int, int | None]:
    if found := re.fullmatch(r"(\d+)\+", text):
        return int(found.group(1)), None
    if found := re.fullmatch(r"\[(\d+), (\d+)\]", text):
        return int(found.group(1)), int(found.group(2))
    if re.fullmatch(r"\d+", text):
        return int(text), int(text)
    raise ValueError(f"not a range of opset versions: {text!r} in {line!r}")


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
