"""The session options that change what a model computes, how fast, or how much memory it takes.

Lives here: one frozen, JSON-able value that the manifest records and the loader applies. Not here: opening sessions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from graphopt.errors import GraphoptError, did_you_mean

OptimizationLevel = Literal["disable_all", "basic", "extended", "layout", "all"]
CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class SessionSettings:
    """Options of one ONNX Runtime session. Defaults are ONNX Runtime's own.

    Attributes:
        threads: threads inside an op; 0 lets the runtime take one per physical core.
        inter_threads: threads that run independent nodes side by side; 0 or 1 runs nodes in order.
        spinning: idle threads burn a core while they wait, which lowers latency and disturbs neighbours.
        force_spinning_stop: threads stop spinning when a run ends (`session.force_spinning_stop`).
        arena: keep freed memory for the next run.
        prepacking: copy constant weights into kernel layout; off keeps mapped weights mapped.
        denormals_as_zero: flush denormal floats, faster on some models and not exact.
        optimization_level: the runtime's own graph optimizers, `disable_all` to `all`.
        disabled_optimizers: names of single optimizers to leave out.
        precise_u8s8: avoid the saturating 16-bit sums of u8s8 kernels on CPUs without VNNI
            (`session.x64quantprecision`).
        deterministic: `use_deterministic_compute`.
        providers: execution providers, most wanted first.
        provider_options: options of the first provider.
        config: further session config entries.
    """

    threads: int = 0
    inter_threads: int = 0
    spinning: bool = True
    force_spinning_stop: bool = False
    arena: bool = True
    prepacking: bool = True
    denormals_as_zero: bool = False
    optimization_level: OptimizationLevel = "all"
    disabled_optimizers: tuple[str, ...] = ()
    precise_u8s8: bool = False
    deterministic: bool = False
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    provider_options: tuple[tuple[str, str], ...] = ()
    config: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.threads < 0 or self.inter_threads < 0:
            raise GraphoptError(f"threads={min(self.threads, self.inter_threads)} is negative; 0 means one per core")
        levels = get_args(OptimizationLevel)
        if self.optimization_level not in levels:
            raise GraphoptError(
                f"optimization level {self.optimization_level!r} is not one of {', '.join(levels)}"
                f"{did_you_mean(self.optimization_level, levels)}"
            )
        if not self.providers:
            raise GraphoptError("a session needs at least one execution provider")

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; tuples of pairs become objects."""
        out: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _PAIRS:
                value = dict(value)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SessionSettings:
        """Read what `to_json` wrote; absent fields take their defaults.

        Raises:
            GraphoptError: an unknown field, or a value that does not fit its field.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                raise GraphoptError(f"session settings have no field {key!r}{did_you_mean(key, known)}")
            default = known[key].default
            if key in _PAIRS:
                fits = isinstance(value, Mapping)
                value = tuple((str(name), str(item)) for name, item in value.items()) if fits else value
            elif isinstance(default, tuple):
                fits = isinstance(value, (list, tuple))
                value = tuple(str(item) for item in value) if fits else value
            else:
                fits = type(value) is type(default)
            if not fits:
                raise GraphoptError(f"session setting {key}={value!r} is not {_wanted(key, default)}")
            values[key] = value
        return cls(**values)

    def replace(self, **changes: Any) -> SessionSettings:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def reference(self) -> SessionSettings:
        """The settings under which results are compared bit by bit: the model as written, one thread.

        Prepacking and arena are off as well, so that a large mapped model stays mapped.
        """
        return self.replace(
            threads=1, inter_threads=0, optimization_level="disable_all", prepacking=False, arena=False, spinning=False
        )


_PAIRS = frozenset({"provider_options", "config"})


def _wanted(key: str, default: object) -> str:
    if key in _PAIRS:
        return "an object"
    return "a list" if isinstance(default, tuple) else f"of type {type(default).__name__}"
