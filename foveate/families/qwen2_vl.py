"""Qwen2-VL: pictures of any size, 2 x 2 patches to a token, three-axis rotary positions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Encoding, Tokenizer

from foveate.errors import BundleError, CheckpointError, ImageError, PromptError
from foveate.families.base import Prompt, Vision
from foveate.families.chat import ChatTemplate
from foveate.families.pixels import image_section, level_table, resize_bicubic, to_rgb

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Channels = tuple[float, float, float]

_MAX_ASPECT = 200
_BICUBIC = 3
_SPECIAL_VARIABLES = ("bos", "eos", "pad", "unk")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pictures become patches. Defaults are those of the reference image processor.

    Attributes:
        patch_size: Side of a patch in pixels.
        merge_size: Patches along each side of a visual token.
        temporal_patch_size: Frames in a patch; a still picture is repeated to fill them.
        min_pixels: Smaller pictures are enlarged to about this area.
        max_pixels: Larger pictures are shrunk to at most this area.
        image_mean: For red, green, blue, after rescaling.
        image_std: For red, green, blue, after rescaling.
        rescale_factor: Multiplies the 8-bit levels.
        resample: The resize filter.
    """

    patch_size: _Count = 14
    merge_size: _Count = 2
    temporal_patch_size: _Count = 2
    min_pixels: _Count = 56 * 56
    max_pixels: _Count = 28 * 28 * 1280
    image_mean: _Channels = (0.48145466, 0.4578275, 0.40821073)
    image_std: _Channels = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    resample: Literal["bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        """Refuse numbers that would give no finite pixels."""
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is over max_pixels {self.max_pixels}")
        if not all(map(math.isfinite, (*self.image_mean, *self.image_std, self.rescale_factor))):
            raise ValueError("image_mean, image_std and rescale_factor must be finite")
        if min(self.image_std) <= 0:
            raise ValueError("image_std must be above zero")


class Qwen2VL:
    """Preprocessing, prompt layout and positions of Qwen2-VL.

    `tokens` must hold the ids "image" (the placeholder), "vision_end" and "eos" (what ends a turn);
    "bos", "pad" and "unk", where given, reach the chat template as bos_token and so on, and the text
    of every id given is refused in prompts.
    """

    name: str = "qwen2_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)

    __slots__ = (
        "_control",
        "_table",
        "_template",
        "_tokenizer",
        "_tokens",
        "_variables",
        "settings",
    )

    def __init__(
        self,
        settings: Settings,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        tokens: Mapping[str, int],
    ) -> None:
        """Put the parts together; `create` checks them first."""
        self.settings = settings
        self._tokenizer = tokenizer
        self._template = template
        self._tokens = dict(tokens)
        self._table = level_table(settings.image_mean, settings.image_std, settings.rescale_factor)
        self._variables = {
            f"{role}_token": str(tokenizer.id_to_token(tokens[role]))
            for role in _SPECIAL_VARIABLES
            if role in tokens
        }
        added = tokenizer.get_added_tokens_decoder()
        self._control = frozenset(tokens.values()).union(
            index
            for index, token in added.items()
            if token.special or token.content in template.source
        )

    @classmethod
    def create(
        cls,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
    ) -> "Qwen2VL":
        """Build from what a bundle holds; switches the tokenizer's truncation and padding off.

        Raises:
            BundleError: Settings that are wrong, or a token that is missing or that the tokenizer lacks.
            PromptError: A chat template that cannot be compiled.
        """
        settings = read_settings(preprocessing)
        for role in ("image", "vision_end", "eos"):
            if role not in tokens:
                raise BundleError(f"The bundle names no {role!r} token; export it again.")
        for role, index in tokens.items():
            if tokenizer.id_to_token(index) is None:
                raise BundleError(
                    f"The bundle's {role!r} token is {index}, which its tokenizer lacks; "
                    "export it again."
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(settings, tokenizer, ChatTemplate(chat_template), tokens)

    @staticmethod
    def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
        """Read a checkpoint's image settings; see the function of the same name."""
        return settings_from_checkpoint(folder)

    def preprocess(self, pictures: Sequence[Image.Image]) -> Vision:
        """Resize, normalise and cut pictures, bit for bit as the reference image processor.

        Transparent pictures are laid on white. Any number of pictures, also none.

        Returns:
            Feeds pixel_values float32 [P, C * temporal_patch_size * patch_size^2], P patches in
            token order; position_ids int64 [P, 2], each patch's (row, column) in its picture;
            cu_seqlens int32 [pictures + 1], where each picture's patches begin and the last end.

        Raises:
            ImageError: A side over 200 times the other, or a mode that cannot be made RGB.
        """
        resized = self._resized(pictures)
        width = 3 * self.settings.temporal_patch_size * self.settings.patch_size**2
        pixels = [self._patches(levels) for levels in resized]
        lengths = [len(part) for part in pixels]
        return self._vision(
            resized,
            feeds={
                "pixel_values": np.concatenate([np.empty((0, width), np.float32), *pixels]),
                "position_ids": np.concatenate(
                    [np.empty((0, 2), np.int64), *map(self._places, resized)]
                ),
                "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int32),
            },
        )

    def levels(self, pictures: Sequence[Image.Image]) -> Vision:
        """Resize pictures as `preprocess` does, and leave the rest to the vision graph.

        Returns:
            For each picture a run of levels uint8 [1, 1, rows, M, P, columns, M, P * 3], a view of its
            pixels as tokens of M x M patches of P x P pixels; and position_ids int64 [patches, 2].

        Raises:
            ImageError: A side over 200 times the other, or a mode that cannot be made RGB.
        """
        patch, merge = self.settings.patch_size, self.settings.merge_size
        resized = self._resized(pictures)
        runs: list[dict[str, NDArray[np.generic]]] = []
        for levels in resized:
            rows, columns = (side // (patch * merge) for side in levels.shape[:2])
            shape = (1, 1, rows, merge, patch, columns, merge, patch * 3)
            runs.append({"levels": levels.reshape(shape), "position_ids": self._places(levels)})
        return self._vision(resized, feeds={}, runs=tuple(runs))

    def _resized(self, pictures: Sequence[Image.Image]) -> list[NDArray[np.uint8]]:
        """Each picture's levels uint8 [height, width, 3], its sides whole tokens."""
        resized = []
        for number, picture in enumerate(pictures, start=1):
            size = fitted_size(picture.height, picture.width, self.settings, number)
            resized.append(np.asarray(resize_bicubic(to_rgb(picture, number), *size)))
        return resized

    def _places(self, levels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(row, column) of each patch of a picture, in token order."""
        patch = self.settings.patch_size
        rows, columns = (side // patch for side in levels.shape[:2])
        return _patch_places(rows, columns, self.settings.merge_size)

    def _vision(
        self,
        resized: Sequence[NDArray[np.uint8]],
        feeds: dict[str, NDArray[np.generic]],
        runs: tuple[dict[str, NDArray[np.generic]], ...] = (),
    ) -> Vision:
        """What the vision graph takes, and the sizes of the pictures it comes from."""
        token = self.settings.patch_size * self.settings.merge_size
        sizes = tuple((levels.shape[0], levels.shape[1]) for levels in resized)
        grids = tuple((1, height // token, width // token) for height, width in sizes)
        return Vision(feeds=feeds, grids=grids, sizes=sizes, runs=runs)

    def layout(self, prompt: str, vision: Vision) -> Prompt:
        """Put the pictures and then `prompt` into one user turn, and place every token.

        The instruction is what stands between the last picture and the end of the user's turn;
        without pictures, the prompt's own tokens.

        Raises:
            PromptError: Empty, not text, with a control token in it, or refused by the template.
        """
        text = self._checked(prompt)
        rendered = self._rendered(text, len(vision.grids))
        bos = self._variables.get("bos_token")
        encoding = self._tokenizer.encode(
            rendered, add_special_tokens=not (bos and rendered.startswith(bos))
        )
        ids = np.asarray(encoding.ids, dtype=np.int64)
        slots = np.flatnonzero(ids == self._tokens["image"])
        if len(slots) != len(vision.grids):
            raise PromptError(
                f"The chat template made {len(slots)} places for {len(vision.grids)} pictures; "
                "check the bundle's chat template."
            )
        lengths = np.ones_like(ids)
        lengths[slots] = [math.prod(grid) for grid in vision.grids]
        token_ids = np.repeat(ids, lengths)
        starts = np.cumsum(lengths) - lengths
        if len(slots):
            instruction = starts[self._after_pictures(ids)]
        else:
            instruction = _span(encoding, rendered, text)
        positions = _rotary_positions(lengths, slots, vision.grids)
        return Prompt(
            token_ids=token_ids,
            visual_index=np.flatnonzero(token_ids == self._tokens["image"]).astype(np.int64),
            instruction_index=instruction,
            position_ids=positions,
            next_position=int(positions.max()) + 1,
        )

    def _patches(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Levels uint8 [height, width, 3] to normalised patches float32 [P, width of a patch]."""
        patch, merge = self.settings.patch_size, self.settings.merge_size
        rows, columns = (side // (patch * merge) for side in levels.shape[:2])
        blocks = levels.reshape(rows, merge, patch, columns, merge, patch, 3)
        ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch, patch)
        frames = self.settings.temporal_patch_size
        out = np.empty((len(ordered), 3, frames, patch, patch), dtype=np.float32)
        for channel in range(3):
            out[:, channel] = self._table[channel][ordered[:, channel]][:, None]
        return out.reshape(len(ordered), -1)

    def _rendered(self, text: str, pictures: int) -> str:
        content: list[dict[str, str]] = [{"type": "image"} for _ in range(pictures)]
        content.append({"type": "text", "text": text})
        return self._template.render(
            [{"role": "user", "content": content}], variables=self._variables
        )

    def _checked(self, prompt: str) -> str:
        """The prompt as a plain str, or a PromptError that says what is wrong with it."""
        if not isinstance(prompt, str):
            raise PromptError(f"A prompt is text, not {type(prompt).__name__}; pass a str.")
        text = str.__str__(prompt)
        if not text.strip():
            raise PromptError("The prompt is empty; ask something about the picture.")
        if "\0" in text:
            raise PromptError("The prompt has a NUL character in it; remove it.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The prompt has half a surrogate pair at character {error.start}; "
                "decode its source with the right encoding."
            ) from error
        for index in self._tokenizer.encode(text, add_special_tokens=False).ids:
            if index in self._control:
                raise PromptError(
                    f"The prompt holds the text of the control token "
                    f"{self._tokenizer.id_to_token(index)!r}, which the model would obey; remove it."
                )
        return text

    def _after_pictures(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the instruction stands in `ids` int64 [n], placeholders not yet widened."""
        ends = np.flatnonzero(ids == self._tokens["vision_end"])
        begin = int(ends[-1]) + 1 if len(ends) else len(ids)
        closing = np.flatnonzero(ids[begin:] == self._tokens["eos"])
        if not len(closing) or closing[0] == 0:
            raise PromptError(
                "The chat template leaves no text between the last picture and the end of the "
                "user's turn; check the bundle's chat template."
            )
        return np.arange(begin, begin + int(closing[0]), dtype=np.int64)


def read_settings(preprocessing: Mapping[str, Any]) -> Settings:
    """Read a bundle's settings.

    Raises:
        BundleError: Settings that are wrong.
    """
    try:
        return msgspec.convert(dict(preprocessing), Settings)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"The bundle's preprocessing settings are wrong ({error}); export it again."
        ) from error


def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's image settings, as JSON types that `Settings` takes.

    processor_config.json goes before preprocessor_config.json where it has an image_processor part.

    Raises:
        CheckpointError: No such file, or a setting (named) that cannot be honoured.
    """
    found, raw = image_section(folder)
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    if kind is not None and not str(kind).startswith("Qwen2VLImageProcessor"):
        raise CheckpointError(
            f"{found}: image_processor_type {kind!r} is not Qwen2VLImageProcessor."
        )
    if raw.get("resample") not in (None, _BICUBIC, "bicubic"):
        raise CheckpointError(
            f"{found}: resample {raw['resample']!r} is not bicubic ({_BICUBIC}), "
            "the only filter that Foveate has for this family."
        )
    values = {
        key: raw[key]
        for key in Settings.__struct_fields__
        if key != "resample" and raw.get(key) is not None
    }
    values.update(_pixel_limits(found, raw))
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{found}: the image settings are wrong ({error}).") from error
    return dict(msgspec.json.decode(msgspec.json.encode(settings)))


def fitted_size(height: int, width: int, settings: Settings, number: int = 1) -> tuple[int, int]:
    """Height and width in pixels after resizing: whole tokens, area within the limits.

    Halves round to even, and the limits are applied to the rounded area, as the reference does.

    Raises:
        ImageError: A side over 200 times the other; the message calls the picture `number`.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > _MAX_ASPECT:
        raise ImageError(
            f"Picture {number} is {width} x {height} pixels, an aspect ratio of {aspect:.0f}, and "
            f"Qwen2-VL takes {_MAX_ASPECT} at most; crop or pad it."
        )
    unit = settings.patch_size * settings.merge_size
    fitted = (round(height / unit) * unit, round(width / unit) * unit)
    area = fitted[0] * fitted[1]
    if area > settings.max_pixels:
        shrink = math.sqrt((height * width) / settings.max_pixels)
        fitted = (
            max(unit, math.floor(height / shrink / unit) * unit),
            max(unit, math.floor(width / shrink / unit) * unit),
        )
    elif area < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        fitted = (math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit)
    return fitted


def _pixel_limits(found: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The area limits of both spellings; a limit of its own goes before the one inside `size`."""
    size = raw.get("size")
    limits: dict[str, Any] = {}
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        limit = raw.get(key)
        if limit is None and size is not None:
            if not isinstance(size, dict) or edge not in size:
                raise CheckpointError(
                    f"{found}: size {size!r} gives no {edge}, and there is no {key} beside it."
                )
            limit = size[edge]
        if limit is not None:
            limits[key] = limit
    return limits


def _patch_places(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """(row, column) of each patch, int64 [rows * columns, 2], patches of one token together."""
    places = np.indices((rows, columns), dtype=np.int64)
    blocks = places.reshape(2, rows // merge, merge, columns // merge, merge)
    return blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def _rotary_positions(
    lengths: NDArray[np.int64],
    slots: NDArray[np.intp],
    grids: Sequence[tuple[int, int, int]],
) -> NDArray[np.int64]:
    """Time, row and column of each token, int64 [3, T].

    Text counts on by one; a picture spans its grid from where it begins, and the text after it goes
    on behind its longer side.
    """
    steps = np.ones_like(lengths)
    steps[slots] = [max(rows, columns) for _, rows, columns in grids]
    begins = np.cumsum(steps) - steps
    positions = np.tile(np.repeat(begins, lengths), (3, 1))
    starts = np.cumsum(lengths) - lengths
    for start, grid in zip(starts[slots], grids, strict=True):
        positions[:, start : start + math.prod(grid)] += np.indices(grid, np.int64).reshape(3, -1)
    return positions


def _span(encoding: Encoding, rendered: str, text: str) -> NDArray[np.int64]:
    """Tokens of `text` in the rendered conversation, or all where the template has altered it."""
    begin = rendered.rfind(text)
    if begin < 0:
        return np.arange(len(encoding.ids), dtype=np.int64)
    end = begin + len(text)
    inside = [left < end and right > begin for left, right in encoding.offsets]
    return np.flatnonzero(inside).astype(np.int64)
