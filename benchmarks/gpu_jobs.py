"""Compiling many models for a GPU at the same time, each in a process of its own; timings come after, one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.isolated import spread

PROCESSES = 8
"""At most so many, and one for two cores."""


@dataclass(frozen=True)
class Job:
    """A model to compile: its file, target, precision (`fp16`, None for its own), and the folder of the artifact."""

    name: str
    path: Path
    target: str
    folder: Path
    precision: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision}" if self.precision else self.name


def processes() -> int:
    return max(1, min(PROCESSES, len(os.sched_getaffinity(0)) // 2))


def compile_all(jobs: Sequence[Job]) -> dict[Job, str]:
    """Compile into the folders of the jobs; per job what was wrong, '' when nothing."""
    made = spread(_compile, jobs, min(processes(), max(1, len(jobs))))
    return {job: "the compiler's process died" if error is None else error for job, error in made}


def _compile(job: Job) -> str:
    from benchmarks.latency import SHAPES
    from graphopt import driver
    from graphopt.errors import GraphoptError

    # ONNX Runtime takes dynamic shapes as they are.
    shapes = SHAPES.get(job.name, {}) if job.target.startswith("tvm") else {}
    try:
        driver.compile(
            job.path, job.target, job.folder, driver.Options(repro=None, input_shapes=shapes, precision=job.precision)
        )
    except GraphoptError as error:
        return str(error)
    return ""
