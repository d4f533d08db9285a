"""What watches a pipeline run: time, IR dumps, structural checks, the size guard. Numbers are checked by a hook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graphopt.errors import GraphoptError
from graphopt.ir import text

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.base import Pass

When = Literal["each", "end", "off"]
Hook = Callable[["ir.Model", "Pass"], None]


@dataclass(frozen=True)
class Instruments:
    """Options of a run that observe and never change the model.

    Attributes:
        verify: structural checks after each changing pass, at the end, or off.
        print_after: names of passes after which the text form goes to stderr; "all" and "changed" are groups.
        dump_dir: folder that gets `NNN-pass.txt` after each pass.
        dump_changed_only: dump only after passes that changed something.
        before_pass: called with the model before each pass.
        after_pass: called with the model after each changing pass.
    """

    verify: When = "each"
    print_after: tuple[str, ...] = ()
    dump_dir: Path | None = None
    dump_changed_only: bool = False
    before_pass: Hook | None = None
    after_pass: Hook | None = None

    def shows(self, item: Pass, changed: bool) -> bool:
        return item.name in self.print_after or "all" in self.print_after or (changed and "changed" in self.print_after)

    def show(self, model: ir.Model, item: Pass, number: int, changed: bool) -> None:
        """Print and dump the model where asked."""
        if self.shows(item, changed):
            print(
                f"// IR after {item} ({'changed' if changed else 'unchanged'})\n{text.to_text(model)}", file=sys.stderr
            )
        if self.dump_dir is not None and (changed or not self.dump_changed_only):
            try:
                self.dump_dir.mkdir(parents=True, exist_ok=True)
                (self.dump_dir / f"{number:03d}-{item.name}.txt").write_text(text.to_text(model), encoding="utf-8")
            except OSError as error:
                raise GraphoptError(f"--dump-ir {self.dump_dir}: {error.strerror}") from None


@dataclass
class PassRecord:
    """One execution of a pass: seconds, rewrites it applied, node count afterwards."""

    spec: str
    name: str
    seconds: float
    rewrites: int
    nodes: int


@dataclass
class Timings:
    """All executions in order, and what they add up to."""

    records: list[PassRecord] = field(default_factory=list)

    def table(self) -> str:
        """Per pass: seconds, share, runs and rewrites, slowest first."""
        total = sum(r.seconds for r in self.records) or 1e-12
        names = dict.fromkeys(r.name for r in self.records)
        rows = []
        for name in names:
            mine = [r for r in self.records if r.name == name]
            rows.append((sum(r.seconds for r in mine), name, len(mine), sum(r.rewrites for r in mine)))
        lines = [f"{'seconds':>9} {'share':>6} {'runs':>5} {'rewrites':>9}  pass"]
        for seconds, name, runs, rewrites in sorted(rows, reverse=True):
            lines.append(f"{seconds:9.3f} {seconds / total:6.1%} {runs:5d} {rewrites:9d}  {name}")
        lines.append(f"{total:9.3f} {1:6.1%} {len(self.records):5d} {sum(r.rewrites for r in self.records):9d}  total")
        return "\n".join(lines)
