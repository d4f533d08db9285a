"""The nodes that stand for a site whose weight is quantized: MatMulNBits, GatherBlockQuantized or DequantizeLinear.

Not here: which form (_weight_plan.py) and the numbers (_weight_codes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.ir.constants import const_tensor
from graphopt.passes.quantize._weight_plan import GATHER, MATMUL, STANDARD, Setting, block_of, integer_type
from graphopt.passes.quantize._weight_sites import Weight
from graphopt.quantization.packing import pack, pack_blocks

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.passes.quantize._weight_codes import Quantized


def tensors(weight: Weight, setting: Setting, made: Quantized) -> dict[str, Any]:
    """The constants of a form by role: `codes`, `scale`, and `zero` unless zero is where the op takes it to be."""
    if setting.form == STANDARD:
        return _standard(weight, setting, made)
    block, scale, zero = block_of(weight, setting), made.scale, made.zero
    blocks = -(-weight.width // block)
    if not setting.group:
        scale, zero = scale.repeat(blocks, axis=1), zero.repeat(blocks, axis=1)
    codes = pack_blocks(made.codes, setting.bits, block) if setting.form == MATMUL else pack(made.codes, setting.bits)
    found = {"codes": codes, "scale": _float(scale, weight)}
    if not setting.symmetric:
        found["zero"] = pack(zero, setting.bits)
    return found


def _standard(weight: Weight, setting: Setting, made: Quantized) -> dict[str, Any]:
    codes, scale, zero = made.codes, made.scale, made.zero
    if weight.across:
        codes, scale, zero = codes.T, scale.T, zero.T
    if not setting.group and weight.node.op_type != "Gather":
        scale, zero = scale.reshape(-1), zero.reshape(-1)
    kind = integer_type(setting.bits, setting.symmetric)
    found = {"codes": _integers(codes.reshape(weight.shape), kind), "scale": _float(scale, weight)}
    if not setting.symmetric:
        found["zero"] = _integers(zero, kind)
    return found


def _float(scale: np.ndarray, weight: Weight) -> Any:
    from graphopt import ir

    dtype = weight.tensor.dtype
    return ir.Tensor(scale.astype(dtype.numpy()), dtype=dtype)


def _integers(codes: np.ndarray, kind: str) -> Any:
    """An integer tensor; 4-bit ones are kept packed."""
    import numpy as np

    from graphopt import ir

    dtype = ir.DataType[kind]
    if dtype.bitwidth >= 8:
        return ir.Tensor(np.ascontiguousarray(codes, dtype.numpy()), dtype=dtype)
    packed = pack(codes.reshape(-1).astype(np.uint8) & 15, 4)
    return ir.PackedTensor(packed, dtype, shape=ir.Shape(codes.shape))


def emit(op: Builder, weight: Weight, setting: Setting, made: dict[str, ir.Value], bias: ir.Value | None) -> ir.Value:
    """What takes the place of the node's output (with `bias`, of the sum behind it)."""
    if setting.form == MATMUL:
        return _matmul_nbits(op, weight, setting, made, bias)
    if setting.form == GATHER:
        return op.node(
            GATHER,
            made["codes"],
            weight.node.inputs[1],
            made["scale"],
            made.get("zero"),
            _domain="com.microsoft",
            bits=setting.bits,
            block_size=block_of(weight, setting),
            gather_axis=0,
            quantize_axis=1,
        )
    if weight.node.op_type == "Gather":
        return _gather_rows(op, weight, setting, made)
    return _dequantized(op, weight, setting, made)


def _matmul_nbits(
    op: Builder, weight: Weight, setting: Setting, made: dict[str, ir.Value], bias: ir.Value | None
) -> ir.Value:
    node = weight.node
    inside = bias
    if node.op_type == "Gemm":
        bias = _gemm_bias(op, node)
        inside = bias if _is_vector(bias, weight.count) else None
    out = op.node(
        MATMUL,
        node.inputs[0],
        made["codes"],
        made["scale"],
        made.get("zero"),
        None,
        inside,
        _domain="com.microsoft",
        K=weight.width,
        N=weight.count,
        bits=setting.bits,
        block_size=block_of(weight, setting),
        accuracy_level=4 if setting.compute == "int8" else 1,
    )
    if bias is None or inside is not None:
        return out
    return op.Add(out, bias)


def _gemm_bias(op: Builder, node: ir.Node) -> ir.Value | None:
    """beta * C of a Gemm."""
    import numpy as np

    bias = node.inputs[2] if len(node.inputs) > 2 else None
    beta = node.attributes.get("beta")
    if bias is None or beta is None or beta.as_float() == 1:
        return bias
    assert bias.dtype is not None
    return op.Mul(bias, np.asarray(beta.as_float(), bias.dtype.numpy()))


def _is_vector(value: ir.Value | None, size: int) -> bool:
    return value is not None and value.shape is not None and list(value.shape) == [size]


def fused_bias(weight: Weight, setting: Setting) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a constant vector behind a MatMul, and that vector: MatMulNBits adds it itself."""
    node = weight.node
    if setting.form != MATMUL or node.op_type != "MatMul":
        return None
    out = node.outputs[0]
    uses = out.uses()
    if len(uses) != 1 or out.is_graph_output():
        return None
    (add,) = (use.node for use in uses)
    if add.op_type != "Add" or add.domain != "" or add.graph is not node.graph:
        return None
    other = next((value for value in add.inputs if value is not out), None)
    if const_tensor(other) is None or not _is_vector(other, weight.count) or other is None or other.dtype != out.dtype:
        return None
    return add, other


def _dequantized(op: Builder, weight: Weight, setting: Setting, made: dict[str, ir.Value]) -> ir.Value:
    along, channels = (0, 1) if weight.across else (1, 0)
    given: dict[str, int] = {"axis": along, "block_size": setting.group} if setting.group else {"axis": channels}
    wide = op.DequantizeLinear(made["codes"], made["scale"], made.get("zero"), **given)
    inputs = list(weight.node.inputs)
    inputs[weight.slot] = wide
    made_node: ir.Value = op.clone(weight.node, inputs)
    return made_node


def _gather_rows(op: Builder, weight: Weight, setting: Setting, made: dict[str, ir.Value]) -> ir.Value:
    """Only the rows that are read become floats."""
    indices = weight.node.inputs[1]
    rows = {role: op.Gather(value, indices, axis=0) for role, value in made.items()}
    block = block_of(weight, setting)
    out: ir.Value = op.DequantizeLinear(rows["codes"], rows["scale"], rows.get("zero"), axis=-1, block_size=block)
    return out
