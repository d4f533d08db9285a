"""Untrusted model files: each kind of bad file gets one clear line; good oddities load."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import load, save
from graphopt.errors import GraphoptError
from graphopt.ir.sites import all_nodes


def model(nodes: list[Any] | None = None, **more: Any) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    nodes = nodes if nodes is not None else [helper.make_node("Relu", ["x"], ["y"], name="r")]
    graph = helper.make_graph(nodes, "g", [x], [y], **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(tmp_path: Path, data: bytes | onnx.ModelProto) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def refused(path: Path) -> str:
    with pytest.raises(GraphoptError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text and caught.value.exit_code == 2
    return text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is text\n", "it is a text file that begins with 'hello"),
        (b"\x08\x07\x12\xff\xff\xff", "or no protobuf"),
        (onnx.ModelProto().SerializeToString() or b"\x08\x08", "has no graph"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refused(written(tmp_path, data))


def test_a_truncated_model(tmp_path: Path) -> None:
    data = model(initializer=[numpy_helper.from_array(np.ones(999, np.float32), "w")]).SerializeToString()
    assert "truncated" in refused(written(tmp_path, data[: len(data) // 2]))


def test_missing_unreadable_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no such file" in refused(tmp_path / "absent.onnx")
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a pipe; give an .onnx file" in refused(tmp_path / "pipe")
    path = written(tmp_path, model())

    def denied(self: Path) -> bytes:  # a mode that forbids reading does not stop root
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert f"{path}: Permission denied" in refused(path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Relu", ["nope"], ["y"], name="r")], "uses 'nope', which is not made before it"),
        ([helper.make_node("Reluu", ["x"], ["y"], name="r")], "there is no op 'Reluu' in opset 17"),
        ([helper.make_node("Relu", ["x", "x"], ["y"], name="r")], "has 2 inputs, opset 14+ wants 1"),
        ([helper.make_node("Relu", ["x"], ["y"], name="r", alpha=1.0)], "has an attribute 'alpha'"),
        ([helper.make_node("Relu", ["x"], ["z"], name="r")], "'y'"),
        (
            [
                helper.make_node("Add", ["x", "b"], ["a"], name="p"),
                helper.make_node("Relu", ["a"], ["b"], name="q"),
                helper.make_node("Relu", ["b"], ["y"]),
            ],
            "cycle",
        ),
        (
            [helper.make_node("Relu", ["x"], ["y"], name="p"), helper.make_node("Neg", ["x"], ["y"], name="q")],
            "'y' is redeclared",
        ),
        (
            [helper.make_node("Thing", ["x"], ["y"], name="r", domain="my.ops")],
            "'my.ops', which the model does not import",
        ),
    ],
)
def test_broken_graphs_say_where(tmp_path: Path, nodes: list[Any], message: str) -> None:
    assert message in refused(written(tmp_path, model(nodes)))


def test_old_and_unknown_opsets(tmp_path: Path) -> None:
    proto = model()
    proto.opset_import[0].version = 6
    assert "opset 6; supported are 7 to" in refused(written(tmp_path, proto))
    proto.opset_import[0].version = 999
    assert "opset 999" in refused(written(tmp_path, proto))
    del proto.opset_import[:]
    assert "imports no opset" in refused(written(tmp_path, proto))


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"], name="late"), helper.make_node("Neg", ["x"], ["a"], name="early")]
    assert [node.name for node in load(written(tmp_path, model(nodes))).graph] == ["early", "late"]


def test_unnamed_and_doubly_named_nodes_get_names(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="n"),
        helper.make_node("Neg", ["a"], ["b"], name="n"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    names = [node.name for node in load(written(tmp_path, model(nodes))).graph]
    assert names[0] == "n" and len(set(names)) == 3 and all(names)


def test_deep_nesting_is_refused_not_crashed_on(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value_float=1.0)],
        "leaf",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [])],
    )
    data = inner.SerializeToString()
    for _ in range(1000):
        # One If around the last graph, written as bytes: the protobuf classes refuse to build so deep a message.
        branch = onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH).SerializeToString() + _field(
            6, data
        )
        node = onnx.NodeProto(op_type="If", input=["c"], output=["o"]).SerializeToString() + _field(5, branch)
        data = _field(1, node)
    whole = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 17)])
    whole.ClearField("graph")
    assert "nested too deep" in refused(written(tmp_path, whole.SerializeToString() + _field(7, data)))


def _field(number: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while True:
        length += bytes([size & 127 | (128 if size > 127 else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + length + data


def test_a_huge_attribute_loads(tmp_path: Path) -> None:
    proto = model([helper.make_node("Thing", ["x"], ["y"], name="r", domain="my.ops", blob=b"x" * (100 << 20))])
    proto.opset_import.append(helper.make_opsetid("my.ops", 1))
    assert len(load(written(tmp_path, proto)).graph) == 1


def test_raw_data_of_another_size_than_declared(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.dims[0] = 5
    assert "declares 20 bytes and holds 16" in refused(written(tmp_path, model(initializer=[tensor])))


def external(tmp_path: Path, location: str, length: int | None = None, offset: int | str = 0) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {
        "location": location,
        "offset": str(offset),
        **({"length": str(length)} if length is not None else {}),
    }.items():
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="a")]
    return written(tmp_path, model(nodes, initializer=[tensor]))


def test_external_data_is_mapped_and_survives_saving(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    loaded = load(external(tmp_path, "w.bin", 16))
    assert loaded.graph.initializers["w"].const_value.numpy().tolist() == [0, 1, 2, 3]
    assert save(loaded, tmp_path / "out.onnx", "never") == ("out.onnx",)
    assert load(tmp_path / "out.onnx").graph.initializers["w"].const_value.numpy().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("location", "length", "offset", "message"),
    [
        ("absent.bin", 16, 0, "is missing"),
        ("../w.bin", 16, 0, "outside the model's folder"),
        ("/etc/hostname", 16, 0, "absolute path"),
        ("link.bin", 16, 0, "link to a place outside"),
        ("short.bin", 16, 0, "ends at byte 16, the file 'short.bin' has 8"),
        ("w.bin", 16, 8, "ends at byte 24"),
        ("w.bin", 12, 0, "declares 12 bytes"),
        ("w.bin", 16, -4, "'w' has external data of offset '-4', which is no number of bytes"),
        ("w.bin", 16, "abc", "of offset 'abc'"),
        ("w.bin", 16, 10**20, "of offset '100000000000000000000'"),
        ("w.bin", -1, 0, "of length '-1'"),
        ("", 16, 0, "at '', which is no name of a file"),
        ("w\0.bin", 16, 0, r"at 'w\x00.bin', which is no name of a file"),
        ("sub", 16, 0, "is a folder; a file must lie beside the model"),
        ("pipe", 16, 0, "is a pipe; "),
        ("loop", 16, 0, "is a loop of links; "),
    ],
)
def test_bad_external_data(tmp_path: Path, location: str, length: int, offset: int | str, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (folder / "w.bin").write_bytes(bytes(16))
    (folder / "short.bin").write_bytes(bytes(8))
    os.symlink(tmp_path / "w.bin", folder / "link.bin")
    os.symlink("loop", folder / "loop")
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    assert message in refused(external(folder, location, length, offset))


def test_strings_are_no_external_data(tmp_path: Path) -> None:
    proto = onnx.load(external(tmp_path, "w.bin", 16, 0), load_external_data=False)
    proto.graph.initializer[0].data_type = TensorProto.STRING
    assert "'w' is of strings, which cannot be external data" in refused(written(tmp_path, proto))


def test_a_cache_of_links_loads(tmp_path: Path) -> None:
    """Package caches keep blobs apart and a folder of links to them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "b1").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    external(blobs, "w.bin", 16).rename(blobs / "b2")
    os.symlink("../../blobs/b1", snapshot / "w.bin")
    os.symlink("../../blobs/b2", snapshot / "m.onnx")
    assert load(snapshot / "m.onnx").graph.initializers["w"].const_value.numpy().tolist() == [0, 1, 2, 3]


