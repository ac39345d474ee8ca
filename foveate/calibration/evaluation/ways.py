"""Ways to choose which visual tokens of a question are kept: by its own ranking, and what that is held against."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.calibration.boxes import ShownTokens
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.baselines import centre_scores, random_scores
from foveate.calibration.evaluation.subject import Scene
from foveate.errors import KeepError
from foveate.families.base import VisualInput
from foveate.runtime.keep import parse_keep, select

WAYS = {
    "own": "the asked question",
    "other": "another question about the same picture",
    "neutral": "a neutral prompt",
    "random": "chance",
    "centre": "nearness to the middle",
    "smaller": "a smaller picture",
    "oracle": "the asked thing first, the rest by chance",
    "without": "the asked question, never the asked thing",
    "all-but-it": "all tokens but the asked thing's",
    "one-token": "the asked thing's middle token alone",
}
"""What tokens are chosen by; the last two know no keep."""
RANKED = ("own", "other", "neutral", "without")
"""Those that differ by ranking."""
NEUTRAL = "Describe the picture."


@dataclass(frozen=True, slots=True)
class Choice:
    """Some of a question's visual tokens.

    Attributes:
        way: One of `WAYS`.
        ranking: The subject's way to rank; empty where that makes no difference.
        keep: A ratio or a count; None where the way itself says how many.
        kept: int64 [K], their ordinals, ascending.
    """

    way: str
    ranking: str
    keep: float | int | None
    kept: NDArray[np.int64]


def parse_ways(text: str) -> tuple[str, ...]:
    """Ways as a person writes them; "own" is always the first.

    Raises:
        KeepError: A name that is none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in WAYS:
            raise KeepError(f"there is no way {name!r} to choose tokens; give {', '.join(WAYS)}")
    return tuple(dict.fromkeys(["own", *names]))


def parse_keeps(text: str) -> list[float | int]:
    """Keeps as a person writes them, each once.

    Raises:
        KeepError: One that cannot be.
    """
    return list(dict.fromkeys(parse_keep(one) for one in text.split(",")))


def kept_tokens(
    visual: VisualInput, keep: float | int, scores: NDArray[np.floating]
) -> NDArray[np.int64]:
    """The tokens that a keep leaves by their scores [N_v]: int64 [K], ascending.

    A count of more tokens than there are keeps all.
    """
    return select(visual, _capped(keep, visual)).choose(scores)


def budget(visual: VisualInput, keep: float | int) -> int:
    """How many of the tokens that may be dropped a keep leaves."""
    return int(select(visual, _capped(keep, visual)).budgets.sum())


def choices(
    scene: Scene,
    record: Record,
    other: Record | None,
    shown: ShownTokens,
    rankings: Sequence[str],
    keeps: Sequence[float | int],
    neutral: str,
    seed: int,
) -> Iterator[Choice]:
    """All choices of a question's tokens but those of smaller pictures.

    Args:
        scene: Its pictures.
        record: The question.
        other: Another one about the same pictures; None where there is none.
        shown: The tokens that show the asked thing.
        rankings: The subject's.
        keeps: Ratios and counts.
        neutral: The neutral prompt.
        seed: Of chance.
    """
    visual = scene.visual
    prompts = {"own": record.question, "neutral": neutral}
    if other is not None:
        prompts["other"] = other.question
    for ranking in rankings:
        scores = {way: scene.scores(ranking, prompt) for way, prompt in prompts.items()}
        for way, found in scores.items():
            if found is not None and np.isfinite(found).all():
                for keep in keeps:
                    yield Choice(way, ranking, keep, kept_tokens(visual, keep, found))
        own = scores["own"]
        if shown.asked.any() and own is not None:
            for keep in keeps:
                yield Choice("without", ranking, keep, _without(visual, keep, own, shown.touched))
    chance = random_scores(record.id, visual.tokens, seed)
    fixed = {"random": chance, "centre": centre_scores(visual)}
    if shown.asked.any():
        # Of tokens that are covered alike chance decides, where there is not room for all of them.
        fixed["oracle"] = np.where(shown.asked, 2 + shown.cover + chance / 1000, chance)
        yield Choice("all-but-it", "", None, np.flatnonzero(~shown.touched))
        yield Choice("one-token", "", None, _with_fixed(visual, np.array([shown.middle])))
    for way, known in fixed.items():
        for keep in keeps:
            yield Choice(way, "", keep, kept_tokens(visual, keep, known))


def _without(
    visual: VisualInput,
    keep: float | int,
    scores: NDArray[np.floating],
    left_out: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The best tokens by their scores of those that are not left out, as many as a keep takes."""
    there = np.flatnonzero(visual.candidates & ~left_out)
    best = np.argsort(-scores[there], kind="stable")[: budget(visual, keep)]
    return _with_fixed(visual, there[best])


def _with_fixed(visual: VisualInput, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Kept tokens, and those that may not be dropped, ascending."""
    chosen = ~visual.candidates
    chosen[kept] = True
    return np.flatnonzero(chosen)


def _capped(keep: float | int, visual: VisualInput) -> float | int:
    """A keep, all tokens for a count of more than may be dropped."""
    return 1.0 if isinstance(keep, int) and keep >= visual.candidates.sum() else keep
