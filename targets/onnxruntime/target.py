"""The ONNX Runtime targets: `onnxruntime{device=cpu|cuda ...}` and its short names `cpu` and `cuda`.

    files = Cpu(threads=2).compile(model, folder)        # model.onnx, and model.onnx.data for large weights
    runner = Cpu().load(folder / "model.onnx", files.settings)

A machine without the device compiles for it all the same; `CompiledFiles.notes` says what could not be checked.
"""

from __future__ import annotations

import ctypes
import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import GraphoptError
from graphopt.target import RUN_SECONDS, Cause, CompiledFiles, Profiling, Runner, Target, run_bytes
from graphopt.targets.onnxruntime import kernels
from graphopt.targets.onnxruntime.isa import SATURATES, Isa, resolve
from graphopt.targets.onnxruntime.qdq import why_float
from graphopt.targets.onnxruntime.runner import open_runner
from graphopt.targets.onnxruntime.settings import CPU_PROVIDER, SessionSettings

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.writer import ExternalData
    from graphopt.target import Feeds

CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
MODEL_FILE = "model.onnx"

Precision = Literal["fp32", "fp16"]
"""In which floats a float32 model computes."""


@dataclass(frozen=True)
class _OrtTarget(Target):
    """What all ONNX Runtime targets share: files, loading, and answers from the kernel table."""

    @property
    @abstractmethod
    def kernel_device(self) -> kernels.Device:
        """The column of the kernel table that answers `supports`."""

    @abstractmethod
    def session_settings(self) -> SessionSettings:
        """The session options that this target's options stand for; they go into the manifest."""

    def supports(self, domain: str, op_type: str, version: int, dtype: str | None = None) -> str | None:
        return kernels.why_not(self.kernel_device, domain, op_type, version, dtype)

    def quirks(self) -> frozenset[str]:
        # At load the CPU provider turns Add + LayerNormalization into SkipLayerNormalization, whose kernel takes about
        # four times as long (docs/dev/facts.md).
        if self.kernel_device != "cpu":
            return frozenset()
        # Without VNNI u8s8 kernels add pairs of products in 16 bits with saturation.
        return frozenset({"slow-skip-layer-norm", *({"u8s8-saturates"} if resolve(self._isa()) in SATURATES else ())})

    def _isa(self) -> Isa:
        return "auto"

    def is_reference(self) -> bool:
        return self.kernel_device == "cpu"

    def pipeline(self, level: int) -> str:
        if level not in range(4):
            raise GraphoptError(f"there is no optimization level {level}; levels are 0 to 3")
        if self._precision() == "fp32":
            return f"O{level}"
        # Behind the fusions: a fused op keeps inside what its parts would have to compute in float32.
        return f"O{level},convert-float16" + (",fix(eliminate-cast,eliminate-identity,cse,dce)" if level else "")

    def _precision(self) -> Precision:
        return "fp32"

    def compile(self, model: ir.Model, out: Path, external_data: ExternalData = "auto") -> CompiledFiles:
        """Write `model.onnx` into `out`, its weights beside it in `model.onnx.data` when they are large or external."""
        from graphopt.ir.writer import write

        files = write(model, out / MODEL_FILE, external_data)
        return CompiledFiles(
            main=MODEL_FILE, files=files, settings=self.session_settings().to_json(), notes=self._notes(model)
        )

    def settings(self) -> dict[str, Any]:
        return self.session_settings().to_json()

    def load(self, path: Path, settings: Mapping[str, Any] | None = None, *, time_limit: float = RUN_SECONDS) -> Runner:
        """Open a model in a child process; use `open_runner` for other limits or for this process."""
        chosen = self.session_settings() if settings is None else SessionSettings.from_json(settings)
        # What a GPU's driver maps says nothing about what it takes.
        limited = self.kernel_device == "cpu" and Path(path).is_file()
        memory = run_bytes(Path(path).absolute().parent) if limited else None
        return open_runner(path, chosen, time_limit=time_limit, memory_limit=memory)

    def executed(self, path: Path, folder: Path, settings: Mapping[str, Any] | None = None) -> Path:
        from graphopt.targets.onnxruntime.optimized import write_optimized

        chosen = self.session_settings() if settings is None else SessionSettings.from_json(settings)
        return write_optimized(path, chosen, folder, time_limit=RUN_SECONDS)

    def profile(self, path: Path, feeds: Feeds, folder: Path, settings: Mapping[str, Any] | None = None) -> Profiling:
        from graphopt.targets.onnxruntime.profiling import OrtProfiling

        chosen = self.session_settings() if settings is None else SessionSettings.from_json(settings)
        return OrtProfiling(path, chosen, folder, feeds)

    def why_float(self, node: ir.Node) -> Cause:
        return why_float(node, self.kernel_device)

    def _notes(self, model: ir.Model) -> tuple[str, ...]:
        return kernels.place(model, self.kernel_device).notes()


