"""Capture of torch programs: numbers, names of layers, silence, and `.pt2` files that must be refused."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import GraphoptError, MissingDependency

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.torch


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.drop(self.fc(x))) + x


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(4, 2, bias=False)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Scaled(torch.nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any, scale: Any) -> Any:
        return self.net(x) * scale


@pytest.fixture
def net() -> Any:
    torch.manual_seed(0)
    return Net()


X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def expected(net: Any, x: np.ndarray = X) -> np.ndarray:
    net.eval()
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("form", ["module", "fx", "exported"])
def test_numbers_and_layer_names_survive(form: str, net: Any, run_model: Any, capfd: Any, recwarn: Any) -> None:
    import graphopt

    example = (torch.from_numpy(X),)
    if form == "exported":
        model = graphopt.from_torch(torch.export.export(net.eval(), example))
    else:
        model = graphopt.from_torch(torch.fx.symbolic_trace(net) if form == "fx" else net, example)
    (got,) = run_model(model, {model.graph.inputs[0].name: X}).values()
    np.testing.assert_allclose(got, expected(net), rtol=1e-5, atol=1e-6)
    names = [node.name for node in model.graph]
    assert any(name.startswith("layers.1/fc/") for name in names), names
    assert len(set(names)) == len(names)
    assert "layers.0.fc.bias" in model.graph.initializers
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not recwarn.list


def test_dynamic_shapes_and_keyword_inputs(net: Any, run_model: Any) -> None:
    import graphopt

    model = graphopt.from_torch(
        Scaled(net), torch.from_numpy(X), {"scale": torch.tensor(2.0)}, {"x": {0: "batch"}, "scale": None}
    )
    assert str(model.graph.inputs[0].shape) == "[batch,4]"
    wider = np.concatenate([X, X + 1])
    (got,) = run_model(model, {"x": wider, "scale": np.asarray(2, np.float32)}).values()
    np.testing.assert_allclose(got, 2 * expected(net, wider), rtol=1e-5, atol=1e-6)


def test_the_module_is_left_as_it_was_and_owns_its_weights(net: Any, run_model: Any) -> None:
    import graphopt

    net.train()
    net.layers[0].eval()
    before = [part.training for part in net.modules()]
    model = graphopt.from_torch(net, torch.from_numpy(X))
    assert [part.training for part in net.modules()] == before
    (first,) = run_model(model, {"x": X}).values()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7.0)
    (second,) = run_model(model, {"x": X}).values()
    np.testing.assert_array_equal(first, second)


def test_no_metadata_names_a_folder(net: Any) -> None:
    import graphopt

    model = graphopt.from_torch(net, torch.from_numpy(X))
    assert not [text for node in model.graph for text in node.metadata_props.values() if __file__ in text]


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        ("Linear", (), "not a str"),
        (torch.nn.Linear(3, 4), (torch.zeros(2, 2),), "torch cannot export Linear: RuntimeError"),
    ],
)
def test_what_cannot_be_exported_is_one_line(module: Any, args: Any, message: str, capfd: Any) -> None:
    import graphopt

    with pytest.raises(GraphoptError, match=message) as caught:
        graphopt.from_torch(module, args)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


class Dicts(torch.nn.Module):
    def forward(self, c: Any, d: Any, scale: Any = None) -> Any:
        total = c["a"] - d["b"]
        return total if scale is None else total * scale


@pytest.mark.parametrize("kwargs", [None, {}, {"scale": torch.full((4,), 2.0)}], ids=["none", "empty", "some"])
def test_a_dict_at_the_end_is_an_input(kwargs: Any) -> None:
    import graphopt

    x = torch.from_numpy(X)
    model = graphopt.from_torch(Dicts(), ({"a": x}, {"b": x}), kwargs)
    assert len(model.graph.inputs) == 2 + len(kwargs or {})
    assert "Sub" in [node.op_type for node in model.graph]


def test_an_exported_program_has_its_dims(net: Any) -> None:
    import graphopt

    program = torch.export.export(net.eval(), (torch.from_numpy(X),))
    with pytest.raises(GraphoptError, match="has its dynamic shapes already"):
        graphopt.from_torch(program, dynamic_shapes={"x": {0: "b"}})


def test_missing_onnxscript_names_the_extra(net: Any, monkeypatch: Any) -> None:
    import graphopt

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependency, match=r"capturing torch models needs .*graphopt\[torch\]"):
        graphopt.from_torch(net, torch.from_numpy(X))


# -- package.module:function ------------------------------------------------------------------------------------

_SOURCE = """
import torch
def make():
    return torch.nn.Linear(4, 2), (torch.zeros(3, 4),), {"input": {0: "rows"}}
