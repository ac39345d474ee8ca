"""Batches for training the nano checkpoint: pictures with their questions, packed into sequences."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import easy_vqa
import nano_scenes as scenes
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import IterableDataset

EASY_SIZE = (224, 224)
TEXT = 232


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """A size in pixels as the image processor rounds it: whole visual tokens."""
    return round(size[0] / 28) * 28, round(size[1] / 28) * 28


@dataclass(slots=True)
class Batch:
    """Pictures of one size with their questions, packed.

    Attributes:
        kind: "scene", "chart" or "easy".
        size: (height, width) in pixels.
        drawing: Drawing orders, or for easy-VQA the pictures' numbers in one tensor.
        ids: int64 [B, TEXT], the segments' tokens after the prefix.
        segments: int64 [B, TEXT], each token's segment from 1, 0 for padding.
        places: int64 [B, TEXT], each token's place in its segment.
        targets: int64 [B, TEXT], the answer's token to predict at each place, -100 where none is.
        asked: int64 [B, TEXT], the question's token to predict at each place, -100 where none is.
        labels: For each picture (task, scope) of each segment.
    """

    kind: str
    size: tuple[int, int]
    drawing: tuple[Tensor, ...]
    ids: Tensor
    segments: Tensor
    places: Tensor
    targets: Tensor
    asked: Tensor
    labels: list[list[tuple[str, str]]]


class Batches(IterableDataset[Batch]):
    """An endless stream of batches, different in every worker."""

    def __init__(
        self,
        folder: Path,
        batch: int,
        seed: int,
        split: str,
        sprites: int,
        captions: bool,
        told: float = 0.25,
    ):
        """Make batches of `split` ("train" or "test"); scenes have at most `sprites` sprites."""
        self.folder, self.batch, self.seed, self.split = folder, batch, seed, split
        self.sprites, self.captions, self.told = sprites, captions, told

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever."""
        worker = torch.utils.data.get_worker_info()
        number = worker.id if worker else 0
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        pack = Packer(tokenizer, self.told)
        held_out = scenes.HELD_OUT_SEED if self.split == "test" else 0
        rng = np.random.default_rng((held_out, self.seed, number))
        easy = easy_questions(self.split)
        while True:
            kind = str(rng.choice(["scene", "scene", "scene", "chart", "easy"]))
            if kind == "easy":
                numbers = rng.integers(len(easy), size=self.batch)
                pictures = [easy[index] for index in numbers]
                drawing: tuple[Tensor, ...] = (torch.from_numpy(numbers),)
                size = EASY_SIZE
            else:
                height, width = rng.integers(252, 346, size=2).tolist()
                size = (height, width) if rng.random() < 0.5 else fitted((height, width))
                if kind == "scene":
                    drawn = [
                        scenes.sample_scene(rng, size, self.sprites) for _ in range(self.batch)
                    ]
                else:
                    drawn = [scenes.sample_chart(rng, size) for _ in range(self.batch)]
                drawing = scenes.orders(drawn)
                pictures = [(picture.tellings(rng), picture.questions) for picture in drawn]
            yield pack(rng, kind, size, drawing, pictures, self.captions)


@cache
def easy_questions(split: str) -> list[tuple[list[scenes.Question], list[scenes.Question]]]:
    """easy-VQA's questions by picture, and a caption made of what they tell."""
    get = easy_vqa.get_train_questions if split == "train" else easy_vqa.get_test_questions
    found: dict[int, list[scenes.Question]] = defaultdict(list)
    for text, answer, number in zip(*get(), strict=True):
        found[number].append(scenes.Question(text, answer, "easy-vqa", "global"))
    pictures = []
    for number in range(max(found) + 1):
        questions = found[number]
        words = [q.answer for q in questions if q.answer not in ("yes", "no")]
        caption = " ".join(sorted(set(words))) or "a shape"
        told = scenes.Question(scenes.CAPTION, caption, "caption", "global")
        pictures.append(([told], questions))
    return pictures


class Packer:
    """Questions to packed token sequences."""

    def __init__(self, tokenizer: Tokenizer, told: float) -> None:
        """Encode with `tokenizer`, each text once; a share `told` of the pictures is described too."""
        self.encode = cache(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self.pad = tokenizer.token_to_id("<|endoftext|>")
        self.told = told

    def __call__(
        self,
        rng: np.random.Generator,
        kind: str,
        size: tuple[int, int],
        drawing: tuple[Tensor, ...],
        pictures: list[tuple[list[scenes.Question], list[scenes.Question]]],
        captions: bool,
    ) -> Batch:
        """Pack as many questions of each picture as fit, in random order."""
        shape = (len(pictures), TEXT)
        ids = np.full(shape, self.pad, dtype=np.int64)
        segments, places = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, -100, dtype=np.int64)
        asks = np.full(shape, -100, dtype=np.int64)
        labels: list[list[tuple[str, str]]] = []
        for row, (tellings, questions) in enumerate(pictures):
            chosen = [questions[index] for index in rng.permutation(len(questions))]
            if captions:
                chosen = tellings
            elif rng.random() < self.told:
                chosen = [tellings[rng.integers(len(tellings))], *chosen]
            used: list[tuple[str, str]] = []
            at = 0
            for question in chosen:
                asked = self.encode(question.text + "<|im_end|>\n<|im_start|>assistant\n")
                said = self.encode(question.answer + "<|im_end|>")
                end = at + len(asked) + len(said)
                if end > TEXT:
                    continue
                used.append((question.task, question.scope))
                ids[row, at:end] = asked + said
                segments[row, at:end] = len(used)
                places[row, at:end] = np.arange(end - at)
                targets[row, at + len(asked) - 1 : end - 1] = said
                asks[row, at : at + len(asked) - 1] = asked[1:]
                at = end
            labels.append(used)
        arrays = (torch.from_numpy(array) for array in (ids, segments, places, targets, asks))
        return Batch(kind, size, drawing, *arrays, labels)


def easy_pictures(split: str) -> Tensor:
    """easy-VQA's pictures, enlarged as the image processor does: uint8 [N, 224, 224, 3]."""
    paths = easy_vqa.get_train_image_paths if split == "train" else easy_vqa.get_test_image_paths
    listed = paths()
    pictures = np.empty((len(listed), *EASY_SIZE, 3), dtype=np.uint8)
    for number, path in listed.items():
        image = Image.open(path).convert("RGB").resize(EASY_SIZE[::-1], Image.Resampling.BICUBIC)
        pictures[number] = np.asarray(image)
    return torch.from_numpy(pictures)


def take(batches: Batches, count: int) -> list[Batch]:
    """The first batches of a stream."""
    stream = iter(batches)
    return [next(stream) for _ in range(count)]