@dataclass(frozen=True)
class Cpu(_OrtTarget):
    """ONNX Runtime's CPU provider.

    Attributes:
        threads: threads inside an op; 0 for one per physical core.
        spinning: idle threads wait actively: faster, at the cost of a busy core.
        arena: keep freed memory for the next run.
        prepacking: copy weights into kernel layout at load: faster, twice the memory.
        denormals_as_zero: flush denormal floats; not exact.
        precise_u8s8: avoid saturating int8 kernels on CPUs without VNNI.
        isa: what int8 weights are made for; `auto` is this machine. `avx2` and `avx512` are without VNNI.
        backend: `auto` lets `compile` measure ONNX Runtime and TVM (with what it does not take left to ONNX Runtime) on
            this machine, and ship the fastest that verifies; elsewhere it is ONNX Runtime.
    """

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "ONNX Runtime on the CPU"

    threads: int = 0
    spinning: bool = True
    arena: bool = True
    prepacking: bool = True
    denormals_as_zero: bool = False
    precise_u8s8: bool = False
    isa: Isa = "auto"
    backend: Literal["onnxruntime", "auto"] = "onnxruntime"

    def __post_init__(self) -> None:
        if self.backend == "auto" and self.isa != "auto":
            raise GraphoptError(f"target 'cpu': backend=auto measures on this machine, so isa={self.isa} is no choice")

    def candidates(self) -> tuple[tuple[str, ...], ...]:
        if self.backend != "auto":
            return ()
        threads = f"threads={self.threads}"
        return (
            (str(replace(self, backend="onnxruntime")),),
            (f"tvm{{{threads}}}", f"tvm{{fallback=onnxruntime {threads}}}"),
        )

    def _isa(self) -> Isa:
        # With the session key the kernels do not saturate, whatever the machine.
        return "avx512vnni" if self.precise_u8s8 else self.isa

    @property
    def kernel_device(self) -> kernels.Device:
        return "cpu"

    def available(self) -> str | None:
        return _no_runtime("cpu")

    def session_settings(self) -> SessionSettings:
        return SessionSettings(
            threads=self.threads,
            spinning=self.spinning,
            arena=self.arena,
            prepacking=self.prepacking,
            denormals_as_zero=self.denormals_as_zero,
            precise_u8s8=self.precise_u8s8,
        )

    def _notes(self, model: ir.Model) -> tuple[str, ...]:
        # A missing CPU kernel is no fallback but a model that cannot run, unless the op has a function body.
        return tuple(f"{note} (runs only if the op is defined by a function)" for note in super()._notes(model))


@dataclass(frozen=True)
class Cuda(_OrtTarget):
    """ONNX Runtime's CUDA or TensorRT provider on an NVIDIA GPU.

    Attributes:
        provider: `cuda`, or `tensorrt` with CUDA for what TensorRT does not take.
        device_id: which GPU.
        tf32: let matrix products round their inputs to 10 mantissa bits (the provider's default is on).
        options: further provider options as `key=value`.
        threads: CPU threads for the nodes that stay there.
        precision: `fp16` computes in float16 where that is safe and the provider has kernels; inputs and outputs stay.
    """

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "ONNX Runtime on an NVIDIA GPU (CUDA or TensorRT)"

    provider: Literal["cuda", "tensorrt"] = "cuda"
    device_id: int = 0
    tf32: bool = True
    options: tuple[str, ...] = ()
    threads: int = 0
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for option in self.options:
            if "=" not in option:
                raise GraphoptError(f"provider option {option!r} is not key=value")
        if self.provider == "tensorrt" and not self.tf32:
            raise GraphoptError("tf32=false is an option of provider=cuda; TensorRT has none of that name")

    def _precision(self) -> Precision:
        return self.precision

    @property
    def kernel_device(self) -> kernels.Device:
        return "cuda"

    def available(self) -> str | None:
        wanted = TENSORRT_PROVIDER if self.provider == "tensorrt" else CUDA_PROVIDER
        return _no_runtime("cuda") or _no_gpu(wanted)

    def rounds_operands(self) -> bool:
        return self.tf32

    def session_settings(self) -> SessionSettings:
        given = dict(option.split("=", 1) for option in self.options)
        options = {"device_id": str(self.device_id), **given}
        if self.provider == "tensorrt":
            providers: tuple[str, ...] = (TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER)
        else:
            providers = (CUDA_PROVIDER, CPU_PROVIDER)
            options.setdefault("use_tf32", "1" if self.tf32 else "0")
        return SessionSettings(threads=self.threads, providers=providers, provider_options=tuple(options.items()))

    def _notes(self, model: ir.Model) -> tuple[str, ...]:
        notes = super()._notes(model)
        if self.provider == "tensorrt":
            notes += ("which nodes TensorRT takes is known on a machine that has it; the rest falls to CUDA",)
        reason = self.available()
        return notes if reason is None else (*notes, f"compiled, not run: {reason}")


