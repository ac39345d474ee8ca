"""Progress: counts, and one line on standard error."""

import sys

import pytest

from foveate.calibration.progress import LINE_SECONDS, Meter, ProgressLine

OUTCOMES = ("kept", "wrong", "unreadable")


def test_meter_counts_down() -> None:
    meter = Meter(OUTCOMES, quiet=True)
    meter.start(10, 2)
    for outcome in ("kept", "kept", "wrong"):
        meter.step(outcome)
    assert meter.line(meter._began + 6) == (
        "3/10, 0.5 samples/s, 0:00:14 left, 2 kept, 1 wrong, 0 unreadable (of each of 2 processes)"
    )


def test_meter_shows_the_last_count_and_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        meter = Meter(OUTCOMES, quiet)
        meter.start(3, 1)
        for _ in range(3):
            meter.step("kept")
        meter.stop("stopped")
        lines = capsys.readouterr().err.splitlines()
        assert [line[:3] for line in lines] == ([] if quiet else ["3/3", "sto"])


def test_a_terminal_gets_one_line_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "21")
    line = ProgressLine()
    assert line.due
    line.show("x" * 30)
    line.show("y")
    line.end()
    assert capsys.readouterr().err == f"\r\x1b[K{'x' * 20}\r\x1b[Ky\n"


def test_elsewhere_a_line_is_due_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("foveate.calibration.progress.time.monotonic", lambda: now)
    line = ProgressLine()
    line.wait()
    now += LINE_SECONDS - 1
    assert not line.due
    now += 1
    assert line.due
