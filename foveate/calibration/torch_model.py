"""A checkpoint in torch: questions to tokens, answers, first-layer attention and relevance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor

from foveate import families
from foveate.calibration.relevance.propagation import Mode, relevance
from foveate.families.base import Family, Prompt, VisualInput, user_turn
from foveate.modeling.base import TorchFamily
from foveate.modeling.checkpoint import DTYPES, Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.first_layer import first_layer_attention
from foveate.modeling.language_model import TRACED, Language

NEW_TOKENS = 64


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

    checkpoint: Checkpoint
    family: Family
    tokenizer: Tokenizer
    language: Language
    stops: frozenset[int]
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
        tokenizer = Tokenizer.from_file(str(checkpoint.required("tokenizer.json")))
        family = families.create(
            checkpoint.family,
            preprocessing=families.settings_from_checkpoint(checkpoint.family, checkpoint.root),
            tokenizer=tokenizer,
            chat_template=checkpoint.chat_template(),
            tokens=torch_half.tokens(checkpoint, model, tokenizer),
        )
        return cls(
            checkpoint,
            family,
            tokenizer,
            torch_half.language(model),
            frozenset(checkpoint.stops()),
            torch.device(device),
            torch_half,
            model,
        )

    def prepare(self, question: str, pictures: Sequence[Image]) -> PreparedQuestion:
        """Prepare a question about pictures.

        Raises:
            ImageError: A picture that the family cannot take.
            PromptError: A question that the family cannot take.
        """
        return self._place(question, pictures, self.family.prepare(pictures))

    def prepare_shrunk(
        self, question: str, pictures: Sequence[Image], most: Sequence[int]
    ) -> PreparedQuestion:
        """Prepare a question about pictures made smaller, aspects kept.

        Args:
            question: The user's text.
            pictures: As for `prepare`.
            most: The most visual tokens that each picture is to give, at least one.

        Raises:
            ImageError: A picture that the family cannot take.
            PromptError: A question that the family cannot take.
        """
        smaller = self._torch_half.shrink(self.family, pictures, most)
        return self._place(question, pictures, smaller)

    @torch.no_grad()
    def _place(
        self, question: str, pictures: Sequence[Image], visual: VisualInput
    ) -> PreparedQuestion:
        """A question and prepared pictures embedded, each token in its place."""
        prompt = self.family.layout(user_turn(question, pictures), visual)
        embeds = self.language.embedding(torch.from_numpy(prompt.token_ids).to(self.device))
        index = torch.from_numpy(prompt.visual_index).to(self.device)
        embeds = embeds.index_copy(0, index, self._torch_half.encode(self._model, visual))
        positions = torch.from_numpy(prompt.position_ids).to(self.device)
        return PreparedQuestion(embeds[None], positions, prompt, visual)

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
        embeds, positions = question.embeds, question.positions
        if kept is not None:
            prompt = question.prompt
            dropped = np.delete(prompt.visual_index, kept)
            index = np.setdiff1d(np.arange(len(prompt.token_ids)), dropped)
            rows = torch.from_numpy(index).to(self.device)
            embeds, positions = embeds[:, rows], positions[:, rows]
        return self.language.answer(
            embeds, positions, question.prompt.next_position, set(self.stops), most
        )

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as words, control tokens left out."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    @torch.no_grad()
    def attention(self, question: PreparedQuestion) -> Tensor:
        """A⁰ from each instruction token to each visual token: float32 [heads, N_u, N_v]."""
        return first_layer_attention(
            self.language,
            question.embeds,
            question.positions,
            torch.from_numpy(question.prompt.instruction_index).to(self.device),
            torch.from_numpy(question.prompt.visual_index).to(self.device),
        )

    def relevance(
        self, question: PreparedQuestion, said: Sequence[int], mode: Mode = "grad"
    ) -> Tensor:
        """R_v (Eq. 1) of an answer's tokens, averaged over them: float32 [N_v]."""
        tokens = torch.tensor(list(said), dtype=torch.int64, device=self.device)
        rows = self.language.embedding(tokens)[None]
        following = question.prompt.next_position
        places = torch.arange(following, following + len(said), device=self.device)
        whole = relevance(
            self.language,
            torch.cat([question.embeds, rows], dim=1),
            torch.cat([question.positions, places.expand(len(question.positions), -1)], dim=1),
            tokens,
            mode,
        )
        return whole[torch.from_numpy(question.prompt.visual_index).to(self.device)]
