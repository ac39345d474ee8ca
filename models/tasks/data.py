"""Writes data sets of pictures and questions: PNG files and data.jsonl.

python -m tasks.data OUT --kinds grid,plates --pictures 200 --seed 11 --held-out
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tasks.charts import sample_chart
from tasks.lines import sample_lines
from tasks.picture import Picture, Question
from tasks.plates import sample_plates
from tasks.render import render
from tasks.sprites import sample_sprites
from tasks.tables import sample_table

HELD_OUT_SEED = 1_000_000_007
Sampler = Callable[[np.random.Generator, tuple[int, int], bool], Picture]
KINDS: dict[str, Sampler] = {
    "sprites": sample_sprites,
    "grid": lambda rng, size, held_out: sample_sprites(rng, size, held_out, full=True),
    "chart": sample_chart,
    "plates": sample_plates,
    "codes": lambda rng, size, held_out: sample_plates(rng, size, held_out, "code"),
    "long-codes": lambda rng, size, held_out: sample_plates(rng, size, held_out, "code", (6, 6)),
    "words": lambda rng, size, held_out: sample_plates(rng, size, held_out, "word"),
    "numbers": lambda rng, size, held_out: sample_plates(rng, size, held_out, "number"),
    "table": sample_table,
    "lines": sample_lines,
}


def records(
    picture: Picture, name: str, rng: np.random.Generator, options: argparse.Namespace
) -> list[dict[str, object]]:
    """A picture's questions as lines of a data set, in random order, as far as they are asked for."""
    tasks, without = (
        set(filter(None, part.split(","))) for part in (options.tasks, options.without)
    )
    asked = [
        question
        for question in [*picture.questions, picture.caption]
        if (not tasks or question.task in tasks)
        and (question.form % 2 == 0 or options.wordings != "even")
        and (question.form % 2 == 1 or options.wordings != "odd")
        and not any(word in question.text for word in without)
    ]
    chosen = [asked[index] for index in rng.permutation(len(asked))[: options.questions]]
    return [_record(picture, question, name, number) for number, question in enumerate(chosen)]


def _record(picture: Picture, question: Question, name: str, number: int) -> dict[str, object]:
    height, width = picture.size
    record: dict[str, object] = {
        "id": f"{name}-{number}",
        "image": f"{name}.png",
        "question": question.text,
        "answer": question.answer,
        "task": question.task,
        "scope": question.scope,
    }
    if question.task == "caption":
        record["measure"] = "words"
    if question.boxes:
        record["boxes"] = [
            [
                round(edge, 4)
                for edge in (left / width, top / height, right / width, bottom / height)
            ]
            for top, left, bottom, right in question.boxes
        ]
    return record


def write_data(options: argparse.Namespace) -> int:
    """Write the data set; how many questions it has."""
    rng = np.random.default_rng((HELD_OUT_SEED if options.held_out else 1, options.seed))
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for number in range(options.pictures):
        for kind in options.kinds.split(","):
            size = tuple(int(side) for side in rng.integers(*options.sides, size=2))
            picture = KINDS[kind](rng, (size[0], size[1]), options.held_out)
            name = f"{kind}-{options.seed}-{number:05d}"
            found = records(picture, name, rng, options)
            if found:
                image = Image.fromarray(render([picture])[0].numpy())
                image.save(options.out / f"{name}.png", optimize=True)
                lines += [json.dumps(record) for record in found]
    (options.out / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def main() -> None:
    """Write a data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS), help=", ".join(KINDS))
    parser.add_argument("--tasks", default="", help="only questions of these tasks")
    parser.add_argument("--without", default="", help="no questions with these words in them")
    parser.add_argument("--pictures", type=int, default=100, help="pictures of each kind")
    parser.add_argument("--questions", type=int, default=3, help="questions a picture, at most")
    parser.add_argument("--wordings", choices=("all", "even", "odd"), default="all")
    parser.add_argument("--held-out", action="store_true", help="fonts and shades never trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", type=int, nargs=2, default=(252, 365), help="least, most + 1")
    options = parser.parse_args()
    print(f"{write_data(options)} questions in {options.out / 'data.jsonl'}")


if __name__ == "__main__":
    main()
