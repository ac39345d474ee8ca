"""What `foveate bench` does: answer, round by round, in every way, and note how long each took."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from foveate.bench.result import ALL, OURS, SAME, STAGES, Bench, Case, Memory, Row, Sample
from foveate.bench.scenes import Scene
from foveate.errors import LimitError
from foveate.families.base import Family, Prompt, VisualInput, user_turn
from foveate.machine import Peak, machine_facts, memory_reader, resident_peak
from foveate.runtime.answer import Answer, Visual
from foveate.runtime.backends.ort.session import PROVIDERS, resolve_device
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.request import Request

if TYPE_CHECKING:
    from foveate.bench.transformers_run import TransformersAnswer, TransformersModel

PROMPT = "Describe what can be seen here, and where."
PICTURE = Scene(1008, 1008)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is measured.

    Attributes:
        keeps: How many visual tokens to keep, way by way.
        scenes: The pictures and videos.
        new_tokens: Tokens of every answer; stop tokens do not end it.
        repeats: Rounds that count.
        warmup: Rounds before them that do not.
        device: As `Pipeline.load` takes it.
        backend: As `Pipeline.load` takes it.
        prompt: The question.
        against: A checkpoint to run in transformers beside, one request at a time; None to leave
            that out.
        batches: How many requests to answer at once, way by way, in rising order.
    """

    keeps: tuple[float | int, ...] = (1.0, 0.5, 0.25, 0.1)
    scenes: tuple[Scene, ...] = (PICTURE,)
    new_tokens: int = 32
    repeats: int = 10
    warmup: int = 3
    device: str = "auto"
    backend: str = "auto"
    prompt: str = PROMPT
    against: str | None = None
    batches: tuple[int, ...] = (1,)

    def check(self) -> None:
        """Refuse what would measure nothing.

        Raises:
            LimitError: No token, no round, or no warm-up, without which the first round is another;
                or transformers beside batches alone.
        """
        for name in ("new_tokens", "repeats", "warmup"):
            if getattr(self, name) < 1:
                raise LimitError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.against is not None and 1 not in self.batches:
            raise LimitError("transformers answers one request at a time; add 1 to --batch")


@dataclass(slots=True)
class Work:
    """One scene under measurement: its pixels, its prompt, and the rows so far."""

    family: Family
    scene: Scene
    pictures: list[Image]
    prompt: Prompt
    rows: dict[tuple[str, float | int, int], Row] = field(default_factory=dict)

    @classmethod
    def of(cls, family: Family, scene: Scene, prompt: str) -> "Work":
        """Make the noise, and lay the prompt out around it."""
        pictures = scene.pictures()
        media = scene.media(pictures)
        layout = family.layout(user_turn(prompt, media), family.prepare(media))
        return cls(family, scene, pictures, layout)

    def prepare(self, pictures: list[Image]) -> VisualInput:
        """Foveate's preprocessing."""
        return self.family.prepare(self.scene.media(pictures))

    def add(self, row: Row, sample: Sample) -> None:
        """Add a round's sample to the row of its side, keep and batch; `row` is the first one's."""
        self.rows.setdefault((row.side, row.keep, row.batch), row).samples.append(sample)


def bench(bundle: Path, options: BenchOptions, progress: Progress = lambda stage: None) -> Bench:
    """Measure a bundle.

    Ways to answer take turns within a round, so that a clock that drifts slows all of them alike.

    Args:
        bundle: Its folder.
        options: What is measured.
        progress: Told as each stage begins.

    Raises:
        FoveateError: Whatever keeps the bundle, or transformers, from answering.
    """
    options.check()
    device = resolve_device(options.device)
    read = memory_reader(device)
    before = read()
    progress("loading the bundle")
    with Pipeline.load(bundle, backend=options.backend, device=device) as pipe:
        pipe.check_batch(max(options.batches))
        loaded = read()
        family = read_family(pipe.bundle, read_tokenizer(pipe.bundle), levels=False)
        works = [Work.of(family, scene, options.prompt) for scene in options.scenes]
        progress("warm-up")
        peaks: dict[int, int | None] = {}
        for batch in options.batches:
            with Peak(read) as peak:
                # Round by round: the largest scene's memory must be there before others warm up in it.
                for _ in range(options.warmup):
                    for work in works:
                        _run_foveate(pipe, work, options, batch)
            peaks[batch] = peak.most if device == "cuda" else resident_peak()
        most = max((seen for seen in peaks.values() if seen is not None), default=None)
        memory = Memory("device" if device == "cuda" else "process", before, loaded, most, peaks)
        other = None
        if options.against is not None:
            progress("loading transformers")
            from foveate.bench.transformers_run import TransformersModel

            other = TransformersModel.load(options.against, pipe.bundle.manifest, device)
            progress("warm-up of transformers")
            for work in works:
                for _ in range(options.warmup):
                    _run_transformers(other, work, options)
        for work in works:
            for row in work.rows.values():
                row.samples.clear()
            for number in range(options.repeats):
                progress(f"{work.scene.label}, round {number + 1} of {options.repeats}")
                for batch in options.batches:
                    _run_foveate(pipe, work, options, batch)
                if other is not None:
                    _run_transformers(other, work, options)
        made, cases = _made(bundle, pipe, options), [_finish(work) for work in works]
        facts = None if other is None else other.facts()
        return Bench(made, machine_facts(device), memory, cases, facts)


