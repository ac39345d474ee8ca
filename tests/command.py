"""Running verbs: in this process through click, or as a command of their own."""

import sys

from click.testing import CliRunner, Result

from foveate.cli import main


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
