"""One question's answers, each choice of visual tokens once, and how they compare."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate.calibration.answers import answer_worth
from foveate.calibration.boxes import ShownTokens
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.baselines import overlap, overlap_by_chance, shares
from foveate.calibration.evaluation.judged import Judged, Overlap, Trial
from foveate.calibration.evaluation.options import EvaluateOptions
from foveate.calibration.evaluation.subject import Scene
from foveate.calibration.evaluation.ways import Choice, budget, choices, parse_keeps
from foveate.errors import DataError, ImageError
from foveate.families.base import Video


def judge(
    scene: Scene,
    record: Record,
    other: Record | None,
    rankings: Sequence[str],
    options: EvaluateOptions,
    data: str = "",
) -> Judged:
    """Judge one question's answers: with all visual tokens, and with those of every choice.

    Args:
        scene: Its pictures.
        record: The question.
        other: Another one about the same pictures; None where there is none.
        rankings: The subject's.
        options: What is compared, and how.
        data: The data file.

    Raises:
        DataError: A box in a frame that there is not.
        FoveateError: A question that cannot be taken.
    """
    visual, keeps = scene.visual, parse_keeps(options.keep)
    _check_frames(scene, record)
    shown = ShownTokens.of(visual, record.boxes)
    everything = np.arange(visual.tokens)
    (full,) = scene.answers(record.question, [everything])
    score = _score(full, record, options)
    trials: list[Trial] = []
    overlaps: list[Overlap] = []
    if score:
        made = [
            choice
            for choice in choices(
                scene, record, other, shown, rankings, keeps, options.neutral, options.seed
            )
            if choice.way in options.ways and len(choice.kept)
        ]
        answered = _answers(scene, record, made, {everything.tobytes(): full})
        for choice in made:
            answer = answered[choice.kept.tobytes()]
            used = len(choice.kept) / visual.tokens
            found = _found(choice.kept[visual.candidates[choice.kept]], shown.asked)
            worth = _score(answer, record, options)
            trials.append(
                Trial(choice.way, choice.ranking, choice.keep, answer, worth, used, *found)
            )
        if "smaller" in options.ways:
            trials += _smaller(scene, record, full, options)
        overlaps = _overlaps(made, visual.candidates)
    return Judged(
        data=data,
        id=record.id,
        picture=", ".join(map(str, record.pictures)),
        tags=dict(record.tags),
        measure=record.measure,
        tokens=visual.tokens,
        asked=int(shown.asked.sum()),
        unseen=bool(record.boxes) and not shown.asked.any(),
        other="" if other is None else other.id,
        answer=full,
        score=score,
        trials=tuple(trials),
        overlaps=tuple(overlaps),
    )


def _check_frames(scene: Scene, record: Record) -> None:
    """DataError for a box in a picture or frame beyond the last."""
    frames = sum(len(one.frames) if isinstance(one, Video) else 1 for one in scene.media)
    for box in record.boxes:
        if box.picture >= frames:
            raise DataError(
                f"a box is in frame {box.picture}, and the model takes {frames} of the video, from 0 "
                f"to {frames - 1}; number frames as the model takes them"
            )


def _score(answer: str, record: Record, options: EvaluateOptions) -> float:
    """What an answer is worth, from 0 to 1."""
    return answer_worth(answer, record.answers, record.measure, options.rule)


def _answers(
    scene: Scene, record: Record, made: Sequence[Choice], known: dict[bytes, str]
) -> dict[bytes, str]:
    """The answers by the kept tokens' bytes, each choice of tokens answered once."""
    new = {
        choice.kept.tobytes(): choice.kept for choice in made if choice.kept.tobytes() not in known
    }
    # Prompts of one length can be answered together.
    order = sorted(new.values(), key=len)
    answers = scene.answers(record.question, order) if order else []
    return {**known, **{one.tobytes(): text for one, text in zip(order, answers, strict=True)}}


def _found(
    kept: NDArray[np.int64], asked: NDArray[np.bool_]
) -> tuple[float, float] | tuple[None, None]:
    """Recall and precision of the asked thing's tokens among the kept ones."""
    if not asked.any() or not len(kept):
        return None, None
    both = float(asked[kept].sum())
    return both / float(asked.sum()), both / len(kept)


def _smaller(scene: Scene, record: Record, full: str, options: EvaluateOptions) -> list[Trial]:
    """Answers about smaller pictures, none where a picture cannot be so small, or for videos."""
    visual, counts = scene.visual, _media_tokens(scene)
    trials = []
    for keep in parse_keeps(options.keep):
        count = budget(visual, keep)
        if count == visual.candidates.sum():
            trials.append(Trial("smaller", "", keep, full, _score(full, record, options), 1.0))
        elif count >= len(counts):
            try:
                most = shares(counts, count)
                answer, tokens = scene.answer_smaller(record.question, most)
            except ImageError:
                break
            worth = _score(answer, record, options)
            trials.append(Trial("smaller", "", keep, answer, worth, tokens / visual.tokens))
    return trials


def _media_tokens(scene: Scene) -> list[int]:
    """How many visual tokens each picture or video has."""
    frames = [len(one.frames) if isinstance(one, Video) else 1 for one in scene.media]
    medium = np.searchsorted(np.cumsum(frames), scene.visual.picture, side="right")
    counts: list[int] = np.bincount(medium, minlength=len(frames)).tolist()
    return counts


def _overlaps(made: Sequence[Choice], candidates: NDArray[np.bool_]) -> list[Overlap]:
    """How far the asked question and the other one keep the same of the tokens that may be dropped."""
    total, sets = int(candidates.sum()), {}
    for choice in made:
        if choice.keep is not None:
            kept = choice.kept[candidates[choice.kept]]
            sets[choice.way, choice.ranking, choice.keep] = kept
    overlaps = []
    for (way, ranking, keep), own in sets.items():
        other = sets.get(("other", ranking, keep))
        if way == "own" and other is not None:
            chance = overlap_by_chance(total, len(own))
            overlaps.append(Overlap(ranking, keep, overlap(own, other), chance))
    return overlaps
