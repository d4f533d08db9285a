"""Runs a Relax mutator over the functions of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm


def mutated(mutator: Any, module: tvm.IRModule) -> tvm.IRModule:
    """The module that a mutator (relax.PyExprMutator, made for this module) makes of it, without what nobody reads."""
    from tvm import relax

    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            mutator.builder_.update_func(name, mutator.visit_expr(function))
    return relax.transform.DeadCodeElimination()(mutator.builder_.get())
