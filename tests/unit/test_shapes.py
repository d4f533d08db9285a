"""Shape analysis on small graphs: values through shape chains, control flow, functions, interface, incremental use."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.shapes import Shapes, bind_dims, set_input_shapes
from graphopt.errors import GraphoptError

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "other": 1, "local": 1]>\n'


def _model(text: str) -> ir.Model:
    return ir.from_onnx_text(HEAD + text)


def _value(model: ir.Model, name: str) -> ir.Value:
    return next(
        value
        for value in [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]
        if value.name == name
    )


def _infer(text: str) -> tuple[ir.Model, Shapes]:
    model = _model(text)
    return model, Shapes(model).infer()


def _text(shapes: Shapes, value: ir.Value) -> list[int | str] | None:
    known = shapes.dims(value)
    return None if known is None else [dim if isinstance(dim, int) else str(dim) for dim in known]


# ---- chains --------------------------------------------------------------------------------------------------------


def test_a_reshape_target_built_from_the_shape() -> None:
    model, shapes = _infer("""g (float[N, S, 8] x) => (float[A, B, C, D] y) {
        shape = Shape <end = 2> (x)
        tail = Constant <value_ints = [2, -1]> ()
        full = Concat <axis = 0> (shape, tail)
        r = Reshape(x, full)
        y = Relu(r) }""")
    assert [str(v) for v in shapes.values(_value(model, "full")) or ()] == ["N", "S", "2", "-1"]
    assert _text(shapes, _value(model, "r")) == ["N", "S", 2, 4]
    assert _value(model, "r").shape == ir.Shape(["N", "S", 2, 4])
    assert _value(model, "r").dtype == ir.DataType.FLOAT
    assert not shapes.blocked


def test_gather_slice_arithmetic_and_scalars() -> None:
    model, shapes = _infer("""g (float[N, 6] x) => (int64[K] y) {
        s = Shape(x)
        i = Constant <value_int = 0> ()
        n = Gather(s, i)
        two = Constant <value_int = 2> ()
        twice = Mul(n, two)
        half = Div(twice, two)
        axis = Constant <value_ints = [0]> ()
        v = Unsqueeze(half, axis)
        one = Constant <value_ints = [1]> ()
        end = Constant <value_ints = [2]> ()
        c = Slice(s, one, end)
        y = Concat <axis = 0> (v, c) }""")
    assert shapes.dims(_value(model, "n")) == ()
    assert shapes.values(_value(model, "n")) == ("N",)
    assert shapes.values(_value(model, "y")) == ("N", 6)
    assert shapes.ints(_value(model, "c")) == (6,) and shapes.ints(_value(model, "y")) is None


@pytest.mark.parametrize(
    ("type_", "a", "op", "b"),
    [
        ("int32", 2147483647, "Add", 1),
        ("int64", 9223372036854775807, "Mul", 2),
        ("int64", -9223372036854775808, "Div", -1),
        ("uint8", 3, "Sub", 5),
    ],
)
def test_integers_that_wrap_around_are_not_known(type_: str, a: int, op: str, b: int) -> None:
    constants = f"<{type_} a = {{{a}}}, {type_} b = {{{b}}}, {type_} one = {{1}}>"
    model, shapes = _infer(f"""g ({type_} x) => ({type_} y) {constants} {{
        wrapped = {op} (a, b)
        plain = {op} (a, one)
        y = Max (x, wrapped, plain) }}""")
    assert shapes.ints(_value(model, "wrapped")) is None
    assert (shapes.ints(_value(model, "plain")) is None) == (op == "Add")


def test_where_of_equal_picks_what_is_provable() -> None:
    """torch writes Expand targets as Where(shape == -1, ones, shape)."""
    model, shapes = _infer("""g (float[N, 1] x) => (float[A, B] y) {
        s = Shape(x)
        last = Constant <value_ints = [7]> ()
        i = Constant <value_ints = [0]> ()
        n = Gather(s, i)
        target = Concat <axis = 0> (n, last)
        minus = Constant <value_ints = [-1, -1]> ()
        ones = Constant <value_ints = [1, 1]> ()
        same = Equal(target, minus)
        picked = Where(same, ones, target)
        y = Expand(x, picked) }""")
    assert shapes.ints(_value(model, "same")) == (0, 0)
    assert _text(shapes, _value(model, "y")) == ["N", 7]


def test_float_tensors_have_no_values() -> None:
    """3 / 2 is 1.5 there: carrying integers through a cast to float and dividing them would be wrong."""
    model, shapes = _infer("""g (float[N, 3] x) => (int64[K] y) {
        s = Shape(x)
        f = Cast <to = 1> (s)
        two = Constant <value_floats = [2.0]> ()
        h = Div(f, two)
        y = Cast <to = 7> (h) }""")
    assert shapes.values(_value(model, "f")) is None and shapes.values(_value(model, "y")) is None


# ---- what must not be assumed --------------------------------------------------------------------------------------


def test_different_symbols_broadcast_to_neither() -> None:
    model, shapes = _infer(
        "g (float[N] x, float[M] z) => (float[K] y) { t = Add(x, z) \n u = Mul(x, z) \n y = Add(t, u) }"
    )
    t, u = shapes.dims(_value(model, "t")), shapes.dims(_value(model, "u"))
    assert t is not None and str(t[0]) not in ("N", "M")
    assert t == u, "the same pair gives the same dimension"
    assert shapes.evaluate(t[0], {"N": 1, "M": 5}) == 5 and shapes.evaluate(t[0], {"N": 4, "M": 3}) is None


def test_slice_of_a_symbolic_dimension_is_clamped() -> None:
    model, shapes = _infer("""g (float[N] x) => (float[K] y) {
        zero = Constant <value_ints = [0]> ()
        ten = Constant <value_ints = [10]> ()
        y = Slice(x, zero, ten) }""")
    dim = (shapes.dims(_value(model, "y")) or (None,))[0]
    assert [shapes.evaluate(dim, {"N": n}) for n in (0, 3, 10, 12)] == [0, 3, 10, 10]


def test_an_unknown_reshape_element_may_be_minus_one() -> None:
    model, shapes = _infer("""g (float[N, 6] x, int64[1] k) => (float[A, B] y) {
        two = Constant <value_ints = [2]> ()
        target = Concat <axis = 0> (k, two)
        y = Reshape(x, target)
        more = Reshape(x, k) }""")
    y = shapes.dims(_value(model, "y"))
    assert y is not None and y[1] == 2
    assert not shapes.equal(y[0], (shapes.values(_value(model, "target")) or (0,))[0])


def test_squeeze_without_axes_needs_numbers() -> None:
    model, shapes = _infer(
        "g (float[N, 1] x, float[3, 1] z) => (float[K] y, float[3] w) { y = Squeeze(x) \n w = Squeeze(z) }"
    )
    assert shapes.dims(_value(model, "y")) is None
    assert shapes.static(_value(model, "w")) == (3,)
    assert [blocked.node.op_type for blocked in shapes.blocked] == ["Squeeze"], "the node that loses the rank is named"


def test_split_and_squeeze_by_unknown_inputs() -> None:
    model, shapes = (
        _infer("""g (float[6, 1] x, int64[2] parts, int64[1] axes) => (float[A, 1] a, float[B, 1] b, float[C] c) {
        a, b = Split <axis = 0> (x, parts)
        c = Squeeze(x, axes) }""")
    )
    a, b = shapes.dims(_value(model, "a")), shapes.dims(_value(model, "b"))
    assert a is not None and b is not None and a[1] == 1 and not isinstance(a[0], int) and not shapes.equal(a[0], b[0])
    assert shapes.dims(_value(model, "c")) is None


def test_an_overridable_initializer_is_no_constant() -> None:
    model, shapes = _infer("""g (float[6] x, int64[2] target) => (float[A, B] y) <int64[2] target = {2, 3}> {
        y = Reshape(x, target) }""")
    assert shapes.static(_value(model, "y")) is None
    assert model.graph.initializers["target"].const_value is not None


def test_wrong_declared_inner_shapes_lose() -> None:
    model, shapes = _infer("""g (float[2, 3] x) => (float[2, 3] y) <float[5, 5] t, float[7] u> {
        t = Relu(x) \n u = NonZero(t) \n y = Neg(t) }""")
    assert shapes.static(_value(model, "t")) == (2, 3)
    u = shapes.dims(_value(model, "u"))
    assert u is not None and u[0] == 2 and not isinstance(u[1], int)
    assert _value(model, "u").dtype == ir.DataType.INT64


def test_custom_ops_keep_what_is_declared_and_are_named() -> None:
    model, shapes = _infer("""g (float[N, 3] x) => (float[N, 4] y) <float[N, 4] t> {
        t = other.Thing(x) \n u = other.Thing(t) \n v = Relu(u) \n y = Relu(t) }""")
    assert _text(shapes, _value(model, "y")) == ["N", 4]
    assert [(blocked.domain, blocked.op) for blocked in shapes.blocked] == [("other", "Thing")]
    assert shapes.blocked[0].node is _value(model, "u").producer()


def test_a_malformed_node_is_named_and_inference_goes_on() -> None:
    model, shapes = _infer("""g (float[2, 3] x) => (float[K, L] y, float[2, 3] z) {
        y = Concat <axis = 5> (x, x) \n z = Relu(x) }""")
    assert shapes.blocked[0].op == "Concat" and "axis 5" in shapes.blocked[0].reason
    assert shapes.static(_value(model, "z")) == (2, 3) and shapes.dims(_value(model, "y")) is None


# ---- names ---------------------------------------------------------------------------------------------------------


def test_odd_dimension_names() -> None:
    model = _model("""g (float[a, b, c, d] x, float[a, b, c, d] z) => (float[K, L, M, O] y) {
        t = Relu(x) \n y = Concat <axis = 0> (t, z) }""")
    names = ["?", None, -1, "batch-size"]
    for value in model.graph.inputs:
        value.shape = ir.Shape(names)
    shapes = Shapes(model).infer()
    x, z, t = model.graph.inputs[0], model.graph.inputs[1], _value(model, "t")
    assert x.shape == ir.Shape(names), "the declared interface stays"
    assert shapes.same_shape(x, t) and not shapes.same_shape(x, z)
    first, other = shapes.dims(x), shapes.dims(z)
    assert first is not None and other is not None
    assert [shapes.equal(a, b) for a, b in zip(first, other, strict=True)] == [False, False, False, True]
    assert str(first[3]).isidentifier()


def test_a_declared_expression_over_declared_symbols_is_one() -> None:
    model = _model("g (float[p] x, float[q] z) => (float[r] y) { y = Concat <axis = 0> (x, z) }")
    model.graph.inputs[1].shape = ir.Shape(["p + 1"])
    shapes = Shapes(model).infer()
    assert shapes.equal((shapes.dims(_value(model, "y")) or (0,))[0], ir.SymbolicDim("2*p + 1"))


def test_minted_names_avoid_the_models_names() -> None:
    model, shapes = _infer("g (float[_d0, N] x) => (int64[A, B] y) { y = NonZero(x) }")
    y = shapes.dims(_value(model, "y"))
    assert y is not None and not shapes.equal(y[1], (shapes.dims(_value(model, "x")) or (0,))[0])


def test_graph_outputs_keep_their_declaration() -> None:
    model, shapes = _infer("g (float[N, 2] x) => (float[out, 2] y) { y = Relu(x) }")
    assert model.graph.outputs[0].shape == ir.Shape(["out", 2])
    assert _text(shapes, model.graph.outputs[0]) == ["N", 2]


# ---- control flow --------------------------------------------------------------------------------------------------


def test_if_keeps_what_both_branches_agree_on() -> None:
    model, shapes = _infer("""g (bool c, float[N, 3] x) => (float[A, 3] y, float[] z) {
        y, z = If (c) <
            then_branch = t () => (float[N, 3] a, float[N, 3] p) { a = Relu(x) \n p = Neg(x) },
            else_branch = e () => (float[M, 3] b, float q) {
                b = Concat <axis = 0> (x, x) \n q = ReduceSum <keepdims = 0> (x) }
        > }""")
    y = shapes.dims(_value(model, "y"))
    assert y is not None and y[1] == 3 and not shapes.equal(y[0], ir.SymbolicDim("N"))
    assert shapes.dims(_value(model, "z")) is None


LOOP = """g (float[2, 3] x, bool go, int64 m) => (float[A, 3] y, float[T, K, 3] s) {
    five = Constant <value_int = 5> ()
    yes = Constant <value_int = 1> ()
    true = Cast <to = 9> (yes)
    y, s = Loop (%s, %s, x) < body = b (int64 i, bool c, float[?, ?] h) => (bool d, float[?, ?] k, float[?, ?] o) {
        d = %s
        k = %s
        o = Identity(h) } > }"""


def test_a_loop_that_grows_its_state() -> None:
    model, shapes = _infer(LOOP % ("five", "true", "Identity(c)", "Concat <axis = 0> (h, x)"))
    y, s = shapes.dims(_value(model, "y")), shapes.dims(_value(model, "s"))
    assert y is not None and not isinstance(y[0], int) and y[1] == 3
    assert s is not None and s[0] == 5 and not isinstance(s[1], int) and s[2] == 3
    body = _value(model, "y").producer().attributes["body"].as_graph()
    assert not isinstance((shapes.dims(body.inputs[2]) or (0,))[0], int)


def test_a_loop_whose_state_keeps_its_shape() -> None:
    model, shapes = _infer(LOOP % ("five", "true", "Identity(c)", "Add(h, h)"))
    assert shapes.static(_value(model, "y")) == (2, 3) and shapes.static(_value(model, "s")) == (5, 2, 3)


@pytest.mark.parametrize(
    ("limit", "start", "goes_on"),
    [("five", "true", "Identity(go)"), ("five", "go", "Identity(c)"), ("m", "true", "Identity(c)")],
)
def test_a_loop_that_may_stop_early_has_no_trip_count(limit: str, start: str, goes_on: str) -> None:
    model, shapes = _infer(LOOP % (limit, start, goes_on, "Add(h, h)"))
    s = shapes.dims(_value(model, "s"))
    assert s is not None and not isinstance(s[0], int) and s[1:] == (2, 3)


def test_scan_slices_and_stacks() -> None:
    model, shapes = _infer("""g (float[4] h0, float[S, B, 4] x) => (float[4] h, float[S, B, 4] y) {
        h, y = Scan (h0, x) <num_scan_inputs = 1, body = b (float[?] s, float[?, ?] e) => (float[?] t, float[?, ?] o) {
            t = Identity(s) \n o = Add(e, s) }> }""")
    assert _text(shapes, _value(model, "y")) == ["S", "B", 4] and shapes.static(_value(model, "h")) == (4,)


# ---- functions -----------------------------------------------------------------------------------------------------

FUNCTIONS = """g (float[N, 3] x, float[5] z) => (float[A, B] y, float[C] w) {
    a = local.Twice <ax = 0> (x)
    b = local.Twice <ax = 1> (x)
    c = local.Twice <ax = 0> (z)
    y = Relu(a) \n v = Relu(b) \n w = Relu(c) }
