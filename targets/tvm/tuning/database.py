"""What tuning has found out, one JSON file per workload and machine in the cache folder.

    database = Database(cache_root() / "tvm" / "tuned", key)
    record = database.read("matmul 128x384 384x1536")       # None: nothing, or nothing that counts here
    database.write(record)

Models share what is in it: a workload knows nothing of its model. A record counts only on the machine, with the TVM and
the schedule library that it was measured with; others are left out, and `notes` says so. Imports no TVM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.models.cache import place
from graphopt.targets.tvm.cpu.choices import Choice

_FORMAT = 1
Key = Mapping[str, Any]
"""What a measurement depends on besides the workload, as JSON values."""


@dataclass
class Record:
    """What is known of a workload.

    Attributes:
        workload: its text.
        seconds: of the untuned choice.
        tried: ratio to the untuned choice by choice (as JSON text); None where it could not be compiled or run. What
            ran into a time limit is not among them: another time the machine may be less busy.
        kept: the choice that was confirmed to be faster, and its ratio; None while there is none.
        idle: how many were tried since the last improvement.
    """

    workload: str
    seconds: float
    tried: dict[str, float | None] = field(default_factory=dict)
    kept: tuple[list[Any], float] | None = None
    idle: int = 0


class Database:
    """Records of one machine. An unwritable folder is one note; what was found then counts for this run only."""

    def __init__(self, folder: Path, key: Key) -> None:
        self._folder, self._key = folder, json.loads(json.dumps(key))
        self._notes: dict[str, int] = {}
        self._unwritable = False

    @property
    def notes(self) -> list[str]:
        """What the user is told, each once."""
        return [text if count == 1 else f"{text} ({count} records)" for text, count in self._notes.items()]

    def path(self, workload: str) -> Path:
        """Where the record of a workload lies: by a hash of the workload and the machine, not of the versions."""
        identity = json.dumps([workload, self._key.get("machine")], sort_keys=True)
        return self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"

    def read(self, workload: str) -> Record | None:
        """The record of a workload; None where there is none that counts."""
        try:
            text = self.path(workload).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError):
            self._note(f"the tuning cache {self._folder} has unreadable records, which are ignored")
            return None
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise ValueError("another format")
            found = _record(data["record"])
            key = data["key"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self._note(f"the tuning cache {self._folder} has damaged records, which are ignored")
            return None
        if found.workload != workload or not isinstance(key, dict) or key.get("machine") != self._key.get("machine"):
            self._note(f"the tuning cache {self._folder} has records of another machine, which are ignored")
            return None
        if key != self._key:
            self._note(f"the tuning cache {self._folder} has records of other versions, which are measured anew")
            return None
        return found

    def write(self, record: Record) -> None:
        """Put a record in place, whole."""
        if self._unwritable:
            return
        kept = None if record.kept is None else list(record.kept)
        data = {"format": _FORMAT, "key": self._key, "record": {**vars(record), "kept": kept}}
        text = json.dumps(data, indent=1, sort_keys=True) + "\n"
        try:
            place(self.path(record.workload), lambda path: _write(path, text))
        except GraphoptError as error:
            self._unwritable = True
            self._note(f"what is tuned now is not remembered: {error}")

    def _note(self, text: str) -> None:
        self._notes[text] = self._notes.get(text, 0) + 1


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _record(data: Mapping[str, Any]) -> Record:
    """Raises ValueError, KeyError or TypeError when it is none."""
    seconds, tried, kept = float(data["seconds"]), dict(data["tried"]), data["kept"]
    for text, ratio in tried.items():
        Choice.from_json(json.loads(text))
        if ratio is not None and not (type(ratio) is float and 0 < ratio < float("inf")):
            raise ValueError(f"ratio {ratio!r}")
    if kept is not None:
        choice, ratio = kept
        kept = Choice.from_json(choice).to_json(), float(ratio)
    if not (isinstance(data["workload"], str) and seconds > 0 and type(data["idle"]) is int):
        raise ValueError("no workload")
    return Record(data["workload"], seconds, tried, kept, data["idle"])


def schedules_version() -> str:
    """A hash of the schedule library's sources: a rule that changes makes what was measured with it stale."""
    from graphopt.targets.tvm import cpu

    digest = hashlib.sha256()
    folder = Path(cpu.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
