"""What every figure shares: a table, the bars it is held to, and how both become a page and an exit status.

Not here: what is measured, and the bars themselves; those stand at the top of each figure's script.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "figures"


@dataclass
class Table:
    """Rows under a heading; the first `words` columns are left-aligned, the others, numbers, right-aligned."""

    columns: tuple[str, ...]
    heading: str = ""
    words: int = 1
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Append a row.

        Raises:
            ValueError: there are not as many cells as columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(str(cell) for cell in cells))

    def markdown(self) -> str:
        lines = [f"## {self.heading}", ""] if self.heading else []
        lines.append(f"| {' | '.join(self.columns)} |")
        lines.append(f"|{'|'.join(':--' if index < self.words else '--:' for index in range(len(self.columns)))}|")
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self.rows]
        return "\n".join(lines)


@dataclass
class Figure:
    """One page of docs/figures: what is shown, the bars, and which of them were missed."""

    name: str
    title: str
    text: str
    bars: tuple[str, ...]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def require(self, condition: bool, otherwise: str) -> bool:
        """Note `otherwise` as a missed bar unless `condition`; return the condition."""
        if not condition:
            self.missed.append(otherwise)
        return condition

    def markdown(self, command: str) -> str:
        parts = [f"# {self.title}", self.text, f"Made with `{command}` {provenance()}."]
        parts += [table.markdown() for table in self.tables]
        parts += self.notes
        parts.append("Bars:\n\n" + "\n".join(f"- {bar}" for bar in self.bars))
        if self.missed:
            parts.append(f"**{len(self.missed)} missed:**\n\n" + "\n".join(f"- {miss}" for miss in self.missed))
        else:
            parts.append("All bars are met.")
        return "\n\n".join(parts) + "\n"

    def finish(self, *, write: bool) -> int:
        """Print the page, write it to docs/figures when asked, and return the exit status: 1 when a bar is missed."""
        page = self.markdown(command_line())
        print(page)
        if write:
            PAGES.mkdir(parents=True, exist_ok=True)
            (PAGES / f"{self.name}.md").write_text(page, encoding="utf-8")
        return 1 if self.missed else 0


def save_part(figure: str, part: str, values: Mapping[str, Any]) -> None:
    """Keep one part of a long measurement as docs/figures/<figure>/<part>.json, from which the page can be made."""
    path = PAGES / figure / f"{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load_parts(figure: str) -> dict[str, Any]:
    """Every part of a figure that was saved, by its name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (PAGES / figure).glob("*.json")}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all figures have."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--no-write", action="store_true", help="print only; leave docs/figures as it is")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "figures", help="for models made on the way")
    return parser


def choose_models(parser: argparse.ArgumentParser) -> None:
    """Add `--models`, which tries a figure on some models only; such a run writes no page."""
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these models (writes no page)")


def pick(names: Iterable[str], wanted: Sequence[str] | None) -> list[str]:
    """The models to measure: all, or the wanted ones among them.

    Raises:
        SystemExit: a wanted name is not there.
    """
    there = list(names)
    unknown = [name for name in wanted or () if name not in there]
    if unknown:
        raise SystemExit(f"no such model here: {', '.join(unknown)}; there are: {', '.join(there)}")
    return [name for name in there if not wanted or name in wanted]


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def command_line() -> str:
    """The command of this process, as one would type it in the repository."""
    script = Path(sys.argv[0]).stem
    return " ".join(["python -m benchmarks." + script, *sys.argv[1:]])


def provenance() -> str:
    """Date, commit and machine, for the line under a figure's title; what figures wrote is no local change."""
    commit = _git("rev-parse", "--short", "HEAD") or "an unknown commit"
    state = _git("status", "--porcelain", "--untracked-files=no", "--", ":!docs/figures")
    changed = " with local changes" if state else ""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"on {today} at {commit}{changed}, {machine}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
