"""What a compilation may be asked to find out by measuring: how long, where, or what was found before.

    Tuning(seconds=parse_duration("10m"), remote=parse_remote("board:9190", "rasp5"))

Targets with a tuner take it (`Target.compile_tuned`). Not here: how they tune.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.errors import GraphoptError

PLAN = "tune"
"""Name of the plan in plans.json that holds what was chosen."""
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Remote:
    """Machines that wait for work behind an RPC tracker, by the key that they gave it."""

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        return f"{self.key!r} at {self.host}:{self.port}"


@dataclass(frozen=True)
class Tuning:
    """Choices by measuring.

    Attributes:
        seconds: budget.
        decisions: of an earlier run; they are carried out, and nothing is measured.
        remote: where to measure; None for this machine.
        progress: show how far it is, where stderr is a terminal.
    """

    seconds: float = 0.0
    decisions: Mapping[str, Any] | None = None
    remote: Remote | None = None
    progress: bool = False


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `10m`, `1h`, `1.5h` or `90`.

    Raises:
        GraphoptError: neither, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise GraphoptError(f"--tune {text!r}: wants a time, for example 90s, 10m or 1h")
    return seconds


def parse_remote(text: str | None, key: str | None) -> Remote | None:
    """`host:port` of a tracker and the key of machines behind it; None when neither is given.

    Raises:
        GraphoptError: one without the other, or no port.
    """
    if text is None and key is None:
        return None
    if text is None:
        raise GraphoptError("--key names machines behind a tracker: give --remote host:port as well")
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise GraphoptError(f"--remote {text!r}: wants host:port of an RPC tracker, for example 192.168.0.10:9190")
    if not key:
        raise GraphoptError(f"--remote {text}: give --key as well, the name under which machines registered there")
    return Remote(host.removeprefix("[").removesuffix("]"), int(port), key)
