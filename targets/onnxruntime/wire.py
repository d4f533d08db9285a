"""How values cross between graphopt and the process that runs a model: a JSON header, then raw buffers.

A message is `<u32 header bytes><JSON header><buffer>...`; the header lists the buffers' sizes. No pickle; numpy only.
Text travels as two buffers, lengths and UTF-8: in the header every character would be escaped and parsed.
Element types that numpy lacks (bfloat16, float8, int4, ...) travel as `Packed` bytes in ONNX's own layout.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

_HEAD = struct.Struct("<I")
_CHUNK = 1 << 20
_SURROGATES = "surrogatepass"  # a user's text may hold half of a pair; whether a runtime takes it is for that to say
_WATCH_SECONDS = 0.05


@dataclass(frozen=True)
class ElementType:
    """An element type that numpy has no name for: ONNX's TensorProto code, its width, ml_dtypes' name."""

    code: int
    bits: int
    ml_dtype: str


# By the text in ONNX Runtime's `tensor(...)`. Codes from onnx.proto3, TensorProto.DataType.
EXOTIC: Mapping[str, ElementType] = {
    "bfloat16": ElementType(16, 16, "bfloat16"),
    "float8e4m3fn": ElementType(17, 8, "float8_e4m3fn"),
    "float8e4m3fnuz": ElementType(18, 8, "float8_e4m3fnuz"),
    "float8e5m2": ElementType(19, 8, "float8_e5m2"),
    "float8e5m2fnuz": ElementType(20, 8, "float8_e5m2fnuz"),
    "uint4": ElementType(21, 4, "uint4"),
    "int4": ElementType(22, 4, "int4"),
    "float4e2m1": ElementType(23, 4, "float4_e2m1fn"),
    "float8e8m0": ElementType(24, 8, "float8_e8m0fnu"),
    "uint2": ElementType(25, 2, "uint2"),
    "int2": ElementType(26, 2, "int2"),
}
_BY_ML_DTYPE = {element.ml_dtype: name for name, element in EXOTIC.items()}


@dataclass(frozen=True)
class Packed:
    """A tensor of an `EXOTIC` element type: little-endian bytes, sub-byte types packed low bits first."""

    element: str
    shape: tuple[int, ...]
    data: bytes


class WireClosed(Exception):
    """The other side ended; what it had to say is in its exit status and stderr."""


class WireTimeout(Exception):
    """The other side did not answer within the limit."""


def pack(value: Any) -> Any:
    """Turn ml_dtypes arrays (also inside sequences) into `Packed`; everything else passes through."""
    if isinstance(value, list):
        return [pack(item) for item in value]
    if not isinstance(value, np.ndarray) or value.dtype.name not in _BY_ML_DTYPE:
        return value
    name = _BY_ML_DTYPE[value.dtype.name]
    bits = EXOTIC[name].bits
    raw = np.ascontiguousarray(value).reshape(-1).view(np.uint16 if bits == 16 else np.uint8)
    if bits < 8:
        raw = _squeeze_bits(raw, bits)
    return Packed(name, value.shape, raw.tobytes())


def unpack(value: Any) -> Any:
    """The inverse of `pack`: ml_dtypes arrays of the tensor's shape."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, Packed):
        return value
    import ml_dtypes

    element = EXOTIC[value.element]
    dtype = np.dtype(getattr(ml_dtypes, element.ml_dtype))
    size = int(np.prod(value.shape, dtype=np.int64))
    if element.bits >= 8:
        return np.frombuffer(value.data, dtype=dtype).reshape(value.shape).copy()
    raw = _spread_bits(np.frombuffer(value.data, np.uint8), element.bits, size)
    if element.ml_dtype.startswith("int"):  # ml_dtypes wants the sign carried into the whole byte
        raw = ((raw << (8 - element.bits)).view(np.int8) >> (8 - element.bits)).view(np.uint8)
    return raw.view(dtype).reshape(value.shape)


