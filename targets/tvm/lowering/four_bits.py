"""Weights of 4 bits: MatMulNBits, and DequantizeLinear of int4 or uint4 constants.

Both become float weights computed by a TIR function that carries the block size as an attribute: a product with such
weights is computed from the codes (targets/tvm/cpu/four_bits.py), and any other use of them is right without that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.table import lowers

if TYPE_CHECKING:
    import numpy as np

    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

FOUR_BITS = frozenset({"int4", "uint4"})
BLOCK = "graphopt.block"
"""Attribute of the TIR function: rows that share a scale. Its arguments are `Codes`, in their order."""
_MAX_BYTES = 1 << 30
_MIDDLE = 8
"""The zero point of MatMulNBits where none is given."""


@dataclass(frozen=True)
class Codes:
    """Weights [K, N] as (codes - zero) * scale.

    Attributes:
        codes: int8 [K, N], -8 to 15.
        scale, zero: float32 [blocks of K, N].
        block: rows of a block.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    block: int


def floats(c: Lowering, weights: Codes) -> Expr:
    """The weights as floats."""
    block = weights.block

    def compute(codes: Any, scale: Any, zero: Any) -> Any:
        def at(k: Any, n: Any) -> Any:
            return (codes[k, n].astype("float32") - zero[k // block, n]) * scale[k // block, n]

        return c.te_lang.compute(codes.shape, at, name="dequantize")

    arguments = [c.const(array) for array in (weights.codes, weights.scale, weights.zero)]
    return c.builder.emit_te(
        compute, *arguments, primfunc_name_hint="dequantize", primfunc_attrs={BLOCK: c.tirx.IntImm("int64", block)}
    )


# ---- DequantizeLinear ----------------------------------------------------------------------------------------------


def check_constants(n: View) -> str | None:
    """Why a DequantizeLinear of 4-bit codes cannot be lowered; None for other element types."""
    if n.dtype(0) not in FOUR_BITS:
        return None
    for index, what in ((0, "codes"), (2, "a zero point")):
        if n.has(index) and n.const(index, _MAX_BYTES) is None:
            return f"DequantizeLinear with {what} in {n.dtype(0)} computed at run time has no lowering to TVM"
    return None


def dequantized(c: Lowering, n: View) -> Expr | None:
    """Constant matrices with scales by block of an axis, or one per place of the other axis; None for all else."""
    import numpy as np

    codes, scale, zero = (n.const(index, _MAX_BYTES) for index in range(3))
    if codes is None or scale is None or codes.ndim != 2 or n.dtype(1) != "float32" or n.out_dtype() != "float32":
        return None
    block, axis = int(n.attr("block_size", 0)), n.axis(1)
    # Blocks run along the first axis of `Codes`, or a single one does.
    turned = scale.size > 1 and axis == (1 if block else 0)
    codes = codes.astype("int8").T if turned else codes.astype("int8")
    shape = (-(-codes.shape[0] // block) if block else 1, codes.shape[1])

    def spread(values: np.ndarray | None) -> np.ndarray:
        values = np.zeros((), "float32") if values is None else values.astype("float32")
        return np.ascontiguousarray(np.broadcast_to(values.T if turned else values, shape))

    made = floats(c, Codes(np.ascontiguousarray(codes), spread(scale), spread(zero), block or codes.shape[0]))
    return c.op.permute_dims(made, [1, 0]) if turned else made


def codes_of(c: Lowering, n: View, index: int) -> Expr:
    """An operand; constant codes of 4 bits as int8, which TVM computes with."""
    if n.dtype(index) not in FOUR_BITS:
        return c.input(n, index)
    values = n.const(index, _MAX_BYTES)
    assert values is not None
    return c.const(values.astype("int8"))


# ---- MatMulNBits ---------------------------------------------------------------------------------------------------


def _check(n: View) -> str | None:
    if int(n.attr("bits", 4)) != 4:
        return f"MatMulNBits of {n.attr('bits')} bits has no lowering to TVM"
    if n.has(4):
        return "MatMulNBits with a group index has no lowering to TVM"
    if n.has(3) and n.dtype(3) not in ("uint8", "float32"):
        return f"MatMulNBits with zero points in {n.dtype(3)} has no lowering to TVM"
    if any(n.has(index) and n.const(index, _MAX_BYTES) is None for index in (1, 2, 3)):
        return "MatMulNBits with weights computed at run time has no lowering to TVM"
    return None


@lowers("MatMulNBits", dtypes=frozenset({"float32"}), check=_check, domain="com.microsoft")
def matmul_nbits(c: Lowering, n: View) -> Expr:
    """A [..., K] times the transpose of B [N, K], plus a bias; `accuracy_level` allows less than float32, which is
    what this computes in."""
    out = c.op.matmul(c.input(n, 0), floats(c, _nbits(n)))
    return c.op.add(c.emit(out), c.input(n, 5)) if n.has(5) else out


def _nbits(n: View) -> Codes:
    """The operands of MatMulNBits: B [N, blocks, block / 2] bytes, low nibbles first, scales and zero points by row."""
    import numpy as np

    k, columns, block = (int(n.attr(name)) for name in ("K", "N", "block_size"))
    blocks = -(-k // block)
    packed, scale, zero = (n.const(index, _MAX_BYTES) for index in (1, 2, 3))
    assert packed is not None and scale is not None
    codes = _nibbles(packed.reshape(columns, -1))[:, :k]
    if zero is None:
        zero = np.full((columns, blocks), _MIDDLE)
    elif zero.dtype == np.uint8:
        zero = _nibbles(zero.reshape(columns, -1))[:, :blocks]
    scales, zeros = (np.ascontiguousarray(v.reshape(columns, blocks).T.astype("float32")) for v in (scale, zero))
    return Codes(np.ascontiguousarray(codes.T.astype("int8")), scales, zeros, block)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Bytes [N, n] as codes [N, 2 n], low ones first."""
    import numpy as np

    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
