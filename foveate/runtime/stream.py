"""An answer as it grows: text piece by piece, then the whole."""

import time
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from foveate.errors import FoveateError
from foveate.runtime.answer import Answer, Timing, Visual
from foveate.runtime.language.base import Sequence
from foveate.runtime.sampling import Sampler


class Stream:
    """Iterates over the pieces of an answer's text; afterwards `answer` holds all of it.

    The pieces joined are `answer.text`. The first token is there before the first piece is asked for.
    """

    def __init__(
        self,
        *,
        sequence: Sequence,
        logits: NDArray[np.float32],
        sampler: Sampler,
        position: int,
        tokenizer: Tokenizer,
        stops: Collection[int],
        most: int,
        visual: Visual,
        timing: Timing,
        began: float,
    ) -> None:
        """Go on from a prefilled sequence.

        Args:
            sequence: The language model's state after the prompt.
            logits: float32 [V], what follows the prompt.
            sampler: Chooses tokens.
            position: The rotary position of the first generated token, on every axis.
            tokenizer: Turns tokens into text.
            stops: Token ids that end the answer.
            most: The most tokens to generate.
            visual: What was kept.
            timing: Stages so far; decode, first_token and total are added here.
            began: `time.perf_counter()` when the request began.
        """
        self._sequence, self._sampler, self._position = sequence, sampler, position
        self._tokenizer, self._stops, self._most = tokenizer, stops, most
        self._visual, self._timing, self._began = visual, timing, began
        self._prompt_tokens = sequence.length
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._emitted = ""
        self._answer: Answer | None = None
        self._next = sampler.choose(logits)
        timing.first_token = time.perf_counter() - began

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            FoveateError: The stream was not read to its end.
        """
        if self._answer is None:
            raise FoveateError("the answer is not finished; read the stream to its end first")
        return self._answer

    def __iter__(self) -> "Stream":
        """A stream can be read once."""
        return self

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        while self._answer is None:
            piece = self._advance()
            if piece:
                self._emitted += piece
                return piece
        raise StopIteration

    def _advance(self) -> str:
        """Take the chosen token in and choose the one after it; at the end give what is left of the text."""
        token = self._next
        if token in self._stops:
            return self._finish("stop")
        self._tokens.append(token)
        piece = self._decoder.step(self._tokenizer, token) or ""
        if len(self._tokens) == self._most:
            return piece + self._finish("length", len(piece))
        began = time.perf_counter()
        self._next = self._sampler.choose(self._sequence.step(token, self._position))
        self._position += 1
        self._timing.decode += time.perf_counter() - began
        return piece

    def _finish(self, reason: str, ahead: int = 0) -> str:
        """Build the answer; return the text that neither was emitted nor stands in the last `ahead` characters."""
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        self._timing.total = time.perf_counter() - self._began
        self._answer = Answer(
            text=text,
            token_ids=self._tokens,
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            cache_bytes=self._sequence.cache_bytes,
            visual=self._visual,
            timing=self._timing,
        )
        self._sequence.close()
        return text[len(self._emitted) + ahead :]
