"""Answers as they grow: tokens in, text out, piece by piece."""

import time
from contextlib import AbstractContextManager

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from foveate.errors import FoveateError
from foveate.runtime.answer import Answer, Visual
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Run, Token
from foveate.runtime.request import PreparedRequest, naming


class AnswerText:
    """One answer, which grows by a token at a time until `answer` is there.

    Attributes:
        answer: The whole answer; None before its end.
    """

    def __init__(self, prepared: PreparedRequest, tokenizer: Tokenizer) -> None:
        """Begin with no token.

        Args:
            prepared: What was asked.
            tokenizer: Turns tokens into text.
        """
        self.prepared, self.timing = prepared, prepared.timing
        self.answer: Answer | None = None
        self.kept: KeptPrompt | None = None
        self.prefill_began = 0.0
        self._tokenizer, self._skip = tokenizer, prepared.skip_special_tokens
        self._decoder = DecodeStream(skip_special_tokens=self._skip)
        self._tokens: list[int] = []
        self._emitted = ""

    def take_first(self, token: Token, run: Run, number: int) -> str:
        """Take the token that prefill gave; the text that it adds, which may be empty."""
        now = time.perf_counter()
        self.timing.prefill = now - self.prefill_began
        self.timing.first_token = now - self.prepared.began
        return self.take(token, run, number)

    def take(self, token: Token, run: Run, number: int) -> str:
        """Take a token of the run's prompt `number`; the text that it adds, which may be empty."""
        if token.finish_reason == "stop":
            return self._finish("stop", run.cache_bytes(number))
        self._tokens.append(token.id)
        piece = self._decoder.step(self._tokenizer, token.id) or ""
        self._emitted += piece
        if token.finish_reason is not None:
            piece += self._finish(token.finish_reason, run.cache_bytes(number))
        return piece

    def _finish(self, reason: str, cache_bytes: int) -> str:
        """Build the answer; the text that was held back."""
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skip)
        self.timing.total = time.perf_counter() - self.prepared.began
        self.answer = Answer(
            text=text,
            token_ids=self._tokens,
            finish_reason=reason,
            prompt_tokens=self.prepared.generation.prompt_tokens,
            cache_bytes=cache_bytes,
            visual=self._visual(),
            timing=self.timing,
        )
        return text[len(self._emitted) :]

    def _visual(self) -> Visual:
        """What was kept."""
        assert self.kept is not None
        visual, kept = self.prepared.media.visual, self.kept.selection()
        self.kept = None
        return Visual(
            visual.tokens,
            len(kept.indices),
            kept.indices,
            kept.relevance,
            visual.picture,
            visual.boxes,
        )


class Stream(AbstractContextManager["Stream"]):
    """Iterates over the pieces of an answer's text; afterwards `answer` holds all of it.

    The pieces joined are `answer.text`. The first token is there before the first piece is asked for.
    Leaving the context early, or `close`, cancels the rest.
    """

    def __init__(self, run: Run, text: AnswerText) -> None:
        """Take the first token of a run of one prompt."""
        self._run, self._steps, self._text = run, iter(run), text
        try:
            self._piece = text.take_first(next(self._steps)[0], run, 0)
        except BaseException:
            run.close()
            raise

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            FoveateError: The stream was not read to its end.
        """
        if self._text.answer is None:
            raise FoveateError("the answer is not finished; read the stream to its end first")
        return self._text.answer

    def __iter__(self) -> "Stream":
        """A stream can be read once."""
        return self

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        while True:
            piece, self._piece = self._piece, ""
            if piece:
                return piece
            if self._text.answer is not None:
                self.close()
                raise StopIteration
            began = time.perf_counter()
            step = next(self._steps)
            self._text.timing.decode += time.perf_counter() - began
            self._piece = self._text.take(step[0], self._run, 0)

    def close(self) -> None:
        """Cancel what is not generated yet, and give the KV cache back; closing twice is fine."""
        self._run.close()

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Give the KV cache back where the stream was left unread."""
        if hasattr(self, "_steps"):
            self._run.close()


def answer_together(run: Run, texts: list[AnswerText]) -> list[Answer]:
    """Read a run of several prompts to its end.

    A decode step's time counts for every answer that it gives a token.
    """
    try:
        steps = iter(run)
        for number, text in enumerate(texts):
            with naming(number):
                step = next(steps)
            text.take_first(step[number], run, number)
        began = time.perf_counter()
        for step in steps:
            took = time.perf_counter() - began
            for number, token in step.items():
                texts[number].timing.decode += took
                texts[number].take(token, run, number)
            began = time.perf_counter()
        return [text.answer for text in texts if text.answer is not None]
    finally:
        run.close()
