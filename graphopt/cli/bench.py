"""`graphopt bench`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli import common
from graphopt.cli.common import emit, say

if TYPE_CHECKING:
    from graphopt.running import Runnable
    from graphopt.target import Place


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@click.option("--target", help="How to run plain models (default cpu); an artifact knows its own.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Feeds: .npz, .npy or a folder; without it legal ones are made for the first model.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads inside an op; without it each model's own setting.")
@click.option(
    "--duration",
    type=common.Real(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds of measuring per model.",
)
@click.option("--warmup", type=click.IntRange(0), default=3, show_default=True, help="Runs before anything counts.")
@common.time_limit_option
@common.remote_options
@common.input_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(
    models: tuple[str, ...],
    target: str | None,
    data: Path | None,
    threads: int | None,
    duration: float,
    warmup: int,
    time_limit: float | None,
    remote: str | None,
    key: str | None,
    as_json: bool,
    **shapes: Any,
) -> None:
    """Time MODELS (files or artifacts) against the first, interleaved; the A/A row shows the error of the method."""
    from graphopt.frontends.capture import capture
    from graphopt.running import feeds_for, runnables
    from graphopt.timing import BenchPlan, bench
    from graphopt.tuning import parse_remote

    where = parse_remote(remote, key)
    chosen = [item for model in models for item in runnables(model, target, time_limit)]
    labels = _labels(chosen)
    by_label = dict(zip(labels, chosen, strict=True))
    changes: dict[str, Any] = {"force_spinning_stop": True, **({"threads": threads} if threads else {})}
    captured, _ = capture(
        chosen[0].graph, common.parse_shapes(shapes["input_shapes"]), common.parse_dims(shapes["dims"])
    )
    with ExitStack() as stack:
        place = None if where is None else stack.enter_context(chosen[0].target.remote(where))
        with chosen[0].open_at(place) as runner:
            feeds = feeds_for(captured, runner, data)
        _say_made(feeds, data, as_json)
        for item in chosen:
            if item.path != chosen[0].path:
                _check_inputs(item, place, feeds)
        report = bench(
            labels,
            feeds,
            lambda label: by_label[label].open_at(place, **changes),
            BenchPlan(seconds=duration, warmup=warmup),
        )
    if as_json:
        emit(report.to_json())
    else:
        print(report)


def _labels(chosen: list[Runnable]) -> list[Path]:
    """What rows are called: the path, with the target where one path is run for several."""
    targets: dict[Path, set[str]] = {}
    for item in chosen:
        targets.setdefault(item.path, set()).add(str(item.target))
    return [
        item.path.with_name(f"{item.path.name} {item.target}") if len(targets[item.path]) > 1 else item.path
        for item in chosen
    ]


def _say_made(feeds: dict[str, Any], data: Path | None, as_json: bool) -> None:
    if data is None and not as_json:
        say(
            "graphopt: no --data, so the inputs are made up: "
            + ", ".join(f"{name}{list(value.shape)}" for name, value in feeds.items() if hasattr(value, "shape"))
        )


def _check_inputs(item: Runnable, place: Place | None, feeds: dict[str, Any]) -> None:
    from graphopt.errors import GraphoptError
    from graphopt.feedfiles import check_feeds

    with item.open_at(place) as runner:
        try:
            check_feeds(feeds, runner.inputs, f"the first model's inputs do not fit {item.path}")
        except GraphoptError as error:
            raise GraphoptError(f"{error}; bench compares models with the same inputs") from None
