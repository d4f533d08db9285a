"""Rules of Resize and Upsample: one axis after the other, each output element a weighted sum of a few inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.table import FLOATS, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def _check(n: View) -> str | None:
    mode = n.attr("coordinate_transformation_mode", "half_pixel" if n.version >= 11 else "asymmetric")
    if mode not in _COORDINATES:
        return f"{n.op} with coordinate_transformation_mode {mode} has no lowering to TVM"
    if n.attr("antialias", 0) or n.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return f"{n.op} with antialias or keep_aspect_ratio_policy has no lowering to TVM"
    if n.attr("exclude_outside", 0):
        return f"{n.op} with exclude_outside has no lowering to TVM"
    if _scales(n) is None:
        return (
            f"{n.op} by factors that are not known has no lowering to TVM; bind the sizes with --dim or --input-shapes"
        )
    if n.attr("mode", "nearest") not in ("nearest", "linear", "cubic"):
        return f"{n.op} with mode {n.attr('mode')} has no lowering to TVM"
    return None


def _scales(n: View) -> list[float] | None:
    """The factor of each axis; None where it is not known."""
    rank = n.rank(0)
    axes = [a + rank if a < 0 else a for a in n.attr("axes", tuple(range(rank)))]
    at = 1 if n.op == "Upsample" or n.version < 11 else 2
    given = n.attr("scales") if "scales" in n.node.attributes else n.const(at)
    if given is not None and len(given):
        out = [1.0] * rank
        for axis, scale in zip(axes, given, strict=True):
            out[axis] = float(scale)
        return out
    if not n.has(3):  # the factors are known at run time only
        return None
    sizes, old = n.out_dims(), n.dims(0)
    if sizes is None or old is None:
        return None
    pairs = list(zip(sizes, old, strict=True))
    if not all((isinstance(a, int) and isinstance(b, int)) or a == b for a, b in pairs):
        return None
    return [1.0 if a == b else float(a) / float(b) for a, b in pairs]  # type: ignore[arg-type]


@lowers("Resize", "Upsample", dtypes=FLOATS, check=_check)
def resize(c: Lowering, n: View) -> Expr:
    scales, out, x = _scales(n), c.out_shape(n), c.input(n, 0)
    assert scales is not None
    for axis, scale in enumerate(scales):
        if scale != 1.0:
            x = _axis(c, n, x, axis, scale, out[axis])
    return x


def _axis(c: Lowering, n: View, x: Expr, axis: int, scale: float, size: Any) -> Expr:
    mode, dtype, tirx = n.attr("mode", "nearest"), n.dtype(0), c.tirx

    def compute(a: Any, size: Any) -> Any:
        old = a.shape[axis]
        shape = [size if d == axis else dim for d, dim in enumerate(a.shape)]

        def tap(i: tuple[Any, ...], place: Any) -> Any:
            inside = tirx.max(tirx.min(place, old - 1), tirx.IntImm("int64", 0))
            return a(*i[:axis], inside, *i[axis + 1 :])

        def at(*i: Any) -> Any:
            where = _source(c, n, i[axis], scale, old, size)
            if mode == "nearest":
                return tap(i, _nearest(c, n, where))
            base = tirx.floor(where)
            part, first = (where - base).astype(dtype), base.astype("int64")
            if mode == "linear":
                return tap(i, first) * (1 - part) + tap(i, first + 1) * part
            weights = _cubic(part, float(n.attr("cubic_coeff_a", -0.75)))
            return sum(tap(i, first + k - 1) * weight for k, weight in enumerate(weights))

        return c.te_lang.compute(shape, at, name="resize")

    return c.te(compute, x, size, name="resize")


def _source(c: Lowering, n: View, index: Any, scale: float, old: Any, new: Any) -> Any:
    """The place in the input that an output index stands for, in floats."""
    mode = n.attr("coordinate_transformation_mode", "half_pixel" if n.version >= 11 else "asymmetric")
    tirx = c.tirx
    place, factor = index.astype("float32"), tirx.const(scale, "float32")
    if mode == "asymmetric":
        return place / factor
    if mode == "align_corners":
        span = tirx.max(new - 1, tirx.IntImm("int64", 1)).astype("float32")
        return place * (old - 1).astype("float32") / span
    half = (place + 0.5) / factor - 0.5
    if mode == "pytorch_half_pixel":
        return tirx.Select(new > 1, half, tirx.const(0.0, "float32"))
    if mode == "half_pixel_symmetric":
        exact = old.astype("float32") * factor
        centre = old.astype("float32") / 2
        return centre * (1 - new.astype("float32") / exact) + half
    return half


def _nearest(c: Lowering, n: View, where: Any) -> Any:
    tirx = c.tirx
    mode = n.attr("nearest_mode", "round_prefer_floor" if n.version >= 11 else "floor")
    if mode == "floor":
        return tirx.floor(where).astype("int64")
    if mode == "ceil":
        return tirx.ceil(where).astype("int64")
    if mode == "round_prefer_ceil":
        return tirx.floor(where + 0.5).astype("int64")
    return tirx.ceil(where - 0.5).astype("int64")


def _cubic(t: Any, a: float) -> list[Any]:
    """Keys' cubic convolution kernel at distances 1 + t, t, 1 - t, 2 - t."""

    def far(d: Any) -> Any:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    def near(d: Any) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]
