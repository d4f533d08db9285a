"""Opening whatever the user names for running: an ONNX file, or an artifact with the settings in its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import artifact as artifacts
from graphopt.codes import float_facing
from graphopt.errors import GraphoptError
from graphopt.manager.registry import make_target

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.target import Place, Runner, Target


@dataclass(frozen=True)
class Runnable:
    """What a target loads, with the target and settings that it is to be run with.

    Attributes:
        model: the ONNX file behind `path`; None where `path` is one.
        time_limit: seconds that loading and each request may take; None for the target's own limit.
    """

    path: Path
    target: Target
    settings: dict[str, Any]
    model: Path | None = None
    time_limit: float | None = None

    @property
    def graph(self) -> Path:
        """The ONNX file: what feeds are made from."""
        return self.model or self.path

    def open(self, **changes: Any) -> Runner:
        """Open it in a process of its own; `changes` replace single session settings (threads, spinning, ...).

        Raises:
            RuntimeDied: the runtime crashes on the model, or takes longer than the limit.
            GraphoptError: the target cannot run here, or the runtime refuses the model.
        """
        reason = self.target.available()
        if reason is not None:
            raise GraphoptError(f"{self.path} cannot be run here: {reason}")
        settings = {**self.settings, **changes} or None
        if self.time_limit is None:
            return self.target.load(self.path, settings)
        return self.target.load(self.path, settings, time_limit=self.time_limit)

    def open_at(self, place: Place | None, **changes: Any) -> Runner:
        """Open it on a machine elsewhere, which has limits of its own, or here where that is None.

        Raises:
            GraphoptError: as for `open`.
        """
        return self.open(**changes) if place is None else place.load(self.path, {**self.settings, **changes})

    def open_float(self, **changes: Any) -> Runner:
        """Open it as a model of floats, also where its inputs or outputs are codes.

        Raises:
            GraphoptError: as for `open`.
        """
        return float_facing(self.graph, self.open(**changes))


def runnable(source: str | Path, target: str | None = None, time_limit: float | None = None) -> Runnable:
    """What to open for a path.

    Args:
        source: ONNX file or artifact folder.
        target: How to run a plain file (default "cpu"); an artifact knows its own.
        time_limit: As in `Runnable`.

    Raises:
        GraphoptError: no such file, a broken artifact, or a target for an artifact of another one.
    """
    path = Path(source)
    if not path.exists():
        raise GraphoptError(f"{path}: there is no such file or artifact")
    if not path.is_dir():
        chosen = make_target(target or "cpu")
        return Runnable(path, chosen, chosen.settings(), time_limit=time_limit)
    artifact = artifacts.load(path)
    own = make_target(artifact.manifest["target"])
    made = own.as_made(artifact.main)
    if target is not None and make_target(target) != own:
        raise GraphoptError(f"{path} was compiled for {str(own)!r}, not {target!r}; compile it again for that target")
    return Runnable(artifact.main, made, dict(artifact.manifest["settings"]), artifact.model, time_limit)


def runnables(source: str | Path, target: str | None = None, time_limit: float | None = None) -> list[Runnable]:
    """As `runnable`, but one for each candidate of a target that stands for several."""
    if target is None or Path(source).is_dir():
        return [runnable(source, target, time_limit)]
    texts = [texts[-1] for texts in make_target(target).candidates()] or [target]
    return [runnable(source, text, time_limit) for text in texts]


def feeds_for(model: ir.Model, runner: Runner, data: Path | None, seed: int = 0) -> dict[str, Any]:
    """The user's feeds, or legal ones made for the model at sizes that it accepts.

    Raises:
        GraphoptError: the data does not fit the inputs, or the model accepts no made feeds.
    """
    from graphopt.feedfiles import load_feeds
    from graphopt.feeds import bindings_of, make_feeds

    if data is not None:
        return load_feeds(data, runner.inputs)
    bindings, refused = bindings_of(model, runner, seed)
    if not bindings:
        raise GraphoptError(f"no inputs could be made that the model accepts ({refused[0]}); give --data")
    return make_feeds(model, seed, bindings[0])
