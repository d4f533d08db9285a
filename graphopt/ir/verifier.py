"""The structural verifier: the IR rules that every pass must leave intact. Cheap enough to run after each pass.

Checks SSA, scopes and order, names, types of the interface, ops, arity and types of codes in the opset.
Numbers: graphopt/numerics.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import VerificationError
from graphopt.ir import codetypes, optable, sites

if TYPE_CHECKING:
    from graphopt import ir


@dataclass(frozen=True)
class Interface:
    """Names, element types and shapes of a model's inputs and outputs, as text."""

    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        def rows(values: object) -> tuple[tuple[str, str, str], ...]:
            return tuple((str(v.name), str(v.type), str(v.shape)) for v in values)  # type: ignore[attr-defined]

        return cls(rows(model.graph.inputs), rows(model.graph.outputs))


def verify(model: ir.Model, interface: Interface | None = None) -> None:
    """Check every rule.

    Args:
        model: The model to check; it is not changed.
        interface: What the inputs and outputs must be; None skips that rule.

    Raises:
        VerificationError: the first broken rule, with the site.
    """
    _Verifier(model).run()
    if interface is not None:
        _same_interface(interface, Interface.of(model))


def _same_interface(was: Interface, now: Interface) -> None:
    for kind in ("inputs", "outputs"):
        before, after = getattr(was, kind), getattr(now, kind)
        if before == after:
            continue
        if [row[0] for row in before] != [row[0] for row in after]:
            raise VerificationError(f"the {kind} changed from {[r[0] for r in before]} to {[r[0] for r in after]}")
        row, new = next((b, a) for b, a in zip(before, after, strict=True) if b != a)
        raise VerificationError(f"{kind[:-1]} {row[0]!r} changed from {row[1]}{row[2]} to {new[1]}{new[2]}")


_BODIED = frozenset({"If", "Loop", "Scan"})


def _site(path: str, node: ir.Node) -> str:
    return f"{path}/{node.name}" if path else str(node.name)


def _named(path: str, node: ir.Node) -> str:
    return f"{node.op_type} {_site(path, node)!r}"


class _Verifier:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.functions = model.functions
        self.known_domains = optable.domains()

    def run(self) -> None:
        self._imports()
        self._graph(self.model.graph, set(), set(), "", self.model.opset_imports)
        for function in self.model.functions.values():
            path = f"{function.domain}::{function.name}"
            self._graph(function.graph, set(), set(), path, function.opset_imports)

    def _imports(self) -> None:
        version = self.model.opset_imports.get("", None)
        if version is not None and not 1 <= version <= optable.newest_opset():
            raise VerificationError(f"the model uses opset {version}; known are 1 to {optable.newest_opset()}")

    def _graph(
        self, graph: ir.Graph, outer: set[int], outer_names: set[str], path: str, imports: dict[str, int]
    ) -> None:
        visible = set(outer)
        names: set[str] = set()

        def define(value: ir.Value, what: str, node: ir.Node | None = None) -> None:
            name = value.name
            if not name or name in names or name in outer_names:
                what += f" of {_site(path, node)!r}" if node is not None else ""
                where = f"{what} in graph {path or 'main'!r}"
                raise VerificationError(
                    f"value name {name!r} is defined twice (second: {where})" if name else f"{where} has no name"
                )
            names.add(name)
            visible.add(id(value))

        for value in graph.inputs:
            define(value, "an input")
        for name, value in graph.initializers.items():
            if value.const_value is None:
                raise VerificationError(f"initializer {name!r} has no data")
            if not value.is_graph_input():
                define(value, "an initializer")
        for node in graph:
            if node.graph is not graph:
                raise VerificationError(f"node {_site(path, node)!r} stands in a graph that does not own it")
            self._node(node, visible, path, imports)
            if sites.has_subgraphs(node):
                for name, sub in sites.subgraphs(node):
                    self._graph(sub, visible, names | outer_names, f"{_site(path, node)}.{name}", imports)
            for output in node.outputs:
                if output.producer() is not node:
                    raise VerificationError(
                        f"output {output.name!r} of {_site(path, node)!r} says another node made it"
                    )
                if output.name != "" or output.uses() or output.is_graph_output():
                    define(output, "an output", node)
        for value in graph.outputs:
            if id(value) not in visible:
                raise VerificationError(f"output {value.name!r} of graph {path or 'main'!r} is not made in it")
            if path and id(value) in outer:
                raise VerificationError(
                    f"output {value.name!r} of subgraph {path!r} is an outer value: it needs an Identity"
                )

    def _node(self, node: ir.Node, visible: set[int], path: str, imports: dict[str, int]) -> None:
        op, domain = node.op_type, node.domain
        for value in node.inputs:
            if value is not None and id(value) not in visible:
                raise VerificationError(f"{_named(path, node)} uses {value.name!r}, which is not made before it")
        if domain not in imports:
            raise VerificationError(f"{_named(path, node)} is of domain {domain!r}, which the model does not import")
        if domain not in self.known_domains or (self.functions and (domain, op, node.overload) in self.functions):
            return
        schema = optable.schema(domain, op, imports[domain])
        if schema is None:
            if domain == "":
                raise VerificationError(f"there is no op {op!r} in opset {imports['']} (node {_site(path, node)!r})")
            return
        self._arity(node, schema, path)
        if domain == "" and op in _BODIED:
            self._bodies(node, schema, _site(path, node))
        if domain == "" and op in optable.QUANTIZED_OPS:
            wrong = codetypes.why_invalid(node, imports[""])
            if wrong is not None:
                raise VerificationError(f"{_named(path, node)}: {wrong}")

    def _arity(self, node: ir.Node, schema: optable.OpSchema, path: str) -> None:
        count = len(node.inputs)
        if count < schema.min_inputs or (0 <= schema.max_inputs < count):
            wanted = (
                str(schema.min_inputs)
                if schema.min_inputs == schema.max_inputs
                else f"{schema.min_inputs} to {schema.max_inputs}"
            )
            raise VerificationError(f"{_named(path, node)} has {count} inputs, opset {schema.since}+ wants {wanted}")
        if 0 <= schema.max_outputs < len(node.outputs):
            raise VerificationError(
                f"{_named(path, node)} has {len(node.outputs)} outputs, at most {schema.max_outputs} are possible"
            )
        for name in node.attributes.data:
            if name not in schema.attributes:
                raise VerificationError(
                    f"{_named(path, node)} has an attribute {name!r} that opset {schema.since}+ does not know"
                )

    def _bodies(self, node: ir.Node, schema: optable.OpSchema, site: str) -> None:
        """Inputs and outputs of an If, Loop or Scan must fit its bodies."""
        if node.op_type == "Scan" and schema.since < 9:
            return  # has a batch and sequence lengths besides
        own = 1 if node.op_type == "Loop" else 0  # a loop body first gives its condition
        takes = {"If": 0, "Loop": max(2, len(node.inputs))}.get(node.op_type, len(node.inputs))
        gives = len(node.outputs) + own
        for name, graph in sites.subgraphs(node):
            body = f"{site}.{name}"
            if len(graph.inputs) != takes:
                raise VerificationError(f"{body} has {len(graph.inputs)} inputs, {node.op_type} gives it {takes}")
            if len(graph.outputs) != gives:
                raise VerificationError(f"{body} has {len(graph.outputs)} outputs, {node.op_type} needs {gives}")
