"""`graphopt verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import emit


@click.command("verify")
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Feeds: .npz, .npy or a folder; without it legal ones are made."
)
@click.option(
    "--tolerance",
    type=click.Choice(["exact", "reassociates"]),
    default="reassociates",
    show_default=True,
    help="Class of allowed difference between A and B.",
)
@click.option("--require-numerics", is_flag=True, help="Fail when the numbers could not be checked.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(a: str, b: str | None, data: Path | None, tolerance: Any, require_numerics: bool, as_json: bool) -> None:
    """Check A (a model or artifact), or that B computes what A computes; exits 1 when not."""
    from graphopt.verifying import verify_files

    rows = verify_files(a, b, data, tolerance)
    bad = [row for row in rows if row["status"] == "failed" or (require_numerics and row["status"] == "not-checked")]
    if as_json:
        emit({"checks": rows, "passed": not bad})
    else:
        for row in rows:
            print(
                f"{row['status']:12} {row['check']:12} {row['subject']}"
                + (f": {row['reason']}" if row["reason"] else "")
            )
            for error in row["details"].get("outputs", ()):
                print(
                    f"             {error['name']}: largest difference {float(error['max_abs']):.3g}, "
                    f"allowed {float(error['limit']):.3g} ({error['case']})"
                )
            for note in row["details"].get("notes", ()):
                print(f"             note: {note}")
    if bad:
        raise click.exceptions.Exit(1)
