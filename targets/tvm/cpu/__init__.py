"""A schedule library for CPUs: TVM code that is fast without tuning.

    module = optimize(module, machine)      # an imported, unscheduled Relax module; a Machine
    tvm.compile(module, machine.target())   # memory planning and code generation as usual

pipeline.py     the order of the passes
canonical.py    moves of constants folded
raising.py      calls said again as one operator
attention.py    products and a softmax to attention
binarize.py     packed products of +-1
four_bits.py    products with weights of 4 bits
lower.py        operators to anchors, weights packed
integers.py     integer products of 8-bit codes to anchors
inlining.py     inlining of elementwise blocks
fused.py        a fused function taken apart: anchor and epilogue
anchors.py      the anchors of contractions
choices.py      contractions as data, and how each is cut
blocks.py       the blocks of a function as data
dispatch.py     which rule takes which function
tiling.py       the analytic model of register tiles and tasks
contraction.py  the register-tiled loop nest that convolutions and products share
dots.py         what one step of it multiplies: floats, or words of 8-bit codes
vector_math.py  exponentials as polynomials
loops.py        the vocabulary for building TIR
rules/          one file per family of operators

Importing this package imports no TVM; `optimize` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.targets.tvm.cpu.choices import Pick, analytic

if TYPE_CHECKING:
    import tvm

    from graphopt.targets.tvm.machine import Machine

NOTES = "graphopt.notes"
"""Attribute of an optimized module: what its user should know, a list of lines."""


def optimize(module: tvm.IRModule, machine: Machine, pick: Pick = analytic) -> tvm.IRModule:
    """Schedule a Relax module for a CPU.

    Args:
        module: operators such as R.nn.conv2d and R.matmul in `main`, weights as constants, as importers leave it.
        machine: the CPU.
        pick: is asked how each contraction of static shapes is to be cut.

    Returns:
        A module whose TIR functions are scheduled and whose weights are packed, for static memory planning and the
        virtual machine's code generation.
    """
    from graphopt.targets.tvm.cpu.pipeline import run

    return run(module, machine, pick)
