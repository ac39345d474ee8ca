"""Batches for training the nano checkpoint: pictures with their questions, packed into rows."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import easy_vqa
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tasks.data import HELD_OUT_SEED, KINDS
from tasks.picture import Box, Picture, Question
from tasks.render import Orders, draw, orders
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torch.utils.data import IterableDataset

EASY_SIZE = (224, 224)
TOKEN = 28
LENGTHS = {"captions": 232, "whole": 232, "holes": 88}
ROWS = 4
"""Rows a picture in batches with holes."""
SIDES = {"plates": (292, 365), "table": (280, 365), "lines": (280, 365), "grid": (292, 365)}
MIX = {"plates": 5, "table": 3, "lines": 2, "grid": 3, "sprites": 2, "chart": 2, "easy": 1}
LARGE = 449
"""Sides of large pictures end here."""


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """A size in pixels as the image processor rounds it: whole visual tokens."""
    return round(size[0] / TOKEN) * TOKEN, round(size[1] / TOKEN) * TOKEN


@dataclass(slots=True)
class Batch:
    """Pictures of one size and rows of questions about them.

    Attributes:
        kind: Which generator made the pictures.
        size: (height, width) in pixels.
        drawing: Drawing orders, or for easy-VQA the pictures' numbers.
        picture: int64 [R], which picture a row is about.
        kept: int64 [R, K] ascending, the visual tokens that are left; None for all.
        needed: bool [R, N], those that the row's questions cannot do without; None without holes.
        whole: bool [R], whether all that the row's questions need is left.
        ids, segments, places: int64 [R, T], tokens after the prefix, their segment from 1 (0 for
            padding), their place in it.
        targets: int64 [R, T], the answer's token to predict at each place, -100 where none is.
        asked: bool [R, T], the tokens of questions.
        labels: For each row the task of each segment.
    """

    kind: str
    size: tuple[int, int]
    drawing: Orders | Tensor
    picture: Tensor
    kept: Tensor | None
    needed: Tensor | None
    whole: Tensor
    ids: Tensor
    segments: Tensor
    places: Tensor
    targets: Tensor
    asked: Tensor
    labels: list[list[str]]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        height, width = fitted(self.size)
        return height // TOKEN, width // TOKEN

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch on a device."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Orders):
                moved[field.name] = value.to(device)
            elif isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
        return replace(self, **moved)


class Batches(IterableDataset[Batch]):
    """An endless stream of batches, different in every worker."""

    def __init__(
        self,
        folder: Path,
        batch: int,
        seed: int,
        mode: str,
        told: float,
        easy: bool = False,
        large: float = 0.0,
    ) -> None:
        """Batches of pictures to train on.

        Args:
            folder: Has the tokenizer.
            batch: Pictures a batch.
            seed: Another stream for another seed.
            mode: "captions", "whole" (many questions a row) or "holes" (rows of one thing each).
            told: Share of rows that describe the picture too.
            easy: Begin with few things a picture.
            large: Share of batches whose sides go up to `LARGE`.
        """
        self.folder, self.batch, self.seed = folder, batch, seed
        self.mode, self.told, self.easy, self.large = mode, told, easy, large

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever."""
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((0, self.seed, worker.id if worker else 0))
        pack = Packer(self.folder, self.mode, self.told)
        kinds = [kind for kind, share in MIX.items() for _ in range(share)]
        while True:
            kind = kinds[int(rng.integers(len(kinds)))]
            if kind == "easy":
                yield easy_batch(rng, pack, "train", self.batch)
            else:
                low, high = SIDES.get(kind, (252, 337))
                if self.easy:
                    low, high = (196, 253) if kind in SIDES else (168, 253)
                elif rng.random() < self.large:
                    high = LARGE
                size = draw_size(rng, low, high)
                pictures = [KINDS[kind](rng, size, False) for _ in range(self.batch)]
                yield pack(rng, pictures, orders(pictures))


