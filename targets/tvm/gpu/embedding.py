"""Device code put into a library in place of the CUDA source that TVM would compile when it is loaded.

TVM makes code for a GPU only where CUDA's driver is. Elsewhere its CUDA module keeps the source, and a library with it
needs TVM's compiler and nvcc on the device. The modules that a library imports lie in it as one array of bytes, which
is rewritten here before it is linked. Its form, all numbers 64-bit and little-endian, text with its length before it:

    length of the rest; import tree as two vectors; then of each module its kind, and unless that is `_lib` its bytes

The bytes of a CUDA module are the format of its code, a table of its kernels, and the code: text but for the table.
"""

from __future__ import annotations

import dataclasses
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.targets.tvm.gpu.nvcc import Binary, Kernel
from graphopt.targets.tvm.toolchain import compiler

if TYPE_CHECKING:
    from graphopt.targets.tvm.machine import Machine

_SYMBOL = "__tvm_ffi__library_bin"
_SOURCE, _BINARY = b"cuda", b"fatbin"
# CUDA's own leave a NaN out; ONNX's Max, Min, Relu and Clip hand it on.
_KEEP_NAN = """
template <typename T>
static inline __device__ T graphopt_max(T a, T b) { return a > b || a != a ? a : b; }
template <typename T>
static inline __device__ T graphopt_min(T a, T b) { return a < b || a != a ? a : b; }
#define max graphopt_max
#define min graphopt_min
"""


@dataclass
class Imports:
    """The modules of a library, by kind and bytes; `_lib`, the library itself, has none."""

    tree: bytes
    modules: list[tuple[bytes, bytes | None]] = field(default_factory=list)

    @classmethod
    def read(cls, blob: bytes) -> Imports:
        """Raises GraphoptError when the bytes are of another form: another version of TVM."""
        reader = _Reader(blob)
        if reader.number() != len(blob) - 8:
            raise GraphoptError("TVM packs imported modules in a form that graphopt does not know")
        for _ in range(2):
            reader.skip(8)
        imports = cls(blob[8 : reader.at])
        while reader.at < len(blob):
            kind = reader.text()
            imports.modules.append((kind, None if kind == b"_lib" else reader.text()))
        return imports

    def blob(self) -> bytes:
        body = [self.tree]
        for kind, content in self.modules:
            body += [_text(kind), *([] if content is None else [_text(content)])]
        joined = b"".join(body)
        return struct.pack("<Q", len(joined)) + joined

    def size(self, kind: str) -> int:
        """Bytes of the modules of one kind."""
        return sum(len(content or b"") for name, content in self.modules if name == kind.encode())

    def compile_cuda(self, compile_source: Callable[[str], bytes]) -> None:
        """Put device code where the source is."""
        self.modules = [
            (kind, _compiled(content, compile_source) if kind == b"cuda" and content is not None else content)
            for kind, content in self.modules
        ]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        (value,) = struct.unpack_from("<Q", self.data, self.at)
        self.at += 8
        return int(value)

    def text(self) -> bytes:
        size = self.number()
        self.at += size
        return self.data[self.at - size : self.at]

    def skip(self, size: int) -> None:
        """Pass over a vector of elements of so many bytes."""
        count = self.number()
        self.at += size * count

    def skip_kernels(self) -> None:
        """Pass over a table of kernels: name twice, argument types, launch tags, argument tags."""
        for _ in range(self.number()):
            self.text()
            self.text()
            self.skip(4)
            for _ in range(self.number()):
                self.text()
            self.skip(4)


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _compiled(content: bytes, compile_source: Callable[[str], bytes]) -> bytes:
    """The bytes of a CUDA module with its code compiled."""
    reader = _Reader(content)
    if reader.text() != _SOURCE:
        return content
    start = reader.at
    reader.skip_kernels()
    table, source = content[start : reader.at], reader.text()
    if reader.at != len(content):
        raise GraphoptError("TVM stores CUDA kernels in a form that graphopt does not know")
    return _text(_BINARY) + table + _text(compile_source(source.decode("utf-8")))


class DeviceCode:
    """Packs the imports of a library with its CUDA source compiled, for TVM's export_library; writes the source too."""

    def __init__(self, machine: Machine, source: Path, compile_source: Callable[[str, str], Binary]) -> None:
        self._machine, self._source, self._compile_source = machine, source, compile_source
        self._kernels: dict[str, Kernel] = {}

    def pack(self, module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        """Write an object file with the imports of a module; return its path."""
        from tvm.runtime import _ffi_api

        imports = Imports.read(_ffi_api.ModulePackImportsToTensor(module).numpy().tobytes())
        self._source.write_text("// no kernels\n", encoding="utf-8")
        imports.compile_cuda(self._compile)
        return assemble(imports.blob(), Path(folder), compiler(self._machine.triple))

    def kernels(self) -> dict[str, dict[str, int]]:
        """What ptxas tells of each kernel."""
        return {name: dataclasses.asdict(kernel) for name, kernel in self._kernels.items()}

    def _compile(self, source: str) -> bytes:
        before, first, kernels = source.partition('extern "C"')
        source = before + _KEEP_NAN + first + kernels
        self._source.write_text(source, encoding="utf-8")
        binary = self._compile_source(source, self._machine.arch)
        self._kernels.update(binary.kernels)
        return binary.code


def assemble(blob: bytes, folder: Path, command: str) -> str:
    """An object file that holds the bytes under the name by which TVM's runtime finds them."""
    (folder / "imports.bin").write_bytes(blob)
    lines = (
        ".section .rodata", f".globl {_SYMBOL}", f".type {_SYMBOL}, %object", ".balign 16", f"{_SYMBOL}:",
        '.incbin "imports.bin"', f".size {_SYMBOL}, . - {_SYMBOL}", '.section .note.GNU-stack,"",%progbits',
    )  # fmt: skip
    (folder / "imports.s").write_text("\n".join(lines) + "\n")
    subprocess.run([command, "-c", "imports.s", "-o", "imports.o"], cwd=folder, check=True, capture_output=True)
    return str(folder / "imports.o")