_ONLY: Mapping[str, tuple[str, ...]] = {
    "cpu": ("spinning", "arena", "prepacking", "denormals_as_zero", "precise_u8s8", "isa"),
    "cuda": ("device_id", "tf32", "options"),
}
"""The options of one device, by the names that `Cpu` and `Cuda` have for them."""


@dataclass(frozen=True)
class OnnxRuntime(_OrtTarget):
    """ONNX Runtime with the device as an option; `cpu` and `cuda` are its short names, and say what the options mean.

    Attributes:
        device: `cpu` or `cuda`.
        provider: `default`, or `tensorrt` with device=cuda.
        threads: CPU threads; 0 for one per physical core.
        precision: `fp32`, or with device=cuda `fp16`.
        spinning, arena, prepacking, denormals_as_zero, precise_u8s8, isa: with device=cpu, as of `cpu`.
        device_id, tf32, options: with device=cuda, as of `cuda`.
    """

    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "ONNX Runtime, device=cpu or device=cuda"

    device: kernels.Device = "cpu"
    provider: Literal["default", "tensorrt"] = "default"
    threads: int = 0
    precision: Precision = "fp32"
    spinning: bool = True
    arena: bool = True
    prepacking: bool = True
    denormals_as_zero: bool = False
    precise_u8s8: bool = False
    isa: Isa = "auto"
    device_id: int = 0
    tf32: bool = True
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.provider == "tensorrt" and self.device != "cuda":
            raise GraphoptError("provider=tensorrt needs device=cuda")
        if self.precision == "fp16" and self.device != "cuda":
            raise GraphoptError("precision=fp16 needs device=cuda: the CPU has few float16 kernels and would only cast")
        other = "cuda" if self.device == "cpu" else "cpu"
        for field in fields(self):
            if field.name in _ONLY[other] and getattr(self, field.name) != field.default:
                raise GraphoptError(
                    f"{field.name} is an option of device={other}, not of device={self.device}; "
                    f"that has {', '.join(_ONLY[self.device])}"
                )
        self._target()  # refuses what does not go together

    def _precision(self) -> Precision:
        return self.precision

    def _isa(self) -> Isa:
        return self._target()._isa()

    @property
    def kernel_device(self) -> kernels.Device:
        return self.device

    def available(self) -> str | None:
        return self._target().available()

    def rounds_operands(self) -> bool:
        return self._target().rounds_operands()

    def session_settings(self) -> SessionSettings:
        return self._target().session_settings()

    def _notes(self, model: ir.Model) -> tuple[str, ...]:
        return self._target()._notes(model)

    def _target(self) -> Cpu | Cuda:
        own = {name: getattr(self, name) for name in ("threads", *_ONLY[self.device])}
        if self.device == "cpu":
            return Cpu(**own)
        provider: Literal["cuda", "tensorrt"] = "tensorrt" if self.provider == "tensorrt" else "cuda"
        return Cuda(provider=provider, precision=self.precision, **own)


def _no_runtime(extra: str) -> str | None:
    if importlib.util.find_spec("onnxruntime") is not None:
        return None
    return f'ONNX Runtime is not installed; install it with: pip install "graphopt[{extra}]"'


_TENSORRT = "libnvinfer.so.10"
"""The library that ONNX Runtime's TensorRT provider is linked to."""


def _no_gpu(provider: str) -> str | None:
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        return (
            f"the installed ONNX Runtime {ort.__version__} has no {provider}; its CPU and GPU packages exclude each "
            'other: pip uninstall onnxruntime && pip install "graphopt[cuda]"'
        )
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "this machine has no NVIDIA GPU (no /dev/nvidia*); copy the artifact to one that has"
    if provider == TENSORRT_PROVIDER:  # the package lists it also where TensorRT itself is missing
        try:
            ctypes.CDLL(_TENSORRT)
        except OSError:
            return f"{_TENSORRT} is not found; pip install tensorrt and put its folder on LD_LIBRARY_PATH"
    return None
