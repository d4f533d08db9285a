"""The Relax function under construction: values by their IR value, constants, and what rules emit through.

Not here: the order of nodes (graph.py), how an op is written (the rules).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir.constants import const_tensor
from graphopt.targets.tvm.lowering.symbols import DimExprs
from graphopt.targets.tvm.lowering.view import View, dtype_name

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shapes import Shapes
    from graphopt.targets.tvm.lowering.codes import Sums

    Expr = Any


class Lowering:
    """What rules write with. `op` is tvm.relax.op; `relax`, `te`, `tirx` and `topi` are TVM's modules of that name.

    Args:
        shapes: analysis of the model, run.
        builder: TVM's BlockBuilder; None makes one.
    """

    def __init__(self, shapes: Shapes, builder: Any = None) -> None:
        from tvm import relax, te, tirx, topi

        self.relax, self.op, self.te_lang, self.tirx, self.topi = relax, relax.op, te, tirx, topi
        self.shapes = shapes
        self.builder = relax.BlockBuilder() if builder is None else builder
        self.symbols = DimExprs(shapes)
        self.functions: dict[ir.Graph, Any] = {}  # branches that are functions already
        self.sums: dict[ir.Value, Sums] = {}  # integer sums behind float values
        self._exprs: dict[ir.Value, Expr] = {}

    # ---- values ----------------------------------------------------------------------------------------------------

    def bind(self, value: ir.Value, expr: Expr) -> None:
        self._exprs[value] = expr

    def get(self, value: ir.Value) -> Expr:
        """The Relax expression of a value; constants are made on first use."""
        if value not in self._exprs:
            tensor = const_tensor(value)
            if tensor is None:
                raise GraphoptError(f"value {value.name!r} is read before it is lowered")
            self._exprs[value] = self.const(tensor.numpy())
        return self._exprs[value]

    def input(self, n: View, index: int) -> Expr:
        """An operand that is there."""
        value = n.value(index)
        if value is None:
            raise GraphoptError(f"{n.op} {n.node.name}: operand {index} is missing")
        return self.get(value)

    def operands(self, n: View, *indices: int, free: int | None = None) -> list[Expr]:
        """Operands that broadcast to the output; dims that are only known to agree at run time are checked there.

        Args:
            n: the node.
            indices: which operands.
            free: axis along which they may differ, as in a concatenation.
        """
        return [self._agreeing(n, index, free) for index in indices]

    def _agreeing(self, n: View, index: int, free: int | None) -> Expr:
        from tvm_ffi import structural_equal

        expr, own, out = self.input(n, index), n.dims(index) or (), n.out_dims() or ()
        first = len(out) - len(own)
        dims = [self.dim(dim) for dim in own]
        for axis, dim in enumerate(own):
            theirs = self.dim(out[first + axis])
            if dim == 1 or first + axis == free or structural_equal(dims[axis], theirs):
                continue
            expr, dims = self._checked(expr, dims, axis, theirs, n.dtype(index))
        return expr

    def _checked(self, expr: Expr, dims: list[Expr], axis: int, dim: Expr, dtype: str) -> tuple[Expr, list[Expr]]:
        """The tensor with `dim` in place of the size of one axis, which at run time has to be the same.

        A view may be smaller than what it looks at, so one alone would cut the tensor: the way there and back fails
        where either is smaller.
        """
        wanted = [*dims[:axis], dim, *dims[axis + 1 :]]
        for shape in (wanted, dims, wanted):
            expr = self.held(expr, self.relax.TensorType(shape, dtype))
        return expr, wanted

    def held(self, expr: Expr, wanted: Any) -> Expr:
        """A tensor with dims in other words, no more elements than it has: a view, which is checked at run time.

        Not match_cast: TVM takes it to define the symbols in `wanted`, endlessly where the old dims contain them.
        """
        shape = self.relax.ShapeExpr(list(wanted.shape))
        return self.emit(self.op.call_pure_packed("vm.builtin.reshape", self.emit(expr), shape, ty_args=wanted))

    def optional(self, n: View, index: int) -> Expr | None:
        return self.input(n, index) if n.has(index) else None

    def const(self, value: np.ndarray | float | int | bool, dtype: str | None = None) -> Expr:
        """A constant; `dtype` as numpy spells it."""
        import numpy as np

        array = np.asarray(value, dtype=dtype)
        if not array.flags.c_contiguous:  # ascontiguousarray would turn a scalar into a vector
            array = np.ascontiguousarray(array)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return self.relax.const(array, dtype=array.dtype.name)  # without it 64-bit scalars become 32-bit ones

    # ---- shapes ----------------------------------------------------------------------------------------------------

    def dim(self, dim: Dim) -> Expr:
        """A dim as an int64 TVM expression."""
        return self.symbols.expr(dim)

    def shape(self, value: ir.Value | None) -> list[Expr]:
        """A value's dims as int64 TVM expressions."""
        dims = self.shapes.dims(value)
        if dims is None:
            name = value.name if value is not None else ""
            raise GraphoptError(f"the rank of {name!r} is not known; fix the input sizes with --input-shapes")
        return [self.dim(dim) for dim in dims]

    def out_shape(self, n: View, index: int = 0) -> list[Expr]:
        return self.shape(n.node.outputs[index])

    def type_of(self, value: ir.Value) -> Any:
        """The Relax type of a tensor."""
        return self.relax.TensorType(self.shape(value), dtype_name(value))

    # ---- emitting --------------------------------------------------------------------------------------------------

    def emit(self, expr: Expr, name: str = "") -> Expr:
        """Bind an expression to a variable, whose type is then known."""
        return self.builder.emit(expr, name)

    def te(
        self,
        compute: Callable[..., Any],
        *args: Any,
        name: str,
        shape: Sequence[Any] | None = None,
        alone: bool = False,
    ) -> Expr:
        """Bind a function in TE over Relax expressions.

        Args:
            compute: from TE tensors and dims to a TE tensor. It must not use dims from outside: TVM renames the symbols
                of the arguments, and a symbol under two names breaks its passes.
            args: the tensors and dims.
            name: of the TIR function.
            shape: a list of dims that is the last argument.
            alone: not to be fused; TVM's fusion loses dims that no buffer of the function has.
        """
        from tvm.ir import Call

        bound = [self.emit(arg) if isinstance(arg, Call) else arg for arg in args]
        if shape is not None:
            bound.append(self.relax.ShapeExpr(list(shape)))
        opaque = 8  # TVM's kOpaque
        attributes = {"primfunc_attrs": {"op_pattern": opaque}} if alone else {}
        return self.builder.emit_te(compute, *bound, primfunc_name_hint=name, **attributes)

    def cast(self, expr: Expr, dtype: str) -> Expr:
        """astype; comparison with zero for bool."""
        have = self.dtype_of(expr)
        if have == dtype:
            return expr
        if dtype == "bool":
            return self.op.not_equal(expr, self.const(0, have))
        if have == "bool" and dtype.startswith("float"):  # TVM cannot build comparisons of vectors cast from bool
            return self.op.where(expr, self.const(1, dtype), self.const(0, dtype))
        return self.op.astype(expr, dtype)

    def widened(self, expr: Expr, dtype: str) -> Expr:
        """Half precision as float32, in which sums are made; everything else as it is."""
        return self.emit(self.op.astype(expr, "float32")) if dtype == "float16" else expr

    def dtype_of(self, expr: Expr) -> str:
        """Element type of a tensor as numpy spells it."""
        dtype = self.builder.normalize(expr).ty.dtype
        return str(getattr(dtype, "dtype", dtype))

    def reshape(self, expr: Expr, shape: Sequence[Any]) -> Expr:
        return self.op.reshape(expr, self.relax.ShapeExpr(list(shape)))

    def is_const(self, expr: Expr) -> bool:
        """Whether an expression is a constant of this module."""
        from tvm.ir import GenericConst

        return isinstance(expr, GenericConst)

    def is_call_tir(self, var: Expr) -> bool:
        """Whether a variable is bound to the call of a TIR function."""
        bound = self.builder.lookup_binding(var) if isinstance(var, self.relax.Var) else None
        return getattr(getattr(bound, "op", None), "name", "") == "relax.call_tir"

    def per_channel(self, vector: Expr, spatial: int) -> Expr:
        """[C] -> [1, C, 1, ...]; a constant stays one."""
        if self.is_const(vector):
            return self.const(vector.value.numpy().reshape((1, -1) + (1,) * spatial))
        return self.op.expand_dims(vector, [0, *range(2, 2 + spatial)])
