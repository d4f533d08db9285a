"""Named pipelines: `O0` (nothing), `O1` (exact only), `O2` (the default), `O3` (everything non-lossy), by stage.

A pass joins by its `stage` and `level`, a third-party one too. `O2{with=[convert-float16]}` adds passes that are off by
default, each in its stage. `@simplify` and the like are single stages.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.manager import registry
from graphopt.manager.base import STAGES, Pass
from graphopt.spec import Spec, parse_spec

LEVELS = ("O0", "O1", "O2", "O3")
# Stages whose rules feed each other; they run until nothing changes.
_REPEATED = {"simplify": 8, "fuse-portable": 4, "fuse-target": 2}


def is_named(name: str) -> bool:
    return name in LEVELS or name.startswith("@")


def expand(spec: Spec) -> Pipeline:
    """The pipeline behind a name.

    Raises:
        GraphoptError: there is no such named pipeline.
    """
    names = [*LEVELS, *(f"@{stage}" for stage in STAGES)]
    options = dict(spec.options)
    extra = options.pop("with", ())
    if spec.name not in names or options:
        raise GraphoptError(f"there is no named pipeline {str(spec)!r}{did_you_mean(spec.name, names)}")
    added = tuple(registry.make(parse_spec(text)) for text in ((extra,) if isinstance(extra, str) else extra))
    if spec.name.startswith("@"):
        return Pipeline(tuple(_stage(spec.name[1:], 3, added)))
    return for_level(int(spec.name[1:]), added)


def for_level(level: int, added: tuple[Pass, ...] = ()) -> Pipeline:
    """The pipeline of `-O<level>`: the stages in order, then simplify once more to clean up after fusions.

    Args:
        level: 0 to 3; at 0 only the added passes run.
        added: passes that join their stage whatever their level.
    """
    items = [item for stage in STAGES for item in _stage(stage, level, added)]
    late = STAGES[STAGES.index("fuse-portable") :]
    fused = level > 0 and any(_members(stage, level, added) for stage in late)
    return Pipeline((*items, *(_stage("simplify", level) if fused else ())))


def _stage(stage: str, level: int, added: tuple[Pass, ...] = ()) -> list[Pass | Fix]:
    members = _members(stage, level, added)
    if not members:
        return []
    rounds = _REPEATED.get(stage)
    return [Fix(tuple(members), rounds)] if rounds else list(members)


def _members(stage: str, level: int, added: tuple[Pass, ...]) -> list[Pass]:
    chosen = {
        name: cls()
        for name, cls in registry.leveled().items()
        if cls.stage == stage
        and cls.level is not None
        and 0 < cls.level <= level
        and (level >= 2 or cls.tolerance == "exact")
    }
    chosen.update({item.name: item for item in added if item.stage == stage})
    return [chosen[name] for name in _ordered(chosen)]


def _ordered(chosen: Mapping[str, Pass]) -> list[str]:
    """Topological by `after`, then by name."""
    done: list[str] = []
    waiting = sorted(chosen)
    while waiting:
        ready = next((name for name in waiting if not any(first in waiting for first in chosen[name].after)), None)
        if ready is None:
            raise GraphoptError(f"the order rules of these passes contradict each other: {', '.join(waiting)}")
        waiting.remove(ready)
        done.append(ready)
    return done


from graphopt.manager.pipeline import Fix, Pipeline  # noqa: E402  (pipeline text and named pipelines know each other)
