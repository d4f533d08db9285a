"""Samples from functions, iterables and loaders: forms, order, errors of the user's code, data that changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.manager.codefile import run_file
from graphopt.samples import open_samples
from graphopt.target import TensorSpec

X = TensorSpec("x", "tensor(float)", ("N", 3))
MASK = TensorSpec("mask", "tensor(int64)", ("N", 2))


def rows(n: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + n * 3, dtype=np.float32).reshape(n, 3)


def sizes(data: Any, specs: Any = (X,), limit: int | None = None) -> list[int]:
    return [len(feeds["x"]) for feeds in open_samples(data, list(specs)).batches(limit)]


class Tensor:
    """As much of a torch tensor as is used."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self.array


class Loader:
    """Iterates anew each time, as a DataLoader does."""

    def __init__(self, shuffle: bool = False) -> None:
        self.shuffle = shuffle
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        start = self.passes if self.shuffle else 0
        for index in range(3):
            yield [Tensor(rows(5, start + index)), Tensor(np.zeros(5))]


SOURCE = """
import numpy as np
def batched():
    for i in range(3):
        yield {"x": np.full((4, 3), i, np.float32)}
def one():
    return {"x": np.zeros((20, 3), np.float32)}
def listed():
    return [(np.zeros(3, np.float32),)] * 3
def broken():
    yield {"x": np.zeros((4, 3), np.float32)}
    raise RuntimeError("no camera")
def odd():
    return [{"x": {1, 2}}]
value = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "samples_for_test.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(("name", "wanted"), [("batched", [8, 4]), ("one", [8, 8, 4]), ("listed", [3])])
def test_functions_of_a_file_and_of_a_module(
    source: Path, monkeypatch: pytest.MonkeyPatch, name: str, wanted: list[int]
) -> None:
    assert sizes(f"{source}:{name}") == wanted
    monkeypatch.syspath_prepend(str(source.parent))
    samples = open_samples(f"samples_for_test:{name}", [X])
    for _ in range(2):
        assert [len(feeds["x"]) for feeds in samples.batches()] == wanted
    assert samples.origin == f"samples_for_test:{name}" and samples.seen == sum(wanted)
    digest = samples.digest()
    assert digest is not None and len(digest) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}:batchd", "has no function 'batchd'; did you mean 'batched'"),
        ("{}:value", "has no function 'value'"),
        ("missing.py:f", "there is no file missing.py"),
        ("no_such_module_x:f", "no module 'no_such_module_x'"),
        ("calib:f g", "neither a path nor package.module:function"),
    ],
)
def test_names_of_no_function(source: Path, text: str, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        open_samples(text.format(source), [X])


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "broken raised RuntimeError: no camera"), ("odd", "'x' is a set, not an array")]
)
def test_code_that_fails(source: Path, name: str, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        sizes(f"{source}:{name}")


def test_a_loader_gives_tensors_in_the_order_of_the_inputs() -> None:
    samples = open_samples(Loader(), [X])
    batches = list(samples.batches())
    assert [len(feeds["x"]) for feeds in batches] == [8, 7]
    np.testing.assert_array_equal(batches[0]["x"][:5], rows(5))
    assert samples.notes == ["the last 1 of 2 arrays of each item are no inputs (labels?) and are left out"]
    with pytest.raises(GraphoptError, match="gives 1 arrays at a time, the model has 2 inputs .x, mask"):
        list(open_samples([(rows(2),)], [X, MASK]).batches())


def test_a_loader_that_shuffles_is_found_out() -> None:
    samples = open_samples(Loader(shuffle=True), [X])
    list(samples.batches())
    with pytest.raises(GraphoptError, match="differ from those of the pass before.*no shuffling"):
        list(samples.batches())


def test_what_can_be_iterated_once_is_refused() -> None:
    with pytest.raises(GraphoptError, match="generator can be iterated only once"):
        open_samples(({"x": rows(2)} for _ in range(3)), [X])
    with pytest.raises(GraphoptError, match="type int cannot be iterated"):
        open_samples(3, [X])


def test_plain_objects() -> None:
    assert sizes({"x": rows(10)}) == [8, 2]
    assert sizes([{"x": rows(1)}, {"x": rows(2)}]) == [3]
    assert sizes([rows(1)[0], rows(1)[0]]) == [2]
    assert sizes(lambda: [rows(4)] * 3, limit=9) == [8, 1]
    assert sizes([{"x": rows(7)}] * 2, [TensorSpec("x", "tensor(float)", (4, 3))]) == [4, 4, 4]


@pytest.mark.torch
def test_a_real_loader() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.arange(30.0).reshape(10, 3), torch.arange(10))
    assert sizes(torch.utils.data.DataLoader(data, batch_size=4)) == [8, 2]


def test_code_that_users_name_leaves_no_bytecode_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as on a machine where nobody has set it
    (tmp_path / "own.py").write_text("answer = 42")
    assert run_file(tmp_path / "own.py", "test_").answer == 42
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"] and not sys.dont_write_bytecode
