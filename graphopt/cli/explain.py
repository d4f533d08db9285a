"""`graphopt explain`."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli import common
from graphopt.cli.common import emit


@click.command("explain")
@click.argument("words", nargs=-1, metavar="MODEL PASS")
@click.option("-m", "--model", "model_option", metavar="MODEL", help="The model, for hands that know -m.")
@click.option("--target", help="Whose ops may be emitted.")
@click.option(
    "-O",
    "level",
    type=click.IntRange(0, 3),
    default=2,
    show_default=True,
    help="Pipeline whose earlier passes run first; 0 for none.",
)
@click.option(
    "--load", "load_files", multiple=True, metavar="FILE.py", help="Load passes from a Python file; repeatable."
)
@click.option("--limit", default=10, show_default=True, help="Sites or layers to print.")
@click.option("--realized", is_flag=True, help="Say in which precision MODEL really runs, and where it is wrong.")
@click.option("--against", metavar="MODEL", help="With --realized: the float original, for the noise of each layer.")
@click.option(
    "--data",
    "--calibration-data",
    "data",
    metavar="PATH",
    help="With --realized: samples (.npz, .npy, folder, module:function); without it legal ones are made.",
)
@click.option(
    "--samples", type=click.IntRange(1), default=32, show_default=True, help="With --realized: use so many samples."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@common.input_options
def command(
    words: tuple[str, ...],
    model_option: str | None,
    target: str | None,
    level: int,
    load_files: tuple[str, ...],
    limit: int,
    realized: bool,
    against: str | None,
    data: str | None,
    samples: int,
    as_json: bool,
    **shapes: Any,
) -> None:
    """Say where PASS applies to MODEL, where it does not, and why; or with --realized what MODEL executes."""
    import tempfile
    from pathlib import Path

    from graphopt.checks import Check
    from graphopt.errors import GraphoptError
    from graphopt.explain import explain
    from graphopt.frontends.capture import capture
    from graphopt.manager import pipeline, registry

    named = words if model_option is None else (model_option, *words)
    if realized:
        from graphopt.cli.realized import lines, report

        if len(named) != 1:
            raise GraphoptError("explain --realized wants one model, for example: graphopt explain build/ --realized")
        found = report(named[0], target, against, data, samples, shapes)
        if as_json:
            emit(found)
        else:
            print("\n".join(lines(found, limit)))
        return
    if against is not None or data is not None:
        raise GraphoptError("--against and --data are about what a model executes; add --realized")
    if len(named) != 2:
        raise GraphoptError("explain wants a model and one pass, for example: graphopt explain model.onnx fuse-conv-bn")
    model, pass_text = named
    for file in load_files:
        registry.load_file(file)
    chosen = pipeline.parse(pass_text)
    if len(chosen.items) != 1 or isinstance(chosen.items[0], pipeline.Fix):
        raise GraphoptError(f"explain wants one pass, not {pass_text!r}")
    where = registry.make_target(target) if target else None
    ir_model, origin = capture(model, common.parse_shapes(shapes["input_shapes"]), common.parse_dims(shapes["dims"]))
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        check = Check(ir_model, origin, None, Path(scratch))
        before = pipeline.parse(f"O{level}" if where is None else where.pipeline(level))
        result = explain(ir_model, chosen.items[0], before, where, check.evaluate)
    if as_json:
        emit(result.as_json())
        return
    print(f"{result.pass_name}: applied at {len(result.applied)} sites, missed at {len(result.missed)}")
    for remark in [*result.applied, *result.missed][:limit]:
        print(f"  {remark.status} {remark.site} ({remark.op}): {remark.reason}")
    if not result.applied and not result.missed:
        print("  nothing in the model matches" if result.nearest is None else "")
    if result.nearest is not None:
        print(
            f"  nearest: {result.nearest.site} ({result.nearest.op}), {result.nearest_depth} nodes matched: "
            f"{result.nearest.reason}"
        )
