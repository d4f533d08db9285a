"""What stands behind stdout may be full, or gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("args", ["passes --json", "passes", "--help"])
def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path, args: str) -> None:
    line = f"ulimit -f 0; exec {sys.executable} -m graphopt {args} > {tmp_path}/out"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "graphopt: stdout cannot be written: File too large\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "graphopt", "passes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `| head -1` does
    assert (process.stderr.read(), process.wait(timeout=30)) == (b"", 0)
    process.stderr.close()
