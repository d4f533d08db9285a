"""What each improvement of a static quantization is good for: each of them left out in turn, layer by layer.

    python -m benchmarks.ablation [--tasks A B]

Signal to noise ratio of every layer's output against the float model, on held-out samples, and the metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from benchmarks.figure import Figure, Table, arguments, say
from benchmarks.latency import opener
from benchmarks.quant import tasks
from benchmarks.quant.ours import quantized
from benchmarks.quant.task import Task

if TYPE_CHECKING:
    from graphopt.layerwise import LayerErrors

CALIBRATION = 256
SAMPLES = 32
"""Held-out samples that layers are compared on."""
WORST = 12
"""Layers shown per task: those with the most noise when nothing is left out."""

INT8 = ("equalize-layers", "smooth-quant", "quantize-static", "round-weights", "correct-bias")
INT4 = ("equalize-layers", "quantize-static{weight=int4 weight_ranges=mse}", "round-weights", "correct-bias")
TASKS: Mapping[str, Sequence[str]] = {
    "fashion-resnet": INT4,
    "mobilenet-fashion": INT8,
    "mobilenet-fashion W4A8": INT4,
    "minilm-r8": INT8,
}
PLAINER = {
    "quantize-static": {"ranges by effect": "quantize-static{method=minmax}"},
    "quantize-static{weight=int4 weight_ranges=mse}": {
        "ranges by effect": "quantize-static{weight=int4 weight_ranges=mse method=minmax}",
        "weight clipping": "quantize-static{weight=int4}",
    },
}
"""What stands for a quantizer without one of its choices."""

FIGURE = Figure(
    "ablation",
    "Improvements of static quantization, each left out in turn",
    "`--precision int8` is `quantize-static` and the passes around it; W4A8 has int4 weights. A column tells what is "
    "left out, a row is a layer: the signal to noise ratio of its output against the float model's, in dB, on "
    f"{SAMPLES} held-out samples. The {WORST} layers with the most noise are shown; the mean is over all layers.",
    ("none: the table shows what each pass is good for, and where it is good for nothing",),
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="only these (writes no page)")
    options = parser.parse_args()
    for name in options.tasks or TASKS:
        say(f"{name} ...")
        task = tasks.load(name.split()[0])
        FIGURE.tables.append(_table(name, task, TASKS[name], options.folder / "ablation" / name.replace(" ", "-")))
        say(FIGURE.tables[-1].markdown())
    return FIGURE.finish(write=not options.no_write and not options.tasks)


def variants(passes: Sequence[str]) -> dict[str, list[str]]:
    """What is left out -> the passes that remain; first nothing."""
    found = {"nothing": list(passes)}
    for item in passes:
        if item in PLAINER:
            found.update({label: [other if i == item else i for i in passes] for label, other in PLAINER[item].items()})
        else:
            found[item] = [i for i in passes if i != item]
    found["all of them"] = [next(i for i in passes if i in PLAINER)]
    return found


def _table(title: str, task: Task, passes: Sequence[str], folder: Path) -> Table:
    calibration = task.calibration_of(CALIBRATION)
    metric: dict[str, float] = {}
    errors: dict[str, LayerErrors] = {}
    kinds = variants(passes)
    for index, (label, left) in enumerate(kinds.items()):
        say(f"  without {label} ...")
        made = quantized(task.model, left, folder / str(index), calibration)
        with opener(made.path) as runner:
            metric[label] = float(task.score(runner.run).mean())
        errors[label] = _layers(task, made.path)
    with opener(task.model) as runner:
        exact = float(task.score(runner.run).mean())
    ratios = {label: {layer.site: layer.sqnr_db for layer in found.layers} for label, found in errors.items()}
    table = Table(("layer", *kinds), f"{title}: {task.metric} of float {exact:.2%}")
    table.add(task.metric, *(f"{metric[label]:.2%}" for label in kinds))
    table.add(f"mean of {len(ratios['nothing'])} layers", *(f"{mean(ratios[label].values()):.1f}" for label in kinds))
    for layer in errors["nothing"].layers[:WORST]:
        shown = (ratios[label].get(layer.site) for label in kinds)
        table.add(layer.site, *("-" if ratio is None else f"{ratio:.1f}" for ratio in shown))
    return table


def _layers(task: Task, path: Path) -> LayerErrors:
    from graphopt.layerwise import layer_errors
    from graphopt.running import runnable

    samples = [task.feeds(index, index + 1) for index in range(SAMPLES)]
    return layer_errors(runnable(path), runnable(task.model), samples)


if __name__ == "__main__":
    raise SystemExit(main())
