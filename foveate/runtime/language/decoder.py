"""The bundle's own decoder graph as a language model: prefill, then a decode step a token."""

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
        prompts: Iterable[KeptPrompt],
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
        self, cache: KVCache, prompts: Iterable[KeptPrompt], settings: Sequence[Generation]
    ) -> None:
        """Fill a cache for all sequences; nothing runs before the first step is asked for."""
        self._prompts, self._settings, self._cache = prompts, settings, cache
        self._bytes = [0] * len(settings)
        self._cancelled = threading.Event()
        self._steps = self._run()

    def __iter__(self) -> Iterator[Step]:
        """The steps, once."""
        return self._steps

    def _run(self) -> Generator[Step, None, None]:
        """Prefill prompt by prompt, then decode all of them together."""
        going: dict[int, Going] = {}
        for number, (prompt, one) in enumerate(zip(self._prompts, self._settings, strict=True)):
            logits = self._cache.prefill(number, prompt)
            # The host reads what was kept while the device computes.
            prompt.selection()
            sampler = Sampler(one.sampling, prompt.prompt.token_ids)
            sequence = Going(one, sampler, one.next_position)
            token = self._choose(number, sequence, logits)
            if token.finish_reason is None:
                going[number] = sequence
            yield {number: token}
            if self._cancelled.is_set():
                return
        while going and not self._cancelled.is_set():
            found = self._cache.decode({n: (one.token, one.position) for n, one in going.items()})
            step = {}
            for number, sequence in list(going.items()):
                sequence.position += 1
                step[number] = self._choose(number, sequence, found[number])
                if step[number].finish_reason is not None:
                    del going[number]
            yield step

    def _choose(self, number: int, sequence: Going, logits: NextLogits) -> Token:
        """A sequence's next token; one that ends it gives its cache back."""
        token = sequence.token = sequence.sampler.choose(logits)
        self._bytes[number] = self._cache.nbytes(number)
        sequence.count += 1
        reason = None
        if token in sequence.settings.stop_tokens:
            reason = "stop"
        elif sequence.count == sequence.settings.max_new_tokens:
            reason = "length"
        if reason is not None:
            self._cache.release(number)
        return Token(token, reason)

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
