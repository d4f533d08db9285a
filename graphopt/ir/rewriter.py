"""The one gateway: while a pass runs, only a Rewriter mutates the model.

It counts rewrites, keeps names and the interface, fills the worklist, stamps provenance on new nodes and erases what
became dead. "Changed" is read from it, never reported by a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt.errors import PassError
from graphopt.ir import sites
from graphopt.ir.builder import Builder, NoMatch
from graphopt.ir.rewrite_log import Rewrite, ShapeHook, StopRewriting
from graphopt.ir.rewriter_index import OpIndex

if TYPE_CHECKING:
    from graphopt import ir

PROVENANCE = "graphopt.from"
"""Key of the metadata that a new node carries: `pass-name: replaced node names`."""


class Rewriter:
    """Mutates `model`. One lives as long as a pipeline runs, so its index and names are built once."""

    def __init__(self, model: ir.Model, shapes: ShapeHook | None = None, limit: int | None = None) -> None:
        self.model = model
        self.shapes = shapes
        self.limit = limit
        self.pass_name = ""
        self.rewrites: list[Rewrite] = []
        self.on_touch: Callable[[ir.Node], None] | None = None
        self.rebuild()

    # -- what is there ------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Index the model anew (after `replace_graph` or when a model was swapped)."""
        self._scopes = {id(scope.graph): scope for scope in sites.scopes(self.model)}
        self.index = OpIndex(scope.graph for scope in self._scopes.values())
        self._names: set[str] = set()
        self._node_names: set[str] = set()
        self._counters: dict[str, int] = {}
        for scope in self._scopes.values():
            self._learn_names(scope.graph)

    def _learn_names(self, graph: ir.Graph) -> None:
        self._names.update(v.name for v in graph.inputs if v.name)
        self._names.update(graph.initializers)
        for node in graph:
            self._node_names.add(node.name or "")
            self._names.update(v.name for v in node.outputs if v.name)

    @property
    def changes(self) -> int:
        """Rewrites applied so far."""
        return len(self.rewrites)

    def scopes(self) -> Iterator[sites.Scope]:
        """As `sites.scopes`, without a walk where the model has no subgraphs."""
        return sites.scopes(self.model, nested=self.index.has_subgraphs)

    def scope(self, node: ir.Node) -> sites.Scope:
        return self._scopes[id(node.graph)]

    def site(self, node: ir.Node) -> str:
        """The node's site text: its scope path and its name."""
        scope = self._scopes.get(id(node.graph))
        path = scope.path if scope else ""
        return f"{path}/{node.name}" if path else str(node.name)

    def opset(self, domain: str, anchor: ir.Node | None = None) -> int:
        """The version of `domain` in force where `anchor` stands (1 for a domain that is not imported yet)."""
        scope = self._scopes.get(id(anchor.graph)) if anchor is not None else None
        imports = scope.function.opset_imports if scope and scope.function else self.model.opset_imports
        return imports.get(domain, 1)

    def fresh_name(self, base: str) -> str:
        """A value name that nothing in the model uses."""
        return self._fresh(base, self._names)

    def _fresh(self, base: str, taken: set[str]) -> str:
        name, number = base, self._counters.get(base, 0)
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        self._counters[base] = number
        taken.add(name)
        return name

    def infer(self, node: ir.Node) -> None:
        if self.shapes is not None:
            self.shapes.infer_node(node)

    def in_function(self, node: ir.Node) -> bool:
        scope = self._scopes.get(id(node.graph))
        return scope is not None and scope.function is not None

    # -- rewrites -----------------------------------------------------------------------------------------------

    def count(self, node: ir.Node) -> None:
        """Register one rewrite at `node`, before it happens.

        Raises:
            StopRewriting: the bisect limit is reached.
        """
        self._count(self.site(node), node.op_type)

    def _count(self, site: str, op: str) -> None:
        if self.limit is not None and len(self.rewrites) >= self.limit:
            raise StopRewriting
        self.rewrites.append(Rewrite(len(self.rewrites) + 1, self.pass_name, site, op))

    def count_model(self) -> None:
        """Register one rewrite of the model as a whole (opset, interface), before it happens.

        Raises:
            StopRewriting: the bisect limit is reached.
        """
        self._count("<whole model>", "")

    def replace(
        self,
        root: ir.Node,
        values: ir.Value | Sequence[ir.Value | None],
        builder: Builder | None = None,
        replaced: Iterable[ir.Node] = (),
    ) -> None:
        """Replace every output of `root`, insert what `builder` made before it and erase what became dead.

        Args:
            root: The node to replace.
            values: One value per output; None for an output that nothing uses.
            builder: The maker of the new nodes; None when `values` exist already.
            replaced: Other nodes that the rewrite stands for (for provenance and names).

        Raises:
            NoMatch: the rewrite would change a dtype, a known shape or the interface.
            StopRewriting: the bisect limit is reached; nothing was changed.
        """
        new = [values] if not isinstance(values, Sequence) else list(values)
        self._check(root, new)
        self.count(root)
        graph = root.graph
        assert graph is not None
        old_nodes = [root, *(node for node in replaced if node is not root)]
        nodes = builder.nodes if builder is not None else []
        made = {id(node) for node in nodes}
        for node in nodes:
            self._adopt(node, root, old_nodes)
        if nodes:
            graph.insert_before(root, nodes)
            self._import_domains(root, nodes)
        for old, value in zip(root.outputs, new, strict=True):
            if value is not None:
                self._forward(old, value, fresh=id(value.producer()) in made)
        # Erase upwards first, so that a name freed by an old node can go to the new one that stands for it.
        inputs = [value for node in old_nodes for value in node.inputs if value is not None]
        for node in old_nodes:
            self._erase_dead(node)
        self._pass_names_on(nodes, old_nodes)
        for value in inputs:
            producer = value.producer()
            if producer is not None and producer.graph is not None:
                self._touch(producer)
        for node in nodes:
            self._touch(node)
        if builder is not None:
            self._drop_unused(builder.constants)
            builder.nodes, builder.constants = [], []

    def builder(self, anchor: ir.Node) -> Builder:
        return Builder(self, anchor)

    def erase(self, node: ir.Node) -> None:
        """Erase a node without users, and its producers that become dead; counts as one rewrite."""
        self.count(node)
        self._erase_dead(node)

    def merge(self, old: ir.Value, new: ir.Value, at: ir.Node) -> None:
        """Let every use of `old` use `new`, which holds the same content (cse); counts as one rewrite at `at`."""
        self.count(at)
        self._forward(old, new, fresh=False)

    def drop_metadata(self, node: ir.Node, keys: Iterable[str]) -> None:
        """Remove metadata entries of a node; counts as one rewrite."""
        self.count(node)
        for key in keys:
            del node.metadata_props[key]

    def drop_initializer(self, graph: ir.Graph, name: str) -> None:
        """Remove an initializer that nothing uses; counts as one rewrite.

        Raises:
            StopRewriting: the bisect limit is reached; nothing was changed.
        """
        value = graph.initializers[name]
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            raise PassError(f"initializer {name!r} is still in use")
        self._count(name, "initializer")
        del graph.initializers[name]

    def replace_graph(self, new: ir.Model) -> None:
        """Swap the main graph for `new`'s, matched by input and output names; counts as one change.

        Raises:
            PassError: the names or the order of inputs or outputs differ.
        """
        for kind in ("inputs", "outputs"):
            was = [v.name for v in getattr(self.model.graph, kind)]
            now = [v.name for v in getattr(new.graph, kind)]
            if was != now:
                raise PassError(f"pass {self.pass_name!r} changed the {kind} from {was} to {now}")
        self._count("<whole graph>", "")
        for domain, version in new.opset_imports.items():
            self.model.opset_imports[domain] = version
        self.model.graph = new.graph
        self.rebuild()

    def adopt_graph(self, inner: ir.Graph, before: ir.Node) -> None:
        """Move all nodes and initializers of a subgraph in front of `before` (inlining); the caller counts."""
        graph = before.graph
        assert graph is not None
        nodes = list(inner)
        inner.outputs.clear()
        inner.inputs.clear()
        constants = list(inner.initializers.values())
        for value in constants:
            assert value.name is not None
            del inner.initializers[value.name]
            graph.register_initializer(value)
        for node in nodes:
            self.index.remove(node)
        inner.remove(nodes)
        graph.insert_before(before, nodes)
        for node in nodes:
            self._register(node)

    def splice(
        self,
        node: ir.Node,
        inner: ir.Graph,
        values: Sequence[ir.Value],
        made: Sequence[ir.Node] = (),
        given: Mapping[ir.Value, ir.Value] | None = None,
    ) -> None:
        """Put the nodes of `inner`, then `made`, in the place of `node`; counts as one rewrite.

        Args:
            node: An If, Loop or function call.
            inner: The graph to open; nothing of it but its outputs may be used elsewhere.
            values: What replaces each output of `node`: values of `inner`, of `made`, or visible ones.
            made: Detached nodes that work on the outputs of `inner`.
            given: What stands for each input of `inner`.

        Raises:
            StopRewriting: the bisect limit is reached; nothing was changed.
        """
        self.count(node)
        graph = node.graph
        assert graph is not None
        for inside, outside in (given or {}).items():
            for use in tuple(inside.uses()):
                use.node.replace_input_with(use.idx, outside)
        self.adopt_graph(inner, node)
        self.insert_before(node, made)
        for old, new in zip(node.outputs, values, strict=True):
            self._forward(old, new, fresh=False)
        self._erase_dead(node)

    def insert_before(self, anchor: ir.Node, nodes: Sequence[ir.Node]) -> None:
        """Insert detached nodes in front of `anchor` as part of a rewrite that the caller counted."""
        graph = anchor.graph
        assert graph is not None
        for node in nodes:
            self._adopt(node, anchor, [anchor])
        graph.insert_before(anchor, list(nodes))

    def insert_identity(self, value: ir.Value, graph: ir.Graph) -> ir.Value:
        """An Identity of `value` at the end of `graph`: what an output needs when its source is an outer value."""
        from graphopt import ir

        node = ir.Node("", "Identity", [value], num_outputs=1)
        node.name = self._fresh(f"{value.name}_Identity", self._node_names)
        out = node.outputs[0]
        out.name = self.fresh_name(f"{value.name}_copy")
        out.type, out.shape = value.type, value.shape
        graph.append(node)
        self._register(node)
        return out

    # -- rules --------------------------------------------------------------------------------------------------

    def _check(self, root: ir.Node, new: Sequence[ir.Value | None]) -> None:
        if len(new) != len(root.outputs):
            raise PassError(
                f"pass {self.pass_name!r} returned {len(new)} values for {len(root.outputs)} outputs of {root.name!r}"
            )
        for old, value in zip(root.outputs, new, strict=True):
            if value is None:
                if old.uses() or old.is_graph_output():
                    raise NoMatch(f"output {old.name!r} is still used")
                continue
            if old.dtype is not None and value.dtype is not None and old.dtype != value.dtype:
                raise NoMatch(f"would change the type of {old.name!r} from {old.dtype} to {value.dtype}")
            was, now = self._dims(old), self._dims(value)
            if was is not None and now is not None and _contradict(was, now):
                raise NoMatch(f"would change the shape of {old.name!r} from {_listed(was)} to {_listed(now)}")

    def _dims(self, value: ir.Value) -> Sequence[int | ir.SymbolicDim] | None:
        """The dims as inferred: of an interface that declares no rank, analyses know more."""
        inferred = self.shapes.dims(value) if self.shapes is not None else None
        if inferred is not None or value.shape is None:
            return inferred
        return tuple(value.shape)

    def _forward(self, old: ir.Value, new: ir.Value, *, fresh: bool) -> None:
        """Move uses, output slots, name, type and shape from `old` to `new`."""
        if new.type is None:
            new.type = old.type
        interface = new.is_graph_output() or new.is_graph_input()
        if not interface and old.shape is not None and (new.shape is None or _more_known(old.shape, new.shape)):
            new.shape = old.shape
        users = [use.node for use in old.uses()]
        if old.is_graph_output():
            # The other users take `new` itself: an Identity for the output stands at the end, behind them.
            self._take_output(old, new, fresh=fresh)
        elif fresh and old.name and not new.is_graph_output():
            name, old.name = old.name, self.fresh_name(f"{old.name}_old")
            self._names.discard(new.name or "")
            new.name = name
        old.replace_all_uses_with(new)
        for user in users:
            self._touch(user)

    def _take_output(self, old: ir.Value, new: ir.Value, *, fresh: bool) -> None:
        owner = old.graph
        assert owner is not None
        producer = new.producer()
        movable = producer is not None and producer.graph is owner and not new.is_graph_output()
        if not movable:
            new = self.insert_identity(new, owner)
            fresh = True
        name, declared_type, declared_shape = old.name, old.type, old.shape
        for index, output in enumerate(owner.outputs):
            if output is old:
                owner.outputs[index] = new
        old.name = self.fresh_name(f"{name}_old")
        if fresh:  # another graph may have a value of an older one's name
            self._names.discard(new.name or "")
        new.name = name
        # The interface is ABI: the declared type and dims stay, an unknown rank too.
        new.type = declared_type or new.type
        new.shape = declared_shape

    def _adopt(self, node: ir.Node, anchor: ir.Node, old_nodes: Sequence[ir.Node]) -> None:
        node.name = self._fresh(f"{anchor.name}_{node.op_type}" if anchor.name else node.op_type, self._node_names)
        names = ",".join(str(old.metadata_props.get(PROVENANCE, old.name)) for old in old_nodes[:8])
        for key, value in anchor.metadata_props.items():
            node.metadata_props.setdefault(key, value)
        if names:
            node.metadata_props[PROVENANCE] = f"{self.pass_name}: {names}"[:400]
        self._register(node)

    def _register(self, node: ir.Node) -> None:
        from graphopt.ir.sites import Scope

        self.index.add(node)
        for name, graph in sites.subgraphs(node):
            outer = self._scopes.get(id(node.graph))
            path = f"{outer.path if outer else ''}/{node.name}.{name}".lstrip("/")
            self._scopes[id(graph)] = Scope(path, graph, outer.function if outer else None)
            self._learn_names(graph)
            for inner in graph:
                self._register(inner)

    def _pass_names_on(self, nodes: Sequence[ir.Node], old_nodes: Sequence[ir.Node]) -> None:
        """A new node of the same op as an erased one takes its name: layer names survive fusions."""
        for node in reversed(nodes):
            for old in old_nodes:
                if old.op_type == node.op_type and old.graph is None and old.name:
                    node.name, old.name = old.name, None
                    return

    def _import_domains(self, anchor: ir.Node, nodes: Sequence[ir.Node]) -> None:
        scope = self._scopes[id(anchor.graph)]
        imports = scope.function.opset_imports if scope.function else self.model.opset_imports
        for node in nodes:
            if node.domain not in imports:
                imports[node.domain] = 1
                self.model.opset_imports.setdefault(node.domain, 1)

    def _touch(self, node: ir.Node) -> None:
        if self.on_touch is not None and node.graph is not None:
            self.on_touch(node)

    def _erase_dead(self, node: ir.Node) -> None:
        stack = [node]
        while stack:
            dead = stack.pop()
            if dead.graph is None or any(out.uses() or out.is_graph_output() for out in dead.outputs):
                continue
            inputs = [value for value in dead.inputs if value is not None]
            captured = self._forget(dead)
            dead.graph.remove(dead, safe=True)
            for value in [*inputs, *captured]:
                producer = value.producer()
                if producer is not None:
                    stack.append(producer)
                else:
                    self._drop_unused([value])

    def _forget(self, node: ir.Node) -> list[ir.Value]:
        """Take a node and the subgraphs it owns out of the index; return outer values that the subgraphs used."""
        self.index.remove(node)
        captured: list[ir.Value] = []
        for _, graph in sites.subgraphs(node):
            inside = list(graph)
            graph.outputs.clear()
            for inner in reversed(inside):
                captured.extend(value for value in inner.inputs if value is not None)
                captured.extend(self._forget(inner))
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
            self._scopes.pop(id(graph), None)
        return captured

    def _drop_unused(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            graph = value.graph
            if graph is None or value.name is None or not value.is_initializer():
                continue
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                graph.initializers.pop(value.name, None)


def _listed(dims: Sequence[int | ir.SymbolicDim]) -> str:
    return f"[{','.join(map(str, dims))}]"


def _contradict(old: Sequence[int | ir.SymbolicDim], new: Sequence[int | ir.SymbolicDim]) -> bool:
    if len(old) != len(new):
        return True
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(old, new, strict=True))


def _more_known(old: ir.Shape, new: ir.Shape) -> bool:
    return sum(isinstance(dim, int) for dim in old) > sum(isinstance(dim, int) for dim in new)
