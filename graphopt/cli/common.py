"""Options and printing that several verbs share."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graphopt.errors import GraphoptError

_NUMBER = r"[0-9]{1,99}"  # what is too large is told by whoever knows the bound


class Real(click.FloatRange):
    """A range of numbers: not-a-number, which no comparison finds outside, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


def say(text: str = "") -> None:
    """Human output: to stderr, so that stdout carries only what was asked for."""
    print(text, file=sys.stderr)


def emit(data: Any) -> None:
    """`--json`: one JSON document on stdout. JSON has no NaN and no infinities: they become "nan", "inf" and "-inf"."""
    print(json.dumps(_finite(data), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int | str, ...]]:
    """`x:1,3,224,224`, `x:1x3x224x224` or `x:[1,3,224,224]`; a word is a symbolic dim.

    Raises:
        GraphoptError: no name, or a dim that is neither a number nor a word.
    """
    shapes = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        if not colon or not name:
            raise GraphoptError(f"--input-shapes {text!r}: wants name:dims, for example x:1,3,224,224")
        body = dims.strip().removeprefix("[").removesuffix("]")
        parts = re.split(r"[,x]" if re.fullmatch(r"[0-9x,\s]*", body) else ",", body) if body else []
        shapes[name] = tuple(_dim(part.strip(), text) for part in parts)
    return shapes


def _dim(part: str, text: str) -> int | str:
    if re.fullmatch(_NUMBER, part):
        return int(part)
    if re.fullmatch(r"[A-Za-z_]\w*", part):
        return part
    raise GraphoptError(f"--input-shapes {text!r}: {part!r} is neither a number nor a name")


def parse_dims(texts: tuple[str, ...]) -> dict[str, int]:
    """`batch=1`.

    Raises:
        GraphoptError: not name=number.
    """
    dims = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not name or not re.fullmatch(_NUMBER, number):
            raise GraphoptError(f"--dim {text!r}: wants name=number, for example batch=1")
        dims[name] = int(number)
    return dims


def parse_dump(text: str | None) -> tuple[Path | None, bool]:
    """`--dump-ir DIR[:changed]`."""
    if text is None:
        return None, False
    return Path(text.removesuffix(":changed")), text.endswith(":changed")


def parse_bytes(text: str | None) -> int | None:
    """`512M`, `2G`, `1.5GiB` or plain bytes; K, M and G are powers of 1024.

    Raises:
        GraphoptError: neither, or nothing.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?)\s*([kKmMgG]?)(?:i?[bB])?", text.strip())
    size = int(float(found.group(1)) * 1024 ** " KMG".index(found.group(2).upper() or " ")) if found else 0
    if size < 1:
        raise GraphoptError(f"--max-memory {text!r}: wants a number of bytes, for example 512M or 2G")
    return size


_INPUT = [
    click.option(
        "--input-shapes",
        multiple=True,
        metavar="NAME:DIMS",
        help="Specialise an input: x:1,3,224,224 (also 1x3x224x224, [..]); repeatable.",
    ),
    click.option(
        "--dim", "dims", multiple=True, metavar="NAME=N", help="Bind a symbolic dim, e.g. batch=1; repeatable."
    ),
]

_REMOTE = [
    click.option("--remote", metavar="HOST:PORT", help="Measure on machines behind this TVM RPC tracker."),
    click.option("--key", metavar="KEY", help="The key that those machines registered with."),
]

_PIPELINE = [
    click.option(
        "-O",
        "level",
        type=click.IntRange(0, 3),
        default=2,
        show_default=True,
        help="0 nothing, 1 exact only, 2 default, 3 everything non-lossy.",
    ),
    click.option(
        "--precision",
        metavar="NAME",
        help="Compute in int8 (wants --calibration-data), int8-dynamic, int8-weights, int4, fp16 or bf16.",
    ),
    click.option(
        "-p", "--passes", metavar="TEXT", help="Pipeline text instead of -O, e.g. 'fold-constants,fix(cse,dce)'."
    ),
    click.option("--recipe", type=click.Path(path_type=Path), help="Pipeline as a TOML file."),
    click.option("--disable-pass", "disable", multiple=True, metavar="PASS", help="Leave a pass out; repeatable."),
    click.option(
        "--load", "load_files", multiple=True, metavar="FILE.py", help="Load passes from a Python file; repeatable."
    ),
    click.option("--opset", type=int, help="Standard opset of the output."),
    *_INPUT,
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Feeds for the numerics check: .npz, .npy or a folder of .npy/.pb.",
    ),
    click.option(
        "--numerics",
        type=click.Choice(["each", "end", "off"]),
        default="end",
        show_default=True,
        help="When to compare numbers with the reference.",
    ),
    click.option(
        "--verify",
        type=click.Choice(["each", "end", "off"]),
        default="each",
        show_default=True,
        help="When to check the IR rules.",
    ),
    click.option("--require-numerics", is_flag=True, help="Fail when the numbers could not be checked."),
    click.option("--require-effect", is_flag=True, help="Fail (3) when a pass did nothing."),
    click.option("--bisect-limit", type=click.IntRange(0), help="Apply only the first N rewrites."),
    click.option(
        "--external-data",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Large weights beside the model.",
    ),
    click.option(
        "--max-growth",
        type=Real(1.0),
        default=1.1,
        show_default=True,
        help="Weights may grow by at most this factor.",
    ),
    click.option(
        "--remarks",
        "remarks_file",
        type=click.Path(path_type=Path),
        help="Write one JSON record per site: applied, missed, why.",
    ),
    click.option(
        "--plan",
        type=click.Path(path_type=Path),
        help="Carry out these plans instead: a file that --plan-only printed.",
    ),
    click.option(
        "--calibration-data",
        metavar="DATA",
        help="Samples of real inputs: .npz, .npy, a folder, package.module:function, file.py:function; or: random.",
    ),
    click.option("--calibration-samples", type=click.IntRange(1), help="Use this many samples."),
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        help="Use statistics that --save-calibration wrote instead of gathering them.",
    ),
    click.option(
        "--save-calibration", type=click.Path(path_type=Path), help="Write the gathered statistics to a JSON file."
    ),
    click.option(
        "--max-memory", metavar="SIZE", help="Memory for the values looked at while calibrating, e.g. 512M, 2G (1G)."
    ),
    click.option("--time-passes", is_flag=True, help="Print seconds per pass."),
    click.option("--dump-ir", metavar="DIR[:changed]", help="Write the text form after each pass."),
    click.option(
        "--print-ir-after", multiple=True, metavar="PASS", help="Print the text form after a pass (also: all, changed)."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout."),
    click.option("-v", "--verbose", count=True, help="Also list what each pass did."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
]


def _apply(options: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function


def pipeline_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `compile`, `opt`, `explain` and `bisect` share."""
    return _apply(_PIPELINE, function)


