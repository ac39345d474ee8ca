"""How an evaluation compares answers."""

from dataclasses import dataclass
from pathlib import Path

from foveate.calibration.answers import Rule
from foveate.calibration.evaluation.ways import NEUTRAL, WAYS

NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What is compared, and how.

    Attributes:
        keep: Ratios or counts, with commas between. A question of fewer tokens than a count keeps all.
        ways: What tokens are chosen by, of `WAYS`.
        neutral: The neutral prompt.
        seed: Of chance.
        rule: When an answer is right.
        max_new_tokens: The longest answer.
        batch: The most answers that are generated together.
        limit: Ask only so many questions of each file, from the first; the others still serve as other
            questions about the same picture.
        answers: The file in which answers are kept aside; None for one in the user's cache.
    """

    keep: str = "0.5,0.25,0.1"
    ways: tuple[str, ...] = tuple(WAYS)
    neutral: str = NEUTRAL
    seed: int = 0
    rule: Rule = "exact"
    max_new_tokens: int = NEW_TOKENS
    batch: int = 16
    limit: int | None = None
    answers: Path | None = None
