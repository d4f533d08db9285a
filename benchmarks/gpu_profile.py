"""Where ONNX Runtime really ran an artifact's nodes, and how many copies it made, from its own profile.

Not here: the estimate that compile prints (targets/onnxruntime/kernels.py); this is what it is held against.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.artifact import Artifact


@dataclass(frozen=True)
class Profile:
    """Executed nodes by execution provider, and the runtime's own copy nodes among them."""

    nodes: dict[str, int]
    copies: int


def profile(path: Path, settings: Mapping[str, Any], feeds: Mapping[str, Any]) -> Profile:
    """Run a model once in this process with profiling on.

    Args:
        path: ONNX file.
        settings: of the session, as an artifact's manifest holds them.
        feeds: arrays by input name.
    """
    import onnxruntime as ort

    from graphopt.targets.onnxruntime.session import load_device_libraries, session_options
    from graphopt.targets.onnxruntime.settings import SessionSettings

    chosen = SessionSettings.from_json(settings)
    load_device_libraries(chosen)
    options = session_options(chosen)
    options.enable_profiling = True
    providers: list[Any] = [(chosen.providers[0], dict(chosen.provider_options)), *chosen.providers[1:]]
    with tempfile.TemporaryDirectory(prefix="graphopt-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "run")
        session = ort.InferenceSession(str(path), options, providers=providers)
        session.run(None, dict(feeds))
        return read(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))


def read(events: list[dict[str, Any]]) -> Profile:
    """Count the distinct nodes of a profile; a node runs once per round of a loop and is counted once."""
    seen: dict[str, tuple[str, str]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            seen[event["name"]] = (event["args"].get("op_name", ""), event["args"].get("provider", ""))
    copies = sum(op.startswith("Memcpy") for op, _ in seen.values())
    return Profile(dict(Counter(provider for op, provider in seen.values() if not op.startswith("Memcpy"))), copies)


def check(artifact: Artifact, feeds: Mapping[str, Any]) -> tuple[Literal["passed", "failed"], str]:
    """Compare the copies counted at compile time with those of a run."""
    from graphopt.frontends.capture import capture
    from graphopt.targets.onnxruntime.kernels import place

    counted = len(place(capture(artifact.main)[0], "cuda").copies)
    found = profile(artifact.main, artifact.manifest["settings"], feeds)
    where = ", ".join(f"{count} nodes on {provider}" for provider, count in sorted(found.nodes.items()))
    detail = f"{counted} copies counted, {found.copies} in the profile; {where}"
    return ("passed" if found.copies <= counted else "failed"), detail
