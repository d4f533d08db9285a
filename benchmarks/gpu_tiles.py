"""Figure: the model of time that chooses tiles on NVIDIA GPUs, held against measurements of all tiles.

    python -m benchmarks.gpu_tiles [--fit]

The measurements lie beside the page (gpu-tiles.json, by benchmarks/gpu_kernels.py on a machine with a GPU); `--fit`
prints the constants of tiling.py and tensor_cores.py that fit them best.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.figure import PAGES, Figure, Table, arguments
from benchmarks.gpu_kernels import ARCH, PRODUCTS, Kind, tiles
from graphopt.targets.tvm.gpu.tiling import microseconds

MEASURED = "gpu-tiles.json"
MAX_LOSS = 1.1
ERRORS = {"float32": 2e-6, "float16": 1e-3}
LAUNCH = {1: 4.5, 2: 8.0}
"""Microseconds that starting one kernel, or two, takes on the host: what a measurement is at least."""
ROUNDS = 3000


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PAGES / MEASURED).read_text(encoding="utf-8"))
    return found


def chosen(rows: Sequence[Sequence[Any]], costs: Mapping[Kind, Any]) -> Sequence[Any]:
    """The row of a product that the model says is fastest."""
    problem = PRODUCTS[rows[0][0]].problem
    return min(rows, key=lambda row: microseconds(problem, costs[tuple(row[2])], row[3], ARCH))


def fit(rows: Sequence[Sequence[Any]], costs: Mapping[Kind, Any]) -> dict[Kind, Any]:
    """Tiles whose `latency` and `work` fit the measurements best, by random search on the mean squared logarithm."""
    rng = np.random.default_rng(0)
    kinds = list(costs)
    times = np.array([row[4] for row in rows])
    least = np.array([LAUNCH[1 + (row[3] > 1)] for row in rows])

    def tiles_of(values: np.ndarray) -> dict[Kind, Any]:
        pairs = values.reshape(-1, 2)
        return {
            kind: dataclasses.replace(costs[kind], latency=float(pair[0]), work=float(pair[1]))
            for kind, pair in zip(kinds, pairs, strict=True)
        }

    def loss(values: np.ndarray) -> float:
        now = tiles_of(values)
        estimates = [microseconds(PRODUCTS[row[0]].problem, now[tuple(row[2])], row[3], ARCH) for row in rows]
        wrong = np.log(np.maximum(least, np.array(estimates) + 3.5) / times)
        return float(np.mean(np.minimum(wrong**2, 0.25)))

    best = np.array([[cost.latency, cost.work] for cost in costs.values()]).ravel()
    least_loss = loss(best)
    for step in range(ROUNDS):
        width = 0.3 if step < ROUNDS // 4 else 0.05
        tried = best * np.exp(width * rng.standard_normal(best.size) * (rng.random(best.size) < 0.3))
        now = loss(tried)
        if now < least_loss:
            best, least_loss = tried, now
    return tiles_of(best)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--fit", action="store_true", help="print the constants that fit the measurements best")
    options = parser.parse_args()
    found = load()
    by_type = {dtype: [row for row in found["rows"] if row[1] == dtype] for dtype in ERRORS}
    if options.fit:
        for dtype, rows in by_type.items():
            for kind, tile in fit(rows, tiles(dtype == "float16")).items():
                print(f"{dtype} {kind}: latency {tile.latency:.3f}, work {tile.work:.3f}")
        return 0
    figure = Figure(
        "gpu-tiles",
        "Tiles of products on an NVIDIA GPU",
        "Convolutions and products with bias and Relu, each with all tiles and numbers of parts, "
        f"{len(found['rows'])} kernels in all, measured on {found['machine']} on {found['date']} ({MEASURED}). "
        "`chosen` is what the model of time takes, `whole` the best without cutting the sum into parts, `torch` what "
        f"torch {found['torch version']} takes for the product alone (cuDNN or cuBLAS, no TF32). Microseconds, with "
        "starting the kernels: those under 5 (one kernel) or 9 (two) are the host's time.",
        (
            f"what the model chooses takes at most {MAX_LOSS:g} of the best measured, by the geometric mean",
            "every kernel computes the product",
        ),
    )
    for dtype, rows in by_type.items():
        table = Table(("product", "chosen", "us", "best", "whole", "torch", "chosen/best", "chosen/torch"), dtype, 2)
        losses, gains = [], []
        for name in PRODUCTS:
            mine = [row for row in rows if row[0] == name]
            choice, best = chosen(mine, tiles(dtype == "float16")), min(mine, key=lambda row: row[4])
            whole = min((row[4] for row in mine if row[3] == 1), default="-")
            peer = found["torch"][dtype][name]
            losses.append(choice[4] / best[4])
            gains.append(choice[4] / peer)
            what = f"{'x'.join(map(str, choice[2]))}, {choice[3]} part{'s' * (choice[3] > 1)}"
            cells = (what, choice[4], best[4], whole, peer, f"{losses[-1]:.2f}", f"{gains[-1]:.2f}")
            table.add(name, *cells)
        mean = math.exp(float(np.mean(np.log(losses))))
        table.add("geometric mean", "", "", "", "", "", f"{mean:.3f}", f"{math.exp(float(np.mean(np.log(gains)))):.3f}")
        figure.require(mean <= MAX_LOSS, f"{dtype}: what the model chooses takes {mean:.3f} of the best")
        worst = max(rows, key=lambda row: row[5])
        figure.require(worst[5] <= ERRORS[dtype], f"{worst[0]}, {worst[2]}, {worst[3]} parts is {worst[5]:.2g} off")
        figure.tables.append(table)
    return figure.finish(write=not options.no_write)


if __name__ == "__main__":
    raise SystemExit(main())
