"""ONNX Runtime as a target: `cpu`, `cuda`, `onnxruntime{device=cuda provider=tensorrt}`.

settings.py   SessionSettings, the session options that an artifact records
runner.py     open_runner(path, settings) -> Runner, in a child process (worker.py) or in this one
kernels.py    which ops the CPU and CUDA providers have kernels for (kernel_table.json, made by make_kernel_table.py)
target.py     the Target classes

    with open_runner(Path("model.onnx"), SessionSettings(threads=2), time_limit=60) as runner:
        outputs = runner.run({"x": x})

The child imports numpy and ONNX Runtime only and so starts fast; nothing here may import more at module level.
"""
