"""Runs mutated files through what reads them, in a process that a native crash may end.

python -m tests.attacks.fuzz.worker KIND FOLDER FIRST PAST: one line of JSON before and after each case.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from foveate.errors import BundleError, FoveateError

SECONDS = 20
MEMORY = 12 << 30
"""Address space of a worker: onnxruntime's threads reserve much more than they use."""
SEED = "foveate"


class Case:
    """A case under way: which stage it has reached, and whether its answer is the right one."""

    def __init__(self, number: int, random: Random, folder: Path) -> None:
        """Begin before any stage."""
        self.number, self.random, self.folder = number, random, folder
        self.stage, self.equal = "", False

    def reach(self, stage: str) -> None:
        """Note that a stage is entered."""
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case.

    Attributes:
        stage: The last stage that it entered.
        verdict: "equal", "refused" by an error of Foveate, "changed" where a well-formed answer differs,
            or "fault".
        detail: The error.
    """

    stage: str
    verdict: str
    detail: str = ""


Probe = Callable[[Case], None]


def run_case(probe: Probe, kind: str, number: int) -> Outcome:
    """Run one case; whatever it raises is judged."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(number, Random(f"{SEED} {kind} {number}"), Path(folder))
        try:
            probe(case)
        except FoveateError as error:
            message = str(error)
            long = isinstance(error, BundleError) and len(message) > 3000
            if long or not message.replace("\n", " ").isprintable():
                return Outcome(case.stage, "fault", f"unfit to print: {message[:300]!r}")
            return Outcome(case.stage, "refused", f"{type(error).__name__}: {message[:200]}")
        except Exception as error:
            return Outcome(case.stage, "fault", f"{type(error).__name__}: {str(error)[:300]}")
        return Outcome(case.stage, "equal" if case.equal else "changed")


def main(kind: str, folder: str, first: int, past: int) -> None:
    """Run some cases, each watched by an alarm that ends the process."""
    from tests.attacks.fuzz.probes import PROBES

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    probe = PROBES[kind](Path(folder))
    with quiet() as say:
        for number in range(first, past):
            say({"begin": number})
            signal.alarm(SECONDS)
            outcome = run_case(probe, kind, number)
            signal.alarm(0)
            say({"end": number, "outcome": [outcome.stage, outcome.verdict, outcome.detail]})


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[object], None]]:
    """Keep what libraries print out of the lines that are read."""
    results = os.dup(1)
    os.dup2(2, 1)
    with open(results, "w") as file:
        yield lambda line: print(json.dumps(line), file=file, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
