"""Capture of torch programs: modules, fx graph modules, exported programs, and functions that return one.

Lives here: running torch's exporter quietly and keeping the names of Python layers. Not here: `.pt2` files, which
are not trusted (graphopt/frontends/pt2.py).
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, MissingDependency, did_you_mean

if TYPE_CHECKING:
    from graphopt import ir

_SCOPES = "pkg.torch.onnx.name_scopes"
# Stack traces and node dumps name folders of this machine and are larger than the graph itself.
_DROPPED = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "pkg.onnxscript.optimizer.folded_from")
_LOGGERS = ("torch", "onnxscript", "onnx_ir")


_FORM = "it must return (module, example inputs[, dynamic shapes[, a dict of further inputs by name]])"


def from_torch(
    module: Any,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ir.Model:
    """Capture a torch program as IR, in evaluation mode.

    Args:
        module: a torch.nn.Module, a torch.fx.GraphModule or a torch.export.ExportedProgram. It is left as it was; the
            IR holds copies of its parameters.
        args: example inputs, one tensor or a tuple; not needed for an ExportedProgram.
        kwargs: further example inputs by name.
        dynamic_shapes: as for torch.export: per input a dict from dim to a name or torch.export.Dim; None is static.

    Returns:
        The model. A node is named after its layer, `encoder/layer.0/fc/MatMul`; initializers keep their names.

    Raises:
        MissingDependency: torch or onnxscript is not installed.
        GraphoptError: not a torch program, or torch cannot export it.
    """
    from graphopt.frontends import onnx

    model = _export(module, args, kwargs, dynamic_shapes)
    _own_weights(model, module)
    _name_after_layers(model)
    return onnx.prepare(model, f"the torch program {_title(module)}")


def load_program(path: str | Path) -> ir.Model:
    """Capture a `.pt2` file written by torch.export.save.

    Raises:
        MissingDependency: torch or onnxscript is not installed.
        GraphoptError: unreadable, or it holds something that could run code (pickles, libraries, unknown callables).
    """
    _torch()
    from graphopt.frontends.pt2 import load_exported

    with _quiet():
        program = load_exported(Path(path))
    return from_torch(program)


def from_function(text: str) -> ir.Model:
    """Capture what `package.module:function` returns: (module, example inputs[, dynamic shapes[, by name]]).

    Example inputs are a tuple, one tensor, or a dict of keyword arguments; the last is a dict of those beside a tuple.
    It is code: it is imported and called.

    Raises:
        MissingDependency: torch or onnxscript is not installed.
        GraphoptError: there is no such module or function, it raises, or it returns something else.
    """
    made = _call(text)
    _torch()
    import torch

    if isinstance(made, torch.export.ExportedProgram):
        return from_torch(made)
    if not isinstance(made, tuple) or len(made) not in (2, 3, 4) or not isinstance(made[0], torch.nn.Module):
        raise GraphoptError(f"{text} returned {_kind(made)}; {_FORM}")
    module, inputs, dynamic, named = (*made, None, None)[:4]
    if isinstance(inputs, Mapping) and named is None:
        return from_torch(module, (), inputs, dynamic)
    if named is not None and (isinstance(inputs, Mapping) or not isinstance(named, Mapping)):
        raise GraphoptError(f"{text} returned {_kind(inputs)} and {_kind(named)} as example inputs; {_FORM}")
    return from_torch(module, inputs, named, dynamic)


def _call(text: str) -> Any:
    where, _, name = text.partition(":")
    if not where or not name.isidentifier():
        raise GraphoptError(f"{text!r} is not package.module:function")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise GraphoptError(f"{text}: there is no module {error.name!r}; is its folder on PYTHONPATH?") from None
        raise GraphoptError(f"{text}: importing {where} needs a module {error.name!r} that is not installed") from error
    except Exception as error:  # the user's module may fail in any way
        raise GraphoptError(f"{text}: importing {where} raised {type(error).__name__}: {_first_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise GraphoptError(f"{text}: module {where} has no function {name!r}{did_you_mean(name, known)}")
    try:
        return function()
    except Exception as error:  # as above
        raise GraphoptError(f"{text}() raised {type(error).__name__}: {_first_line(error)}") from error


def _torch() -> None:
    for package in ("torch", "onnxscript"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingDependency("capturing torch models", "torch") from error


def _export(module: Any, args: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any) -> ir.Model:
    _torch()
    import torch

    from graphopt.ir import WORKING_OPSET

    exported = isinstance(module, torch.export.ExportedProgram)
    if not exported and not isinstance(module, torch.nn.Module):
        raise GraphoptError(f"from_torch takes an nn.Module, GraphModule or ExportedProgram, not {_kind(module)}")
    if exported and dynamic_shapes is not None:
        raise GraphoptError("an ExportedProgram has its dynamic shapes already; give them to torch.export.export")
    given = () if exported else args if isinstance(args, tuple) else tuple(args) if isinstance(args, list) else (args,)
    if not kwargs and given and isinstance(given[-1], dict):
        given = (*given, {})  # the exporter takes a dict at the end for keyword arguments
    try:
        with _quiet(), _evaluating(module), torch.no_grad():
            program = torch.onnx.export(
                module,
                given,
                kwargs=None if exported else dict(kwargs or {}),
                dynamo=True,
                verbose=False,
                opset_version=WORKING_OPSET,
                dynamic_shapes=dynamic_shapes,
            )
    except Exception as error:  # capture runs the user's code under a tracer: anything can come out
        raise GraphoptError(f"torch cannot export {_title(module)}: {_reason(error)}") from error
    assert program is not None
    return program.model


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    # Flags are set one by one: exported graph modules refuse .eval().
    parts = list(module.modules()) if hasattr(module, "modules") else []
    before = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, flag in zip(parts, before, strict=True):
            part.training = flag


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks and prints off the terminal; its errors come as exceptions."""
    # Children too: a logger with a level of its own does not ask its parent.
    known = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    logs = [log for log in known if log.name.partition(".")[0] in _LOGGERS]
    before = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL)
        sink = io.StringIO()  # failed traces are printed, not logged
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _own_weights(model: ir.Model, module: Any) -> None:
    """Copy the tensors that share memory with the module: training it further must not change the IR."""
    import onnx_ir
    import torch

    state = module.state_dict if isinstance(module, torch.export.ExportedProgram) else module.state_dict(keep_vars=True)
    constants = getattr(module, "constants", {})
    tensors = [t for t in (*state.values(), *constants.values()) if isinstance(t, torch.Tensor)]
    shared = {t.untyped_storage().data_ptr() for t in tensors}
    copies: dict[int, Any] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            raw = getattr(value.const_value, "raw", None)
            if isinstance(raw, torch.Tensor) and raw.untyped_storage().data_ptr() in shared:
                copy = copies.setdefault(id(raw), raw.detach().clone())
                value.const_value = onnx_ir.tensor_adapters.TorchTensor(copy, name=value.name)


