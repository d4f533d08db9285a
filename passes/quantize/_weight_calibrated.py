"""Weights rounded by what calibration shows of their inputs, and kept so only where that lowers the error on samples
that were held out.

    rounding = Calibrated(ctx, chosen)                     # chosen: node -> Setting, in the order of the graph
    quantized, note = rounding.quantize(weight, setting, signed)

Not here: the algorithms (graphopt/quantization/rounding.py, moments.py) and rounding to nearest (_weight_codes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor
from graphopt.passes.quantize._weight_codes import Quantized, joined, pieces, row_params
from graphopt.quantization.affine import QParams, dequantize, quantize
from graphopt.quantization.moments import Moments, PairedMoments, Windows, bytes_of, why_useless
from graphopt.quantization.rounding import coordinate_descent, gptq, output_error, refit_scales

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._weight_plan import Setting
    from graphopt.passes.quantize._weight_sites import Weight

M = TypeVar("M", Moments, PairedMoments)

BUDGET = 256 << 20
"""Bytes of moments that are gathered in one pass over the samples; one layer alone may take more."""

WIDEST = 8192
"""Beyond this, the moments of a layer take more than a gigabyte."""


class Calibrated:
    """Gathers moments for the sites ahead, a budget of them at a time, on the model as it is by then: what comes later
    sees what was quantized before, and makes up for some of it."""

    def __init__(self, ctx: Context, weights: Mapping[ir.Node, Weight]) -> None:
        self.ctx = ctx
        self._ahead = dict(weights)
        self._moments: dict[tuple[ir.Value, object], Moments] = {}

    def moments(self, weight: Weight) -> Moments:
        """The moments of a weight's inputs.

        Raises:
            NoMatch: they cannot be had.
        """
        key = _key(weight)
        if key not in self._moments:
            self._moments.clear()
            self._gather(weight)
        self._ahead.pop(weight.node, None)
        found = self._moments[key]
        if not found.finite:
            raise NoMatch("its inputs hold NaN or infinities on the samples")
        why = why_useless(found.fit)
        if why is not None:
            raise NoMatch(why)
        return found

    def _gather(self, first: Weight) -> None:
        why = self._why_not(first)
        if why is not None:
            raise NoMatch(why)
        taken = 0
        names: dict[str, Moments] = {}
        for weight in (first, *self._ahead.values()):
            value = weight.node.inputs[0]
            if value is None or value.name is None or self._why_not(weight) is not None:
                continue
            if _key(weight) in self._moments or value.name in names:
                continue  # the same value read in another way waits for the next pass
            groups, width = _sizes(weight)
            taken += bytes_of(width, groups)
            if names and taken > BUDGET:
                break
            names[value.name] = self._moments[_key(weight)] = accumulator(weight, Moments)
        self.ctx.need_calibration().fold(self.ctx.model, names)

    def _why_not(self, weight: Weight) -> str | None:
        if weight.node.graph is not self.ctx.model.graph:
            return "samples show nothing of what is inside a subgraph"
        return why_no_moments(weight)

    def quantize(self, weight: Weight, setting: Setting, signed: bool, alpha: float) -> tuple[Quantized, str]:
        """Codes by the setting's method, or to nearest where they do no better on held-out samples; and what was found.

        Raises:
            NoMatch: the weight or its inputs hold NaN or infinities, or there are no moments.
        """
        import numpy as np

        moments = self.moments(weight)
        held = moments.held_out()
        nearest: list[tuple[np.ndarray, QParams]] = []
        rounded: list[tuple[np.ndarray, QParams]] = []
        errors = np.zeros(2)
        for start, rows in pieces(weight, alpha):
            per_group = weight.count // len(moments.fit)
            for group in range(start // per_group, (start + len(rows) - 1) // per_group + 1):
                part = rows[max(0, group * per_group - start) : (group + 1) * per_group - start]
                params = row_params(part, weight, setting, signed)
                nearest.append((quantize(part, params), params))
                rounded.append(_rounded(part, moments.fit[group], params, setting, weight))
                for index, (codes, used) in enumerate((nearest[-1], rounded[-1])):
                    errors[index] += output_error(part, held[group], dequantize(codes, used))
        if not errors[1] < errors[0]:
            return joined(nearest), f"{setting.method} does no better than nearest on held-out samples"
        return joined(rounded), f"{setting.method}: {errors[1] / errors[0]:.3f} of the error of rounding to nearest"


def _rounded(
    rows: np.ndarray, moments: np.ndarray, params: QParams, setting: Setting, weight: Weight
) -> tuple[np.ndarray, QParams]:
    codes = gptq(rows, moments, params) if setting.method == "gptq" else quantize(rows, params)
    codes = coordinate_descent(rows, moments, params, codes)
    if weight.tensor.dtype.name == "FLOAT":  # narrower scales would have to be rounded again
        params = refit_scales(rows, moments, params, codes)
        codes = coordinate_descent(rows, moments, params, codes, sweeps=1)
    return codes, params


def pair_bytes(weight: Weight, *, same: bool) -> int:
    """What the sums of one layer take; see PairedMoments."""
    groups, width = _sizes(weight)
    return (1 if same else 3) * bytes_of(width, groups)


def why_no_moments(weight: Weight) -> str | None:
    """Why nothing can be learnt from the input of a weight; None when it can."""
    value = weight.node.inputs[0]
    if value is None or const_tensor(value) is not None:
        return "its input is constant"
    if _sizes(weight)[1] > WIDEST:
        return f"it sums over {_sizes(weight)[1]} elements, more than {WIDEST}"
    return None


def _sizes(weight: Weight) -> tuple[int, int]:
    """Groups, and elements that one output sums over."""
    return (_int(weight.node, "group", 1) if weight.node.op_type == "Conv" else 1), weight.width


def _key(weight: Weight) -> tuple[ir.Value, object]:
    """What moments depend on: the value, and how it is read."""
    value = weight.node.inputs[0]
    assert value is not None
    if weight.node.op_type == "Conv":
        return value, str(_windows(weight))
    return value, "across" if _int(weight.node, "transA", 0) else "along"


def accumulator(weight: Weight, kind: Callable[..., M]) -> M:
    """Moments of how a weight reads its input."""
    groups, width = _sizes(weight)
    if weight.node.op_type == "Conv":
        return kind(width, groups, _windows(weight).patches)
    return kind(width, transposed=bool(_int(weight.node, "transA", 0)))


def _windows(weight: Weight) -> Windows:
    node, kernel = weight.node, weight.shape[2:]
    ones = (1,) * len(kernel)
    auto = node.attributes.get("auto_pad")
    kind = "NOTSET" if auto is None else auto.as_string()
    pads: tuple[int, ...] | str = _ints(node, "pads", (0,) * 2 * len(kernel))
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        pads = kind.lower().replace("_", "-")
    elif kind == "VALID":
        pads = (0,) * 2 * len(kernel)
    return Windows(kernel, _ints(node, "strides", ones), _ints(node, "dilations", ones), pads, _int(node, "group", 1))


def _int(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attr = node.attributes.get(name)
    return default if attr is None else tuple(attr.as_ints())
