"""`graphopt inspect`."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli import common
from graphopt.cli.common import emit


@click.command("inspect")
@common.model_argument
@click.option("--target", help="Also list the nodes that this target has no kernel for.")
@common.input_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(model: str | None, model_option: str | None, target: str | None, as_json: bool, **shapes: Any) -> None:
    """Show what is in MODEL (a file or an artifact) without compiling it."""
    from graphopt.frontends.capture import capture, model_file
    from graphopt.inspecting import inspect
    from graphopt.manager.registry import make_target

    source = model_file(common.pick_model(model, model_option))
    chosen = make_target(target) if target else None
    captured, _ = capture(source, common.parse_shapes(shapes["input_shapes"]), common.parse_dims(shapes["dims"]))
    report = inspect(captured, chosen)
    if as_json:
        emit(report)
        return
    for line in _lines(report):
        print(line)


def _lines(report: dict[str, Any]) -> list[str]:
    default = "ai.onnx"
    lines = [
        f"nodes        {report['nodes']}",
        f"opsets       {', '.join(f'{domain or default} {version}' for domain, version in report['opsets'].items())}",
    ]
    for kind in ("inputs", "outputs"):
        for row in report[kind]:
            dims = (
                "unknown rank"
                if row["shape"] is None
                else "[" + ", ".join("?" if d is None else str(d) for d in row["shape"]) + "]"
            )
            lines.append(f"{kind[:-1]:12} {row['name']}: {row['type'] or 'unknown type'} {dims}")
    hint = "--dim NAME=N" if report["dynamic_dims"] else "--input-shapes NAME:DIMS"
    lines.append(f"MACs         {_number(report['macs'], report['known_macs'], report['unknown_cost'], hint)}")
    lines.append(f"parameters   {report['parameter_bytes']} bytes")
    if report["dynamic_dims"]:
        lines.append(f"dynamic      {', '.join(report['dynamic_dims'])} (bind with --dim NAME=N)")
    lines.append("ops          " + ", ".join(f"{op} {count}" for op, count in report["ops"].items()))
    first = report["shape_inference"]["first"]
    if first is not None:
        lines.append(
            f"shapes       blocked at {report['shape_inference']['blocked']} nodes, "
            f"first {first['site']} ({first['op']}): {first['reason']}"
        )
    if report["opaque_domains"]:
        lines.append(f"opaque       {', '.join(report['opaque_domains'])}: custom domains are never matched or folded")
    if report["optimized_by"]:
        lines.append("optimized by " + ", ".join(f"{name} {count}" for name, count in report["optimized_by"].items()))
    if "unsupported" in report:
        lines.append(
            f"{report['target']} lacks {len(report['unsupported'])} nodes"
            if report["unsupported"]
            else f"{report['target']} has kernels for all nodes"
        )
        lines.extend(f"  {row['op']} {row['site']}: {row['reason']}" for row in report["unsupported"][:20])
        lines.extend(
            f"{report['target']} does not take {row['name']} as input or output: {row['reason']}"
            for row in report["unsupported_ends"]
        )
    return lines


def _number(total: int | None, known: int, unknown: int, hint: str) -> str:
    if total is not None:
        return f"{total:,}"
    return f"at least {known:,} ({unknown} nodes of unknown size; fix the input sizes with {hint})"
