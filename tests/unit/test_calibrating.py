"""Calibrating: what accumulators and statistics see, in slices and at once; saved statistics; made-up samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.analysis.shapes import Shapes
from graphopt.calibrating import Calibrating
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.quantization.statistics import TensorStats

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 6] x, int64[N, 2] tokens) => (float[N, 4] y)
  <float[6, 4] w, float[9, 4] table, int64[1] axes = {1}> {
  a = MatMul (x, w)
  e = Gather (table, tokens)
  m = ReduceSum <keepdims = 0> (e, axes)
  b = Add (a, m)
  y = Relu (b) }"""


def net() -> Any:
    model = from_text(NET)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (6, 4)), ("table", (9, 4))):
        model.graph.initializers[name].const_value = ir.Tensor(rng.standard_normal(shape).astype(np.float32), name=name)
    Shapes(model).infer()
    return model


def samples(n: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((n, 6)).astype(np.float32), "tokens": rng.integers(0, 9, (n, 2))}


def calibrating(folder: Path, data: Any = None, **options: Any) -> Calibrating:
    return Calibrating(net(), samples() if data is None else data, folder, **options)


class Keep:
    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def update(self, array: np.ndarray) -> None:
        self.arrays.append(array.copy())


def expected(run_model: Any) -> dict[str, np.ndarray]:
    """All inner values on all samples."""
    model = net()
    for node in model.graph:
        model.graph.outputs.extend(value for value in node.outputs if value not in model.graph.outputs)
    return {**run_model(model, samples()), **samples()}


@pytest.mark.parametrize("max_memory", [None, 32 * 250])
def test_accumulators_see_their_values_batch_by_batch(tmp_path: Path, run_model: Any, max_memory: int | None) -> None:
    calibration = calibrating(tmp_path, max_memory=max_memory)
    names = ["a", "e", "x", "y", "tokens"]
    kept = {name: Keep() for name in names}
    calibration.fold(calibration._model, kept)
    want = expected(run_model)
    for name in names:
        np.testing.assert_allclose(np.concatenate(kept[name].arrays), want[name], rtol=1e-5, atol=1e-6)
    assert len(kept["a"].arrays[0]) == (8 if max_memory is None else 2)  # 104 bytes a sample, and 250 are allowed
    assert not list(tmp_path.iterdir())


def test_memory_decides_the_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import calibrating as module

    opened: list[list[str]] = []
    plain = module._open
    monkeypatch.setattr(
        module, "_open", lambda path, values, *n: opened.append(list(values)) or plain(path, values, *n)
    )
    calibration = calibrating(tmp_path, max_memory=32 * 130)
    calibration.fold(calibration._model, {"a": Keep()})  # now 8 samples of 16 bytes go together
    names = ("a", "b", "y", "m", "e", "x", "tokens")  # together 136 bytes a sample, 8 * 130 bytes at a time
    calibration.fold(calibration._model, {name: Keep() for name in names})
    assert opened == [["a"], list(names[:-1]), ["tokens"]]
    opened.clear()
    calibration._model.graph.node(3).outputs[0].shape = None
    keep = {name: Keep() for name in names}
    calibration.fold(calibration._model, keep)
    assert opened == [["b"], list(names[:-1]), ["tokens"]]  # first to measure it
    assert {len(item.arrays) for item in keep.values()} == {3}


def test_statistics_are_those_of_the_values(tmp_path: Path, run_model: Any) -> None:
    calibration = calibrating(tmp_path)
    found = calibration.statistics(calibration._model, ["a", "y", "x", "a"])
    want = expected(run_model)
    assert list(found) == ["a", "y", "x"]
    for name, stats in found.items():
        direct = TensorStats()
        direct.update(want[name])
        assert stats.count == direct.count and stats.batches == 3
        assert (stats.low, stats.high) == pytest.approx((direct.low, direct.high), rel=1e-5)
        assert stats.variance == pytest.approx(direct.variance, rel=1e-4)
    assert found["x"].counts.tolist() == pytest.approx(expected_counts(want["x"]))


def expected_counts(x: np.ndarray) -> list[int]:
    stats = TensorStats()
    stats.update(x)
    return stats.counts.tolist()


