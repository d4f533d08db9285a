"""Where samples are read from: archives, folders, functions and iterables, each as pieces that are read row by row.

A piece is a dict of columns by input name; nothing here holds more of one than the rows that were asked for. Not here:
how pieces become batches of a model's inputs (samples.py), and feeds of one run (feedfiles.py). Nothing is unpickled.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.feedfiles import load_feeds, one_line, read_npy, read_proto, reading
from graphopt.manager.codefile import run_file

if TYPE_CHECKING:
    import numpy as np

    from graphopt.target import TensorSpec

_SKIP = 1 << 22


class Column:
    """The values of one input, in memory or mapped."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Entries of the first axis, as an array that may be a view."""
        return self._array[start:stop]

    def whole(self) -> np.ndarray:
        return self._array


class ZipColumn(Column):
    """A member of an .npz archive, read as it is unpacked: rows in order cost no memory, a step back starts again."""

    def __init__(self, path: Path, member: str) -> None:
        self._path, self._member = path, member
        self._stream: IO[bytes] | None = None
        self._at = 0
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            self.shape, self._fortran, self.dtype = _header(stream)

    def rows(self, start: int, stop: int) -> np.ndarray:
        import numpy as np

        if self._fortran:  # written column by column: there are no rows to read one by one
            return self.whole()[start:stop]
        if self._stream is None or start < self._at:
            self._open()
        assert self._stream is not None
        size = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        self._read((start - self._at) * size, keep=False)
        data = self._read((stop - start) * size)
        self._at = stop
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def whole(self) -> np.ndarray:
        import numpy as np

        self._open()
        count = int(np.prod(self.shape, dtype=np.int64))
        flat = np.frombuffer(self._read(count * self.dtype.itemsize), self.dtype)
        self._close()
        return flat.reshape(self.shape, order="F" if self._fortran else "C")

    def _open(self) -> None:
        self._close()
        with zipfile.ZipFile(self._path) as archive:  # the member keeps the file open
            self._stream = archive.open(self._member)
        _header(self._stream)
        self._at = 0

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(self, size: int, keep: bool = True) -> bytes:
        assert self._stream is not None
        with reading(self._path, "an .npz archive"):
            if keep:
                data = self._stream.read(size)
                if len(data) < size:
                    raise GraphoptError(f"{self._path} ends within the array {self._member!r}")
                return data
            while size > 0:
                size -= len(self._stream.read(min(size, _SKIP))) or size
            return b""


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether Fortran order, and type of an .npy stream.

    Raises:
        ValueError: it is none, or holds pickled objects.
    """
    import numpy as np

    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    return shape, fortran, dtype


def open_npz(path: Path) -> dict[str, Column]:
    """The columns of an archive by name.

    Raises:
        GraphoptError: it is none, or holds pickled objects.
    """
    with reading(path, "an .npz archive"):
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name.removesuffix(".npy"): ZipColumn(path, name) for name in members}


def open_npy(path: Path) -> Column:
    """The array of a file, mapped.

    Raises:
        GraphoptError: it is none, or holds pickled objects.
    """
    return Column(read_npy(path, mapped=True))


def open_proto(path: Path) -> Column:
    """The array of a TensorProto's file.

    Raises:
        GraphoptError: it is none.
    """
    import numpy as np

    return Column(np.asarray(read_proto(path)[1]))


def pieces_of_path(path: Path, inputs: Sequence[TensorSpec]) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
    """What reads a file or folder: a function of (name, columns) pieces, in the order of their names.

    Raises:
        GraphoptError: there is no such path, or nothing in it that could be samples.
    """
    if not path.exists():
        raise GraphoptError(
            f"there is no file or folder {path}; samples are an .npz or .npy file, a folder, package.module:function, "
            "or the word random"
        )
    if path.is_file():
        if path.suffix == ".npz":
            return lambda: iter([(str(path), open_npz(path))])
        if path.suffix == ".npy":
            name = _only_input(path, inputs)
            return lambda: iter([(str(path), {name: open_npy(path)})])
        raise GraphoptError(f"{path} is not .npz or .npy; a Python file is given as {path}:function")
    return _pieces_of_folder(path, inputs)


def _pieces_of_folder(path: Path, inputs: Sequence[TensorSpec]) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
    names = {spec.name for spec in inputs}
    archives, arrays, protos = sorted(path.glob("*.npz")), sorted(path.glob("*.npy")), _protos(path)
    kinds = [kind for kind, found in ((".npz", archives), (".npy", arrays), (".pb", protos)) if found]
    if len(kinds) > 1:
        raise GraphoptError(f"{path} holds {' and '.join(kinds)} files; keep samples of one kind in a folder")
    if archives:
        return lambda: ((str(item), open_npz(item)) for item in archives)
    if arrays and names.intersection(item.stem for item in arrays):
        return lambda: iter([(str(path), {item.stem: open_npy(item) for item in arrays})])
    if arrays:
        name = _only_input(path, inputs)
        return lambda: ((str(item), {name: open_npy(item)}) for item in arrays)
    if protos and not any(map(_is_of_a_set, protos)):
        name = _only_input(path, inputs)
        return lambda: ((str(item), {name: open_proto(item)}) for item in protos)
    folders = [path] if protos else [item for item in sorted(path.iterdir()) if item.is_dir()]
    folders = [item for item in folders if any(item.glob("input_*.pb")) or any(item.glob("*.npy"))]
    if not folders:
        raise GraphoptError(
            f"{path} has no .npz, .npy or .pb files, nor subfolders (test_data_set_0) with .npy or input_<i>.pb files"
        )
    return lambda: ((str(item), _feed(item, inputs)) for item in folders)


def _protos(path: Path) -> list[Path]:
    """The .pb files of a folder that may be inputs; ONNX's test data sets have outputs beside them."""
    return sorted(item for item in path.glob("*.pb") if not item.name.startswith("output_"))


