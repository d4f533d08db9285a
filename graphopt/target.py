"""What a target and a runner must offer. Implementations live in `targets/`.

A target says what it supports, which pipeline it wants and how a model becomes an artifact. A runner executes
a model; the same interface serves numerics, calibration and timing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.environment import physical_bytes
from graphopt.errors import GraphoptError
from graphopt.spec import unbuild

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.analysis.shapes import Shapes
    from graphopt.ir.writer import ExternalData
    from graphopt.tuning import Remote, Tuning

    Feeds = Mapping[str, Any]
    Arrays = dict[str, np.ndarray]


RUN_SECONDS, RUN_BYTES = 600.0, 16 << 30
"""Limits of the child processes that run a model: seconds per request, bytes of anonymous memory."""


def run_bytes(folder: Path) -> int:
    """What running a model from `folder` may take where the runtime copies weights into layouts of its own.

    `RUN_BYTES` and twice the files there, or three quarters of the machine's memory where that is more.
    """
    machine = physical_bytes()
    return max(RUN_BYTES + 2 * bytes_in(folder), machine - machine // 4)


def bytes_in(folder: Path) -> int:
    """Size of the files in a folder, an upper bound of the weights there; 0 for one that may not be listed."""
    try:
        return sum(item.stat().st_size for item in folder.iterdir() if item.is_file())
    except OSError:
        return 0


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, ONNX type text (`tensor(float)`, `seq(tensor(float))`), dims (int, symbol or None)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


class Runner(ABC):
    """Executes one model. It never changes the feeds it is given."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        """Return the named outputs (all when None) for feeds by input name.

        Raises:
            GraphoptError: the runtime refused the model or the feeds, crashed, or ran past its limit.
        """

    @abstractmethod
    def with_taps(self, values: Sequence[str]) -> Runner:
        """Return a runner whose outputs are followed by the named inner values; the interface stays as it is."""

    @abstractmethod
    def time(self, feeds: Feeds, n: int) -> list[float]:
        """Run n times; return each run's seconds."""

    @abstractmethod
    def close(self) -> None:
        """Free the runtime's memory; the runner cannot be used afterwards."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Place(ABC):
    """Another machine, lent for a while, on which compiled files run; a context manager."""

    @abstractmethod
    def load(self, path: Path, settings: Mapping[str, Any] | None = None) -> Runner:
        """Open a compiled main file there.

        Raises:
            GraphoptError: it does not run there.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the machine back; its runners cannot be used afterwards."""

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class CompiledFiles:
    """What a target wrote: files by role, the one to load, settings for the loader, and what could not be checked.

    Attributes:
        model: the ONNX file that `main` was made of, where `main` is none; feeds are made from it.
        details: what the report tells of the compilation.
        decisions: what was chosen by measuring, as JSON values; `Target.compile_tuned` carries them out again.
    """

    main: str
    files: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    not_reproducible: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    model: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    decisions: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class NodeTime:
    """A node of an executed graph: its name and op there, seconds of one run, and elements of its first output."""

    name: str
    op: str
    seconds: float
    elements: int


class Profiling(ABC):
    """A model that is run while its nodes are timed; a context manager."""

    @abstractmethod
    def run(self, n: int) -> list[float]:
        """Run n times; return each run's seconds."""

    @abstractmethod
    def end(self) -> dict[str, NodeTime]:
        """Stop, and tell the nodes' times by name; the first runs count like the others, so warm up before."""

    @abstractmethod
    def close(self) -> None:
        """Free the runtime's memory."""

    def __enter__(self) -> Profiling:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class Cause:
    """Why a node computes in float: a code that stays the same between versions, and a sentence for people."""

    code: str
    reason: str


