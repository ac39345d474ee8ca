"""The command line: a click group that imports each verb when it is called."""

import contextlib
import importlib
import sys
import traceback
from typing import Any

import click

from foveate._version import __version__
from foveate.commands.options import DEBUG, debug
from foveate.errors import FoveateError
from foveate.terminal import note, one_line

VERBS = (
    "bench",
    "build",
    "calibrate",
    "chat",
    "demo",
    "doctor",
    "export",
    "inspect",
    "run",
    "verify",
)
"""Each is a module of `foveate.commands` that has a click command of the same name."""


SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


class LazyGroup(click.Group):
    """`VERBS`, each imported when it is looked up; what one raises becomes a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, imported or not."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb; an unknown name imports all of them, so that click can suggest one."""
        for name in (cmd_name,) if cmd_name in VERBS else VERBS:
            if name not in self.commands:
                module = importlib.import_module(f"foveate.commands.{name}")
                self.add_command(getattr(module, name))
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command.

        Raises:
            Exit: The command failed; what there is to say was written to standard error.
        """
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
            message, code = describe_error(error)
            note(f"foveate: error: {one_line(message)}")
            raise click.exceptions.Exit(code) from None


def describe_error(error: BaseException) -> tuple[str, int]:
    """What the command line says of an error, and its exit code.

    Raises:
        BaseException: The error itself, where it is none that a program handles.
    """
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


@click.group(cls=LazyGroup, context_settings=SETTINGS)
@click.version_option(__version__, message="foveate %(version)s")
def main() -> None:
    """Run multimodal language models on the visual tokens that a question needs.

    \b
    Try it:  foveate demo
    """


main.params.append(debug)
