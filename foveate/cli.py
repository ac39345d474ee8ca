"""The command line: a click group that imports each verb when it is called."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from foveate._version import __version__
from foveate.atomic_write import FULL
from foveate.commands.options import DEBUG, debug
from foveate.commands.process import (
    CODE,
    INTERRUPTED,
    TERMINATED,
    Terminated,
    forget_stdout,
    open_streams,
    signals_raised,
)
from foveate.errors import FoveateError, OutputError
from foveate.terminal import note, one_line

VERBS = (
    "bench",
    "build",
    "calibrate",
    "chat",
    "demo",
    "doctor",
    "evaluate",
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

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit; without `standalone_mode`, as click does it.

        Raises:
            SystemExit: Always, with the exit code, where the mode is standalone.
        """
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        with signals_raised():
            open_streams()
            sys.exit(self._exit_code(args, prog_name, **extra))

    def _exit_code(self, args: Sequence[str] | None, prog_name: str | None, **extra: Any) -> int:
        """Run the command line; what there is to say of an error goes to standard error."""
        try:
            if sys.stdout is None:
                raise OutputError(
                    "standard output is closed, and results go there; open it, or send it to a file"
                )
            code: int = super().main(args, prog_name, standalone_mode=False, **extra) or 0
            if not code:
                sys.stdout.flush()
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except BrokenPipeError:
            forget_stdout()
            return 1
        except BaseException as error:
            message, code = describe_error(error)
            note(f"foveate: error: {one_line(message)}")
        if code:
            forget_stdout()
        return code

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command.

        Raises:
            Exit: The command failed; what there is to say was written to standard error.
        """
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except BaseException as error:
            if ctx.meta.get(DEBUG) and not interruption(error):
                note("".join(traceback.format_exception(error)))
            message, code = describe_error(error)
            note(f"foveate: error: {one_line(message)}")
            raise click.exceptions.Exit(code) from None


def describe_error(error: BaseException) -> tuple[str, int]:
    """What the command line says of an error, and its exit code.

    Raises:
        BaseException: The error itself, where it is none that a program handles.
    """
    if interrupted := interruption(error):
        if isinstance(interrupted, Terminated):
            return TERMINATED, interrupted.code
        return INTERRUPTED, CODE
    if isinstance(error, FoveateError):
        return str(error), 2
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or take a smaller model or picture", 1
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk does not take what is written: {error}; free some space", 2
    if not isinstance(error, Exception):
        raise error
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{what} (this is a bug; run again with --debug and report what it prints)", 1


def interruption(error: BaseException | None) -> BaseException | None:
    """The KeyboardInterrupt behind an error: imports that it breaks off say that they failed."""
    while error is not None and not isinstance(error, KeyboardInterrupt | click.Abort):
        error = error.__cause__ or error.__context__
    return error


@click.group(cls=LazyGroup, context_settings=SETTINGS)
@click.version_option(__version__, message="foveate %(version)s")
def main() -> None:
    """Run multimodal language models on the visual tokens that a question needs.

    \b
    Try it:  foveate demo
    """


main.params.append(debug)
