"""`graphopt doctor`."""

from __future__ import annotations

import click

from graphopt.cli.common import emit


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(as_json: bool) -> None:
    """Show what this machine and installation can do, and what is in conflict."""
    from graphopt.doctor import examine

    report = examine()
    if as_json:
        emit(report)
        return
    for title in ("machine", "versions", "targets"):
        print(f"{title}:")
        for key, value in report[title].items():
            print(f"  {key:22} {', '.join(map(str, value)) or 'none' if isinstance(value, list) else value}")
    for problem in report["problems"]:
        print(f"problem: {problem}")
    if not report["problems"]:
        print("no problem found")
