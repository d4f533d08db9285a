"""`graphopt diff`."""

from __future__ import annotations

import click

from graphopt.cli.common import emit


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--limit", default=20, show_default=True, help="Nodes to print.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(a: str, b: str, limit: int, as_json: bool) -> None:
    """Show what changed from A to B (models or artifacts), by node name and by provenance."""
    from graphopt.diffing import difference
    from graphopt.frontends.capture import capture

    result = difference(capture(a)[0], capture(b)[0])
    if as_json:
        emit(result.as_json())
        return
    if result.equal:
        print("equal: same structure, weights and interface")
        return
    print(
        f"nodes {result.nodes[0]} -> {result.nodes[1]}; {len(result.gone)} gone, {len(result.made)} made, "
        f"{len(result.edited)} edited, {len(result.weights_changed)} weights changed"
    )
    for line in result.interface:
        print(f"  {line}")
    for op, (before, after) in result.ops.items():
        print(f"  {op:28} {before:5d} -> {after:5d}")
    for site, op, what in result.edited[:limit]:
        print(f"  ~ {op} {site}: {what}")
    for made in result.made[:limit]:
        print(f"  + {made.op} {made.site}" + (f"  ({made.by}: {', '.join(made.stands_for)})" if made.by else ""))
    if len(result.made) > limit:
        print(f"  ... {len(result.made) - limit} more; --limit {len(result.made)} shows all")
