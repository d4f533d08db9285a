"""The inference package, one node at a time: what it would write on values is caught and handed back as results.

It reads shapes and constants from the values themselves, so what is known otherwise (names for nameless dimensions of
inputs, elements of shape tensors) is lent to them for the time of the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from graphopt.analysis import dims
from graphopt.analysis.shape_result import Result
from graphopt.ir.constants import const_tensor

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes


MICROSOFT = "com.microsoft"

# Ops of ONNX Runtime that the package lacks, and the standard op whose shapes they have.
_LIKE = {
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "QuantizeLinear": "QuantizeLinear",
    "DequantizeLinear": "DequantizeLinear",
}


def infer_by_package(shapes: Shapes, node: ir.Node) -> Sequence[Result] | None:
    """Results per output, None when the package has no rule for the op and opset.

    Raises:
        Exception: whatever the rule raised; the node is malformed or the rule has a bug.
    """
    registry, context_class = _package()
    version = shapes.opsets.get(node.domain, shapes.opsets.get("", 1) if node.domain in ("", "ai.onnx") else 1)
    rule = registry.get(node.domain, node.op_type, version=version)
    if rule is None and node.domain == MICROSOFT:
        rule = registry.get("", _LIKE.get(node.op_type, ""), version=shapes.opsets.get("", 1))
    if rule is None:
        return None
    context = context_class(shapes)
    with _lent(shapes, node):
        rule(context, node)
    results = [_result(shapes, context.caught.get(output, {})) for output in node.outputs]
    if node.op_type == "MatMulIntegerToFloat":
        # The type is that of the scales, not of A.
        results[0] = results[0]._replace(dtype=shapes.dtype(node.inputs[2]))
    return results


def _result(shapes: Shapes, caught: dict[str, Any]) -> Result:
    shape, values = caught.get("shape"), caught.get("values")
    size = None
    if shape is not None:
        size = [_checked(shapes, dim) for dim in shape]
    if values is not None:
        values = [dims.canonical(value) for value in values]
    return Result(caught.get("dtype"), size, values, caught.get("type"))


def _checked(shapes: Shapes, dim: Any) -> Any:
    """A dimension that may not be relied on (unknown, negative, made of tensor elements) becomes a new symbol."""
    if isinstance(dim, int):
        if dim < 0:
            raise ValueError(f"a dimension comes out as {dim}")
        return dim
    known = shapes.known(dim)
    if not isinstance(known, int) and any(name.startswith(dims.DATA_PREFIX) for name in dims.symbols(known)):
        return shapes.fresh()
    return known


@contextmanager
def _lent(shapes: Shapes, node: ir.Node) -> Iterator[None]:
    from graphopt import ir

    shape_loans: list[tuple[ir.Value, ir.Shape | None]] = []
    const_loans: list[tuple[ir.Value, Any]] = []
    try:
        for value in node.inputs:
            if value is None:
                continue
            size = shapes.dims(value)
            shape = value.shape
            if size is not None and (shape is None or any(x is not y for x, y in zip(shape, size, strict=False))):
                shape_loans.append((value, shape))
                value.shape = ir.Shape(size)
            if value.const_value is not None:
                if const_tensor(value) is None:
                    # The default of an overridable input is no constant.
                    const_loans.append((value, value.const_value))
                    value.const_value = None
                continue
            elements = shapes.ints(value)
            if elements is not None and size is not None and value.dtype is not None and const_tensor(value) is None:
                const_loans.append((value, None))
                data: Any = list(elements) if size else elements[0]
                value.const_value = ir.tensor(data, dtype=value.dtype)
        yield
    finally:
        for value, shape in shape_loans:
            value.shape = shape
        for value, tensor in const_loans:
            value.const_value = tensor


@lru_cache(maxsize=1)
def _package() -> tuple[Any, Any]:
    from graphopt.ir.lazy_import import import_without_sympy

    package = import_without_sympy("onnx_shape_inference")

    package.registry.collect()

    class Catching(package.ShapeInferenceContext):  # type: ignore[misc, name-defined, unused-ignore]
        """A context that keeps results to itself instead of writing them on the values."""

        def __init__(self, shapes: Shapes) -> None:
            super().__init__(shapes.opsets)
            self.shapes = shapes
            self.caught: dict[ir.Value, dict[str, Any]] = {}

        def new_symbolic_dim(self) -> Any:
            return self.shapes.fresh()

        def set_shape(self, value: ir.Value, shape: Any) -> bool:
            self.caught.setdefault(value, {})["shape"] = shape
            return True

        def set_dtype(self, value: ir.Value, dtype: Any) -> bool:
            self.caught.setdefault(value, {})["dtype"] = dtype
            return True

        def set_type(self, value: ir.Value, type_: Any) -> bool:
            self.caught.setdefault(value, {})["type"] = type_
            return True

        def set_symbolic_value(self, value: ir.Value, data: Any) -> None:
            self.caught.setdefault(value, {})["values"] = data

        def get_symbolic_value(self, value: ir.Value) -> Any:
            known = self.shapes.values(value)
            return None if known is None else list(known)

        def name_anonymous_dims(self, value: ir.Value) -> bool:
            return False

        def add_symbolic_equality(self, a: Any, b: Any) -> None:
            return None

    return package.registry, Catching