def _run_foveate(pipe: Pipeline, work: Work, options: BenchOptions, batch: int) -> None:
    """Run one round of Foveate's: each keep once, in as many requests at once."""
    how: dict[str, Any] = {
        "video" if work.scene.frames else "images": work.pictures,
        "max_new_tokens": options.new_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    for keep in options.keeps:
        if batch == 1:
            answers = [pipe.generate(options.prompt, keep=keep, **how)]
        else:
            answers = pipe.generate_batch([Request(options.prompt, keep=keep, **how)] * batch)
        one, cache_bytes = answers[0], sum(answer.cache_bytes for answer in answers)
        row = Row(
            OURS, keep, one.visual, one.prompt_tokens, cache_bytes, one.token_ids[0], batch=batch
        )
        work.add(row, _sample(answers))


def _sample(answers: list[Answer]) -> Sample:
    """Seconds of answers as long as each other, by measure."""
    timings, later = [one.timing for one in answers], len(answers[0].token_ids) - 1
    sample = {stage: sum(getattr(one, stage) for one in timings) for stage in STAGES}
    sample["first_token"] = timings[0].first_token
    if len(answers) > 1:
        sample["last_first_token"] = timings[-1].first_token
    if later:
        sample["per_token"] = timings[0].decode / later
    return sample


def _run_transformers(model: "TransformersModel", work: Work, options: BenchOptions) -> None:
    """Run one round of transformers': all visual tokens, then those that Foveate kept."""

    def add(side: str, keep: float | int, visual: Visual, answer: "TransformersAnswer") -> None:
        """Add an answer with some visual tokens."""
        tokens = work.prompt.length_with(visual.kept)
        row = Row(side, keep, visual, tokens, answer.cache_bytes, answer.first)
        work.add(row, answer.sample)

    prompt, own = work.prompt, work.prepare if work.scene.frames else None
    whole, embeds = model.whole(work.pictures, prompt, options.new_tokens, own)
    ours = [row for row in work.rows.values() if row.side == OURS and row.batch == 1]
    total = ours[0].visual.total
    everything = replace(ours[0].visual, kept=total, indices=np.arange(total), relevance=None)
    add(ALL, 1.0, everything, whole)
    for row in ours:
        if row.visual.kept < total:
            answer = model.pruned(embeds, row.visual.indices, prompt, whole, options.new_tokens)
            add(SAME, row.keep, row.visual, answer)


def _made(path: Path, pipe: Pipeline, options: BenchOptions) -> dict[str, Any]:
    """Bundle and settings, for the record."""
    manifest = pipe.bundle.manifest
    facts = ("family", "precision", "weights", "operators")
    settings = ("prompt", "new_tokens", "repeats", "warmup", "keeps", "batches", "against")
    return {
        "bundle": {
            "path": str(path),
            **{name: getattr(manifest, name) for name in facts},
            "compressor": manifest.compressor.kind,
            "words": manifest.compressor.words,
            "tools": manifest.tools,
        },
        "device": pipe.device,
        "backend": options.backend,
        "provider": PROVIDERS[pipe.device],
        **{name: getattr(options, name) for name in settings},
    }


def _finish(work: Work) -> Case:
    """A scene's rows, Foveate's first."""
    rows = sorted(work.rows.values(), key=lambda row: row.side != OURS)
    total = rows[0].visual.total
    return Case(work.scene.label, total, len(work.prompt.token_ids) - total, rows)
