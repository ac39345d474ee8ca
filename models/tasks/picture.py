"""A picture as drawing orders, and what can be asked about it."""

from dataclasses import dataclass, field

import numpy as np

Box = tuple[float, float, float, float]
"""Top, left, bottom, right in pixels."""
RGB = tuple[int, int, int]

CAPTION = "Describe the picture."
SHUFFLED = "Describe the things."
INVENTORY = "How many?"


@dataclass(frozen=True, slots=True)
class Question:
    """One question and its answer.

    Attributes:
        text: The question.
        answer: Its only right answer.
        task: What is asked for.
        boxes: What must be seen to answer it; empty where that is all of the picture.
        form: Which of its task's wordings the question has.
    """

    text: str
    answer: str
    task: str
    boxes: tuple[Box, ...] = ()
    form: int = 0

    @property
    def scope(self) -> str:
        """ "local" where the answer stands in some boxes, else "global"."""
        return "local" if self.boxes else "global"


@dataclass(slots=True)
class Picture:
    """Drawing orders, a description, and questions.

    Attributes:
        kind: Which generator made it.
        size: (height, width) in pixels.
        background: RGB.
        grounds: Rectangles (top, left, bottom, right, RGB), painted in order.
        shapes: (shape tile, row and column of its top left corner, RGB), over the grounds.
        glyphs: (glyph tile, row and column of its top left corner, RGB), over the shapes.
        things: What there is in raster order, each thing's words.
        counts: What there is several times or once, and how many.
        questions: Well-posed questions only.
    """

    kind: str
    size: tuple[int, int]
    background: RGB
    grounds: list[tuple[int, int, int, int, RGB]] = field(default_factory=list)
    shapes: list[tuple[int, int, int, RGB]] = field(default_factory=list)
    glyphs: list[tuple[int, int, int, RGB]] = field(default_factory=list)
    things: list[list[str]] = field(default_factory=list)
    counts: list[tuple[str, int]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    @property
    def caption(self) -> Question:
        """All that is in the picture, in raster order."""
        return Question(CAPTION, ", ".join(" ".join(thing) for thing in self.things), "caption")

    def tellings(self, rng: np.random.Generator) -> list[Question]:
        """Ways to tell all that is in the picture: in raster order, shuffled, counted."""
        things = [self.things[index] for index in rng.permutation(len(self.things))]
        words = [
            " ".join(thing[place] for place in rng.permutation(len(thing))) for thing in things
        ]
        told = [self.caption, Question(SHUFFLED, ", ".join(words), "shuffled")]
        if self.counts:
            some = [self.counts[index] for index in rng.permutation(len(self.counts))]
            text = ", ".join(f"{what} {number}" for what, number in some)
            told.append(Question(INVENTORY, text, "inventory"))
        return told


def around(boxes: list[Box]) -> Box:
    """The smallest box that holds all of some."""
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return min(tops), min(lefts), max(bottoms), max(rights)
