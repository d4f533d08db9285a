"""All typed building blocks, and a graph grown from them.

A block takes live values of a Pool, appends what exporters write, and leaves its result there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from property import blocks_linear as linear
from property import blocks_math as math
from property import blocks_shape as shape
from property.pool import INT64, SYMBOLS, Pool, fixed

Block = Callable[[Pool], None]

BLOCKS: tuple[tuple[Block, float], ...] = (
    (math.unary, 2),
    (math.odd_operand, 3),
    (math.two_values, 2),
    (math.again, 1),
    (math.clip, 1),
    (math.cast, 1),
    (math.where, 1),
    (math.reduction, 1.5),
    (math.softmax, 0.7),
    (math.activation, 2),
    (math.normalisation, 1.5),
    (shape.transpose, 2),
    (shape.reshape, 2.5),
    (shape.squeeze, 1),
    (shape.expand, 1),
    (shape.slices, 1.5),
    (shape.concat, 1.5),
    (shape.split, 1),
    (shape.gather, 1),
    (shape.pad, 1),
    (linear.matmul, 1.5),
    (linear.conv, 2),
    (linear.pooling, 0.7),
    (linear.quantized, 0.4),
    (linear.folded, 1),
    (linear.attention, 0.3),
)
"""Every block with how often it is drawn."""


def dead(p: Pool) -> None:
    """Nodes that no output needs, and a weight that nothing reads."""
    x = p.value()
    y = p.put("Exp", [x], p.shapes[x])
    for name in (y, p.put("Add", [y, p.scalar(2.0)], p.shapes[y] or fixed(1))):
        p.unwanted.add(name)
    p.weight(np.float32(1), "unread")


def exported(p: Pool) -> None:
    """A node with the notes that torch's exporter leaves."""
    x = p.value()
    p.put("LeakyRelu", [x], p.shapes[x], alpha=0.125)
    note = p.nodes[-1].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.stack_trace", "File model.py, line 1"


def symbolic(p: Pool) -> None:
    """Shape arithmetic on an input with symbolic dims."""
    x = p.given((SYMBOLS["N"], *p.shape(2)))
    target = p.put("Concat", [str(shape.dim_of(p, x, SYMBOLS["N"])), p.ints(-1)], fixed(2), INT64, axis=0)
    _, (a, b), (c, d) = p.shapes[x]
    p.put("Reshape", [x, target], (SYMBOLS["N"], (a * c, b * d)))


def grow(p: Pool, count: int, aimed: Sequence[Block] = ()) -> None:
    """Append `count` random blocks and the aimed ones; what nothing reads then is an output, and some of the rest."""
    start = len(p.nodes)
    blocks = [block for block, _ in BLOCKS]
    weights = np.array([weight for _, weight in BLOCKS])
    for _ in range(count):
        blocks[int(p.random.choice(len(blocks), p=weights / weights.sum()))](p)
    for block in aimed:
        block(p)
    read = {name for node in p.nodes for name in node.input}
    made = [name for node in p.nodes[start:] for name in node.output if name in p.types and name not in p.unwanted]
    p.outputs += [name for name in made if name not in p.outputs and (name not in read or p.chance(0.05))]
    if not p.outputs:
        p.outputs = made[-1:]
