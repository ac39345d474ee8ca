"""From pictures and a prompt to words: vision encoder, probe, f_θ, gather, language model."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image
from tokenizers import Tokenizer

from foveate import families
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, BundleError, ClosedError, ImageError, LimitError
from foveate.families.base import Family, Prompt, Vision, preprocess_frames
from foveate.runtime.answer import Answer, Timing, Visual
from foveate.runtime.backends import Backend, check_name, open_backend
from foveate.runtime.keep import kept_count
from foveate.runtime.language.base import Sequence
from foveate.runtime.media.pictures import open_pictures
from foveate.runtime.reply import Reply, finish_together
from foveate.runtime.request import Options, Picture, Ready, Request, naming
from foveate.runtime.sampling import Sampling
from foveate.runtime.stream import Stream
from foveate.runtime.tensors import Feeds, Tensor, Value, on_host

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Pipeline(AbstractContextManager["Pipeline"]):
    """A bundle, opened and ready to answer.

    Requests share nothing but read-only graphs, so several threads may call one pipeline at once.

    Attributes:
        bundle: What was loaded.
        backend: The library that runs it.
        device: Where it runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        family: Family,
        tokenizer: Tokenizer,
    ) -> None:
        """Put opened parts together; use `Pipeline.load`."""
        self.bundle = bundle
        self.backend = backend.name
        self.device = backend.device
        self._backend = backend
        self._family = family
        self._tokenizer = tokenizer
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        target: str | None = None,
        device: str = "auto",
        threads: int = 0,
        checksums: bool = True,
    ) -> "Pipeline":
        """Open a bundle.

        Args:
            path: The bundle's folder.
            backend: "auto", which is onnxruntime, or "onnxruntime" or "tensorrt".
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
        return cls(bundle, opened, family, tokenizer)

    def generate(self, prompt: str, **options: "Unpack[Options]") -> Answer:
        """Answer a prompt about pictures; takes what `stream` takes and raises what it raises."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.answer

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
        ready = []
        for number, request in enumerate(asked):
            with naming(number):
                ready.append(self._prepare(request, began))
        if not ready:
            return []
        batch = self._backend.start_batch([one.extent for one in ready])
        try:
            replies = []
            for number, (one, sequence) in enumerate(zip(ready, batch.rows, strict=True)):
                with naming(number):
                    replies.append(self._begin(one, sequence))
            return finish_together(replies, batch)
        finally:
            batch.close()

    def check_batch(self, count: int) -> None:
        """Refuse more requests at once than the backend decodes together.

        Raises:
            BackendError: They are more.
        """
        most = self._backend.batch
        if most is not None and count > most:
            raise BackendError(
                f"{count} requests were asked at once and {self.backend} decodes {most} together, "
                f"which its engines are built for; ask {most} at a time, or load the bundle with "
                "backend='onnxruntime'"
            )

    def stream(self, prompt: str, **options: "Unpack[Options]") -> Stream:
        """Answer a prompt about pictures, piece by piece; returns when the first token is there.

        Args:
            prompt: The instruction.
            options: The other fields of `Request`, by name.

        Raises:
            ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
            PromptError: An empty prompt, or one with a control token's text in it.
            KeepError: A `keep` that is neither a ratio nor a count.
            LimitError: More tokens than the bundle takes.
            SamplingError: Sampling options out of range.
            ClosedError: The pipeline was closed.
        """
        ready = self._prepare(Request(prompt, **options), time.perf_counter())
        sequence = self._backend.start(ready.extent.capacity)
        try:
            return Stream(sequence, self._begin(ready, sequence))
        except BaseException:
            sequence.close()
            raise

    def _prepare(self, request: Request, began: float) -> Ready:
        """Open the pictures and lay the prompt out, with all that can be refused refused."""
        mark = time.perf_counter()
        if self._closed:
            raise ClosedError("the pipeline is closed; load the bundle again")
        manifest, penalty = self.bundle.manifest, request.repetition_penalty
        sampling = Sampling(
            request.temperature,
            request.top_p,
            request.top_k,
            request.seed,
            manifest.generation.repetition_penalty if penalty is None else penalty,
        )
        apart = manifest.operators == "onnxruntime"
        vision = look(self._family, request.images, request.video, apart)
        self._check_visual(vision)
        prompt = self._family.layout(request.prompt, vision)
        keep = manifest.compressor.keep if request.keep is None else request.keep
        count = kept_count(keep, vision.tokens)
        most = self._new_tokens(request.max_new_tokens, prompt, vision.tokens - count)
        eos = () if request.ignore_eos else manifest.generation.eos
        stops = frozenset((*eos, *request.stop_tokens))
        timing = Timing(preprocess=time.perf_counter() - mark)
        return Ready(vision, prompt, count, most, sampling, stops, timing, began)

    def _begin(self, ready: Ready, sequence: Sequence) -> Reply:
        """Look, compress, and take the prompt in."""
        vision, timing = ready.vision, ready.timing
        mark = time.perf_counter()
        asked: dict[str, Tensor] = {}
        visual_embeds = self._backend.encode(vision, lambda: asked.update(self._ask(ready)))
        timing.vision = time.perf_counter() - mark

        mark = time.perf_counter()
        embeds, positions, seen = self._compress(ready, visual_embeds, asked)
        timing.compress = time.perf_counter() - mark

        mark = time.perf_counter()
        visual: list[Visual] = []
        following = sequence.extend(
            embeds, positions, ready.extent.prompt, lambda: visual.append(seen())
        )
        timing.prefill = time.perf_counter() - mark
        return Reply(ready, sequence, following, visual[0], self._tokenizer)

    def close(self) -> None:
        """Free every graph; requests under way finish, later ones raise ClosedError."""
        self._closed = True
        self._backend.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _ask(self, ready: Ready) -> Feeds:
        """What is to be compressed beside the visual tokens, or merged with them if all are kept."""
        feeds = ready.prompt.compressor_feeds(ready.count)
        text_embeds = self._backend.embed(ready.prompt.token_ids[feeds["text_index"]])
        asked = {"text_embeds": text_embeds, **feeds}
        return asked if ready.count == ready.vision.tokens else self._backend.place(asked)

    def _compress(
        self, ready: Ready, visual_embeds: Value, asked: Feeds
    ) -> tuple[Tensor, Tensor, Callable[[], Visual]]:
        """The prompt's embeddings and positions, with as many visual tokens left in it as are kept.

        Which ones they are and why is read from the device when the last value is called.
        """
        prompt, vision, count = ready.prompt, ready.vision, ready.count
        total = vision.tokens
        if count == total:
            embeds = self._backend.merge(
                asked["text_embeds"],
                visual_embeds,
                on_host(asked["text_index"]),
                prompt.visual_index,
            )
            everything = Visual(total, total, np.arange(total), None, vision.grids)
            return embeds, prompt.position_ids[:, None], lambda: everything
        outputs = self._backend.compress({**asked, "visual_embeds": visual_embeds})
        return (
            outputs["inputs_embeds"],
            outputs["kept_position_ids"],
            lambda: self._seen(ready, outputs),
        )

    def _seen(self, ready: Ready, outputs: Mapping[str, Value]) -> Visual:
        """What a compressor kept; BackendError where it could rank nothing."""
        relevance = outputs["relevance"].numpy()
        if not np.isfinite(relevance).all():
            raise BackendError(
                f"{self.bundle.root}: the compressor's relevance is not finite, so nothing can be "
                "ranked; export with --precision fp32 or bf16"
            )
        indices = outputs["kept_indices"].numpy()
        return Visual(ready.vision.tokens, ready.count, indices, relevance, ready.vision.grids)

    def _check_visual(self, vision: Vision) -> None:
        """LimitError for more visual tokens than the bundle takes."""
        limit = self._backend.visual_tokens
        if vision.tokens > limit:
            raise LimitError(
                f"the pictures make {vision.tokens} visual tokens and {limit} are taken; use fewer "
                f"or smaller pictures, or {self._backend.remedy}"
            )

    def _new_tokens(self, wanted: int | None, prompt: Prompt, dropped: int) -> int:
        """How many tokens may be generated; LimitError for more than the context has room for."""
        limit = self.bundle.manifest.limits.prompt_tokens
        kept = len(prompt.token_ids) - dropped
        room = min(limit - max(kept, prompt.next_position), self._backend.capacity - kept)
        most = (
            min(self.bundle.manifest.generation.max_new_tokens, room) if wanted is None else wanted
        )
        if room < 1 or most > room:
            raise LimitError(
                f"the kept prompt takes {kept} tokens and leaves {max(room, 0)} for the answer, of "
                f"the model's {limit} and the {self._backend.capacity} that {self.backend} takes; ask "
                "for less, or keep fewer visual tokens"
            )
        if most < 1:
            raise LimitError(f"max_new_tokens is {most}; give at least 1")
        return most


