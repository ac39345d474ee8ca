"""What is drawn of a question on a sheet: its rankings, what they keep, and the colours of their scores.

Relevance by Eq. 1 is signed: a token can speak against the answer. Tokens are ranked by the signed
value, so those go first. Maps show zero dark, what is above it in warm colours and what is below it in
cold ones, both on one scale; scores that are never below zero have the warm colours alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.drawing.words import Word
from foveate.runtime import heatmap
from foveate.runtime.lettering import Line

SIGNED_MIDDLE = 0.1
MUTED, SAME, OTHER = (112, 112, 120), (22, 120, 60), (196, 40, 28)

# From the colour of zero to a blue less light than the warm end, so that the eye goes to that first.
COLD = np.array([(22, 18, 70), (20, 48, 112), (30, 92, 156), (72, 144, 192)], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """Some of a question's visual tokens, and the answer from these alone.

    Attributes:
        keep: How many, a ratio or a count.
        indices: int64 [K], ordinals of the kept tokens, ascending.
        answer: The model's answer from these tokens.
        same: Whether it is, token for token, the answer from all.
        overlap: Share of these tokens that R_v keeps too; None for R_v itself.
    """

    keep: float | int
    indices: NDArray[np.int64]
    answer: str
    same: bool
    overlap: float | None


@dataclass(frozen=True, slots=True)
class RankedTokens:
    """One ranking of a question's visual tokens.

    Attributes:
        name: What the paper calls it, such as R_v.
        meaning: What it is, in a few words.
        scores: float32 [N_v], what its map shows.
        kept: What is left at each ratio or count.
    """

    name: str
    meaning: str
    scores: NDArray[np.float32]
    kept: tuple[KeptAnswer, ...]


@dataclass(frozen=True, slots=True)
class SheetEntry:
    """A question with its pictures, its answers and the rankings of its visual tokens.

    Attributes:
        record: The question, with its right answers where they are known.
        pictures: Its pictures, or the frames of its video, in order.
        visual: Which part of which picture each visual token shows.
        answer: The model's answer from all tokens.
        rankings: All with the same keeps.
        seconds: When each frame of a video is shown.
        words: The question's tokens, with what each counts in the last ranking.
    """

    record: Record
    pictures: tuple[Image.Image, ...]
    visual: heatmap.Shown
    answer: str
    rankings: tuple[RankedTokens, ...]
    seconds: tuple[float, ...] = ()
    words: tuple[Word, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of visual tokens of all pictures together."""
        return len(self.visual.picture)

    def chosen(self, kept: KeptAnswer) -> NDArray[np.bool_]:
        """Which of the visual tokens are kept, bool [N_v]."""
        found = np.zeros(self.tokens, dtype=np.bool_)
        found[kept.indices] = True
        return found


@dataclass(frozen=True, slots=True)
class Scale:
    """Scores as colours.

    Attributes:
        values: float64 [N_v], the scores on the scale.
        paint: Its colours.
        least: The lowest value on it.
        ends: What its ends are called, and between them zero where there is one.
    """

    values: NDArray[np.float64]
    paint: heatmap.Paint
    least: float
    ends: tuple[str, ...]

    @classmethod
    def of(cls, scores: NDArray[np.floating]) -> "Scale":
        """The scale for scores [N_v]: signed where any is below zero."""
        if (scores < 0).any():
            ends = ("against", "0", "for the answer")
            return cls(signed_spread(scores), signed_colours, -1.0, ends)
        return cls(heatmap.spread(scores), heatmap.colours, 0.0, ("low", "high"))


def signed_spread(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale scores [N_v] to float64 from -1 to 1: signs stay, and both sides are on the scale of `spread`."""
    values = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    sizes = heatmap.spread(np.append(np.abs(values), 0.0), SIGNED_MIDDLE)[:-1]
    return np.asarray(np.sign(values) * sizes)


def signed_colours(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The colours, RGB from 0 to 255, of values from -1 (cold) over 0 (dark) to 1 (warm)."""
    warm = heatmap.COLOURS
    stops = np.concatenate([np.linspace(-1, 0, len(COLD)), np.linspace(0, 1, len(warm))[1:]])
    ramp = np.concatenate([COLD[::-1], warm[1:]])
    return heatmap.ramped(values, stops, ramp)


def result_lines(entry: SheetEntry, kept: KeptAnswer, here: int) -> tuple[Line, ...]:
    """The text of one keep, of which `here` tokens are in the picture that is shown."""
    share = f"top {100 * kept.keep:g} %" if isinstance(kept.keep, float) else "top"
    among = f", {here} here" if len(entry.pictures) > 1 and not entry.record.moving else ""
    shared = "" if kept.overlap is None else f"{100 * kept.overlap:.0f} % of them kept by R_v too"
    word, colour = ("same answer", SAME) if kept.same else ("another answer", OTHER)
    return (
        Line(f"{share}: {len(kept.indices)} of {entry.tokens} tokens{among}", bold=True),
        Line(f"{word}: “{kept.answer}”", colour),
        *([Line(shared, MUTED)] if shared else []),
    )
