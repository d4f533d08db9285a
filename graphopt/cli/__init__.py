"""The command line: one file per verb, imported when that verb is called, so that `graphopt --help` is instant.

Exit codes: 0 ok, 1 verification or numerics failed, 2 usage or bad input, 3 a gate failed, 4 frozen drift, 70 a bug,
130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from graphopt.errors import GraphoptError, did_you_mean, in_one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

VERBS = {
    "compile": "Optimize a model, lower it for a target, prove it and write an artifact folder.",
    "opt": "Run passes, ONNX to ONNX.",
    "run": "Run a model or artifact once and print or save its outputs.",
    "bench": "Time models against each other, honestly.",
    "verify": "Check a model or artifact, or that two compute the same.",
    "inspect": "Show ops, sizes, work and what a target lacks, without compiling.",
    "explain": "Say why a pass does or does not apply, site by site.",
    "bisect": "Find the pass and the single rewrite that break a model.",
    "diff": "Show what changed between two models.",
    "passes": "List passes and named pipelines.",
    "targets": "List targets and whether they can run here.",
    "models": "List, fetch and locate the models of the zoo.",
    "doctor": "Show devices, instruction sets, versions and conflicts.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = name.replace("_", "-")
        if name not in VERBS:
            return None
        return importlib.import_module(f"graphopt.cli.{name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0].replace("_", "-") not in VERBS:
            ctx.fail(f"there is no verb {args[0]!r}{did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would end with 1, whichever pipe it was
            if _is_read():
                raise RuntimeError("the pipe to a child process broke") from error
            _drop_stdout()
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="graphopt", prog_name="graphopt")
@click.option("--debug", is_flag=True, help="Print a traceback for every error.")
def cli(debug: bool) -> None:
    """graphopt: a graph-level optimizing compiler for neural networks."""


def main(args: list[str] | None = None) -> None:
    """Run a command line; ends the process with the exit code."""
    argv = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in argv
    argv = ["--debug", *[a for a in argv if a != "--debug"]] if debug else argv
    try:
        code = cli.main(args=_snake(argv), prog_name="graphopt", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        _leave(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        _leave(2)
    except click.ClickException as error:
        _leave(2, _usage(error))
    except (click.Abort, KeyboardInterrupt):
        _leave(130, "interrupted; nothing was written")
    except BrokenPipeError:
        _drop_stdout()
        _leave(0)
    except GraphoptError as error:
        if debug:
            raise
        _leave(error.exit_code, str(error))
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            _drop_stdout()
            _leave(2, f"stdout cannot be written: {error.strerror}")
        _leave(70, f"a bug in graphopt: {in_one_line(error)}; run again with --debug for the traceback")
    _leave(code if isinstance(code, int) else 0)


def _snake(argv: list[str]) -> list[str]:
    """Accept snake_case long options, as neighbouring tools spell them."""
    fixed = []
    for arg in argv:
        flag, equals, value = arg.partition("=")
        fixed.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else arg)
    return fixed


def _usage(error: click.ClickException) -> str:
    """One line instead of click's three."""
    text = " ".join(error.format_message().split()).rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{text[:1].lower()}{text[1:]}; see: {ctx.command_path} --help" if ctx is not None else text


def _leave(code: int, message: str = "") -> None:
    if message:
        print(f"graphopt: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        _leave(code or 2, f"stdout cannot be written: {error.strerror}")
    sys.exit(code)


def _is_read() -> bool:
    """Whether the reader of stdout is still there."""
    import select

    poll = select.poll()
    poll.register(sys.stdout, 0)  # for errors only
    return not poll.poll(0)


def _drop_stdout() -> None:
    """What is still in the buffer cannot be written, which Python would try once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