def look(
    family: Family,
    images: Iterable[Picture] | None,
    video: Iterable[Picture] | None,
    apart: bool = False,
) -> Vision:
    """Open and prepare what a request is about.

    Args:
        family: The family.
        images: Pictures.
        video: The frames of a video.
        apart: Only resize them, for vision graphs that normalise and cut them themselves.

    Raises:
        ImageError: Neither pictures nor a video, or both, or what cannot be read or taken.
    """
    if video is not None:
        if images is not None:
            raise ImageError("images and video were given; ask about one or the other")
        whole = isinstance(video, np.ndarray) and video.ndim == 4
        if not whole and isinstance(video, (str, bytes, os.PathLike, Image, np.ndarray)):
            raise ImageError(
                "video is no list of frames; pass a uint8 array [F, H, W, 3] or a list of pictures"
            )
        frames = open_pictures(video)
        if not frames:
            raise ImageError("the video has no frame; pass at least one")
        return preprocess_frames(family, frames, apart)
    if isinstance(images, (str, bytes, os.PathLike, Image, np.ndarray)):
        raise ImageError("images is one picture; pass a list, such as images=[picture]")
    pictures = open_pictures(images or ())
    if not pictures:
        raise ImageError("no picture was given; pass at least one, such as images=['scene.png']")
    return (family.levels if apart else family.preprocess)(pictures)


def read_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer.

    Raises:
        BundleError: Its file is no tokenizer.
    """
    path = bundle.file("tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise BundleError(f"{path}: not a tokenizer ({error}); export the bundle again") from error


def read_family(bundle: Bundle, tokenizer: Tokenizer) -> Family:
    """The bundle's model family, set up with its preprocessing, chat template and tokens.

    Raises:
        BundleError: Parts that are wrong or do not fit together.
        UnsupportedFamilyError: A family that this Foveate does not know.
    """
    return families.create(
        bundle.manifest.family,
        preprocessing=bundle.manifest.preprocessing,
        tokenizer=tokenizer,
        chat_template=bundle.file("chat_template").read_text(encoding="utf-8"),
        tokens=bundle.manifest.tokens,
    )
