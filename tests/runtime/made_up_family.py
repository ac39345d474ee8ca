"""A small family that no model has: two overlapping views, interpolated rows, newlines that stay.

Its tokens are those of the nano checkpoint, whose compressor and decoder run behind its vision graph.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer

from foveate.bundle.manifest import GATHER, AxisRange, GraphSpec, TensorSpec
from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter
from foveate.errors import ImageError
from foveate.export.gather_visual import gather_visual
from foveate.families.base import (
    Call,
    CheckpointForm,
    FrameRule,
    Medium,
    Message,
    PixelLimits,
    Prompt,
    Video,
    VisualInput,
    opened,
)
from foveate.families.pixels import to_rgb
from foveate.families.pooling import pool_grid

NAME = "made_up"
WIDE, FINE, ACROSS = 2, 4, 3
"""Cells of the whole picture's view and of the fine one, along each side; columns of tokens that the fine
view's cells are interpolated to."""
CELLS = WIDE**2 + FINE**2
TOKENS = WIDE**2 + FINE * (ACROSS + 1)
"""Visual tokens of a picture: the wide view's cells, then rows of the fine view with a newline each."""
NEWLINES = WIDE**2 + ACROSS + (ACROSS + 1) * np.arange(FINE)
JUNK = 3
"""Rows that the vision graph gives after the real ones; none where outputs have memory beforehand."""
LEVELS = 3 * 4 * 4
"""Values of a cell: 4 x 4 pixels."""
WIDTH, TAPS = 256, 2


class MadeUp:
    """Preprocessing and prompt layout; see `Family`."""

    name = NAME
    model_types: ClassVar[tuple[str, ...]] = (NAME,)
    form: ClassVar[CheckpointForm] = CheckpointForm()

    def __init__(
        self,
        preprocessing: Mapping[str, Any],
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
        levels: bool = False,
    ) -> None:
        self.tokenizer, self.tokens = tokenizer, tokens

    @staticmethod
    def settings_from_checkpoint(folder: Path) -> dict[str, Any]:
        return {}

    frame_rule = FrameRule()

    def limited(self, limits: PixelLimits) -> "MadeUp":
        return self

    def fit_frame(self, frame: Image.Image, frames: int) -> Image.Image:
        return frame

    def prepare(self, media: Sequence[Medium]) -> VisualInput:
        """One call and `TOKENS` tokens a picture."""
        pictures = [to_rgb(opened(one)) for one in media if not isinstance(one, Video)]
        calls = tuple(Call({"cells": picture_cells(one)}, CELLS + 1) for one in pictures)
        return dataclasses.replace(self.plan(media), calls=calls)

    def plan(self, media: Sequence[Medium]) -> VisualInput:
        """As many tokens for each picture, whatever its size."""
        if any(isinstance(medium, Video) for medium in media):
            raise ImageError("this family takes no videos")
        taps = [picture_taps(number) for number in range(len(media))]
        candidates = np.ones(TOKENS, bool)
        candidates[NEWLINES] = False
        return VisualInput(
            calls=(),
            candidates=np.tile(candidates, len(media)),
            picture=np.repeat(np.arange(len(media)), TOKENS),
            boxes=np.tile(token_boxes(), (len(media), 1)),
            rows=np.concatenate([rows for rows, _ in taps]),
            weights=np.concatenate([weights for _, weights in taps]),
        )

    def shrink(self, media: Sequence[Medium], most: Sequence[int]) -> VisualInput:
        """The wide view alone, pooled to so many tokens."""
        whole = self.prepare(media)
        grids = [pool_grid(WIDE, WIDE, count) for count in most]
        firsts = ((CELLS + 1) * np.arange(len(media))).tolist()
        rows = [grid.sources + first for grid, first in zip(grids, firsts, strict=True)]
        widths = [len(one) for one in rows]
        taken = max(one.shape[1] for one in rows)
        return dataclasses.replace(
            whole,
            candidates=np.ones(sum(widths), bool),
            picture=np.repeat(np.arange(len(media)), widths),
            boxes=np.tile(np.array([0, 0, 1, 1], np.float32), (sum(widths), 1)),
            rows=np.concatenate([_padded(one, taken) for one in rows]),
            weights=np.concatenate([_padded(grid.weights, taken) for grid in grids]),
            pooled=True,
        )

    def layout(self, messages: Sequence[Message], visual: VisualInput) -> Prompt:
        """The visual tokens, then the text, all at consecutive positions."""
        text = messages[-1]["content"][-1]["text"]
        words = self.tokenizer.encode(text, add_special_tokens=False).ids
        shown = [self.tokens["image"]] * visual.tokens
        ids = np.array([self.tokens["vision_start"], *shown, *words, self.tokens["eos"]])
        begin = 1 + visual.tokens
        return Prompt(
            token_ids=ids,
            visual_index=np.arange(1, begin),
            instruction_index=np.arange(begin, begin + len(words)),
            position_ids=np.tile(np.arange(len(ids)), (3, 1)),
            next_position=len(ids),
        )


