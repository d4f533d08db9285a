"""Which weights are quantized and how: the decisions of quantize-weights, as settings per site.

    settings, missed = decide(model, ctx, wishes)      # site -> Setting; node -> reason

Not here: the arithmetic (graphopt.quantization) and the nodes that replace a site (_weight_forms.py).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir import sites
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import nbytes
from graphopt.manager.worklist import Uninteresting
from graphopt.passes.quantize._weight_sites import ALREADY, DONE, SLOT, Weight, find_weight

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.manager.plan_entries import Entry

MATMUL, GATHER, STANDARD = "MatMulNBits", "GatherBlockQuantized", "DequantizeLinear"
_FORMS = {MATMUL: ("MatMul", "Gemm"), GATHER: ("Gather",), STANDARD: ("MatMul", "Gemm", "Gather", "Conv")}
GROUPS = (16, 32, 64, 128, 256)
"""What the kernels of MatMulNBits take."""
TRANSPOSED = "MatMulNBits does not transpose its input"

_VALUES: dict[str, tuple[Any, ...]] = {
    "form": tuple(_FORMS),
    "bits": (4, 8),
    "group": (0, *GROUPS),
    "symmetric": (False, True),
    "clip": ("mse", "none"),
    "method": ("rtn", "gptq", "descent"),
    "compute": ("int8", "float"),
}


def _is_one(allowed: tuple[Any, ...], value: Any) -> bool:
    """Whether it is one of them, with its type: true is no 1."""
    return any(value == item and type(value) is type(item) for item in allowed)


@dataclass(frozen=True)
class Setting:
    """How one weight is quantized; the options of the pass tell the meaning.

    Attributes:
        form: the op that holds the weight: MatMulNBits, GatherBlockQuantized or DequantizeLinear.
        group: columns that share a scale, 0 for one scale per row.
    """

    form: str
    bits: int
    group: int
    symmetric: bool
    clip: str = "mse"
    method: str = "rtn"
    compute: str = "int8"

    def __post_init__(self) -> None:
        for name, allowed in _VALUES.items():
            given = getattr(self, name)
            if not _is_one(allowed, given):
                raise GraphoptError(f"{name}={given!r} is not one of {', '.join(map(str, allowed))}")

    @classmethod
    def from_entry(cls, entry: Entry) -> Setting:
        """Read one entry of a plan.

        Raises:
            GraphoptError: it is something else.
        """
        fields = dataclasses.fields(cls)
        entry.only(*(field.name for field in fields))
        given = {}
        for field in fields:
            if field.name in entry.data or field.default is dataclasses.MISSING:
                allowed = _VALUES[field.name]
                wanted = f"one of {', '.join(map(json.dumps, allowed))}"
                given[field.name] = entry.get(field.name, wanted, partial(_is_one, allowed))
        return cls(**given)

    def fits(self, op_type: str) -> bool:
        return op_type in _FORMS[self.form]


@dataclass(frozen=True)
class Wishes:
    """The options of the pass, with `skip` resolved to nodes."""

    bits: int
    group: int | None
    symmetric: bool
    ops: tuple[str, ...]
    skip: frozenset[ir.Node]
    form: str
    clip: str
    method: str
    compute: str


def decide(model: ir.Model, ctx: Context, wishes: Wishes) -> tuple[dict[ir.Node, Setting], dict[ir.Node, str]]:
    """A setting for each node whose weight is quantized, a reason for each other one that was looked at."""
    chosen: dict[ir.Node, Setting] = {}
    weights: dict[ir.Node, Weight] = {}
    missed: dict[ir.Node, str] = {}
    for node in sites.all_nodes(model):
        if node.op_type in DONE:
            missed[node] = ALREADY
        if node.domain != "" or node.op_type not in wishes.ops:
            continue
        try:
            if node in wishes.skip:
                raise NoMatch("asked for by skip")
            weights[node] = find_weight(node, ctx)
            chosen[node] = choose(weights[node], ctx, wishes)
        except Uninteresting:
            continue
        except NoMatch as reason:
            missed[node] = str(reason)
    drop_shared(chosen, weights, missed, ctx)
    return chosen, missed


def drop_shared(
    chosen: dict[ir.Node, Any], weights: dict[ir.Node, Weight], missed: dict[ir.Node, str], ctx: Context
) -> None:
    """A weight that stays in float for one reader is not stored a second time for the others."""
    while True:
        late = [
            (node, use.node)
            for node in chosen
            for use in weights[node].value.uses()
            if use.node not in chosen or weights[use.node].slot != use.idx
        ]
        late += [(node, node) for node in chosen if weights[node].value.is_graph_output()]
        if not late:
            return
        for node, reader in late:
            where = "an output" if reader is node else f"{ctx.rewriter.site(reader)} ({reader.op_type})"
            missed[node] = f"its weight stays in float for {where}, so a quantized copy would only add to it"
            chosen.pop(node, None)


def choose(weight: Weight, ctx: Context, wishes: Wishes) -> Setting:
    """The setting for one weight.

    Raises:
        NoMatch: no form that the target and the opset offer holds it, or none is smaller than the float.
    """
    form = _form(weight, ctx, wishes)
    group = wishes.group if wishes.group is not None else _usual_group(form, wishes.bits)
    if weight.node.op_type == "Conv":
        group = 0
    if form == STANDARD:
        group = _standard_group(weight, ctx, wishes, group)
    elif group:
        group = min(group, _covering(weight.width))
    setting = Setting(form, wishes.bits, group, wishes.symmetric, wishes.clip, wishes.method, wishes.compute)
    size, was = stored_bytes(weight, setting), nbytes(weight.tensor)
    if size >= was:
        raise NoMatch(f"it would not become smaller: {was} bytes in float, {size} quantized")
    return setting


def _form(weight: Weight, ctx: Context, wishes: Wishes) -> str:
    op_type, dtype = weight.node.op_type, weight.tensor.dtype.name
    if op_type == "Conv" or wishes.form == "dequantize":
        return STANDARD
    own = GATHER if op_type == "Gather" else MATMUL
    reason = ctx.supports(own, "com.microsoft", "UINT8" if own == GATHER else dtype)
    if reason is None and op_type == "Gemm" and _set(weight.node, "transA"):
        reason = TRANSPOSED
    if reason is None:
        return own
    if wishes.form == "matmulnbits":
        raise NoMatch(reason)
    return STANDARD


def _set(node: ir.Node, name: str) -> bool:
    attr = node.attributes.get(name)
    return attr is not None and bool(attr.as_int())


def _usual_group(form: str, bits: int) -> int:
    if bits == 4:
        return 32
    return 0 if form == STANDARD else 128


def _standard_group(weight: Weight, ctx: Context, wishes: Wishes, group: int) -> int:
    """The group that DequantizeLinear of this opset has; a short one serves as a whole row."""
    opset = ctx.rewriter.opset("", weight.node)
    reason = _why_not_standard(weight.node, weight.tensor.dtype.name, opset, wishes.bits, 0)
    if reason is not None:
        raise NoMatch(reason)
    reason = ctx.supports(STANDARD, "", integer_type(wishes.bits, wishes.symmetric))
    if reason is not None:
        raise NoMatch(reason)
    return group if opset >= 21 and group < weight.width else 0


def _why_not_standard(node: ir.Node, dtype: str, opset: int, bits: int, group: int) -> str | None:
    """Why DequantizeLinear of this opset does not hold such a weight; None when it does."""
    needed = 21 if bits == 4 or group or node.op_type == "Gather" else 13
    if dtype != "FLOAT":
        needed = max(needed, 19)
    if opset < needed:
        return f"DequantizeLinear takes this from opset {needed} on; the model has {opset}"
    return "Gather reads no 4-bit table; bits=8 does" if node.op_type == "Gather" and bits == 4 else None


def why_not(setting: Setting, node: ir.Node, ctx: Context) -> str | None:
    """Why the setting of an edited plan, whose form fits, cannot be carried out at a node; None when it can."""
    value = node.inputs[SLOT[node.op_type]]
    dtype = value.dtype.name if value is not None and value.dtype is not None else "FLOAT"
    if setting.form != STANDARD:
        if setting.form == MATMUL and _set(node, "transA"):
            return TRANSPOSED
        return ctx.supports(setting.form, "com.microsoft", "UINT8" if setting.form == GATHER else dtype)
    if node.op_type == "Conv" and setting.group:
        return f"group is {setting.group}; Conv has one scale per output channel, group 0"
    return _why_not_standard(node, dtype, ctx.rewriter.opset("", node), setting.bits, setting.group)


def integer_type(bits: int, symmetric: bool) -> str:
    """The ONNX type of weights for DequantizeLinear: signed where zero is its zero point."""
    return f"{'' if symmetric else 'U'}INT{bits}"


def block_of(weight: Weight, setting: Setting) -> int:
    """Columns per stored scale: where one serves a whole row, ops that want blocks have it several times."""
    if setting.group or setting.form == STANDARD:
        return setting.group or weight.width
    return _covering(weight.width)


def _covering(width: int) -> int:
    """The smallest block that holds a row, or the largest there is."""
    return next((size for size in GROUPS if size >= width), GROUPS[-1])


def stored_bytes(weight: Weight, setting: Setting) -> int:
    """Bytes of codes, scales and zero points."""
    block = block_of(weight, setting)
    groups = -(-weight.width // block)
    width = groups * block if setting.form == MATMUL else weight.width
    codes = weight.count * -(-width * setting.bits // 8)
    zeros = 0 if setting.symmetric else weight.count * -(-groups * setting.bits // 8)
    return codes + zeros + weight.count * groups * weight.tensor.dtype.bitwidth // 8
