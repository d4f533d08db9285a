"""Upsample and the first Resize in terms of the Resize that says how coordinates are rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.passes.capture._opset_rules import Edit


def upsample(edit: Edit) -> None:
    """Upsample: scales became an input in opset 9, the op became Resize in 10."""
    import numpy as np

    given = edit.attr("scales") if edit.have < 9 else None
    source = edit.node.inputs[1] if edit.have >= 9 else None
    if not edit.crosses(9) and not edit.crosses(10):
        return
    known = list(given) if given is not None else _factors(source)
    nearest = _rounding(edit, known, "floor")

    def apply() -> None:
        edit.drop("scales")
        scales = source if given is None else edit.const(np.array(given, dtype=np.float32), "scales")
        if not edit.crosses(10):
            edit.connect([edit.node.inputs[0], scales])
            return
        edit.rename("Resize")
        _as_new(edit, scales, nearest)

    edit.later(apply)


def resize(edit: Edit) -> None:
    """Resize of opset 10 left the coordinates open; runtimes map them asymmetrically."""
    if edit.crosses(13) and edit.attr("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise NoMatch("coordinate_transformation_mode tf_half_pixel_for_nn is gone in newer opsets")
    if not edit.crosses(11):
        return
    scales = edit.node.inputs[1]
    nearest = _rounding(edit, _factors(scales), None)
    edit.later(lambda: _as_new(edit, scales, nearest))


def _factors(scales: ir.Value | None) -> list[float] | None:
    """The scales when they are constant.

    Raises:
        NoMatch: they are no vector.
    """
    array = const_array(scales)
    if array is not None and array.ndim != 1:
        raise NoMatch(f"its scales have rank {array.ndim}, not 1")
    return None if array is None else [float(scale) for scale in array]


def _rounding(edit: Edit, scales: list[float] | None, unknown: str | None) -> str:
    """The nearest_mode: growing axes round down and shrinking ones up."""
    if edit.attr("mode", "nearest") != "nearest":
        return "floor"
    if scales is None:
        if unknown is None:
            raise NoMatch("how nearest rounds depends on its scales, which are not constant")
        return unknown
    if all(scale >= 1 for scale in scales):
        return "floor"
    if all(scale <= 1 for scale in scales):
        return "ceil"
    raise NoMatch("it grows some axes and shrinks others, where nearest rounds both ways")


def _as_new(edit: Edit, scales: ir.Value | None, nearest: str) -> None:
    import numpy as np

    if edit.to < 11:
        edit.connect([edit.node.inputs[0], scales])
        return
    edit.set("coordinate_transformation_mode", "asymmetric")
    if edit.attr("mode", "nearest") == "nearest":
        edit.set("nearest_mode", nearest)
    # The region of interest could not be left out before opset 13.
    region = edit.const(np.zeros(0, dtype=np.float32), "roi") if edit.to < 13 else None
    edit.connect([edit.node.inputs[0], region, scales])
