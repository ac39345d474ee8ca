"""From pictures and a prompt to words: vision encoder, probe, f_θ, gather, language model."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from foveate.bundle.reader import Bundle
from foveate.errors import (
    BackendError,
    ClosedError,
    ImageError,
    KeepError,
    LimitError,
    SamplingError,
)
from foveate.families.base import Family, Medium, Message, PixelLimits, Prompt, user_turn
from foveate.families.messages import Conversation
from foveate.runtime.answer import Answer, Timing
from foveate.runtime.backends import VisualBackend, check_name, open_backend
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.generation import AnswerText, Stream, answer_together
from foveate.runtime.keep import Selection, select
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Generation, LanguageModel
from foveate.runtime.language.prefix_cache import Prefix
from foveate.runtime.language.registry import open_language
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.media.pictures import Picture
from foveate.runtime.media.placed import open_placed
from foveate.runtime.media.sources import open_media
from foveate.runtime.request import Options, PreparedRequest, Request, naming
from foveate.runtime.sampling import Sampling
from foveate.runtime.tensors import wait

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Pipeline(AbstractContextManager["Pipeline"]):
    """A bundle, opened and ready to answer.

    Requests share nothing but read-only graphs, so several threads may call one pipeline at once.

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
    ) -> None:
        """Put opened parts together; use `Pipeline.load`."""
        self.bundle = bundle
        self.backend, self.language = backend.name, language.name
        self.device = backend.device
        self._backend, self._language = backend, language
        self._family = family
        self._tokenizer = tokenizer
        self._closed = False

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

        Raises:
            BundleError: No bundle, or one that cannot be trusted.
            BackendError: The backend or device cannot be had, or cannot run the bundle.
            MissingDependencyError: The backend's library is not installed.
        """
        check_name(backend)
        bundle = Bundle.open(path, checksums=checksums)
        tokenizer = read_tokenizer(bundle)
        family = read_family(bundle, tokenizer)
        opened = open_backend(bundle, backend, target=target, device=device, threads=threads)
        return cls(bundle, opened, open_language(opened, language), family, tokenizer)

    def generate(self, prompt: str | Sequence[Message], **options: "Unpack[Options]") -> Answer:
        """Answer a prompt about pictures; takes what `stream` takes and raises what it raises."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, prompt: str | Sequence[Message], **options: "Unpack[Options]") -> Stream:
        """Answer a prompt about pictures, piece by piece; returns when the first token is there.

        Args:
            prompt: The instruction, or messages; see `Request`.
            options: The other fields of `Request`, by name.

        Raises:
            ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
            PromptError: An empty prompt, one with a control token's text in it, messages that are
                none, or more or fewer pictures than they have places for.
            KeepError: A `keep` that is neither a ratio nor a count, or `kept` that there cannot be.
            LimitError: More tokens than the bundle takes.
            SamplingError: Sampling options out of range.
            ClosedError: The pipeline was closed.
        """
        request = Request(prompt, **options)
        prepared = self._prepare(request, time.perf_counter())
        text = AnswerText(prepared, self._tokenizer)
        prefix = None
        if request.prefix is not None and self._language.capabilities.prefix_reuse:
            prefix = Prefix(request.prefix, self._language, prepared.media.visual)
        run = self._language.generate(self._begin([text]), [prepared.generation], prefix)
        return Stream(run, text)

    def generate_batch(self, requests: Iterable[Request]) -> list[Answer]:
        """Answer several requests; all of them decode together, a run of the decoder for a token each.

        All are checked first. Then everything up to the first token is done for one after the other,
        so that each keeps what it asked to keep.

        Returns:
            The answers, in the requests' order. In their timing, `first_token` and `total` count from
            this call on, and `decode` is the whole time of every step that gave the answer a token,
            though the same step gave one to others too.

        Raises:
            FoveateError: What `stream` raises, with the index of the request that it is about.
            BackendError: More requests than the backend decodes together, or no memory for them.
        """
        began = time.perf_counter()
        asked = list(requests)
        self.check_batch(len(asked))
        texts = []
        for number, request in enumerate(asked):
            with naming(number):
                if request.prefix is not None:
                    raise LimitError("a batch has no prefix; leave it out, or ask one at a time")
                texts.append(AnswerText(self._prepare(request, began), self._tokenizer))
        if not texts:
            return []
        settings = [text.prepared.generation for text in texts]
        return answer_together(self._language.generate(self._begin(texts), settings), texts)

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
        video: Iterable[Picture] | None = None,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
    ) -> EncodedMedia:
        """Encode pictures or a video once, to ask about them many times; see `Request` for the arguments.

        Raises:
            ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
            LimitError: More visual tokens than the bundle takes, or pixels that there cannot be.
            ClosedError: The pipeline was closed.
        """
        self._check_open()
        prepared = self._fitted(open_media(images, video), PixelLimits(min_pixels, max_pixels))
        embeds = self._backend.encode(prepared.visual, lasting=True)
        wait(embeds)
        return EncodedMedia(self, prepared.media, prepared.visual, embeds)

    def _prepare(self, request: Request, began: float) -> PreparedRequest:
        """Open the pictures and lay the prompt out, with all that can be refused refused."""
        mark = time.perf_counter()
        manifest, penalty = self.bundle.manifest, request.repetition_penalty
        sampling = Sampling(
            request.temperature,
            request.top_p,
            request.top_k,
            request.seed,
            manifest.generation.repetition_penalty if penalty is None else penalty,
        )
        conversation = None
        if not isinstance(request.prompt, str):
            conversation = Conversation.of(request.prompt)
        media = self._opened(request, conversation)
        prompt = self._layout(request.prompt, media)
        ranked_by = None if request.rank_by is None else self._layout(request.rank_by, media)
        keep = manifest.compressor.keep if request.keep is None else request.keep
        if request.kept is not None and (request.keep is not None or request.rank_by is not None):
            raise KeepError("kept names the tokens to keep; leave out keep and rank_by beside it")
        selection = select(media.visual, keep, request.kept, request.rank)
        self._check_capabilities(sampling, selection)
        eos = () if request.ignore_eos else manifest.generation.eos
        kept = prompt.length_with(selection.count)
        generation = Generation(
            kept,
            prompt.next_position,
            self._new_tokens(request.max_new_tokens, kept, prompt.next_position),
            frozenset((*eos, *request.stop_tokens)),
            sampling,
        )
        timing = Timing(preprocess=time.perf_counter() - mark)
        return PreparedRequest(
            media,
            prompt,
            selection,
            ranked_by,
            generation,
            timing,
            began,
            request.skip_special_tokens,
        )

    def _begin(self, texts: list[AnswerText]) -> Iterator[KeptPrompt]:
        """Encode and compress, request by request, as the language model takes the prompts in."""
        for text in texts:
            prepared, timing = text.prepared, text.timing
            mark = time.perf_counter()
            embeds = prepared.media.embeds
            if embeds is None:
                embeds = self._backend.encode(prepared.media.visual)
            # Host work, which overlaps with the device's.
            staged = self._backend.stage(prepared.prompt, prepared.selection, prepared.ranked_by)
            wait(embeds)
            timing.vision = time.perf_counter() - mark

            mark = time.perf_counter()
            kept = text.kept = self._backend.compress(embeds, staged)
            wait(kept.embeds)
            text.prefill_began = time.perf_counter()
            timing.compress = text.prefill_began - mark
            yield kept

    def _opened(self, request: Request, conversation: Conversation | None) -> EncodedMedia:
        """A request's pictures, prepared, or encoded before."""
        self._check_open()
        encoded, images, video = request.encoded, request.images, request.video
        limits = PixelLimits(request.min_pixels, request.max_pixels)
        if encoded is None:
            if conversation is None:
                return self._fitted(open_media(images, video), limits)
            return self._fitted(open_placed(conversation.media, images, video), limits)
        carried = conversation is not None and any(one is not None for _, one in conversation.media)
        if images is not None or video is not None or carried:
            raise ImageError("encoded pictures were given; leave out images and video beside them")
        if limits != PixelLimits():
            raise LimitError(
                "encoded pictures have their size; give min_pixels and max_pixels to encode"
            )
        if encoded.pipeline is not self:
            raise ImageError(
                "the pictures were encoded by another pipeline; encode them with this one"
            )
        return encoded

    def _fitted(self, media: Sequence[Medium], limits: PixelLimits) -> EncodedMedia:
        """Prepare pictures and videos; LimitError for more visual tokens than are taken."""
        visual, limit = self._family.prepare(media, limits), self._backend.visual_tokens
        if visual.tokens > limit:
            raise LimitError(
                f"the pictures make {visual.tokens} visual tokens and {limit} are taken; use fewer "
                f"or smaller pictures, a smaller max_pixels, or {self._backend.remedy}"
            )
        return EncodedMedia(self, tuple(media), visual)

    def _layout(self, prompt: str | Sequence[Message], media: EncodedMedia) -> Prompt:
        """Messages, or a text after its pictures, tokenized and placed."""
        if isinstance(prompt, str):
            prompt = user_turn(prompt, media.media)
        return self._family.layout(prompt, media.visual)

    def _new_tokens(self, wanted: int | None, kept: int, next_position: int) -> int:
        """How many tokens may be generated; LimitError for more than the context has room for."""
        limit = self.bundle.manifest.limits.prompt_tokens
        capacity = self._language.capabilities.most_tokens
        room = min(limit - max(kept, next_position), capacity - kept)
        most = (
            min(self.bundle.manifest.generation.max_new_tokens, room) if wanted is None else wanted
        )
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

    def _check_open(self) -> None:
        """ClosedError after `close`."""
        if self._closed:
            raise ClosedError("the pipeline is closed; load the bundle again")

    def close(self) -> None:
        """Free every graph; requests under way finish, later ones raise ClosedError."""
        self._closed = True
        self._language.close()
        self._backend.close()

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()
