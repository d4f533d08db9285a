"""The products of common networks with every tile and number of parts, built as one library and timed on a GPU.

    python -m benchmarks.gpu_kernels FILE.json      needs a GPU, nvcc and torch with CUDA

Writes a row for each kernel: product, element type, tile, parts, microseconds, relative error; and what torch (cuDNN,
cuBLAS) takes for each product. Not here: the model of time that is held against them (gpu_tiles.py).
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figure import say
from graphopt.targets.tvm.gpu.tiling import TILES, Problem, multiprocessors, possible_parts

ARCH = "sm_90"
RUNS, REPEATS = 10, 4
_MOST_BLOCKS = 9
"""Blocks for each multiprocessor beyond which sums are not cut further."""
Kind = tuple[Any, ...]


@dataclass(frozen=True)
class Product:
    """A convolution (NHWC, HWIO) or a matrix product, with bias and Relu; shapes of its operands."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_conv(self) -> bool:
        return bool(self.options)

    @property
    def out(self) -> tuple[int, ...]:
        if not self.is_conv:
            return (*self.x[:-1], self.w[-1])
        side = (self.x[1] + 2 * self.options["padding"][0] - self.w[0]) // self.options["strides"][0] + 1
        return (1, side, side, self.w[-1])

    @property
    def problem(self) -> Problem:
        if self.is_conv:
            return Problem(1, self.out[1] * self.out[2], self.w[-1], math.prod(self.w[:3]))
        return Problem(self.x[0] if len(self.w) == 3 else 1, self.x[1], self.w[-1], self.x[2])


