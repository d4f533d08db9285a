"""One ONNX Runtime session: opened from settings, run on wire values, timed with I/O binding.

Used inside the worker process and by the in-process runner. Imports numpy and ONNX Runtime only.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.target import TensorSpec
from graphopt.targets.onnxruntime.settings import CPU_PROVIDER, SessionSettings
from graphopt.targets.onnxruntime.wire import EXOTIC, Packed

_LEVELS = {
    "disable_all": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
_CODES = {element.code: name for name, element in EXOTIC.items()}
_TENSOR = re.compile(r"tensor\((\w+)\)$")


class Session:
    """An open model. `inputs` and `outputs` are its interface, `load_seconds` what opening took."""

    def __init__(
        self, path: Path, settings: SessionSettings, optimized: Path | None = None, profile: Path | None = None
    ) -> None:
        """Open `path`; `optimized` also writes the graph that the runtime made of it there, `profile` times its nodes.

        Raises:
            GraphoptError: the runtime refuses the model, or lacks a wanted provider.
        """
        import onnxruntime as ort

        check_providers(settings)
        load_device_libraries(settings)
        options = session_options(settings)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        providers: list[Any] = list(settings.providers)
        providers[0] = (providers[0], dict(settings.provider_options))
        start = time.perf_counter()
        try:
            # Without enable_fallback=0 a provider that fails is replaced by the CPU one, with a print.
            self._session = ort.InferenceSession(
                str(path),
                options,
                providers=providers,
                enable_fallback=0,
                disabled_optimizers=list(settings.disabled_optimizers),
            )
        except Exception as error:  # every failure of the runtime has its own class; all mean that it refused the model
            raise GraphoptError(f"ONNX Runtime cannot load {path}: {one_line(error)}") from error
        self.load_seconds = time.perf_counter() - start
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        if settings.providers[0] not in self.providers:
            raise GraphoptError(
                f"ONNX Runtime opened {path} without {settings.providers[0]}: the provider's libraries are missing or "
                'of another version; pip install "onnxruntime-gpu[cuda,cudnn]" brings those of CUDA'
            )
        self._device = "cuda" if settings.providers[0] != CPU_PROVIDER else "cpu"
        self._device_id = int(dict(settings.provider_options).get("device_id", "0"))
        self.inputs = tuple(_spec(item) for item in self._session.get_inputs())
        self.outputs = tuple(_spec(item) for item in self._session.get_outputs())
        self._types = {spec.name: spec.type for spec in (*self.inputs, *self.outputs)}
        self._binding: Any = None

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Return outputs by name as wire values (arrays, `Packed`, lists, dicts, None).

        Raises:
            GraphoptError: the feeds do not fit, or the runtime failed.
        """
        names = list(outputs) if outputs is not None else [spec.name for spec in self.outputs]
        exotic = any(isinstance(value, Packed) for value in feeds.values())
        exotic = exotic or any(_exotic(self._types.get(name, "")) for name in names)
        try:
            if not exotic:
                return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
            kept: list[Any] = []  # an OrtValue does not own the array it looks at
            values = {name: to_ort(value, kept) for name, value in feeds.items() if value is not None}
            results = self._session.run_with_ort_values(names, values)
            return {name: from_ort(value) for name, value in zip(names, results, strict=True)}
        except Exception as error:  # as above: pybind raises classes of its own, TypeError, ValueError, ...
            raise GraphoptError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error

    def bind_outputs(self, outputs: Mapping[str, np.ndarray]) -> Any:
        """What `run_into` takes to write into these arrays, which must outlive it."""
        binding = self._session.io_binding()
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    def run_into(self, binding: Any, feeds: Mapping[str, np.ndarray]) -> None:
        """Run on arrays; the runtime refuses to write outputs into arrays of another shape.

        Raises:
            GraphoptError: the feeds or the outputs do not fit, or the runtime failed.
        """
        kept = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in feeds.items()}
        try:
            for name, value in kept.items():
                binding.bind_cpu_input(name, value)
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise GraphoptError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error

    def bind(self, feeds: Mapping[str, Any]) -> None:
        """Bind feeds and outputs once, so that timing measures the model and no copies from Python."""
        kept: list[Any] = []
        binding = self._session.io_binding()
        try:
            for name, value in feeds.items():
                if value is None or isinstance(value, list):
                    binding = None  # I/O binding takes tensors only; such models are timed through run()
                    break
                binding.bind_ortvalue_input(name, to_ort(value, kept, self._device, self._device_id))
            if binding is not None:
                for spec in self.outputs:
                    binding.bind_output(spec.name, self._device, self._device_id)
        except Exception as error:  # as above
            raise GraphoptError(f"ONNX Runtime cannot bind the feeds: {one_line(error)}") from error
        self._binding = (binding, kept, dict(feeds))

    def time(self, n: int) -> list[float]:
        """Seconds of each of `n` runs on the bound feeds."""
        binding, _, feeds = self._binding
        seconds = []
        try:
            for _ in range(n):
                start = time.perf_counter()
                if binding is None:
                    self._session.run(None, feeds)
                else:
                    self._session.run_with_iobinding(binding)
                seconds.append(time.perf_counter() - start)
        except Exception as error:  # as above
            raise GraphoptError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
        return seconds

    def end_profile(self) -> str:
        """Stop timing nodes; the path of the events' file, whose name begins as `profile` said."""
        return str(self._session.end_profiling())


