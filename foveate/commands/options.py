"""What every verb of the command line has: its errors as one line, --debug, an example of its use."""

import contextlib
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from foveate.errors import FoveateError
from foveate.terminal import note, one_line

DEBUG = "foveate.debug"
PATH = click.Path(readable=False, path_type=Path)
FUNCTION = TypeVar("FUNCTION", bound=Callable[..., Any])


class Verbs(click.Group):
    """The group of verbs, which turns whatever they raise into a line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except BaseException as error:
            if ctx.meta.get(DEBUG) and not isinstance(error, KeyboardInterrupt):
                note("".join(traceback.format_exception(error)))
            message, code = verdict(error)
            note(f"foveate: error: {one_line(message)}")
            raise click.exceptions.Exit(code) from None


def verdict(error: BaseException) -> tuple[str, int]:
    """What the command line says of an error, and its exit code."""
    if isinstance(error, FoveateError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was left half-written", 130
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or take a smaller model or picture", 1
    if not isinstance(error, Exception):
        raise error
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{what} (this is a bug; run again with --debug and report what it prints)", 1


def note_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Remember --debug, wherever it stands."""
    if value:
        ctx.meta[DEBUG] = True


debug = click.Option(
    ["--debug"],
    is_flag=True,
    expose_value=False,
    callback=note_debug,
    envvar="FOVEATE_DEBUG",
    help="Show the traceback of an error (also FOVEATE_DEBUG=1).",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
force = click.option("--force", is_flag=True, help="Replace what is already there.")
decoder = click.option(
    "--decoder", type=click.Choice(["concat", "static"]),
    help="The engine's KV cache: one that grows, or one of fixed memory written in place (TensorRT from "
    "10.15 on, TensorRT for RTX).  [default: the target's]",
)  # fmt: skip


def verb(group: click.Group, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a verb of `group`, with an example of its use below its help."""

    def register(function: Callable[..., None]) -> click.Command:
        command = group.command(epilog=f"\b\nExample:\n  {example}")(function)
        command.params.append(debug)
        return command

    return register


def options(*several: Callable[[FUNCTION], FUNCTION]) -> Callable[[FUNCTION], FUNCTION]:
    """Several click options as one decorator, in the order of their help."""
    return lambda function: functools.reduce(lambda inner, one: one(inner), several[::-1], function)
