"""Colours by name: several shades to train on, another one held out."""

import numpy as np
from tasks.picture import RGB

COLORS: dict[str, tuple[RGB, ...]] = {
    "red": ((214, 40, 40), (190, 24, 36), (232, 66, 60)),
    "green": ((44, 150, 60), (30, 120, 50), (80, 176, 70)),
    "blue": ((40, 80, 214), (30, 56, 170), (70, 120, 235)),
    "yellow": ((244, 205, 40), (250, 220, 80), (226, 190, 20)),
    "purple": ((136, 50, 170), (110, 40, 140), (160, 90, 200)),
    "orange": ((246, 130, 30), (236, 112, 10), (250, 150, 70)),
    "teal": ((20, 160, 160), (10, 130, 136), (60, 184, 180)),
    "brown": ((124, 74, 40), (100, 58, 30), (146, 94, 60)),
}
HELD_OUT: dict[str, RGB] = {
    "red": (204, 52, 70),
    "green": (62, 140, 40),
    "blue": (52, 66, 196),
    "yellow": (238, 214, 60),
    "purple": (124, 64, 190),
    "orange": (240, 138, 52),
    "teal": (36, 146, 172),
    "brown": (112, 82, 48),
}
INKS: dict[str, RGB] = {"white": (250, 250, 250), "black": (16, 16, 16)}
CONTRAST = 300
"""The least sum of channel differences between an ink and its ground."""


class Palette:
    """Draws shades of named colours with one random generator."""

    def __init__(self, rng: np.random.Generator, held_out: bool) -> None:
        """Draw from the shades of training, or the held-out ones."""
        self.rng, self.held_out = rng, held_out

    def shade(self, name: str) -> RGB:
        """A shade of a colour, each channel up to 14 off."""
        shades = COLORS[name]
        rgb = HELD_OUT[name] if self.held_out else shades[int(self.rng.integers(len(shades)))]
        return self._near(rgb, 14)

    def ink(self, name: str) -> RGB:
        """White or black, each channel up to 14 off."""
        return self._near(INKS[name], 14)

    def pale(self) -> RGB:
        """A light background."""
        red, green, blue = self.rng.integers(222, 256, size=3).tolist()
        return red, green, blue

    def _near(self, rgb: RGB, most: int) -> RGB:
        shifts = self.rng.integers(-most, most + 1, size=3).tolist()
        red, green, blue = (
            min(255, max(0, part + shift)) for part, shift in zip(rgb, shifts, strict=True)
        )
        return red, green, blue


def readable(ground: RGB, ink: RGB) -> bool:
    """Whether an ink can be read on a ground."""
    return sum(abs(a - b) for a, b in zip(ground, ink, strict=True)) >= CONTRAST
