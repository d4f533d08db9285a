"""Compiling a model: which parts it has, what each becomes, and what the report tells of it.

Libraries are made in a child process (worker_compile.py): a compiler that crashes or hangs is one line.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.analysis.shapes import Shapes
from graphopt.errors import GraphoptError
from graphopt.targets.tvm.ends import spec, why_not_end
from graphopt.targets.tvm.lowering.graph import unsupported
from graphopt.targets.tvm.lowering.table import broadcasts
from graphopt.targets.tvm.partition import Piece, boundary_bytes, one_piece, partition
from graphopt.targets.tvm.parts import extract
from graphopt.targets.tvm.plan import LIBRARY, PLAN, SOURCE, ExecutionPlan, Part
from graphopt.targets.tvm.sizes import size_report

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.targets.tvm.machine import Machine

Choices = Mapping[str, list[Any]]
"""How contractions are cut: the JSON form of a choice by the text of its workload (targets/tvm/cpu/choices.py)."""
_HINT = "tvm{fallback=onnxruntime} leaves what it does not take to ONNX Runtime"
COMPILE_SECONDS = 1800.0
"""A compiler that takes longer is stopped."""


@dataclass(frozen=True)
class Compiled:
    """The plan, files besides plan.json, details for the report, notes for the user, and how often workloads occur."""

    plan: ExecutionPlan
    files: tuple[str, ...]
    details: dict[str, Any]
    notes: tuple[str, ...]
    workloads: Mapping[str, int]

    @property
    def main(self) -> str:
        """The file to load: the library, or the plan where there are several parts."""
        return LIBRARY if [part.file for part in self.plan.parts] == [LIBRARY] else PLAN


def compile_model(
    model: ir.Model, folder: Path, machine: Machine, fallback: bool, threads: int, choices: Choices
) -> Compiled:
    """Compile a model into `folder` and write its plan.

    Args:
        model: standard ops, functions inlined.
        folder: gets the files.
        machine: what code is generated for.
        fallback: leave what TVM does not take to ONNX Runtime.
        threads: of the parts in ONNX Runtime.
        choices: how contractions are cut, by workload; the analytic model decides about the others.

    Raises:
        GraphoptError: nodes that TVM does not take and no fallback, or nothing that it takes; a compiler failed.
    """
    shapes = Shapes(model).infer()
    refused = unsupported(model, shapes)
    if refused and not fallback:
        raise _refusal(refused, model)
    foreign = [(value, why) for value in (*model.graph.inputs, *model.graph.outputs) if (why := why_not_end(value))]
    if foreign and not fallback:
        value, why = foreign[0]
        raise GraphoptError(f"TVM does not take {value.name!r} as input or output: {why}; {_HINT}")
    whole = not refused and not foreign
    pieces = [one_piece(model)] if whole else partition(model, shapes, [node for node, _ in refused])
    if not any(piece.runtime == "tvm" for piece in pieces):
        raise GraphoptError(
            f"no part of the model is worth compiling with TVM: it does not take {_summary(refused) or 'its inputs'}; "
            "use --target cpu"
        )
    parts: list[Part] = []
    files: list[str] = []
    rows: list[dict[str, Any]] = []
    workloads: Counter[str] = Counter()
    for number, piece in enumerate(pieces):
        part, names, told = _compile_piece(model, piece, shapes, folder, machine, threads, number, whole, choices)
        workloads.update(told.pop("workloads", {}))
        parts.append(part)
        files += names
        rows.append({"runtime": piece.runtime, "file": part.file, "nodes": len(piece.nodes), **told})
    graph = model.graph
    specs = [tuple(map(spec, values)) for values in (graph.inputs, graph.outputs)]
    defaults = tuple(value.name or "" for value in graph.inputs if value.is_initializer())
    plan = ExecutionPlan(machine.isa, machine.triple, specs[0], specs[1], tuple(parts), machine.arch, defaults)
    plan.write(folder)
    details = {
        "machine": machine.to_json(),
        "parts": rows,
        "size": size_report(folder, parts, rows, machine.triple),
        "boundary_bytes": boundary_bytes(pieces, shapes),
        "fallback": [{"site": node.name or "", "op": node.op_type, "reason": reason} for node, reason in refused],
    }
    slow = [row for row in rows if row.get("not_scheduled")]
    notes = [*_taken_as_equal(pieces, shapes)]
    notes += [f"{row['file']} is not scheduled and slow: {row['not_scheduled']}" for row in slow]
    notes += [f"{row['file']}: {note}" for row in rows for note in row.get("notes", ())]
    return Compiled(plan, tuple(files), details, tuple(notes), workloads)


def _taken_as_equal(pieces: Sequence[Piece], shapes: Shapes) -> list[str]:
    """A note for every two dims that broadcast in what TVM computes."""
    nodes = [node for piece in pieces if piece.runtime == "tvm" for node in piece.nodes]
    found = {pair for node in nodes for value in node.outputs for pair in broadcasts(shapes, value)}
    return [
        f"dims {a} and {b} broadcast and are taken to be equal, which the library checks; --dim or --input-shapes "
        "binds one to a number"
        for a, b in sorted((str(a), str(b)) for a, b in found)
    ]


def _refusal(refused: list[tuple[ir.Node, str]], model: ir.Model) -> GraphoptError:
    first, reason = refused[0]
    return GraphoptError(
        f"TVM does not take {len(refused)} of {len(model.graph)} nodes ({_summary(refused)}), first "
        f"{first.name or first.op_type!r}: {reason}; {_HINT}; all of them: graphopt inspect --target tvm"
    )


def _summary(refused: list[tuple[ir.Node, str]]) -> str:
    counts = Counter(node.op_type for node, _ in refused)
    return ", ".join(f"{count} {op}" for op, count in counts.most_common(5)) + (" ..." if len(counts) > 5 else "")


def _compile_piece(
    model: ir.Model, piece: Piece, shapes: Shapes, folder: Path, machine: Machine, threads: int, number: int,
    whole: bool, choices: Choices,
) -> tuple[Part, tuple[str, ...], dict[str, Any]]:  # fmt: skip
    from graphopt.ir.writer import write

    inputs, outputs = (tuple(value.name or "" for value in side) for side in (piece.inputs, piece.outputs))
    if piece.runtime == "onnxruntime":
        name = f"part{number}.onnx"
        part = extract(model, piece, shapes)
        _fuse(part, threads)
        return Part("onnxruntime", name, inputs, outputs), write(part, folder / name, "never"), {}
    name = LIBRARY if whole else f"part{number}.so"
    with tempfile.TemporaryDirectory(prefix="graphopt-tvm-") as scratch:
        source = Path(scratch) / "part.onnx"
        write(model if whole else extract(model, piece, shapes), source)
        told = compile_library(source, folder / name, machine, choices)
    kernels = Path(name).with_suffix(SOURCE).name
    return Part("tvm", name, inputs, outputs), (name, *((kernels,) if machine.arch else ())), told


def _fuse(part: ir.Model, threads: int) -> None:
    """The passes that ONNX Runtime's own target ends with."""
    from graphopt.manager import pipeline
    from graphopt.manager.context import Context
    from graphopt.manager.runner import run
    from graphopt.targets.onnxruntime.target import Cpu

    run(part, pipeline.parse("@fuse-target"), Context(part, target=Cpu(threads=threads)))


def compile_library(model: Path, library: Path, machine: Machine, choices: Choices) -> dict[str, Any]:
    """Compile an ONNX file in a child process.

    Returns:
        `seconds` by step, how often each of its `workloads` occurs, and what build.Built tells.

    Raises:
        GraphoptError: a missing compiler, one that crashes or hangs, or TVM refused the model.
    """
    from graphopt.targets.child import Child
    from graphopt.targets.tvm.gpu.nvcc import nvcc
    from graphopt.targets.tvm.toolchain import compiler

    compiler(machine.triple)  # the message comes before the work
    if machine.arch:
        nvcc(machine.arch)
    child = Child("graphopt.targets.tvm.worker_compile", "TVM's compiler", model.name, time_limit=COMPILE_SECONDS)
    try:
        request = {"model": str(model), "library": str(library), "machine": machine.to_json(), "choices": dict(choices)}
        reply, _ = child.ask("compiling", request)
        known = ("seconds", "not_scheduled", "workloads", "rules", "kernels", "weights", "notes")
        return {name: reply[name] for name in known if reply[name] or name == "not_scheduled"}
    finally:
        child.close()
