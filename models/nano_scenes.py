"""Pictures and questions for the nano checkpoint: scenes of sprites, and bar charts.

A picture is a list of rectangles and tiles; a tile is a shape, letter or digit drawn once by Pillow
and blended where it is wanted, thousands of pictures a second on a GPU and one at a time here.

    python models/nano_scenes.py OUT --count 1000 --seed 1       # PNG files and OUT/data.jsonl
"""

import argparse
import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 92
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
LETTERS = "ABCDEFHKLMNPRSTX"
DIGITS = "0123456789"
COLORS = {
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 214),
    "yellow": (244, 205, 40),
    "purple": (136, 50, 170),
    "orange": (246, 130, 30),
    "teal": (20, 160, 160),
    "brown": (124, 74, 40),
}
SHAPE_SIZES = (70, 76, 82, 88)
LETTER_SIZES = (50, 56)
LABEL_SIZE = 40
HELD_OUT_SEED = 1_000_000_007
CAPTION = "Describe the picture."
SHUFFLED = "Describe the shapes."
INVENTORY = "How many?"


@dataclass(slots=True)
class Question:
    """One question and its answer; local when the answer sits in one place."""

    text: str
    answer: str
    task: str
    scope: str


@dataclass(slots=True)
class Picture:
    """A picture as drawing orders, what is in it in words, and questions about it.

    Attributes:
        size: (height, width) in pixels.
        background: RGB.
        rectangles: (top, left, bottom, right, RGB).
        tiles: (tile number, row and column of its top left corner, RGB).
        caption: All that is in it, in raster order.
        questions: Well-posed questions only.
        things: What there is, each thing's words in an order that may be changed.
        counts: What there is several times or once, and how many.
    """

    size: tuple[int, int]
    background: tuple[int, int, int]
    caption: str
    rectangles: list[tuple[int, int, int, int, tuple[int, int, int]]] = field(default_factory=list)
    tiles: list[tuple[int, int, int, tuple[int, int, int]]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    things: list[list[str]] = field(default_factory=list)
    counts: list[tuple[str, int]] = field(default_factory=list)

    def tellings(self, rng: np.random.Generator) -> list[Question]:
        """Ways to tell all that is in the picture: in raster order, shuffled, counted."""
        told = [Question(CAPTION, self.caption, "caption", "global")]
        if self.things:
            words = [
                " ".join(thing[place] for place in rng.permutation(len(thing)))
                for thing in (self.things[index] for index in rng.permutation(len(self.things)))
            ]
            told.append(Question(SHUFFLED, ", ".join(words), "shuffled", "global"))
        if self.counts:
            some = [self.counts[index] for index in rng.permutation(len(self.counts))]
            text = ", ".join(f"{what} {number}" for what, number in some)
            told.append(Question(INVENTORY, text, "inventory", "global"))
        return told


def sample_scene(rng: np.random.Generator, size: tuple[int, int], most: int = 8) -> Picture:
    """A scene of 1 to `most` sprites, each a coloured shape with a letter in it."""
    height, width = size
    rows, columns = height // 84, width // 84
    cell_height, cell_width = height / rows, width / columns
    count = int(rng.integers(max(1, most // 2), min(most, rows * columns) + 1))
    cells = np.sort(rng.choice(rows * columns, count, replace=False))
    shapes = rng.integers(len(SHAPES), size=count)
    colors = rng.integers(len(COLORS), size=count)
    letters = rng.choice(len(LETTERS), count, replace=False)
    picture = Picture(size, pale(rng), "")
    names = list(COLORS)
    sprites = [
        (names[color], SHAPES[shape], LETTERS[letter])
        for color, shape, letter in zip(colors, shapes, letters, strict=True)
    ]
    for cell, (color, shape, letter) in zip(cells.tolist(), sprites, strict=True):
        row, column = divmod(cell, columns)
        middle = ((row + 0.5) * cell_height, (column + 0.5) * cell_width)
        jitter = rng.integers(-5, 6, size=2)
        top, left = (
            int(place + shift - TILE / 2) for place, shift in zip(middle, jitter, strict=True)
        )
        rgb = varied(rng, COLORS[color])
        ink = (255, 255, 255) if sum(rgb) < 400 else (20, 20, 20)
        size_number = int(rng.integers(len(SHAPE_SIZES)))
        picture.tiles.append((shape_tile(SHAPES.index(shape), size_number), top, left, rgb))
        drop = {"triangle": 11, "star": 3}.get(shape, 0)
        small = 0 if shape in ("triangle", "star", "diamond", "cross") else int(rng.integers(2))
        picture.tiles.append((letter_tile(LETTERS.index(letter), small), top + drop, left, ink))
    picture.caption = ", ".join(" ".join(sprite) for sprite in sprites)
    picture.questions = scene_questions(rng, sprites)
    picture.things = [list(sprite) for sprite in sprites]
    kinds = [plural(shape) for _, shape, _ in sprites] + [color for color, _, _ in sprites]
    picture.counts = [(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)]
    picture.counts.append(("shapes", len(sprites)))
    return picture


def scene_questions(
    rng: np.random.Generator, sprites: list[tuple[str, str, str]]
) -> list[Question]:
    """All kinds of questions that have one right answer in this scene, in random order."""
    kinds = [(color, shape) for color, shape, _ in sprites]
    lone = [sprite for sprite in sprites if kinds.count(sprite[:2]) == 1]
    found: list[Question] = []
    for color, shape, letter in lone:
        found.append(Question(f"What letter is in the {color} {shape}?", letter, "letter", "local"))
    for color, shape, letter in sprites:
        found.append(
            Question(f"What color is the shape with the letter {letter}?", color, "color", "local")
        )
        found.append(Question(f"What shape has the letter {letter}?", shape, "shape", "local"))
        found.append(
            Question(f"What has the letter {letter}?", f"{color} {shape}", "sprite", "local")
        )
    for first, second in zip(lone[::2], lone[1::2], strict=False):
        text = f"What letters are in the {first[0]} {first[1]} and the {second[0]} {second[1]}?"
        found.append(Question(text, f"{first[2]} and {second[2]}", "two letters", "local"))
    for shape in dict.fromkeys([*(shape for _, shape, _ in sprites), str(rng.choice(SHAPES))]):
        count = sum(sprite[1] == shape for sprite in sprites)
        found.append(
            Question(f"How many {plural(shape)} are there?", str(count), "count", "global")
        )
    for color in dict.fromkeys(
        [*(color for color, _, _ in sprites), str(rng.choice(list(COLORS)))]
    ):
        count = sum(sprite[0] == color for sprite in sprites)
        found.append(Question(f"How many {color} shapes are there?", str(count), "count", "global"))
    found.append(Question("How many shapes are there?", str(len(sprites)), "count", "global"))
    rng.shuffle(found)  # type: ignore[arg-type]
    return found


def sample_chart(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """A chart of 2 to 5 bars, a letter under each and its value above it."""
    height, width = size
    count = int(rng.integers(2, min(5, width // 64) + 1))
    values = rng.choice(np.arange(5, 100), count, replace=False)
    letters = np.sort(rng.choice(len(LETTERS), count, replace=False))
    colors = rng.choice(len(COLORS), count, replace=False)
    picture = Picture(size, pale(rng), "")
    names = list(COLORS)
    floor, ceiling = height - 46 - int(rng.integers(0, 30)), 46
    picture.rectangles.append((floor, 8, floor + 3, width - 8, (60, 60, 60)))
    slot = (width - 16) / count
    bars: list[tuple[str, str, str]] = []
    for place, (value, letter, color) in enumerate(zip(values, letters, colors, strict=True)):
        middle = 8 + (place + 0.5) * slot + float(rng.uniform(-2, 2))
        half = min(slot * 0.36, 34)
        top = int(floor - (floor - ceiling) * value / 100)
        rgb = varied(rng, COLORS[names[color]])
        picture.rectangles.append((top, int(middle - half), floor, int(middle + half), rgb))
        ink = (20, 20, 20)
        label = int(floor + 25 - TILE / 2)
        picture.tiles.append((label_tile(LETTERS[letter]), label, int(middle - TILE / 2), ink))
        for offset, digit in zip(*spread(str(value)), strict=True):
            left = int(middle + offset - TILE / 2)
            picture.tiles.append((label_tile(digit), int(top - 22 - TILE / 2), left, ink))
        bars.append((LETTERS[letter], names[color], str(value)))
    picture.caption = ", ".join(" ".join(bar) for bar in bars)
    picture.questions = chart_questions(rng, bars)
    ordered = sorted(bars, key=lambda bar: int(bar[2]))
    picture.things = [[label, color, value] for label, color, value in bars]
    picture.things += [["tallest", *ordered[-1]], ["shortest", *ordered[0]]]
    picture.counts = [("bars", len(bars))]
    return picture


def chart_questions(rng: np.random.Generator, bars: list[tuple[str, str, str]]) -> list[Question]:
    """Questions about bars (label, colour, value), in random order."""
    tallest = max(bars, key=lambda bar: int(bar[2]))
    shortest = min(bars, key=lambda bar: int(bar[2]))
    found = [
        Question("What is the value of the tallest bar?", tallest[2], "tallest", "local"),
        Question("What is the value of the shortest bar?", shortest[2], "tallest", "local"),
        Question("What color is the tallest bar?", tallest[1], "tallest", "local"),
        Question("Which bar is the tallest?", tallest[0], "tallest", "local"),
        Question("How many bars are there?", str(len(bars)), "count", "global"),
    ]
    for label, color, value in bars:
        found.append(Question(f"What is the value of bar {label}?", value, "bar", "local"))
        found.append(Question(f"What color is bar {label}?", color, "bar", "local"))
        found.append(Question(f"What is the value of the {color} bar?", value, "bar", "local"))
    rng.shuffle(found)  # type: ignore[arg-type]
    return found


def plural(shape: str) -> str:
    """More than one of a shape."""
    return shape + ("es" if shape.endswith("s") else "s")


def pale(rng: np.random.Generator) -> tuple[int, int, int]:
    """A light background."""
    red, green, blue = rng.integers(222, 256, size=3).tolist()
    return red, green, blue


def varied(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """A colour a little off its pure form."""
    red, green, blue = np.clip(np.array(rgb) + rng.integers(-12, 13, size=3), 0, 255).tolist()
    return red, green, blue


def spread(digits: str) -> tuple[list[float], str]:
    """Horizontal offsets in pixels that put a number's digits side by side."""
    step = 25.0
    return [(place - (len(digits) - 1) / 2) * step for place in range(len(digits))], digits


def shape_tile(shape: int, size: int) -> int:
    """The number of a shape's tile."""
    return shape * len(SHAPE_SIZES) + size


def letter_tile(letter: int, size: int) -> int:
    """The number of a sprite letter's tile."""
    return len(SHAPES) * len(SHAPE_SIZES) + letter * len(LETTER_SIZES) + size


def label_tile(character: str) -> int:
    """The number of a chart character's tile."""
    first = len(SHAPES) * len(SHAPE_SIZES) + len(LETTERS) * len(LETTER_SIZES)
    return first + (LETTERS + DIGITS).index(character)


@cache
def tiles() -> NDArray[np.uint8]:
    """Every tile's coverage, uint8 [N, TILE, TILE]."""
    bank = [draw_shape(shape, size) for shape in SHAPES for size in SHAPE_SIZES]
    bank += [draw_character(letter, size) for letter in LETTERS for size in LETTER_SIZES]
    bank += [draw_character(character, LABEL_SIZE) for character in LETTERS + DIGITS]
    return np.stack(bank)


def draw_shape(shape: str, size: int) -> NDArray[np.uint8]:
    """A shape of `size` pixels in the middle of its tile, its edges smooth."""
    scale = 4
    image = Image.new("L", (TILE * scale, TILE * scale))
    draw = ImageDraw.Draw(image)
    middle, radius = TILE * scale / 2, size * scale / 2
    low, high = middle - radius, middle + radius
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        inset = radius * 0.12
        draw.rectangle((low + inset, low + inset, high - inset, high - inset), fill=255)
    elif shape == "cross":
        arm = radius * 0.56
        draw.rectangle((low, middle - arm, high, middle + arm), fill=255)
        draw.rectangle((middle - arm, low, middle + arm, high), fill=255)
    else:
        draw.polygon(corners(shape, middle, radius), fill=255)
    return np.asarray(image.resize((TILE, TILE), Image.Resampling.BOX))


def corners(shape: str, middle: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a polygon around the middle of a tile, in pixels."""
    if shape == "diamond":
        angles, lengths = [0, 90, 180, 270], [1.08] * 4
    elif shape == "triangle":
        return [
            (middle, middle - radius * 1.02),
            (middle + radius * 1.12, middle + radius * 0.92),
            (middle - radius * 1.12, middle + radius * 0.92),
        ]
    else:
        angles = [place * 36 for place in range(10)]
        lengths = [1.18 if place % 2 == 0 else 0.62 for place in range(10)]
    return [
        (
            middle + radius * length * math.sin(math.radians(angle)),
            middle - radius * length * math.cos(math.radians(angle)),
        )
        for angle, length in zip(angles, lengths, strict=True)
    ]


def draw_character(character: str, size: int) -> NDArray[np.uint8]:
    """A bold character in the middle of its tile; `size` in points."""
    image = Image.new("L", (TILE, TILE))
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    draw.text(
        (TILE / 2, TILE / 2), character, fill=255, font=font, anchor="mm", stroke_width=size // 28
    )
    return np.asarray(image)


def render(pictures: list[Picture], device: str | torch.device = "cpu") -> Tensor:
    """Draw pictures of one size: uint8 [B, H, W, 3]."""
    return draw(*(part.to(device) for part in orders(pictures)), pictures[0].size)


def orders(pictures: list[Picture]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Drawing orders as tensors: backgrounds, rectangles, their colours, tiles, their colours."""
    most_rectangles = max(len(picture.rectangles) for picture in pictures)
    most_tiles = max(len(picture.tiles) for picture in pictures)
    backgrounds = np.array([picture.background for picture in pictures], dtype=np.float32)
    rectangles = np.zeros((len(pictures), most_rectangles, 4), dtype=np.int64)
    rectangle_colors = np.zeros((len(pictures), most_rectangles, 3), dtype=np.float32)
    placed = np.zeros((len(pictures), most_tiles, 3), dtype=np.int64)
    placed[:, :, 0] = -1
    tile_colors = np.zeros((len(pictures), most_tiles, 3), dtype=np.float32)
    for number, picture in enumerate(pictures):
        for place, rectangle in enumerate(picture.rectangles):
            rectangles[number, place] = rectangle[:4]
            rectangle_colors[number, place] = rectangle[4]
        for place, tile in enumerate(picture.tiles):
            placed[number, place] = tile[:3]
            tile_colors[number, place] = tile[3]
    parts = (backgrounds, rectangles, rectangle_colors, placed, tile_colors)
    first, second, third, fourth, fifth = (torch.from_numpy(part) for part in parts)
    return first, second, third, fourth, fifth


def draw(
    backgrounds: Tensor,
    rectangles: Tensor,
    rectangle_colors: Tensor,
    placed: Tensor,
    tile_colors: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Carry out `orders` on their device: uint8 [B, H, W, 3]."""
    device = backgrounds.device
    height, width = size
    batch = len(backgrounds)
    margin = TILE
    canvas = backgrounds[:, :, None, None].repeat(1, 1, height + 2 * margin, width + 2 * margin)
    rows = torch.arange(height, device=device)[None, :, None]
    columns = torch.arange(width, device=device)[None, None, :]
    inner = canvas[:, :, margin : margin + height, margin : margin + width]
    for place in range(rectangles.shape[1]):
        top, left, bottom, right = (edge[:, None, None] for edge in rectangles[:, place].T)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        color = rectangle_colors[:, place, :, None, None]
        inner.copy_(torch.where(inside[:, None], color, inner))
    bank = torch.from_numpy(tiles()).to(device).float() / 255
    step = torch.arange(TILE, device=device)
    flat = canvas.view(batch, 3, -1)
    stride = width + 2 * margin
    for place in range(placed.shape[1]):
        number, top, left = placed[:, place].T
        alpha = bank[number.clamp(min=0)] * (number >= 0)[:, None, None]
        top, left = top + margin, left + margin
        index = (top[:, None, None] + step[None, :, None]) * stride + left[:, None, None] + step
        index = index.view(batch, 1, -1).expand(-1, 3, -1)
        before = flat.gather(2, index)
        alpha = alpha.view(batch, 1, -1)
        after = before + (tile_colors[:, place, :, None] - before) * alpha
        flat.scatter_(2, index, after)
    return inner.permute(0, 2, 3, 1).round().to(torch.uint8)


def write_data(
    out: Path, count: int, seed: int, questions: int = 3, sides: tuple[int, int] = (252, 345)
) -> None:
    """Write `count` held-out questions, `questions` a picture, as PNG files and data.jsonl.

    Heights and widths are drawn from `sides` in pixels, the second not included.
    """
    rng = np.random.default_rng((HELD_OUT_SEED, seed))
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "data.jsonl", "w", encoding="utf-8") as file:
        written = 0
        while written < count:
            size = (int(rng.integers(*sides)), int(rng.integers(*sides)))
            chart = rng.random() < 0.3
            picture = sample_chart(rng, size) if chart else sample_scene(rng, size)
            name = f"{'chart' if chart else 'scene'}-{seed}-{written:05d}.png"
            Image.fromarray(render([picture])[0].numpy()).save(out / name, optimize=True)
            for number, question in enumerate(picture.questions[:questions]):
                line = {
                    "id": f"{name[:-4]}-{number}",
                    "image": name,
                    "question": question.text,
                    "answer": question.answer,
                    "task": question.task,
                    "scope": question.scope,
                }
                file.write(json.dumps(line) + "\n")
                written += 1


def main() -> None:
    """Write a data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=3, help="questions a picture, at most")
    parser.add_argument(
        "--sides", type=int, nargs=2, default=(252, 345), help="least, and most + 1"
    )
    options = parser.parse_args()
    write_data(options.out, options.count, options.seed, options.questions, options.sides)


if __name__ == "__main__":
    main()
