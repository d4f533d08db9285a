"""`graphopt targets`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from graphopt.cli.common import emit
from graphopt.spec import option_type


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(as_json: bool) -> None:
    """List targets, their options, and whether a model can be run on them here."""
    from graphopt.manager.registry import targets

    rows = [_row(name, cls) for name, cls in sorted(targets().items())]
    if as_json:
        emit({"targets": rows})
        return
    for row in rows:
        print(f"{row['name']:14} {'can run here' if row['available'] else 'compiles only: ' + row['reason']}")
        print(f"  {row['summary']}")
        for option in row["options"]:
            print(f"  {option['name']}: {option['type']} = {option['default']}")


def _row(name: str, cls: Any) -> dict[str, Any]:
    reason = cls().available()
    options = [
        {"name": f.name, "type": option_type(cls, f.name), "default": f.default} for f in dataclasses.fields(cls)
    ]
    summary = cls.summary or (cls.__doc__ or "").strip().splitlines()[0]
    return {"name": name, "summary": summary, "available": reason is None, "reason": reason or "", "options": options}
