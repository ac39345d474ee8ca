"""Training's progress on standard error."""

import sys

import pytest

from foveate.calibration.training.progress import TrainingProgress
from foveate.calibration.training.run import Status


def test_progress_says_how_far_and_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = Status(3, 100, 64, 128, 1234.0, 725.0, None)
    with TrainingProgress() as progress:
        for _ in range(5):
            progress(status)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["epoch 3/100, 50%; 1,234 samples/s, 12:05 left"] * 2
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt), TrainingProgress() as progress:
        progress(status)
        raise KeyboardInterrupt
    assert "the same command goes on" in capsys.readouterr().err
