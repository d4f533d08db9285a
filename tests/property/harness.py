"""Runs passes over one graph and says what is wrong: a broken rule, a wrong number, a pass that raises.

`Subject.of(proto, seed)` runs the untouched graph once; `Subject.check(pipeline)` runs passes on a copy and compares.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper
from property.rounding import coarseness, gap, place, unequal, with_noise

from graphopt import ir
from graphopt.errors import GraphoptError
from graphopt.ir.optable import QUANTIZED_OPS, RANDOM_OPS
from graphopt.ir.sites import name_nodes
from graphopt.ir.verifier import Interface, verify
from graphopt.manager.context import Context
from graphopt.manager.pipeline import Pipeline
from graphopt.manager.runner import run

Feeds = dict[str, np.ndarray]
BINDINGS = ({"N": 2, "M": 3}, {"N": 5, "M": 4})
OTHER = (3, 4)
"""Sizes of the symbols N and M, and of every other one, in the two sets of feeds."""

SIMPLE_BOUND = 2e-6
"""A difference below this part of the output's maximum needs no noise floor (16 eps of float32)."""
FLOORS = 8.0
"""A pass that reassociates may differ by so many noise floors (DESIGN: numerics)."""


class Refused(Exception):
    """The runtime does not run the graph as it was made: it is no test of any pass."""


@dataclass(frozen=True)
class Failure:
    """What a pass did wrong: kind is `raises`, `verifier`, `runtime` or `numbers`."""

    kind: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """Applied rewrites and near misses per pass name, and what is wrong, if anything."""

    applied: Mapping[str, int]
    near: Mapping[str, int]
    failure: Failure | None = None


def session(proto: bytes, level: str = "off") -> ort.InferenceSession:
    options = ort.SessionOptions()
    off, full = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.graph_optimization_level = off if level == "off" else full
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A packed weight goes through another kernel: folding would change the last bit of exact results.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def outputs(proto: bytes, feeds: list[Feeds]) -> list[list[Any]]:
    """Outputs for each set of feeds, on one thread with the runtime's optimizations off.

    Raises:
        Exception: whatever the runtime raises; it has no class of its own.
    """
    runner = session(proto)
    names = [item.name for item in runner.get_outputs()]
    wanted = {item.name for item in runner.get_inputs()}
    return [runner.run(names, {name: value for name, value in each.items() if name in wanted}) for each in feeds]


