"""`--json` of every verb has the shape that docs/json.md documents: one file per verb in tests/golden_json.

Measured numbers, versions and paths are masked by type; everything else is compared exactly. `--update-golden` writes
the files anew. Also here: artifacts as inputs of every verb, and wrong uses that concern several verbs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.cli import main
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

GOLDEN = Path(__file__).parents[1] / "golden_json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "json.md"
MODEL = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w, float[4] s, float[4] b, float[4] mean, float[4] var>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w)
  [bn] z = BatchNormalization(h, s, b, mean, var)
  [id] i = Identity(z)
  [relu] y = Relu(i) }"""
QUANTIZED = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N,3,8,8] x) => (float[N,4,8,8] y)
<float s = {0.05}, float ws = {0.01}, uint8 z = {128}, int8 wz = {0}, int8[4,3,3,3] w>
{ [xq] xq = QuantizeLinear(x, s, z) [xd] xd = DequantizeLinear(xq, s, z) [wd] wd = DequantizeLinear(w, ws, wz)
  [conv] h = Conv<pads=[1,1,1,1]>(xd, wd)
  [hq] hq = QuantizeLinear(h, s, z) [hd] hd = DequantizeLinear(hq, s, z)
  [tanh] y = Tanh(hd) }"""
ORIGINAL = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w) [tanh] y = Tanh(h) }"""
# Of a domain that nobody knows, and an op that CUDA has no kernel for; one dim stays open.
STRANGE = """<ir_version: 10, opset_import: ["" : 21, "my.ops" : 1]>
agraph (float[N,3,8,8] x, float[M] u) => (float[N,4,8,8] y, v, float[M] w) <float[4,3,3,3] k>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, k) [atan] y = Atan(h) [thing] v = my.ops.Thing(y) [neg] w = Neg(u) }"""
PASSES = ("-p", "eliminate-identity,fuse-conv-bn,dce")
WRONG = '''
from dataclasses import dataclass
from typing import ClassVar
from graphopt import NodePass

@dataclass(frozen=True)
class WrongSlope(NodePass):
    """Relu(x) -> LeakyRelu(x): wrong on purpose"""
    name: ClassVar[str] = "wrong-slope"
    ops: ClassVar[tuple[str, ...]] = ("Relu",)

    def rewrite_node(self, op, m, node):
        return op.LeakyRelu(node.inputs[0], alpha=0.1)
'''
METRIC = """
import numpy as np

def mean(runner):
    return [1.0, 2.0]
"""
GATES = ("--eval", "metric.py:mean", "--gate", "cosine>=0.9,latency<=10x", "--gate", "size<=2x,metric>=0.5x")
# verb -> arguments, exit code. The files and the artifact `build` are made by the fixture.
VERBS: dict[str, tuple[tuple[str, ...], int]] = {
    "compile": (("compile", "model.onnx", "-o", "again", *PASSES), 0),
    "compile --gate": (
        ("compile", "model.onnx", "-o", "gated", "--data", "x.npz", *GATES, *PASSES),
        0,
    ),
    "opt": (("opt", "model.onnx", *PASSES), 0),
    "run": (("run", "build", "--data", "x.npz"), 0),
    "bench": (("bench", "model.onnx", "build", "--duration", "0.02", "--data", "x.npz"), 0),
    "verify": (("verify", "model.onnx", "build"), 0),
    "inspect": (("inspect", "strange.onnx", "--target", "cuda", "--dim", "N=2"), 0),
    "explain": (("explain", "odd.onnx", "fuse-conv-bn", "-O", "0"), 0),
    "explain --realized": (
        ("explain", "quantized.onnx", "--realized", "--against", "original.onnx", "--data", "x.npz"),
        0,
    ),
    "bisect": (("bisect", "model.onnx", "--load", "wrong.py", "-p", "eliminate-identity,wrong-slope"), 1),
    "diff": (("diff", "model.onnx", "build"), 0),
    "passes": (("passes", "fold-constants"), 0),
    "targets": (("targets",), 0),
    "models-list": (("models", "list"), 0),
    "models-fetch": (("models", "fetch", "light-squeezenet"), 0),
    "models-path": (("models", "path", "light-squeezenet"), 0),
    "doctor": (("doctor",), 0),
}
# Fields that depend on the machine or the clock, besides all floats.
MASKED = {
    "cpus",
    "rounds",
    "runs",
    "peak_memory",
    "expected",
    "got",
    "index",
    "available",
    "detail",
    "problems",
    "isa",
    "gpus",
}
# Lists and objects that grow with the project: only their first member is kept.
SAMPLED = {"models", "options", "targets", "cases"}
# Objects whose keys are data: passes, ops, domains, precisions.
NAMED_BY_DATA = {"effects", "macs", "ops", "opset", "opsets", "optimized_by", "shares", "versions"}
# Reasons with measured numbers or installed versions.
UNSTABLE = re.compile(r"\d\.\d|installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models (the Conv of odd.onnx has a second reader), x.npz, wrong.py, metric.py and the artifact `build`."""
    folder = tmp_path_factory.mktemp("verbs")
    write(from_text(MODEL), folder / "model.onnx")
    odd = MODEL.replace("[relu] y = Relu(i)", "[sum] t = Add(i, h) [relu] y = Relu(t)")
    write(from_text(odd), folder / "odd.onnx")
    write(from_text(QUANTIZED), folder / "quantized.onnx")
    write(from_text(ORIGINAL), folder / "original.onnx")
    write(from_text(STRANGE), folder / "strange.onnx")
    (folder / "wrong.py").write_text(WRONG)
    (folder / "metric.py").write_text(METRIC)
    np.savez(folder / "x.npz", x=np.linspace(-1, 1, 2 * 3 * 64, dtype=np.float32).reshape(2, 3, 8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as done:
            main(["compile", "model.onnx", "-o", "build", "-q", *PASSES])
    assert not done.value.code
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(args))
    return int(done.value.code or 0)


def masked(value: Any, key: str = "") -> Any:
    """Types in place of what is not the same everywhere."""
    if isinstance(value, dict):
        items = sorted(value.items())
        if key == "machine":
            return {name: kind(item) for name, item in items}
        if key == "versions":
            return {"<package>": "<str>"}
        if key in SAMPLED:
            return {"<name>": masked(items[0][1])}
        return {name: masked(item, name) for name, item in items}
    if isinstance(value, list) and key not in MASKED:
        return [masked(value[0]), "..."] if key in SAMPLED and value else [masked(item) for item in value]
    unstable = isinstance(value, str) and (
        (key == "reason" and UNSTABLE.search(value)) or (key == "path" and value.startswith("/"))
    )
    return kind(value) if key in MASKED or isinstance(value, float) or unstable else value


def golden(verb: str) -> Path:
    return GOLDEN / f"{verb.replace(' --', '-')}.json"


def kind(value: Any) -> str:
    return f"<{type(value).__name__}>"


@pytest.mark.parametrize("verb", VERBS)
def test_json_has_the_documented_shape(
    verb: str, inside: Path, capsys: pytest.CaptureFixture[str], update_golden: bool
) -> None:
    args, code = VERBS[verb]
    assert call(*args, "--json") == code
    out = masked(json.loads(capsys.readouterr().out))
    file = golden(verb)
    text = json.dumps(out, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if update_golden:
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert out == json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_stands_in_the_document(verb: str) -> None:
    """docs/json.md has a section per verb; each key of the golden file is named in it or in the shared sections."""
    sections = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    titled = {section.split("\n", 1)[0].strip("` "): section for section in sections}
    title = verb if " " in verb else verb.replace("-", " ")
    assert title in titled
    shared = "".join(text for name, text in titled.items() if name.startswith("Shared"))
    known = set(re.findall(r"`([\w.\[\]<>]+)`", titled[title] + shared))
    known = {part for name in known for part in re.split(r"[.\[\]]+", name)}
    missing = keys(json.loads(golden(verb).read_text(encoding="utf-8"))) - known
    assert not missing


def keys(value: Any) -> set[str]:
    """Field names; names that are data (passes, ops, domains) are not fields."""
    if isinstance(value, list):
        return set().union(*map(keys, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    out = set()
    for name, item in value.items():
        is_map = isinstance(item, dict) and name in NAMED_BY_DATA
        out |= {name} | (set() if is_map else keys(item))
    return out - {"<name>", "<package>"}


@pytest.mark.parametrize(
    "args",
    [
        ("compile", "build", "-o", "again2"),
        ("opt", "build", "-p", "dce"),
        ("opt", "-m", "build", "-p", "dce"),
        ("run", "build"),
        ("run", "build", "--target", "cpu{threads=0}"),
        ("bench", "build", "build", "--duration", "0.01"),
        ("verify", "build"),
        ("inspect", "build"),
        ("explain", "build", "fuse-conv-bn"),
        ("explain", "-m", "build", "fuse-conv-bn"),
        ("bisect", "build", "-p", "dce"),
        ("diff", "build", "model.onnx"),
    ],
    ids=" ".join,
)
def test_an_artifact_is_a_model_for_every_verb(inside: Path, args: tuple[str, ...]) -> None:
    assert call(*args) == 0


def test_bisect_limit_0_is_the_input_model(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("opt", "model.onnx", "-o", "none.onnx", "--bisect-limit", "0", "-q") == 0
    assert call("verify", "model.onnx", "none.onnx", "--tolerance", "exact") == 0
    assert call("diff", "model.onnx", "none.onnx") == 0
    assert "equal: same structure" in capsys.readouterr().out


def test_data_may_differ_in_dims_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = from_text('<ir_version: 10, opset_import: ["" : 21]> g (float[H,W] x) => (float[H,W] y) { y = Relu(x) }')
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = type(value.shape)(["?", "?"])
    write(model, tmp_path / "model.onnx")
    np.save("x.npy", np.ones((3, 5), np.float32))
    assert call("run", "model.onnx", "--data", "x.npy") == 0


def test_outputs_keep_any_name_and_json_stays_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] file) { file = Log(x) }'
    write(from_text(text), tmp_path / "model.onnx")
    np.save("x.npy", np.array([-1, 0], np.float32))
    assert call("run", "model.onnx", "--data", "x.npy", "-o", "y.npz", "--json") == 0
    out = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (out["outputs"][0]["max"], out["outputs"][0]["min"]) == ("nan", "nan")
    with np.load("y.npz") as saved:
        assert np.array_equal(saved["file"], np.array([np.nan, -np.inf], np.float32), equal_nan=True)


def test_words_in_input_shapes_keep_or_name_a_dim(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("opt", "model.onnx", "--input_shapes", "x:N,3,8,8", "-q", "-o", "same.onnx") == 0
    assert call("opt", "model.onnx", "--input-shapes", "x:M,3,8,8", "-q") == 2
    assert "dimension 0 is called 'N', not 'M'" in capsys.readouterr().err
    assert call("opt", "model.onnx", "--input-shapes", "x:N,C,8,8", "-q") == 2
    assert "dimension 1 is fixed at 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["compile", "model.onnx", "model.onnx"],
            "extra argument (model.onnx); see: graphopt compile --help",
        ),
        (["compile", "model.onnx", "-m", "model.onnx"], "are two"),
        (["compile"], "give a model"),
        (["compile", "model.onnx", "-O4"], "4 is not in the range"),
        (["explain", "model.onnx"], "wants a model and one pass"),
        (["opt", "model.onnx", "--print-ir-after", "dec"], "did you mean 'dce'?"),
        (["opt", "model.onnx", "-p", "dce", "--print-ir-after", "cse"], "the pipeline has no such pass"),
        (["opt", "folder"], "is not an artifact: it has no manifest.json"),
        (["run", "build", "--target", "cuda:0"], "was compiled for 'cpu'"),
        (["compile", "model.onnx", "--target", "cpu:0"], "no option 'device_id'"),
        (["bench", "model.onnx", "other.onnx"], "bench compares models with the same inputs"),
        (["bench"], "missing argument 'MODELS...'"),
        (["doctor", "extra"], "unexpected extra argument (extra)"),
    ],
    ids=str,
)
def test_wrong_use_is_one_line(inside: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    (inside / "folder").mkdir(exist_ok=True)
    other = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] z) => (float[2] y) { y = Relu(z) }'
    write(from_text(other), inside / "other.onnx")
    assert call(*args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "the inputs are made up" not in line]
    assert len(lines) == 1 and lines[0].startswith("graphopt: ") and message in lines[0]


def test_changed_settings_keep_those_of_the_target(inside: Path) -> None:
    from graphopt.running import runnable

    chosen = runnable(inside / "model.onnx", "cpu{denormals_as_zero=true}")
    with chosen.open(threads=1) as runner:
        assert runner.settings.denormals_as_zero and runner.settings.threads == 1
    assert runnable(inside / "model.onnx", "cuda:1").settings["provider_options"]["device_id"] == "1"
