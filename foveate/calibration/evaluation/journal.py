"""Answers kept aside while an evaluation runs, so that one that was stopped goes on where it was."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.bundle.reader import file_digest
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.judged import Judged, judged_facts, read_judged
from foveate.errors import OutputError

FORMAT = 1
DIGITS = 16


def run_key(facts: dict[str, Any]) -> str:
    """One SHA-256 for all that the answers of a run depend on beside the questions."""
    return _digest({"format": FORMAT, **facts})


def default_path(key: str) -> Path:
    """Where a run's answers are kept aside by default: in $FOVEATE_CACHE, or else the user's cache."""
    own, shared = os.environ.get("FOVEATE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(shared or Path.home() / ".cache") / "foveate"
    return folder / "answers" / f"{key[:DIGITS]}.jsonl"


class Journal:
    """A file of judged questions, each under a key of everything that it depends on."""

    def __init__(self, path: Path, key: str, index: int = 0) -> None:
        """Read what is there; what a killed process left half written is left out.

        Args:
            path: The file; other processes' are beside it.
            key: The run's; see `run_key`.
            index: Which process of the run this is.

        Raises:
            OutputError: The file cannot be read or written.
        """
        self.path, self._key = path, key
        own = path if not index else path.with_name(f"{path.name}.{index}")
        self._digests: dict[str, str] = {}
        self._known: dict[str, dict[str, Any]] = {}
        try:
            for one in [path, *sorted(path.parent.glob(f"{path.name}.[0-9]*"))]:
                if one.is_file():
                    self._known |= dict(_entries(one.read_bytes().splitlines()))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = own.open("ab")
        except OSError as error:
            raise self._trouble(error) from error

    def find(self, key: str, record: Record, data: str) -> Judged | None:
        """What came of a question before; what only names it is taken from the data set as it is now."""
        try:
            judged = read_judged(self._known[key])
        except (KeyError, TypeError):
            return None
        picture = ", ".join(map(str, record.pictures))
        return replace(judged, data=data, tags=dict(record.tags), picture=picture)

    def key(self, record: Record, other: Record | None) -> str:
        """One SHA-256 for everything that a question's outcome depends on.

        Raises:
            OSError: A picture cannot be read.
        """
        return _digest(
            {
                "run": self._key,
                "id": record.id,
                "question": record.question,
                "answers": record.answers,
                "measure": record.measure,
                "pictures": [self._file_digest(path) for path in record.pictures],
                "moving": record.moving,
                "boxes": [[one.picture, *one.box] for one in record.boxes],
                "other": None if other is None else [other.id, other.question],
            }
        )

    def note(self, key: str, judged: Judged) -> None:
        """Keep a question aside, at once.

        Raises:
            OutputError: The file cannot be written.
        """
        line = json.dumps({"key": key, "judged": judged_facts(judged)}, ensure_ascii=True)
        try:
            # The first line break ends a line that a killed process left half written.
            self._file.write(f"\n{line}\n".encode())
            self._file.flush()
        except OSError as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _file_digest(self, path: Path) -> str:
        """A picture's SHA-256, computed once."""
        name = os.fspath(path)
        if name not in self._digests:
            self._digests[name] = file_digest(path)
        return self._digests[name]

    def _trouble(self, error: OSError) -> OutputError:
        """What cannot be done with the file, and what helps."""
        return OutputError(
            f"{self.path}: answers cannot be kept aside there ({error.strerror or error}); give another "
            "file with --answers"
        )


def _entries(lines: Iterable[bytes]) -> Iterable[tuple[str, dict[str, Any]]]:
    """The entries of a file that are whole."""
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            yield str(entry["key"]), entry["judged"]


def _digest(facts: dict[str, Any]) -> str:
    """One SHA-256 of facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
