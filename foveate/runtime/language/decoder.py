"""The bundle's own decoder graph as a language model: prefill, then a decode step a token."""

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.errors import BackendError
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import (
    DecoderGraph,
    Generation,
    KVCache,
    NextLogits,
    Step,
    Token,
)
from foveate.runtime.language.prefix_cache import Prefix, PrefixedCache
from foveate.runtime.sampling import Sampler


class Decoder:
    """A decoder graph, driven token by token; see `LanguageModel`."""

    name = "decoder"

    def __init__(self, graph: DecoderGraph) -> None:
        """Drive `graph`."""
        self.graph = graph
        self.capabilities = graph.capabilities

    def generate(
        self,
        prompts: Iterable[KeptPrompt | None],
        settings: Sequence[Generation],
        prefix: Prefix | None = None,
    ) -> "DecoderRun":
        """Answer prompts; see `LanguageModel.generate`."""
        cache: Any = self.graph.allocate(settings)
        whole = cache if prefix is None else PrefixedCache(prefix, cache)
        return DecoderRun(whole, prompts, settings)

    def close(self) -> None:
        """Free the graph."""
        self.graph.close()


@dataclass(slots=True)
class Going:
    """One prompt's answer under way."""

    settings: Generation
    sampler: Sampler
    position: int
    token: int = -1
    count: int = 0


class DecoderRun:
    """Prompts being answered by a decoder graph; see `Run`."""

    def __init__(
        self,
        cache: KVCache,
        prompts: Iterable[KeptPrompt | None],
        settings: Sequence[Generation],
    ) -> None:
        """Fill a cache for all sequences; nothing runs before the first step is asked for."""
        self.at: int | None = None
        self._prompts, self._settings, self._cache = prompts, settings, cache
        self._bytes = [0] * len(settings)
        self._going: dict[int, Going] = {}
        self._cancelled = threading.Event()
        self._steps = self._run()

    def __iter__(self) -> Iterator[Step]:
        """The steps, once."""
        return self._steps

    def _run(self) -> Generator[Step, None, None]:
        """Prefill prompt by prompt, then decode all of them together."""
        prompts = iter(self._prompts)
        for number, one in enumerate(self._settings):
            yield from self._end_early()
            self.at = number
            prompt = next(prompts)
            reason = one.stop.reason()
            if prompt is None or reason is not None:
                yield {number: self._end(number, reason)}
            else:
                yield {number: self._prefill(number, prompt)}
            if self._cancelled.is_set():
                return
        while True:
            yield from self._end_early()
            if not self._going or self._cancelled.is_set():
                return
            yield self._decode()

    def _prefill(self, number: int, prompt: KeptPrompt) -> Token:
        """Take in a prompt; its first token."""
        one = self._settings[number]
        try:
            logits = self._cache.prefill(number, prompt)
            # The host reads what was kept while the device computes.
            prompt.selection()
            sampler = Sampler(one.sampling, prompt.prompt.token_ids)
            self._going[number] = Going(one, sampler, one.next_position)
            return self._choose(number, logits)
        except BackendError:
            prompt.discard()
            self._cache.discard()
            raise

    def _decode(self) -> Step:
        """A token for each sequence that goes on."""
        self.at = None
        try:
            fed = {number: (one.token, one.position) for number, one in self._going.items()}
            found = self._cache.decode(fed)
            step = {}
            for number, logits in found.items():
                self.at = number
                self._going[number].position += 1
                step[number] = self._choose(number, logits)
            return step
        except BackendError:
            self._cache.discard()
            raise

    def _choose(self, number: int, logits: NextLogits) -> Token:
        """A sequence's next token, which may end it."""
        sequence = self._going[number]
        token = sequence.token = sequence.sampler.choose(logits)
        sequence.count += 1
        self._bytes[number] = self._cache.nbytes(number)
        reason = None
        if token in sequence.settings.stop_tokens:
            reason = "stop"
        elif sequence.count == sequence.settings.max_new_tokens:
            reason = "length"
        if reason is not None:
            self._end(number, reason)
        return Token(token, reason)

    def _end_early(self) -> Iterator[Step]:
        """End the sequences that have to end before their time: one step for all of them."""
        reasons = {number: one.settings.stop.reason() for number, one in self._going.items()}
        ended = {number: self._end(number, reason) for number, reason in reasons.items() if reason}
        if ended:
            yield ended

    def _end(self, number: int, reason: str | None) -> Token:
        """Give a sequence's cache back; the end of its answer, where no token came with it."""
        self._going.pop(number, None)
        self._cache.release(number)
        return Token(None, reason)

    def cache_bytes(self, number: int) -> int:
        """Bytes of keys and values of a prompt's sequence."""
        return self._bytes[number]

    def cancel(self) -> None:
        """End after the step under way."""
        self._cancelled.set()

    def close(self) -> None:
        """Give all caches back, and let go of what the steps still hold."""
        self.cancel()
        self._steps.close()
        for number in range(len(self._settings)):
            self._cache.release(number)
