"""What every attack starts from and is guarded by."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle
from tests.attacks.fuzz.report import REPORTS
from tests.attacks.harness import GOLDEN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how far the fuzz came."""
    if REPORTS:
        terminalreporter.section("fuzz: to which stage how many cases came, and what ended them")
    for report in REPORTS:
        terminalreporter.line(report.line())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A good bundle, with good files beside it that an attack may reach for."""
    path = tmp_path / "bundle"
    shutil.copytree(GOLDEN, path)
    shutil.copytree(GOLDEN, tmp_path / "outside")
    Bundle.open(path)
    return path


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that hangs, as one that opens a FIFO would."""

    def stop(*_: object) -> None:
        """Break off whatever is waiting."""
        raise TimeoutError("hung")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(600 if "fuzz" in request.path.parts else 10)
    yield
    signal.alarm(0)
