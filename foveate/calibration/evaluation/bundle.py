"""A bundle under evaluation: ranked by its own compressor, without torch."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate._version import __version__
from foveate.bundle.reader import Bundle as OpenedBundle
from foveate.bundle.reader import file_digest
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.subject import Alone
from foveate.errors import LimitError
from foveate.families.base import Medium, VisualInput
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.request import Request

TOOLS = ("numpy", "pillow", "tokenizers")
MANIFEST = "manifest.json"


class Bundle:
    """A bundle that is to be evaluated; see `Evaluated`."""

    kind = "bundle"

    def __init__(
        self, source: Path, loading: Mapping[str, Any], *, max_new_tokens: int, batch: int
    ) -> None:
        """Find it.

        Args:
            source: The bundle's folder.
            loading: Arguments of `Pipeline.load`.
            max_new_tokens: The longest answer.
            batch: The most answers that are generated together.

        Raises:
            BundleError: No bundle, or one that cannot be trusted.
        """
        manifest = OpenedBundle.open(source, checksums=False).manifest
        self.source, self._loading = str(source), dict(loading)
        self._most, self._batch = max_new_tokens, batch
        self.team = Alone()
        self._rankings = [manifest.compressor.kind]
        self.facts: dict[str, Any] = {
            "bundle": source.resolve().name,
            "manifest_sha256": file_digest(source / MANIFEST),
            "family": manifest.family,
            "target": self._loading.get("target"),
            "rankings": [{"name": manifest.compressor.kind}],
            "tools": {"foveate": __version__, **{name: version(name) for name in TOOLS}},
        }

    @contextlib.contextmanager
    def load(self) -> Iterator["LoadedBundle"]:
        """Open its pipeline."""
        with Pipeline.load(self.source, **self._loading) as pipe:
            most = pipe.most_together
            batch = self._batch if most is None else min(self._batch, most)
            yield LoadedBundle(pipe, self._rankings, self._most, batch)


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle that answers; see `Subject`."""

    pipe: Pipeline
    rankings: Sequence[str]
    most: int
    batch: int

    @property
    def facts(self) -> dict[str, str]:
        """What runs it, and where."""
        return {"backend": self.pipe.backend, "device": self.pipe.device}

    def open(self, record: Record) -> "BundleScene":
        """Open and encode a record's pictures or video."""
        return BundleScene(self, self.pipe.encode(**record.media))


@dataclass(frozen=True, slots=True)
class BundleScene:
    """The pictures of some questions to a bundle; see `Scene`."""

    subject: LoadedBundle
    encoded: EncodedMedia
    _scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _smaller: dict[tuple[int, ...], EncodedMedia] = field(default_factory=dict)

    @property
    def media(self) -> Sequence[Medium]:
        """The pictures or the video."""
        return self.encoded.media

    @property
    def visual(self) -> VisualInput:
        """They as the vision graph saw them."""
        return self.encoded.visual

    def scores(self, ranking: str, prompt: str) -> NDArray[np.floating]:
        """Score the visual tokens by a prompt, once, as the bundle's compressor does."""
        if prompt not in self._scores:
            self._scores[prompt] = self.encoded.rank(prompt)
        return self._scores[prompt]

    def answers(self, prompt: str, kept: Sequence[NDArray[np.int64]]) -> list[str]:
        """Answer with each choice of tokens, so many together as the subject's batch."""
        most = self.subject.batch
        starts = range(0, len(kept), most)
        return [
            text for start in starts for text in self._answered(prompt, kept[start : start + most])
        ]

    def answer_smaller(self, prompt: str, most: Sequence[int]) -> tuple[str, int]:
        """Answer a prompt about smaller pictures."""
        counts = tuple(most)
        if counts not in self._smaller:
            self._smaller[counts] = self.encoded.smaller(counts)
        smaller = self._smaller[counts]
        answer = smaller.generate(prompt, keep=1.0, max_new_tokens=self.subject.most, temperature=0)
        return answer.text, smaller.visual.tokens

    def _answered(self, prompt: str, kept: Sequence[NDArray[np.int64]]) -> list[str]:
        """Answers that are generated together, or in halves where memory does not take all of them."""
        requests = [self._request(prompt, one) for one in kept]
        try:
            return [answer.text for answer in self.subject.pipe.generate_batch(requests)]
        except LimitError:
            half = len(kept) // 2
            if not half:
                raise
            return [*self._answered(prompt, kept[:half]), *self._answered(prompt, kept[half:])]

    def _request(self, prompt: str, kept: NDArray[np.int64]) -> Request:
        """A greedy answer with some of the tokens."""
        return Request(
            prompt,
            encoded=self.encoded,
            kept=kept.tolist(),
            max_new_tokens=self.subject.most,
            temperature=0,
        )
