"""Progress as a terminal shows it, and as a file keeps it."""

import io
import sys
import time

import pytest

from foveate.terminal import TICK, Progress, one_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_a_stage_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress() as progress:
        progress.begin("decoder", 1, 2)
        progress.detail("timing tactics " + "3" * 99)
        time.sleep(3 * TICK)
        progress.begin("seal", 2, 2)
        time.sleep(3 * TICK)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    first, second = shown.split("[2/2] seal", 1)
    assert "[1/2] decoder … 0.1 s  timing tactics 333" in first
    assert "3" * 40 not in first
    assert "timing" not in first.rsplit("\r", 1)[1]
    assert "timing" not in second


def test_a_file_gets_a_line_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress() as progress:
        progress.begin("decoder")
        progress.detail("timing tactics")
    assert sys.stderr.getvalue() == "decoder … 0.0 s\n"  # type: ignore[attr-defined]


def test_one_line_is_one_line() -> None:
    assert one_line(" a\r\n b\n\nc\x07 ") == "a b c\\x07"
    assert one_line("x" * 5000).endswith("x…")
    assert io.StringIO(one_line("a\u2028b")).read() == r"a\u2028b"
