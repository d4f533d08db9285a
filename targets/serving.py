"""The loop of a worker: requests on standard input, replies on what was standard output, until the parent is gone.

    sys.exit(serve(lambda request, values: ({"ok": True}, {})))

The other side is child.py. Not here: what is asked (the workers), how values travel (onnxruntime/wire.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from graphopt.errors import GraphoptError

Answer = Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
"""answer(header, values) of a request -> header and values of its reply."""


def serve(answer: Answer) -> int:
    """Answer requests until the parent closes the pipe; returns the exit status.

    A GraphoptError, and memory that runs out, is a reply with an `error`.
    """
    from graphopt.targets.onnxruntime.wire import Channel, WireClosed

    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a runtime prints must not end up between two messages
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    channel = Channel(os.dup(0), replies)
    while True:
        try:
            request, values = channel.receive()
        except WireClosed:
            return 0
        try:
            reply, results = answer(request, values)
        except (GraphoptError, MemoryError) as error:
            reply, results = {"error": str(error) or "out of memory"}, {}
        try:
            channel.send(reply, results)
        except WireClosed:
            return 0
        except TypeError as error:  # a result that the wire has no form for
            channel.send({"error": " ".join(str(error).split())})


def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended; run it in a thread."""
    # A parent killed outright closes the pipe, but a runtime that hangs never looks at it.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
