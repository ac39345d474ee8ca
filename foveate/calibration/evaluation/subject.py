"""What is evaluated: a checkpoint or a bundle, as something that ranks visual tokens and answers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate.calibration.dataset import Record
from foveate.families.base import Medium, VisualInput

ITEM = TypeVar("ITEM")


class Scene(Protocol):
    """The pictures or the video of some questions, encoded once."""

    @property
    def media(self) -> Sequence[Medium]:
        """The pictures or the video, in order."""
        ...

    @property
    def visual(self) -> VisualInput:
        """They as the vision tower saw them."""
        ...

    def scores(self, ranking: str, prompt: str) -> NDArray[np.floating] | None:
        """Score the visual tokens by a prompt.

        Args:
            ranking: One of the subject's names.
            prompt: The user's text.

        Returns:
            [N_v], high for tokens that matter; None where there is nothing to rank by.

        Raises:
            FoveateError: A prompt that cannot be taken.
        """
        ...

    def answers(self, prompt: str, kept: Sequence[NDArray[np.int64]]) -> list[str]:
        """Answer a prompt greedily with each of several choices of visual tokens.

        Args:
            prompt: The user's text.
            kept: Ordinals int64 [K] of visual tokens, ascending; of any lengths from 1 on.

        Raises:
            FoveateError: A prompt that cannot be taken.
        """
        ...

    def answer_smaller(self, prompt: str, most: Sequence[int]) -> tuple[str, int]:
        """Answer a prompt about pictures that give at most so many visual tokens each.

        Returns:
            The answer, and how many visual tokens there were.

        Raises:
            ImageError: They are not made smaller.
        """
        ...


class Subject(Protocol):
    """A checkpoint or a bundle."""

    @property
    def rankings(self) -> Sequence[str]:
        """The names of its ways to rank visual tokens."""
        ...

    @property
    def facts(self) -> dict[str, str]:
        """What runs it, and where, for JSON."""
        ...

    def open(self, record: Record) -> Scene:
        """Open and encode a record's pictures or video.

        Raises:
            ImageError: What cannot be read or taken.
            LimitError: More visual tokens than are taken.
        """
        ...


class Team(Protocol):
    """The processes that share a run; see `Alone`."""

    @property
    def index(self) -> int:
        """Which of them this is; 0 is the main one."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def wait(self) -> None:
        """Wait until all are here."""
        ...

    def gather(self, items: list[ITEM]) -> list[ITEM]:
        """Everybody's items, one process's after the other's."""
        ...


class Alone:
    """A run of one process."""

    index, count = 0, 1

    def wait(self) -> None:
        """There is nobody to wait for."""

    def gather(self, items: list[ITEM]) -> list[ITEM]:
        """The items."""
        return items


class Evaluated(Protocol):
    """A checkpoint or a bundle before it is loaded.

    Attributes:
        kind: "checkpoint" or "bundle".
        source: Its path or name.
        facts: What it is, for JSON: the same for the same weights and settings.
    """

    kind: str
    source: str
    facts: dict[str, Any]

    @property
    def team(self) -> Team:
        """The processes that share the run."""
        ...

    def load(self) -> AbstractContextManager[Subject]:
        """Load it; the block's end frees it.

        Raises:
            FoveateError: It cannot be loaded.
        """
        ...
