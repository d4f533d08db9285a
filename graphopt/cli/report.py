"""How a report is printed for people: what went in, what each pass did, what came out, whether it was proven."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from graphopt.cli.common import emit, say
from graphopt.errors import GraphoptError
from graphopt.ir.places import beside, file_place, kind

_NOT_RUN = "compiled, not run"


def show(report: dict[str, Any], flags: dict[str, Any], title: str) -> None:
    """Print the summary (stderr), write `--remarks`, and the JSON (stdout) when asked."""
    write_remarks(report["remarks"], flags["remarks_file"])
    if flags["as_json"]:
        emit(report)
    if flags["quiet"]:
        return
    before, after = report["before"], report["after"]
    say(title)
    say(f"  nodes    {before['nodes']} -> {after['nodes']}")
    say(f"  weights  {_size(before['bytes'])} -> {_size(after['bytes'])}")
    applied = {name: count for name, count in report["effects"].items() if count}
    for name, count in sorted(applied.items(), key=lambda row: -row[1]):
        say(f"  {count:6d}  {name}")
    if report["idle"] and (flags["verbose"] or flags["passes"] is not None or flags["recipe"] is not None):
        say(f"  nothing to do: {', '.join(report['idle'])}")
    elif report["idle"]:
        asked = [name for name in report["idle"] if name in _of_precision(flags.get("precision"))]
        if asked:
            say(f"  nothing to do for --precision {flags['precision']}: {', '.join(asked)}")
        say(f"  {len(report['idle'])} more passes found nothing to do (-v names them)")
    for remark in report["remarks"]:
        if remark["status"] == "note" or (flags["verbose"] and remark["status"] == "applied") or flags["verbose"] > 1:
            site = f" {remark['site']}" if remark["site"] else ""
            say(f"  {remark['status']}: {remark['pass']}{site}: {remark['reason']}")
    say(f"  numerics {_verdict(report['numerics'])}")
    for line in _evaluation(report.get("evaluation", {})):
        say(f"  {line}")
    for line in _candidates(report.get("candidates", ())):
        say(f"  {line}")
    for note in report.get("notes", ()):
        if not (note.startswith(_NOT_RUN) and report["numerics"]["reason"].startswith(_NOT_RUN)):  # once is enough
            say(f"  note: {note}")
    if flags["time_passes"]:
        say(_timings(report))


def _of_precision(name: str | None) -> set[str]:
    """The passes behind `--precision`."""
    from graphopt.precision import PRECISIONS

    return {text.partition("{")[0] for text in PRECISIONS.get(name or "", ())}


def _candidates(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each target that was tried."""
    for row in rows:
        mark = "shipped" if row["shipped"] else "refused" if "refused" in row else "slower"
        what = f"{row['median_ms']:.3f} ms" if "median_ms" in row else row.get("refused", "there is no other choice")
        numbers = f", numerics {row['numerics']['status']}" if "refused" not in row else ""
        yield f"{mark}: {row['target']}: {what}{numbers}"


def write_remarks(remarks: list[dict[str, Any]], path: Path | None) -> None:
    """One JSON record per line."""
    import json

    if path is None:
        return
    text = "".join(json.dumps(remark, ensure_ascii=False) + "\n" for remark in remarks)
    try:
        if kind(path) not in ("", "file"):  # a pipe or terminal
            path.write_text(text, encoding="utf-8")
            return
        with beside(file_place(path)) as folder:
            (folder / path.name).write_text(text, encoding="utf-8")
            (folder / path.name).replace(file_place(path))
    except OSError as error:
        raise GraphoptError(f"--remarks {path}: {error.strerror}") from None


def check_remarks(path: Path | None) -> None:
    """Before anything is written: can `--remarks` be?

    Raises:
        GraphoptError: it is a folder, or its folder is not there or not writable.
    """
    if path is None or (there := kind(path)) not in ("", "file", "folder"):
        return
    if there == "folder":
        raise GraphoptError(f"--remarks {path} is a folder; give the name of a file")
    place = file_place(path)
    try:
        tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise GraphoptError(f"--remarks {path}: {error.strerror}") from None


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.4g} GB"


def _verdict(numerics: dict[str, Any]) -> str:
    reason = f": {numerics['reason']}" if numerics.get("reason") else ""
    if numerics.get("judged_by"):
        reason = f" by {', '.join(numerics['judged_by'])}"
    return f"{numerics['status']}{reason}"


def _evaluation(found: dict[str, Any]) -> Iterator[str]:
    """A line per gate, and the user's metric of both models."""
    metric = found.get("metric")
    if metric is not None:
        before, after, ratio = metric["float"]["value"], metric["compiled"]["value"], metric["ratio"]
        yield f"metric   {metric['name']}: float {before:.5g}, compiled {after:.5g}, ratio {_interval(ratio)}"
    for row in found.get("gates", ()):
        yield f"gate     {row['gate']} is met: {_interval(row)} {row['detail']}".rstrip()


def _interval(row: dict[str, Any]) -> str:
    is_known = row["low"] is not None and row["low"] != row["high"]
    value, low, high = (float(row[key] if row[key] is not None else "nan") for key in ("value", "low", "high"))
    return f"{value:.5g}" + (f" [{low:.5g}, {high:.5g}]" if is_known else "")


def _timings(report: dict[str, Any]) -> str:
    rows: dict[str, list[float]] = {}
    for record in report["passes"]:
        row = rows.setdefault(record["pass"], [0.0, 0, 0])
        row[0] += record["seconds"]
        row[1] += 1
        row[2] += record["rewrites"]
    lines = [f"  {'seconds':>9} {'runs':>5} {'rewrites':>9}  pass"]
    for name, (seconds, runs, rewrites) in sorted(rows.items(), key=lambda item: -item[1][0]):
        lines.append(f"  {seconds:9.3f} {runs:5.0f} {rewrites:9.0f}  {name}")
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in report["seconds"].items())
    return "\n".join([*lines, f"  seconds: {stages}"])
