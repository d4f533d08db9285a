"""One runtime in a process of its own, timed in blocks on request; what the figures of the tvm target are made with.

    python -m benchmarks.tvm_worker kernel|vm|ort|ort-kernel|openvino|torch THREADS FILE FEEDS.npz
    python -m benchmarks.tvm_worker gpu|ort-gpu|torch-gpu|torch-gpu-half 0 FILE FEEDS.npz

Each line on stdin is a number of runs; the answer is a JSON list of their seconds. `kernel` calls the function `main`
of a library with all arrays, `vm` a Relax virtual machine, `ort` a session; `ort-kernel` answers the time that ONNX
Runtime's profile gives for the one Conv, Gemm or MatMul of a model, without the layout changes around it; `torch` is
torch.compile on the module behind a built model of the zoo, whose name FILE is. On a GPU inputs lie in its memory, a
run ends when the GPU is done, and nobody rounds to TF32; `gpu` is a library of the tvm target.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QLinearConv", "MatMulIntegerToFloat")
WARM = 20
"""Runs of a new session until its threads are all at work."""
Run = Callable[[], object]


class Worker:
    """A child process that times one runtime."""

    def __init__(self, kind: str, threads: int, file: Path, feeds: Path, python: str = sys.executable) -> None:
        command = [python, "-m", "benchmarks.tvm_worker", kind, str(threads), str(file), str(feeds)]
        environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def time(self, runs: int) -> list[float]:
        """Seconds of each of so many runs.

        Raises:
            RuntimeError: the process ended.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(f"{runs}\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"worker ended: {' '.join(map(str, self._child.args))}")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def race(workers: Mapping[str, Worker], seconds: float, block_seconds: float = 0.05) -> dict[str, list[float]]:
    """Medians of blocks of runs that take turns, by worker."""
    first = {name: min(worker.time(5)) for name, worker in workers.items()}
    blocks: dict[str, list[float]] = {name: [] for name in workers}
    rounds = max(5, int(seconds / len(workers) / block_seconds))
    for _ in range(rounds):
        for name, worker in workers.items():
            runs = max(3, int(block_seconds / first[name])) + 1
            blocks[name].append(float(np.median(worker.time(runs)[1:])))
    return blocks


def _kernel(file: Path, feeds: Mapping[str, np.ndarray]) -> Run:
    import tvm

    function = tvm.runtime.load_module(str(file))["main"]
    arrays = [tvm.runtime.tensor(value) for value in feeds.values()]
    return lambda: function(*arrays)


def _vm(file: Path, feeds: Mapping[str, np.ndarray]) -> Run:
    import tvm

    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(file)), tvm.cpu())
    arrays = [tvm.runtime.tensor(value) for value in feeds.values()]
    machine.set_input("main", *arrays)
    return lambda: machine.invoke_stateful("main")


def _session(file: Path, threads: int, profile: Path | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if profile:  # one layer is shorter than waking a thread takes: threads go on spinning from run to run
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _ort(file: Path, threads: int, feeds: Mapping[str, np.ndarray]) -> Run:
    session = _session(file, threads, None)
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _openvino(file: Path, threads: int, feeds: Mapping[str, np.ndarray]) -> Run:
    import openvino

    # On CPUs with bfloat16 it would compute in that.
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()
    for name, value in feeds.items():
        request.set_tensor(name, openvino.Tensor(value))
    return lambda: request.infer()


def _torch(name: str, threads: int, feeds: Mapping[str, np.ndarray]) -> Run:
    import torch
    import torch._inductor.config

    from graphopt.models.build import torch_module

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True  # weights are constants, as for everyone else here
    compiled: Any = torch.compile(torch_module(name)[0])
    inputs = [torch.from_numpy(value) for value in feeds.values()]

    def run() -> object:
        with torch.no_grad():
            return compiled(*inputs)

    return run


def _gpu(file: Path, feeds: Mapping[str, np.ndarray]) -> Run:
    from graphopt.targets.tvm.library import Library

    library = Library(file, cuda=True)
    tensors = [library.tensor(value) for value in feeds.values()]
    return lambda: library.run_tensors(tensors)


def _ort_gpu(file: Path, feeds: Mapping[str, np.ndarray]) -> Run:
    import onnxruntime

    onnxruntime.preload_dlls()  # CUDA's libraries from where pip puts them
    provider = ("CUDAExecutionProvider", {"use_tf32": "0"})
    session = onnxruntime.InferenceSession(str(file), providers=[provider, "CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _torch_gpu(name: str, feeds: Mapping[str, np.ndarray], half: bool = False) -> Run:
    import torch
    import torch._inductor.config

    from graphopt.models.build import torch_module

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch._inductor.config.freezing = True
    torch._inductor.config.compile_threads = 4  # several models are compiled at the same time
    module = torch_module(name)[0].cuda()
    compiled: Any = torch.compile(module.half() if half else module)
    inputs = [torch.from_numpy(value).cuda() for value in feeds.values()]
    inputs = [value.half() if half and value.is_floating_point() else value for value in inputs]

    def run() -> None:
        with torch.no_grad():
            compiled(*inputs)
        torch.cuda.synchronize()

    return run


def _profiled(file: Path, threads: int, feeds: Mapping[str, np.ndarray], runs: int) -> list[float]:
    session = _session(file, threads, file.with_suffix(""))
    for _ in range(WARM + runs):
        session.run(None, dict(feeds))
    path = Path(session.end_profiling())
    events = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    seconds = [
        event["dur"] * 1e-6
        for event in events
        if event.get("cat") == "Node"
        and event.get("args", {}).get("op_name") in KERNELS
        and "kernel_time" in event["name"]
    ]
    return seconds[WARM:]


def main() -> None:
    # TVM ties the threads of a process that ran its code to cores; a child would inherit that.
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    kind, threads, file, feeds_file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    with np.load(feeds_file) as stored:
        feeds = {name: stored[name] for name in stored.files}
    openers: dict[str, Callable[[], Run]] = {
        "kernel": lambda: _kernel(file, feeds),
        "vm": lambda: _vm(file, feeds),
        "ort": lambda: _ort(file, threads, feeds),
        "openvino": lambda: _openvino(file, threads, feeds),
        "torch": lambda: _torch(sys.argv[3], threads, feeds),
        "gpu": lambda: _gpu(file, feeds),
        "ort-gpu": lambda: _ort_gpu(file, feeds),
        "torch-gpu": lambda: _torch_gpu(sys.argv[3], feeds),
        "torch-gpu-half": lambda: _torch_gpu(sys.argv[3], feeds, half=True),
    }
    run = None if kind == "ort-kernel" else openers[kind]()
    for line in sys.stdin:
        runs = int(line)
        if run is None:
            print(json.dumps(_profiled(file, threads, feeds, runs)), flush=True)
            continue
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
