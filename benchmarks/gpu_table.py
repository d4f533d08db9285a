"""Holds the kernel table that ships with graphopt against the registry of the installed ONNX Runtime."""

from __future__ import annotations

from typing import Any, Literal

from benchmarks.isolated import isolated

SHOWN = 8


def check(device: str) -> tuple[Literal["passed", "failed", "not run"], str]:
    """Whether each kernel that the table promises for `device` is in the registry."""
    from graphopt.targets.onnxruntime.kernels import table
    from graphopt.targets.onnxruntime.make_kernel_table import PROVIDERS, read_registry

    # Where a library of one of its providers is missing, ONNX Runtime crashes when it is asked for its kernels.
    ((_, read),) = isolated(read_registry, [PROVIDERS[device]])
    if read is None:
        return "not run", "ONNX Runtime crashed when it listed its kernels, as its GPU package does without TensorRT"
    version, registry = read
    if not registry:
        return "not run", f"the installed ONNX Runtime {version} has no {PROVIDERS[device]}"
    promised = table()[device]
    broken = sorted(promises_without_kernel(promised, registry))
    more = sorted(set(registry) - set(promised))
    source = f"table: {table()['sources'][device]}; installed: {version}"
    unused = f"; {len(more)} ops of the registry are not in the table" if more else ""
    if not broken:
        return "passed", f"{len(promised)} ops, {source}{unused}"
    listed = ", ".join(broken[:SHOWN]) + (", ..." if len(broken) > SHOWN else "")
    return "failed", f"{len(broken)} promises without a kernel: {listed}; {source}; run make_kernel_table{unused}"


def promises_without_kernel(promised: dict[str, Any], registry: dict[str, Any]) -> set[str]:
    """`domain::Op version type` of each promise that no kernel of the registry covers.

    Both map an op to entries of [first version, last version or None, element types or None for any].
    """
    broken = set()
    for op, entries in promised.items():
        for since, _, types in entries:
            fitting = [
                entry for entry in registry.get(op, ()) if entry[0] <= since and (entry[1] is None or since <= entry[1])
            ]
            there = {item for entry in fitting for item in entry[2] or ()}
            if not fitting:
                broken.add(f"{op} {since}")
            elif types is not None and all(entry[2] is not None for entry in fitting):
                broken |= {f"{op} {since} {item}" for item in types if item not in there}
    return broken