def keyword():
    return torch.nn.Linear(4, 2), {"input": torch.zeros(3, 4)}
class Pair(torch.nn.Module):
    def forward(self, x, scale):
        return x["a"] * scale
def both():
    return Pair(), ({"a": torch.zeros(3, 4)},), None, {"scale": torch.ones(4)}
def confused():
    return Pair(), (torch.zeros(3, 4),), None, 3
def wrong():
    return 3
def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "torch_zoo_of_test.py").write_text(_SOURCE)
    (tmp_path / "torch_zoo_needs.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_zoo_of_test", raising=False)


@pytest.mark.parametrize(("name", "shape"), [("make", "[rows,4]"), ("keyword", "[3,4]"), ("both", "[3,4]")])
def test_function_is_captured(zoo: None, name: str, shape: str) -> None:
    from graphopt.frontends.capture import capture

    model, path = capture(f"torch_zoo_of_test:{name}")
    assert path is None
    assert str(model.graph.inputs[0].shape) == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torch_zoo_of_test:mak", "has no function 'mak'; did you mean 'make'"),
        ("torch_zoo_of_tset:make", "there is no module 'torch_zoo_of_tset'"),
        ("torch_zoo_needs:make", "needs a module 'a_package_that_is_not_there'"),
        ("torch_zoo_of_test:wrong", "returned a int; it must return"),
        ("torch_zoo_of_test:confused", "returned a tuple of 1 and a int as example inputs; it must return"),
        ("torch_zoo_of_test:broken", "raised RuntimeError: no weights here"),
        ("torch_zoo_of_test:", "is not package.module:function"),
    ],
)
def test_function_mistakes_are_explained(zoo: None, text: str, message: str) -> None:
    from graphopt.frontends.torch import from_function

    with pytest.raises(GraphoptError, match=message):
        from_function(text)


# -- .pt2 files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch = torch.export.Dim("batch", min=2, max=64)
    dims = {"x": {0: batch}}
    program = torch.export.export(Net().eval(), (torch.from_numpy(X),), dynamic_shapes=dims)
    torch.export.save(program, path, extra_files={"note.txt": "kept out of the way"})
    return path


def tampered(saved: Path, out: Path, member: str, change: Any) -> Path:
    """A copy of the archive with one member changed (or added) by `change(bytes) -> bytes`."""
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        root = names[0].partition("/")[0]
        for name in names:
            data = source.read(name)
            target.writestr(name, change(data) if name == f"{root}/{member}" else data)
        if f"{root}/{member}" not in names:
            target.writestr(f"{root}/{member}", change(b""))
    return out


def edit_json(edit: Any) -> Any:
    def change(data: bytes) -> bytes:
        tree = json.loads(data)
        edit(tree)
        return json.dumps(tree).encode()

    return change


def test_program_file_is_captured(saved: Path, run_model: Any) -> None:
    from graphopt.frontends.capture import capture

    model, _ = capture(saved)
    torch.manual_seed(0)
    (got,) = run_model(model, {"x": X}).values()
    np.testing.assert_allclose(got, expected(Net()), rtol=1e-5, atol=1e-6)
    assert any(node.name.startswith("layers.0/fc/") for node in model.graph)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def _first_node(tree: Any) -> Any:
    return tree["graph_module"]["graph"]["nodes"][0]


