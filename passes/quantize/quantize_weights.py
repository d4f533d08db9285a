"""Weight-only quantization: constant weights of 8 or 4 bits, computed with in float or as the target's kernel does.

Lives here: options, plan, and the rewrite of single sites. Which and how is decided in _weight_plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import GraphoptError
from graphopt.ir import sites
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import nbytes
from graphopt.manager.plan import PlanPass
from graphopt.manager.plan_entries import Entry
from graphopt.passes.quantize import _weight_forms as forms
from graphopt.passes.quantize._selectors import select
from graphopt.passes.quantize._weight_calibrated import Calibrated
from graphopt.passes.quantize._weight_codes import Quantized, quantize_weight
from graphopt.passes.quantize._weight_plan import GROUPS, MATMUL, STANDARD, Setting, Wishes, decide, why_not
from graphopt.passes.quantize._weight_sites import OPS, Weight, find_weight

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context


@dataclass(frozen=True)
class QuantizeWeights(PlanPass):
    """MatMul(x, w) -> MatMulNBits(x, q, scale) or MatMul(x, DequantizeLinear(q, scale)); Gemm, Gather and Conv likewise

    Options:
        bits: 8 or 4.
        group: weights along the reduced axis that share a scale: 16 to 256, a power of two, or 0 for one scale per
            output channel. By default 32 for 4 bits; for 8 bits 128 in blocked ops, else 0. Conv always has one per
            output channel.
        symmetric: zero is the middle code, so that no zero points are stored.
        ops: which ops. Conv is not among the usual ones: ONNX Runtime dequantizes its weight on each run.
        skip: sites, op types or regular expressions of sites that are left alone.
        form: `matmulnbits` for the blocked ops of com.microsoft (GatherBlockQuantized for Gather), `dequantize` for
            standard ops, `auto` for the former where the target has the kernel.
        method: `rtn` rounds to nearest. `gptq` and `descent` round such that the products on calibration samples change
            least: column by column in closed form, then code by code; `descent` does the latter only. What does no
            better on samples that were held out is rounded to nearest, and so is every Gather.
        clip: `mse` shrinks each group's range where that lowers the squared error, `none` spans all of it.
        compute: with MatMulNBits, round activations to `int8` inside the kernel, or keep them in `float`.

    A weight that another reader needs in float stays in float for all: a second copy would only take more room. The
    plan is {"sites": {site: setting}}.
    """

    name: ClassVar[str] = "quantize-weights"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    tolerance = "lossy"

    bits: int = 8
    group: int | None = None
    symmetric: bool = False
    ops: tuple[str, ...] = ("MatMul", "Gemm", "Gather")
    skip: tuple[str, ...] = ()
    form: Literal["auto", "matmulnbits", "dequantize"] = "auto"
    method: Literal["rtn", "gptq", "descent"] = "rtn"
    clip: Literal["mse", "none"] = "mse"
    compute: Literal["int8", "float"] = "int8"

    def check(self) -> None:
        if self.bits not in (4, 8):
            raise GraphoptError(f"pass {self.name!r}: bits={self.bits} is neither 4 nor 8")
        if self.group not in (None, 0, *GROUPS):
            raise GraphoptError(
                f"pass {self.name!r}: group={self.group} is not 0 or one of {', '.join(map(str, GROUPS))}"
            )
        for op_type in self.ops:
            if op_type not in OPS:
                raise GraphoptError(f"pass {self.name!r}: ops={op_type} is not one of {', '.join(OPS)}")

    def plan(self, model: ir.Model, ctx: Context) -> Mapping[str, Any]:
        there = {ctx.rewriter.site(node): node for node in sites.all_nodes(model)} if self.skip else {}
        skip = frozenset(select(self.skip, there, f"pass {self.name!r}: skip"))
        wishes = Wishes(
            self.bits, self.group, self.symmetric, self.ops, skip, self.form, self.clip, self.method, self.compute
        )
        chosen, missed = decide(model, ctx, wishes)
        for node, why in missed.items():
            ctx.remarks.missed(self.name, ctx.rewriter.site(node), node.op_type, why)
        return {"sites": {ctx.rewriter.site(node): asdict(setting) for node, setting in chosen.items()}}

    def apply(self, model: ir.Model, ctx: Context, decisions: Mapping[str, Any]) -> None:
        there = {ctx.rewriter.site(node): node for node in sites.all_nodes(model)}
        chosen = {}
        for site, entry in Entry(f"the plan of {self.name!r}", decisions).entries("sites"):
            setting = Setting.from_entry(entry)
            node = there.get(site)
            if node is None or node.domain != "" or not setting.fits(node.op_type):
                raise GraphoptError(f"the plan of {self.name!r}: there is no {site!r} that {setting.form} stands for")
            reason = why_not(setting, node, ctx)
            if reason is not None:
                raise GraphoptError(f"{entry.where}: {reason}")
            chosen[node] = setting
        work = _Work(ctx, {node: chosen[node] for node in there.values() if node in chosen})
        try:
            for node in work.settings:
                work.attempt(node)
        finally:
            work.report()


class _Work:
    """Rewrites sites one by one; weights with several readers are quantized once."""

    def __init__(self, ctx: Context, settings: Mapping[ir.Node, Setting]) -> None:
        self.ctx, self.settings = ctx, settings
        self.done = 0
        self._floats: dict[ir.Value, int] = {}
        self._made: dict[tuple[Any, ...], dict[str, ir.Value]] = {}
        self._calibrated = Calibrated(ctx, self._by_samples())
        self._found = ""

    def _by_samples(self) -> dict[ir.Node, Weight]:
        """The weights that are rounded by samples of their inputs."""
        weights = {}
        for node, setting in self.settings.items():
            if setting.method != "rtn" and node.op_type != "Gather":
                with suppress(NoMatch):
                    weights[node] = find_weight(node, self.ctx)
        if weights:
            self.ctx.need_calibration()
        return weights

    def attempt(self, node: ir.Node) -> None:
        ctx, rewriter, setting = self.ctx, self.ctx.rewriter, self.settings[node]
        site, op_type = rewriter.site(node), node.op_type
        self._found = ""
        try:
            weight = find_weight(node, ctx)
            extra = forms.fused_bias(weight, setting)
            root, bias = (node, None) if extra is None else extra
            op = rewriter.builder(root)
            try:
                made = self._constants(op, weight, setting)
                rewriter.replace(root, forms.emit(op, weight, setting, made, bias), op, [node])
            except BaseException:
                op.discard()
                raise
        except NoMatch as reason:
            ctx.remarks.missed(ctx.pass_name, site, op_type, str(reason))
            return
        self.done += 1
        self._floats[weight.value] = nbytes(weight.tensor)
        self._made[self._key(weight, setting)] = made
        ctx.remarks.applied(ctx.pass_name, site, op_type, _told(setting) + self._found)

    def _key(self, weight: Weight, setting: Setting) -> tuple[Any, ...]:
        return (weight.value, weight.across, _alpha(weight, setting), weight.node.op_type == "Gather", setting)

    def _constants(self, op: Builder, weight: Weight, setting: Setting) -> dict[str, ir.Value]:
        known = self._made.get(self._key(weight, setting))
        if known is not None and all(value.graph is not None for value in known.values()):
            self._found = ", as before"
            return known
        quantized = self._quantize(weight, setting)
        producer = weight.value.producer()
        home = producer.graph if producer is not None else weight.value.graph
        assert home is not None
        # In the graph of the original, where all its readers see it.
        maker = op if home is op.anchor.graph else self.ctx.rewriter.builder(next(iter(home)))
        name = weight.value.name
        made = {
            role: maker.const(tensor, f"{name}_{role}")
            for role, tensor in forms.tensors(weight, setting, quantized).items()
        }
        if maker is not op:
            op.constants += maker.constants
        return made

    def _quantize(self, weight: Weight, setting: Setting) -> Quantized:
        signed, alpha = setting.form == STANDARD and setting.symmetric, _alpha(weight, setting)
        if setting.method != "rtn" and weight.node.op_type != "Gather":
            try:
                made, found = self._calibrated.quantize(weight, setting, signed, alpha)
            except NoMatch as reason:
                self._found = f"; rounded to nearest: {reason}"
            else:
                self._found = f"; {found}"
                return made
        return quantize_weight(weight, setting, signed, alpha)

    def report(self) -> None:
        if not self.done:
            return
        was = sum(self._floats.values())
        tensors = [value.const_value for made in self._made.values() for value in made.values()]
        now = sum(nbytes(tensor) for tensor in tensors if tensor is not None)
        self.ctx.note(
            f"{self.done} nodes read {len(self._floats)} quantized weights: {was} bytes in float, {now} now "
            f"({was / now:.2f} times smaller)"
        )


def _alpha(weight: Weight, setting: Setting) -> float:
    """The factor of a Gemm's product, which MatMulNBits has in its scales."""
    attr = weight.node.attributes.get("alpha")
    return attr.as_float() if setting.form == MATMUL and attr is not None else 1.0


def _told(setting: Setting) -> str:
    share = f"groups of {setting.group}" if setting.group else "one scale per output channel"
    return f"weight of {setting.bits} bits, {share}, in {setting.form}"
