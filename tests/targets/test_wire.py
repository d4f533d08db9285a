"""The protocol between graphopt and the worker: every value comes back as it went."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt.targets.onnxruntime.wire import Channel, WireClosed, WireTimeout, encode, pack, unpack


def round_trip(value: Any) -> Any:
    read, write = os.pipe()
    channel = Channel(read, write)
    sender = threading.Thread(target=channel.send, args=({"op": "x"}, {"v": pack(value)}))
    sender.start()
    header, values = channel.receive(time.monotonic() + 10)
    sender.join()
    os.close(read)
    os.close(write)
    assert header == {"op": "x"}
    return unpack(values["v"])


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2", "bfloat16", "float8_e5m2", "float4_e2m1fn"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3)])
def test_small_types(dtype: str, shape: tuple[int, ...]) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype))
    low = 0 if dtype.startswith("u") else -1
    value = (np.arange(int(np.prod(shape)), dtype=np.int64) % 2 + low).astype(kind).reshape(shape)
    back = round_trip(value)
    assert back.dtype == kind and back.shape == shape
    np.testing.assert_array_equal(back.astype(np.float32), value.astype(np.float32))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 3), np.float32),
        np.float64(3).reshape(()),
        np.arange(12, dtype=">i4").reshape(3, 4).T,
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
        np.arange(3_000_000, dtype=np.float32),
    ],
    ids=["empty", "scalar", "big-endian transposed", "bool", "complex", "larger than a pipe"],
)
def test_arrays(value: np.ndarray) -> None:
    back = round_trip(value)
    assert back.shape == value.shape and back.dtype == value.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, value)
    assert back.flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        np.array(["", "caf\u00e9", "\U0001f600\n\0", "half \ud800 a pair"], object).reshape(2, 2),
        np.array("x" * 3_000_000, object),
        np.array([], object).reshape(0, 3),
        np.array(["a", "bc"]),
    ],
    ids=["awkward", "larger than a pipe", "empty", "of fixed width"],
)
def test_text(value: np.ndarray) -> None:
    back = round_trip(value)
    assert back.shape == value.shape and back.dtype == object
    assert back.reshape(-1).tolist() == value.reshape(-1).tolist()


def test_bytes_of_text_come_back_as_text() -> None:
    assert round_trip(np.array([b"caf\xc3\xa9", "b"], object)).tolist() == ["caf\u00e9", "b"]


def test_text_does_not_pass_through_the_header() -> None:
    # JSON escapes and parses each character: 100 MB of text took minutes.
    buffers: list[Any] = []
    header = encode(np.array(["x" * 1_000_000] * 3, object), buffers)
    assert len(str(header)) < 100
    assert [len(item) for item in buffers] == [24, 3_000_000]


def test_objects_are_refused() -> None:
    read, write = os.pipe()
    with pytest.raises(TypeError, match="holds a int"):
        Channel(read, write).send({}, {"v": np.array([1, "a"], object)})
    with pytest.raises(TypeError, match="cannot be fed"):
        Channel(read, write).send({}, {"v": np.array(["2020-01-01"], "datetime64[D]")})
    os.close(read)
    os.close(write)


def test_silence_and_end_are_told_apart() -> None:
    read, write = os.pipe()
    channel = Channel(read, write)
    with pytest.raises(WireTimeout):
        channel.receive(time.monotonic() + 0.05)
    os.close(write)
    with pytest.raises(WireClosed):
        channel.receive(time.monotonic() + 5)
    os.close(read)