<domain: "local", opset_import: ["": 21]>
Twice <ax> (p) => (q) { r = Relu(p) \n q = Concat <axis: int = @ax> (r, r) }"""


def test_each_call_of_a_function_has_its_own_shapes() -> None:
    model, shapes = _infer(FUNCTIONS)
    assert _text(shapes, _value(model, "a")) == ["2*N", 3]
    assert _text(shapes, _value(model, "b")) == ["N", 6]
    assert _text(shapes, _value(model, "c")) == [10]
    function = next(iter(model.functions.values()))
    assert shapes.dims(function.inputs[0]) is None, "one body serves rank 1 and rank 2"
    concat = next(node for node in function if node.op_type == "Concat")
    assert concat.attributes["axis"].is_ref(), "the body's attribute reference is back in place"


# ---- incremental ---------------------------------------------------------------------------------------------------


def test_infer_node_for_a_new_node() -> None:
    model, shapes = _infer("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    node = ir.node("Transpose", [model.graph.inputs[0]], attributes={"perm": [1, 0]})
    shapes.infer_node(node)
    assert node.outputs[0].shape == ir.Shape([4, "N"]) and node.outputs[0].dtype == ir.DataType.FLOAT


def test_infer_node_keeps_what_is_known_better() -> None:
    model, shapes = _infer("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    node = ir.node("NonZero", [model.graph.inputs[0]])
    node.outputs[0].shape = ir.Shape([2, 9])
    shapes.infer_node(node)
    assert node.outputs[0].shape == ir.Shape([2, 9])


def test_a_second_analysis_agrees_with_the_first() -> None:
    model, shapes = _infer("""g (float[N] x, float[M] z) => (float[K] y) {
        t = Add(x, z) \n u = NonZero(t) \n v = Neg(t) \n y = Add(t, v) }""")
    first = {name: _text(shapes, _value(model, name)) for name in "tuvy"}
    again = Shapes(model).infer()
    assert {name: _text(again, _value(model, name)) for name in "tuvy"} == first
    new = ir.node("Mul", [model.graph.inputs[1], model.graph.inputs[0]])
    again.infer_node(new)
    assert again.same_shape(new.outputs[0], _value(model, "t"))


def test_nothing_is_left_on_the_model_but_shapes() -> None:
    model, _ = _infer("""g (float[2, 6] x) => (float[A, B] y) {
        s = Shape(x) \n t = Neg(s) \n u = Neg(t) \n y = Reshape(x, u) }""")
    for name in "stu":
        assert _value(model, name).const_value is None and not _value(model, name).metadata_props


# ---- queries -------------------------------------------------------------------------------------------------------


def test_broadcasts_to_and_numel() -> None:
    model, shapes = _infer("g (float[N, 1, 4] x, float[N, M, 4] z, float[4] w) => (float[N, M, 4] y) { y = Add(x, z) }")
    x, z, w = model.graph.inputs
    assert shapes.broadcasts_to(x, z) and shapes.broadcasts_to(w, z) and not shapes.broadcasts_to(z, x)
    assert shapes.equal(shapes.numel(z), ir.SymbolicDim("4*M*N")) and shapes.numel(w) == 4
    assert shapes.static(z) is None and not shapes.equal(None, None)


def test_time_is_linear_in_the_nodes() -> None:
    def seconds(count: int) -> float:
        x = ir.val("x", ir.DataType.FLOAT, ["N", 8])
        nodes, current = [], x
        for index in range(count):
            nodes.append(ir.node("Relu" if index % 2 else "Neg", [current]))
            current = nodes[-1].outputs[0]
            current.name = f"v{index}"
        model = ir.Model(ir.Graph([x], [current], nodes=nodes, opset_imports={"": 21}), ir_version=10)
        start = time.perf_counter()
        assert Shapes(model).infer().dims(current) == ("N", 8)
        return time.perf_counter() - start

    seconds(100)
    assert seconds(20000) < 60 * max(seconds(2000), 0.005)


# ---- binding -------------------------------------------------------------------------------------------------------

BIND = "g (float[N, S] x, float[N, 3] z) => (float[N, S] y) { t = Relu(x) \n y = Neg(t) }"


def test_bind_dims_everywhere() -> None:
    model, _ = _infer(BIND)
    assert bind_dims(model, {"N": 2}) == 4
    assert [value.shape for value in (*model.graph.inputs, model.graph.outputs[0], _value(model, "t"))] == [
        ir.Shape([2, "S"]),
        ir.Shape([2, 3]),
        ir.Shape([2, "S"]),
        ir.Shape([2, "S"]),
    ]


def test_set_input_shapes_binds_the_symbols() -> None:
    model = _model(BIND)
    set_input_shapes(model, {"x": (4, 7)})
    shapes = Shapes(model).infer()
    assert shapes.static(model.graph.inputs[1]) == (4, 3) and shapes.static(_value(model, "t")) == (4, 7)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"xx": (1, 2)}, "no input 'xx'.*did you mean 'x'|no input 'xx'.*known"),
        ({"x": (1, 2, 3)}, "rank 2"),
        ({"z": (1, 4)}, "fixed at 3 and cannot be 4"),
        ({"x": (1, 2), "z": (5, 3)}, "'N' would be both 1 and 5"),
        ({"x": (-1, 2)}, "sizes are 0 to"),
        ({"x": (1 << 63, 2)}, "sizes are 0 to"),
    ],
)
def test_set_input_shapes_refuses(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    model = _model(BIND)
    with pytest.raises(GraphoptError, match=message):
        set_input_shapes(model, shapes)
    assert model.graph.inputs[0].shape == ir.Shape(["N", "S"]), "a refused call changes nothing"


def test_bind_dims_refuses() -> None:
    model = _model("g (float[batch, 3] x) => (float[batch, 3] y) { y = Relu(x) }")
    with pytest.raises(GraphoptError, match=r"no dimension 'bach'.*did you mean 'batch'"):
        bind_dims(model, {"bach": 1})
    with pytest.raises(GraphoptError, match="sizes are 0 to"):
        bind_dims(model, {"batch": -2})


def test_an_initializer_is_its_tensor() -> None:
    model = _model("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    model.graph.initializers["w"].shape = ir.Shape([9])
    assert Shapes(model).infer().static(model.graph.initializers["w"]) == (2,)
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), [1, 2])
