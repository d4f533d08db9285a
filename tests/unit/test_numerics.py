"""The verdict: what passes, what fails, what cannot be checked; wrong rewrites that only some feeds show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import parser

from graphopt.errors import GraphoptError
from graphopt.numerics import TOLERANCES, Case, NumericsReport, RunSetting, ToleranceClass, compare, judge
from graphopt.randomness import random_outputs
from graphopt.reference import Reference
from graphopt.target import Runner
from graphopt.targets.onnxruntime.runner import runner_factory

HEAD = '<ir_version: 10, opset_import: ["":21]> '
FACTORY = runner_factory(isolate=False)


def write(path: Path, text: str) -> onnx_ir.Model:
    proto = parser.parse_model(HEAD + text)
    onnx.save(proto, path)
    return onnx_ir.serde.deserialize_model(proto)


def verdict(
    folder: Path, reference: str, candidate: str, tolerance: ToleranceClass = "exact", *, specials: bool = True
) -> NumericsReport:
    model = write(folder / "a.onnx", reference)
    write(folder / "b.onnx", candidate)
    return compare(folder / "a.onnx", folder / "b.onnx", model, FACTORY, tolerance, specials=specials)


def body(expression: str, shape: str = "N,8") -> str:
    return f"g(float[{shape}] x) => (float[{shape}] y) <float two = {{2}}, float half = {{0.5}}> {{ {expression} }}"


def test_equal_models_pass_in_both_classes(tmp_path: Path) -> None:
    for tolerance in ("exact", "reassociates"):
        report = verdict(tmp_path, body("y = Tanh(x)"), body("z = Identity(x) y = Tanh(z)"), tolerance)
        assert report.status == "passed" and len(report.cases) == 4
        assert report.outputs[0].max_abs == 0


def test_one_ulp_fails_exact_and_passes_reassociates(tmp_path: Path) -> None:
    reference = body("a = Mul(x, x) b = Add(a, x) y = Add(b, a)")
    candidate = body("a = Mul(x, x) b = Add(a, a) y = Add(b, x)")
    report = verdict(tmp_path, reference, candidate)
    assert report.status == "failed"
    assert 0 < report.outputs[0].max_rel < 1e-6
    assert "output 'y' differs by" in report.reason and "seed 0" in report.reason
    assert verdict(tmp_path, reference, candidate, "reassociates").status == "passed"


def test_small_real_error_fails_reassociates(tmp_path: Path) -> None:
    candidate = body("a = Tanh(x) y = Mul(a, scale)").replace("half = {0.5}", "half = {0.5}, float scale = {1.0001}")
    report = verdict(tmp_path, body("y = Tanh(x)"), candidate, "reassociates")
    assert report.status == "failed"
    assert report.outputs[0].max_abs == pytest.approx(1e-4, rel=0.2)
    assert report.outputs[0].limit < 1e-4
    assert str(report).startswith("numerics failed(output 'y' differs by")


def test_fault_that_only_a_second_shape_shows(tmp_path: Path) -> None:
    reference = "g(float[N,6] x) => (float[a,b] y) <int64[2] t = {-1, 6}> { z = Relu(x) y = Reshape(z, t) }"
    candidate = "g(float[N,6] x) => (float[a,b] y) <int64[2] t = {2, 6}> { z = Relu(x) y = Reshape(z, t) }"
    report = verdict(tmp_path, reference, candidate)
    assert report.status == "failed"
    assert report.reason.startswith("the result does not run on seed 0, N=3")


@pytest.mark.parametrize("tolerance", ["exact", "reassociates"])
def test_fault_that_only_nan_shows(tmp_path: Path, tolerance: ToleranceClass) -> None:
    reference = body("zero = Sub(x, x) y = Add(zero, two)")
    candidate = body("like = Shape(x) y = Expand(two, like)")
    assert verdict(tmp_path, reference, candidate, tolerance, specials=False).status == "passed"
    report = verdict(tmp_path, reference, candidate, tolerance)
    assert report.status == "failed"
    assert "in the inputs" in report.reason and "got 2.0" in report.reason


def test_nan_against_inf_is_reassociation_but_not_exact(tmp_path: Path) -> None:
    # inf * 2 - inf * 2 against (inf - inf) * 2 are NaN both; inf + (2 - inf) is NaN where (inf + 2) - inf is NaN too,
    # so the values are given by hand here.
    expected, got = np.array([np.inf, 1, np.nan], np.float32), np.array([np.nan, 1, np.inf], np.float32)
    assert judge("y", expected, got, "reassociates", 1e-6).within
    assert not judge("y", expected, got, "exact").within
    finite = judge("y", expected, np.array([3, 1, np.nan], np.float32), "reassociates", 1e-6)
    assert not finite.within and finite.index == (0,)
    assert json.loads(json.dumps(finite.to_json()))["max_abs"] == "inf"


def test_where_the_reference_disagrees_with_itself_is_excused() -> None:
    expected, got = np.array([np.nan, 1], np.float32), np.array([0, 1], np.float32)
    assert judge("y", expected, got, "reassociates", 1e-6, excused=np.array([True, False])).within
    assert not judge("y", expected, got, "reassociates", 1e-6, excused=np.array([False, True])).within


def test_judge_by_kind() -> None:
    assert judge("y", np.array([0.0]), np.array([-0.0]), "exact").within
    assert not judge("y", np.zeros(2, np.float32), np.zeros(2, np.float64), "reassociates", 1.0).within
    assert not judge("y", np.zeros(2), np.zeros(3), "reassociates", 1.0).within
    assert not judge("y", np.array(["a"], object), np.array(["b"], object), "reassociates", 1.0).within
    long = judge("y", np.array(["a" * 10**6], object), np.array(["b"], object), "exact")
    assert not long.within and long.got == "b" and len(long.expected) == 80
    big = np.array([2**62], np.int64)
    assert not judge("y", big, big + 1, "exact").within  # doubles cannot tell these two apart
    assert judge("y", np.array([3], np.uint8), np.array([4], np.uint8), "reassociates").within
    assert not judge("y", np.array([3], np.uint8), np.array([5], np.uint8), "reassociates").within
    assert not judge("y", np.array([3], np.int32), np.array([4], np.int32), "reassociates").within
    assert not judge("y", None, np.zeros(1), "reassociates", 1.0).within
    assert judge("y", None, None, "exact").within
    assert not judge("y", [np.zeros(1)], [np.zeros(1), np.zeros(1)], "reassociates", 1.0).within
    assert not judge("y", [np.zeros(1), np.ones(1)], [np.zeros(1), np.zeros(1)], "exact").within
    assert judge("y", np.zeros((0, 2)), np.zeros((0, 2)), "exact").within


def test_noise_floor_is_at_least_16_eps_and_sees_amplified_input_noise(tmp_path: Path) -> None:
    model = write(tmp_path / "a.onnx", body("y = Identity(x)"))
    with Reference.open(tmp_path / "a.onnx", model, FACTORY, specials=False) as reference:
        largest = float(np.abs(reference.cases[0].feeds["x"]).max())
        assert reference.floor("y", 0) == pytest.approx(16 * 2**-23 * largest, rel=1e-3)
    text = body("a = Mul(x, big) y = Sin(a)").replace("half = {0.5}", "half = {0.5}, float big = {1000000}")
    model = write(tmp_path / "b.onnx", text)
    with Reference.open(tmp_path / "b.onnx", model, FACTORY, specials=False) as reference:
        report = reference.judge(tmp_path / "b.onnx", "reassociates")
        assert reference.floor("y", 0) > 0.01
    assert report.status == "not-checked" and "--data" in report.reason
    assert any("ill-conditioned feeds" in note and "--data" in note for note in report.notes)


def test_pass_that_means_nothing_is_not_checked(tmp_path: Path) -> None:
    # Amplified input noise fills the whole range of the sine: no result could be told from a right one.
    text = body("a = Mul(x, big) y = Sin(a)").replace("half = {0.5}", "half = {0.5}, float big = {100000000}")
    report = verdict(tmp_path, text, text.replace("Sin", "Cos"), "reassociates", specials=False)
    assert report.status == "not-checked" and "ill-conditioned on all feeds" in report.reason
    assert verdict(tmp_path, text, text.replace("Sin", "Cos"), "exact").status == "failed"


def test_random_outputs_are_not_compared(tmp_path: Path) -> None:
    text = """g(float[N,8] x) => (float[N,8] y, float[N,8] z) <int64 unused = {0}> {
        noise = RandomNormalLike(x) a = Add(x, noise) y = Relu(a) z = Neg(x) }"""
    model = write(tmp_path / "m.onnx", text)
    assert random_outputs(model) == {"y"}
    report = verdict(tmp_path, text, text)
    assert report.status == "passed" and [error.name for error in report.outputs] == ["z"]
    assert any("depend on random ops: y" in note for note in report.notes)
    only = "g(float[N,8] x) => (float[N,8] y) { y = RandomNormalLike(x) }"
    report = verdict(tmp_path, only, only)
    assert (report.status, report.reason) == ("not-checked", "every output depends on a random op")


def test_random_ops_are_seen_at_any_depth(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[4] x, bool c) => (float[4] y, float[4] z) {
        y = If (c) <then_branch = t () => (float[4] a) { a = own.outer(x) },
            else_branch = e () => (float[4] b) { b = Neg(x) }>
        z = own.plain(x) }
    <domain: "own", opset_import: ["" : 21, "own" : 1]> outer (x) => (y) { y = own.inner(x) }
    <domain: "own", opset_import: ["" : 21]> inner (x) => (y) { y = RandomNormalLike(x) }
    <domain: "own", opset_import: ["" : 21]> plain (x) => (y) { y = Neg(x) }"""
    assert random_outputs(onnx_ir.from_onnx_text(text)) == {"y"}