def _is_of_a_set(path: Path) -> bool:
    return path.name.startswith("input_")


def _feed(folder: Path, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    import numpy as np

    others = [item.name for item in _protos(folder) if not _is_of_a_set(item)]
    if others and len(others) < len(_protos(folder)):
        raise GraphoptError(
            f"{folder} holds input_<i>.pb, which are the inputs of one feed, and {others[0]}; give each feed a folder "
            "test_data_set_<n>"
        )
    return {name: Column(np.asarray(value)) for name, value in load_feeds(folder, inputs).items()}


def _only_input(path: Path, inputs: Sequence[TensorSpec]) -> str:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise GraphoptError(
            f"{path} does not say which of the inputs ({names}) it is for; use .npz files, or <input>.npy"
        )
    return inputs[0].name


def function_named(text: str) -> Callable[[], Any]:
    """The function that `package.module:function` or `file.py:function` names. It is code: importing it runs it.

    Raises:
        GraphoptError: no such file, module or function, or importing raises.
    """
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        raise GraphoptError(f"{text!r} is neither a path nor package.module:function nor file.py:function")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except GraphoptError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise GraphoptError(f"{text}: there is no module {error.name!r}; is its folder on PYTHONPATH?") from None
        raise GraphoptError(f"{text}: importing {where} needs a module {error.name!r} that is not installed") from error
    except Exception as error:  # the user's code may fail in any way
        raise GraphoptError(f"{text}: importing {where} raised {type(error).__name__}: {one_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise GraphoptError(f"{text}: {where} has no function {name!r}{did_you_mean(name, known)}")
    return function


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise GraphoptError(f"there is no file {path}")
    return run_file(path, "graphopt_samples_")


def pieces_of_objects(
    origin: str, make: Callable[[], Any], inputs: Sequence[TensorSpec], note: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pieces out of Python: a feed or an iterable of feeds: dicts, tuples in the order of the inputs, or single arrays.

    Raises:
        GraphoptError: the user's code raises, or gives something else.
    """
    iterator: Iterator[Any] = iter(())
    started = False
    index = 0
    while True:
        try:
            if not started:
                made = make()
                iterator = iter([made]) if isinstance(made, Mapping) or _is_array(made) else iter(made)
                started = True
            item = next(iterator)
        except StopIteration:
            return
        except GraphoptError:
            raise
        except Exception as error:  # the user's code may fail in any way
            raise GraphoptError(f"{origin} raised {type(error).__name__}: {one_line(error)}") from error
        yield f"{origin}, item {index}", _columns(item, inputs, origin, note)
        index += 1


def _columns(item: Any, inputs: Sequence[TensorSpec], origin: str, note: Callable[[str], None]) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return {str(name): Column(_array(value, f"{origin}: {name!r}")) for name, value in item.items()}
    values = list(item) if isinstance(item, tuple | list) else [item]
    if len(values) < len(inputs):
        names = ", ".join(spec.name for spec in inputs)
        raise GraphoptError(
            f"{origin} gives {len(values)} arrays at a time, the model has {len(inputs)} inputs ({names})"
        )
    if len(values) > len(inputs):
        more = len(values) - len(inputs)
        note(f"the last {more} of {len(values)} arrays of each item are no inputs (labels?) and are left out")
    pairs = zip(inputs, values, strict=False)
    return {spec.name: Column(_array(value, f"{origin}: {spec.name!r}")) for spec, value in pairs}


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _array(value: Any, what: str) -> np.ndarray:
    """An array or a torch tensor (which is asked, so that torch is not imported) as an array."""
    import numpy as np

    for step in ("detach", "cpu", "numpy"):
        if not isinstance(value, np.ndarray) and hasattr(value, step):
            value = getattr(value, step)()
    array = np.asarray(value)
    if array.dtype.kind == "O" and not all(isinstance(item, str | bytes) for item in array.ravel()):
        raise GraphoptError(f"{what} is a {type(value).__name__}, not an array or tensor")
    return array


def iterable_again(data: Any) -> Callable[[], Iterable[Any]]:
    """A function that iterates the data anew.

    Raises:
        GraphoptError: it can be iterated only once, or not at all.
    """
    if callable(data) and not hasattr(data, "__iter__"):
        return data
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise GraphoptError(
            f"calibration data of type {type(data).__name__} cannot be iterated; give a path, a function, or an "
            "iterable of feeds (dicts, or tuples in the order of the inputs)"
        )
    if iter(data) is data:
        raise GraphoptError(
            f"calibration data of type {type(data).__name__} can be iterated only once and is needed several times; "
            "give the function that makes it, or a list"
        )
    return lambda: data
