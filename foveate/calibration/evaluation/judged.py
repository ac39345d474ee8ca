"""What came of one question: its answers with all visual tokens, and with those that were chosen."""

from dataclasses import asdict, dataclass, field
from typing import Any

from foveate.calibration.dataset import Record

OUTCOMES = {"exact": ("right", "wrong"), "words": ("described",)}
"""By measure what can come of a question with all of its tokens."""
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Trial:
    """One answer with some of the visual tokens.

    Attributes:
        way: What they were chosen by; see `WAYS`.
        ranking: The subject's way to rank; empty where that makes no difference.
        keep: How many, a ratio or a count; None where the way itself says.
        answer: The answer.
        score: From 0 to 1: right or wrong, or the share of its words that are right.
        used: The share of all visual tokens that was used.
        recall: The share of the asked thing's tokens that was kept; None where they are not known.
        precision: The share of the kept tokens that are the asked thing's; None likewise.
    """

    way: str
    ranking: str
    keep: float | int | None
    answer: str
    score: float
    used: float
    recall: float | None = None
    precision: float | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far the tokens kept by the asked question and by another one are the same.

    Attributes:
        ranking: The subject's way to rank.
        keep: A ratio or a count.
        jaccard: Tokens kept by both, of those kept by either.
        chance: The same to expect of two random choices.
    """

    ranking: str
    keep: float | int
    jaccard: float
    chance: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One question and what came of it.

    Attributes:
        data: The data file it is of.
        id: The record's.
        picture: Its pictures' names, by which questions are clustered.
        tags: Its task and scope, where it has them.
        measure: "exact" or "words".
        tokens: Visual tokens of its pictures.
        asked: Tokens of the asked thing; 0 where they are not known.
        unseen: Whether it has boxes that no token shows.
        other: The id of the other question about the same picture; empty where there is none.
        answer: The answer with all tokens.
        score: What that was worth, from 0 to 1.
        trials: Answers with some; none where the answer with all is worth nothing.
        overlaps: By ranking and keep.
        unreadable: Why it could not be taken; it then counts nowhere else.
    """

    data: str
    id: str
    picture: str
    tags: dict[str, str] = field(default_factory=dict)
    measure: str = "exact"
    tokens: int = 0
    asked: int = 0
    unseen: bool = False
    other: str = ""
    answer: str = ""
    score: float = 0.0
    trials: tuple[Trial, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    unreadable: str = ""

    @classmethod
    def without_answer(cls, data: str, record: Record, why: str) -> "Judged":
        """A question that could not be taken."""
        picture = ", ".join(map(str, record.pictures))
        tags, measure = dict(record.tags), record.measure
        return cls(data, record.id, picture, tags, measure, unreadable=why)

    @property
    def outcome(self) -> str:
        """In a word what came of it with all tokens."""
        if self.unreadable:
            return UNREADABLE
        return OUTCOMES[self.measure][0 if self.score else -1]


def judged_facts(judged: Judged) -> dict[str, Any]:
    """One question, for JSON."""
    return asdict(judged)


def read_judged(facts: dict[str, Any]) -> Judged:
    """A question again from what `judged_facts` gave.

    Raises:
        TypeError: It is of another version.
        KeyError: It is of another version.
    """
    trials = tuple(Trial(**one) for one in facts["trials"])
    overlaps = tuple(Overlap(**one) for one in facts["overlaps"])
    return Judged(**{**facts, "trials": trials, "overlaps": overlaps})