def evaluate(model: ir.Model, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What a Context takes as its evaluator."""
    runner = session(ir.to_proto(model).SerializeToString())
    names = [item.name for item in runner.get_outputs()]
    return dict(zip(names, runner.run(names, dict(feeds)), strict=True))


def declare_outputs(proto: ModelProto) -> None:
    """Let the outputs declare the dims that they have at the two bindings; a graph that does not run stays as it is."""
    try:
        feeds = [make_feeds(proto, which) for which in range(2)]
        both = outputs(proto.SerializeToString(), feeds)
    except Exception:  # the caller finds out why when it runs the graph
        return
    names = {dim.dim_param for item in proto.graph.input for dim in item.type.tensor_type.shape.dim}
    symbols = {(BINDINGS[0][name], BINDINGS[1][name]): name for name in BINDINGS[0] if name in names}
    for item, first, second in zip(proto.graph.output, *both, strict=True):
        if not isinstance(first, np.ndarray) or first.ndim != second.ndim or 0 in first.shape:
            continue
        pairs = zip(first.shape, second.shape, strict=True)
        dims = [a if a == b else symbols.get((a, b)) for a, b in pairs]
        item.CopyFrom(helper.make_tensor_value_info(item.name, item.type.tensor_type.elem_type, dims))


def make_feeds(proto: ModelProto, which: int, special: bool = False) -> Feeds:
    """Seeded inputs at one of the two bindings; those that override an initializer are left to it."""
    weights = {item.name for item in proto.graph.initializer}
    return {item.name: _feed(item, which, special) for item in proto.graph.input if item.name not in weights}


def _feed(info: onnx.ValueInfoProto, which: int, special: bool) -> np.ndarray:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        raise Refused("an input is no tensor")
    dims = list(kind.shape.dim) if kind.HasField("shape") else None
    shape = [size_of(dim, which) for dim in dims] if dims is not None else [2, OTHER[which]]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    random = np.random.default_rng([zlib.crc32(info.name.encode()), which])
    if dtype.kind == "O":
        return np.full(shape, "text", object)
    if info.name[:4] == "flag":
        return np.full(shape, which == 0)
    if dtype.kind in "biu":
        return _whole_rows(random.integers(0, 2, shape)).astype(dtype)
    values = random.standard_normal(shape)
    if special and values.size:
        odd = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42, -1.0, 3.0, 6.0]
        spots = random.permutation(values.size)[: max(1, values.size // 2)]
        values.reshape(-1)[spots] = np.resize(odd, spots.size)
    return values.astype(dtype)


def _whole_rows(values: np.ndarray) -> np.ndarray:
    """One row of each matrix is all 1 and another all 0, others in each: masks have such rows."""
    if values.ndim >= 2 and values.shape[-2] >= 2:
        for number, matrix in enumerate(values.reshape(-1, *values.shape[-2:])):
            matrix[number % len(matrix)], matrix[(number + 1) % len(matrix)] = 1, 0
    return values


def size_of(dim: Any, which: int) -> int:
    """The size of a dim of an input at one of the two bindings."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    if dim.dim_param.startswith("fixed"):  # a symbol that stands for one size
        return int(dim.dim_param[5:])
    return BINDINGS[which].get(dim.dim_param.removeprefix("same"), OTHER[which])


@dataclass
class Subject:
    """A graph that runs, with its feeds and what it gives."""

    proto: ModelProto
    model: ir.Model
    feeds: list[Feeds]
    reference: list[list[Any]]
    special: list[bool]
    ops: frozenset[str]
    half: bool
    """Whether there is a float16 or bfloat16 in it."""
    symbols: frozenset[str]
    """Names of the dims of its inputs."""
    _ready: Context | None = None
    _floor: list[list[Any]] | None = field(default=None)

    @classmethod
    def of(cls, proto: ModelProto, target: Any = None) -> Subject:
        """Run the graph as it is.

        Raises:
            Refused: it has a random op, or the checks or the runtime refuse it.
        """
        ops = frozenset(_ops(proto.graph)) | {op for item in proto.functions for op in _ops(item)}
        if ops & RANDOM_OPS or _trains(proto.graph):
            raise Refused("it is random")
        model = ir.from_proto(proto)
        name_nodes(model)
        feeds = [make_feeds(proto, 0), make_feeds(proto, 1), make_feeds(proto, 0, special=True)]
        data = ir.to_proto(model).SerializeToString()
        try:
            verify(model)
            reference = outputs(data, feeds[:2])
        except Exception as error:  # ONNX Runtime's errors have no common class but Exception
            raise Refused(str(error)) from error
        try:
            reference += outputs(data, feeds[2:])
            special = [False, False, True]
        except Exception:  # NaN where an index is computed: no legal input
            feeds, special = feeds[:2], [False, False]
        return cls(proto, model, feeds, reference, special, ops, _is_half(proto.graph), _symbols(proto))

    def context(self, target: Any) -> Context:
        """A context on a copy; one that no pass changed is used again, as analyses cost more than passes."""
        ctx, self._ready = self._ready, None
        if ctx is None or ctx.target is not target:
            ctx = Context(self.model.clone(), target=target, evaluate=evaluate)
        ctx.remarks = type(ctx.remarks)()
        return ctx

    def check(
        self, pipeline: Pipeline, target: Any = None, prepare: Callable[[Context], None] | None = None
    ) -> Outcome:
        """Run passes on a copy and compare with the untouched graph.

        Args:
            pipeline: what to run.
            target: the target whose ops may be emitted.
            prepare: changes the context before the run: plants a mutant.
        """
        ctx = self.context(target)
        if prepare is not None:
            ctx.shapes  # noqa: B018 (inferred before a mutant may disturb it)
            prepare(ctx)
        before = ctx.rewriter.changes
        interface = Interface.of(ctx.model)
        items = list(pipeline.passes())
        try:
            run(ctx.model, pipeline, ctx)
        except GraphoptError as error:
            return Outcome(*_counts(ctx, before), Failure(type(error).__name__, str(error)))
        counts = _counts(ctx, before)
        if ctx.rewriter.changes == before:
            if prepare is None:
                self._ready = ctx
            return Outcome(*counts)
        try:
            verify(ctx.model, None if any(item.changes_interface for item in items) else interface)
        except GraphoptError as error:
            return Outcome(*counts, Failure("verifier", str(error)))
        # ONNX Runtime computes float16 through float32 and drops the roundings between: nothing is exact there.
        exact = all(item.tolerance == "exact" for item in items) and not self.half
        bound = any(item.changes_interface for item in items)
        failure = self._compare(ctx.model, exact, bound)
        if failure is not None and failure.kind == "runtime" and "NOT_IMPLEMENTED" in failure.detail and target is None:
            failure = None  # without a target a pass may emit any standard op, also one that has no kernel here
        return Outcome(*counts, failure or self._quantized_kept(ctx.model))

    def _quantized_kept(self, model: ir.Model) -> Failure | None:
        """No quantize or dequantize node that an output needs may go; where branches or sizes are dropped, some may."""
        if self.ops & _DROPPING or self.model.functions or not self.ops & QUANTIZED_OPS:
            return None
        was, now = _needed_quantized(self.model), _needed_quantized(model)
        return Failure("quantized", f"{dict(was)} became {dict(now)}") if was - now else None

    def _compare(self, model: ir.Model, exact: bool, bound: bool) -> Failure | None:
        """Compare outputs; a model whose symbols are bound takes feeds of the first binding only."""
        chosen = [
            index for index, special in enumerate(self.special) if (exact or not special) and not (bound and index == 1)
        ]
        data = ir.to_proto(model).SerializeToString()
        try:
            got = outputs(data, [self.feeds[index] for index in chosen])
        except Exception as error:
            if (bound and not self._runs_bound()) or "re-use buffer" in str(error):
                return None  # it plans memory by the names of dims, and the graph as made gives one name two sizes
            return Failure("runtime", str(error).splitlines()[0][:300])
        for index, results in zip(chosen, got, strict=True):
            names = [item.name for item in self.proto.graph.output]
            for position, (want, have) in enumerate(zip(self.reference[index], results, strict=True)):
                problem = self.difference(index, position, want, have, exact)
                if problem and self._unsteady():
                    return None
                if problem:
                    what = "NaN, infinities and zeros among them" if self.special[index] else f"binding {index}"
                    return Failure("numbers", f"output {names[position]!r} ({what}): {problem}")
        return None

    def _runs_bound(self) -> bool:
        """Whether the runtime takes the untouched graph with its symbols bound: a branch never taken may not fit."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        for item in proto.graph.input:
            for dim in item.type.tensor_type.shape.dim:
                if dim.dim_param == "N":
                    dim.dim_value = BINDINGS[0]["N"]
        try:
            session(proto.SerializeToString())
        except Exception:
            return False
        return True

    def _unsteady(self) -> bool:
        """Whether the untouched graph differs from run to run: it drops out at random, or reads memory nobody wrote."""
        data = ir.to_proto(self.model).SerializeToString()
        for _ in range(2):
            session(data)
            for want, have in zip(self.reference, outputs(data, self.feeds), strict=True):
                for a, b in zip(want, have, strict=True):
                    if (
                        not isinstance(a, list)
                        and a.dtype.kind != "O"
                        and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
                    ):
                        return True
        return False

    def difference(self, index: int, position: int, want: Any, have: Any, exact: bool = False) -> str | None:
        """What is wrong with an output at one of the sets of feeds; None where it is right."""
        if isinstance(want, list):
            if len(want) != len(have):
                return f"{len(have)} items, not {len(want)}"
            found = (self.difference(index, position, a, b, exact) for a, b in zip(want, have, strict=True))
            return next((text for text in found if text), None)
        want, have = np.asarray(want), np.asarray(have)
        if (
            want.dtype == have.dtype
            and not want.size
            and not have.size
            and want.ndim == have.ndim
            and "Loop" in self.ops
        ):
            return None  # of a Loop that never ran, the runtime makes up the sizes that it did not infer
        if want.shape != have.shape or want.dtype != have.dtype:
            return f"is {have.dtype}{list(have.shape)}, was {want.dtype}{list(want.shape)}"
        if want.dtype.kind != "f":
            if exact or want.dtype.kind in "OU" or not np.array_equal(want, have):
                return None if np.array_equal(want, have) else self._discrete(index, position, want, have, exact)
            return None
        if exact:
            return unequal(want, have)
        difference, scale = gap(want, have)
        if difference <= SIMPLE_BOUND * scale * coarseness(want.dtype):
            return None
        floor = max(self._noise(index, position, want), 16 * np.finfo(want.dtype).eps * scale)
        return (
            None
            if difference <= FLOORS * floor
            else f"differs by {difference:.3g}, noise floor {floor:.3g}, largest value {scale:.3g}{place(want, have)}"
        )

    def _discrete(self, index: int, position: int, want: np.ndarray, have: np.ndarray, exact: bool) -> str | None:
        """Integers and truth values behind rounding floats may flip where noise flips them too."""
        text = f"{int((want != have).sum())} of {want.size} elements differ{place(want, have)}"
        if exact or want.dtype.kind in "OU":
            return text
        flips = any(not np.array_equal(want, np.asarray(noisy[index][position])) for noisy in self._noisy())
        return None if flips else text

    def _noise(self, index: int, position: int, want: np.ndarray) -> float:
        """The largest change that one rounding per node makes in this output."""
        gaps = [gap(want, np.asarray(noisy[index][position]))[0] for noisy in self._noisy()]
        return max(gaps)

    def _noisy(self) -> list[Any]:
        if self._floor is None:
            self._floor = []
            for seed in range(4):
                self._floor.append(outputs(with_noise(ir.to_proto(self.model), seed), self.feeds))
        return self._floor


def _ops(graph: Any) -> list[str]:
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _ops(attribute.g)
    return found


def _trains(graph: Any) -> bool:
    """Whether a Dropout may drop something; its third input switches it on."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return any(node.op_type == "Dropout" and len(node.input) > 2 for node in graph.node) or any(map(_trains, inner))


_DROPPING = frozenset({"If", "Loop", "Scan", "Where", "Shape", "Size", "Split", "Gather", "Slice"})


def _needed_quantized(model: ir.Model) -> Counter[str]:
    stack = [value.producer() for value in model.graph.outputs]
    seen: set[ir.Node] = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [value.producer() for value in node.inputs if value is not None]
    return Counter(node.op_type for node in seen if node.op_type in QUANTIZED_OPS)


def _symbols(proto: ModelProto) -> frozenset[str]:
    return frozenset(dim.dim_param for item in proto.graph.input for dim in item.type.tensor_type.shape.dim)


_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def _is_half(graph: Any) -> bool:
    if any(item.type.tensor_type.elem_type in _HALF for item in graph.input) or any(
        item.data_type in _HALF for item in graph.initializer
    ):
        return True
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    return any(
        (item.name == "to" and item.i in _HALF)
        or (item.HasField("g") and _is_half(item.g))
        or item.t.data_type in _HALF
        for item in attributes
    )


def _counts(ctx: Context, before: int) -> tuple[Counter[str], Counter[str]]:
    applied = Counter(rewrite.pass_name for rewrite in ctx.rewriter.rewrites[before:])
    near = Counter(remark.pass_name for remark in ctx.remarks if remark.status == "missed")
    return applied, near