def _padded(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Values [N, K] with columns of 0 up to `width`."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def picture_cells(picture: Image.Image) -> NDArray[np.float32]:
    """The cells of both views, float32 [CELLS, LEVELS]."""
    views = []
    for side in (WIDE, FINE):
        levels = np.asarray(picture.resize((4 * side, 4 * side), Image.Resampling.BOX), np.float32)
        cells = levels.reshape(side, 4, side, 4, 3).transpose(0, 2, 1, 3, 4)
        views.append(cells.reshape(side * side, LEVELS) / 255)
    return np.concatenate(views)


def picture_taps(number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which of the vision graph's rows make up each token of picture `number`, and with what weights."""
    start = number * (CELLS + 1)
    rows = np.full((TOKENS, 2), start)
    weights = np.zeros((TOKENS, 2), np.float32)
    rows[: WIDE**2, 0] += np.arange(WIDE**2)
    weights[: WIDE**2, 0] = 1
    token = WIDE**2
    for row in range(FINE):
        for column in range(ACROSS):
            place = column * (FINE - 1) / (ACROSS - 1)
            left = min(int(place), FINE - 2)
            rows[token] += WIDE**2 + row * FINE + np.array([left, left + 1])
            weights[token] = left + 1 - place, place - left
            token += 1
        rows[token, 0] += CELLS
        weights[token, 0] = 1
        token += 1
    return rows.astype(np.int64), weights


def token_boxes() -> NDArray[np.float32]:
    """What each token of a picture shows, float32 [TOKENS, 4]; a newline shows nothing."""
    boxes = []
    for down, across, newline in ((WIDE, WIDE, False), (FINE, ACROSS, True)):
        for row in range(down):
            top, bottom = row / down, (row + 1) / down
            boxes += [(one / across, top, (one + 1) / across, bottom) for one in range(across)]
            boxes += [(1, top, 1, bottom)] if newline else []
    return np.array(boxes, np.float32)


def graph_weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the vision graph multiplies cells by, and its newline row."""
    random = np.random.default_rng(5)
    return (
        random.normal(0, 0.02, (LEVELS, WIDTH)).astype(np.float32),
        random.normal(0, 0.05, (1, WIDTH)).astype(np.float32),
    )


def expected_embeds(visual: VisualInput) -> NDArray[np.float32]:
    """The visual tokens, float32 [N_v, WIDTH], computed without a graph."""
    product, newline = graph_weights()
    parts = [np.concatenate([call.inputs["cells"] @ product, newline]) for call in visual.calls]
    output = np.concatenate(parts)
    assert visual.rows is not None and visual.weights is not None
    return np.einsum("nk,nkh->nh", visual.weights, output[visual.rows]).astype(np.float32)


def vision_graph(junk_rows: int) -> bytes:
    """The vision graph: cells times a matrix, the newline's row, and junk."""
    product, newline = graph_weights()
    junk = np.full((junk_rows, WIDTH), np.nan, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["cells", "product"], ["rows"]),
            helper.make_node("Concat", ["rows", "newline", "junk"], ["visual_embeds"], axis=0),
        ],
        "vision",
        [helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["cells", LEVELS])],
        [helper.make_tensor_value_info("visual_embeds", TensorProto.FLOAT, ["output", WIDTH])],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("product", product), ("newline", newline), ("junk", junk))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def gather_graph() -> bytes:
    """What sums the vision graph's rows to visual tokens."""
    graph = gather_visual(WIDTH, torch.float32, TAPS)
    data: bytes = ir.to_proto(graph).SerializeToString()
    return data


def write_bundle(nano: Bundle, path: Path) -> Bundle:
    """The nano checkpoint's bundle with the made-up family and its vision graph."""
    spec = GraphSpec(
        opset=18,
        inputs=[TensorSpec(name="cells", dtype="float32", shape=["cells", LEVELS])],
        outputs=[TensorSpec(name="visual_embeds", dtype="float32", shape=["output", WIDTH])],
    )
    manifest = nano.manifest
    paths = {role: entry.path for role, entry in manifest.files.items() if role != "vision.weights"}
    ending = paths["vision"].removeprefix("vision")
    paths[GATHER] = f"{GATHER}{ending}"
    tokens = TensorSpec(name="visual_embeds", dtype="float32", shape=["visual", WIDTH])
    gathering = GraphSpec(
        opset=18,
        inputs=[
            TensorSpec(name="features", dtype="float32", shape=["rows", WIDTH]),
            TensorSpec(name="rows", dtype="int64", shape=["visual", TAPS]),
            TensorSpec(name="weights", dtype="float32", shape=["visual", TAPS]),
        ],
        outputs=[tokens],
    )
    with BundleWriter(path) as writer:
        for role, name in paths.items():
            if role == "vision":
                junk = JUNK if manifest.operators == "standard" else 0
                (writer.root / name).write_bytes(vision_graph(junk))
            elif role == GATHER:
                (writer.root / name).write_bytes(gather_graph())
            else:
                shutil.copyfile(nano.root / name, writer.root / name)
        return writer.finish(
            replace(
                manifest,
                family=NAME,
                files=writer.entries(paths),
                graphs={**manifest.graphs, "vision": spec, GATHER: gathering},
                preprocessing={},
                vision_axes={"cells": AxisRange(per_picture=CELLS)},
            )
        )
