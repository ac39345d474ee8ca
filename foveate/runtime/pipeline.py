"""From pictures and a prompt to words: vision encoder, probe, f_θ, gather, language model."""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from foveate.bundle.reader import Bundle
from foveate.errors import (
    BackendError,
    LimitError,
)
from foveate.families.base import Family, FrameRule, Message, PixelLimits
from foveate.runtime.admission import Admission
from foveate.runtime.answer import Answer
from foveate.runtime.backends import VisualBackend, check_name, open_backend
from foveate.runtime.checks import whole_numbers
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.generation import AnswerText, Stream, answer_together
from foveate.runtime.language.base import LanguageModel
from foveate.runtime.language.prefix_cache import Prefix
from foveate.runtime.language.registry import open_language
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.media.pictures import MAX_PIXELS, Picture
from foveate.runtime.media.sources import VideoSource
from foveate.runtime.preparation import Preparation
from foveate.runtime.request import Options, Request, naming
from foveate.runtime.request_check import check_fields, check_loading, check_request, check_requests
from foveate.runtime.stages import decoded, kept_prompts
from foveate.runtime.stopping import Stop
from foveate.runtime.tensors import wait

if TYPE_CHECKING:
    from typing_extensions import Unpack

COUNTS = whole_numbers(LimitError, "a count of visual tokens from 1 on for each picture")
LIMITS = ("max_picture_pixels", "most_requests", "most_waiting", "memory_limit")
"""Arguments of `Pipeline.load` that bound its requests."""


