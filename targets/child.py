"""A child process that runs a model (or compiles one) and answers requests: started, asked, watched, explained.

    child = Child("graphopt.targets.onnxruntime.worker", "ONNX Runtime", "m.onnx", time_limit=60)
    header, values = child.ask("running", {"op": "run"}, {"x": x})

A child that crashes, hangs or takes too much memory becomes one GraphoptError. Not here: what is asked (the workers),
how values travel (onnxruntime/wire.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import graphopt
from graphopt.errors import GraphoptError, RanTooLong, RuntimeDied

if TYPE_CHECKING:
    from graphopt.targets.onnxruntime.wire import Channel

_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "out of memory", "Failed to allocate memory", "Cannot allocate memory")


class Child:
    """One process of a worker module.

    Args:
        worker: module to run; it serves a wire Channel on its standard input and output.
        who: name of the runtime inside, for messages.
        subject: what it works on, for messages: a path.
        time_limit: seconds that each request may take; None for no limit.
        memory_limit: bytes of anonymous memory that it may have.
        environment: variables besides those of this process.
    """

    def __init__(
        self,
        worker: str,
        who: str,
        subject: object,
        *,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        from graphopt.targets.onnxruntime.wire import Channel

        self._who, self._subject = who, subject
        self._time_limit, self._memory_limit = time_limit, memory_limit
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        self.process = _start(worker, self._stderr, environment or {})
        assert self.process.stdin is not None and self.process.stdout is not None
        watch = None if memory_limit is None else self._watch
        self._channel: Channel = Channel(self.process.stdout.fileno(), self.process.stdin.fileno(), watch)

    @property
    def alive(self) -> bool:
        """Whether it can be asked: it was not closed, and did not end by itself."""
        return self.process.poll() is None

    def ask(
        self,
        doing: str,
        header: dict[str, Any],
        values: Mapping[str, Any] | None = None,
        time_limit: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Send a request and wait for its answer.

        Args:
            doing: what is being done to the subject, for messages: "running".
            header, values: the request; values are wire values.
            time_limit: seconds for this request; None for the child's own.

        Raises:
            RuntimeDied: the child crashed or took too long (RanTooLong); it is closed.
            GraphoptError: it refused, or took too much memory, after which it is closed.
        """
        from graphopt.targets.onnxruntime.wire import WireClosed, WireTimeout

        if self.process.returncode is not None:
            raise GraphoptError(f"the runner of {self._subject} is closed")
        limit = self._time_limit if time_limit is None else time_limit
        deadline = None if limit is None else time.monotonic() + limit
        try:
            self._channel.send(header, values, deadline)
            reply, results = self._channel.receive(deadline)
        except WireClosed:
            raise self._died(doing) from None
        except _OverLimit:
            self.close()
            raise GraphoptError(f"{self._over_limit()} while {doing} it; the process was stopped") from None
        except TypeError as error:
            raise GraphoptError(f"{doing} {self._subject}: {error}") from None
        except WireTimeout:
            self.close()
            raise RanTooLong(
                f"{doing} {self._subject} took over {limit:g} s and was stopped; "
                "raise the time limit (run, bench: --time-limit) or use smaller feeds"
            ) from None
        if "error" in reply:
            raise GraphoptError(self._explain(reply["error"]))
        return reply, results

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # nothing in the child is worth an orderly end
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _explain(self, message: str) -> str:
        if self._memory_limit is not None and any(hint in message for hint in _OUT_OF_MEMORY):
            return f"{self._over_limit()}: {message}"
        return message

    def _over_limit(self) -> str:
        assert self._memory_limit is not None
        return f"{self._subject} needs more than the memory limit of {self._memory_limit / 2**20:.0f} MiB"

    def _watch(self) -> None:
        if self._memory_limit is not None and _anonymous(self.process.pid) > self._memory_limit:
            raise _OverLimit

    def _died(self, doing: str) -> GraphoptError:
        code = self.process.wait()
        self._stderr.seek(0)
        text = self._stderr.read()[-65536:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = f": {lines[-1][:300]}" if lines else ""
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"
        self.close()
        return RuntimeDied(self._explain(f"{self._who} {how} while {doing} {self._subject}{last}"))


class _OverLimit(Exception):
    """The child holds more anonymous memory than it may."""


def _start(worker: str, stderr: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    root = str(Path(graphopt.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", worker],  # -P: files in the current folder must not replace modules
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        bufsize=0,
    )


def _anonymous(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended; whoever reads its pipe will notice
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
