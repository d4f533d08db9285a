"""`graphopt explain MODEL --realized`: gathers what realized.py and layerwise.py find, and prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.cli import common

_WORST = 10


def report(
    source: str, target: str | None, against: str | None, data: str | None, samples: int, shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as JSON values; `layers` is null without a model to compare with.

    Args:
        source: artifact or ONNX file.
        target: how to run a plain file.
        against: the float original.
        data: samples; None makes one legal feed.
        samples: how many of them to compare layers on.
        shapes: `--input-shapes` and `--dim` of the made feed.

    Raises:
        GraphoptError: a model cannot be read or run, or the samples do not fit.
    """
    from graphopt.frontends.capture import capture, model_file
    from graphopt.layerwise import layer_errors
    from graphopt.realized import realized
    from graphopt.running import feeds_for, runnable
    from graphopt.samples import inputs_of, open_samples

    chosen = runnable(source, target)
    model, _ = capture(
        model_file(source), common.parse_shapes(shapes["input_shapes"]), common.parse_dims(shapes["dims"])
    )
    if data is not None:
        feeds = list(open_samples(data, inputs_of(model), batch=1).batches(samples))
    else:
        with chosen.open() as runner:
            feeds = [feeds_for(model, runner, None)]
    found = realized(chosen, feeds[0])
    out = {"model": source, "target": str(chosen.target), "data": data, **found.as_json()}
    if against is None:
        return {**out, "layers": None, "unmatched": [], "samples": 0}
    original = runnable(against, None if _is_artifact(against) else str(chosen.target))
    return {**out, **layer_errors(chosen, original, feeds).as_json()}


def _is_artifact(source: str) -> bool:
    """Whether a source is an artifact, which knows how it is run."""
    from pathlib import Path

    from graphopt.artifact import is_artifact

    return is_artifact(Path(source))


def lines(found: Mapping[str, Any], limit: int) -> list[str]:
    """The report for people."""
    made = "made-up inputs" if found["data"] is None else found["data"]
    out = [f"{found['model']} on {found['target']}, sizes of {made}"]
    for precision, macs in found["macs"].items():
        ops = ", ".join(f"{row['op']} {row['nodes']}" for row in found["ops"] if row["precision"] == precision)
        out.append(f"  {precision:8} {found['shares'][precision]:7.2%} of {macs:>16,} MACs  {ops}")
    if found["unknown"]:
        out.append(
            f"  the work of {found['unknown']} nodes is not known and not counted; fix sizes with --input-shapes"
        )
    out.append(f"  {len(found['conversions'])} conversions left at run time")
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in found["conversions"]:
        key = (row["op"], row["place"], row["neighbour_op"], row["reason"])
        groups.setdefault(key, []).append(row["neighbour"] or row["value"])
    for (op, place, neighbour, reason), sites in sorted(groups.items(), key=lambda item: -len(item[1])):
        named = ", ".join(dict.fromkeys(sites[:3])) + (", ..." if len(sites) > 3 else "")
        out.append(f"  {len(sites):6d} x {op}, {_place(place, neighbour)} {named}: {reason}")
    if found["layers"] is None:
        out.append("  noise per layer is not known; give the float original with --against")
        return out
    worst = found["layers"][: min(limit, _WORST)]
    out.append(f"  {len(worst)} worst of {len(found['layers'])} layers (SQNR on {found['samples']} feeds)")
    out.extend(f"  {layer['sqnr_db']:6.1f} dB  {layer['op']} {layer['site']} -> {layer['value']}" for layer in worst)
    if found["unmatched"]:
        out.append(f"  {len(found['unmatched'])} layers have no counterpart: {', '.join(found['unmatched'][:5])}")
    return out


def _place(place: str, neighbour: str) -> str:
    words = {
        "graph-input": "graph input",
        "graph-output": "graph output",
        "weight": f"weight of {neighbour}" if neighbour else "constant",
        "producer": f"made by {neighbour}",
        "consumer": f"read by {neighbour}",
        "requantize": f"beside {neighbour}",
    }
    return words[place]