class Pipeline(AbstractContextManager["Pipeline"]):
    """A bundle, opened and ready to answer.

    Requests share nothing but read-only graphs, so several threads may call one pipeline at once.
    `most_requests` bounds how many run at a time; the others wait in line, first come, first served.

    Attributes:
        bundle: What was loaded.
        backend: The library that runs vision and compressor.
        language: The engine that runs the language model.
        device: Where they run.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: VisualBackend,
        language: LanguageModel,
        family: Family,
        tokenizer: Tokenizer,
        *,
        max_picture_pixels: int = MAX_PIXELS,
        most_requests: int | None = None,
        most_waiting: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        """Put opened parts together; use `Pipeline.load`."""
        self.bundle = bundle
        self.backend, self.language = backend.name, language.name
        self.device = backend.device
        self._backend, self._language = backend, language
        self._family = family
        self._tokenizer = tokenizer
        self._admission = Admission(most_requests, most_waiting, self._free)
        self._preparation = Preparation(
            self, backend, language, family, tokenizer, max_picture_pixels, memory_limit
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        language: str = "auto",
        target: str | None = None,
        device: str = "auto",
        threads: int = 0,
        checksums: bool = True,
        max_picture_pixels: int = MAX_PIXELS,
        most_requests: int | None = None,
        most_waiting: int | None = None,
        memory_limit: int | str | None = None,
    ) -> "Pipeline":
        """Open a bundle.

        Args:
            path: The bundle's folder.
            backend: "auto", which is onnxruntime, or "onnxruntime" or "tensorrt".
            language: "auto" or "decoder": the bundle's own decoder graph, in the same library.
            target: Whose TensorRT engines to run; None where only one target's run here.
            device: "auto", "cpu" or "cuda"; one that cannot be had is an error.
            threads: Threads within an operator; 0 leaves it to the backend.
            checksums: Compare every file's SHA-256 with the manifest; without it, sizes only.
            max_picture_pixels: The most pixels (width x height) of a picture; a larger one is refused
                by its header, before it is decoded.
            most_requests: How many requests run at once, each of a batch counted; None for any number.
            most_waiting: How many may wait for them, 0 to refuse at once; None for any number.
            memory_limit: The most memory that the process is to hold, in bytes or as "2GB"; requests that
                would take more are refused. None is what the machine has.

        Raises:
            BundleError: No bundle, or one that cannot be trusted.
            LimitError: `most_requests` or `most_waiting` that is no such count.
            BackendError: The backend or device cannot be had, or cannot run the bundle.
            MissingDependencyError: The backend's library is not installed.
            LimitError: A memory limit that is no size, or that the backend cannot keep.
        """
        given = check_loading(
            path=path,
            backend=backend,
            language=language,
            target=target,
            device=device,
            threads=threads,
            checksums=checksums,
            max_picture_pixels=max_picture_pixels,
            most_requests=most_requests,
            most_waiting=most_waiting,
            memory_limit=memory_limit,
        )
        check_name(given["backend"])
        bundle = Bundle.open(given["path"], checksums=given["checksums"])
        tokenizer = read_tokenizer(bundle)
        family = read_family(bundle, tokenizer)
        engine = {name: given[name] for name in ("target", "device", "threads")}
        opened = open_backend(bundle, given["backend"], **engine)
        if given["memory_limit"] is not None and opened.memory is None:
            opened.close()
            raise LimitError(
                f"memory_limit is kept by bundles of standard operators on a CPU, and this one runs on "
                f"{opened.device} with {opened.name}; leave it out, or use device='cpu'"
            )
        speaker = open_language(opened, given["language"])
        limits = {name: given[name] for name in LIMITS}
        return cls(bundle, opened, speaker, family, tokenizer, **limits)

    @property
    def frame_rule(self) -> FrameRule:
        """How many frames of a video file the model's family takes; `read_frames` takes it."""
        return self._family.frame_rule

    def generate(self, prompt: str | Sequence[Message], **options: "Unpack[Options]") -> Answer:
        """Answer a prompt about pictures; takes what `stream` takes and raises what it raises."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, prompt: str | Sequence[Message], **options: "Unpack[Options]") -> Stream:
        """Answer a prompt about pictures, piece by piece; returns when the first token is there.

        The request runs until the stream was read to its end, or closed.

        Args:
            prompt: The instruction, or messages; see `Request`.
            options: The other fields of `Request`, by name.

        Raises:
            BackendError: Numbers that are not finite, no memory, or an engine that failed.
            BusyError: Too many requests wait already, or the deadline passed while this one waited.
            ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
            PromptError: An empty prompt, one with a control token's text in it, messages that are
                none, or more or fewer pictures than they have places for.
            KeepError: A `keep` that is neither a ratio nor a count, or `kept` that there cannot be.
            LimitError: More tokens than the bundle takes, or more than there is memory for.
            SamplingError: Sampling options out of range.
            ClosedError: The pipeline was closed.
        """
        began = time.perf_counter()
        request = check_request(Request(prompt, **options), self.bundle.manifest)
        stop = Stop.of(request.deadline, request.cancel, began)
        text = AnswerText(self._tokenizer, stop, began, request.skip_special_tokens)
        place = self._admission.enter(stops=[stop])
        if place is None:
            text.end("cancelled")
            return Stream(text, None, None)
        try:
            prepared = text.prepare(self._preparation.prepare(request, stop))
            self._preparation.check_memory([prepared])
            prefix = None
            if request.prefix is not None and self._language.capabilities.prefix_reuse:
                prefix = Prefix(request.prefix, self._language, prepared.media.visual)
            run = self._language.generate(
                kept_prompts(self._backend, [text]), [prepared.generation], prefix
            )
            return Stream(text, run, place)
        except BaseException:
            place.leave()
            raise

    def generate_batch(self, requests: Iterable[Request]) -> list[Answer]:
        """Answer several requests; all of them decode together, a run of the decoder for a token each.

        All are checked first, their pictures by their headers. Then everything up to the first token is
        done for one after the other, so that each keeps what it asked to keep, and only one request's
        pictures are decoded at a time.

        A request that is cancelled or whose deadline passes gives its KV cache back and leaves the others
        alone; the batch waits in line until all of its requests have ended so.

        Returns:
            The answers, in the requests' order. In their timing, `first_token` and `total` count from
            this call on, and `decode` is the whole time of every step that gave the answer a token,
            though the same step gave one to others too.

        Raises:
            FoveateError: What `stream` raises, with the index of the request that it is about.
            RequestError: No list of requests.
            LimitError: More than `MOST_REQUESTS`.
            BackendError: More requests than the backend decodes together, or no memory for them.
            LimitError: More requests than the pipeline runs at once.
        """
        began = time.perf_counter()
        given = check_requests(requests)
        self.check_batch(len(given))
        asked, texts = [], []
        for number, request in enumerate(given):
            with naming(number):
                asked.append(check_request(request, self.bundle.manifest))
                if asked[-1].prefix is not None:
                    raise LimitError("a batch has no prefix; leave it out, or ask one at a time")
            stop = Stop.of(asked[-1].deadline, asked[-1].cancel, began)
            texts.append(AnswerText(self._tokenizer, stop, began, asked[-1].skip_special_tokens))
        if not texts:
            return []
        place = self._admission.enter(len(texts), [text.stop for text in texts])
        if place is None:
            for text in texts:
                text.end("cancelled")
            return [text.answer for text in texts if text.answer is not None]
        with place:
            prepared = []
            for number, (request, text) in enumerate(zip(asked, texts, strict=True)):
                with naming(number):
                    one = text.prepare(self._preparation.prepare(request, text.stop))
                    self._preparation.check_memory([one])
                    prepared.append(one)
            self._preparation.check_memory(prepared)
            settings = [one.generation for one in prepared]
            return answer_together(
                self._language.generate(kept_prompts(self._backend, texts), settings), texts
            )

    @property
    def most_together(self) -> int | None:
        """The most requests of a batch; None for any number."""
        return self._language.capabilities.batch

    def check_batch(self, count: int) -> None:
        """Refuse more requests at once than the language model decodes together.

        Raises:
            BackendError: They are more.
        """
        most = self.most_together
        if most is not None and count > most:
            raise BackendError(
                f"{count} requests were asked at once and {self.backend} decodes {most} together, "
                f"which its engines are built for; ask {most} at a time, or load the bundle with "
                "backend='onnxruntime'"
            )

    def encode(
        self,
        *,
        images: Iterable[Picture] | None = None,
        video: VideoSource | None = None,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
    ) -> EncodedMedia:
        """Encode pictures or a video once, to ask about them many times; see `Request` for the arguments.

        Raises:
            ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
            LimitError: More visual tokens than the bundle takes, or more than there is memory for.
            BusyError: Too many requests wait already.
            ClosedError: The pipeline was closed.
        """
        limits = PixelLimits(**check_fields(min_pixels=min_pixels, max_pixels=max_pixels))
        place = self._admission.enter()
        assert place is not None
        with place:
            media = self._preparation.open(images, video, limits)
            self._preparation.check_memory([media])
            embeds = self._backend.encode(decoded(media), lasting=True)
            wait(embeds)
            return replace(media, embeds=embeds)

    def rank(self, prompt: str | Sequence[Message], encoded: EncodedMedia) -> NDArray[np.float32]:
        """Score visual tokens by a prompt as the bundle's compressor does, without an answer.

        Args:
            prompt: The instruction, or messages; see `Request`.
            encoded: What `encode` gave.

        Returns:
            float32 [N_v], high for tokens that matter; all 0 where there is only one to choose.

        Raises:
            FoveateError: What `stream` raises before the first token.
        """
        asked = check_request(
            Request(prompt, encoded=encoded, keep=0.5, max_new_tokens=1), self.bundle.manifest
        )
        place = self._admission.enter()
        assert place is not None
        with place:
            prepared = self._preparation.prepare(asked, Stop())
            self._preparation.check_memory([prepared])
            assert encoded.embeds is not None
            staged = self._backend.stage(prepared.prompt, prepared.selection)
            kept = self._backend.compress(encoded.embeds, staged)
            kept.selection()
            if kept.scores is None:
                return np.zeros(encoded.visual.tokens, np.float32)
            return np.array(kept.scores.numpy(), np.float32)

    def shrink(self, encoded: EncodedMedia, most: Sequence[int]) -> EncodedMedia:
        """Encode the same pictures with fewer visual tokens: smaller, or with their tokens pooled.

        Args:
            encoded: What `encode` gave.
            most: The most visual tokens of each picture.

        Raises:
            ImageError: A video, or a picture that cannot be decoded.
            LimitError: Other counts than one from 1 on for each picture.
        """
        self._preparation.check_own(encoded)
        counts = COUNTS("most", most)
        if len(counts) != len(encoded.media) or min(counts, default=1) < 1:
            raise LimitError(
                f"most is {list(counts)} for {len(encoded.media)} pictures; give {COUNTS.wanted}"
            )
        place = self._admission.enter()
        assert place is not None
        with place:
            visual = encoded.family.shrink(encoded.media, counts)
            embeds = self._backend.encode(visual, lasting=True)
            wait(embeds)
            return replace(encoded, visual=visual, embeds=embeds)

    def close(self) -> None:
        """Take no more requests; those under way finish, and after the last every graph is freed.

        Returns at once. Whoever asks later, or still waits in line, gets a ClosedError. Streams that are
        not read to their end yet count as under way: read them, or close them. Closing twice is fine.
        """
        self._admission.close()

    def _free(self) -> None:
        """Free every graph."""
        self._language.close()
        self._backend.close()

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()