def conv(side: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> Product:
    options = {"strides": (stride, stride), "padding": (kernel // 2,) * 4}
    return Product((1, side, side, inputs), (kernel, kernel, inputs, outputs), options)


def matmul(batch: int, rows: int, depth: int, cols: int, shared: bool = True) -> Product:
    return Product((batch, rows, depth), (depth, cols) if shared else (batch, depth, cols))


PRODUCTS = {
    "3x3 512-512, 7x7": conv(7, 512, 512, 3),
    "3x3 256-256, 14x14": conv(14, 256, 256, 3),
    "3x3 128-128, 28x28": conv(28, 128, 128, 3),
    "3x3 64-64, 56x56": conv(56, 64, 64, 3),
    "7x7/2 3-64, 224x224": conv(224, 3, 64, 7, 2),
    "1x1 128-512, 28x28": conv(28, 128, 512, 1),
    "1x1 256-1024, 14x14": conv(14, 256, 1024, 1),
    "1x1 1024-256, 14x14": conv(14, 1024, 256, 1),
    "1x1 512-2048, 7x7": conv(7, 512, 2048, 1),
    "3x3 128-32, 14x14": conv(14, 128, 32, 3),
    "3x3 128-32, 56x56": conv(56, 128, 32, 3),
    "1x1 960-160, 7x7": conv(7, 960, 160, 1),
    "1x1 384-64, 14x14": conv(14, 384, 64, 1),
    "197x3072x768": matmul(1, 197, 3072, 768),
    "197x768x3072": matmul(1, 197, 768, 3072),
    "197x768x768": matmul(1, 197, 768, 768),
    "12 of 197x197x64": matmul(12, 197, 197, 64, shared=False),
    "128x384x384": matmul(1, 128, 384, 384),
    "2048x2048x2048": matmul(1, 2048, 2048, 2048),
}


def tiles(half: bool) -> dict[Kind, Any]:
    """The tiles of single or half precision, by what tells them apart."""
    from graphopt.targets.tvm.gpu.tensor_cores import CHOICES

    if half:
        return {(t.warp_rows, t.warp_cols, t.frag_rows, t.frag_cols): t for t in CHOICES}
    return {(t.rows, t.cols, t.depth, t.thread_rows): t for t in TILES}


def choices(problem: Problem, half: bool) -> Iterator[tuple[Kind, Any, int]]:
    """Tiles and parts worth a measurement: not far larger than the product, not far more blocks than needed."""
    for kind, tile in tiles(half).items():
        if tile.rows > 2 * max(16, problem.rows) or tile.cols > 2 * max(32, problem.cols):
            continue
        blocks = problem.batch * math.ceil(problem.rows / tile.rows) * math.ceil(problem.cols / tile.cols)
        for parts in possible_parts(problem, tile):
            if parts == 1 or blocks * parts <= _MOST_BLOCKS * multiprocessors(ARCH):
                yield kind, tile, parts


def function(product: Product, half: bool) -> Any:
    """The TIR function of a product with bias and Relu, as the passes leave it before it is scheduled."""
    import tvm
    from tvm import relax, tirx

    from graphopt.targets.tvm.gpu import pipeline
    from graphopt.targets.tvm.machine import gpu

    dtype, wide = ("float16", "float32") if half else ("float32", None)
    x, w, bias = (
        relax.Var(name, relax.TensorType(shape, dtype))
        for name, shape in (("x", product.x), ("w", product.w), ("b", product.w[-1:]))
    )
    builder = relax.BlockBuilder()
    with builder.function("main", [x, w, bias]):
        with builder.dataflow():
            if product.is_conv:
                layouts = {"data_layout": "NHWC", "kernel_layout": "HWIO", "out_dtype": wide}
                out = builder.emit(relax.op.nn.conv2d(x, w, **product.options, **layouts))
            else:
                out = builder.emit(relax.op.matmul(x, w, out_dtype=wide))
            out = builder.emit(relax.op.astype(out, dtype)) if half else out
            out = builder.emit_output(relax.op.nn.relu(builder.emit(relax.op.add(out, bias))))
        builder.emit_func_output(out)
    machine = gpu(ARCH)
    with machine.target(), tvm.transform.PassContext(opt_level=3):
        module = relax.transform.ConvertToDataflow(min_size=1)(builder.get())
        fused = pipeline.fused(module, machine)
    (found,) = [item for _, item in fused.functions_items() if isinstance(item, tirx.PrimFunc)]
    return found


def build(half: bool, library: Path) -> dict[str, tuple[str, Kind, int]]:
    """Write a library with a function for each choice of each product; return what each is."""
    import tvm

    from graphopt.targets.tvm import build as building
    from graphopt.targets.tvm.gpu import contraction, nvcc, tensor_cores
    from graphopt.targets.tvm.gpu.embedding import DeviceCode
    from graphopt.targets.tvm.machine import gpu
    from graphopt.targets.tvm.toolchain import linker

    machine, rule = gpu(ARCH), tensor_cores if half else contraction
    functions: dict[Any, Any] = {}
    told: dict[str, tuple[str, Kind, int]] = {}
    for name, product in PRODUCTS.items():
        plain = function(product, half)
        for kind, tile, parts in choices(product.problem, half):
            with machine.target():
                scheduled = rule.schedule(plain, machine, (tile, parts))
            key = f"kernel_{len(functions)}"
            functions[tvm.ir.GlobalVar(key)] = scheduled.with_attrs({"global_symbol": key, "tirx.is_scheduled": 1})
            told[key] = (name, kind, parts)
    say(f"{len(functions)} kernels ...")
    with machine.target(), tvm.transform.PassContext(opt_level=3), building.cuda_as_source():
        built = tvm.compile(tvm.IRModule(functions), target=machine.target())
    code = DeviceCode(machine, library.with_suffix(".cu"), nvcc.compile_source)
    built.export_library(str(library), fcompile=linker(machine.triple), fpack_imports=code.pack)
    return told


def measure(half: bool) -> tuple[list[list[Any]], dict[str, float]]:
    """Rows of all kernels, and torch's microseconds by product."""
    import torch

    from graphopt.targets.tvm.library import with_cuda, with_runtime

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    dtype = torch.float16 if half else torch.float32
    rows: list[list[Any]] = []
    peers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        told = build(half, library)
        loader = with_runtime()
        with_cuda()
        module = loader.load_module(str(library))
        for name, product in PRODUCTS.items():
            torch.manual_seed(0)
            x, w, bias = (
                torch.randn(shape, device="cuda").mul_(0.5).to(dtype)
                for shape in (product.x, product.w, product.w[-1:])
            )
            expected = torch.relu(_torch(product, x.double(), w.double()) + bias.double())
            for key, (owner, kind, parts) in told.items():
                if owner != name:
                    continue
                out = torch.full(product.out, float("nan"), device="cuda", dtype=dtype)
                time = _microseconds(functools.partial(module[key], x, w, bias, out))
                error = float((out.double() - expected).norm() / expected.norm())
                rows.append([name, str(dtype).partition(".")[2], list(kind), parts, round(time, 1), error])
            peers[name] = round(_microseconds(functools.partial(_torch, product, x, w)), 1)
    return rows, peers


def _torch(product: Product, x: Any, w: Any) -> Any:
    """The product by torch, without bias; channels last."""
    import torch

    if not product.is_conv:
        return x @ w
    weights = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    stride, padding = product.options["strides"], product.options["padding"][:2]
    return torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weights, None, stride, padding).permute(0, 2, 3, 1)


def _microseconds(run: Any) -> float:
    """The least mean of some runs in a row, by the GPU's clock."""
    import torch

    run()
    means = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # of torch
        start.record()
        for _ in range(RUNS):
            run()
        end.record()
        torch.cuda.synchronize()
        means.append(1e3 * start.elapsed_time(end) / RUNS)
    return min(means)


def main() -> None:
    import torch

    found: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch version": torch.__version__,
        "rows": [],
        "torch": {},
    }
    for half in (False, True):
        rows, peers = measure(half)
        found["rows"] += rows
        found["torch"]["float16" if half else "float32"] = peers
    Path(sys.argv[1]).write_text(as_text(found), encoding="utf-8")


def as_text(found: Mapping[str, Any]) -> str:
    """JSON with a row in each line."""
    rows = ",\n".join(json.dumps(row) for row in found["rows"])
    rest = {key: value for key, value in found.items() if key != "rows"}
    return json.dumps(rest, indent=1)[:-2] + f',\n "rows": [\n{rows}\n]\n}}\n'


if __name__ == "__main__":
    main()
