"""Runs all cases of a kind in workers, and counts how far they came and what came of them."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.attacks.fuzz.worker import Outcome

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


REPORTS: list["Report"] = []
"""Those of this session, for the summary at its end."""


@dataclass(slots=True)
class Report:
    """What came of the cases of a kind.

    Attributes:
        kind: The kind.
        outcomes: By number.
    """

    kind: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """What must not happen, by case."""
        return [
            f"{self.kind} {number} at {outcome.stage}: {outcome.detail}"
            for number, outcome in self.outcomes.items()
            if outcome.verdict == "fault"
        ]

    def shares(self) -> dict[str, int]:
        """How many cases came to each stage and ended there how."""
        counts = Counter(f"{one.stage} {one.verdict}" for one in self.outcomes.values())
        return dict(counts.most_common())

    def line(self) -> str:
        """The report in a line."""
        shares = ", ".join(f"{name} {count}" for name, count in self.shares().items())
        return f"{self.kind}: {len(self.outcomes)} cases; {shares}"


def run(kind: str, folder: Path, cases: int) -> Report:
    """Run the cases of a kind, half of them in each of two processes at once."""
    report, middle = Report(kind), cases // 2
    with ThreadPoolExecutor(2) as pool:
        for half in pool.map(partial(_run, kind, folder), (0, middle), (middle, cases)):
            report.outcomes.update(half)
    REPORTS.append(report)
    return report


def _run(kind: str, folder: Path, first: int, past: int) -> dict[int, Outcome]:
    """Run some cases; one that ends its process is a fault, and the next go on in another."""
    outcomes: dict[int, Outcome] = {}
    line = [sys.executable, "-m", "tests.attacks.fuzz.worker", kind, str(folder)]
    while first < past:
        done = subprocess.run(
            [*line, str(first), str(past)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        begun = None
        for text in done.stdout.splitlines():
            said = json.loads(text)
            if "begin" in said:
                begun = said["begin"]
            else:
                outcomes[said["end"]] = Outcome(*said["outcome"])
                begun, first = None, said["end"] + 1
        if done.returncode:
            assert begun is not None, done.stderr
            detail = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
            outcomes[begun] = Outcome("", "fault", detail)
            first = begun + 1
    return outcomes
