"""Running verbs: in this process through click, or as a command of their own."""

import os
import sys

from click.testing import CliRunner, Result

from foveate.cli import main

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""The environment of a process that is to leave the other cores alone."""


def invoke(*arguments: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "foveate", *map(str, arguments)]


def refused(result: Result, *words: str) -> str:
    """The one line on standard error of a verb that was refused."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if "foveate: error:" in line)
    assert line.startswith("foveate: error: ")
    assert result.stderr.endswith(line + "\n")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in line
    return line
