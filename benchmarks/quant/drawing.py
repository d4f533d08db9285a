"""How draw.py is run: in an environment that has Pillow, which graphopt itself does not need.

Not here: what is drawn; that stands in draw.py.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer, environment
from benchmarks.quant.task import Arrays, read

PILLOW = Peer("pillow", "13.0.0", "draw", ("numpy==2.4.6",), "python")


def draw(what: str, spec: dict[str, Any]) -> Arrays:
    """The arrays that `draw.py what` makes of `spec`.

    Raises:
        SystemExit: the environment cannot be made, or drawing failed.
    """
    python = environment(PILLOW) / "bin" / "python"
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        given, made = Path(folder, "spec.json"), Path(folder, "out.npz")
        given.write_text(json.dumps(spec), encoding="utf-8")
        script = Path(__file__).with_name("draw.py")
        done = subprocess.run(
            [str(python), str(script), what, str(given), str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"drawing {what} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        return read(made)
