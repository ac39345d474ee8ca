"""A checkpoint under evaluation: in torch, by any of its rankings, on several processes if launched so."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from numpy.typing import NDArray

from foveate.bundle.reader import file_digest
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.rankings import AnsweredQuestion, Ranking, find_rankings
from foveate.calibration.evaluation.subject import ITEM
from foveate.calibration.processes import gather, join_processes
from foveate.calibration.provenance import checkpoint_facts, tool_versions
from foveate.calibration.torch_model import EncodedPictures, TorchModel
from foveate.families.base import Medium, VisualInput


class Checkpoint:
    """A checkpoint that is to be evaluated; see `Evaluated`."""

    kind = "checkpoint"

    def __init__(
        self,
        source: str,
        rank: Sequence[str] = (),
        *,
        dtype: str = "fp32",
        device: str = "auto",
        max_new_tokens: int,
        batch: int,
    ) -> None:
        """Find it, its rankings and the processes of the run.

        Args:
            source: A folder or a hub id.
            rank: Rankings by name, or files of a trained f_θ; see `find_rankings`.
            dtype: What the model computes in: "fp32" or "bf16".
            device: "auto", "cpu" or "cuda"; under accelerate, the process's own of that kind.
            max_new_tokens: The longest answer.
            batch: The most answers that are generated together.

        Raises:
            CheckpointError: No checkpoint that can be read, or neither a ranking nor an f_θ.
            BackendError: The device cannot be had.
        """
        self.source, self._dtype = source, dtype
        self._most, self._batch = max_new_tokens, batch
        self.team = Processes(join_processes(device))
        self._ranked_by = {one.name: one for one in find_rankings(rank)}
        self.facts: dict[str, Any] = {
            **checkpoint_facts(source),
            "dtype": dtype,
            "rankings": [_ranking_facts(one) for one in self._ranked_by.values()],
            "tools": tool_versions(),
        }

    @contextlib.contextmanager
    def load(self) -> Iterator["LoadedCheckpoint"]:
        """Load it on this process's device."""
        model = TorchModel.load(self.source, self._dtype, str(self.team.state.device))
        yield LoadedCheckpoint(model, self._ranked_by, self._most, self._batch)


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that `accelerate launch` started; see `Team`."""

    state: PartialState

    @property
    def index(self) -> int:
        """Which of them this is."""
        return int(self.state.process_index)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.state.num_processes)

    def wait(self) -> None:
        """Wait until all are here."""
        self.state.wait_for_everyone()

    def gather(self, items: list[ITEM]) -> list[ITEM]:
        """Everybody's items."""
        return gather(items)


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint that answers; see `Subject`."""

    model: TorchModel
    ranked_by: dict[str, Ranking]
    most: int
    batch: int

    @property
    def rankings(self) -> Sequence[str]:
        """The names of its rankings."""
        return list(self.ranked_by)

    @property
    def facts(self) -> dict[str, str]:
        """What runs it, and where."""
        device = self.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"backend": "torch", "device": name}

    def open(self, record: Record) -> "CheckpointScene":
        """Open and encode a record's pictures or video."""
        return CheckpointScene(self, self.model.encode(self.model.open(record)))


@dataclass(frozen=True, slots=True)
class CheckpointScene:
    """The pictures of some questions to a checkpoint; see `Scene`."""

    subject: LoadedCheckpoint
    pictures: EncodedPictures
    _asked: dict[str, AnsweredQuestion] = field(default_factory=dict)
    _scores: dict[tuple[str, str], NDArray[np.floating] | None] = field(default_factory=dict)
    _smaller: dict[tuple[int, ...], EncodedPictures] = field(default_factory=dict)

    @property
    def media(self) -> Sequence[Medium]:
        """The pictures or the video."""
        return self.pictures.media

    @property
    def visual(self) -> VisualInput:
        """They as the vision tower saw them."""
        return self.pictures.visual

    def about(self, prompt: str) -> AnsweredQuestion:
        """A prompt about the pictures, prepared once."""
        if prompt not in self._asked:
            model, most = self.subject.model, self.subject.most
            question = model.ask(prompt, self.pictures)
            self._asked[prompt] = AnsweredQuestion(model, question, most)
        return self._asked[prompt]

    def scores(self, ranking: str, prompt: str) -> NDArray[np.floating] | None:
        """Score the visual tokens by a prompt, once."""
        key = ranking, prompt
        if key not in self._scores:
            found = self.subject.ranked_by[ranking].scores(self.about(prompt))
            self._scores[key] = None if found is None else found.cpu().numpy()
        return self._scores[key]

    def answers(self, prompt: str, kept: Sequence[NDArray[np.int64]]) -> list[str]:
        """Answer with each choice of tokens, those of one length that follow each other together."""
        asked, model = self.about(prompt), self.subject.model
        texts: list[str] = []
        for length, alike in groupby(kept, key=len):
            if length == self.visual.tokens:
                texts += [model.text(asked.answer) for _ in alike]
                continue
            several = list(alike)
            for start in range(0, len(several), self.subject.batch):
                some = several[start : start + self.subject.batch]
                texts += map(model.text, model.answers(asked.question, some, self.subject.most))
        return texts

    def answer_smaller(self, prompt: str, most: Sequence[int]) -> tuple[str, int]:
        """Answer a prompt about smaller pictures."""
        model, counts = self.subject.model, tuple(most)
        if counts not in self._smaller:
            self._smaller[counts] = model.encode(self.media, most)
        question = model.ask(prompt, self._smaller[counts])
        text = model.text(model.answer(question, most=self.subject.most))
        return text, question.visual.tokens


def _ranking_facts(ranking: Ranking) -> dict[str, Any]:
    """A ranking, for JSON."""
    found: dict[str, Any] = {"name": ranking.name}
    if ranking.file:
        found |= {"sha256": file_digest(ranking.file), "facts": ranking.facts}
    return found