def _squeeze_bits(raw: np.ndarray, bits: int) -> np.ndarray:
    per_byte = 8 // bits
    padded = np.zeros(-(-raw.size // per_byte) * per_byte, np.uint8)
    padded[: raw.size] = raw & ((1 << bits) - 1)
    lanes = padded.reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(lanes << shifts, axis=1).astype(np.uint8)


def _spread_bits(raw: np.ndarray, bits: int, size: int) -> np.ndarray:
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    return ((raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)).astype(np.uint8).reshape(-1)[:size].copy()


def encode(value: Any, buffers: list[memoryview | bytes]) -> dict[str, Any]:
    """Describe one value for the header; its bytes are appended to `buffers`.

    Raises:
        TypeError: neither array, string array, sequence (list), map (dict), `Packed` nor None.
    """
    if value is None:
        return {"kind": "none"}
    if isinstance(value, list):
        return {"kind": "sequence", "items": [encode(item, buffers) for item in value]}
    if isinstance(value, dict):
        return {"kind": "map", "items": [[key, item] for key, item in value.items()]}
    if isinstance(value, Packed):
        buffers.append(value.data)
        return {"kind": "packed", "element": value.element, "shape": list(value.shape)}
    array = np.asarray(value)
    if array.dtype.kind in "OUST":
        texts = [_text(item).encode("utf-8", _SURROGATES) for item in array.reshape(-1)]
        buffers += [np.array([len(text) for text in texts], "<i8").tobytes(), b"".join(texts)]
        return {"kind": "strings", "shape": list(array.shape)}
    if array.dtype.kind not in "biufc":
        raise TypeError(f"a value of type {type(value).__name__} ({array.dtype}) cannot be fed to a model")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    buffers.append(little.reshape(-1).view(np.uint8).data)
    return {"kind": "array", "dtype": array.dtype.name, "shape": list(array.shape)}


def decode(header: dict[str, Any], take: Callable[[], bytearray]) -> Any:
    """Read back what `encode` described; `take` yields the buffers in order. Arrays own their memory."""
    kind = header["kind"]
    if kind == "none":
        return None
    if kind == "sequence":
        return [decode(item, take) for item in header["items"]]
    if kind == "map":
        return {key: item for key, item in header["items"]}
    if kind == "packed":
        return Packed(header["element"], tuple(header["shape"]), bytes(take()))
    if kind == "strings":
        ends, text = np.cumsum(np.frombuffer(take(), "<i8")).tolist(), take()
        out = np.empty(len(ends), dtype=object)
        out[:] = [text[a:b].decode("utf-8", _SURROGATES) for a, b in pairwise([0, *ends])]
        return out.reshape(header["shape"])
    return np.frombuffer(take(), dtype=np.dtype(header["dtype"])).reshape(header["shape"])


def _text(item: Any) -> str:
    if isinstance(item, bytes):
        return item.decode("utf-8")
    if isinstance(item, str):
        return item
    raise TypeError(f"a string tensor holds a {type(item).__name__}")


class Channel:
    """Two pipe ends. `deadline` is a `time.monotonic()` value or None for no limit.

    `watch` is called every 50 ms while waiting; what it raises ends the wait.
    """

    def __init__(self, read_fd: int, write_fd: int, watch: Callable[[], None] | None = None) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._watch = watch
        for descriptor in (read_fd, write_fd):
            with contextlib.suppress(OSError):  # no pipe, or above what a user may have: it works without
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _CHUNK)
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def send(
        self, header: dict[str, Any], values: Mapping[str, Any] | None = None, deadline: float | None = None
    ) -> None:
        """Send one message with named values.

        Raises:
            WireClosed, WireTimeout: the other side is gone or does not read.
            TypeError: a value that cannot travel.
        """
        buffers: list[memoryview | bytes] = []
        described = {name: encode(value, buffers) for name, value in (values or {}).items()}
        text = json.dumps({**header, "values": described, "buffers": [len(item) for item in buffers]}).encode()
        self._write(_HEAD.pack(len(text)) + text, deadline)
        for item in buffers:
            self._write(item, deadline)

    def receive(self, deadline: float | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Wait for one message; return its header and values.

        Raises:
            WireClosed, WireTimeout: the other side ended, or said nothing before the deadline.
        """
        (size,) = _HEAD.unpack(self._read(_HEAD.size, deadline))
        header = json.loads(self._read(size, deadline).decode())
        buffers = iter([self._read(length, deadline) for length in header.pop("buffers")])
        values = {name: decode(item, lambda: next(buffers)) for name, item in header.pop("values").items()}
        return header, values

    def _write(self, data: bytes | memoryview, deadline: float | None) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        while view:
            self._wait(self._write_fd, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._write_fd, view[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise WireClosed from None

    def _read(self, size: int, deadline: float | None) -> bytearray:
        out = bytearray(size)
        view, done = memoryview(out), 0
        while done < size:
            self._wait(self._read_fd, select.POLLIN, deadline)
            try:
                count = os.readv(self._read_fd, [view[done:]])
            except BlockingIOError:
                continue
            if not count:
                raise WireClosed
            done += count
        return out

    def _wait(self, descriptor: int, event: int, deadline: float | None) -> None:
        poll = select.poll()  # not select(): descriptors of a busy process may pass 1024
        poll.register(descriptor, event)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            nap = left if self._watch is None else min(_WATCH_SECONDS, _WATCH_SECONDS if left is None else left)
            if poll.poll(None if nap is None else nap * 1000):
                return
            if self._watch is not None:
                self._watch()
            if deadline is not None and time.monotonic() >= deadline:
                raise WireTimeout
