"""Runs a pipeline over a model: order, fix-groups, checks after each pass, remarks, the bisect limit.

The model is changed in place. A pass that raises, mutates behind the rewriter's back or breaks a rule is named.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import GateError, GraphoptError, PassError, VerificationError, in_one_line
from graphopt.ir import hash as ir_hash
from graphopt.ir.rewrite_log import Rewrite, StopRewriting
from graphopt.ir.verifier import Interface, verify
from graphopt.manager.base import Pass
from graphopt.manager.context import Context
from graphopt.manager.instruments import Instruments, PassRecord, Timings
from graphopt.manager.pipeline import Fix, Pipeline

if TYPE_CHECKING:
    from graphopt import ir

# Built-in passes are held to the one-gateway rule by the contract tests; watching each would double a run's time.
_TESTED = "graphopt.passes."


@dataclass
class RunResult:
    """What happened: per-pass records, every rewrite in order, remarks, and whether the bisect limit ended the run."""

    timings: Timings
    rewrites: list[Rewrite]
    ctx: Context
    stopped: bool

    def effects(self) -> dict[str, int]:
        """Rewrites applied per pass of the pipeline (0 for one that did nothing)."""
        counts = {record.name: 0 for record in self.timings.records}
        for rewrite in self.rewrites:
            counts[rewrite.pass_name] = counts.get(rewrite.pass_name, 0) + 1
        return counts


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without garbage collection graph building takes half the time: everything made here stays alive anyway."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def run(
    model: ir.Model,
    pipeline: Pipeline,
    ctx: Context,
    instruments: Instruments | None = None,
    require_effect: bool = False,
) -> RunResult:
    """Run the pipeline on the model, in place.

    Args:
        model: The model; also `ctx.model`.
        pipeline: What to run.
        ctx: Target, evaluator, limits.
        instruments: What to observe; None verifies after each pass.
        require_effect: Raise when a pass of the pipeline applied nothing.

    Raises:
        PassError: a pass raised or broke the pass API.
        VerificationError: the model breaks a rule after a pass.
        GateError: `require_effect` and a pass did nothing.
    """
    runner = _Run(model, ctx, instruments or Instruments())
    with collector_paused():
        stopped = runner.go(pipeline)
    result = RunResult(runner.timings, ctx.rewriter.rewrites, ctx, stopped)
    idle = [name for name, count in result.effects().items() if count == 0]
    if require_effect and idle and not stopped:
        reasons = "; ".join(f"{name}: {_why_not(ctx, name)}" for name in idle)
        raise GateError(f"--require-effect: {len(idle)} of {len(result.effects())} passes did nothing ({reasons})")
    return result


def _why_not(ctx: Context, name: str) -> str:
    missed = [remark for remark in ctx.remarks if remark.pass_name == name and remark.status == "missed"]
    return f"{missed[0].site}: {missed[0].reason}" if missed else "nothing in the model matches"


class _Run:
    def __init__(self, model: ir.Model, ctx: Context, instruments: Instruments) -> None:
        self.model = model
        self.ctx = ctx
        self.instruments = instruments
        self.timings = Timings()
        self.interface = Interface.of(model)
        self._idle_at: dict[Pass, int] = {}

    def go(self, pipeline: Pipeline) -> bool:
        stopped = False
        try:
            self._sequence(pipeline.items)
        except StopRewriting:
            stopped = True
        if self.instruments.verify != "off":
            self._verify(None)
        return stopped

    def _sequence(self, items: tuple[Pass | Fix, ...]) -> None:
        for item in items:
            if isinstance(item, Fix):
                for _ in range(item.max):
                    before = self.ctx.rewriter.changes
                    self._sequence(item.items)
                    if self.ctx.rewriter.changes == before:
                        break
            else:
                self._one(item)

    def _one(self, item: Pass) -> None:
        rewriter = self.ctx.rewriter
        if self._idle_at.get(item) == rewriter.changes:
            return  # it changed nothing on this very model already
        before = rewriter.changes
        guarded = self.instruments.verify == "each" and not type(item).__module__.startswith(_TESTED)
        was = ir_hash.fingerprint(self.model) if guarded else 0
        rewriter.pass_name = self.ctx.pass_name = item.name
        if self.instruments.before_pass is not None:
            self.instruments.before_pass(self.model, item)
        start = time.perf_counter()
        try:
            for need in item.needs:
                self.ctx.analysis(need)
            item.run(self.model, self.ctx)
        except StopRewriting:
            if rewriter.changes > before and self.instruments.after_pass is not None:
                self.instruments.after_pass(self.model, item)  # half a pass has changed the model too
            raise
        except (GraphoptError, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:
            raise PassError(f"pass {item.name!r} failed: {in_one_line(error)}") from error
        finally:
            applied = rewriter.changes - before
            self.timings.records.append(PassRecord(str(item), item.name, time.perf_counter() - start, applied, 0))
        if guarded and not applied and ir_hash.fingerprint(self.model) != was:
            raise PassError(
                f"pass {item.name!r} changed the model without the rewriter; mutate through ctx.rewriter only"
            )
        self._after(item, applied)

    def _after(self, item: Pass, applied: int) -> None:
        record = self.timings.records[-1]
        record.nodes = self.ctx.rewriter.index.count()
        if applied:
            if self.instruments.verify == "each":
                self._verify(item)
            self.ctx.keep_only(item.keeps)
            if item.changes_interface:
                self.interface = Interface.of(self.model)
            if self.instruments.after_pass is not None:
                self.instruments.after_pass(self.model, item)
        else:
            self._idle_at[item] = self.ctx.rewriter.changes
        self.instruments.show(self.model, item, len(self.timings.records), bool(applied))

    def _verify(self, item: Pass | None) -> None:
        interface = None if item is not None and item.changes_interface else self.interface
        try:
            verify(self.model, interface)
        except VerificationError as error:
            where = f"after pass {item.name!r}" if item is not None else "after the pipeline"
            raise VerificationError(f"{where}: {error}") from None
