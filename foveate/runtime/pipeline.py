"""From pictures and a prompt to words: vision encoder, probe, f_θ, gather, language model."""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from foveate.bundle.reader import Bundle
from foveate.errors import (
    BackendError,
    ImageError,
    KeepError,
    LimitError,
    SamplingError,
)
from foveate.families.base import Family, Medium, Prompt, VisualInput, user_turn
from foveate.runtime.admission import Admission
from foveate.runtime.answer import Answer, Timing
from foveate.runtime.backends import VisualBackend, check_name, open_backend
from foveate.runtime.defaults import choose_sampling, usual_length
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.generation import AnswerText, Stream, answer_together
from foveate.runtime.keep import Selection, select
from foveate.runtime.language.base import Generation, LanguageModel
from foveate.runtime.language.registry import open_language
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.media.pictures import MAX_PIXELS, Picture
from foveate.runtime.media.sources import VideoSource, open_media
from foveate.runtime.memory_estimate import Work, check_memory, memory_room
from foveate.runtime.request import Options, PreparedRequest, Request, naming
from foveate.runtime.request_check import check_loading, check_request, check_requests
from foveate.runtime.sampling import Sampling
from foveate.runtime.stages import decoded, kept_prompts
from foveate.runtime.stopping import Stop
from foveate.runtime.tensors import wait
from foveate.runtime.text_limit import TextLimit

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
        self._max_picture_pixels = max_picture_pixels
        self._text_limit = TextLimit(tokenizer, bundle.manifest.limits.prompt_tokens)
        self._admission = Admission(most_requests, most_waiting, self._free)
        self._memory_limit = memory_limit

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

    def generate(self, prompt: str, **options: "Unpack[Options]") -> Answer:
        """Answer a prompt about pictures; takes what `stream` takes and raises what it raises."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, prompt: str, **options: "Unpack[Options]") -> Stream:
        """Answer a prompt about pictures, piece by piece; returns when the first token is there.

        The request runs until the stream was read to its end, or closed.

        Args:
            prompt: The instruction.
            options: The other fields of `Request`, by name.

        Raises:
            BackendError: Numbers that are not finite, no memory, or an engine that failed.
            BusyError: Too many requests wait already, or the deadline passed while this one waited.
            ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
            PromptError: An empty prompt, or one with a control token's text in it.
            KeepError: A `keep` that is neither a ratio nor a count, or `kept` that there cannot be.
            LimitError: More tokens than the bundle takes, or more than there is memory for.
            SamplingError: Sampling options out of range.
            ClosedError: The pipeline was closed.
        """
        began = time.perf_counter()
        request = check_request(Request(prompt, **options), self.bundle.manifest)
        stop = Stop.of(request.deadline, request.cancel, began)
        text = AnswerText(self._tokenizer, stop, began)
        place = self._admission.enter(stops=[stop])
        if place is None:
            text.end("cancelled")
            return Stream(text, None, None)
        try:
            prepared = text.prepare(self._prepare(request, began, stop))
            run = self._language.generate(
                kept_prompts(self._backend, self._family, [text]), [prepared.generation]
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
            stop = Stop.of(asked[-1].deadline, asked[-1].cancel, began)
            texts.append(AnswerText(self._tokenizer, stop, began))
        if not texts:
            return []
        place = self._admission.enter(len(texts), [text.stop for text in texts])
        if place is None:
            for text in texts:
                text.end("cancelled")
            return [text.answer for text in texts if text.answer is not None]
        with place:
            settings, works = [], []
            for number, (request, text) in enumerate(zip(asked, texts, strict=True)):
                with naming(number):
                    prepared = text.prepare(self._prepare(request, began, text.stop))
                    settings.append(prepared.generation)
                    works.append(self._work(prepared))
            self._check_memory(works)
            return answer_together(
                self._language.generate(kept_prompts(self._backend, self._family, texts), settings),
                texts,
            )

    def check_batch(self, count: int) -> None:
        """Refuse more requests at once than the language model decodes together.

        Raises:
            BackendError: They are more.
        """
        most = self._language.capabilities.batch
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
    ) -> EncodedMedia:
        """Encode pictures or a video once, to ask about them many times.

        Raises:
            ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
            LimitError: More visual tokens than the bundle takes, or more than there is memory for.
            BusyError: Too many requests wait already.
            ClosedError: The pipeline was closed.
        """
        place = self._admission.enter()
        assert place is not None
        with place:
            media = self._open(images, video)
            visual = media.visual
            largest = self._backend.largest_run(visual)
            self._check_memory([Work(visual=visual.tokens, largest=largest)])
            embeds = self._backend.encode(decoded(self._family, media), lasting=True)
            wait(embeds)
            return EncodedMedia(self, media.media, media.visual, embeds)

    def _prepare(self, request: Request, began: float, stop: Stop) -> PreparedRequest:
        """Look at the pictures' headers and lay the prompt out, with all refused that can be before work."""
        mark = time.perf_counter()
        manifest = self.bundle.manifest
        texts = [text for text in (request.prompt, request.rank_by) if text is not None]
        for text in texts:
            self._text_limit.check([text])
        media = self._opened(request)
        prompt = self._layout(request.prompt, media)
        whole = len(prompt.token_ids)
        sampling = choose_sampling(request, manifest.generation, whole)
        ranked_by = None if request.rank_by is None else self._layout(request.rank_by, media)
        keep = manifest.compressor.keep if request.keep is None else request.keep
        selection = select(media.visual, keep, request.kept, request.rank)
        self._check_capabilities(sampling, selection)
        eos = () if request.ignore_eos else manifest.generation.eos
        kept = prompt.length_with(selection.count)
        wanted = request.max_new_tokens
        usual = usual_length(manifest.generation, whole) if wanted is None else wanted
        most = self._new_tokens(wanted, usual, kept, prompt.next_position)
        generation = Generation(
            kept,
            prompt.next_position,
            most,
            frozenset((*eos, *request.stop_tokens)),
            replace(sampling, last=most) if sampling.forced_last else sampling,
            stop,
        )
        timing = Timing(preprocess=time.perf_counter() - mark)
        prepared = PreparedRequest(media, prompt, selection, ranked_by, generation, timing, began)
        self._check_memory([self._work(prepared)])
        return prepared

    def _work(self, request: PreparedRequest) -> Work:
        """What a request asks of the graphs, for the estimate of its memory."""
        visual, prompt = request.media.visual, request.prompt
        return Work(
            visual=visual.tokens,
            largest=self._backend.largest_run(visual) if request.media.embeds is None else 0,
            text=len(prompt.token_ids) - visual.tokens,
            instruction=len((request.ranked_by or prompt).instruction_index),
            kept=request.selection.count,
            new=request.generation.max_new_tokens,
        )

    def _check_memory(self, works: list[Work]) -> None:
        """LimitError for requests, answered together, that would take more memory than there is."""
        if self._backend.memory is not None:
            check_memory(self._backend.memory, works, *memory_room(self._memory_limit))

    def _opened(self, request: Request) -> EncodedMedia:
        """A request's pictures, prepared, or encoded before."""
        encoded = request.encoded
        if encoded is None:
            return self._open(request.images, request.video)
        if encoded.pipeline is not self:
            raise ImageError(
                "the pictures were encoded by another pipeline; encode them with this one"
            )
        return encoded

    def _open(self, images: Iterable[Picture] | None, video: VideoSource | None) -> EncodedMedia:
        """Look at pictures or a video; LimitError for more visual tokens than are taken."""
        most = self._max_picture_pixels
        found = open_media(images, video, self._family, max_pixels=most, check=self._plan)
        media = tuple(found)
        return EncodedMedia(self, media, self._plan(media))

    def _plan(self, media: Sequence[Medium]) -> VisualInput:
        """What media give by their sizes; LimitError for more visual tokens than are taken."""
        visual, limit = self._family.plan(media), self._backend.visual_tokens
        if visual.tokens > limit:
            raise LimitError(
                f"the pictures make {visual.tokens} visual tokens and {limit} are taken; use fewer "
                f"or smaller pictures, or {self._backend.remedy}"
            )
        return visual

    def _layout(self, text: str, media: EncodedMedia) -> Prompt:
        """A text after its pictures, tokenized and placed."""
        return self._family.layout(user_turn(text, media.media), media.visual)

    def _new_tokens(self, wanted: int | None, usual: int, kept: int, next_position: int) -> int:
        """How many tokens may be generated; LimitError for more than the context has room for."""
        limit = self.bundle.manifest.limits.prompt_tokens
        capacity = self._language.capabilities.most_tokens
        room = min(limit - max(kept, next_position), capacity - kept)
        most = min(usual, room) if wanted is None else wanted
        if room < 1 or most > room:
            raise LimitError(
                f"the kept prompt takes {kept} tokens and leaves {max(room, 0)} for the answer, of "
                f"the model's {limit} and the {capacity} that {self.backend} takes; ask "
                "for less, or keep fewer visual tokens"
            )
        if most < 1:
            raise LimitError(f"max_new_tokens is {most}; give at least 1")
        return most

    def _check_capabilities(self, sampling: Sampling, selection: Selection) -> None:
        """Refuse sampling that the language model does not honour, and gaps that it cannot leave."""
        can, usual = self._language.capabilities, Sampling()
        for field in Sampling.__dataclass_fields__:
            value = getattr(sampling, field)
            if field not in can.sampling and value != getattr(usual, field):
                raise SamplingError(
                    f"{field} is {value}, which the language model {self.language} does not honour; "
                    f"use {getattr(usual, field)}, or another language model"
                )
        if selection.count < selection.total and not can.any_positions:
            raise KeepError(
                f"the language model {self.language} cannot leave the positions of dropped tokens "
                "free; use keep=1.0, or another language model"
            )

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