def session_options(settings: SessionSettings) -> Any:
    """The `onnxruntime.SessionOptions` that `settings` describe."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = settings.inter_threads
    if settings.inter_threads > 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = settings.arena
    options.enable_mem_pattern = settings.arena
    options.use_deterministic_compute = settings.deterministic
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[settings.optimization_level])
    options.log_severity_level = 3  # errors; warnings about what the optimizers did are no news to a user
    entries = {
        "session.intra_op.allow_spinning": settings.spinning,
        "session.inter_op.allow_spinning": settings.spinning,
        "session.force_spinning_stop": settings.force_spinning_stop,
        "session.disable_prepacking": not settings.prepacking,
        "session.set_denormal_as_zero": settings.denormals_as_zero,
        "session.x64quantprecision": settings.precise_u8s8,
    }
    for key, wanted in entries.items():
        options.add_session_config_entry(key, "1" if wanted else "0")
    for key, value in settings.config:
        options.add_session_config_entry(key, value)
    return options


def check_providers(settings: SessionSettings) -> None:
    """Raise GraphoptError when the installed package lacks the first provider; it would silently run elsewhere."""
    import onnxruntime as ort

    there = ort.get_available_providers()
    if settings.providers[0] not in there:
        raise GraphoptError(
            f"provider {settings.providers[0]} is not in the installed ONNX Runtime {ort.__version__} "
            f"(it has {', '.join(there)}); for NVIDIA GPUs replace onnxruntime by onnxruntime-gpu: "
            'pip uninstall onnxruntime && pip install "graphopt[cuda]"'
        )


def load_device_libraries(settings: SessionSettings) -> None:
    """Load CUDA's libraries from where pip puts them; ONNX Runtime looks there only when it is asked to."""
    import onnxruntime as ort

    preload = getattr(ort, "preload_dlls", None)
    if settings.providers[0] != CPU_PROVIDER and preload is not None:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            preload()


def to_ort(value: Any, kept: list[Any], device: str = "cpu", device_id: int = 0) -> Any:
    """An OrtValue over an array or `Packed`; `kept` holds what must outlive it."""
    import onnxruntime as ort

    if not isinstance(value, Packed):
        array = np.asarray(value)
        if array.dtype.kind not in "US":
            array = np.ascontiguousarray(array).reshape(array.shape)
        kept.append(array)
        on_host = array.dtype.kind in "OUS"  # text has no place on a GPU
        return ort.OrtValue.ortvalue_from_numpy(array, "cpu" if on_host else device, 0 if on_host else device_id)
    element = EXOTIC[value.element]
    out = ort.OrtValue.ortvalue_from_shape_and_type(list(value.shape), element.code)
    if value.data:
        ctypes.memmove(out.data_ptr(), value.data, len(value.data))
    return out


def from_ort(value: Any) -> Any:
    """The wire value of an OrtValue tensor.

    Raises:
        TypeError: a sequence beside an element type that numpy lacks, which ONNX Runtime's Python API cannot return.
    """
    if not value.has_value():
        return None
    if not value.is_tensor():
        raise TypeError(f"output of type {value.data_type()} cannot be read beside outputs of types that numpy lacks")
    name = _CODES.get(value.element_type())
    if name is None:
        return value.numpy()
    return Packed(name, tuple(value.shape()), ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()))


def one_line(error: BaseException) -> str:
    """The runtime's message without its prefix, source paths and line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"(/\S+/)?onnxruntime/\S+:\d+ \S.*?\] ?", "", text)[:600]


def memory() -> dict[str, int]:
    """Bytes of this process: resident, resident and anonymous (not mapped from files), and the peak of the former.

    The peak is VmHWM, not ru_maxrss: the latter survives exec and would show the parent's size.
    """
    wanted = {"VmRSS": "rss", "RssAnon": "anonymous", "VmHWM": "peak_rss", "VmData": "data"}
    out = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in wanted:
            out[wanted[key]] = int(rest.split()[0]) * 1024
    return out


def _spec(item: Any) -> TensorSpec:
    is_tensor = _TENSOR.search(item.type) is not None and not item.type.startswith("seq")
    shape = tuple(dim if isinstance(dim, (int, str)) else None for dim in item.shape) if is_tensor else None
    return TensorSpec(item.name, item.type, shape)


def _exotic(type_text: str) -> bool:
    found = _TENSOR.match(type_text)
    return found is not None and found.group(1) in EXOTIC