def test_save_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, model()))
    with pytest.raises(GraphoptError, match="cannot write"):
        save(loaded, tmp_path / "absent" / "out.onnx")
    with pytest.raises(GraphoptError, match="cannot write"):
        save(loaded, tmp_path / "m.onnx" / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_tensors_of_a_file_are_written_back_as_they_were(tmp_path: Path) -> None:
    """Shapes and types are read once, for which capture wraps what it read: raw and typed data, in whatever place."""
    body = onnx.parser.parse_graph("then () => (float[2] t) { t = Constant <value = float[2] {5.0, 6.0}> () }")
    raw = numpy_helper.from_array(np.arange(3, dtype=np.int64), "raw")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [2, 1], [1.0, 2.0])
    typed.doc_string = "of old"
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body),
        helper.make_node("Constant", [], ["k"], name="k", value=typed),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "k")],
        [raw, helper.make_tensor("half", TensorProto.FLOAT16, [1], [0.5])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [node.attributes["value"].value for node in all_nodes(model) if node.op_type == "Constant"]
    assert all(tensor.shape is tensor.shape and tensor.dtype is tensor.dtype for tensor in tensors)
    assert [tuple(tensor.shape.numpy()) for tensor in tensors] == [(3,), (1,), (2, 1), (2,), (2,)]
    save(model, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx").graph
    assert list(again.initializer) == list(graph.initializer)
    assert again.node[1].attribute == graph.node[1].attribute
    assert again.node[0].attribute[0].g.node[0].attribute[0].t.float_data == [5.0, 6.0]
