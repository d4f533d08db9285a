"""Made feeds are legal for the graph, whatever an input is used for; user data is checked before it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper, parser

from graphopt.errors import GraphoptError
from graphopt.feeds import default_bindings, find_bindings, load_feeds, make_feeds, variant_count
from graphopt.target import TensorSpec
from graphopt.targets.onnxruntime.runner import open_runner

HEAD = '<ir_version: 10, opset_import: ["":21]> '


def model(text: str) -> onnx_ir.Model:
    return onnx_ir.serde.deserialize_model(parser.parse_model(HEAD + text))


def runs(text: str, feeds: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    onnx.save(parser.parse_model(HEAD + text), folder / "m.onnx")
    with open_runner(folder / "m.onnx", isolate=False) as runner:
        return runner.run(feeds)


USES = {
    "index through cast, unsqueeze and an offset": """g(int32[N,S] ids) => (float[A,B,C] y)
        <float[5,2] table> { two = Constant<value_int=2>() wide = Cast<to=7>(ids) moved = Add(wide, two)
          y = Gather(table, moved) }""",
    "index along an axis": """g(int64[N] i) => (float[A,B] y) <float[4,3] table> { y = Gather<axis=1>(table, i) }""",
    "index in a branch": """g(bool c, int64[N] i) => (float[A,B] y) <float[2,3] table> {
        y = If(c) <then_branch = t() => (float[A,B] a) { a = Gather(table, i) },
                   else_branch = e() => (float[A,B] b) { b = Gather(table, i) }> }""",
    "one-hot": """g(int64[N] i) => (float[N,D] y) <int64 depth = {4}, float[2] values = {0, 1}>
        { y = OneHot(i, depth, values) }""",
    "reshape target": "g(float[N,4] x, int64[3] target) => (float[a,b,c] y) { y = Reshape(x, target) }",
    "expand target": "g(float[N,4] x, int64[2] target) => (float[a,b] y) { y = Expand(x, target) }",
    "repeats": "g(float[N,4] x, int64[2] r) => (float[a,b] y) { y = Tile(x, r) }",
    "slice bounds": """g(float[N,4] x, int64[2] s, int64[2] e, int64[2] a, int64[2] st) => (float[p,q] y)
        { y = Slice(x, s, e, a, st) }""",
    "top k": "g(float[N,4] x, int64[1] k) => (float[N,q] y, int64[N,q] i) { y, i = TopK(x, k) }",
    "range and fill": """g(int64 n, int64[2] s) => (int64[N] y, float[a,b] z) <int64 zero = {0}, int64 one = {1}>
        { y = Range(zero, n, one) z = ConstantOfShape(s) }""",
    "reduce axes": "g(float[N,4,2] x, int64[2] axes) => (float[a,b,c] y) { y = ReduceSum(x, axes) }",
    "pads": "g(float[N,4] x, int64[4] p) => (float[a,b] y) { y = Pad(x, p) }",
    "divisor": "g(int64[N] x, int64[N] d) => (int64[N] y) { y = Div(x, d) }",
    "trip count and condition": """g(int64 n, bool c, float[2] x) => (float[2] y) {
        y = Loop(n, c, x) <body = b(int64 i, bool ci, float[2] a) => (bool co, float[2] b)
                             { co = Identity(ci) b = Add(a, a) }> }""",
    "text": "g(string[N] s) => (string[N] t) { t = Identity(s) }",
    "sequence": "g(seq(float[2]) s, int64 i) => (float[2] y) { y = SequenceAt(s, i) }",
    "optional": "g(optional(float[2]) o) => (bool y) { y = OptionalHasElement(o) }",
    "small floats": """g(bfloat16[N] a, float16[N] b) => (float[N] y)
        { c = Cast<to=1>(a) d = Cast<to=1>(b) y = Add(c, d) }""",
    "square root": "g(float[N] x) => (float[N] y) { y = Sqrt(x) }",
}


def with_tables(text: str) -> str:
    """The parser wants values; fill the tables that the texts only declare."""
    for shape, count in (("[5,2]", 10), ("[4,3]", 12), ("[2,3]", 6)):
        text = text.replace(f"float{shape} table", f"float{shape} table = {{{', '.join(['1'] * count)}}}")
    return text


@pytest.mark.parametrize("name", USES)
def test_made_feeds_run(name: str, tmp_path: Path) -> None:
    text = with_tables(USES[name])
    graph = model(text)
    for bindings in default_bindings(graph):
        for variant in range(variant_count(graph)):
            for seed in (0, 1, 2):
                out = runs(text, make_feeds(graph, seed, bindings, variant), tmp_path)
                floats = [value for value in out.values() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
                assert all(np.isfinite(value).all() for value in floats)


def test_index_values_reach_the_whole_table() -> None:
    graph = model(with_tables("g(int64[N] i) => (float[A,B] y) <float[4,3] table> { y = Gather(table, i) }"))
    seen = {int(item) for seed in range(40) for item in make_feeds(graph, seed)["i"]}
    assert seen == {0, 1, 2, 3}


def test_masks_have_full_partial_and_empty_rows() -> None:
    graph = model(
        """g(int64[batch, seq] keep) => (float[batch, seq] y) <float one = {1}, float low = {-10000}>
        { f = Cast<to=1>(keep) inverse = Sub(one, f) y = Mul(inverse, low) }"""
    )
    assert variant_count(graph) == 3
    full, partial, empty = (make_feeds(graph, 0, {"batch": 3, "seq": 4}, variant)["keep"] for variant in range(3))
    assert full.min() == 1
    assert set(np.unique(partial)) == {0, 1} and partial.max(axis=1).min() == 1
    assert not empty[0].any() and empty[1:].any()
    assert len({tuple(row) for row in partial}) > 1


def test_bindings_are_unequal_and_respect_sums() -> None:
    graph = model(
        """g(float[batch, seq] x, float[batch, past] p, float[batch, total_sequence] t) => (float[batch, seq] y)
        { y = Identity(x) }""".replace("[batch, seq]", "[batch, sequence]")
    )
    first, second = default_bindings(graph)
    for binding in (first, second):
        assert binding["total_sequence"] == binding["past"] + binding["sequence"]
        assert min(binding.values()) >= 2 and len(set(binding.values())) == 4
    assert all(first[name] != second[name] for name in first)
    assert default_bindings(model("g(float[2] x) => (float[2] y) { y = Relu(x) }")) == [{}]


def test_expressions_follow_their_symbols() -> None:
    graph = model("g(float[past] p, float[seq] x, float[sum] m) => (float[seq] y) { y = Relu(x) }")
    graph.graph.inputs[2].shape = onnx_ir.Shape(["past + seq"])
    feeds = make_feeds(graph, 0, {"past": 4, "seq": 3})
    assert feeds["m"].shape == (7,)


def test_state_of_a_recurrent_net_shares_the_batch() -> None:
    text = "g(float[T,N,2] x, float[1,?,3] h) => (float[a,b,c,d] y) { y, z = GRU<hidden_size=3>(x, w, r, , , h) }"
    graph = model(text)
    sizes = default_bindings(graph)[0]
    assert "?batch" in sizes


def test_find_bindings_varies_what_it_may() -> None:
    graph = model(
        "g(float[batch,3,h,w] x) => (float[a,b,c,d] y) <float[1,3,3,3] k> { y = Conv(x, k) }".replace(
            "<float[1,3,3,3] k>", f"<float[1,3,3,3] k = {{{', '.join(['1'] * 27)}}}>"
        )
    )
    asked: list[dict[str, int]] = []

    def accepts(binding: dict[str, int]) -> bool:
        asked.append(binding)
        return binding["h"] == 64

    first, second = find_bindings(graph, accepts)
    assert first["h"] == second["h"] == 64
    assert first["batch"] != second["batch"] and first["w"] != second["w"]
    assert len(asked) < 10
    assert find_bindings(graph, lambda binding: False) == []


def test_feeds_depend_on_seed_and_name_only() -> None:
    one = model("g(float[N] x, float[N] y) => (float[N] z) { z = Add(x, y) }")
    two = model("g(float[N] y, float[N] x) => (float[N] z) { w = Add(x, y) z = Relu(w) }")
    a, b = make_feeds(one, 7), make_feeds(two, 7)
    np.testing.assert_array_equal(a["x"], b["x"])
    assert not np.array_equal(a["x"], a["y"])
    assert not np.array_equal(a["x"], make_feeds(one, 8)["x"])


def test_initializers_that_are_inputs_are_not_fed() -> None:
    graph = model("g(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    graph.graph.inputs.append(graph.graph.initializers["w"])
    assert list(make_feeds(graph)) == ["x"]


def test_refusals() -> None:
    graph = model("g(float[batch] x) => (float[batch] y) { y = Relu(x) }")
    with pytest.raises(GraphoptError, match="no input has a dim 'bach'; did you mean 'batch'"):
        make_feeds(graph, bindings={"bach": 2})
    graph.graph.inputs[0].shape = None
    with pytest.raises(GraphoptError, match="'x' has no declared rank"):
        make_feeds(graph)


# ---- user data -----------------------------------------------------------------------------------------------------

INPUTS = (TensorSpec("ids", "tensor(int64)", ("batch", 4)), TensorSpec("mask", "tensor(float)", ("batch", None)))
GOOD = {"ids": np.zeros((2, 4), np.int64), "mask": np.ones((2, 9), np.float32)}


def test_npz_folder_and_protos_agree(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **GOOD)
    (tmp_path / "npy").mkdir()
    (tmp_path / "pb" / "test_data_set_0").mkdir(parents=True)
    for index, (name, value) in enumerate(GOOD.items()):
        np.save(tmp_path / "npy" / f"{name}.npy", value)
        proto = numpy_helper.from_array(value, name if index else "")  # a name in the file wins, else the position
        (tmp_path / "pb" / "test_data_set_0" / f"input_{index}.pb").write_bytes(proto.SerializeToString())
    for where in ("d.npz", "npy", "pb", "pb/test_data_set_0"):
        feeds = load_feeds(tmp_path / where, INPUTS)
        assert set(feeds) == {"ids", "mask"}
        np.testing.assert_array_equal(feeds["mask"], GOOD["mask"])
        assert feeds["ids"].dtype == np.int64


def test_single_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GOOD["mask"])
    assert list(load_feeds(tmp_path / "x.npy", INPUTS[1:])) == ["mask"]
    with pytest.raises(GraphoptError, match="holds one array and the model has 2 inputs"):
        load_feeds(tmp_path / "x.npy", INPUTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"idx": GOOD["ids"]}, "no input 'idx'; did you mean 'ids'"),
        ({"mask": GOOD["mask"].astype(np.float64)}, "'mask' is float64, the model wants float32"),
        ({"ids": np.zeros((2, 5), np.int64)}, r"shape \[2, 5\], the model wants \[batch, 4\]"),
        ({"ids": np.zeros(2, np.int64)}, r"shape \[2\], the model wants"),
        ({"ids": np.zeros((3, 4), np.int64)}, "dim 'batch' is 2 in 'mask' and 3 in 'ids'"),
        ({"ids": np.array([["a"] * 4] * 2)}, "the model wants int64"),
    ],
)
def test_data_that_does_not_fit(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "d.npz", **{**GOOD, **change})
    with pytest.raises(GraphoptError, match=message):
        load_feeds(tmp_path / "d.npz", INPUTS)


def test_missing_input_and_broken_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ids=GOOD["ids"])
    with pytest.raises(GraphoptError, match="no data for input 'mask'; it has ids"):
        load_feeds(tmp_path / "d.npz", INPUTS)
    np.savez(tmp_path / "pickled.npz", ids=np.array([{}], object), mask=GOOD["mask"])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", GOOD["mask"])
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("pickled.npz", "text.npz", "empty.npz", "array.npz"):
        with pytest.raises(GraphoptError, match=r"cannot be read as an \.npz archive"):
            load_feeds(tmp_path / name, INPUTS)
    (tmp_path / "pb").mkdir()
    with pytest.raises(GraphoptError, match=r"no [.]npy files and no input_<i>[.]pb"):
        load_feeds(tmp_path / "pb", INPUTS)
    (tmp_path / "pb" / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(GraphoptError, match="cannot be read as a TensorProto"):
        load_feeds(tmp_path / "pb", INPUTS)
    with pytest.raises(GraphoptError, match="there is no data file"):
        load_feeds(tmp_path / "absent.npz", INPUTS)
    with pytest.raises(GraphoptError, match=r"is not [.]npz, [.]npy or a folder"):
        load_feeds(Path(__file__), INPUTS)


def npy(header: str) -> bytes:
    data = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data


@pytest.mark.parametrize(
    "fault", ["deflate", "checksum", "method", "encrypted", "text", "huge", "cut", "descr", "word"]
)
def test_data_files_of_any_bytes_are_one_line(tmp_path: Path, fault: str) -> None:
    """What numpy, zipfile and zlib raise for them has a dozen classes."""
    np.savez_compressed(tmp_path / "z.npz", ids=np.arange(999))
    np.savez(tmp_path / "u.npz", ids=np.arange(999))
    packed, plain = (bytearray((tmp_path / name).read_bytes()) for name in ("z.npz", "u.npz"))
    entry = plain.index(b"PK\x01\x02")
    packed[120:180] = b"\xff" * 60
    changed = {name: bytearray(plain) for name in ("checksum", "method", "encrypted")}
    changed["checksum"][300] ^= 0xFF
    changed["method"][8] = changed["method"][entry + 10] = 99
    changed["encrypted"][6] |= 1
    changed["encrypted"][entry + 8] |= 1
    files = {
        **{name: (".npz", bytes(data)) for name, data in changed.items()},
        "deflate": (".npz", bytes(packed)),
        "text": (".npz", b"hello, this is text"),
        "huge": (".npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000,), }")),
        "cut": (".npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (")),
        "descr": (".npy", npy("{'descr': 'zzz', 'fortran_order': False, 'shape': (1,), }")),
        "word": (".npy", b"hello, this is text"),
    }
    suffix, data = files[fault]
    path = tmp_path / f"d{suffix}"
    path.write_bytes(data)
    with pytest.raises(GraphoptError, match=rf"cannot be read as an \{suffix} ar\w+: ") as caught:
        load_feeds(path, INPUTS[:1])
    assert "\n" not in str(caught.value) and "allow_pickle" not in str(caught.value)


def test_inputs_beyond_the_memory_are_refused() -> None:
    big = model("g(float[N] a) => (float[N] y) { y = Identity(a) }")
    with pytest.raises(
        GraphoptError, match=r"input 'a' of shape \[4611686018427387904\]: making it takes .* smaller sizes"
    ):
        make_feeds(big, bindings={"N": 1 << 62})


def test_bfloat16_is_made() -> None:
    feeds = make_feeds(model("g(bfloat16[N] a) => (bfloat16[N] y) { y = Identity(a) }"))
    assert feeds["a"].dtype == ml_dtypes.bfloat16


def test_values_of_a_one_hot_encoding_written_out_reach_every_row() -> None:
    written_out = model(
        """g(int32[N,64] x) => (float[N,64,5] y) <int32[5] classes = {0, 1, 2, 3, 4}, int64[1] last = {2}>
        { u = Unsqueeze(x, last) e = Equal(u, classes) y = Cast<to=1>(e) }"""
    )
    assert set(np.unique(make_feeds(written_out, bindings={"N": 4})["x"])) == {0, 1, 2, 3, 4}
