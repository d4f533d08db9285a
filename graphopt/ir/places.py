"""Where outputs go: files and folders that may be replaced, behind links, in parent folders made for them.

Not here: what is written, and the renaming into place, which is each writer's own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from graphopt.errors import GraphoptError

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def kind(path: Path) -> str:
    """What stands at a path, behind links: a value of `_KINDS`, "loop of links", or "" for nothing."""
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "special file")
    except OSError as error:
        return "loop of links" if error.errno == errno.ELOOP else ""


def file_place(path: Path) -> Path:
    """The file, there already or not, that an output's path means. A link is written through, as compilers do.

    Raises:
        GraphoptError: what stands there is no regular file; renaming a new one into its place would destroy it.
    """
    there = kind(path)
    if there not in ("", "file"):
        raise GraphoptError(f"output {path} is a {there}; give the name of a file")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_together(given: Path, place: Path, names: Sequence[str]) -> None:
    """Weights in a file of their own are looked for beside the name that a model is opened by.

    Raises:
        GraphoptError: the model goes through a link, and has such a file.
    """
    if len(names) > 1 and given != place:
        raise GraphoptError(
            f"output {given} is a link, and its weights {names[1]} would lie beside {place}; "
            "name that file, or --external-data never"
        )


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A scratch folder beside an output. Parent folders are made; those that are new go again when the block fails.

    Raises:
        GraphoptError: there cannot be one.
    """
    new = [folder for folder in path.parents if not os.path.lexists(folder)]  # deepest first
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        except OSError as error:
            raise GraphoptError(f"cannot write output {path}: {error.strerror}") from None
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
