"""Pictures filled with plates that carry codes, words or numbers over several visual tokens."""

import numpy as np
from tasks.glyphs import draw_font
from tasks.palette import COLORS, INKS, Palette, readable
from tasks.picture import Box, Picture, Question
from tasks.text import Style, centred, largest
from tasks.wordings import ask

LETTERS = "ABCDEFGHKLMNPRSTUVWXYZ"
WORDS = [
    "APPLE",
    "BEACH",
    "BIRD",
    "BOAT",
    "BOOK",
    "BREAD",
    "BRIDGE",
    "BROOM",
    "CABIN",
    "CAKE",
    "CANDLE",
    "CARD",
    "CASTLE",
    "CHAIR",
    "CLOUD",
    "COAT",
    "COIN",
    "CROWN",
    "DESK",
    "DOOR",
    "DRUM",
    "EAGLE",
    "FARM",
    "FIELD",
    "FISH",
    "FLAG",
    "FLOWER",
    "FOREST",
    "FROG",
    "GARDEN",
    "GATE",
    "GLASS",
    "GLOVE",
    "GRAPE",
    "HAMMER",
    "HILL",
    "HONEY",
    "HORSE",
    "HOUSE",
    "ISLAND",
    "JACKET",
    "KETTLE",
    "KITE",
    "LADDER",
    "LAKE",
    "LAMP",
    "LEAF",
    "LEMON",
    "LION",
    "MARKET",
    "MEADOW",
    "MILK",
    "MIRROR",
    "MOON",
    "MOUSE",
    "NEEDLE",
    "NEST",
    "OCEAN",
    "ORANGE",
    "OVEN",
    "PAPER",
    "PEAR",
    "PENCIL",
    "PIANO",
    "PILLOW",
    "PLANET",
    "QUEEN",
    "QUILT",
    "RABBIT",
    "RAIN",
    "RIVER",
    "ROAD",
    "ROCKET",
    "ROOF",
    "ROSE",
    "SADDLE",
    "SAIL",
    "SALT",
    "SHELL",
    "SHIP",
    "SHOE",
    "SILVER",
    "SNOW",
    "SPOON",
    "STONE",
    "SUGAR",
    "TABLE",
    "TIGER",
    "TOWER",
    "TRAIN",
    "TREE",
    "VALLEY",
    "VIOLIN",
    "WAGON",
    "WATER",
    "WHEEL",
    "WINDOW",
    "WINTER",
    "WOLF",
    "ZEBRA",
]
CONTENTS = ("code", "code", "code", "word", "number")
PLATE = (84, 112)
"""The least height and width of a plate in pixels: 3 by 4 visual tokens."""


def sample_plates(
    rng: np.random.Generator,
    size: tuple[int, int],
    held_out: bool,
    content: str | None = None,
    letters: tuple[int, int] = (4, 6),
    most: int = 16,
) -> Picture:
    """Plates of different ground and ink that fill the picture.

    Args:
        rng: Draws everything.
        size: (height, width) in pixels.
        held_out: With fonts and shades that are not for training.
        content: "code", "word" or "number"; None draws one.
        letters: Least and most letters of a code.
        most: Plates at most.
    """
    height, width = size
    rows, columns = height // PLATE[0], width // PLATE[1]
    palette = Palette(rng, held_out)
    picture = Picture("plates", size, palette.pale())
    content = content or CONTENTS[int(rng.integers(len(CONTENTS)))]
    font = draw_font(rng, held_out)
    kinds = [(color, ink) for color in COLORS for ink in INKS]
    kinds = [kinds[index] for index in rng.permutation(len(kinds))]
    cells = rng.permutation(rows * columns)[:most]
    plates: list[tuple[str, str, str]] = []
    boxes: list[Box] = []
    for cell in np.sort(cells).tolist():
        row, column = divmod(cell, columns)
        top, left = row * height / rows, column * width / columns
        bottom, right = top + height / rows, left + width / columns
        inset = rng.integers(0, 6, size=4).tolist()
        plate = (
            int(top + inset[0]),
            int(left + inset[1]),
            int(bottom - inset[2]),
            int(right - inset[3]),
        )
        while kinds:
            color, ink_name = kinds.pop()
            ground, ink = palette.shade(color), palette.ink(ink_name)
            if readable(ground, ink):
                break
        else:
            break
        text = _content(rng, content, letters)
        lines = _lines(rng, text)
        inner = (plate[0] + 8, plate[1] + 6, plate[2] - 8, plate[3] - 6)
        fits = largest(lines, font, inner)
        style = Style(font, max(0, fits - int(rng.integers(0, 2))), ink)
        slack = rng.uniform(-3, 3, size=2)
        glyphs, box = centred(
            lines, style, (plate[0] + plate[2]) / 2 + slack[0], (plate[1] + plate[3]) / 2 + slack[1]
        )
        picture.grounds.append((*plate, ground))
        picture.glyphs += glyphs
        plates.append((color, ink_name, text))
        boxes.append(box)
    picture.things = [list(plate) for plate in plates]
    colors = [color for color, _, _ in plates]
    picture.counts = [(color, colors.count(color)) for color in dict.fromkeys(colors)]
    picture.counts.append(("plates", len(plates)))
    picture.questions = _questions(rng, content, plates, boxes)
    return picture


def _content(rng: np.random.Generator, content: str, letters: tuple[int, int]) -> str:
    """What a plate says: letters or digits drawn independently, or a word."""
    if content == "word":
        return WORDS[int(rng.integers(len(WORDS)))]
    count = int(rng.integers(letters[0], letters[1] + 1))
    if content == "number":
        return "".join(str(digit) for digit in rng.integers(10, size=count).tolist())
    return "".join(LETTERS[index] for index in rng.integers(len(LETTERS), size=count).tolist())


def _lines(rng: np.random.Generator, text: str) -> list[str]:
    """A plate's text in one or two lines; a word stays whole."""
    if text in WORDS or len(text) < 4 or (len(text) < 6 and rng.random() < 0.5):
        return [text]
    half = (len(text) + 1) // 2
    return [text[:half], text[half:]]


def _questions(
    rng: np.random.Generator, content: str, plates: list[tuple[str, str, str]], boxes: list[Box]
) -> list[Question]:
    """Questions that have one right answer in this picture."""
    colors = [color for color, _, _ in plates]
    texts = [text for _, _, text in plates]
    found: list[Question] = []
    for (color, ink, text), box in zip(plates, boxes, strict=True):
        lone = colors.count(color) == 1
        what = f"{color} plate"
        if not lone or rng.random() < 0.4:
            what += f" with {ink} letters"
        found.append(ask(rng, content, text, [box], what))
        if lone:
            found.append(ask(rng, "ink", ink, [box], f"{color} plate"))
        if texts.count(text) == 1:
            found.append(ask(rng, "plate color", color, [box], text))
    for color in dict.fromkeys([*colors, str(rng.choice(list(COLORS)))]):
        found.append(ask(rng, "count", str(colors.count(color)), [], f"{color} plates"))
    found.append(ask(rng, "count", str(len(plates)), [], "plates"))
    return found
