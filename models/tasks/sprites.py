"""Scenes of sprites: coloured shapes with a letter in each, some or all cells of a grid filled."""

import numpy as np
from tasks.glyphs import HEIGHTS, SHAPE, SHAPE_SIZES, SHAPES, draw_font, shape_reach, shape_tile
from tasks.palette import COLORS, Palette
from tasks.picture import Box, Picture, Question, around
from tasks.text import Style, centred
from tasks.wordings import ask

LETTERS = "ABCDEFHKLMNPRSTX"
DROP = {"triangle": 11, "star": 3}
"""How many pixels below its shape's middle a letter stands."""
TALL = HEIGHTS.index(36)
SHORT = HEIGHTS.index(32)


def sample_sprites(
    rng: np.random.Generator,
    size: tuple[int, int],
    held_out: bool,
    most: int = 8,
    full: bool = False,
) -> Picture:
    """A scene of 1 to `most` sprites, or one in every cell of its grid of 84 pixels."""
    height, width = size
    rows, columns = height // 84, width // 84
    cells = rows * columns
    count = min(cells, 16) if full else int(rng.integers(max(1, most // 2), min(most, cells) + 1))
    palette = Palette(rng, held_out)
    picture = Picture("grid" if full else "sprites", size, palette.pale())
    places = np.sort(rng.permutation(cells)[:count]).tolist()
    letters = [LETTERS[index] for index in rng.permutation(len(LETTERS))[:count]]
    kinds = _kinds(rng, count, full)
    font = draw_font(rng, held_out)
    boxes: list[Box] = []
    for cell, (color, shape), letter in zip(places, kinds, letters, strict=True):
        row, column = divmod(cell, columns)
        down, right = rng.integers(-5, 6, size=2).tolist()
        top = int((row + 0.5) * height / rows + down - SHAPE / 2)
        left = int((column + 0.5) * width / columns + right - SHAPE / 2)
        rgb = palette.shade(color)
        tile = shape_tile(shape, int(rng.integers(len(SHAPE_SIZES))))
        picture.shapes.append((tile, top, left, rgb))
        ink = palette.ink("white" if sum(rgb) < 400 else "black")
        small = shape in ("triangle", "star", "diamond", "cross") or rng.random() < 0.5
        style = Style(font, SHORT if small else TALL, ink)
        middle = (top + SHAPE / 2 + DROP.get(shape, 0), left + SHAPE / 2)
        glyphs, box = centred([letter], style, *middle)
        picture.glyphs += glyphs
        reach = shape_reach(tile)
        shown = (top + reach[0], left + reach[1], top + reach[2], left + reach[3])
        boxes.append(around([shown, box]))
    sprites = [(*kind, letter) for kind, letter in zip(kinds, letters, strict=True)]
    picture.things = [list(sprite) for sprite in sprites]
    names = [plural(shape) for shape in (kind[1] for kind in kinds)] + [kind[0] for kind in kinds]
    picture.counts = [(name, names.count(name)) for name in dict.fromkeys(names)]
    picture.counts.append(("shapes", len(sprites)))
    picture.questions = _questions(rng, sprites, boxes)
    return picture


def _kinds(rng: np.random.Generator, count: int, full: bool) -> list[tuple[str, str]]:
    """Colours and shapes; all pairs differ in a full grid."""
    names, total = list(COLORS), len(COLORS) * len(SHAPES)
    drawn = rng.permutation(total)[:count] if full else rng.integers(total, size=count)
    return [(names[index % len(names)], SHAPES[index // len(names)]) for index in drawn.tolist()]


def _questions(
    rng: np.random.Generator, sprites: list[tuple[str, str, str]], boxes: list[Box]
) -> list[Question]:
    """All kinds of questions that have one right answer in this scene."""
    kinds = [sprite[:2] for sprite in sprites]
    lone = [index for index, kind in enumerate(kinds) if kinds.count(kind) == 1]
    named = [f"{color} {shape}" for color, shape in kinds]
    found: list[Question] = []
    for index in lone:
        found.append(ask(rng, "letter", sprites[index][2], [boxes[index]], named[index]))
    for (color, shape, letter), box, name in zip(sprites, boxes, named, strict=True):
        found.append(ask(rng, "color", color, [box], letter))
        found.append(ask(rng, "shape", shape, [box], letter))
        found.append(ask(rng, "sprite", name, [box], letter))
    for first, second in zip(lone[::2], lone[1::2], strict=False):
        answer = f"{sprites[first][2]} and {sprites[second][2]}"
        both = [boxes[first], boxes[second]]
        found.append(ask(rng, "two letters", answer, both, named[first], named[second]))
    shapes = [shape for _, shape, _ in sprites]
    for shape in dict.fromkeys([*shapes, str(rng.choice(SHAPES))]):
        found.append(ask(rng, "count", str(shapes.count(shape)), [], plural(shape)))
    colors = [color for color, _, _ in sprites]
    for color in dict.fromkeys([*colors, str(rng.choice(list(COLORS)))]):
        found.append(ask(rng, "count", str(colors.count(color)), [], f"{color} shapes"))
    found.append(ask(rng, "count", str(len(sprites)), [], "shapes"))
    return found


def plural(shape: str) -> str:
    """More than one of a shape."""
    return shape + ("es" if shape.endswith("s") else "s")
