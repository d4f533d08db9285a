"""One contraction as a function of its own, with the epilogue that most networks give it: what tuning measures.

    function, weights = kernel(workload, choice, machine)   # fn(x, weights, bias, out); batch_matmul: fn(x, y, out)

Inputs and weights are made by the workload's shapes, the same for every choice. Imports TVM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx

from graphopt.targets.tvm.cpu import anchors
from graphopt.targets.tvm.cpu.choices import Choice, Workload
from graphopt.targets.tvm.cpu.dispatch import schedule_function
from graphopt.targets.tvm.cpu.rules.conv2d import Window
from graphopt.targets.tvm.machine import Machine
from graphopt.targets.tvm.toolchain import linker
from graphopt.targets.tvm.tuning.worker_measure import LIBRARY, WEIGHTS


def kernel(workload: Workload, choice: Choice | None, machine: Machine) -> tuple[Any, np.ndarray]:
    """The scheduled function, and its packed weights. Constant weights come with a bias, a convolution with a ReLU too.

    Raises:
        ValueError: the choice is none for this workload.
    """
    anchor = _anchor(workload, choice, machine)
    values = np.random.default_rng(0).standard_normal(workload.weights, "float32")
    weights = anchor.pack(values)
    x, w = _place(workload.inputs, "x"), _place(weights.shape, "w")
    result = anchor.define(x, w)
    if workload.op == "batch_matmul":
        return schedule_function(te.create_prim_func([x, w, result]), machine), weights
    bias = _place((int(result.shape[-1]),), "bias")
    out = te.compute(result.shape, lambda *i: _finish(workload, result(*i) + bias[i[-1]]), "out")
    return schedule_function(te.create_prim_func([x, w, bias, out]), machine), weights


def shapes(workload: Workload) -> list[list[int] | None]:
    """Of the input, the bias (None without one) and the output."""
    if workload.op == "conv2d":
        window = Window.of(workload.window)
        rows, cols = window.outputs(workload.inputs[1:3], workload.weights[2:])
        channels = workload.weights[0]
        return [list(workload.inputs), [channels], [workload.inputs[0], rows, cols, channels]]
    channels = workload.weights[-1]
    bias = [channels] if workload.op == "matmul" else None
    return [list(workload.inputs), bias, [*workload.inputs[:-1], channels]]


def _finish(workload: Workload, value: Any) -> Any:
    return tirx.max(tirx.const(0, "float32"), value) if workload.op == "conv2d" else value


def _anchor(workload: Workload, choice: Choice | None, machine: Machine) -> anchors.Anchor:
    if workload.op == "conv2d":
        window = Window.of(workload.window)
        return anchors.convolution(workload.inputs, workload.weights, window, machine, choice)
    if workload.op == "matmul":
        return anchors.product(workload.inputs, workload.weights[1], machine, choice)
    return anchors.batched_product(choice)


def _place(shape: Sequence[int], name: str) -> Any:
    return te.placeholder(tuple(shape), "float32", name)


def build(workload: Workload, choice: Choice | None, machine: Machine, folder: Path) -> None:
    """Write the library with the function as `main`, and its weights.

    Raises:
        GraphoptError: the linker is missing.
        ValueError: the choice is none for this workload.
    """
    function, weights = kernel(workload, choice, machine)
    with tvm.transform.PassContext(opt_level=3):
        built = tirx.build(function.with_attr("global_symbol", "main"), target=machine.target())
    built.export_library(str(folder / LIBRARY), fcompile=linker(machine.triple))
    np.save(folder / WEIGHTS, weights)
