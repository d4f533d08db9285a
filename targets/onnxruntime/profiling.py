"""How long each node of the executed graph takes: ONNX Runtime's own profile, taken in a child process.

Durations are whole microseconds and hold a little of the profiler's own work, the same for every node.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.target import RUN_SECONDS, NodeTime, Profiling
from graphopt.targets.onnxruntime.runner import OrtRunner

if TYPE_CHECKING:
    from graphopt.target import Feeds
    from graphopt.targets.onnxruntime.settings import SessionSettings

_SUFFIX = "_kernel_time"
_KEPT = 0.3  # of a node's runs, the fastest: on a busy machine most of the rest was disturbed by others


class OrtProfiling(Profiling):
    """A model that is run while its nodes are timed.

    Args:
        path: the model.
        settings: session options; threads stop spinning when a run ends, since another model takes its turn then.
        folder: receives the profile.

    Raises:
        GraphoptError: the runtime refuses the model.
    """

    def __init__(self, path: Path, settings: SessionSettings, folder: Path, feeds: Feeds) -> None:
        self._path, self._feeds = path, feeds
        chosen = settings.replace(force_spinning_stop=True)
        prefix = folder / f"profile-{path.stem}-{os.urandom(4).hex()}"
        self._runner = OrtRunner(path, chosen, time_limit=RUN_SECONDS, profile=prefix)

    def run(self, n: int) -> list[float]:
        return self._runner.time(self._feeds, n)

    def end(self) -> dict[str, NodeTime]:
        file = self._runner.end_profile()
        try:
            events = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GraphoptError(f"ONNX Runtime's profile of {self._path} cannot be read: {error}") from None
        finally:
            file.unlink(missing_ok=True)
        return _node_times(events)

    def close(self) -> None:
        self._runner.close()


def _node_times(events: list[Mapping[str, Any]]) -> dict[str, NodeTime]:
    import numpy as np

    durations: dict[str, list[int]] = {}
    about: dict[str, Mapping[str, Any]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        name = name.removesuffix(_SUFFIX)
        durations.setdefault(name, []).append(int(event["dur"]))
        about[name] = event.get("args", {})
    out = {}
    for name, values in durations.items():
        kept = np.sort(values)[: max(1, int(len(values) * _KEPT))]
        args = about[name]
        out[name] = NodeTime(name, str(args.get("op_name", "")), float(kept.mean()) * 1e-6, _elements(args))
    return out


def _elements(args: Mapping[str, Any]) -> int:
    """Elements of the first output, as the profile tells its shape."""
    count = 1
    for item in args.get("output_type_shape", [])[:1]:
        for shape in item.values():
            for dim in shape:
                count *= int(dim)
    return count