def remote_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--remote` and `--key`."""
    return _apply(_REMOTE, function)


time_limit_option = click.option(
    "--time-limit",
    type=Real(0, min_open=True),
    metavar="SECONDS",
    help="What loading, and each run or block of runs, may take (600).",
)

plan_only_option = click.option(
    "--plan-only", is_flag=True, help="Print what passes decide that plan before they act; write nothing else."
)


def input_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--input-shapes` and `--dim`."""
    return _apply(_INPUT, function)


def model_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Positional MODEL, or `-m/--model`."""
    function = click.option(
        "-m", "--model", "model_option", metavar="MODEL", help="The model, for hands that know -m."
    )(function)
    return click.argument("model", required=False)(function)


def pick_model(model: str | None, option: str | None) -> str:
    """The one model that was named.

    Raises:
        GraphoptError: none, or two.
    """
    if model is not None and option is not None:
        raise GraphoptError(f"give one model: {model!r} and -m {option!r} are two")
    if model is None and option is None:
        raise GraphoptError("give a model: an ONNX file, an artifact, a .pt2 file or package.module:function")
    return model if model is not None else str(option)


def make_options(flags: dict[str, Any]) -> Any:
    """driver.Options from the flags of `pipeline_options`; loads `--load` files first."""
    from graphopt.driver import Options
    from graphopt.manager.registry import load_file

    for file in flags["load_files"]:
        load_file(file)
    dump_dir, changed_only = parse_dump(flags["dump_ir"])
    return Options(
        level=flags["level"],
        precision=flags["precision"],
        passes=flags["passes"],
        recipe=flags["recipe"],
        disable=flags["disable"],
        opset=flags["opset"],
        input_shapes=parse_shapes(flags["input_shapes"]),
        dims=parse_dims(flags["dims"]),
        data=flags["data"],
        numerics=flags["numerics"],
        verify=flags["verify"],
        require_numerics=flags["require_numerics"],
        require_effect=flags["require_effect"],
        bisect_limit=flags["bisect_limit"],
        external_data=flags["external_data"],
        max_growth=flags["max_growth"],
        print_after=flags["print_ir_after"],
        dump_dir=dump_dir,
        dump_changed_only=changed_only,
        plan=flags["plan"],
        calibration_data=flags["calibration_data"],
        calibration_samples=flags["calibration_samples"],
        calibration=flags["calibration"],
        save_calibration=flags["save_calibration"],
        max_memory=parse_bytes(flags["max_memory"]),
        progress=not flags["quiet"],
    )


def print_plans(source: str, target: str | None, options: Any) -> None:
    """`--plan-only`: the plans as JSON on stdout, or a line that there are none."""
    from graphopt.driver import make_plans
    from graphopt.manager.plan import to_json

    plans = make_plans(source, target, options)
    if not plans:
        say("no pass of this pipeline plans before it acts")
    print(to_json(plans), end="")
