"""What the options of a run say of calibration; most runs have none, and import nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.calibrating import Calibrating
    from graphopt.driver import Options


def open_calibration(options: Options, model: ir.Model, scratch: Path) -> Calibrating | None:
    """What the options of a run say of calibration; None when that is nothing.

    Raises:
        GraphoptError: no such data or file, or options that need data without it.
    """
    if options.calibration_data is None:
        if options.calibration_samples is not None or options.save_calibration is not None:
            flag = "--calibration-samples" if options.calibration_samples is not None else "--save-calibration"
            raise GraphoptError(f"{flag} needs samples: give --calibration-data")
        if options.calibration is None:
            return None
    if options.calibration_samples is not None and options.calibration_samples < 1:
        raise GraphoptError(f"--calibration-samples {options.calibration_samples}: at least one is needed")
    from graphopt.calibrating import Calibrating

    try:
        return Calibrating(
            model,
            options.calibration_data,
            scratch,
            limit=options.calibration_samples,
            saved=options.calibration,
            max_memory=options.max_memory,
            progress=options.progress,
        )
    except GraphoptError as error:
        flag = "--calibration-data" if options.calibration is None else "--calibration"
        raise GraphoptError(f"{flag}: {error}") from None
