"""One record's question, asked again and again with other visual tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.rankings import Ranking, Seen, split, top
from foveate.calibration.torch_model import TorchModel
from foveate.errors import ImageError
from foveate.runtime.media.pictures import open_pictures


@dataclass(frozen=True, slots=True)
class Inquiry:
    """One question asked with ever other visual tokens; of the same tokens it is asked once.

    Attributes:
        seen: The question with all of them.
        full: The answer to that.
        pictures: As they are.
        text: The question's words.
        most: The longest answer, in tokens.
    """

    seen: Seen
    full: str
    pictures: Sequence[Image]
    text: str
    most: int
    _answers: dict[bytes, str] = field(default_factory=dict)
    _scores: dict[str, NDArray[np.floating] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: TorchModel, record: Record, most: int) -> "Inquiry":
        """Ask with all visual tokens.

        Raises:
            ImageError: A picture that cannot be read or taken.
            PromptError: A question that cannot be asked.
        """
        pictures = open_pictures(record.pictures)
        question = model.prepare(record.question, pictures)
        said = model.answer(question, most=most)
        seen = Seen(model, record.id, question, said)
        return cls(seen, model.text(said), pictures, record.question, most)

    @property
    def total(self) -> int:
        """Visual tokens N_v."""
        return self.seen.question.visual.tokens

    def answer(self, ranking: Ranking, count: int) -> tuple[str | None, int]:
        """Ask with `count` visual tokens.

        Returns:
            The answer, or None where there are no scores or no pictures so small; and how many
            tokens it took.
        """
        if count == self.total:
            return self.full, count
        if ranking.scores is None:
            return self._ask_smaller(count)
        scores = self._ranked(ranking)
        if scores is None:
            return None, count
        kept = top(scores, count)
        key = kept.tobytes()
        if key not in self._answers:
            model = self.seen.model
            self._answers[key] = model.text(model.answer(self.seen.question, kept, self.most))
        return self._answers[key], count

    def _ranked(self, ranking: Ranking) -> NDArray[np.floating] | None:
        """A ranking's scores [N_v]; None where there are none, or not finite ones."""
        if ranking.name not in self._scores and ranking.scores is not None:
            found = ranking.scores(self.seen)
            if found is not None and not found.isfinite().all():
                found = None
            self._scores[ranking.name] = None if found is None else found.cpu().numpy()
        return self._scores[ranking.name]

    def _ask_smaller(self, count: int) -> tuple[str | None, int]:
        """Ask with the pictures made so small that they give `count` tokens at most."""
        model, grids = self.seen.model, self.seen.question.visual.grids
        if count < len(grids):
            return None, count
        shares = split([math.prod(grid) for grid in grids], count)
        try:
            question = model.prepare_shrunk(self.text, self.pictures, shares)
        except ImageError:
            return None, count
        return model.text(model.answer(question, most=self.most)), question.visual.tokens
