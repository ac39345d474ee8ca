"""Answers as they grow: tokens in, text out, piece by piece."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from foveate.errors import FoveateError
from foveate.runtime.admission import Place
from foveate.runtime.answer import Answer, Timing, Visual
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Run, Step, Token
from foveate.runtime.request import PreparedRequest, naming
from foveate.runtime.stopping import Stop


class AnswerText:
    """One answer, which grows by a token at a time until `answer` is there.

    Attributes:
        stop: Says when it has to end early.
        prepared: What was asked; None before it is prepared.
        timing: Seconds so far.
        kept: What the language model takes in; None before there is a kept prompt.
        answer: The whole answer; None before its end.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Stop, began: float, skip_special_tokens: bool = True
    ) -> None:
        """Begin with no token.

        Args:
            tokenizer: Turns tokens into text.
            stop: Says when it has to end early.
            began: `time.perf_counter()` when it was asked.
            skip_special_tokens: Leave special tokens out of the text.
        """
        self.stop = stop
        self.prepared: PreparedRequest | None = None
        self.timing = Timing()
        self.kept: KeptPrompt | None = None
        self.answer: Answer | None = None
        self.prefill_began = 0.0
        self._began = began
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._decoder = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._tokens: list[int] = []
        self._emitted = ""
        self._started = False

    def prepare(self, prepared: PreparedRequest) -> PreparedRequest:
        """Take in what was asked."""
        self.prepared, self.timing = prepared, prepared.timing
        return prepared

    def take(self, token: Token, seconds: float, cache_bytes: int) -> str:
        """Take a token, or the answer's end without one.

        Args:
            token: What the language model gave.
            seconds: How long its step took.
            cache_bytes: Of keys and values, after it.

        Returns:
            The text that it adds, which may be empty.
        """
        if token.id is not None:
            if self._started:
                self.timing.decode += seconds
            else:
                self._started, now = True, time.perf_counter()
                self.timing.prefill = now - self.prefill_began
                self.timing.first_token = now - self._began
        piece = ""
        if token.id is not None and token.finish_reason != "stop":
            self._tokens.append(token.id)
            piece = self._decoder.step(self._tokenizer, token.id) or ""
            self._emitted += piece
        if token.finish_reason is not None:
            piece += self.end(token.finish_reason, cache_bytes)
        return piece

    def end(self, reason: str, cache_bytes: int = 0) -> str:
        """Build the answer; the text that was held back."""
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=self._skip)
        self.timing.total = time.perf_counter() - self._began
        self.answer = Answer(
            text=text,
            token_ids=self._tokens,
            finish_reason=reason,
            prompt_tokens=self.kept.length if self.kept is not None and self._started else 0,
            cache_bytes=cache_bytes,
            visual=self._visual(),
            timing=self.timing,
        )
        # Pictures and prompt go with the answer's end, however long it is kept.
        self.prepared = self.kept = None
        return text[len(self._emitted) :]

    def _visual(self) -> Visual:
        """What was kept: nothing, where the answer ended before its first token."""
        if self.prepared is None:
            return Visual.nothing()
        visual = self.prepared.media.visual
        if self.kept is None or not self._started:
            return Visual.nothing(visual.picture, visual.boxes)
        kept = self.kept.selection()
        return Visual(
            visual.tokens,
            len(kept.indices),
            kept.indices,
            kept.relevance,
            visual.picture,
            visual.boxes,
            int((~visual.candidates).sum()),
        )


class Stream(AbstractContextManager["Stream"]):
    """Iterates over the pieces of an answer's text; afterwards `answer` holds all of it.

    The pieces joined are `answer.text`. The first token is there before the first piece is asked for.
    `cancel` and `close` may be called from any thread. Leaving the context closes.
    """

    def __init__(self, text: AnswerText, run: Run | None, place: Place | None) -> None:
        """Take the first token of a run of one prompt.

        Args:
            text: The answer.
            run: What answers it; None where it has ended already.
            place: What lets it run; left when it ends.
        """
        self._text, self._run, self._place = text, run, place
        self._lock = threading.RLock()
        self._stepping = False
        self._steps: Iterator[Step] = iter(() if run is None else run)
        self._piece = "" if run is None else self._step(run)

    @property
    def answer(self) -> Answer:
        """The whole answer; where it was cancelled or closed, all that there was of it by then.

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
        with self._lock:
            while True:
                piece, self._piece = self._piece, ""
                if piece:
                    return piece
                if self._text.answer is not None or self._run is None:
                    raise StopIteration
                self._piece = self._step(self._run)

    def cancel(self) -> None:
        """End the answer after the token under way; what there is of it can still be read."""
        self._text.stop.cancel()

    def close(self) -> None:
        """Cancel what is not generated yet, and give the KV cache back; closing twice is fine.

        Waits for the token that another thread is reading.
        """
        self.cancel()
        with self._lock:
            # Called by a signal handler in the midst of a step, which ends the answer when it is done.
            if self._stepping:
                return
            self._piece = ""
            if self._text.answer is None and self._run is not None:
                self._text.end("cancelled", self._run.cache_bytes(0))
            self._leave()

    def _step(self, run: Run) -> str:
        """Take a step of the run; the text that it adds."""
        self._stepping, began = True, time.perf_counter()
        try:
            token = next(self._steps)[0]
            piece = self._text.take(token, time.perf_counter() - began, run.cache_bytes(0))
        except BaseException:
            self._leave()
            raise
        finally:
            self._stepping = False
        if self._text.answer is not None:
            self._leave()
        return piece

    def _leave(self) -> None:
        """Give the KV cache back, and let the next in line run."""
        run, self._run = self._run, None
        if run is not None:
            run.close()
        if self._place is not None:
            self._place.leave()

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Give the KV cache back where the stream was left unread."""
        if hasattr(self, "_steps"):
            self._leave()


def answer_together(run: Run, texts: list[AnswerText]) -> list[Answer]:
    """Read a run of several prompts to its end.

    A decode step's time counts for every answer that it gives a token.

    Raises:
        FoveateError: What the run raised, with the index of the request that it is about.
    """
    try:
        began = time.perf_counter()
        for step in run:
            took = time.perf_counter() - began
            for number, token in step.items():
                texts[number].take(token, took, run.cache_bytes(number))
            began = time.perf_counter()
        return [text.answer for text in texts if text.answer is not None]
    except FoveateError:
        if run.at is None:
            raise
        with naming(run.at):
            raise
    finally:
        run.close()
