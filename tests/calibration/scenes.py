"""A few scenes for nano in which it is known where each thing is: questions with boxes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 336
COLOURS = {
    "red": (214, 40, 40),
    "blue": (40, 80, 214),
    "green": (44, 150, 60),
    "purple": (136, 50, 170),
}
LETTERS = "ABEHKMRT"
PLACES = ((20, 24), (200, 20), (30, 210), (216, 204))
SIZE = 82


def draw_scene(path: Path, seed: int) -> list[dict[str, Any]]:
    """Draw four coloured squares with a letter each; a question about each letter, with its box."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (SIDE, SIDE), (226, 224, 216))
    draw = ImageDraw.Draw(picture)
    letters = rng.permutation(list(LETTERS))[:4]
    questions = []
    for (left, top), colour, letter in zip(
        PLACES, rng.permutation(list(COLOURS)), letters, strict=True
    ):
        box = (left, top, left + SIZE, top + SIZE)
        draw.rectangle(box, COLOURS[str(colour)])
        middle = (left + SIZE / 2, top + SIZE / 2)
        draw.text(middle, str(letter), "white", ImageFont.load_default(52), anchor="mm")
        questions.append(
            {
                "question": f"What letter is in the {colour} square?",
                "answer": str(letter),
                "box": [side / SIDE for side in box],
                "task": "letter",
            }
        )
    picture.save(path)
    return questions


def write_scenes(folder: Path, seeds: Sequence[int]) -> Path:
    """A data set of scenes, a line each, and a caption of the first."""
    lines = []
    for seed in seeds:
        name = f"scene-{seed}.png"
        lines.append({"id": str(seed), "image": name, "questions": draw_scene(folder / name, seed)})
    data = folder / "scenes.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return data