def _name_after_layers(model: ir.Model) -> None:
    """Name nodes `layer/path/Op`, and constants that the exporter folded for one layer after that layer."""
    counts: Counter[str] = Counter()
    layers: dict[int, str] = {}
    for graph in model.graphs():
        for node in graph:
            layer = layers[id(node)] = _layer(node.metadata_props.get(_SCOPES, ""))
            base = f"{layer}/{node.op_type}" if layer else node.op_type
            node.name = f"{base}_{counts[base]}" if counts[base] else base
            counts[base] += 1
            for key in _DROPPED:
                node.metadata_props.pop(key, None)
        for value in list(graph.initializers.values()):
            users = {layers.get(id(use.node), "") for use in value.uses()}
            if value.name is not None and value.name.startswith("val_") and len(users) == 1 and (layer := users.pop()):
                value.name = f"{layer}/{value.name}"


def _layer(scopes: str) -> str:
    """`['', 'layers.0', 'layers.0.fc', 'linear']` -> `layers.0/fc`; the last entry is the fx node."""
    import ast

    try:
        names = ast.literal_eval(scopes) if scopes else []
    except (SyntaxError, ValueError):
        return ""
    parts, outer = [], ""
    for name in names[:-1]:
        if name and not name.startswith("_empty_nn_module_stack"):
            parts.append(name.removeprefix(f"{outer}.") if outer else name)
            outer = name
    return "/".join(parts)


def _title(module: Any) -> str:
    return type(module).__name__


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]


def _reason(error: BaseException) -> str:
    """The root cause in one line: torch wraps it in an advertisement of its report options."""
    seen: BaseException = error
    while seen.__cause__ is not None:
        seen = seen.__cause__
    return f"{type(seen).__name__}: {_first_line(seen)}"
