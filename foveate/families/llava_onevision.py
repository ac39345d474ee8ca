"""LLaVA-OneVision: one picture on up to 36 tiles, several of one tile each, videos of pooled frames; newlines between."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from foveate.errors import ImageError, LimitError
from foveate.families.anyres import Canvas, Edges, Size, TileGrid, grid_boxes
from foveate.families.base import (
    CheckpointForm,
    FrameRule,
    Medium,
    Message,
    PixelLimits,
    Prompt,
    Still,
    Video,
    VisualInput,
    opened,
)
from foveate.families.llava_onevision_settings import (
    Settings,
    VideoSettings,
    read_preprocessing,
    settings_from_checkpoint,
)
from foveate.families.pixels import check_frames, for_each, resize_bicubic, small_enough, to_rgb
from foveate.families.pooling import pool_grid
from foveate.families.prompt import PromptLayout
from foveate.families.taps import TappedTokens, interpolated, joined, single
from foveate.families.tiles import tiles_call, tiles_together

POOLED = 2
"""Patches of a frame along each side of a pooled one, before it is rounded up."""
_NEVER_ASKED = ("<|endoftext|>",)
"""Control tokens of this family that no role and no template names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledInput(VisualInput):
    """Pictures and videos on tiles, of which the visual tokens are taps.

    Attributes:
        shown: Each picture or video.
        counts: How many tokens each has.
        each: Rows of the vision graph that a tile gives; one row for newlines follows those of all tiles.
    """

    shown: "tuple[Shown, ...]"
    counts: tuple[int, ...]
    each: int

    def largest_run(self, together: int) -> int:
        """The rows of as many tiles as run together."""
        tiles = sum(one.tiles for one in self.shown)
        return tiles_together(together, self.each, tiles) * self.each + 1 if tiles else 0


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture or video of a request.

    Attributes:
        size: Height and width of the picture, or of each frame.
        frames: How many a video has; 1 for a picture.
        moving: Whether it is a video.
        canvas: The tiles of a picture that has more than one.
    """

    size: Size
    frames: int
    moving: bool
    canvas: Canvas | None

    @property
    def each(self) -> int:
        """How many tiles a picture or a frame has; before those of a canvas comes one of the whole picture."""
        return 1 if self.canvas is None else 1 + self.canvas.count

    @property
    def tiles(self) -> int:
        """How many tiles it has."""
        return self.frames * self.each


class LlavaOnevision:
    """Preprocessing, prompt layout and positions of LLaVA-OneVision; see `Family`.

    `tokens` must hold the ids "image" (the placeholder) and "eos" (what ends a turn), and for videos
    "video" (their placeholder); "bos", "pad" and "unk", where given, reach the chat template as bos_token
    and so on, and the text of every id given is refused in prompts.
    """

    name: str = "llava_onevision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    form: ClassVar[CheckpointForm] = CheckpointForm()

    __slots__ = ("_layout", "_levels", "_tiles", "_videos", "settings")

    def __init__(
        self,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
        levels: bool = False,
    ) -> None:
        """Build from what a bundle holds; see `foveate.families.create`."""
        self.settings: Settings
        self._videos: VideoSettings
        self.settings, self._videos = read_preprocessing(preprocessing)
        self._levels = levels
        self._tiles = TileGrid(self.settings.side, self.settings.patch_size)
        self._layout = PromptLayout(
            tokenizer, chat_template, tokens, ("image", "eos"), _NEVER_ASKED
        )

    @staticmethod
    def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
        """Read a checkpoint's settings of pictures and of videos; see the function called so."""
        return settings_from_checkpoint(folder)

    @property
    def frame_rule(self) -> FrameRule:
        """How many frames of a video file are taken."""
        return self._videos.frame_rule()

    def fit_frame(self, frame: Image.Image, frames: int) -> Image.Image:
        """A frame of a video as the tile that `prepare` makes of it, which then leaves it as it is."""
        return resize_bicubic(to_rgb(frame), self.settings.side, self.settings.side)

    def limited(self, limits: PixelLimits) -> "LlavaOnevision":
        """The same with tiles of a picture that are within a request's limits; see `Family.limited`.

        Raises:
            LimitError: No size of a picture's tiles is, or one tile is over the upper limit.
        """
        if limits == PixelLimits():
            return self
        least, most = limits.min_pixels or 1, limits.max_pixels
        sizes = [
            size
            for size in self.settings.pinpoints
            if least <= size[0] * size[1] and (most is None or size[0] * size[1] <= most)
        ]
        if not sizes or (most is not None and most < self.settings.side**2):
            areas = sorted({down * across for down, across in self.settings.pinpoints})
            raise LimitError(
                f"min_pixels is {limits.min_pixels} and max_pixels is {most}, and the model takes pictures "
                f"at areas from {areas[0]} to {areas[-1]}; give limits with one of them between: "
                f"{', '.join(map(str, areas[:6]))}{', …' if len(areas) > 6 else ''}."
            )
        found = copy.copy(self)
        found.settings = replace(self.settings, pinpoints=tuple(sizes))
        return found

    def plan(self, media: Sequence[Medium]) -> TiledInput:
        """What `prepare` gives of pictures' sizes alone; see `Family.plan`."""
        shown = tuple(self._shown(media))
        return self._placed(shown, [joined([*self._tokens(one)]) for one in shown])

    def _placed(self, shown: "tuple[Shown, ...]", tokens: Sequence[TappedTokens]) -> TiledInput:
        """The tokens of each picture and video one after the other."""
        parts: list[TappedTokens] = []
        rows = pictures = 0
        for one, own in zip(shown, tokens, strict=True):
            parts.append(own.shifted(rows, pictures))
            rows += one.tiles * self._tiles.patches**2
            pictures += one.frames
        whole = joined(parts)
        newline = whole.rows[:, 0] < 0
        return TiledInput(
            calls=(),
            candidates=~newline,
            picture=whole.picture,
            boxes=whole.boxes,
            rows=np.where(whole.rows < 0, rows, whole.rows),
            weights=whole.weights,
            shown=shown,
            counts=tuple(map(len, parts)),
            each=self._tiles.patches**2,
        )

    def prepare(self, media: Sequence[Medium]) -> TiledInput:
        """Turn pictures and videos into tiles, bit for bit those of the reference; see `Family.prepare`.

        Transparent pictures are laid on white. A picture alone is shown whole on one tile, and then on
        several as its size asks; of several pictures, each is padded to a square of the mean colour, on one
        tile; frames of a video are resized to one tile each.
        """
        plan = self.plan(media)
        side = self.settings.side
        levels = np.empty((sum(one.tiles for one in plan.shown), side, side, 3), np.uint8)
        table = None if self._levels else self.settings.table
        stills = [still for medium in media for still in _stills(medium)]
        shown = [one for one in plan.shown for _ in range(one.frames)]
        ends = np.cumsum([one.each for one in shown])

        def write(number: int, still: Still) -> None:
            """Write a picture's or a frame's tiles to their place."""
            one, end = shown[number - 1], ends[number - 1]
            tiles = levels[end - one.each : end]
            picture = to_rgb(opened(still), number)
            if one.canvas is not None:
                tiles[1:] = one.canvas.cut(picture)
            elif not one.moving:
                picture = squared(picture, self.settings.background)
            tiles[0] = np.asarray(resize_bicubic(picture, side, side))

        for_each(write, stills, threads=small_enough(stills))
        if not len(levels):
            return plan
        call = tiles_call(levels, plan.each, table, beyond=1)
        return dataclasses.replace(plan, calls=(call,))

    def shrink(self, media: Sequence[Medium], most: Sequence[int]) -> TiledInput:
        """Prepare pictures with fewer tokens: one alone on fewer tiles, else pooled; see `Family.shrink`."""
        if any(isinstance(medium, Video) for medium in media):
            raise ImageError("a video is not made smaller; leave it as it is")
        sizes = self.settings.pinpoints if len(media) == 1 else ()
        families = [self, *(self.limited(PixelLimits(max_pixels=a * b)) for a, b in sizes)]
        fitting = [
            (sum(counts), place)
            for place, counts in enumerate(one.plan(media).counts for one in families)
            if all(count <= wanted for count, wanted in zip(counts, most, strict=True))
        ]
        return families[max(fitting)[1]].prepare(media) if fitting else self._pooled(media, most)

    def _pooled(self, media: Sequence[Medium], most: Sequence[int]) -> TiledInput:
        """Each picture's view of the whole, pooled to so many tokens, the last a newline where there is room."""
        whole, patches = self.prepare(media), self._tiles.patches
        grids = [pool_grid(patches, patches, max(1, count - 1)) for count in most]
        taps = max(grid.sources.shape[1] for grid in grids)
        tokens = []
        for shown, grid, count in zip(whole.shown, grids, most, strict=True):
            places = (np.linspace(0, patches, cells + 1) for cells in (grid.rows, grid.columns))
            boxes = grid_boxes(self._tiles, *self._sides(shown, *places))
            found = TappedTokens.of(grid.sources, grid.weights, boxes, taps)
            tokens.append(joined([found, TappedTokens.newline(taps)]) if count > 1 else found)
        plan = self._placed(whole.shown, tokens)
        return dataclasses.replace(plan, calls=whole.calls, pooled=True)

    def layout(self, messages: Sequence[Message], visual: VisualInput) -> Prompt:
        """Render a conversation and place every token; see `Family.layout`."""
        assert isinstance(visual, TiledInput)
        kinds = ["video" if one.moving else "image" for one in visual.shown]
        return self._layout.place(messages, kinds, visual.counts).counted()

    def _shown(self, media: Sequence[Medium]) -> Iterator[Shown]:
        """Each picture and video, with the canvas of a picture that is the only one."""
        pictures = sum(not isinstance(medium, Video) for medium in media)
        for medium in media:
            frames, moving = _stills(medium), isinstance(medium, Video)
            check_frames(frames)
            width, height = frames[0].size
            canvas = None
            if pictures == 1 and not moving:
                canvas = Canvas.choose((height, width), self.settings.pinpoints, self._tiles)
            yield Shown((height, width), len(frames), moving, canvas)

    def _tokens(self, shown: Shown) -> Iterator[TappedTokens]:
        """The tokens of a picture or video, in parts."""
        tiles, patches = self._tiles, self._tiles.patches
        places = np.arange(patches + 1, dtype=np.float64)
        if shown.moving:
            pooled = -(-patches // POOLED)
            rows, weights = interpolated(tiles.rows, pooled, pooled)
            edges = Edges(0, tiles.side, np.linspace(0, patches, pooled + 1))
            frame = TappedTokens.of(rows, weights, grid_boxes(tiles, edges, edges))
            for number in range(shown.frames):
                yield frame.shifted(number * patches**2, number)
            yield TappedTokens.newline().shifted(0, shown.frames - 1)
            return
        sides = self._sides(shown, places, places)
        yield TappedTokens.of(*single(tiles.rows), grid_boxes(tiles, *sides))
        if shown.canvas is None:
            yield TappedTokens.newline()
            return
        most = self.settings.most_tiles
        count = shown.canvas.shape(most)[1]
        fine = TappedTokens.of(*shown.canvas.taps(most), shown.canvas.boxes(most))
        fine = fine.shifted(patches**2, 0)
        for first in range(0, len(fine), count) if count else ():
            yield fine.part(first, first + count)
            yield TappedTokens.newline()

    def _sides(self, shown: Shown, *places: NDArray[np.float64]) -> list[Edges]:
        """Where a picture lies on the tile of its whole, with cells that begin at these places."""
        side = self._tiles.side
        spans = [(0.0, float(side))] * 2
        if shown.canvas is None:
            spans = [padded(one, shown.size, side) for one in shown.size]
        return [Edges(*span, cells) for span, cells in zip(spans, places, strict=True)]


def _stills(medium: Medium) -> tuple[Still, ...]:
    """A picture, or a video's frames."""
    return medium.frames if isinstance(medium, Video) else (medium,)


def padded(length: int, size: Size, side: int) -> tuple[float, float]:
    """Where one side of a picture padded to a square begins on a tile, and how long it is, in pixels."""
    longest = max(size)
    return (longest - length) // 2 * side / longest, length * side / longest


def squared(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """A picture in the middle of a square of one colour."""
    longest = max(picture.size)
    if picture.width == picture.height:
        return picture
    whole = Image.new("RGB", (longest, longest), background)
    whole.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return whole
