"""`graphopt models`."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli.common import emit


@click.group("models")
def command() -> None:
    """The model zoo: pinned real models that packages carry, and known architectures built by code."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def list_(as_json: bool) -> None:
    """List the models."""
    from graphopt import models

    rows = [_row(info) for info in models.list_models()]
    if as_json:
        emit({"models": rows})
        return
    for row in rows:
        print(f"{row['name']:26} {row['kind']:8} {row['size'] / 1e6:7.1f} MB  {row['summary']}")


@command.command("fetch")
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Fetch or build models into the cache and print their paths."""
    from graphopt import models

    rows = []
    for name in names:
        found = models.fetch(name)
        rows.append({"name": name, "path": str(found)})
        if not as_json:
            print(found)
    if as_json:
        emit({"models": rows})


@command.command("path")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def path(name: str, as_json: bool) -> None:
    """Print where a fetched model lies."""
    from graphopt import models

    found = models.path(name)
    if as_json:
        emit({"name": name, "path": str(found)})
    else:
        print(found)


def _row(info: Any) -> dict[str, Any]:
    return {key: getattr(info, key) for key in ("name", "kind", "summary", "licence", "size", "inputs", "source")}