def _expression(text: str) -> Any:
    def edit(tree: Any) -> None:
        for value in tree["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    return edit


def _weight_is_pickled(tree: Any) -> None:
    next(iter(tree["config"].values()))["use_pickle"] = True


def _enum_context(tree: Any) -> None:
    signature = tree["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "x"})
    signature["in_spec"] = json.dumps([1, {"type": "builtins.tuple", "context": context, "children_spec": []}])


def refusals(marker: Path) -> dict[str, tuple[str, Any, str]]:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    model = "models/model.json"
    sample = io.BytesIO()
    torch.save((_Payload(marker),), sample)

    def calls(target: str) -> tuple[str, Any, str]:
        return model, edit_json(lambda tree: _first_node(tree).update(target=target)), "is no tensor operator"

    def dims(text: str) -> tuple[str, Any, str]:
        return model, edit_json(_expression(text)), "no plain expression"

    return {
        "callable": calls("torch.os.system"),
        "library": calls("torch.ops.load_library"),
        "file op": calls("torch.ops.aten.from_file.default"),
        "method getter": calls("_operator.methodcaller"),
        "expression": dims(code),
        "hidden expression": dims(f"Symbol({code!r})"),
        "power tower": dims("9**9**9**9"),
        "enum": (model, edit_json(_enum_context), "names a Python module"),
        "pickled weight": ("data/weights/model_weights_config.json", edit_json(_weight_is_pickled), "could run code"),
        "opaque object": ("data/constants/opaque_obj_0", lambda _: pickle.dumps(_Payload(marker)), "pickled objects"),
        "legacy weights": ("data/weights/model.pt", lambda _: sample.getvalue(), "pickled objects"),
        "compiled": ("data/aotinductor/model/x.so", lambda _: b"\x7fELF", "compiled libraries"),
        "sample inputs": ("data/sample_inputs/model.pt", lambda _: sample.getvalue(), "could run code"),
    }


@pytest.mark.parametrize("case", sorted(refusals(Path("/nowhere"))))
def test_what_could_run_code_is_refused_before_it_runs(case: str, saved: Path, tmp_path: Path) -> None:
    from graphopt.frontends.torch import load_program

    marker = tmp_path / "ran"
    member, change, message = refusals(marker)[case]
    path = tampered(saved, tmp_path / "bad.pt2", member, change)
    with pytest.raises(GraphoptError, match=message):
        load_program(path)
    assert not marker.exists()


def test_guards_are_not_evaluated(saved: Path, tmp_path: Path) -> None:
    from graphopt.frontends.torch import load_program

    marker = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    edit = edit_json(lambda tree: tree.update(guards_code=[code]))
    path = tampered(saved, tmp_path / "guard.pt2", "models/model.json", edit)
    load_program(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "not an archive"),
        (b"hello", "not an archive"),
        (b"PK\x03\x04" + b"x" * 50, "not an archive"),
    ],
)
def test_unreadable_program_files(content: bytes | None, message: str, tmp_path: Path) -> None:
    from graphopt.frontends.torch import load_program

    path = tmp_path / "x.pt2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphoptError, match=message):
        load_program(path)


def test_truncated_member_is_an_error(saved: Path, tmp_path: Path) -> None:
    from graphopt.frontends.torch import load_program

    path = tampered(saved, tmp_path / "short.pt2", "data/weights/weight_0", lambda data: data[:7])
    with pytest.raises(GraphoptError, match="cannot read this program"):
        load_program(path)


def test_a_member_that_stands_twice_is_refused(saved: Path, tmp_path: Path) -> None:
    from graphopt.frontends.torch import load_program

    path = tmp_path / "twice.pt2"
    path.write_bytes(saved.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("model.json"))
        archive.writestr(name, b"{}")
    with pytest.raises(GraphoptError, match="stands in it twice"):
        load_program(path)
