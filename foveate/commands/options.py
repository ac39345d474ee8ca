"""Options that several verbs share, and the decorator that makes a function a verb."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click import Choice, IntRange, option

DEBUG = "foveate.debug"
PATH = click.Path(readable=False, path_type=Path)
FUNCTION = TypeVar("FUNCTION", bound=Callable[..., Any])


def note_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Remember --debug, wherever on the command line it stands."""
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
as_json = option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
force = option("--force", is_flag=True, help="Replace what is already there.")
device = option(
    "--device", type=Choice(["auto", "cpu", "cuda"]), default="auto",
    help="Where to run; a device that is not available is an error.",
)  # fmt: skip
system = option("--system", metavar="TEXT", help="A system prompt, in place of the checkpoint's.")
keep_marks = option(
    "--keep-marks", is_flag=True,
    help="Leave special tokens in the answer's text, such as the marks of objects and boxes.",
)  # fmt: skip
pixels = (
    option("--max-pixels", type=IntRange(min=1), metavar="N",
           help="Shrink larger pictures and frames to this area.  [default: the bundle's]"),
    option("--min-pixels", type=IntRange(min=1), metavar="N",
           help="Enlarge smaller pictures and frames to this area.  [default: the bundle's]"),
)  # fmt: skip
loading = (
    option("--backend", type=Choice(["auto", "onnxruntime", "tensorrt"]), default="auto",
           help="What runs the graphs; auto is onnxruntime."),
    option("--target", metavar="NAME",
           help="Whose TensorRT engines to run, where those of several targets run here."),
    device,
    option("--memory-limit", metavar="SIZE",
           help="The most memory to take, such as 2GB.  [default: what the machine has]"),
    option("--max-picture-pixels", type=IntRange(1), default=178_956_970, metavar="N",
           help="Refuse larger pictures (width x height) by their header."),
    option("--threads", type=IntRange(0, 1024), default=0, show_default=False, metavar="N",
           help="Threads within an operator.  [default: the backend's choice]"),
)  # fmt: skip
"""How a bundle is loaded."""
LOADING = ("backend", "target", "device", "memory_limit", "max_picture_pixels", "threads")
decoder = option(
    "--decoder", type=Choice(["concat", "static"]),
    help="The engine's KV cache: one that grows, or one of fixed memory written in place (TensorRT from "
    "10.15 on, TensorRT for RTX).  [default: the target's]",
)  # fmt: skip


def verb(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a click command that takes --debug and shows an example of its use below its help."""

    def decorate(function: Callable[..., None]) -> click.Command:
        command = click.command(epilog=f"\b\nExample:\n  {example}")(function)
        command.params.append(debug)
        return command

    return decorate


def options(*several: Callable[[FUNCTION], FUNCTION]) -> Callable[[FUNCTION], FUNCTION]:
    """Several click options as one decorator, in the order of their help."""
    return lambda function: functools.reduce(lambda inner, one: one(inner), several[::-1], function)


def load_torch(begin: Callable[[str], object]) -> None:
    """Import torch and transformers, which takes seconds, as a progress stage of its own.

    Args:
        begin: Called with the stage's name as it begins.

    Raises:
        MissingDependencyError: A package that exporting and training need is not installed.
    """
    begin("loading torch and transformers")
    import foveate.modeling  # noqa: F401
