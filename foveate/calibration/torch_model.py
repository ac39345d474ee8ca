"""A checkpoint in torch: questions to tokens, answers, first-layer attention and relevance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from foveate import families
from foveate.calibration.dataset import Record
from foveate.calibration.relevance.propagation import Mode, relevance
from foveate.errors import LimitError
from foveate.families.base import Family, Medium, Prompt, VisualInput, user_turn
from foveate.modeling.base import TorchFamily
from foveate.modeling.checkpoint import DTYPES, Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.first_layer import first_layer_attention
from foveate.modeling.language_model import TRACED, Language
from foveate.runtime.media.sources import open_media

NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class EncodedPictures:
    """Pictures or videos that were encoded once.

    Attributes:
        media: They themselves, in order.
        visual: As the vision tower saw them.
        embeds: Their visual tokens E_v [N_v, H].
    """

    media: tuple[Medium, ...]
    visual: VisualInput
    embeds: Tensor


@dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A question and its pictures, ready for the language model.

    Attributes:
        embeds: [1, T, H], text and visual tokens in their places.
        positions: int64 [A, T].
        prompt: Where everything stands.
        visual: The pictures as the vision tower saw them.
    """

    embeds: Tensor
    positions: Tensor
    prompt: Prompt
    visual: VisualInput


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A loaded checkpoint; `load` makes one."""

    family: Family
    tokenizer: Tokenizer
    language: Language
    stops: set[int]
    device: torch.device
    _torch_half: TorchFamily
    _model: Any

    @classmethod
    def load(cls, source: str | Path, dtype: str = "fp32", device: str = "cpu") -> "TorchModel":
        """Load a checkpoint of any supported family.

        Args:
            source: A checkpoint folder, or a hub id where there is a network.
            dtype: "fp32" or "bf16"; eager fp16 attention overflows in real checkpoints.
            device: A torch device.

        Raises:
            CheckpointError: It cannot be read, or is of no known family.
        """
        checkpoint = Checkpoint.open(source)
        torch_half = torch_family(checkpoint.family)
        model = torch_half.load(checkpoint, DTYPES[dtype], "sdpa")
        torch_half.set_attention(model, TRACED)
        model.requires_grad_(False).to(device)
        tokenizer = checkpoint.tokenizer()
        family = families.create(
            checkpoint.family,
            preprocessing=families.settings_from_checkpoint(checkpoint.family, checkpoint.root),
            tokenizer=tokenizer,
            chat_template=checkpoint.chat_template(),
            tokens=torch_half.tokens(checkpoint, model, tokenizer),
        )
        language, stops = torch_half.language(model), set(checkpoint.stops())
        return cls(family, tokenizer, language, stops, torch.device(device), torch_half, model)

    def open(self, record: Record) -> list[Medium]:
        """Open a record's pictures, or the frames that the family takes of its video.

        Raises:
            ImageError: What cannot be read.
            LimitError: A video of more tokens than the model's context.
        """
        media, most = record.media, self._torch_half.context(self._model)

        def check(several: Sequence[Medium]) -> None:
            """Refuse more than the context has room for, before anything is decoded."""
            tokens = self.family.plan(several).tokens
            if tokens > most:
                raise LimitError(
                    f"the pictures make {tokens} visual tokens, and the model's context has {most}; "
                    "make them smaller, or take fewer frames"
                )

        found = open_media(media.get("images"), media.get("video"), self.family, check=check)
        check(found)
        return found

    @torch.no_grad()
    def encode(self, media: Sequence[Medium], most: Sequence[int] | None = None) -> EncodedPictures:
        """Encode pictures or videos, to ask about them any number of times.

        Args:
            media: In order.
            most: The most visual tokens that each picture is to give, at least one; see `Family.shrink`.
                None leaves all as they are.

        Raises:
            ImageError: A picture that the family cannot take, or a video that is to be made smaller.
        """
        visual = self.family.prepare(media) if most is None else self.family.shrink(media, most)
        half, model = self._torch_half, self._model
        if visual.pooled:
            embeds = _summed(half.features(model, visual), visual)
        else:
            embeds = half.encode(model, visual)
        return EncodedPictures(tuple(media), visual, embeds)

    @torch.no_grad()
    def ask(self, question: str, pictures: EncodedPictures) -> PreparedQuestion:
        """Embed a question about encoded pictures, each token in its place.

        Raises:
            PromptError: A question that the family cannot take.
        """
        prompt = self.family.layout(user_turn(question, pictures.media), pictures.visual)
        embeds = self.language.embedding(self._sent(prompt.token_ids))
        embeds = embeds.index_copy(0, self._sent(prompt.visual_index), pictures.embeds)
        return PreparedQuestion(
            embeds[None], self._sent(prompt.position_ids), prompt, pictures.visual
        )

    def prepare(
        self, question: str, media: Sequence[Medium], most: Sequence[int] | None = None
    ) -> PreparedQuestion:
        """Encode pictures or videos and embed a question about them; see `encode` and `ask`."""
        return self.ask(question, self.encode(media, most))

    def answer(
        self,
        question: PreparedQuestion,
        kept: NDArray[np.int64] | None = None,
        most: int = NEW_TOKENS,
    ) -> list[int]:
        """Answer greedily, with all visual tokens or with those of the ordinals `kept` int64 [K] alone.

        Returns:
            The answer's tokens, at most `most`, without the stop token.
        """
        everything = np.arange(question.visual.tokens)
        return self.answers(question, [everything if kept is None else kept], most)[0]

    @torch.no_grad()
    def answers(
        self, question: PreparedQuestion, kept: Sequence[NDArray[np.int64]], most: int = NEW_TOKENS
    ) -> list[list[int]]:
        """Answer greedily with each of several choices of as many visual tokens, all together.

        Args:
            question: The question.
            kept: Ordinals int64 [K] of visual tokens, ascending; of one length.
            most: The longest answer, in tokens.

        Returns:
            The tokens of each answer, without the stop token.
        """
        rows = self._sent(np.stack([question.prompt.kept_index(one) for one in kept]))
        return self.language.answers(
            question.embeds[0][rows],
            question.positions[:, rows],
            question.prompt.next_position,
            self.stops,
            most,
        )

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as words, control tokens left out."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    @torch.no_grad()
    def attention(self, question: PreparedQuestion) -> Tensor:
        """A⁰ from each instruction token to each visual token: float32 [heads, N_u, N_v]."""
        prompt = question.prompt
        rows, columns = self._sent(prompt.instruction_index), self._sent(prompt.visual_index)
        embeds, positions = question.embeds, question.positions
        return first_layer_attention(self.language, embeds, positions, rows, columns)

    def relevance(
        self, question: PreparedQuestion, said: Sequence[int], mode: Mode = "grad"
    ) -> Tensor:
        """R_v (Eq. 1) of an answer's tokens, averaged over them: float32 [N_v]."""
        tokens = torch.tensor(list(said), dtype=torch.int64, device=self.device)
        rows = self.language.embedding(tokens)[None]
        first, axes = question.prompt.next_position, len(question.positions)
        places = torch.arange(first, first + len(said), device=self.device).expand(axes, -1)
        embeds = torch.cat([question.embeds, rows], dim=1)
        positions = torch.cat([question.positions, places], dim=1)
        whole = relevance(self.language, embeds, positions, tokens, mode)
        return whole[self._sent(question.prompt.visual_index)]

    def _sent(self, values: NDArray[np.int64]) -> Tensor:
        """Values on the device."""
        return torch.from_numpy(values).to(self.device)


def _summed(features: Tensor, visual: VisualInput) -> Tensor:
    """Visual tokens [N_v, H] as sums of the vision tower's rows [R, H], in float32."""
    assert visual.rows is not None and visual.weights is not None
    total = torch.zeros(visual.tokens, features.shape[1], device=features.device)
    for row, weight in zip(visual.rows.T.copy(), visual.weights.T.copy(), strict=True):
        taken = features[torch.from_numpy(row).to(features.device)].float()
        total += torch.from_numpy(weight).to(features.device)[:, None] * taken
    return total.to(features.dtype)
