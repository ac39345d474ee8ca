"""An answer under way: tokens in, text out."""

import time

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from foveate.runtime.answer import Answer, Visual
from foveate.runtime.language.base import Batch, Following, Sequence
from foveate.runtime.request import Ready
from foveate.runtime.sampling import Sampler


class Reply:
    """Grows by a token at a time, until `answer` is there.

    Attributes:
        token: The token that was chosen last; the answer's unless it ends it.
        position: Its rotary position, on every axis.
        timing: Seconds by stage; whoever runs the language model adds to `decode`.
        answer: The whole answer; None before its end.
    """

    def __init__(
        self,
        ready: Ready,
        sequence: Sequence,
        following: Following,
        visual: Visual,
        tokenizer: Tokenizer,
    ) -> None:
        """Choose the first token.

        Args:
            ready: What was asked.
            sequence: The language model's state after the prompt; it is closed with the answer.
            following: What follows the prompt.
            visual: What was kept.
            tokenizer: Turns tokens into text.
        """
        self.position, self.timing = ready.prompt.next_position, ready.timing
        self.answer: Answer | None = None
        self._ready, self._sequence, self._visual = ready, sequence, visual
        self._sampler = Sampler(ready.sampling, ready.prompt.token_ids)
        self._tokenizer, self._decoder = tokenizer, DecodeStream(skip_special_tokens=True)
        self._prompt_tokens = sequence.length
        self._tokens: list[int] = []
        self._emitted = ""
        self.token = self._sampler.choose(following)
        self.timing.first_token = time.perf_counter() - ready.began

    def accept(self) -> str:
        """Take the chosen token into the answer; the text that it adds, which may be empty."""
        if self.token in self._ready.stops:
            return self._finish("stop")
        self._tokens.append(self.token)
        piece = self._decoder.step(self._tokenizer, self.token) or ""
        self._emitted += piece
        if len(self._tokens) == self._ready.most:
            return piece + self._finish("length")
        return piece

    def choose(self, following: Following) -> None:
        """Choose the next token, from what follows the last one."""
        self.token = self._sampler.choose(following)
        self.position += 1

    def _finish(self, reason: str) -> str:
        """Build the answer; return the text that was held back."""
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        self.timing.total = time.perf_counter() - self._ready.began
        self.answer = Answer(
            text=text,
            token_ids=self._tokens,
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            cache_bytes=self._sequence.cache_bytes,
            visual=self._visual,
            timing=self.timing,
        )
        self._sequence.close()
        return text[len(self._emitted) :]


def finish_together(replies: list[Reply], batch: Batch) -> list[Answer]:
    """Decode until every reply has its answer: a step of the batch for all that go on, then their choices."""
    going = dict(enumerate(replies))
    while going:
        for row, reply in list(going.items()):
            reply.accept()
            if reply.answer is not None:
                del going[row]
        if going:
            began = time.perf_counter()
            found = batch.step({row: (one.token, one.position) for row, one in going.items()})
            for row, reply in going.items():
                reply.choose(found[row])
            took = time.perf_counter() - began
            for reply in going.values():
                reply.timing.decode += took
    return [reply.answer for reply in replies if reply.answer is not None]
