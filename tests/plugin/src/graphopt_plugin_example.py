"""A third-party pass and target in one file: what a plug-in package needs, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt import RewritePass
from graphopt.targets.onnxruntime.target import Cpu


@dataclass(frozen=True)
class ReluToMax(RewritePass):
    """Relu(x) -> Max(x, 0)"""

    name: ClassVar[str] = "relu-to-max"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2

    def pattern(self, op, x):
        return op.Relu(x)

    def rewrite(self, op, m, x):
        return op.Max(x, 0.0)


@dataclass(frozen=True)
class Example(Cpu):
    """ONNX Runtime on the CPU under another name"""

    name: ClassVar[str] = "example"
    summary: ClassVar[str] = "An example target"
