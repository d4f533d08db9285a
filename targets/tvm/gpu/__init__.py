"""A schedule library for NVIDIA GPUs: every TIR function bound to blocks and threads, without tuning.

    module = optimize(module, machine)      # an imported, unscheduled Relax module; a Machine with a GPU

pipeline.py     the order of the passes
dispatch.py     which rule takes which function
contraction.py  convolutions and products as tiled matrix products; tiling.py chooses their tiles
split.py        sums cut into parts that different blocks add
tensor_cores.py the same with halves, by the instructions of intrinsics.py; halves.py finds them
spatial.py      a thread for each output
scan.py         running sums
loops.py        what no other rule takes
nvcc.py         CUDA source to device code
embedding.py    device code into the library
driver.py       whether a GPU is here that runs it; emulation/ stands in for one

Reductions and the like go to TVM's own dlight. Importing this package imports no TVM; `optimize` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tvm

    from graphopt.targets.tvm.machine import Machine

RULE = "graphopt.rule"
"""Attribute of a scheduled function: the rule that took it."""


def optimize(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """Schedule a Relax module for a GPU.

    Args:
        module: operators in `main`, weights as constants, as importers leave it.
        machine: with a GPU.

    Returns:
        A module whose TIR functions are bound to threads and say which rule did it (RULE).
    """
    from graphopt.targets.tvm.gpu.pipeline import run

    return run(module, machine)
