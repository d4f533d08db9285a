"""The anchor of a contraction: which rule computes it, how its weights are packed, and its tensor expression.

    anchor = convolution((1, 56, 56, 64), (64, 64, 3, 3), window, machine, choice)
    anchor.define(x, relax.const(anchor.pack(weights)))

Not here: the rules, and which operators become anchors (lower.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.targets.tvm.cpu.choices import Choice
from graphopt.targets.tvm.cpu.loops import Expr
from graphopt.targets.tvm.cpu.rules import conv2d, depthwise, matmul, winograd
from graphopt.targets.tvm.machine import Machine


@dataclass(frozen=True)
class Anchor:
    """What computes a contraction.

    Attributes:
        name: of the rule.
        pack: constant weights (OIHW, or [K, N]) as the rule wants them.
        define: the expression of the input and the packed weights.
    """

    name: str
    pack: Callable[[np.ndarray], np.ndarray]
    define: Callable[[Any, Any], Any]


def convolution(
    shape: Sequence[int], weights: Sequence[int], window: conv2d.Window, machine: Machine, choice: Choice | None
) -> Anchor:
    """A convolution of an NHWC input with constant OIHW weights; without a choice the fastest by estimate.

    Raises:
        ValueError: the choice is none for this convolution.
    """
    channels = weights[0]
    if depthwise.is_depthwise(weights, window.groups):
        _check(choice, "depthwise")
        return Anchor(depthwise.NAME, depthwise.pack, lambda a, w: depthwise.define(a, w, window, choice))
    if choice is None:
        plan = winograd.better_plan(shape, weights, window, machine)
    elif choice.algorithm == "winograd":
        if not winograd.applies(weights, window):
            raise ValueError("the convolution is none that Winograd's algorithm computes")
        plan = winograd.chosen_plan(choice, conv2d.geometry(shape, weights, window))
    else:
        _check(choice, "direct")
        plan = None
    if plan is not None:
        return Anchor(
            winograd.NAME,
            lambda values: winograd.pack(values, plan, machine),
            lambda a, u: winograd.define(a, u, window, channels, plan.m, choice),
        )
    return Anchor(
        conv2d.NAME,
        lambda values: conv2d.packed(shape, values, window, machine, choice),
        lambda a, w: conv2d.define(a, w, window, channels, choice),
    )


def product(left: Sequence[Expr], channels: int, machine: Machine, choice: Choice | None) -> Anchor:
    """A product of [..., M, K] with constant [K, channels] weights.

    Raises:
        ValueError: the choice is none for a product.
    """
    _check(choice, "direct")
    return Anchor(
        matmul.NAME,
        lambda values: matmul.packed(left, values, machine, choice),
        lambda a, w: matmul.define_packed(a, w, channels, choice),
    )


def batched_product(choice: Choice | None) -> Anchor:
    """A product of two values with equal leading dims; nothing is packed.

    Raises:
        ValueError: the choice is none for a product.
    """
    _check(choice, "direct")
    return Anchor(matmul.NAME, lambda values: values, lambda a, b: matmul.define(a, b, choice))


def _check(choice: Choice | None, algorithm: str) -> None:
    if choice is not None and choice.algorithm != algorithm:
        raise ValueError(f"{choice.algorithm} is chosen where only {algorithm} computes")
