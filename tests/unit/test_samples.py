"""Samples from files: how arrays are cut into feeds, the same each time, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.samples import Samples, inputs_of, open_samples, random_samples
from graphopt.target import TensorSpec

X = TensorSpec("x", "tensor(float)", ("N", 3))
MASK = TensorSpec("mask", "tensor(int64)", ("N", 2))
RATE = TensorSpec("rate", "tensor(int64)", ())


def rows(n: int, width: int = 3) -> np.ndarray:
    return np.arange(n * width, dtype=np.float32).reshape(n, width)


def fixed(n: int) -> TensorSpec:
    return TensorSpec("x", "tensor(float)", (n, 3))


def npz(folder: Path, name: str = "calib.npz", compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(folder / name, **arrays)
    return folder / name


def shapes(samples: Samples, limit: int | None = None) -> list[tuple[int, ...]]:
    return [feeds["x"].shape for feeds in samples.batches(limit)]


def refusal(samples: Samples) -> str:
    with pytest.raises(GraphoptError) as caught:
        list(samples.batches())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_is_cut_along_its_first_axis(tmp_path: Path, compressed: bool) -> None:
    x, mask = rows(20), np.ones((20, 2), np.int64)
    path = npz(tmp_path, compressed=compressed, x=x, mask=mask, rate=np.asarray(16000))
    samples = open_samples(path, [X, MASK, RATE])
    for _ in range(2):
        batches = list(samples.batches())
        assert [feeds["x"].shape[0] for feeds in batches] == [8, 8, 4]
        np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in batches]), x)
        assert all(feeds["rate"] == 16000 and feeds["mask"].shape == (len(feeds["x"]), 2) for feeds in batches)
    assert samples.seen == 20 and not samples.notes and samples.origin == "calib.npz"


def test_rows_of_an_archive_are_read_as_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path, x=rows(4000))
    read: list[int] = []
    plain = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: read.append(n) or plain(self, n))
    samples = open_samples(path, [X])
    assert len(list(samples.batches())) == 500
    assert max(read) <= 8 * 3 * 4 + 256 and min(read) >= 0


def test_a_limit_ends_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    samples = open_samples(npz(tmp_path, x=rows(20)), [X])
    assert shapes(samples, 11) == [(8, 3), (3, 3)]
    assert samples.seen == 11


def test_a_fixed_batch_drops_the_rest_and_says_so(tmp_path: Path) -> None:
    samples = open_samples(npz(tmp_path, x=rows(11)), [fixed(4)])
    assert shapes(samples) == [(4, 3), (4, 3)] and samples.seen == 8
    assert samples.notes == ["3 samples are left out: the model takes 4 at a time"]
    samples = open_samples(npz(tmp_path, x=rows(5)), [fixed(1)])
    assert shapes(samples) == [(1, 3)] * 5


def test_a_limit_is_in_whole_batches_of_a_fixed_size(tmp_path: Path) -> None:
    """And one at least: who asks for one sample means as few as can be had."""
    for limit, batches in ((1, 1), (4, 1), (7, 1), (8, 2), (11, 2), (100, 5)):
        samples = open_samples(npz(tmp_path, x=rows(20)), [fixed(4)])
        assert shapes(samples, limit) == [(4, 3)] * batches
        assert samples.seen == 4 * batches and not samples.notes
    folder = tmp_path / "pieces"
    folder.mkdir()
    for index in range(5):
        npz(folder, f"{index}.npz", x=rows(3))
    assert shapes(open_samples(folder, [fixed(4)]), 2) == [(4, 3)]
    whole = open_samples(npz(tmp_path, "whole.npz", x=np.zeros((5, 4, 3), np.float32)), [fixed(4)])
    assert shapes(whole, 2) == [(4, 3)] * 2
    assert "there are 3 samples and the model takes 4" in refusal(open_samples(npz(tmp_path, x=rows(3)), [fixed(4)]))


def test_an_array_of_one_rank_more_holds_whole_feeds(tmp_path: Path) -> None:
    x = np.zeros((5, 2, 3), np.float32)
    samples = open_samples(npz(tmp_path, x=x, mask=np.ones((2, 2), np.int64)), [X, MASK])
    batches = list(samples.batches())
    assert [feeds["x"].shape for feeds in batches] == [(2, 3)] * 5 and samples.seen == 5
    assert all(feeds["mask"].shape == (2, 2) for feeds in batches)
    message = refusal(open_samples(npz(tmp_path, x=x, mask=np.ones((4, 2, 2), np.int64)), [X, MASK]))
    assert "there are 5 of 'x', 4 of 'mask'" in message


def test_one_entry_is_given_to_every_batch(tmp_path: Path) -> None:
    one = TensorSpec("mask", "tensor(int64)", (1, 2))
    samples = open_samples(npz(tmp_path, x=rows(10), mask=np.ones((1, 2), np.int64)), [X, one])
    assert [feeds["mask"].shape for feeds in samples.batches()] == [(1, 2)] * 2
    assert "given to every batch" in samples.notes[0]


def test_inputs_without_a_batch_axis_are_one_feed(tmp_path: Path) -> None:
    tokens = TensorSpec("tokens", "tensor(float)", ("L",))
    one = open_samples(npz(tmp_path, tokens=np.ones(100, np.float32)), [tokens])
    assert [feeds["tokens"].shape for feeds in one.batches()] == [(100,)]
    assert one.seen == 1
    many = open_samples(npz(tmp_path, tokens=np.ones((6, 100), np.float32)), [tokens])
    assert len(list(many.batches())) == 6


def test_folders(tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    np.save(named / "x.npy", rows(9))
    np.save(named / "mask.npy", np.ones((9, 2), np.int64))
    assert shapes(open_samples(named, [X, MASK])) == [(8, 3), (1, 3)]
    single = tmp_path / "single"
    single.mkdir()
    for index in range(10):
        np.save(single / f"{index:03d}.npy", rows(10)[index])
    samples = open_samples(single, [X])
    assert shapes(samples) == [(8, 3), (2, 3)]
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in samples.batches()]), rows(10))
    archives = tmp_path / "archives"
    archives.mkdir()
    for index in range(3):
        npz(archives, f"{index}.npz", x=rows(6), mask=np.ones((6, 2), np.int64))
    assert shapes(open_samples(archives, [X, MASK])) == [(8, 3), (8, 3), (2, 3)]
    with pytest.raises(GraphoptError, match=r"does not say which of the inputs \(x, mask\)"):
        open_samples(single, [X, MASK])


def test_test_data_sets(tmp_path: Path) -> None:
    import onnx

    for index in range(3):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        (folder / "input_0.pb").write_bytes(onnx.numpy_helper.from_array(rows(2) + index, "x").SerializeToString())
    assert shapes(open_samples(tmp_path, [X])) == [(6, 3)]
    assert shapes(open_samples(tmp_path / "test_data_set_1", [X])) == [(2, 3)]


def proto(path: Path, array: Any, name: str = "") -> None:
    import onnx

    path.parent.mkdir(exist_ok=True)
    path.write_bytes(onnx.numpy_helper.from_array(array, name).SerializeToString())


def test_protos_of_one_input_are_samples(tmp_path: Path) -> None:
    for index in range(3):
        proto(tmp_path / f"s{index}.pb", rows(2) + index)
    proto(tmp_path / "output_0.pb", rows(2))
    samples = open_samples(tmp_path, [X])
    assert shapes(samples) == [(6, 3)]
    want = np.concatenate([rows(2) + index for index in range(3)])
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in samples.batches()]), want)
    with pytest.raises(GraphoptError, match=r"does not say which of the inputs \(x, mask\)"):
        open_samples(tmp_path, [X, MASK])


@pytest.mark.parametrize("folder", [".", "test_data_set_0"])
def test_no_proto_is_left_out_in_silence(tmp_path: Path, folder: str) -> None:
    proto(tmp_path / folder / "input_0.pb", rows(2))
    proto(tmp_path / folder / "output_0.pb", rows(2))
    assert shapes(open_samples(tmp_path, [X])) == [(2, 3)]
    proto(tmp_path / folder / "sample1.pb", rows(2))
    with pytest.raises(GraphoptError, match=r"holds input_<i>\.pb, which are the inputs of one feed, and sample1\.pb"):
        shapes(open_samples(tmp_path, [X]))


def test_protos_beside_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(2))
    proto(tmp_path / "input_0.pb", rows(2))
    with pytest.raises(GraphoptError, match=r"holds \.npy and \.pb files; keep samples of one kind in a folder"):
        open_samples(tmp_path, [X])


def test_what_is_no_array_is_told_without_numpys_advice(tmp_path: Path) -> None:
    for data in (b"garbage", b""):
        (tmp_path / "x.npy").write_bytes(data)
        with pytest.raises(GraphoptError, match=r"x\.npy cannot be read as an \.npy array: it does not begin as one$"):
            shapes(open_samples(tmp_path / "x.npy", [X]))


def test_pieces_of_different_shapes_are_not_joined(tmp_path: Path) -> None:
    words = TensorSpec("x", "tensor(float)", ("N", "L"))
    for index, length in enumerate((4, 4, 6)):
        npz(tmp_path, f"{index}.npz", x=rows(2, length))
    assert shapes(open_samples(tmp_path, [words])) == [(4, 4), (2, 6)]


@pytest.mark.parametrize(
    ("arrays", "specs", "message"),
    [
        ({"y": rows(2)}, [X], "no input 'y'; known: x"),
        ({"x": rows(2)}, [X, MASK], "no samples of input 'mask'; it has x"),
        ({"x": rows(2, 4)}, [X], "has shape [2, 4], the model wants [N, 3]"),
        ({"x": rows(2).astype(np.float64)}, [X], "is float64, the model wants float32"),
        ({"x": rows(0)}, [X], "there are no samples in it"),
        ({"x": rows(3)}, [fixed(4)], "there are 3 samples and the model takes 4 at a time"),
        ({"x": rows(3), "mask": np.ones((2, 2), np.int64)}, [X, MASK], "there are 3 of 'x', 2 of 'mask'"),
        ({"x": np.float32(1)}, [X], "has shape [], the model wants [N, 3]"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, arrays: Any, specs: Any, message: str) -> None:
    assert message in refusal(open_samples(npz(tmp_path, **arrays), specs))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused_by_name_and_sample(tmp_path: Path, value: float) -> None:
    x = rows(20)
    x[13, 1] = value
    assert "input 'x' of sample 13 holds NaN or infinities" in refusal(open_samples(npz(tmp_path, x=x), [X]))
    stacked = np.stack([x[:4], x[12:16]])
    assert "input 'x' of sample 1 holds NaN" in refusal(open_samples(npz(tmp_path, x=stacked), [X]))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.array([{"a": 1}], dtype=object))
    assert "never unpickled" in refusal(open_samples(path, [X]))
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object))
    assert "cannot be read" in refusal(open_samples(tmp_path / "x.npy", [X]))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    assert "cannot be read as an .npz archive" in refusal(open_samples(tmp_path / "bad.npz", [X]))
    path = npz(tmp_path, x=rows(1000))
    path.write_bytes(path.read_bytes()[:4000])
    assert "cannot be read" in refusal(open_samples(path, [X]))
    flipped = bytearray(npz(tmp_path, x=rows(1000)).read_bytes())
    flipped[2000] ^= 255  # the checksum is looked at where the array ends
    path.write_bytes(flipped)
    assert "cannot be read as an .npz archive: Bad CRC-32" in refusal(open_samples(path, [X]))
    (tmp_path / "data.csv").write_text("1,2")
    for name, message in (("missing.npz", "no file or folder"), ("data.csv", "not .npz or .npy")):
        with pytest.raises(GraphoptError, match=message):
            open_samples(tmp_path / name, [X])
    (tmp_path / "empty").mkdir()
    with pytest.raises(GraphoptError, match="has no .npz, .npy or .pb files"):
        open_samples(tmp_path / "empty", [X])


def test_the_digest_is_that_of_the_files(tmp_path: Path) -> None:
    samples = open_samples(npz(tmp_path, x=rows(4)), [X])
    before = samples.digest()
    assert before is not None and len(before) == 64
    assert open_samples(npz(tmp_path, x=rows(5)), [X]).digest() != before
    assert open_samples(tmp_path, [X]).digest() not in (None, before)


def test_random_samples_are_the_same_each_time_and_outlive_changes_of_the_model() -> None:
    model = from_text('<ir_version: 10, opset_import: ["": 21]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }')
    samples = random_samples(model)
    first = [feeds["x"] for feeds in samples.batches(12)]
    model.graph.remove(list(model.graph), safe=False)
    again = [feeds["x"] for feeds in samples.batches(12)]
    assert [item.shape for item in first] == [(8, 3), (4, 3)] and samples.origin == "random"
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0][:2], first[0][2:4])


def test_inputs_of_a_model() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21]>
      g (float[N, 3] x, int64 n, float16[] h, float[2] w) => (float[N, 3] y) <float[2] w = {1, 2}> { y = Relu (x) }""")
    assert inputs_of(model)[:2] == [X, TensorSpec("n", "tensor(int64)", ())]
    assert [spec.type for spec in inputs_of(model)] == ["tensor(float)", "tensor(int64)", "tensor(float16)"]
