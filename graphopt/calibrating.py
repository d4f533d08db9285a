"""Calibration: samples through the model in a child process, in slices of the graph that keep a memory promise.

Implements `manager.calibration.Calibration`. Not here: where samples come from (samples.py), what is kept of a tensor
(quantization/statistics.py), and what passes do with it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.feeds import bindings_of
from graphopt.frontends.onnx import file_hash
from graphopt.ir.hash import structural_hash
from graphopt.ir.prefix import prefix
from graphopt.ir.writer import write
from graphopt.progress import Progress
from graphopt.quantization.statistics import Statistics, TensorStats
from graphopt.samples import BATCH, RANDOM, Samples, inputs_of, open_samples, random_samples
from graphopt.slices import bytes_of, pack, sizes_in, value_bytes
from graphopt.steady import channels_of
from graphopt.target import RUN_BYTES, RUN_SECONDS

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.calibration import Accumulator, PairAccumulator
    from graphopt.targets.onnxruntime.runner import OrtRunner

    Look = Callable[[OrtRunner, dict[str, Any], Sequence[str]], None]

MAX_MEMORY = 1 << 30
"""Bytes that values of one batch may take, unless the user promises another figure."""
RANDOM_SAMPLES = 32

# A value is held by the runtime, then on its way, then by whoever looks at it; the rest is the runtime's own.
_SHARE = 4
# Larger batches gain little, and as several are under way, smaller ones keep memory down whatever their number.
_BATCH_SHARE = 32


class Calibrating:
    """Samples, or statistics that were saved, for the passes of one run.

    Args:
        model: the model of the run, as it is whenever samples are first asked for.
        data: see `samples.open_samples`; or "random"; None when there are saved statistics only.
        scratch: folder for temporary files.
        limit: samples to use; None for all (32 random ones).
        saved: file of statistics that `save` wrote.
        max_memory: bytes that the values of one batch may take.
        progress: show a bar where stderr is a terminal.

    Raises:
        GraphoptError: no such data or file, or neither is given.
    """

    def __init__(
        self,
        model: ir.Model,
        data: Any,
        scratch: Path,
        *,
        limit: int | None = None,
        saved: Path | None = None,
        max_memory: int | None = None,
        progress: bool = False,
    ) -> None:
        if data is None and saved is None:
            raise GraphoptError("calibration needs samples or saved statistics")
        self.max_memory = MAX_MEMORY if max_memory is None else max_memory
        self.limit = limit
        self._model, self._scratch, self._progress = model, scratch, progress
        self._saved = None if saved is None else Statistics.load(saved)
        self._saved_hash = None if saved is None else file_hash(saved)
        self._samples: Samples | None = None
        self._is_random = isinstance(data, str | Path) and str(data) == RANDOM
        if data is not None and not self._is_random:
            self._samples = open_samples(data, inputs_of(model))
            self._samples.channels = channels_of(model)
        self._has_batch = False
        self._used_saved = self._used_samples = False
        self.origin = self._name()
        self.gathered = Statistics(self.origin, 0)

    def _name(self) -> str:
        if self._is_random:
            return RANDOM
        if self._samples is not None:
            return self._samples.origin
        assert self._saved is not None
        return self._saved.origin

    # ---- what passes ask -------------------------------------------------------------------------------------------

    def batches(self, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Feeds by input name, the same each time.

        Raises:
            GraphoptError: there are saved statistics only, or the samples do not fit the model.
        """
        return iter(feeds for feeds, _ in self._counted(limit))

    def runner(self, model: ir.Model, values: Sequence[str] = ()) -> OrtRunner:
        """The model as it is now, in a child process; the named values of its main graph are further outputs.

        Raises:
            GraphoptError: a name that no value has, or the runtime refuses the model.
        """
        _find(model, values)
        folder = tempfile.TemporaryDirectory(prefix="calibrate-", dir=self._scratch)
        try:
            write(model, Path(folder.name) / "model.onnx")
            runner = _open(Path(folder.name) / "model.onnx", values)
        except BaseException:
            folder.cleanup()
            raise
        runner.on_close(folder.cleanup)
        return runner

    def fold(self, model: ir.Model, accumulators: Mapping[str, Accumulator], limit: int | None = None) -> None:
        """Show each accumulator its value on every batch; one pass over the samples per slice of the graph.

        Raises:
            GraphoptError: a name that no value has, samples that do not fit, or the runtime fails.
        """
        inputs = {value.name for value in model.graph.inputs}

        def look(runner: OrtRunner, feeds: dict[str, Any], names: Sequence[str]) -> None:
            wanted = [name for name in names if name not in inputs]
            results = runner.run(feeds, wanted) if wanted else {}
            for name in names:
                accumulators[name].update(feeds[name] if name in inputs else results[name])

        self._show(model, list(accumulators), limit, look)

    def fold_pairs(self, models: tuple[ir.Model, ir.Model], pairs: Mapping[tuple[str, str], PairAccumulator]) -> None:
        """Show each accumulator two values, one of each model, on every batch; one pass over the samples.

        Raises:
            GraphoptError: a name that no value has, samples that do not fit, or the runtime fails.
        """
        runners = []
        with ExitStack() as stack:
            for model, names in zip(models, zip(*pairs, strict=True), strict=True):
                inputs = {value.name for value in model.graph.inputs}
                inner = [name for name in dict.fromkeys(names) if name not in inputs]
                runner = stack.enter_context(closing(self.runner(prefix(model, inner)))) if inner else None
                runners.append((runner, inner))
            with self._bar(None) as bar:
                for feeds, count in self._counted(None):
                    x, y = ({**feeds, **(runner.run(feeds, inner) if runner else {})} for runner, inner in runners)
                    for (a, b), accumulator in pairs.items():
                        accumulator.update_pair(x[a], y[b])
                    bar.step(count)

    def statistics(self, model: ir.Model, values: Sequence[str]) -> Mapping[str, TensorStats]:
        """Statistics of float values of the main graph: saved or gathered before for this very model, else gathered.

        Raises:
            GraphoptError: as `fold`; a value that is not float; or only saved statistics are there, of another model.
        """
        from graphopt import ir

        there = _find(model, values)
        for name in values:
            dtype = there[name].dtype
            if dtype is not None and not (dtype.is_floating_point() or dtype == ir.DataType.UNDEFINED):
                raise GraphoptError(f"statistics are of float values, {name!r} is {dtype.name}")
        key = structural_hash(model)
        wanted = list(dict.fromkeys(values))
        saved = None if self._saved is None else self._saved.find(key, wanted)
        if saved is not None:
            self._used_saved = True
            return saved
        if self._samples is None and not self._is_random:
            raise GraphoptError(self._why_not_saved(key, wanted))
        missing = [name for name in wanted if name not in self.gathered.models.get(key, {})]
        if missing:
            self.gathered.add(key, self._show(model, missing, None, None))
        found = self.gathered.find(key, wanted)
        assert found is not None
        return found

    # ---- what the driver asks --------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the statistics that were gathered.

        Raises:
            GraphoptError: it cannot be written, or no pass asked for any.
        """
        if not self.gathered.models:
            raise GraphoptError(f"no pass gathered statistics, so there are none to save to {path}")
        assert self._samples is not None
        self.gathered.samples, self.gathered.data = self._samples.seen or 0, self._samples.digest()
        self.gathered.save(path)

    def record(self) -> dict[str, Any] | None:
        """What the manifest says: origin, number of samples and hashes; None when nothing was used."""
        record: dict[str, Any] = {}
        if self._used_saved and self._saved is not None:
            record = {"origin": self._saved.origin, "samples": self._saved.samples, "data": self._saved.data}
            record["statistics"] = self._saved_hash
        if self._used_samples and self._samples is not None:
            record |= {"origin": self.origin, "samples": self._samples.seen, "data": self._samples.digest()}
        return record or None

    def notes(self) -> list[str]:
        """Remarks on the data."""
        record = self.record()
        if record is None:
            return ["the calibration data was not used: no pass needs any, or none found what to use it for"]
        notes = self._samples.remarks(self.limit) if self._samples is not None else []
        if record["samples"] == 1:
            notes.insert(0, "there is one sample only; what is learnt from so little data is a guess")
        if record["origin"] == RANDOM:
            notes.insert(0, "the samples are random, as asked for: what they show need not hold for real data")
        return notes

    # ---- how -------------------------------------------------------------------------------------------------------

    def _need_samples(self) -> Samples:
        if self._is_random and self._samples is None:
            with self.runner(self._model) as runner:
                bindings, refused = bindings_of(self._model, runner)
            if not bindings:
                raise GraphoptError(f"the model refuses random samples, give real ones: {refused[-1]}")
            self._samples = random_samples(self._model, bindings[0])
            self.limit = RANDOM_SAMPLES if self.limit is None else self.limit
        if self._samples is None:
            raise GraphoptError(
                "samples are needed, and only saved statistics are there: give --calibration-data as well; "
                "statistics alone do for quantize-static with a method of its own, for example method=mse"
            )
        return self._samples

    def _show(
        self, model: ir.Model, names: Sequence[str], limit: int | None, look: Look | None
    ) -> dict[str, TensorStats]:
        """Show every batch, slice by slice of the graph.

        Args:
            look: is shown the values of a batch; None has the child take statistics of them, which are returned.
        """
        values = _find(model, names)
        found: dict[str, TensorStats] = {}
        if not names:
            return found
        budget = self.max_memory // _SHARE
        sample = self._need_samples().peek()
        sizes = {name: value_bytes(value, sizes_in(model, sample)) for name, value in values.items()}
        unknown = [name for name, size in sizes.items() if size is None]
        with _written(model, self._scratch) as path:
            if unknown:  # nobody can tell beforehand, so it is measured
                with closing(_open(path, unknown)) as runner:
                    sizes.update(runner.sizes(sample, unknown))
            total = sum(size or 0 for size in sizes.values())
            self._choose_batch(lambda: total)
            times = max(1.0, bytes_of(next(self.batches(limit))) / max(1, bytes_of(sample)))
            for part in pack({name: (size or 0) * times for name, size in sizes.items()}, budget):
                abreast = self._abreast(sum((sizes[name] or 0) * times for name in part)) if look is None else 1
                found.update(self._slice(path, part, abreast, limit, look))
        return found

    def _slice(
        self, path: Path, part: Sequence[str], abreast: int, limit: int | None, look: Look | None
    ) -> dict[str, TensorStats]:
        """One pass over the samples; one by one when a model that declares any batch fails on several."""
        samples, shown = self._need_samples(), 0
        with closing(_open(path, part, abreast)) as runner, self._bar(limit) as bar:
            try:
                for feeds, count in self._counted(limit):
                    if look is None:
                        runner.observe(feeds, part, abreast)
                    else:
                        look(runner, feeds, part)
                        shown += 1
                    bar.step(count)
                return runner.statistics() if look is None else {}
            except GraphoptError:
                if shown or samples.batch == 1 or not _runs(path, part, samples.peek()):
                    raise
        samples.note(f"the model fails on {samples.batch} samples at a time; they were run one by one")
        samples.batch = 1
        return self._slice(path, part, abreast, limit, look)

    def _abreast(self, batch_bytes: float) -> int:
        """How many batches may be under way: one for each core, as far as memory goes."""
        return max(1, min(_cores(), int(self.max_memory // max(1, batch_bytes)) - 1))

    def _choose_batch(self, sample_bytes: Callable[[], int]) -> None:
        """How many samples go together: chosen once, for the values that are first looked at."""
        samples = self._need_samples()
        if not self._has_batch:
            self._has_batch = True
            samples.batch = max(1, min(BATCH, self.max_memory // _BATCH_SHARE // max(1, sample_bytes())))

    def _sample_bytes(self) -> int:
        """Bytes of all values of the model on one sample, as far as they are known."""
        bindings = sizes_in(self._model, self._need_samples().peek())
        return sum(value_bytes(value, bindings) or 0 for node in self._model.graph for value in node.outputs)

    def _counted(self, limit: int | None) -> Iterator[tuple[dict[str, Any], int]]:
        samples = self._need_samples()
        self._choose_batch(self._sample_bytes)
        self._used_samples = True
        bounds = [bound for bound in (limit, self.limit) if bound is not None]
        return samples.counted(min(bounds, default=None))

    def _bar(self, limit: int | None) -> Progress:
        known = self._need_samples().expected()
        bounds = [bound for bound in (limit, self.limit, known) if bound is not None]
        total = None if known is None and not self._is_random else min(bounds)
        return Progress(f"calibrating on {self.origin}", total, shown=self._progress)

    def _why_not_saved(self, key: str, names: Sequence[str]) -> str:
        assert self._saved is not None
        if key not in self._saved.models:
            return (
                "the saved statistics are of another model, or of this one after other passes; "
                "give --calibration-data to gather them anew"
            )
        missing = next(name for name in names if name not in self._saved.models[key])
        return f"the saved statistics have no value {missing!r}; give --calibration-data to gather them anew"


def _find(model: ir.Model, names: Sequence[str]) -> dict[str, ir.Value]:
    """Values of the main graph by name.

    Raises:
        GraphoptError: there is none of a name.
    """
    there = {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values()) if value.name}
    for node in model.graph:
        there.update({value.name: value for value in node.outputs if value.name})
    for name in names:
        if name not in there:
            raise GraphoptError(f"the main graph has no value {name!r}{did_you_mean(name, there)}")
    return {name: there[name] for name in names}


@contextmanager
def _written(model: ir.Model, scratch: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="calibrate-", dir=scratch) as folder:
        write(model, Path(folder) / "model.onnx", "always")  # the copies with taps need not hold the weights again
        yield Path(folder) / "model.onnx"


def _runs(path: Path, values: Sequence[str], feeds: Mapping[str, Any]) -> bool:
    with closing(_open(path, values)) as runner:
        try:
            runner.sizes(feeds, [spec.name for spec in runner.outputs][:1])
        except GraphoptError:
            return False
        return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(path: Path, values: Sequence[str], abreast: int = 1) -> OrtRunner:
    """The model with taps, optimized by the runtime; its threads leave the cores to each other when they are idle.

    Without an arena: all values of a run live together, so there is little to use again, and an arena that several
    runs share grows for hundreds of them.
    """
    from graphopt.targets.onnxruntime.runner import open_tapped
    from graphopt.targets.onnxruntime.settings import SessionSettings

    threads = 0 if abreast == 1 else max(1, _cores() // abreast)
    settings = SessionSettings(threads=threads, spinning=abreast == 1, force_spinning_stop=True, arena=False)
    return open_tapped(path, values, settings, time_limit=RUN_SECONDS, memory_limit=RUN_BYTES)
