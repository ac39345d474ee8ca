"""From pictures and a prompt to words: vision encoder, probe, f_θ, gather, language model."""

import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer

from foveate import families
from foveate.bundle import Bundle
from foveate.errors import BackendError, BundleError, ClosedError, ImageError, LimitError
from foveate.families.base import Family, Prompt, Vision
from foveate.runtime.answer import Answer, Timing, Visual
from foveate.runtime.engines import Engine, Value
from foveate.runtime.engines.onnx import OnnxEngine, OnnxOptions, resolve_device
from foveate.runtime.engines.precision import check_precision
from foveate.runtime.images import open_pictures
from foveate.runtime.keep import kept_count
from foveate.runtime.language.decoder import Decoder
from foveate.runtime.sampling import Sampler, Sampling
from foveate.runtime.stream import Stream

ROLES = ("vision", "embeddings", "compressor", "decoder")

Picture = str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]


class Pipeline(AbstractContextManager["Pipeline"]):
    """A bundle, opened and ready to answer.

    Requests share nothing but read-only graphs, so several threads may call one pipeline at once.

    Attributes:
        bundle: What was loaded.
        device: Where it runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: dict[str, Engine],
        family: Family,
        tokenizer: Tokenizer,
        device: str,
    ) -> None:
        """Put opened parts together; use `Pipeline.load`."""
        self.bundle = bundle
        self.device = device
        self._engines = engines
        self._family = family
        self._tokenizer = tokenizer
        self._decoder = Decoder(engines["decoder"], bundle.manifest.model)
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int = 0,
        checksums: bool = True,
    ) -> "Pipeline":
        """Open a bundle.

        Args:
            path: The bundle's folder.
            backend: "auto" or "onnxruntime".
            device: "auto", "cpu" or "cuda"; one that cannot be had is an error.
            threads: Threads within an operator; 0 leaves it to the backend.
            checksums: Compare every file's SHA-256 with the manifest; without it, sizes only.

        Raises:
            BundleError: No bundle, or one that cannot be trusted.
            BackendError: The backend or device cannot be had, or cannot run the bundle's precision.
        """
        if backend not in ("auto", "onnxruntime"):
            raise BackendError(f"backend {backend!r} is unknown; choose auto or onnxruntime")
        device = resolve_device(device)
        bundle = Bundle.open(path, checksums=checksums)
        precision = bundle.manifest.precision
        check_precision(bundle.root, precision, device)
        tokenizer = read_tokenizer(bundle)
        family = read_family(bundle, tokenizer)
        engines: dict[str, Engine] = {}
        for role in ROLES:
            options = OnnxOptions(device=device, threads=threads, precision=precision)
            engine = OnnxEngine(bundle.file(role), options)
            bundle.check_graph(role, engine.inputs, engine.outputs)
            engines[role] = engine
        return cls(bundle, engines, family, tokenizer, device)

    def generate(self, prompt: str, **options: Any) -> Answer:
        """Answer a prompt about pictures; takes what `stream` takes and raises what it raises."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        prompt: str,
        *,
        images: Iterable[Picture],
        keep: float | int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
        stop_tokens: Iterable[int] = (),
    ) -> Stream:
        """Answer a prompt about pictures, piece by piece; returns when the first token is there.

        Args:
            prompt: The instruction.
            images: Paths, bytes, PIL images or uint8 arrays [H, W, 3]; the prompt comes after them.
            keep: A ratio in (0, 1] or a count of visual tokens; None takes the bundle's default.
            max_new_tokens: The most tokens to generate; None takes the bundle's default.
            temperature: 0 is greedy.
            top_p: Nucleus sampling's probability mass.
            top_k: Sample from this many best tokens only.
            seed: Makes sampling repeatable.
            repetition_penalty: None takes the checkpoint's own.
            stop_tokens: Token ids that end the answer, beside the checkpoint's own.

        Raises:
            ImageError: No picture, or one that cannot be read or taken.
            PromptError: An empty prompt, or one with a control token's text in it.
            KeepError: A `keep` that is neither.
            LimitError: More tokens than the bundle takes.
            SamplingError: Sampling options out of range.
            ClosedError: The pipeline was closed.
        """
        began = time.perf_counter()
        if self._closed:
            raise ClosedError("the pipeline is closed; load the bundle again")
        manifest, timing = self.bundle.manifest, Timing()
        penalty = manifest.generation.repetition_penalty
        sampling = Sampling(
            temperature,
            top_p,
            top_k,
            seed,
            penalty if repetition_penalty is None else repetition_penalty,
        )
        if isinstance(images, (str, bytes, os.PathLike, Image, np.ndarray)):
            raise ImageError("images is one picture; pass a list, such as images=[picture]")
        pictures = open_pictures(images)
        if not pictures:
            raise ImageError(
                "no picture was given; pass at least one, such as images=['scene.png']"
            )
        vision = self._family.preprocess(pictures)
        self._check_visual(vision)
        laid_out = self._family.layout(prompt, vision)
        count = kept_count(manifest.compressor.keep if keep is None else keep, vision.tokens)
        most = self._new_tokens(max_new_tokens, laid_out, vision.tokens - count)
        timing.preprocess = time.perf_counter() - began

        mark = time.perf_counter()
        visual_embeds = self._engines["vision"].run(vision.feeds)["visual_embeds"]
        timing.vision = time.perf_counter() - mark

        mark = time.perf_counter()
        embeds, positions, visual = self._compress(laid_out, visual_embeds, count, vision)
        timing.compress = time.perf_counter() - mark

        mark = time.perf_counter()
        sequence = self._decoder.start()
        length = len(laid_out.token_ids) - vision.tokens + count
        logits = sequence.extend(embeds, positions, length)
        timing.prefill = time.perf_counter() - mark
        return Stream(
            sequence=sequence,
            logits=logits,
            sampler=Sampler(sampling, laid_out.token_ids),
            position=laid_out.next_position,
            axes=len(laid_out.position_ids),
            embed=self._embed,
            tokenizer=self._tokenizer,
            stops={*manifest.generation.eos, *stop_tokens},
            most=most,
            visual=visual,
            timing=timing,
            began=began,
        )

    def close(self) -> None:
        """Free every graph; requests under way finish, later ones raise ClosedError."""
        self._closed = True
        for engine in self._engines.values():
            engine.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _compress(
        self, prompt: Prompt, visual_embeds: Value, count: int, vision: Vision
    ) -> tuple[NDArray[np.generic] | Value, NDArray[np.int64] | Value, Visual]:
        """The prompt's embeddings and positions, with `count` visual tokens left in it."""
        total = vision.tokens
        text_index = np.setdiff1d(np.arange(len(prompt.token_ids)), prompt.visual_index)
        text_embeds = self._embed(prompt.token_ids[text_index])
        if count == total:
            embeds = np.empty((1, len(prompt.token_ids), text_embeds.shape[1]), text_embeds.dtype)
            embeds[0, text_index] = text_embeds
            embeds[0, prompt.visual_index] = visual_embeds.numpy()
            everything = Visual(total, total, np.arange(total), None, vision.grids)
            return embeds, prompt.position_ids[:, None], everything
        outputs = self._engines["compressor"].run(
            {
                "text_embeds": text_embeds,
                "visual_embeds": visual_embeds,
                "text_index": text_index,
                "visual_index": prompt.visual_index,
                "instruction_rows": np.searchsorted(text_index, prompt.instruction_index),
                "position_ids": prompt.position_ids,
                "keep": np.array([count], dtype=np.int64),
            }
        )
        relevance = outputs["relevance"].numpy()
        if not np.isfinite(relevance).all():
            raise BackendError(
                f"{self.bundle.root}: the compressor's relevance is not finite, so nothing can be "
                "ranked; export with --precision fp32 or bf16"
            )
        visual = Visual(total, count, outputs["kept_indices"].numpy(), relevance, vision.grids)
        return outputs["inputs_embeds"], outputs["kept_position_ids"], visual

    def _embed(self, token_ids: NDArray[np.int64]) -> NDArray[np.generic]:
        """Embedding rows [N, H] of token ids int64 [N]."""
        return self._engines["embeddings"].run({"token_ids": token_ids})["text_embeds"].numpy()

    def _check_visual(self, vision: Vision) -> None:
        """LimitError for more visual tokens than the bundle takes."""
        limit = self.bundle.manifest.limits.visual_tokens
        if vision.tokens > limit:
            raise LimitError(
                f"the pictures make {vision.tokens} visual tokens and the bundle takes {limit}; "
                "use fewer or smaller pictures, or export with a higher --visual-tokens"
            )

    def _new_tokens(self, wanted: int | None, prompt: Prompt, dropped: int) -> int:
        """How many tokens may be generated; LimitError for more than the context has room for."""
        limit = self.bundle.manifest.limits.prompt_tokens
        room = limit - max(len(prompt.token_ids) - dropped, prompt.next_position)
        most = (
            min(self.bundle.manifest.generation.max_new_tokens, room) if wanted is None else wanted
        )
        if room < 1 or most > room:
            raise LimitError(
                f"the kept prompt takes {limit - room} of the model's {limit} tokens and leaves "
                f"{max(room, 0)} for the answer; ask for less, or keep fewer visual tokens"
            )
        if most < 1:
            raise LimitError(f"max_new_tokens is {most}; give at least 1")
        return most


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