def draw_size(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """(height, width) in pixels, half of the time of whole visual tokens."""
    height, width = rng.integers(low, high, size=2).tolist()
    return (height, width) if rng.random() < 0.5 else fitted((height, width))


def easy_batch(rng: np.random.Generator, pack: "Packer", split: str, count: int) -> Batch:
    """A batch of easy-VQA."""
    numbers = rng.integers(len(easy_questions(split)), size=count)
    pictures = [easy_questions(split)[index] for index in numbers.tolist()]
    return pack(rng, pictures, torch.from_numpy(numbers))


@cache
def easy_questions(split: str) -> list[Picture]:
    """easy-VQA's questions by picture, with captions made of what they tell."""
    get = easy_vqa.get_train_questions if split == "train" else easy_vqa.get_test_questions
    found: dict[int, list[Question]] = defaultdict(list)
    for text, answer, number in zip(*get(), strict=True):
        found[number].append(Question(text, answer, "easy-vqa"))
    pictures = []
    for number in range(max(found) + 1):
        picture = Picture("easy", EASY_SIZE, (0, 0, 0), questions=found[number])
        words = {q.answer for q in picture.questions} - {"yes", "no"}
        picture.things = [sorted(words) or ["a shape"]]
        pictures.append(picture)
    return pictures


class Packer:
    """Questions to packed rows."""

    def __init__(self, folder: Path, mode: str, told: float) -> None:
        """Encode with a folder's tokenizer, each text once."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encode = cache(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self.end = self.encode("<|im_end|>\n<|im_start|>assistant\n")
        self.stop = self.encode("<|im_end|>")
        self.pad = tokenizer.token_to_id("<|endoftext|>")
        self.mode, self.told = mode, told

    def __call__(
        self, rng: np.random.Generator, pictures: list[Picture], drawing: Orders | Tensor
    ) -> Batch:
        """Pack as many questions as fit."""
        if self.mode == "holes":
            chosen = [one_thing(rng, picture) for picture in pictures for _ in range(ROWS)]
            picture = torch.arange(len(pictures)).repeat_interleave(ROWS)
        else:
            chosen = [self._many(rng, picture) for picture in pictures]
            picture = torch.arange(len(pictures))
        batch = self.rows(pictures[0], chosen, picture, drawing)
        if self.mode == "holes":
            cut(rng, batch, [pictures[index] for index in picture.tolist()], chosen)
        return batch

    def _many(self, rng: np.random.Generator, picture: Picture) -> list[Question]:
        """All questions of a picture in random order, or what tells of it, or both."""
        if self.mode == "captions":
            return picture.tellings(rng)
        asked = [picture.questions[index] for index in rng.permutation(len(picture.questions))]
        if rng.random() < self.told:
            tellings = picture.tellings(rng)
            asked.insert(0, tellings[int(rng.integers(len(tellings)))])
        return asked

    def rows(
        self,
        sample: Picture,
        chosen: list[list[Question]],
        picture: Tensor,
        drawing: Orders | Tensor,
    ) -> Batch:
        """Rows of questions, each as far as they fit."""
        shape = (len(chosen), LENGTHS[self.mode])
        ids = np.full(shape, self.pad, dtype=np.int64)
        segments, places = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, -100, dtype=np.int64)
        asked = np.zeros(shape, dtype=bool)
        labels: list[list[str]] = []
        for row, questions in enumerate(chosen):
            used: list[str] = []
            at = 0
            for question in questions:
                words = self.encode(question.text)
                told = self.encode(question.answer) + self.stop
                text = words + self.end + told
                end = at + len(text)
                if end > shape[1]:
                    continue
                used.append(question.task)
                ids[row, at:end] = text
                segments[row, at:end] = len(used)
                places[row, at:end] = np.arange(len(text))
                targets[row, end - len(told) - 1 : end - 1] = told
                asked[row, at : at + len(words)] = True
                at = end
            labels.append(used)
        arrays = (torch.from_numpy(array) for array in (ids, segments, places, targets, asked))
        whole = torch.ones(len(chosen), dtype=torch.bool)
        kind, size = sample.kind, sample.size
        return Batch(kind, size, drawing, picture, None, None, whole, *arrays, labels)


def one_thing(rng: np.random.Generator, picture: Picture) -> list[Question]:
    """Up to three questions whose answers stand in the same place, or one about the whole."""
    groups: dict[tuple[Box, ...], list[Question]] = defaultdict(list)
    for question in picture.questions:
        groups[question.boxes].append(question)
    whole = groups.pop((), [])
    if not groups or (whole and rng.random() < 0.2):
        told = [picture.caption] if rng.random() < 0.2 else []
        return [*told, whole[int(rng.integers(len(whole)))]]
    some = list(groups.values())[int(rng.integers(len(groups)))]
    return [some[index] for index in rng.permutation(len(some))[:3]]


def cut(
    rng: np.random.Generator, batch: Batch, pictures: list[Picture], chosen: list[list[Question]]
) -> None:
    """Leave in each row what its questions need and, of the rest, things or parts at random."""
    rows, columns = batch.grid
    count = rows * columns
    needed = np.zeros((len(chosen), count), dtype=bool)
    chances = rng.random((len(chosen), count))
    covers: dict[tuple[int, Box], NDArray[np.bool_]] = {}

    def tokens(picture: Picture, box: Box) -> NDArray[np.bool_]:
        key = (id(picture), box)
        if key not in covers:
            covers[key] = covered(box, picture.size, rows, columns)
        return covers[key]

    for row, (picture, questions) in enumerate(zip(pictures, chosen, strict=True)):
        for box in questions[0].boxes:
            needed[row] |= tokens(picture, box)
        others = list(
            dict.fromkeys(box for question in picture.questions for box in question.boxes)
        )
        clumped = rng.random() < 0.7
        for box in others if clumped else ():
            chances[row, tokens(picture, box)] += float(rng.choice([-0.7, 0, 0.7]))
        batch.whole[row] = bool(questions[0].boxes)
    share = float(rng.uniform(0.05, 0.6)) if rng.random() < 0.8 else float(rng.uniform(0.05, 0.15))
    left = max(int(needed.sum(1).max()), int(share * count), 1)
    chances[needed] = 9
    batch.needed = torch.from_numpy(needed)
    batch.kept = torch.from_numpy(chances).topk(left).indices.sort().values


def covered(box: Box, size: tuple[int, int], rows: int, columns: int) -> NDArray[np.bool_]:
    """The visual tokens, bool [N], of which a box in pixels covers a strip of 3 pixels or more."""
    top, left, bottom, right = box
    tall, wide = size[0] / rows, size[1] / columns
    row, column = np.arange(rows) * tall, np.arange(columns) * wide
    down = np.minimum(bottom, row + tall) - np.maximum(top, row) >= 3
    across = np.minimum(right, column + wide) - np.maximum(left, column) >= 3
    return (down[:, None] & across[None, :]).reshape(-1)


@cache
def easy_pictures(split: str, device: str) -> Tensor:
    """easy-VQA's pictures, enlarged as the image processor does: uint8 [N, 224, 224, 3]."""
    paths = easy_vqa.get_train_image_paths if split == "train" else easy_vqa.get_test_image_paths
    listed = paths()
    pictures = np.empty((len(listed), *EASY_SIZE, 3), dtype=np.uint8)
    for number, path in listed.items():
        image = Image.open(path).convert("RGB").resize(EASY_SIZE[::-1], Image.Resampling.BICUBIC)
        pictures[number] = np.asarray(image)
    return torch.from_numpy(pictures).to(device)


def pictures_of(batch: Batch, blur: bool, split: str = "train") -> Tensor:
    """A batch's pictures uint8 [B, H, W, 3]; `blur` sometimes resizes them as real ones are."""
    device = batch.ids.device
    if isinstance(batch.drawing, Tensor):
        images = easy_pictures(split, str(device))[batch.drawing]
        return images.flip(2) if blur and torch.rand(()) < 0.5 else images
    images = draw(batch.drawing)
    targets = [fitted(batch.size)] if batch.size != fitted(batch.size) else []
    if blur and torch.rand(()) < 0.2:
        factor = 0.85 + 0.3 * float(torch.rand(()))
        height, width = batch.size
        targets = [(int(height * factor), int(width * factor)), fitted(batch.size)]
    if not targets:
        return images
    floats = images.permute(0, 3, 1, 2).float()
    for target in targets:
        floats = functional.interpolate(
            floats, target, mode="bicubic", antialias=True, align_corners=False
        )
    return floats.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def held_out(folder: Path, seed: int, count: int) -> list[Batch]:
    """Pairs of questions about two things of each picture, fonts and shades never trained on.

    A batch's rows are twice as many as its pictures, the two about one picture next to each other.
    """
    batches = []
    pack = Packer(folder, "holes", 0)
    for kind in ("plates", "table", "lines", "grid", "sprites", "chart"):
        rng = np.random.default_rng((HELD_OUT_SEED, seed))
        size = fitted(draw_size(rng, 336, 365)) if kind in SIDES else draw_size(rng, 252, 337)
        pictures, pairs = [], []
        while len(pictures) < count:
            picture = KINDS[kind](rng, size, True)
            groups: dict[tuple[Box, ...], list[Question]] = defaultdict(list)
            for question in picture.questions:
                if question.task not in ("color", "shape", "sprite", "plate color", "ink"):
                    groups[question.boxes].append(question)
            groups.pop((), None)
            apart = [boxes for boxes in groups if groups[boxes][0].task != "two letters"]
            if len(apart) > 1:
                first, second = (apart[index] for index in rng.permutation(len(apart))[:2])
                pictures.append(picture)
                pairs += [[groups[first][0]], [groups[second][0]]]
        picture_of = torch.arange(count).repeat_interleave(2)
        batch = pack.rows(pictures[0], pairs, picture_of, orders(pictures))
        cut(rng, batch, [pictures[index] for index in picture_of.tolist()], pairs)
        batches.append(batch)
    rng = np.random.default_rng((HELD_OUT_SEED, seed))
    batches.append(easy_batch(rng, Packer(folder, "whole", 0), "test", count))
    return batches
