"""`graphopt run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import common
from graphopt.cli.common import emit, say


@click.command("run")
@common.model_argument
@click.option("--target", help="How to run a plain model (default cpu); an artifact knows its own.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Feeds: .npz, .npy or a folder of .npy/.pb; without it legal ones are made.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of made feeds.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Save the outputs as .npz.")
@common.time_limit_option
@common.input_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(
    model: str | None,
    model_option: str | None,
    target: str | None,
    data: Path | None,
    seed: int,
    output: Path | None,
    time_limit: float | None,
    as_json: bool,
    **shapes: Any,
) -> None:
    """Run MODEL (a file or an artifact) once and describe or save its outputs."""
    from graphopt.frontends.capture import capture
    from graphopt.running import feeds_for, runnable

    chosen = runnable(common.pick_model(model, model_option), target, time_limit)
    captured, _ = capture(chosen.graph, common.parse_shapes(shapes["input_shapes"]), common.parse_dims(shapes["dims"]))
    with chosen.open() as runner:
        feeds = feeds_for(captured, runner, data, seed)
        outputs = runner.run(feeds)
    if data is None:
        say(f"graphopt: no --data, so the inputs are made up (seed {seed})")
    if output is not None:
        _save(output, outputs)
    rows = [_row(name, value) for name, value in outputs.items()]
    if as_json:
        emit({"inputs": [_row(name, value) for name, value in feeds.items()], "outputs": rows})
        return
    for row in rows:
        print(
            f"{row['name']}: {row['type']}{row['shape']}"
            + (f" min {row['min']:.6g} mean {row['mean']:.6g} max {row['max']:.6g}" if "min" in row else "")
        )


def _row(name: str, value: Any) -> dict[str, Any]:
    import numpy as np

    if not isinstance(value, np.ndarray):
        return {"name": name, "type": type(value).__name__, "shape": [len(value)] if isinstance(value, list) else []}
    row: dict[str, Any] = {"name": name, "type": str(value.dtype), "shape": list(value.shape)}
    if value.size and value.dtype.kind in "fiub":
        wide = value.astype(np.float64)
        row.update({"min": float(wide.min()), "mean": float(wide.mean()), "max": float(wide.max())})
    return row


def _save(path: Path, outputs: dict[str, Any]) -> None:
    import contextlib
    import os
    import zipfile

    import numpy as np

    from graphopt.errors import GraphoptError
    from graphopt.ir.places import file_place

    arrays = {
        name: value for name, value in outputs.items() if isinstance(value, np.ndarray) and value.dtype.kind != "O"
    }
    left_out = sorted(set(outputs) - set(arrays))
    if left_out:
        say(f"graphopt: .npz cannot hold these outputs, left out: {', '.join(left_out)}")
    path = file_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:  # np.savez takes names as keywords, and chokes on "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        temporary.replace(path)
    except OSError as error:
        raise GraphoptError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
