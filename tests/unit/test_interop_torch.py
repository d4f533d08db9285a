"""The IR as a torch module: outputs as in ONNX Runtime, gradients to every parameter, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import GraphoptError, MissingDependency
from graphopt.frontends.onnx import prepare
from graphopt.ir.text import from_text

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)


def model_of(body: str, inputs: str, outputs: str, opset: int = 21, weights: str = "") -> Any:
    declared = f"<{weights}>" if weights else ""
    text = f'<ir_version: 10, opset_import: ["" : {opset}]>\ng ({inputs}) => ({outputs}) {declared} {{ {body} }}'
    return prepare(from_text(text), "example")


def outputs_of(model: Any, feeds: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    from graphopt.interop.torch import to_torch

    module = to_torch(model)
    arrays = [torch.from_numpy(np.array(feeds[name])) for name in module.meta["inputs"]]
    results = module(*arrays)
    return module, {n: r.detach().numpy() for n, r in zip(module.meta["outputs"], results, strict=True)}


IMAGE, VOLUME = "float[2, 4, 9, 8] x", "float[1, 2, 5, 6, 7] x"
Y = "float y"


def case(body: str, weights: str = "", *, inputs: str = IMAGE, outputs: str = Y, opset: int = 21) -> Any:
    """What model_of() takes, and its opset."""
    return {"body": body, "inputs": inputs, "outputs": outputs, "opset": opset, "weights": weights}


CASES = {
    "conv even": case("y = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w, b)", "float[6,4,3,3] w, float[6] b"),
    "conv uneven": case("y = Conv <pads=[0,1,2,1]> (x, w)", "float[6,4,3,3] w"),
    "conv groups": case("y = Conv <group=4, dilations=[2,2]> (x, w)", "float[8,1,3,3] w"),
    "conv same upper": case('y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)', "float[6,4,3,3] w"),
    "conv same lower": case('y = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (x, w)', "float[6,4,2,2] w"),
    "conv volume": case("y = Conv (x, w)", "float[3,2,2,2,2] w", inputs=VOLUME),
    "conv transpose": case(
        "y = ConvTranspose <strides=[2,2], pads=[1,0,0,1], output_padding=[1,0], group=2> (x, w, b)",
        "float[4,3,3,3] w, float[6] b",
    ),
    "max pool ceil": case("y = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (x)"),
    "max pool pads": case("y = MaxPool <kernel_shape=[3,2], pads=[1,0,2,1], dilations=[2,1]> (x)"),
    "average pool": case("y = AveragePool <kernel_shape=[3,3], pads=[1,0,1,2]> (x)"),
    "average pool counts": case("y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (x)"),
    "batch norm": case(
        "y = BatchNormalization <epsilon=0.01> (x, s, b, m, var)",
        "float[4] s, float[4] b, float[4] m, float[4] var",
        opset=15,
    ),
    "layer norm": case("y = LayerNormalization <axis=2> (x, s, b)", "float[9,8] s, float[9,8] b"),
    "layer norm broadcast": case("y = LayerNormalization <axis=-2> (x, s)", "float[8] s"),
    "group norm 18": case("y = GroupNormalization <num_groups=2> (x, s, b)", "float[2] s, float[2] b", opset=18),
    "group norm 21": case("y = GroupNormalization <num_groups=2> (x, s, b)", "float[4] s, float[4] b"),
    "instance norm": case("y = InstanceNormalization (x, s, b)", "float[4] s, float[4] b"),
    "softmax": case("y = Softmax <axis=1> (x)", opset=13),
    "softmax 11": case("y = Softmax <axis=2> (x)", opset=11),
    "log softmax 11": case("y = LogSoftmax (x)", opset=11),
    "gemm": case(
        "y = Gemm <alpha=0.5, beta=2.0, transB=1> (x, w, b)",
        "float[5,4] w, float[5] b",
        inputs="float[3, 4] x",
    ),
    "clip": case("y = Clip (x, low, pos_high)", "float low, float pos_high"),
    "clip 6": case("y = Clip <min=-0.5, max=0.25> (x)", opset=7),
    "pad": case("a = Constant <value_ints=[0,0,1,0,0,1,0,2]> () y = Pad (x, a)"),
    "pad reflect": case('a = Constant <value_ints=[0,0,1,2,0,0,3,0]> () y = Pad <mode="reflect"> (x, a)'),
    "pad edge": case('a = Constant <value_ints=[0,0,1,2,0,0,3,0]> () y = Pad <mode="edge"> (x, a)'),
    "pad axes": case("a = Constant <value_ints=[1,2]> () d = Constant <value_ints=[-1]> () y = Pad (x, a, , d)"),
    "slices": case(
        "s = Constant <value_ints=[-2,7]> () e = Constant <value_ints=[-9000,0]> () d = Constant <value_ints=[2,3]> "
        "() t = Constant <value_ints=[-3,-2]> () y = Slice (x, s, e, d, t)",
    ),
    "slice 7": case("y = Slice <axes=[-1, 2], starts=[-3, 1], ends=[9000, -1]> (x)", opset=7),
    "split uneven": case("a, y = Split <axis=2, num_outputs=2> (x)", outputs="float a, float y"),
    "split 11": case("a, y = Split <axis=2, split=[4,5]> (x)", outputs="float a, float y", opset=11),
    "squeeze 11": case("u = Unsqueeze <axes=[0,-1]> (x) y = Squeeze <axes=[-1]> (u)", opset=11),
    "reduce all": case("y = ReduceMean <keepdims=0> (x)", opset=18),
    "reduce none": case("y = ReduceSum <noop_with_empty_axes=1> (x)", opset=18),
    "reduce axes": case("d = Constant <value_ints=[-1,1]> () y = ReduceL2 (x, d)", opset=18),
    "reduce prod": case("y = ReduceProd <axes=[1,3]> (x)", opset=13),
    "gather": case("i = Constant <value_ints=[-1,0,2]> () y = Gather <axis=2> (x, i)"),
    "arg max last": case("y = ArgMax <axis=1, select_last_index=1> (x)", outputs="int64 y", opset=13),
    "integer division": case(
        "c = Cast <to=7> (x) d = Constant <value_int=-3> () e = Add (c, d) y = Div (e, d)",
        outputs="int64 y",
    ),
    "reshape zero": case("t = Constant <value_ints=[0,-1,8]> () y = Reshape (x, t)"),
    "space to depth": case("y = SpaceToDepth <blocksize=2> (x)", inputs="float[1, 2, 4, 6] x"),
    "depth to space": case("y = DepthToSpace <blocksize=2> (x)"),
    "activations": case(
        "a = HardSwish (x) b = HardSigmoid <alpha=0.3> (a) c = LeakyRelu (b) d = Elu (c) e = "
        "Selu (d) f = Softplus (e) h = Mish (f) i = PRelu (h, w) y = Celu (i)",
        "float[4,1,1] w",
    ),
    "cumsum": case("d = Constant <value_int=3> () y = CumSum <exclusive=1, reverse=1> (x, d)"),
    "where": case("z = Constant <value_float=0.0> () c = Greater (x, z) y = Where (c, x, z)"),
}
for _mode in ("nearest", "linear"):
    for _place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        for _scale in ("1.0, 1.0, 2.0, 1.6", "1.0, 1.0, 0.5, 0.7"):
            CASES[f"resize {_mode} {_place} {_scale}"] = case(
                f"s = Constant <value_floats: floats = [{_scale}]> () "
                f'y = Resize <mode="{_mode}", coordinate_transformation_mode="{_place}"> (x, , s)'
            )


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_op_computes_what_the_runtime_computes(name: str, run_model: Any, difference: Any) -> None:
    model = model_of(**CASES[name])
    feeds = {"x": (2 * RNG.standard_normal([int(dim) for dim in model.graph.inputs[0].shape])).astype(np.float32)}
    want = run_model(model, feeds)
    module, got = outputs_of(model, feeds)
    assert got.keys() == want.keys()
    for key in want:
        assert difference(want[key], got[key]) < 1e-5, key
    names = {value.name for value in model.graph.initializers.values()}
    assert names <= set(dict(module.named_parameters()))


ZOO = ["bert-tiny-export", "vit-tiny-export", "ppocr-cls", "light-squeezenet", "mobilenet-v2-export", "ppocr-rec-v4"]
BIG = [
    "minilm-l6-export",
    "resnet18-export",
    "vit-b16-export",
    "densenet121-export",
    "convnext-t-export",
    "llama-tiny-kv",
]


def check_zoo_model(name: str, difference: Any) -> None:
    import graphopt
    from graphopt import models
    from graphopt.feeds import make_feeds
    from graphopt.targets.onnxruntime.runner import open_runner
    from graphopt.targets.onnxruntime.settings import SessionSettings

    path = models.fetch(name)
    model = graphopt.load(path)
    feeds = make_feeds(model)
    with open_runner(Path(path), SessionSettings().reference(), isolate=False) as runner:
        want = runner.run(feeds)
    module, got = outputs_of(model, feeds)
    for key in want:
        assert difference(want[key], got[key]) < 1e-4, key
    constants = {node.outputs[0].name for node in model.graph if node.op_type == "Constant"}
    assert set(dict(module.named_parameters())) <= {*model.graph.initializers, *constants}


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_zoo_models_compute_the_same(name: str, difference: Any) -> None:
    check_zoo_model(name, difference)


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_large_zoo_models_compute_the_same(name: str, difference: Any) -> None:
    check_zoo_model(name, difference)


@pytest.mark.zoo
def test_gradients_reach_every_parameter_and_training_lowers_the_loss() -> None:
    import graphopt
    from graphopt import models
    from graphopt.interop.torch import to_torch

    module = to_torch(graphopt.load(models.fetch("vit-tiny-export")))
    torch.manual_seed(0)
    x, wanted = torch.randn(1, 3, 32, 32), None
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        (out,) = module(x)
        wanted = torch.zeros_like(out) if wanted is None else wanted
        loss = (out - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_names_sites_and_submodules() -> None:
    from graphopt.interop.torch import to_torch

    body = "m = MatMul (x, w)  y = Add (m, b)"
    model = model_of(body, "float[2, 3] x", Y, weights="float[3, 4] w, float[4] b")
    model.graph.initializers["w"].name = "layers.0.fc.weight"
    module = to_torch(model)
    assert set(dict(module.named_parameters())) == {"layers.0.fc.weight", "b"}
    assert [node.meta["site"] for node in module.graph.nodes if node.op == "call_function"] == ["MatMul_0", "Add_0"]
    before = model.graph.initializers["b"].const_value.numpy().copy()
    with torch.no_grad():
        module.b.fill_(9.0)
    np.testing.assert_array_equal(model.graph.initializers["b"].const_value.numpy(), before)


def test_the_module_is_captured_again(run_model: Any, difference: Any) -> None:
    import graphopt
    from graphopt.interop.torch import to_torch

    model = model_of(**CASES["conv even"])
    x = RNG.standard_normal((2, 4, 9, 8)).astype(np.float32)
    (want,) = run_model(model, {"x": x}).values()
    (got,) = run_model(graphopt.from_torch(to_torch(model), torch.from_numpy(x)), {"x": x}).values()
    assert difference(want, got) < 1e-5


@pytest.mark.parametrize(
    ("body", "opset", "message"),
    [
        (
            "h = NonZero (x) c = Cast <to=1> (h) d = Hardmax (c) y = Det (d)",
            21,
            "no torch form: Det, Hardmax, NonZero",
        ),
        ("y, i = MaxPool <kernel_shape=[2,2]> (x) ", 21, "only the first output of MaxPool"),
        ('y = Resize <mode="cubic"> (x, , s)', 21, "mode=cubic"),
        ("y = Cast <to=17> (x)", 21, "element type 17 has no torch form"),
        ("y = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (x)", 21, "AveragePool with dilations"),
    ],
)
def test_what_has_no_torch_form_is_named(body: str, opset: int, message: str) -> None:
    outputs = "float y, int64 i" if "y, i" in body else Y
    weights = "float[4] pos_s" if "Resize" in body else ""
    model = model_of(body.replace(", , s)", ", , pos_s)"), IMAGE, outputs, opset, weights)
    with pytest.raises(GraphoptError, match=message):
        outputs_of(model, {"x": np.ones((2, 4, 9, 8), np.float32)})


def test_missing_torch_names_the_extra(monkeypatch: Any) -> None:
    import importlib.util

    from graphopt.interop.torch import to_torch

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(MissingDependency, match=r"graphopt\[torch\]"):
        to_torch(model_of("y = Relu (x)", IMAGE, Y))