def test_random_ops_are_seen_in_lists_of_graphs() -> None:
    model = onnx_ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[4] x) => (float[4] y) { y = own.any (x) }""")
    bodies = [
        onnx_ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> b () => (float[4] z) {{ z = {op} }}').graph
        for op in ("Constant <value = float[4] {1,2,3,4}> ()", "RandomNormal <shape = [4]> ()")
    ]
    node = model.graph[0]
    node.attributes.add(onnx_ir.AttrGraphs("bodies", bodies[:1]))
    assert random_outputs(model) == frozenset()
    node.attributes.add(onnx_ir.AttrGraphs("bodies", bodies))
    assert random_outputs(model) == {"y"}


def test_lossy_is_measured_and_not_judged(tmp_path: Path) -> None:
    report = verdict(tmp_path, body("y = Tanh(x)"), body("y = Mul(x, half)"), "lossy")
    assert report.status == "not-checked" and "measured" in report.reason
    assert report.outputs[0].max_rel > 0.1


def test_reference_that_does_not_run_is_not_checked(tmp_path: Path) -> None:
    text = "g(float[N,8] x) => (float[a,b] y) <int64[2] t = {7, 11}> { y = Reshape(x, t) }"
    report = verdict(tmp_path, text, text)
    assert report.status == "not-checked"
    assert "does not run on made feeds" in report.reason and "--data" in report.reason


def test_users_data_is_used_as_it_is(tmp_path: Path) -> None:
    model = write(tmp_path / "a.onnx", body("y = Relu(x)"))
    write(tmp_path / "b.onnx", body("y = Identity(x)"))
    positive = Case("mine", {"x": np.ones((2, 8), np.float32)})
    for specials, status in ((False, "passed"), (True, "failed")):
        report = compare(
            tmp_path / "a.onnx", tmp_path / "b.onnx", model, FACTORY, "exact", data=[positive], specials=specials
        )
        assert report.status == status and report.cases[0] == "mine"
    wrong = Case("mine", {"x": np.ones((2, 9), np.float32)})
    report = compare(tmp_path / "a.onnx", tmp_path / "b.onnx", model, FACTORY, "exact", data=[wrong])
    assert report.status == "not-checked" and "Got: 9 Expected: 8" in report.reason


def test_missing_output_and_report_json(tmp_path: Path) -> None:
    report = verdict(tmp_path, body("y = Relu(x)"), body("y = Relu(x)").replace("y", "other"))
    assert report.status == "failed" and "no output 'y'" in report.reason
    data = json.loads(json.dumps(verdict(tmp_path, body("y = Relu(x)"), body("y = Relu(x)")).to_json()))
    assert data["status"] == "passed" and data["outputs"][0]["name"] == "y"


def test_reference_opens_each_way_of_running_once(tmp_path: Path) -> None:
    model = write(tmp_path / "a.onnx", body("y = Relu(x)"))
    opened: list[RunSetting] = []

    def factory(path: Path, setting: RunSetting) -> Runner:
        opened.append(setting)
        return FACTORY(path, setting)

    with Reference.open(tmp_path / "a.onnx", model, factory) as reference:
        reference.judge(tmp_path / "a.onnx", "exact")
        assert len(opened) == 2
        for _ in range(3):
            assert reference.judge(tmp_path / "a.onnx", "reassociates").status == "passed"
    assert len(opened) == 2 + 3 + 3


def test_runtime_whose_optimizers_fail_is_a_note(tmp_path: Path) -> None:
    model = write(tmp_path / "a.onnx", body("y = Relu(x)"))

    def factory(path: Path, setting: RunSetting) -> Runner:
        if setting.optimizations == "all":
            raise GraphoptError("ONNX Runtime was killed by SIGSEGV while loading a.onnx")
        return FACTORY(path, setting)

    with Reference.open(tmp_path / "a.onnx", model, factory) as reference:
        report = reference.judge(tmp_path / "a.onnx", "reassociates")
    assert report.status == "passed"
    assert any("fails with optimizations 'all': ONNX Runtime was killed" in note for note in report.notes)


class Coarse(Runner):
    """Stands for a device that rounds products to few bits: every output is off by 2e-4 of itself."""

    def __init__(self, inner: Runner) -> None:
        self.inner = inner
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        return {name: value * np.float32(1.0002) for name, value in self.inner.run(feeds, outputs).items()}

    def with_taps(self, values: Sequence[str]) -> Runner:
        return Coarse(self.inner.with_taps(values))

    def time(self, feeds: Mapping[str, Any], n: int) -> list[float]:
        return self.inner.time(feeds, n)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize(("candidate", "status"), [("y = Add(x, x)", "passed"), ("y = Mul(x, x)", "failed")])
def test_what_a_device_changes_on_the_reference_is_noise(tmp_path: Path, candidate: str, status: str) -> None:
    model = write(tmp_path / "a.onnx", body("y = Mul(x, two)"))
    write(tmp_path / "b.onnx", body(candidate))

    def coarse(path: Path, setting: RunSetting) -> Runner:
        return Coarse(FACTORY(path, setting))

    with Reference.open(tmp_path / "a.onnx", model, FACTORY) as reference:
        report = reference.judge(tmp_path / "b.onnx", "reassociates", coarse, noisy=True)
        strict = reference.judge(tmp_path / "b.onnx", "reassociates", coarse)
        at_home = reference.judge(tmp_path / "b.onnx", "reassociates")
    assert report.status == at_home.status == status
    assert strict.status == "failed", "a device that computes with all bits has no excuse"
    error = next(error for error in report.outputs if error.name == "y")
    assert error.floor > 10 * next(error for error in at_home.outputs if error.name == "y").floor


def test_tolerances_stand_as_designed() -> None:
    assert TOLERANCES["exact"].floors == 0
    assert (TOLERANCES["reassociates"].floors, TOLERANCES["reassociates"].eps) == (8, 16)
    assert TOLERANCES["reassociates"].ill_conditioned == 1e-3
    assert TOLERANCES["lossy"].floors is None


NAN = {"x": np.full((2, 8), np.nan, np.float32)}
NOTHING = {"x": np.zeros((0, 8), np.float32)}
SOME = {"x": np.ones((2, 8), np.float32)}


@pytest.mark.parametrize("tolerance", ["exact", "reassociates"])
@pytest.mark.parametrize(
    ("feeds", "status"),
    [([NAN], "not-checked"), ([NOTHING], "not-checked"), ([NAN, NOTHING], "not-checked"), ([NOTHING, SOME], "failed")],
)
def test_feeds_that_leave_nothing_to_compare_check_nothing(
    tmp_path: Path, feeds: list[dict[str, Any]], status: str, tolerance: ToleranceClass
) -> None:
    model = write(tmp_path / "a.onnx", body("a = Add(x, two) y = Relu(a)"))
    write(tmp_path / "b.onnx", body("a = Add(x, two) y = Neg(a)"))
    data = [Case(f"case {number}", item) for number, item in enumerate(feeds)]
    report = compare(tmp_path / "a.onnx", tmp_path / "b.onnx", model, FACTORY, tolerance, data=data, specials=False)
    assert report.status == status
    if status == "not-checked":
        assert report.reason.startswith("no finite element of output 'y' was compared") and "--data" in report.reason


def test_each_output_must_have_been_compared(tmp_path: Path) -> None:
    text = "g(float[N,8] x) => (float[N,8] y, int64[2] s, float[N,8] z) { y = Relu(x) s = Shape(x) z = Log(y) }"
    text = text.replace("z = Log(y)", "n = Neg(y) z = Sqrt(n)").replace("y = Relu(x)", "e = Exp(x) y = Identity(e)")
    report = verdict(tmp_path, text, text)
    assert report.status == "not-checked"
    assert "output 'z' was compared" in report.reason  # NaN everywhere; y and s are fine


def test_what_is_empty_or_whole_numbers_by_its_type_passes(tmp_path: Path) -> None:
    text = "g(float[N,8] x) => (int64[2] s, float[0] e, float[N,8] y) <int64[1] o = {0}> { s = Shape(x) y = Relu(x) "
    text += "f = ConstantOfShape(o) e = Identity(f) }"
    assert verdict(tmp_path, text, text).status == "passed"
    data = [Case(label, feeds) for label, feeds in (("nothing", NOTHING), ("some", SOME))]
    model = write(tmp_path / "a.onnx", text)
    assert compare(tmp_path / "a.onnx", tmp_path / "a.onnx", model, FACTORY, "exact", data=data).status == "passed"
