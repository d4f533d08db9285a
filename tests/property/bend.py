"""Steps that surround a graph with more users and outputs, bend a part of it, or say its constants and dims otherwise.

Each takes a random source and a draft and changes it in place. What is no longer legal, the runtime refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from onnx import AttributeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from property.draft import Draft, names_of, rename

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)

_UNARY = ("Neg", "Abs", "Identity", "Relu", "Sigmoid")


def computed_input(random: Generator, draft: Draft) -> None:
    """A float input reaches its users through an op."""
    names = [name for name in draft.inputs if draft.types.get(name) in FLOATS and name not in draft.weights]
    if not names:
        return
    name = str(random.choice(names))
    inner = draft.fresh("in")
    for node in draft.nodes:
        rename(node, {name: inner})
    draft.outputs = [inner if item == name else item for item in draft.outputs]
    kind = draft.types[inner] = draft.types[name]
    draft.nodes.insert(0, helper.make_node(str(random.choice(_UNARY)), [name], [inner]))
    draft.types[inner] = kind


def extra_output(random: Generator, draft: Draft) -> None:
    """An inner value is a graph output too."""
    names = [name for name in _inner(draft) if name not in draft.outputs]
    if names:
        draft.outputs.insert(int(random.integers(len(draft.outputs) + 1)), str(random.choice(names)))


def extra_user(random: Generator, draft: Draft) -> None:
    """An inner value has one more user."""
    names = _inner(draft)
    if names:
        name = str(random.choice(names))
        op = str(random.choice(_UNARY)) if draft.types[name] in FLOATS else "Identity"
        draft.outputs.append(draft.add(op, [name]))


def output_through_op(random: Generator, draft: Draft) -> None:
    """An output is computed from what was the output."""
    names = [name for name in draft.outputs if draft.types.get(name) in FLOATS]
    if names:
        name = str(random.choice(names))
        draft.outputs[draft.outputs.index(name)] = draft.add(str(random.choice(_UNARY)), [name])


def chain(random: Generator, draft: Draft) -> None:
    """An output of one part feeds an input of a later one where the types allow; the runtime refuses wrong shapes."""
    made_at = {name: index for index, node in enumerate(draft.nodes) for name in node.output}
    for name in list(draft.inputs):
        users = [index for index, node in enumerate(draft.nodes) if name in names_of(node)]
        options = [
            out
            for out, at in made_at.items()
            if users and at < min(users) and draft.types.get(out) == draft.types.get(name)
        ]
        if options and name not in draft.weights and name not in draft.outputs and random.random() < 0.5:
            source = str(random.choice(options))
            for node in draft.nodes:
                rename(node, {name: source})
            del draft.inputs[name]
            return


def _inner(draft: Draft) -> list[str]:
    return [name for node in draft.nodes for name in node.output if name and name in draft.types]


# -- bending ----------------------------------------------------------------------------------------------------------


def bend_constant(random: Generator, draft: Draft) -> None:
    """Change one constant: another number, a special value, another order, or one element of many."""
    if not draft.weights:
        return
    name = str(random.choice(list(draft.weights)))
    array = draft.array(name).copy()
    if not array.size or array.dtype.kind not in "fiu":
        return
    flat = array.reshape(-1)
    spot = int(random.integers(flat.size))
    if array.dtype.kind == "f":
        choice = int(random.integers(6))
        if choice == 0:
            flat[spot] = random.choice([0.0, -0.0, 1.0, -1.0, 2.0])
        elif choice == 1 and random.random() < 0.3:
            flat[spot] = random.choice([np.inf, -np.inf, np.nan])
        elif choice == 2:
            flat *= array.dtype.type(random.choice([0.0, -1.0, 0.5, 3.0]))
        elif choice == 3:
            random.shuffle(flat)
        else:
            flat[spot] += array.dtype.type(random.choice([0.25, 1e-3, -0.5]))
    else:
        flat[spot] += (
            array.dtype.type(random.choice([1, 1, 2]))
            if random.random() < 0.5 or array.dtype.kind == "u"
            else array.dtype.type(-1)
        )
    draft.weights[name] = numpy_helper.from_array(array, name)


def bend_rank(random: Generator, draft: Draft) -> None:
    """Give a constant one dim of 1 more in front, or take one away."""
    names = [name for name in draft.weights if draft.types.get(name) in FLOATS]
    if names:
        name = str(random.choice(names))
        array = draft.array(name)
        if array.ndim and array.shape[0] == 1 and random.random() < 0.6:
            array = array[0]
        else:
            array = array[None]
        draft.weights[name] = numpy_helper.from_array(np.asarray(array), name)


_KEPT = frozenset({"to", "saturate", "num_outputs"})
"""Attributes that stay: types decide what the graph is, and the runtime aborts where a Split miscounts its outputs."""
_FLAGS = frozenset({"keepdims", "select_last_index", "ceil_mode", "count_include_pad", "noop_with_empty_axes"})


def bend_attribute(random: Generator, draft: Draft) -> None:
    """Change one attribute of one node."""
    places = [
        (node, a)
        for node in draft.nodes
        for a in node.attribute
        if a.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)
    ]
    places = [(node, a) for node, a in places if a.name not in _KEPT]
    if not places:
        return
    _, attribute = places[int(random.integers(len(places)))]
    if attribute.type == AttributeProto.INT and (attribute.name in _FLAGS or attribute.name.startswith("trans")):
        attribute.i = 1 - attribute.i
    elif attribute.type == AttributeProto.INT:
        attribute.i = int(attribute.i + random.choice([-1, 1, 1, 2]))
    elif attribute.type == AttributeProto.FLOAT:
        factors = [0.5, 2.0] if attribute.name == "epsilon" else [0.0, 0.5, 2.0, -1.0]
        attribute.f = float(attribute.f * random.choice(factors))
    elif len(attribute.ints):
        if attribute.name == "perm" or random.random() < 0.4:
            order = random.permutation(len(attribute.ints))
            attribute.ints[:] = [attribute.ints[int(index)] for index in order]
        else:
            spot = int(random.integers(len(attribute.ints)))
            attribute.ints[spot] += int(random.choice([-1, 1]))


_COMMUTATIVE = ("Add", "Mul", "And", "Or", "Equal", "Max", "Min", "Sum")


def swap_operands(random: Generator, draft: Draft) -> None:
    """Swap the operands of some node: sometimes of a commutative one, sometimes not."""
    nodes = [
        node
        for node in draft.nodes
        if len(node.input) == 2 and (node.op_type in _COMMUTATIVE or random.random() < 0.15)
    ]
    if nodes:
        node = nodes[int(random.integers(len(nodes)))]
        node.input[:] = [node.input[1], node.input[0]]


def replace_op(random: Generator, draft: Draft) -> None:
    """Another op of the same family stands where one stood."""
    families = (
        ("Add", "Sub", "Mul", "Div"),
        ("Max", "Min"),
        ("ReduceMean", "ReduceSum", "ReduceMax"),
        ("Relu", "Abs", "Neg", "Identity", "Sigmoid", "Tanh", "Exp"),
    )
    places = [(node, family) for node in draft.nodes for family in families if node.op_type in family]
    if places:
        node, family = places[int(random.integers(len(places)))]
        node.op_type = str(random.choice(family))


def same_operand(random: Generator, draft: Draft) -> None:
    """Some node reads another value than before: one of the same type that stands above it."""
    index = int(random.integers(len(draft.nodes)))
    node = draft.nodes[index]
    above = [*draft.inputs, *draft.weights, *(name for other in draft.nodes[:index] for name in other.output)]
    spots = [spot for spot, name in enumerate(node.input) if name]
    if spots:
        spot = spots[int(random.integers(len(spots)))]
        options = [name for name in above if draft.types.get(name) == draft.types.get(node.input[spot])]
        if options:
            node.input[spot] = str(random.choice(options))


def drop_input(random: Generator, draft: Draft) -> None:
    """An optional input at the end is left out; the runtime refuses it where the input was not optional."""
    nodes = [node for node in draft.nodes if len(node.input) > 2]
    if nodes:
        node = nodes[int(random.integers(len(nodes)))]
        del node.input[-1]


# -- how constants and dims are said ----------------------------------------------------------------------------------


def constant_node(random: Generator, draft: Draft) -> None:
    """An initializer is a Constant node instead."""
    names = [name for name in draft.weights if name not in draft.inputs and name not in draft.outputs]
    if names:
        name = str(random.choice(names))
        tensor = draft.weights.pop(name)
        draft.nodes.insert(0, helper.make_node("Constant", [], [name], value=tensor))


def overridable(random: Generator, draft: Draft) -> None:
    """An initializer is a graph input too, so it is no constant."""
    names = [name for name in draft.weights if name not in draft.inputs]
    if names:
        name = str(random.choice(names))
        tensor = draft.weights[name]
        draft.inputs[name] = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))


def fed_constant(random: Generator, draft: Draft) -> None:
    """A float initializer is a graph input instead."""
    names = [name for name in draft.weights if draft.types.get(name) in FLOATS and name not in draft.inputs]
    if names:
        name = str(random.choice(names))
        tensor = draft.weights.pop(name)
        draft.inputs[name] = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))


def other_dim(random: Generator, draft: Draft) -> None:
    """A dim of an input is another: a number, a symbol, nameless, or its rank is unknown."""
    if any(node.domain == "com.microsoft" for node in draft.nodes):
        return  # those kernels do not check that sizes fit
    names = [
        name for name, info in draft.inputs.items() if name not in draft.weights and info.type.HasField("tensor_type")
    ]
    if not names:
        return
    shape = draft.inputs[str(random.choice(names))].type.tensor_type
    if random.random() < 0.1:
        shape.ClearField("shape")
        return
    if not shape.shape.dim:
        return
    dim = shape.shape.dim[int(random.integers(len(shape.shape.dim)))]
    choice = int(random.integers(4))
    if dim.HasField("dim_value") and choice < 3:
        size = dim.dim_value
        if choice == 0:
            dim.dim_value = 1 if random.random() < 0.5 else size + 1
        elif choice == 1:
            dim.dim_param = f"fixed{size}"  # harness binds this symbol to that size
        else:
            dim.dim_param = "N"
    elif dim.HasField("dim_param"):
        if choice == 0:
            # The size must stay: a nameless dim has that of every symbol but N and M.
            if dim.dim_param in ("N", "M"):
                dim.dim_param = f"same{dim.dim_param}"
            else:
                dim.ClearField("dim_param")
        else:
            dim.dim_value = int(random.integers(1, 5))


def hide_dims(random: Generator, draft: Draft) -> None:
    """Every number among the dims of the inputs is a symbol that stands for it."""
    for info in _shaped(draft):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.dim_param = f"fixed{dim.dim_value}"


def hidden_one(random: Generator, draft: Draft) -> None:
    """A dim of an input is 1, but a symbol says so: what stands beside it may broadcast it."""
    dims = [dim for info in _shaped(draft) for dim in info.type.tensor_type.shape.dim]
    if dims:
        dims[int(random.integers(len(dims)))].dim_param = "fixed1"


def _shaped(draft: Draft) -> list[ValueInfoProto]:
    """The inputs whose dims may become others; kernels of com.microsoft do not check that sizes fit."""
    if any(node.domain == "com.microsoft" for node in draft.nodes):
        return []
    infos = [info for name, info in draft.inputs.items() if name not in draft.weights]
    return [info for info in infos if info.type.HasField("tensor_type")]


def blinded(draft: Draft) -> Iterator[Draft]:
    """The draft, and copies in which the rewriter's own checks know less.

    All dims hidden behind symbols; each dim in turn a hidden 1; no rank known, as it is and with dims of 1 in front of
    each constant in turn; the same with ranks that only a run shows.
    """
    yield copy.deepcopy(draft)
    forget_body_shapes(draft)
    hidden = copy.deepcopy(draft)
    hide_dims(np.random.default_rng(), hidden)
    yield hidden
    sizes = [len(info.type.tensor_type.shape.dim) for info in _shaped(draft)]
    for number, axis in ((number, axis) for number, size in enumerate(sizes) for axis in range(size)):
        other = copy.deepcopy(draft)
        _shaped(other)[number].type.tensor_type.shape.dim[axis].dim_param = "fixed1"
        yield other
    if not sizes:
        return
    squeezed = copy.deepcopy(draft)
    for info in _shaped(draft):
        info.type.tensor_type.ClearField("shape")
    for name, info in [(info.name, info) for info in _shaped(squeezed)]:
        for node in squeezed.nodes:
            rename(node, {name: f"{name}~0"})
        info.type.tensor_type.shape.dim.add().dim_param = "fixed1"
        squeezed.nodes.insert(0, helper.make_node("Squeeze", [name], [f"{name}~0"]))
    for form in (draft, squeezed):
        yield copy.deepcopy(form)
        for name in [name for name in form.weights if form.types.get(name) in FLOATS]:
            other = copy.deepcopy(form)
            array = other.array(name)
            other.weights[name] = numpy_helper.from_array(array.reshape((1,) * (5 - array.ndim) + array.shape), name)
            yield other


def other_type(random: Generator, draft: Draft) -> None:
    """Every float of the graph is of another float type."""
    kind = int(random.choice([TensorProto.DOUBLE, TensorProto.FLOAT16]))
    if any(attribute.HasField("g") or attribute.name == "to" for node in draft.nodes for attribute in node.attribute):
        return
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for name, was in draft.types.items():
        if was == TensorProto.FLOAT:
            draft.types[name] = kind
    for name, tensor in draft.weights.items():
        if tensor.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                draft.weights[name] = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), name)
    for info in draft.inputs.values():
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = kind


def forget_body_shapes(draft: Draft) -> None:
    """Bodies declare shapes for their inputs and outputs; once something was bent, they may be untrue."""
    for node in draft.nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for info in (*attribute.g.input, *attribute.g.output, *attribute.g.value_info):
                    info.type.tensor_type.ClearField("shape")


SURROUND = (computed_input, extra_output, extra_user, output_through_op, chain)
BEND = (bend_constant, bend_constant, bend_rank, bend_attribute, swap_operands, replace_op, same_operand, drop_input)
SAY = (constant_node, overridable, fed_constant, other_dim, other_dim, hide_dims, hidden_one, other_type)
