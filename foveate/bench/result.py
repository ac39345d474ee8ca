"""What a bench measured: seconds by stage and round, and what follows from them."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from foveate.runtime.answer import Visual

FORMAT = "foveate-bench"
VERSION = 1
STAGES = ("preprocess", "vision", "compress", "prefill")
MEASURES = (*STAGES, "first_token", "last_first_token", "per_token")
OURS = "foveate"
ALL = "transformers"
SAME = "transformers, same tokens"

Sample = dict[str, float]
"""Seconds by measure of one request, or of several at once.

Stages are those of all requests together; `first_token` is the first request's, from the call on,
`last_first_token` that of the last of several; `per_token` is each later step, a token a request."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and where 5 % and 95 % of the values lie, in seconds."""

    median: float
    p5: float
    p95: float


@dataclass(slots=True)
class Row:
    """One way to answer, measured round by round.

    Attributes:
        side: Foveate, or transformers with all or with the same tokens.
        keep: How many visual tokens to keep, a ratio or a count.
        visual: What was kept.
        prompt_tokens: What the language model took in of a request: text and kept visual tokens.
        cache_bytes: Of keys and values at the end of the answers, of all requests together.
        first: The first generated token.
        samples: A sample a round.
        batch: Requests at once.
    """

    side: str
    keep: float | int
    visual: Visual
    prompt_tokens: int
    cache_bytes: int
    first: int
    samples: list[Sample] = field(default_factory=list)
    batch: int = 1

    def spread(self, measure: str) -> Spread | None:
        """Of one measure; None where this side does not have it."""
        values = [sample[measure] for sample in self.samples if measure in sample]
        return Spread(*np.percentile(values, (50, 5, 95)).tolist()) if values else None

    @property
    def tokens_per_second(self) -> float | None:
        """Later tokens of all requests; None where there was only one token each."""
        spread = self.spread("per_token")
        return self.batch / spread.median if spread and spread.median else None


def speedup(slow: Row, fast: Row, measure: str) -> float | None:
    """How many times faster `fast` is: the median over the rounds of their ratios, round by round."""
    ratios = [
        one[measure] / other[measure]
        for one, other in zip(slow.samples, fast.samples, strict=True)
        if one.get(measure) and other.get(measure)
    ]
    return float(np.median(ratios)) if ratios else None


@dataclass(frozen=True, slots=True)
class Case:
    """One picture or video, measured in every way.

    Attributes:
        scene: Its size as the user gave it.
        total: Its visual tokens.
        text_tokens: The other tokens of the prompt.
        rows: Foveate's by batch and keep, then transformers', one request at a time.
    """

    scene: str
    total: int
    text_tokens: int
    rows: list[Row]

    @property
    def ours(self) -> list[Row]:
        """Foveate's rows."""
        return [row for row in self.rows if row.side == OURS]

    def find(self, side: str, keep: float | int | None = None) -> Row | None:
        """The row of a side, at one keep or the first."""
        found = (row for row in self.rows if row.side == side and keep in (None, row.keep))
        return next(found, None)

    def whole(self, batch: int) -> Row | None:
        """Foveate's row with all visual tokens, of so many requests at once."""
        batched = (row for row in self.ours if row.batch == batch)
        return next((row for row in batched if row.visual.kept == self.total), None)

    def ratios(self, row: Row) -> dict[str, dict[str, float]]:
        """How many times faster one of Foveate's rows is than others as large, by what and by measure."""
        others = {"all_tokens": self.whole(row.batch)}
        if row.batch == 1:
            others["transformers"] = self.find(ALL)
            others["transformers_same_tokens"] = self.find(SAME, row.keep)
        ratios: dict[str, dict[str, float]] = {}
        for name, other in others.items():
            if other is not None and other is not row:
                found = {measure: speedup(other, row, measure) for measure in MEASURES}
                ratios[name] = {measure: one for measure, one in found.items() if one is not None}
        return ratios


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use: of the GPU as a whole, or of this process on a CPU.

    Attributes:
        of: "device", or "process".
        before: Before the bundle was loaded; None where the system does not say.
        loaded: After it was.
        peak: The most while the warm-up ran, over all keeps and batches.
        by_batch: The most while it ran with so many requests at once, smaller batches before.
    """

    of: str
    before: int | None
    loaded: int | None
    peak: int | None
    by_batch: dict[int, int | None]


@dataclass(frozen=True, slots=True)
class Bench:
    """A bench.

    Attributes:
        made: Bundle and settings: the same for the same bench.
        machine: What it ran on.
        memory: Of Foveate alone, before transformers was loaded.
        cases: One a picture or video.
        transformers: Its version, device and memory; None where it was not measured.
    """

    made: dict[str, Any]
    machine: dict[str, Any]
    memory: Memory
    cases: list[Case]
    transformers: dict[str, Any] | None


def bench_facts(bench: Bench) -> dict[str, Any]:
    """All that was measured; times are in seconds, memory in bytes."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **bench.made,
        "machine": bench.machine,
        "memory": asdict(bench.memory),
        "transformers": bench.transformers,
        "cases": [
            {
                "scene": case.scene,
                "visual_tokens": case.total,
                "text_tokens": case.text_tokens,
                "rows": [_row_facts(case, row) for row in case.rows],
            }
            for case in bench.cases
        ],
    }


def _row_facts(case: Case, row: Row) -> dict[str, Any]:
    """One way to answer."""
    spreads = {measure: row.spread(measure) for measure in MEASURES}
    return {
        "side": row.side,
        "keep": row.keep,
        "batch": row.batch,
        "kept": row.visual.kept,
        "prompt_tokens": row.prompt_tokens,
        "cache_bytes": row.cache_bytes,
        "tokens_per_second": row.tokens_per_second,
        "first_token_id": row.first,
        "seconds": {measure: asdict(one) for measure, one in spreads.items() if one},
        **({"times_faster_than": case.ratios(row)} if row.side == OURS else {}),
        "rounds": row.samples,
    }