def test_statistics_are_gathered_once_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = calibrating(tmp_path)
    model = calibration._model
    first = calibration.statistics(model, ["a"])
    gathered: list[Any] = []
    plain = calibration._show
    monkeypatch.setattr(
        calibration, "_show", lambda model, names, *rest: gathered.append(names) or plain(model, names, *rest)
    )
    assert calibration.statistics(model, ["a"])["a"] is first["a"]
    calibration.statistics(model, ["a", "b"])
    assert gathered == [["b"]]
    model.graph.initializers["w"].const_value = ir.Tensor(np.zeros((6, 4), np.float32), name="w")
    assert calibration.statistics(model, ["a"])["a"].high == 0
    assert gathered == [["b"], ["a"]]


def test_saved_statistics_serve_the_same_model_only(tmp_path: Path) -> None:
    first = calibrating(tmp_path)
    stats = first.statistics(first._model, ["a", "y"])["a"]
    first.save(tmp_path / "stats.json")
    again = Calibrating(net(), None, tmp_path, saved=tmp_path / "stats.json")
    assert again.origin == "python" and again.record() is None
    assert again.statistics(net(), ["a"])["a"].to_json() == stats.to_json()
    record = again.record()
    assert record is not None and record["samples"] == 20 and len(record["statistics"]) == 64
    with pytest.raises(GraphoptError, match="have no value 'b'; give --calibration-data"):
        again.statistics(net(), ["a", "b"])
    with pytest.raises(GraphoptError, match="only saved statistics are there"):
        again.batches()
    other = net()
    other.graph.initializers["w"].const_value = ir.Tensor(np.ones((6, 4), np.float32), name="w")
    with pytest.raises(GraphoptError, match="of another model"):
        again.statistics(other, ["a"])
    both = Calibrating(net(), samples(), tmp_path, saved=tmp_path / "stats.json")
    assert both.statistics(other, ["a"])["a"].count == 80


def test_a_limit_is_kept(tmp_path: Path) -> None:
    calibration = calibrating(tmp_path, limit=10)
    assert calibration.statistics(calibration._model, ["a"])["a"].count == 40
    keep = Keep()
    calibration.fold(calibration._model, {"a": keep}, limit=3)
    assert [len(array) for array in keep.arrays] == [3]
    assert sum(len(feeds["x"]) for feeds in calibration.batches()) == 10
    record = calibration.record()
    assert record is not None and record["samples"] == 10 and len(record["data"]) == 64


def test_random_samples_are_legal_and_marked(tmp_path: Path) -> None:
    calibration = calibrating(tmp_path, "random")
    assert calibration.origin == "random" and "was not used" in calibration.notes()[0]
    assert calibration.statistics(calibration._model, ["a"])["a"].count == 32 * 4
    record = calibration.record()
    assert record is not None and record["origin"] == "random" and record["samples"] == 32
    assert "the samples are random" in calibration.notes()[0]


