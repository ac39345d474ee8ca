"""One record's answers with all of its visual tokens, or with some of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.baselines import shares
from foveate.calibration.evaluation.rankings import AnsweredQuestion, Ranking
from foveate.calibration.ranking import top
from foveate.calibration.torch_model import TorchModel
from foveate.errors import ImageError
from foveate.families.base import Medium


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """A record's answers, each computed once for the same visual tokens; `of` makes one.

    Attributes:
        answered: The question with all visual tokens, and the tokens of its answer.
        full: That answer as text.
        media: The record's pictures or video, as they are.
        text: The question's.
        most: The longest answer, in tokens.
    """

    answered: AnsweredQuestion
    full: str
    media: Sequence[Medium]
    text: str
    most: int
    _answers: dict[bytes, str] = field(default_factory=dict)
    _scores: dict[str, NDArray[np.floating] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: TorchModel, record: Record, most: int) -> "AnswerCache":
        """Answer a record's question with all visual tokens.

        Raises:
            ImageError: A picture or video that cannot be read or taken.
            LimitError: A video of more tokens than the model's context.
            PromptError: A question that the model cannot take.
        """
        media = model.open(record)
        question = model.prepare(record.question, media)
        tokens = model.answer(question, most=most)
        answered = AnsweredQuestion(model, record.id, question, tokens)
        return cls(answered, model.text(tokens), media, record.question, most)

    @property
    def total(self) -> int:
        """Visual tokens N_v."""
        return self.answered.question.visual.tokens

    @property
    def candidates(self) -> NDArray[np.bool_]:
        """Which of them may be dropped, bool [N_v]."""
        return self.answered.question.visual.candidates

    def answer(self, ranking: Ranking, count: int) -> tuple[str | None, int]:
        """Answer with `count` of the visual tokens that may be dropped, and the others.

        Returns:
            The answer, or None where there are no scores or no pictures so small; and how many
            tokens it took.
        """
        competing = int(self.candidates.sum())
        if count == competing:
            return self.full, self.total
        left = count + self.total - competing
        if ranking.scores is None:
            return self._answer_shrunk(left)
        if ranking.name not in self._scores:
            found = ranking.scores(self.answered)
            if found is not None and not found.isfinite().all():
                found = None
            self._scores[ranking.name] = None if found is None else found.cpu().numpy()
        scores = self._scores[ranking.name]
        if scores is None:
            return None, left
        kept = top(scores, count, self.candidates)
        key = kept.tobytes()
        if key not in self._answers:
            model, question = self.answered.model, self.answered.question
            self._answers[key] = model.text(model.answer(question, kept, self.most))
        return self._answers[key], left

    def _answer_shrunk(self, count: int) -> tuple[str | None, int]:
        """Answer with the pictures made so small that they give `count` tokens at most."""
        model = self.answered.model
        _, counts = np.unique(self.answered.question.visual.picture, return_counts=True)
        if count < len(counts):
            return None, count
        try:
            question = model.prepare(self.text, self.media, shares(counts.tolist(), count))
        except ImageError:
            return None, count
        return model.text(model.answer(question, most=self.most)), question.visual.tokens
