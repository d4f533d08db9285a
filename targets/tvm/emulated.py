"""A Runner of code for another machine: each run is a process of qemu-user, values travel in files.

Slow and exact: for verifying, not for timing. Not here: where the runtime comes from (runtime.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.target import Runner
from graphopt.targets.tvm.interface import Interface
from graphopt.targets.tvm.plan import MODEL, Part, read_plan
from graphopt.targets.tvm.runner import compile_into
from graphopt.targets.tvm.runtime import PROGRAM, runtime_for

if TYPE_CHECKING:
    import numpy as np

    from graphopt.target import Arrays, Feeds
    from graphopt.targets.tvm.target import Tvm

RUN_SECONDS = 1800.0
"""A run that takes longer is stopped."""


def emulator(triple: str) -> str | None:
    """The program of qemu-user for a machine; None when it is not installed."""
    return shutil.which(f"qemu-{triple.partition('-')[0]}")


class EmulatedRunner(Runner):
    """One artifact for another machine."""

    def __init__(self, folder: Path, target: Tvm, threads: int) -> None:
        """Raises GraphoptError: no plan, no emulator, or no runtime for the machine."""
        self.folder, self._target, self._threads = folder, target, threads
        self._plan = read_plan(folder)
        self.inputs, self.outputs = self._plan.required, self._plan.outputs
        self._interface = Interface(folder, self._plan)
        program = emulator(self._plan.triple)
        if program is None:
            raise GraphoptError("running code for another machine needs qemu-user: apt-get install qemu-user")
        self._command = [program, "-L", f"/usr/{self._plan.triple}", str(runtime_for(self._plan.triple) / PROGRAM)]
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        values = self._interface.complete(feeds, outputs)
        for part in self._plan.parts:
            values.update(self._tvm(part, values) if part.runtime == "tvm" else self._here(part, values))
        names = outputs if outputs is not None else [spec.name for spec in self.outputs]
        return {name: values[name] for name in names}

    def _here(self, part: Part, values: dict[str, Any]) -> Arrays:
        from graphopt.targets.onnxruntime.runner import open_runner

        with open_runner(self.folder / part.file) as runner:
            return runner.run({name: values[name] for name in part.inputs}, part.outputs)

    def _tvm(self, part: Part, values: dict[str, Any]) -> dict[str, np.ndarray]:
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="graphopt-qemu-") as name:
            folder, arguments = Path(name), []
            for index, value in enumerate(part.inputs):
                array = np.asarray(values[value])
                array.tofile(folder / f"in{index}.bin")
                arguments.append(f"{array.dtype.name}:{','.join(map(str, array.shape))}:in{index}.bin")
            told = self._execute([str((self.folder / part.file).absolute()), *arguments], folder)
            results = {}
            for index, (value, line) in enumerate(zip(part.outputs, told, strict=True)):
                dtype, _, dims = line.partition(":")
                shape = [int(dim) for dim in dims.split(",") if dim]
                results[value] = np.fromfile(folder / f"out{index}.bin", np.dtype(dtype)).reshape(shape)
        return results

    def _execute(self, arguments: list[str], folder: Path) -> list[str]:
        environment = {**os.environ, "TVM_NUM_THREADS": str(self._threads or 1)}
        command = [*self._command, *arguments]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise GraphoptError(
                f"{self.folder}: a run under qemu took over {RUN_SECONDS:g} s and was stopped"
            ) from None
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
            raise GraphoptError(f"{self.folder} fails under qemu: {lines[-1][:300]}")
        return done.stdout.split()

    def with_taps(self, values: Sequence[str]) -> Runner:
        from graphopt.targets.onnxruntime.taps import write_tapped

        with tempfile.TemporaryDirectory(prefix="graphopt-taps-") as folder:
            scratch = compile_into(write_tapped(self.folder / MODEL, values, Path(folder)), self._target)
        return EmulatedRunner.in_scratch(scratch, self._target, self._threads)

    @classmethod
    def in_scratch(cls, scratch: tempfile.TemporaryDirectory[str], target: Tvm, threads: int) -> EmulatedRunner:
        """A runner whose folder lives as long as it."""
        try:
            runner = cls(Path(scratch.name), target, threads)
        except BaseException:
            scratch.cleanup()
            raise
        runner._scratch = scratch
        return runner

    def time(self, feeds: Feeds, n: int) -> list[float]:
        raise GraphoptError(f"{self.folder}: times under an emulator say nothing; bench it on its own machine")

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()
