"""From a request to what the graphs take, with all refused that can be before any work."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from foveate.bundle.manifest import Manifest
from foveate.errors import ImageError, KeepError, LimitError, SamplingError
from foveate.families.base import (
    Family,
    Medium,
    Message,
    PixelLimits,
    Prompt,
    VisualInput,
    user_turn,
)
from foveate.families.messages import Conversation
from foveate.runtime.answer import Timing
from foveate.runtime.backends.base import VisualBackend
from foveate.runtime.defaults import choose_sampling, usual_length
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.keep import Selection, select
from foveate.runtime.language.base import Generation, LanguageModel
from foveate.runtime.media.placed import open_placed
from foveate.runtime.media.sources import open_media
from foveate.runtime.memory_estimate import Work, check_memory, memory_room
from foveate.runtime.request import PreparedRequest, Request
from foveate.runtime.sampling import Sampling
from foveate.runtime.stopping import Stop
from foveate.runtime.text_limit import TextLimit

if TYPE_CHECKING:
    from foveate.runtime.pipeline import Pipeline


class Preparation:
    """Prepares the checked requests of one pipeline."""

    def __init__(
        self,
        pipeline: "Pipeline",
        backend: VisualBackend,
        language: LanguageModel,
        family: Family,
        tokenizer: Tokenizer,
        max_picture_pixels: int,
        memory_limit: int | None,
    ) -> None:
        """Prepare for opened parts; see `Pipeline.load`."""
        self._pipeline = pipeline
        self._backend, self._language, self._family = backend, language, family
        limits = pipeline.bundle.manifest.limits
        self._text_limit = TextLimit(tokenizer, limits.prompt_tokens)
        self._max_picture_pixels, self._memory_limit = max_picture_pixels, memory_limit

    @property
    def _manifest(self) -> Manifest:
        """The bundle's."""
        return self._pipeline.bundle.manifest

    def prepare(self, request: Request, stop: Stop) -> PreparedRequest:
        """Look at the pictures' headers and lay the prompt out; no picture is decoded.

        Args:
            request: One that was checked by itself.
            stop: Says when it has to end early.

        Raises:
            FoveateError: What `Pipeline.stream` raises for a request that cannot be answered.
        """
        mark = time.perf_counter()
        manifest, conversation = self._manifest, None
        if not isinstance(request.prompt, str):
            conversation = Conversation.of(request.prompt)
        self._check_texts(request, conversation)
        media = self._opened(request, conversation)
        prompt = self._layout(request.prompt, media)
        whole = len(prompt.token_ids)
        sampling = choose_sampling(request, manifest.generation, whole)
        ranked_by = self._ranked_by(request, conversation, prompt, media)
        facts = manifest.compressor
        keep = facts.keep if request.keep is None else request.keep
        selection = select(media.visual, keep, request.kept, request.rank, facts.auto)
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
        return PreparedRequest(media, prompt, selection, ranked_by, generation, timing)

    def open(self, images: Any, video: Any, limits: PixelLimits) -> EncodedMedia:
        """Look at pictures or a video; LimitError for more visual tokens than are taken."""
        return self._planned(None, images, video, limits)

    def check_memory(self, several: Sequence[PreparedRequest | EncodedMedia]) -> None:
        """Refuse requests, answered together, or pictures that would take more memory than there is.

        Raises:
            LimitError: They would.
        """
        if self._backend.memory is not None:
            works = [self._work(one) for one in several]
            check_memory(self._backend.memory, works, *memory_room(self._memory_limit))

    def _work(self, one: PreparedRequest | EncodedMedia) -> Work:
        """What a request asks of the graphs, for the estimate of its memory."""
        media = one if isinstance(one, EncodedMedia) else one.media
        visual = media.visual
        largest = self._backend.largest_run(visual) if media.embeds is None else 0
        rows = visual.output_rows if visual.rows is not None and largest else 0
        if isinstance(one, EncodedMedia):
            return Work(visual=visual.tokens, largest=largest, rows=rows)
        return Work(
            visual=visual.tokens,
            largest=largest,
            rows=rows,
            text=len(one.prompt.token_ids) - visual.tokens,
            instruction=len((one.ranked_by or one.prompt).instruction_index),
            kept=one.selection.count,
            new=one.generation.max_new_tokens,
        )

    def _check_texts(self, request: Request, conversation: Conversation | None) -> None:
        """LimitError for texts that are too long to be tokenized."""
        said = [text.text for text in conversation.texts()] if conversation else [request.prompt]
        self._text_limit.check([text for text in said if isinstance(text, str)])
        if request.rank_by is not None:
            self._text_limit.check([request.rank_by])

    def _opened(self, request: Request, conversation: Conversation | None) -> EncodedMedia:
        """A request's pictures, looked at, or encoded before."""
        encoded, images, video = request.encoded, request.images, request.video
        limits = PixelLimits(request.min_pixels, request.max_pixels)
        if encoded is None:
            return self._planned(conversation, images, video, limits)
        if conversation is not None and any(one is not None for _, one in conversation.media):
            raise ImageError("encoded pictures were given; leave out images and video beside them")
        if limits != PixelLimits():
            raise LimitError(
                "encoded pictures have their size; give min_pixels and max_pixels to encode"
            )
        self.check_own(encoded)
        return encoded

    def check_own(self, encoded: EncodedMedia) -> None:
        """ImageError for pictures that were encoded by another pipeline."""
        if encoded.pipeline is not self._pipeline:
            raise ImageError(
                "the pictures were encoded by another pipeline; encode them with this one"
            )

    def _planned(
        self, conversation: Conversation | None, images: Any, video: Any, limits: PixelLimits
    ) -> EncodedMedia:
        """Pictures and videos by their sizes, those that a conversation shows in its order."""
        family = self._family.limited(limits)

        def check(media: Sequence[Medium]) -> VisualInput:
            """Plan them; LimitError for more visual tokens than are taken."""
            visual, limit = family.plan(media), self._backend.visual_tokens
            if visual.tokens > limit:
                raise LimitError(
                    f"the pictures make {visual.tokens} visual tokens and {limit} are taken; use "
                    f"fewer or smaller pictures, or {self._backend.remedy}"
                )
            return visual

        most = self._max_picture_pixels
        if conversation is None:
            found = open_media(images, video, family, max_pixels=most, check=check)
        else:
            places = conversation.media
            found = open_placed(places, images, video, family, max_pixels=most, check=check)
        return EncodedMedia(self._pipeline, family, tuple(found), check(found))

    def _ranked_by(
        self,
        request: Request,
        conversation: Conversation | None,
        prompt: Prompt,
        media: EncodedMedia,
    ) -> Prompt | None:
        """The prompt that ranks in place of the request's own, or None.

        No token sees what follows it, so a question before a picture is ranked as if it came after.
        """
        if request.rank_by is not None:
            return self._layout(request.rank_by, media)
        first = prompt.instruction_index.min(initial=len(prompt.token_ids))
        if conversation is None or prompt.visual_index.max(initial=-1) < first:
            return None
        return self._layout("\n".join(one.text for one in conversation.instruction()), media)

    def _layout(self, prompt: str | Sequence[Message], media: EncodedMedia) -> Prompt:
        """Messages, or a text after its pictures, tokenized and placed."""
        if isinstance(prompt, str):
            prompt = user_turn(prompt, media.media)
        return self._family.layout(prompt, media.visual)

    def _new_tokens(self, wanted: int | None, usual: int, kept: int, next_position: int) -> int:
        """How many tokens may be generated; LimitError for more than the context has room for."""
        limit = self._manifest.limits.prompt_tokens
        capacity = self._language.capabilities.most_tokens
        room = min(limit - max(kept, next_position), capacity - kept)
        most = min(usual, room) if wanted is None else wanted
        if room < 1 or most > room:
            raise LimitError(
                f"the kept prompt takes {kept} tokens and leaves {max(room, 0)} for the answer, of "
                f"the model's {limit} and the {capacity} that {self._backend.name} takes; ask "
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
                    f"{field} is {value}, which the language model {self._language.name} does not "
                    f"honour; use {getattr(usual, field)}, or another language model"
                )
        dropping = selection.indices is None or selection.count < selection.total
        if dropping and not can.any_positions:
            raise KeepError(
                f"the language model {self._language.name} cannot leave the positions of dropped "
                "tokens free; use keep=1.0, or another language model"
            )
