"""What an artifact of the `tvm` target consists of: plan.json beside the library, read by whoever runs it.

One part is a library or an ONNX file with the names of its inputs and outputs; parts run in order and hand values on
by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from graphopt.errors import GraphoptError
from graphopt.target import TensorSpec
from graphopt.targets.tvm.machine import Isa

PLAN, LIBRARY, MODEL = "plan.json", "model.so", "model.onnx"
SOURCE = ".cu"
"""Ending of the file beside a library that holds the CUDA source of its kernels; read by people and by emulator=cpu."""
_FORMAT = 1


@dataclass(frozen=True)
class Part:
    """One piece of the model, the runtime that runs it, its file, and what it reads and makes, in order."""

    runtime: Literal["tvm", "onnxruntime"]
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ExecutionPlan:
    """The interface, what the libraries are made for, and the parts in order.

    Attributes:
        isa, triple: instruction set and kind of the CPU that runs them, or that launches their kernels.
        arch: the GPU that the kernels are made for (`sm_90`); "" for none.
        defaults: names of inputs that may be left out: their values are initializers of the model beside the plan.
    """

    isa: Isa
    triple: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parts: tuple[Part, ...]
    arch: str = ""
    defaults: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[TensorSpec, ...]:
        """Inputs that must be given."""
        return tuple(spec for spec in self.inputs if spec.name not in self.defaults)

    def write(self, folder: Path) -> None:
        data = {
            "format": _FORMAT,
            "isa": self.isa,
            "triple": self.triple,
            "device": "cuda" if self.arch else "cpu",
            "arch": self.arch,
            "inputs": [[spec.name, spec.type, spec.shape] for spec in self.inputs],
            "outputs": [[spec.name, spec.type, spec.shape] for spec in self.outputs],
            "defaults": self.defaults,
            "parts": [vars(part) for part in self.parts],
        }
        (folder / PLAN).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_plan(folder: Path) -> ExecutionPlan:
    """Read what `write` wrote.

    Raises:
        GraphoptError: it is missing, of another format, or names a file outside the folder.
    """
    try:
        data = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraphoptError(f"{folder}: {PLAN} is missing; it lies beside the library in an artifact") from None
    except (OSError, ValueError) as error:
        raise GraphoptError(f"{folder}: unreadable {PLAN}: {error}") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise GraphoptError(f"{folder}: {PLAN} is of another format; compile the model again")
    try:
        parts = tuple(_part(item) for item in data["parts"])
        if data["isa"] not in get_args(Isa):
            raise ValueError(f"instruction set {data['isa']!r}")
        inputs, outputs, arch = _specs(data["inputs"]), _specs(data["outputs"]), str(data.get("arch", ""))
        defaults = tuple(data.get("defaults", ()))
        plan = ExecutionPlan(data["isa"], data["triple"], inputs, outputs, parts, arch, defaults)
    except (KeyError, TypeError, ValueError) as error:
        raise GraphoptError(f"{folder}: {PLAN} is damaged ({error}); compile the model again") from None
    for part in plan.parts:
        if Path(part.file).name != part.file:
            raise GraphoptError(f"{folder}: {PLAN} names a file outside the folder: {part.file!r}")
    return plan


def _part(item: Mapping[str, Any]) -> Part:
    if item["runtime"] not in ("tvm", "onnxruntime"):
        raise ValueError(f"runtime {item['runtime']!r}")
    return Part(item["runtime"], item["file"], tuple(item["inputs"]), tuple(item["outputs"]))


def _specs(rows: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, text, None if shape is None else tuple(shape)) for name, text, shape in rows)
