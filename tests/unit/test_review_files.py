"""Faults found by review in reading strangers' files and in writing outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import artifact
from graphopt.checks import Check
from graphopt.errors import GraphoptError
from graphopt.frontends.onnx import load

WEIGHT = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def tensor(**fields: Any) -> TensorProto:
    made = TensorProto(name="w")
    for name, value in fields.items():
        getattr(made, name).extend(value) if isinstance(value, list) else setattr(made, name, value)
    return made


def wrap(nodes: list[Any], initializers: list[Any]) -> Any:
    x, y = (helper.make_tensor_value_info(name, 1, None) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("d", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


BAD_TENSORS = {
    "unknown type": (tensor(data_type=99, dims=[1], raw_data=b"1234"), "unknown element type"),
    "no type": (tensor(data_type=0, dims=[1], raw_data=b"1234"), "unknown element type"),
    "huge and empty": (tensor(data_type=1, dims=[1 << 40]), "holds 0"),
    "too few floats": (tensor(data_type=1, dims=[4], float_data=[1.0, 2.0]), "declares 4 elements and holds 2"),
    "too few texts": (tensor(data_type=8, dims=[4], string_data=[b"a"]), "declares 4 elements and holds 1"),
    "too few bytes": (tensor(data_type=1, dims=[4], raw_data=b"1234"), "declares 16 bytes and holds 4"),
    "product overflows": (tensor(data_type=1, dims=[1 << 62, 1 << 62], raw_data=b""), "64 bits"),
    "product overflows at 0": (tensor(data_type=1, dims=[1 << 62, 1 << 62, 0], raw_data=b""), "64 bits"),
    "negative dim": (tensor(data_type=1, dims=[-1], raw_data=b"1234"), "negative dimension"),
    "half of an int4": (tensor(data_type=TensorProto.INT4, dims=[3], int32_data=[1]), "declares 2 elements"),
}


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph"])
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_tensor_that_does_not_fit_its_data_is_refused(tmp_path: Path, case: str, place: str) -> None:
    bad, message = BAD_TENSORS[case]
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if place == "initializer":
        model = wrap([add], [bad])
    elif place == "attribute":
        model = wrap([helper.make_node("Constant", [], ["w"], value=bad), add], [])
    else:
        out = helper.make_tensor_value_info("y", 1, None)
        other = helper.make_tensor_value_info("z", 1, None)
        then = helper.make_graph([add], "t", [], [out], [bad])
        els = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "e", [], [other])
        condition = numpy_helper.from_array(np.array(True), "c")
        model = wrap([helper.make_node("If", ["c"], ["r"], then_branch=then, else_branch=els)], [condition])
        model.graph.output[0].name = "r"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(GraphoptError, match=message):
        load(tmp_path / "m.onnx")


def test_typed_data_of_the_right_size_is_read(tmp_path: Path) -> None:
    tensors = [
        helper.make_tensor("f", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("h", TensorProto.FLOAT16, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("i4", TensorProto.INT4, [3], [1, -2, 3]),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]),
        helper.make_tensor("c", TensorProto.COMPLEX64, [2], [1 + 2j, 3j]),
        helper.make_tensor("u", TensorProto.UINT32, [1], [7]),
        helper.make_tensor("none", TensorProto.FLOAT, [0], []),
    ]
    path = tmp_path / "m.onnx"
    path.write_bytes(wrap([helper.make_node("Neg", ["x"], ["y"])], tensors).SerializeToString())
    read = {name: value.const_value.numpy().tolist() for name, value in load(path).graph.initializers.items()}
    assert read["i4"] == [1, -2, 3]
    assert read["c"] == [1 + 2j, 3j]
    assert read["none"] == []


def test_external_data_in_a_list_of_tensors_is_refused(tmp_path: Path) -> None:
    outside = tensor(data_type=1, dims=[4], data_location=1)
    outside.external_data.add(key="location", value="/etc/hostname")
    node = helper.make_node("Foo", ["x"], ["y"], domain="d")
    node.attribute.append(onnx.AttributeProto(name="ts", type=9, tensors=[outside]))
    (tmp_path / "m.onnx").write_bytes(wrap([node], []).SerializeToString())
    with pytest.raises(GraphoptError, match="only initializers may"):
        load(tmp_path / "m.onnx")


def external_model(path: Path) -> None:
    """Two products, and an unused weight that comes first in the data file, so that what stays moves."""
    weights = {"unused": WEIGHT * 3, "v": WEIGHT, "w": WEIGHT * 2}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("MatMul", ["t", "v"], ["y"])]
    model = wrap(nodes, [numpy_helper.from_array(array, name) for name, array in weights.items()])
    for value in (model.graph.input[0], model.graph.output[0]):
        value.CopyFrom(helper.make_tensor_value_info(value.name, 1, [8, 64]))
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)


def weights_of(model: Any) -> dict[str, Any]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize("numerics", ["end", "off"])
def test_optimizing_a_file_in_place_moves_its_weights(tmp_path: Path, numerics: Any) -> None:
    path = tmp_path / "m.onnx"
    external_model(path)
    options = graphopt.Options(passes="dce", numerics=numerics, repro=None)
    result = graphopt.optimize(path, output=path, options=options)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    for model in (load(path), result.model):
        found = weights_of(model)
        assert sorted(found) == ["v", "w"]
        np.testing.assert_array_equal(found["v"], WEIGHT)
        np.testing.assert_array_equal(found["w"], WEIGHT * 2)


def test_the_weights_of_a_renamed_source_are_not_overwritten(tmp_path: Path) -> None:
    external_model(tmp_path / "old.onnx")
    (tmp_path / "old.onnx").rename(tmp_path / "new.onnx")
    before = (tmp_path / "old.onnx.data").read_bytes()
    options = graphopt.Options(passes="dce", numerics="off", repro=None)
    with pytest.raises(GraphoptError, match="holds the weights of"):
        graphopt.optimize(tmp_path / "new.onnx", output=tmp_path / "old.onnx", options=options)
    assert (tmp_path / "old.onnx.data").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["new.onnx", "old.onnx.data"]
    graphopt.optimize(tmp_path / "new.onnx", output=tmp_path / "other.onnx", options=options)
    np.testing.assert_array_equal(weights_of(load(tmp_path / "other.onnx"))["v"], WEIGHT)


def test_an_output_that_cannot_take_its_place_is_one_line(tmp_path: Path) -> None:
    external_model(tmp_path / "m.onnx")
    options = graphopt.Options(passes="dce", numerics="off", repro=None)
    for make, kind in ((os.mkdir, "folder"), (os.mkfifo, "pipe")):
        make(tmp_path / f"{kind}.onnx.data")
        with pytest.raises(GraphoptError, match=rf"{kind}\.onnx\.data is a {kind}; "):
            graphopt.optimize(tmp_path / "m.onnx", output=tmp_path / f"{kind}.onnx", options=options)
        with pytest.raises(GraphoptError, match=f"is a {kind}; "):
            graphopt.save(load(tmp_path / "m.onnx"), tmp_path / f"{kind}.onnx")
    assert sorted(os.listdir(tmp_path)) == ["folder.onnx.data", "m.onnx", "m.onnx.data", "pipe.onnx.data"]


def test_a_model_with_its_weights_apart_goes_through_no_link(tmp_path: Path) -> None:
    external_model(tmp_path / "m.onnx")
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.onnx"
    link.symlink_to("real/m.onnx")
    options = graphopt.Options(passes="dce", numerics="off", repro=None)
    for write in (
        lambda: graphopt.optimize(tmp_path / "m.onnx", output=link, options=options),
        lambda: graphopt.save(load(tmp_path / "m.onnx"), link),
    ):
        with pytest.raises(GraphoptError, match=r"is a link, and its weights m\.onnx\.data would lie beside"):
            write()
    assert not os.listdir(tmp_path / "real")


@pytest.mark.parametrize(
    "fault", [{"main": 5}, {"files": ["a"]}, {"files": None}, {"target": None}, {"settings": []}, {"main": ""}]
)
def test_a_malformed_manifest_is_one_line(tmp_path: Path, fault: dict[str, Any]) -> None:
    good = {"format": artifact.FORMAT, "main": "m.onnx", "files": {}, "target": "cpu", "settings": {}}
    (tmp_path / artifact.MANIFEST).write_text(json.dumps(good))
    assert artifact.load(tmp_path).main == tmp_path / "m.onnx"
    (tmp_path / artifact.MANIFEST).write_text(json.dumps(good | fault))
    with pytest.raises(GraphoptError, match=artifact.MANIFEST):
        artifact.load(tmp_path)


def test_data_files_of_one_name_are_all_hashed(tmp_path: Path) -> None:
    weights = []
    for folder, number in (("p", 1.0), ("q", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.bin").write_bytes(np.full(4, number, np.float32).tobytes())
        weights.append(tensor(data_type=1, dims=[4], data_location=1))
        weights[-1].name = folder
        weights[-1].external_data.add(key="location", value=f"{folder}/w.bin")
    nodes = [helper.make_node("Add", ["x", "p"], ["t"]), helper.make_node("Add", ["t", "q"], ["y"])]
    (tmp_path / "m.onnx").write_bytes(wrap(nodes, weights).SerializeToString())
    check = Check(load(tmp_path / "m.onnx"), tmp_path / "m.onnx", None, tmp_path)
    files = check.identity["files"]
    assert sorted(files) == ["m.onnx", "q/w.bin", "w.bin"]
    assert len(set(files.values())) == 3


def test_the_standard_domain_may_go_by_its_long_name(tmp_path: Path) -> None:
    model = wrap([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")], [])
    model.opset_import[0].domain = "ai.onnx"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    read = load(tmp_path / "m.onnx")
    assert read.opset_imports[""] == 21
    assert "ai.onnx" not in read.opset_imports
    assert next(iter(read.graph)).domain == ""


def test_no_empty_data_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(wrap([helper.make_node("Neg", ["x"], ["y"])], []).SerializeToString())
    (tmp_path / "out.onnx.data").write_bytes(b"of another model")
    assert graphopt.save(load(tmp_path / "m.onnx"), tmp_path / "out.onnx", "always") == ("out.onnx",)
