"""Timing nodes while passes run: what a pass is handed as `ctx.timer` (manager.context.Timer).

    ctx = Context(model, timer=SiteTimer(target, feeds, scratch))    # feeds(): one sample, asked for when it is needed

Not here: what the times are used for, and the arithmetic on them (slowness.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.frontends.onnx import load
from graphopt.ir.hash import structural_hash

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.running import Runnable
    from graphopt.slowness import SiteSeconds
    from graphopt.target import Feeds, NodeTime, Target


class SiteTimer:
    """Times models on a target; the same two models are timed once, so that asking again gives the same answer.

    Attributes:
        used: whether anything that a pass decided may depend on what was measured.
    """

    def __init__(self, target: Target | None, feeds: Callable[[], Feeds], scratch: Path) -> None:
        self.used = False
        self._target, self._feeds, self._scratch = target, feeds, scratch
        self._known: dict[tuple[str, str], list[dict[str, NodeTime]]] = {}

    def __call__(self, float_model: ir.Model, int8_model: ir.Model, sites: Collection[str]) -> SiteSeconds:
        """What the nodes of both models take.

        Args:
            float_model, int8_model: the same nodes by name; neither is changed.
            sites: nodes that are in int8 in the second one.

        Raises:
            GraphoptError: there is no target, it does not run here, it does not time nodes, or it refuses a model.
        """
        from graphopt.slowness import SiteSeconds, time_nodes

        why = "no target is set" if self._target is None else self._target.available() or self._target.why_no_times()
        if self._target is None or why is not None:
            raise GraphoptError(f"nodes cannot be timed: {why}")
        key = structural_hash(float_model), structural_hash(int8_model)
        with tempfile.TemporaryDirectory(prefix="timed-", dir=self._scratch) as folder:
            models = [
                _compiled(self._target, model, Path(folder) / name)
                for model, name in ((float_model, "float"), (int8_model, "int8"))
            ]
            feeds = self._feeds()
            if key not in self._known:
                self._known[key] = time_nodes(models, feeds)
            self.used = True
            times = self._known[key]
            return SiteSeconds(load(models[0].graph), {site: site for site in sites}, times[0], times[1], feeds)


def _compiled(target: Target, model: Any, folder: Path) -> Runnable:
    from graphopt.running import Runnable

    folder.mkdir()
    files = target.compile(model, folder)
    return Runnable(folder / files.main, target, dict(files.settings), folder / files.model if files.model else None)