def test_a_runner_of_the_model_as_it_is(tmp_path: Path, run_model: Any) -> None:
    calibration = calibrating(tmp_path)
    with calibration.runner(calibration._model, ["a"]) as runner:
        results = runner.run(samples())
    assert list(results) == ["y", "a"]
    np.testing.assert_allclose(results["y"], expected(run_model)["y"], rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    calibration = calibrating(tmp_path)
    with pytest.raises(GraphoptError, match="no value 'aa'; did you mean|no value 'aa'; known"):
        calibration.statistics(calibration._model, ["aa"])
    with pytest.raises(GraphoptError, match="statistics are of float values, 'tokens' is INT64"):
        calibration.statistics(calibration._model, ["tokens"])
    with pytest.raises(GraphoptError, match="no pass gathered statistics"):
        calibration.save(tmp_path / "stats.json")
    wrong = {**samples(), "tokens": samples()["tokens"] + 7}
    calibration = calibrating(tmp_path, wrong)
    with pytest.raises(GraphoptError, match="cannot run the model.*out of (data )?bounds"):
        calibration.statistics(calibration._model, ["a"])


def test_batches_abreast_are_looked_at_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        calibration = calibrating(tmp_path, samples(50))
        found.append(calibration.statistics(calibration._model, ["a", "x"]))
    for name in ("a", "x"):
        one, three = (stats[name] for stats in found)
        assert three.batches == 7 and one.low < one.moving_low
        assert (three.moving_low, three.moving_high) == pytest.approx((one.moving_low, one.moving_high), rel=1e-5)


def test_an_error_of_a_late_batch_is_told(tmp_path: Path) -> None:
    data = samples(50)
    data["tokens"][45] = 99
    calibration = calibrating(tmp_path, data)
    with pytest.raises(GraphoptError, match="cannot run the model"):
        calibration.statistics(calibration._model, ["a"])


STUBBORN = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 6] x) => (float[1, 6] y) <int64[2] shape = {1, 6}> { a = Relu (x) \n y = Reshape (a, shape) }"""


@pytest.mark.parametrize("count", [9, 40])
@pytest.mark.parametrize("how", ["statistics", "fold"])
def test_a_model_that_takes_one_sample_though_it_declares_any(tmp_path: Path, how: str, count: int) -> None:
    model = from_text(STUBBORN)
    calibration = Calibrating(model, {"x": samples(count)["x"]}, tmp_path)
    keep = Keep()
    if how == "fold":
        calibration.fold(model, {"a": keep})
        assert len(keep.arrays) == count
    else:
        assert calibration.statistics(model, ["a"])["a"].count == 6 * count
    assert calibration.notes() == ["the model fails on 8 samples at a time; they were run one by one"]


RAGGED = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 6] x) => (int64[2, K] y) {
  a = Relu (x)
  y = NonZero (a)
  b = Cast <to = 1> (y) }"""


def test_results_that_are_written_over_are_those_of_their_batch(tmp_path: Path) -> None:
    """Many batches of one shape; of a value whose shape is always the same, and of one whose shape depends on data."""
    model = from_text(RAGGED)
    x = samples(80)["x"] * np.arange(1, 81, dtype=np.float32)[:, None]
    found = Calibrating(model, {"x": x}, tmp_path).statistics(model, ["a", "b"])
    direct = TensorStats()
    for start in range(0, 80, 8):
        direct.update(np.maximum(x[start : start + 8], 0))
    assert found["a"].to_json() == direct.to_json()
    assert found["b"].count == 2 * int((x > 0).sum())
    alone = Calibrating(model, {"x": x}, tmp_path).statistics(model, ["a"])
    assert alone["a"].to_json() == direct.to_json()


# -- data that tells little -----------------------------------------------------------------------------------------

PICTURE = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) <float[2, 3, 1, 1] w> { y = Conv (x, w) }"""
LAST = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 4, 4, 3] x) => (float[N, 2, 4, 4] y) <float[2, 3, 1, 1] w> {
  t = Transpose <perm = [0, 3, 1, 2]> (x)
  y = Conv (t, w) }"""


def notes_on(text: str, x: np.ndarray, folder: Path) -> list[str]:
    model = from_text(text)
    calibration = Calibrating(model, {"x": x}, folder)
    calibration.statistics(model, ["y"])
    list(calibration.batches(4))  # a shorter pass, whose samples may well be alike
    return calibration.notes()


def test_inputs_that_do_not_vary_are_named(tmp_path: Path) -> None:
    why = "what is learnt from it will not hold for samples that differ"
    x = np.random.default_rng(0).standard_normal((20, 3, 4, 4)).astype(np.float32)
    assert not notes_on(PICTURE, x, tmp_path)
    assert notes_on(PICTURE, x * -0.0, tmp_path) == [f"input 'x' is 0 throughout on all samples; {why}"]
    x[:10, 0] = 7
    x[:, 1] = 0.5
    named = [f"input 'x' does not vary in channel 1 (always 0.5); {why}"]
    assert notes_on(PICTURE, x, tmp_path) == named
    assert notes_on(LAST, np.moveaxis(x, 1, -1), tmp_path) == named
    x[-1, 1, 2, 2] = 1
    assert not notes_on(PICTURE, x, tmp_path)


def test_features_of_a_product_and_integers_may_be_constant(tmp_path: Path) -> None:
    """Columns that no sample touches are common there, and so are masks of ones."""
    feeds = samples()
    feeds["x"][:, 2] = 0
    feeds["tokens"][:] = 0
    calibration = calibrating(tmp_path, feeds)
    calibration.statistics(calibration._model, ["a"])
    assert not calibration.notes()
