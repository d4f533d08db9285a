"""The IR as a torch.fx GraphModule: parameters are named as the initializers, and gradients flow to them.

Lives here: building the module. Not here: what each op computes (torch_ops.py, torch_nn.py); capture.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, MissingDependency

if TYPE_CHECKING:
    import torch

    from graphopt import ir

_SHOWN = 12


def to_torch(model: ir.Model) -> torch.fx.GraphModule:
    """A GraphModule that computes what the model computes.

    Its forward takes the model's inputs in order and returns a tuple of the outputs in order. Float initializers and
    Constants are parameters, others buffers; all are copies. A dot in a name is a submodule, as in torch. Each fx node
    carries the site of its ONNX node in `meta["site"]`; the module's `meta` has the `inputs` and `outputs` by name.

    Raises:
        MissingDependency: torch is not installed.
        GraphoptError: ops that have no torch form here (all are named), subgraphs, or element types that torch lacks.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingDependency("turning a model into a torch module", "torch")
    return _Builder(model).module()


def supported_ops() -> frozenset[str]:
    """Names of the standard ops that `to_torch` knows; those of other domains as `domain::name`."""
    return frozenset(_table())


def _table() -> dict[str, Callable[..., Any]]:
    from graphopt.interop import torch_nn, torch_ops

    return {**torch_ops.OPS, **torch_nn.OPS}


class _Builder:
    def __init__(self, model: ir.Model) -> None:
        import torch

        self.model = model
        self.table = _table()
        self.root = torch.nn.Module()
        self.graph = torch.fx.Graph()
        self.values: dict[int, torch.fx.Node] = {}

    def module(self) -> torch.fx.GraphModule:
        import torch

        self._refuse_unknown()
        graph = self.model.graph
        for value in graph.inputs:
            if not value.is_initializer():
                self.values[id(value)] = self.graph.placeholder(_identifier(value.name))
        for value in graph.initializers.values():
            assert value.const_value is not None
            self._constant(value, value.const_value)
        for node in graph:
            self._node(node)
        self.graph.output(tuple(self.values[id(value)] for value in graph.outputs))
        self.graph.lint()
        made = torch.fx.GraphModule(self.root, self.graph, class_name="GraphoptModule")
        made.meta["inputs"] = [value.name for value in graph.inputs if not value.is_initializer()]
        made.meta["outputs"] = [value.name for value in graph.outputs]
        return made

    def _refuse_unknown(self) -> None:
        missing = {_key(node) for node in self.model.graph if node.op_type != "Constant"} - self.table.keys()
        if missing:
            names = ", ".join(sorted(missing)[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            raise GraphoptError(f"these ops have no torch form: {names}; see graphopt.interop.torch.supported_ops()")

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        import torch

        name = value.name or ""
        data = to_tensor(tensor, name)
        *path, leaf = name.split(".") if _dotted(name) else [name.replace(".", "_")]
        owner = self.root
        for part in path:
            child = getattr(owner, part, None)
            if child is None:
                child = torch.nn.Module()
                owner.add_module(part, child)
            elif not isinstance(child, torch.nn.Module):
                raise GraphoptError(
                    f"initializer {name!r} lies under another one, {'.'.join(path)!r}; rename one of them"
                )
            owner = child
        if data.is_floating_point():
            owner.register_parameter(leaf, torch.nn.Parameter(data))
        else:
            owner.register_buffer(leaf, data)
        self.values[id(value)] = self.graph.get_attr(".".join([*path, leaf]))

    def _node(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and node.domain == "":
            from graphopt.ir.constants import const_tensor

            tensor = const_tensor(node.outputs[0])
            if tensor is None:
                raise GraphoptError(f"node {node.name!r}: this form of Constant has no tensor")
            self._constant(node.outputs[0], tensor)
            return
        function = self.table[_key(node)]
        made = self.graph.call_function(function, self._operands(node), self._options(node, function))
        made.meta["site"] = node.name
        used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        if function not in _multiple():
            if any(value is not node.outputs[0] for value in used):
                raise GraphoptError(f"node {node.name!r}: only the first output of {node.op_type} has a torch form")
            self.values[id(node.outputs[0])] = made
            return
        for index, value in enumerate(node.outputs):
            if value in used:
                self.values[id(value)] = self.graph.call_function(operator.getitem, (made, index))
                self.values[id(value)].meta["site"] = node.name

    def _operands(self, node: ir.Node) -> tuple[torch.fx.Node | None, ...]:
        return tuple(None if value is None else self.values[id(value)] for value in node.inputs)

    def _options(self, node: ir.Node, function: Callable[..., Any]) -> dict[str, Any]:
        """Attributes as keyword arguments; `outputs` and `opset` for functions that ask for them."""
        options = {name: _plain(attr, node) for name, attr in node.attributes.items()}
        # torch's own functions stand for ops that have no attributes, and have no signature.
        asked = inspect.signature(function).parameters if inspect.isfunction(function) else {}
        for name in options:
            if name not in asked:
                raise GraphoptError(f"node {node.name!r}: attribute {name!r} of {node.op_type} has no torch form")
        if "outputs" in asked:
            options["outputs"] = len(node.outputs)
        if "opset" in asked:
            options["opset"] = self.model.opset_imports.get(node.domain, 1)
        return options


def to_tensor(tensor: ir.TensorProtocol, name: str) -> torch.Tensor:
    """A torch tensor with a copy of the data.

    Raises:
        GraphoptError: strings, 4-bit and other types that torch does not compute with.
    """
    import numpy as np
    import torch

    array = tensor.numpy()
    if tensor.dtype.name == "BFLOAT16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub" or array.dtype.name not in np.sctypeDict:
        raise GraphoptError(f"{name!r} has element type {tensor.dtype.name}, which has no torch form here")
    return torch.from_numpy(np.array(array))


def _multiple() -> frozenset[Callable[..., Any]]:
    from graphopt.interop import torch_ops

    return frozenset({torch_ops.split, torch_ops.topk})


def _key(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _plain(attr: ir.Attr, node: ir.Node) -> Any:
    if attr.is_ref() or attr.type.name.startswith("GRAPH"):
        raise GraphoptError(f"node {node.name!r}: attribute {attr.name!r} has no torch form")
    if attr.type.name == "TENSOR":
        value = to_tensor(attr.as_tensor(), attr.name)
        return value.reshape(-1).tolist()  # only ConstantOfShape and the like have one, of one element
    return list(attr.value) if isinstance(attr.value, list | tuple) else attr.value


def _identifier(name: str | None) -> str:
    text = re.sub(r"\W", "_", name or "value")
    return text if not text[:1].isdigit() else f"_{text}"


def _dotted(name: str) -> bool:
    """Whether a dot in the name can be a step into a submodule."""
    return all(re.fullmatch(r"[^\"'\\\s]+", part) for part in name.split("."))