@dataclass(frozen=True)
class Target(ABC):
    """A place where models run. Its fields are its options, as with passes."""

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages besides ONNX Runtime whose versions decide what is written."""
    tunes: ClassVar[bool] = False
    """Whether `compile_tuned` can be asked."""

    def __str__(self) -> str:
        """The canonical text; registry.make_target reads it back."""
        return str(unbuild(self, self.name))

    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """Where it stands for several targets: their texts. `compile` ships the fastest that verifies (choosing.py).

        Of the alternatives inside one entry the first that compiles counts. Empty for a target of its own.
        """
        return ()

    def is_reference(self) -> bool:
        """True when it computes as the reference does: the same runtime on the same device."""
        return False

    def rounds_operands(self) -> bool:
        """True when it may compute with fewer bits than the model has (TF32): what it changes on the untouched model is
        then noise, and a fault of its code otherwise."""
        return False

    @abstractmethod
    def available(self) -> str | None:
        """None when a model can be run here; else why not and what to install."""

    @abstractmethod
    def supports(self, domain: str, op_type: str, version: int, dtype: str | None = None) -> str | None:
        """None when the target has a kernel for this op (and element type, e.g. 'FLOAT16'); else why it has none."""

    def supports_node(self, node: ir.Node, shapes: Shapes, version: int) -> str | None:
        """None when the target runs this very node, attributes and shapes included; else why not.

        Args:
            node: of the model that `shapes` has analysed.
            version: opset of the node's domain.
        """
        typed = [value for value in node.inputs if value is not None and value.dtype is not None]
        first = typed[-1] if node.op_type == "Where" and typed else next(iter(typed), None)
        dtype = first.dtype.name if first is not None and first.dtype is not None else None
        return self.supports(node.domain, node.op_type, version, dtype)

    def supports_end(self, value: ir.Value) -> str | None:
        """None when a value can be an input or output of what is compiled; else why not."""
        return None

    def as_made(self, path: Path) -> Target:
        """This target with `auto` options as they were decided when the artifact with this main file was compiled.

        Raises:
            GraphoptError: what the artifact says of it cannot be read.
        """
        return self

    def quirks(self) -> frozenset[str]:
        """Measured peculiarities that a pass may go around, by name; each is explained where it is declared."""
        return frozenset()

    @abstractmethod
    def pipeline(self, level: int) -> str:
        """The pipeline text of this target at an optimization level 0..3."""

    @abstractmethod
    def compile(self, model: ir.Model, out: Path, external_data: ExternalData = "auto") -> CompiledFiles:
        """Write the runtime's files into the existing folder `out`; `external_data` says where large weights go."""

    def compile_tuned(
        self, model: ir.Model, out: Path, tuning: Tuning, external_data: ExternalData = "auto"
    ) -> CompiledFiles:
        """As `compile`, with what can be chosen chosen by measuring.

        Raises:
            GraphoptError: the target has no tuner, or what it needs for measuring is missing.
        """
        raise GraphoptError(f"target {self.name} has nothing to tune")

    def settings(self) -> dict[str, Any]:
        """What `load` applies when it is given no settings, as JSON values; its options in the runtime's words."""
        return {}

    @abstractmethod
    def load(self, path: Path, settings: Mapping[str, Any] | None = None, *, time_limit: float = RUN_SECONDS) -> Runner:
        """Open a compiled main file (or any ONNX file) for running.

        Args:
            path: the file.
            settings: how; None for the target's own.
            time_limit: seconds that loading and each request may take.

        Raises:
            RuntimeDied: loading it crashes or takes longer.
            GraphoptError: it does not run here, or the runtime refuses it.
        """

    def remote(self, remote: Remote) -> Place:
        """Borrow a machine elsewhere that runs what this target compiled.

        Raises:
            GraphoptError: the target runs here only, or no machine is there.
        """
        raise GraphoptError(f"target {self.name} runs on this machine only; --remote is for what tvm compiled")

    def executed(self, path: Path, folder: Path, settings: Mapping[str, Any] | None = None) -> Path:
        """Write the graph that the runtime makes of a model into `folder`, as an ONNX file, and return its path.

        Raises:
            GraphoptError: the runtime refuses the model, or does not show its graph.
        """
        raise GraphoptError(
            f"target {self.name} does not show the graph that it executes; --realized needs one that does"
        )

    def why_no_times(self) -> str | None:
        """None when `profile` times nodes; else why it does not."""
        if type(self).profile is not Target.profile:
            return None
        return self._no_times()

    def profile(self, path: Path, feeds: Feeds, folder: Path, settings: Mapping[str, Any] | None = None) -> Profiling:
        """Open a model for timing its nodes; `folder` is for temporary files.

        Raises:
            GraphoptError: the runtime refuses the model, or does not time nodes.
        """
        raise GraphoptError(self._no_times())

    def _no_times(self) -> str:
        return f"target {self.name} does not time single nodes"

    def times_nodes(self) -> bool:
        """Whether `profile` works."""
        return type(self).profile is not Target.profile

    def why_float(self, node: ir.Node) -> Cause:
        """Why a node of an executed graph computes in float though it stands beside a Q/DQ node."""
        return Cause("unknown", f"target {self.name} does not say")
