"""How each task may be asked: several wordings, of which calibration may see a part."""

import numpy as np
from tasks.picture import Box, Question

WORDINGS: dict[str, tuple[str, ...]] = {
    "letter": (
        "What letter is in the {what}?",
        "Which letter does the {what} hold?",
        "Name the letter inside the {what}.",
        "Tell me the letter of the {what}.",
    ),
    "two letters": (
        "What letters are in the {what} and the {other}?",
        "Name the letters inside the {what} and the {other}.",
    ),
    "color": (
        "What color is the shape with the letter {what}?",
        "Which color does the shape with {what} have?",
    ),
    "shape": ("What shape has the letter {what}?", "Which shape holds the letter {what}?"),
    "sprite": ("What has the letter {what}?", "Which thing holds the letter {what}?"),
    "count": ("How many {what} are there?", "Count the {what}.", "What is the number of {what}?"),
    "bar": (
        "What is the value of {what}?",
        "How high is {what}?",
        "Give the value of {what}.",
    ),
    "bar color": ("What color is {what}?", "Which color does {what} have?"),
    "tallest": (
        "What is the value of the tallest bar?",
        "What is the value of the shortest bar?",
        "What color is the tallest bar?",
        "Which bar is the tallest?",
    ),
    "code": (
        "What code is on the {what}?",
        "Which code does the {what} show?",
        "Read the code of the {what}.",
        "Tell me what the {what} says.",
        "What is written on the {what}?",
    ),
    "word": (
        "What word is on the {what}?",
        "Which word does the {what} show?",
        "Read the word of the {what}.",
        "Tell me what the {what} says.",
        "What is written on the {what}?",
    ),
    "number": (
        "What number is on the {what}?",
        "Which number does the {what} show?",
        "Read the number of the {what}.",
        "Tell me what the {what} says.",
        "What is written on the {what}?",
    ),
    "plate color": ("What color is the plate that says {what}?", "Which color has {what}?"),
    "ink": ("What color are the letters on the {what}?",),
    "table": (
        "What numbers are in the {what}?",
        "Which numbers does the {what} hold?",
        "Read the numbers of the {what}.",
        "List the {what}.",
    ),
    "line": (
        "What does the {what} say?",
        "Which words are in the {what}?",
        "Read the {what}.",
        "Tell me the words of the {what}.",
    ),
}


def ask(
    rng: np.random.Generator, task: str, answer: str, boxes: list[Box], what: str, other: str = ""
) -> Question:
    """A question of a task in one of its wordings; global where it has no boxes."""
    form = int(rng.integers(len(WORDINGS[task])))
    text = WORDINGS[task][form].format(what=what, other=other)
    return Question(text, answer, task, tuple(boxes), form)
