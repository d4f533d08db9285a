"""Mutants that change no number, with the reason: a survivor that is not in here fails the run.

A row is the rule and the mutant's name; `*` in either stands for anything. What is found by a run is added only after
the guard was read: most guards that no graph needs lack a graph.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase

EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    (
        "*",
        "without *: m.sole_use(*)",
        "what others use stays: it is computed twice, not wrongly",
    ),
    (
        "*",
        "without *: m.not_quantized(*)",
        "low-precision groups stay together (test_quantized_groups.py)",
    ),
    (
        "einsum-to-matmul",
        "without *: summed",
        "a product over one element is that of the elements",
    ),
    (
        "eliminate-cast",
        "without *: plain or target.name == 'DOUBLE'",
        "the standard leaves open what is out of range; the CPU does both ways alike",
    ),
    (
        "eliminate-nop-slice",
        "without *: all((scale == 1.0 for scale in scales))",
        "ONNX Runtime copies where the sizes stay; the standard samples elsewhere",
    ),
    (
        "fold-matmul-chain",
        "without *: len(v.uses()) == 1 and len(w.uses()) == 1",
        "a weight with other users stays: a matter of size",
    ),
    (
        "fold-matmul-chain",
        "without *: rows * columns <= inner * (rows + columns)",
        "a matter of size",
    ),
    (
        "fold-matmul-chain",
        "without *: m.is_const(v) and *",
        "m.const refuses the same, after other reasons",
    ),
    (
        "fuse-attention",
        "without _emit_attention._packed: m.equal(*core.dims[-2:])",
        "q, k and v of one source are of one length; this is asked first, as it is cheap",
    ),
    (
        "fuse-attention",
        "without attention._require_private: *",
        "what others use stays: it is computed twice, not wrongly",
    ),
    (
        "*",
        "without _linear.batch_norm_affine: np.isfinite(factor).all() and *",
        "rounded() refuses the same; this one says why",
    ),
    (
        "*",
        "without _linear.rounded: np.isfinite(back).all()",
        "the next guard refuses it too; this one says why",
    ),
    (
        "*",
        "without _linear.copyable: not shared or nbytes(tensor) <= SHARED_LIMIT",
        "a matter of size",
    ),
    (
        "*",
        "without conv_scale._factor: (factor != 0).all()",
        "rounded() refuses the infinity; this one says why",
    ),
    (
        "fuse-global-pool",
        "value",
        "the mean of one element is the element",
    ),
    (
        "fuse-prelu",
        "without *: not m.has('sign') or m.same_shape(m['sign'].outputs[0], x)",
        "the rewriter refuses another rank; this one says why",
    ),
    (
        "fuse-global-pool",
        "without *: m.attr(node, 'keepdims', 1) == 1",
        "the rewriter refuses another rank; this one says why",
    ),
    (
        "fuse-group-norm",
        "without _linear.per_channel: len(dims) <= rank",
        "x has a known rank, so the rewriter refuses another",
    ),
    (
        "fuse-matmul",
        "without *: any(flags)",
        "a FusedMatMul without flags is the MatMul",
    ),
    (
        "fuse-matmul-add",
        "without *: m.is_float(a)",
        "right for integers too; few runtimes have the kernel",
    ),
    (
        "fuse-relu",
        "without *: m.is_float(x)",
        "right for integers too; few runtimes have the kernel",
    ),
    (
        "fuse-prelu",
        "without *: m.is_const(slope)",
        "m.const refuses the same; this one says why",
    ),
    (
        "fuse-scale-shift-conv",
        "without *: (s != 0).all()",
        "rounded() refuses the infinity; this one says why",
    ),
    (
        "fuse-skip-rms-norm",
        "operands",
        "the operands of a sum",
    ),
    (
        "fuse-skip-rms-norm",
        "without *: not _is_scaled_next(node)",
        "the scale is then multiplied behind the fused op",
    ),
    (
        "fuse-softplus",
        "without *: not small",
        "right, but it hides the larger pattern",
    ),
    (
        "merge-constants",
        "without *: constant.size <= max(first.size, second.size)",
        "a matter of size",
    ),
    (
        "simplify-shape-operand",
        "value",
        "a Reshape to its own shape is its input",
    ),
    (
        "keep-residual-sum",
        "without *: m.rank(source) == 3 and *",
        "a Sum of two is their Add; the runtime fuses others not at all",
    ),
    (
        "fuse-prelu",
        "without *: m.ctx.shapes.broadcasts_to(slope, x)",
        "ONNX Runtime lets the slope broadcast x too; the standard does not",
    ),
    (
        "merge-index-squeeze",
        "value",
        "one element picked from one",
    ),
    (
        "merge-index-squeeze",
        "without *_slice_index: m.dims(node.outputs[0])[axis] == 1",
        "the dims behind the Squeeze say the same",
    ),
    (
        "rewrite-transpose-as-reshape",
        "value",
        "a Transpose that keeps order and shape is its input",
    ),
    (
        "fuse-attention",
        "without _layout._quotient: *",
        "parts of other sizes fit no layout",
    ),
    (
        "fuse-attention",
        "without _layout._run: *",
        "no head is split off then, so nothing is fused",
    ),
    (
        "fuse-rotary-embedding",
        "without _layout._run: *",
        "the rest would not fill the shape",
    ),
    (
        "keep-residual-sum",
        "without *: *not _in_qdq_group(value)",
        "low-precision groups stay together",
    ),
)


@functools.cache
def reason_for(rule: str, mutant: str) -> str | None:
    """Why a mutant of a rule is the rule itself in other words, None when nobody found that."""
    rows = (reason for name, text, reason in EQUIVALENT if fnmatchcase(rule, name) and is_called(mutant, text))
    return next(rows, None)


def is_called(mutant: str, text: str) -> bool:
    """Whether the text, in which only `*` is a wildcard, describes the mutant."""
    return fnmatchcase(mutant, text.replace("[", "[[]"))
