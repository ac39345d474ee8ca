"""What verbs put on a terminal: results on standard output, progress on standard error."""

import contextlib
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from foveate.ticking import ticking

TICK = 0.1
CLEAR = "\x1b[K"
DETAIL = 40
UNITS = ("B", "kB", "MB", "GB", "TB")


class Progress:
    """Stages on standard error, each with the seconds it took; they tick on a terminal."""

    def __init__(self) -> None:
        """Show nothing until the first stage begins."""
        self._terminal = sys.stderr.isatty()
        self._label, self._detail, self._began = "", "", 0.0
        self._lock = threading.Lock()
        self._ticking = contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        """Begin to tick where standard error is a terminal."""
        if self._terminal:
            self._ticking.enter_context(ticking(TICK, self._tick))
        return self

    def begin(self, stage: str, number: int = 0, total: int = 0) -> None:
        """End the stage before and begin one, the `number`th of `total` where they are known."""
        self._end()
        with self._lock:
            self._label = f"[{number}/{total}] {stage}" if total else stage
            self._detail = ""
            self._began = time.perf_counter()
            click.echo(f"{self._label} …", nl=False, err=True)

    def detail(self, text: str) -> None:
        """Show on a terminal what the current stage is doing; from any thread."""
        self._detail = text

    def __exit__(self, kind: object, *error: object) -> None:
        """End the last stage, and say so where an error stopped it."""
        self._ticking.close()
        self._end("" if kind is None else "stopped after ")

    def _end(self, note: str = "") -> None:
        """End the current stage, if there is one."""
        with self._lock:
            if self._label:
                again = f"\r{CLEAR}{self._label} …" if self._terminal else ""
                click.echo(f"{again} {note}{self._seconds()}", err=True)
            self._label = ""

    def _tick(self) -> None:
        """Rewrite the line of the current stage."""
        with self._lock:
            if self._label:
                detail = f"  {self._detail[:DETAIL]}" if self._detail else ""
                line = f"\r{CLEAR}{self._label} … {self._seconds()}{detail}"
                click.echo(line, nl=False, err=True)

    def _seconds(self) -> str:
        """How long the stage has taken so far."""
        return f"{time.perf_counter() - self._began:.1f} s"


def tell(text: str, *, newline: bool = True) -> None:
    """Write a result to standard output, at once; a terminal gets no control characters from it."""
    click.echo(_harmless(text) if sys.stdout.isatty() else text, nl=newline)


def tell_json(document: object) -> None:
    """Write a result to standard output as one JSON document."""
    tell(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Write a remark to standard error."""
    click.echo(text, err=True)


def one_line(text: str, most: int = 1000) -> str:
    """Text fit for one line: line breaks collapsed, control characters escaped, cut at `most`."""
    safe = _harmless(re.sub(r"\s*[\r\n]\s*", " ", text.strip()))
    return safe if len(safe) <= most else f"{safe[:most]}…"


def _harmless(text: str) -> str:
    """Text with its control characters escaped, but for line breaks and tabs."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text
    )


def table(rows: Iterable[Sequence[str]], indent: int = 2, gap: int = 2) -> str:
    """Rows as lines with columns aligned to the left; the last column may be of any length."""
    cells = [tuple(row) for row in rows]
    columns = itertools.zip_longest(*(row[:-1] for row in cells), fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    padded = ((*map(str.ljust, row[:-1], widths), *row[-1:]) for row in cells)
    return "\n".join(" " * indent + (" " * gap).join(row).rstrip() for row in padded)


def size(count: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds for people: 3.4 ms, 120 ms, 1.25 s."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def plural(count: int, noun: str) -> str:
    """A count and its noun: 1 file, 2 files."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain(value: Any) -> Any:
    """Arrays as lists, so that JSON takes them."""
    return value.tolist() if hasattr(value, "tolist") else value
