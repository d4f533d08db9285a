"""Remarks: what each pass did, did not do and why, one record per site, as compilers print them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["applied", "missed", "note"]


@dataclass(frozen=True)
class Remark:
    """One record: `pass` did (`applied`) or did not do (`missed`) its rewrite at `site`, and why; `note`: of a run."""

    pass_name: str
    status: Status
    site: str
    op: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"pass": self.pass_name, "status": self.status, "site": self.site, "op": self.op, "reason": self.reason}


class Remarks:
    """Collects remarks; a later word about the same pass and site replaces an earlier `missed`."""

    def __init__(self) -> None:
        self._rows: list[Remark] = []
        self._missed: dict[tuple[str, str], Remark] = {}

    def applied(self, pass_name: str, site: str, op: str, reason: str = "") -> None:
        self._missed.pop((pass_name, site), None)
        self._rows.append(Remark(pass_name, "applied", site, op, reason))

    def missed(self, pass_name: str, site: str, op: str, reason: str) -> None:
        self._missed[(pass_name, site)] = Remark(pass_name, "missed", site, op, reason)

    def forget(self, pass_name: str, site: str) -> None:
        """Drop a `missed` remark: the place has changed and no longer concerns the pass."""
        self._missed.pop((pass_name, site), None)

    def note(self, pass_name: str, reason: str, site: str = "", op: str = "") -> None:
        """A remark that is no verdict; one about the run as a whole is kept once."""
        remark = Remark(pass_name, "note", site, op, reason)
        if site or remark not in self._rows:
            self._rows.append(remark)

    def __iter__(self) -> Iterator[Remark]:
        yield from self._rows
        yield from self._missed.values()

    def counts(self) -> dict[str, Counter[str]]:
        """Per pass: how many remarks of each status."""
        table: dict[str, Counter[str]] = {}
        for remark in self:
            table.setdefault(remark.pass_name, Counter())[remark.status] += 1
        return table

    def jsonl(self) -> str:
        return "".join(json.dumps(remark.as_json(), ensure_ascii=False) + "\n" for remark in self)
