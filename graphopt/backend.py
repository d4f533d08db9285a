"""The ONNX Backend API: `graphopt.backend.prepare(model).run(inputs)`.

A model goes through capture, a target's pipeline and the target's runtime, in this process. Made for conformance suites
and for people who know that API; compile() is the way to ship a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, NodeProto, TensorProto
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.runner import RunResult
    from graphopt.target import Runner


@dataclass
class Prepared(BackendRep):
    """A model that is ready to run.

    Attributes:
        model: the model as the runtime got it.
        result: what the pipeline did to it: rewrites, remarks, timings.
    """

    model: ir.Model
    result: RunResult
    runner: Runner
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run on a list in the order of the inputs, a dict by name, or one array; outputs are a named tuple in order.

        Raises:
            GraphoptError: the inputs do not fit, or the runtime failed.
        """
        names = [spec.name for spec in self.runner.inputs]
        if isinstance(inputs, Mapping):
            feeds = {name: to_array(value) for name, value in inputs.items()}
        else:
            given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            if len(given) != len(names):
                raise GraphoptError(f"{len(given)} inputs are given, the model has {len(names)}: {', '.join(names)}")
            feeds = {name: to_array(value) for name, value in zip(names, given, strict=True)}
        outputs = self.runner.run(feeds)
        return namedtupledict("Outputs", list(outputs))(*outputs.values())

    def close(self) -> None:
        """Free the runtime's memory and the temporary files."""
        self.runner.close()
        self.folder.cleanup()


class GraphoptBackend(Backend):
    """Capture, a named pipeline, and the target's runtime."""

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Compile a model in memory.

        Args:
            model: its weights are inside, not external.
            device: "CPU" or "CUDA", as onnx.backend.base.Device spells it.
            **kwargs: `level` (0 to 3, default 3), `passes` (pipeline text instead of a level), `disable` (names of
                passes to leave out), `limit` (apply only so many rewrites). Others are ignored, as the API wants.

        Raises:
            GraphoptError: the model or an option is wrong, a pass broke a rule, or the runtime refuses the result.
        """
        target = _target(device)
        missing = target.available()
        if missing is not None:
            raise GraphoptError(f"device {device}: {missing}")
        folder = tempfile.TemporaryDirectory(prefix="graphopt-backend-")
        try:
            captured, result = transform(model, target, Path(folder.name), kwargs)
            runner = _open(captured, target, Path(folder.name))
        except BaseException:
            folder.cleanup()
            raise
        return Prepared(captured, result, runner, folder)

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Compile and run once."""
        prepared = cls.prepare(model, device, **kwargs)
        try:
            return prepared.run(inputs)
        finally:
            prepared.close()

    @classmethod
    def run_node(
        cls, node: NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run one node on inputs in the order of its present inputs; `opset_version` is the newest unless given."""
        arrays = [to_array(value) for value in inputs]
        return cls.run_model(
            _single(node, arrays, outputs_info, kwargs.pop("opset_version", None)), arrays, device, **kwargs
        )

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """True when capture accepts the model; the runtime may still lack a kernel."""
        from graphopt.frontends.onnx import load

        with tempfile.TemporaryDirectory(prefix="graphopt-backend-") as folder:
            try:
                load(_write(model, Path(folder)))
            except GraphoptError:
                return False
        return cls.supports_device(device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True when models can be run on the device here."""
        try:
            return _target(device).available() is None
        except GraphoptError:
            return False


prepare = GraphoptBackend.prepare
run_model = GraphoptBackend.run_model
run_node = GraphoptBackend.run_node
is_compatible = GraphoptBackend.is_compatible
supports_device = GraphoptBackend.supports_device


def to_array(value: Any) -> Any:
    """An input of the Backend API as the runner takes it: TensorProto to array, scalar to 0-d array, lists by item."""
    import numpy as np
    from onnx import numpy_helper

    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return [to_array(item) for item in value]
    return value if value is None or isinstance(value, np.ndarray) else np.asarray(value)


def _target(device: str) -> Any:
    from graphopt.manager.registry import make_target

    try:
        parsed = Device(device)
    except (AttributeError, ValueError):
        raise GraphoptError(f"there is no device {device!r}; the Backend API knows CPU, CUDA and CUDA:<id>") from None
    if parsed.type == DeviceType.CPU:
        return make_target("cpu{threads=1}")
    return make_target(f"cuda{{device-id={parsed.device_id}}}")


def transform(model: ModelProto, target: Any, folder: Path, options: Mapping[str, Any]) -> tuple[ir.Model, RunResult]:
    """Capture a model and run the pipeline that the options of `prepare` ask for; `folder` holds temporary files."""
    from graphopt.frontends.onnx import load
    from graphopt.manager import pipeline as pipelines
    from graphopt.manager.context import Context
    from graphopt.manager.runner import run

    text = options.get("passes")
    pipeline = pipelines.parse(text if text is not None else target.pipeline(options.get("level", 3)))
    pipeline = pipeline.without(tuple(options.get("disable", ())))
    captured = load(_write(model, folder))

    def evaluate(part: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with _open(part, None, folder) as runner:
            return runner.run(feeds)

    ctx = Context(captured, target=target, evaluate=evaluate, limit=options.get("limit"))
    return captured, run(captured, pipeline, ctx)


def _write(model: ModelProto, folder: Path) -> Path:
    path = folder / "source.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _open(model: ir.Model, target: Any, folder: Path) -> Runner:
    """Open a model in this process: as the target says, or as the reference when there is no target."""
    from graphopt.ir.writer import write
    from graphopt.targets.onnxruntime.runner import open_runner
    from graphopt.targets.onnxruntime.settings import SessionSettings

    number = sum(1 for _ in folder.iterdir())
    path = folder / f"model_{number}.onnx"
    write(model, path)
    settings = SessionSettings().reference() if target is None else target.session_settings()
    return open_runner(path, settings, isolate=False)


def _single(node: NodeProto, arrays: Sequence[Any], outputs_info: Any, opset: int | None) -> ModelProto:
    """A model of one node; outputs have the given (dtype, shape), or no type and ONNX's inference fills them in."""
    import numpy as np
    from onnx import defs, helper, shape_inference

    def value(name: str, array: Any) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    inputs = [value(name, array) for name, array in zip(filter(None, node.input), arrays, strict=True)]
    names = [name for name in node.output if name]
    if outputs_info is None:
        outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    else:
        outputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in zip(names, outputs_info, strict=True)
        ]
    version = opset or defs.get_schema(node.op_type, domain=node.domain).since_version
    graph = helper.make_graph([node], "single", inputs, outputs)
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid(node.domain, version)])
    return shape_inference.infer_shapes(model) if outputs_info is None else model
