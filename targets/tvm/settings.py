"""How a library is run: threads, and whether idle ones wait actively. In the manifest; the loader applies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.targets.tvm.machine import cores


@dataclass(frozen=True)
class TvmSettings:
    """Options of a process that runs a library.

    Attributes:
        threads: threads that an op is divided among; 0 for one per CPU that the process may use.
        force_spinning_stop: threads sleep as soon as they have nothing to do: slower, fair to other processes.
    """

    threads: int = 0
    force_spinning_stop: bool = False

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise GraphoptError(f"threads={self.threads} is negative; 0 means one per core")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TvmSettings:
        """Read what `to_json` wrote.

        Raises:
            GraphoptError: an unknown field, or a value of another type.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        for key, value in data.items():
            if key not in known:
                raise GraphoptError(f"settings of tvm have no field {key!r}{did_you_mean(key, known)}")
            if type(value) is not type(known[key].default):
                raise GraphoptError(f"setting {key}={value!r} is not of type {type(known[key].default).__name__}")
        return cls(**data)

    def environment(self) -> dict[str, str]:
        """The variables by which TVM's thread pool is told; without them it takes half of the CPUs."""
        out = {"TVM_NUM_THREADS": str(self.threads or cores())}
        return {**out, "TVM_THREAD_POOL_SPIN_COUNT": "0"} if self.force_spinning_stop else out
