"""Outliers of activations moved into weights before quantization: SmoothQuant, and the same between convolutions.

Lives here: the two passes. The mechanism is in _channel_scales.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.base import Pass, Tolerance

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context


class _Smoothing(Pass):
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    calibrated: ClassVar[bool] = True
    scope = "main"
    _ops: ClassVar[tuple[str, ...]] = ()

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.passes.quantize._channel_scales import ChannelStats, choose_scale, find_sites, move

        sites = find_sites(ctx, model.graph, self._ops, self._inserts())
        if not sites:
            return
        stats = {site.name: ChannelStats(site.axis) for site in sites}
        ctx.need_calibration().fold(model, stats)
        for name, seen in stats.items():
            # Earlier moves have put new nodes in the place of some.
            there = {site.name: site for site in find_sites(ctx, model.graph, self._ops, self._inserts())}
            site = there[name]
            where, op = ctx.rewriter.site(site.readers[0]), site.readers[0].op_type
            chosen = choose_scale(ctx, site, seen) if seen.usable else None
            if chosen is None:
                ctx.remarks.missed(self.name, where, op, "no scale lowers the expected error by a tenth")
                continue
            if move(ctx, site, chosen[0]):
                by = "in its producer" if site.chain else "by a Mul"
                ctx.remarks.applied(self.name, where, op, f"expected error x {chosen[1]:.2f}; input divided {by}")

    def _inserts(self) -> bool:
        return False


@dataclass(frozen=True)
class EqualizeLayers(_Smoothing):
    """Conv(f(Conv(x, v)), w) -> Conv(f(Conv(x, v / s)), s * w), for f that commutes with positive scales (ReLU, pools).

    s evens out the ranges of the channels between two convolutions, so that one scale for all of them loses less. It
    is chosen per pair by the error that samples let expect; a pair is left alone where that falls by less than a tenth.
    In front of a Clip (ReLU6) only channels that did not reach the bound are scaled, and at most up to it: inputs
    beyond what was seen may then be cut earlier, as a quantizer would cut them.
    Source: Nagel et al., Data-Free Quantization, arXiv 1906.04721, with observed ranges instead of those of weights.
    """

    name: ClassVar[str] = "equalize-layers"
    tolerance: ClassVar[Tolerance] = "lossy"
    _ops: ClassVar[tuple[str, ...]] = ("Conv",)


@dataclass(frozen=True)
class SmoothQuant(_Smoothing):
    """MatMul(x, w) -> MatMul(x / s, s * w), with s = max|x|^a / max|w|^(1 - a) per channel.

    The division goes into the gain of a normalization or into the weights before, where nothing else reads x; else it
    is a Mul (`insert=false` leaves such sites alone). The exponent is chosen per site by the error that samples let
    expect.
    Source: Xiao et al., SmoothQuant, arXiv 2211.10438.
    """

    name: ClassVar[str] = "smooth-quant"
    tolerance: ClassVar[Tolerance] = "reassociates"
    insert: bool = True
    _ops: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm")

    def _inserts(self) -> bool:
        return self.insert
