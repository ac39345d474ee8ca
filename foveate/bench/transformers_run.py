"""The same model in transformers on the same request: with all visual tokens, and with ours.

What is not the model is in transformers' favour: token ids and positions are given to it, and its
stages are called one by one instead of through `generate`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from foveate.bench.result import Sample
from foveate.bundle.manifest import Manifest
from foveate.errors import MissingDependencyError, UnsupportedFamilyError
from foveate.families.base import Prompt, VisualInput

try:
    import torch
    import transformers
    from torch import Tensor
    from transformers import DynamicCache
except ImportError as error:
    raise MissingDependencyError(
        f"comparing with transformers needs {error.name}, which is not installed: "
        "pip install 'foveate[export]'"
    ) from error

from foveate.modeling.base import Processed, Processor, TorchFamily
from foveate.modeling.checkpoint import DTYPES, Checkpoint
from foveate.modeling.families import torch_family

ATTENTION = "sdpa"


@dataclass(frozen=True, slots=True)
class Given:
    """A request's prompt on the device.

    Attributes:
        token_ids: int64 [T], visual placeholders among them.
        visual_index: int64 [N_v], where visual tokens stand.
        position_ids: int64 [A, 1, T].
        next_position: Of the first generated token.
    """

    token_ids: Tensor
    visual_index: Tensor
    position_ids: Tensor
    next_position: int


@dataclass(frozen=True, slots=True)
class TransformersAnswer:
    """What one pass gave: seconds by measure, the first token, and the cache's bytes at its end."""

    sample: Sample
    first: int
    cache_bytes: int


class TransformersModel:
    """A checkpoint in transformers, on one device."""

    def __init__(
        self, torch_half: TorchFamily, model: Any, processor: Processor, device: str
    ) -> None:
        """Put loaded parts together; use `TransformersModel.load`."""
        self.model = model
        self.device = device
        self._torch_half = torch_half
        self._language = torch_half.language(model)
        self._processor = processor

    @classmethod
    def load(cls, source: str, manifest: Manifest, device: str) -> "TransformersModel":
        """Load a checkpoint in the bundle's precision; random weights where the bundle's are.

        Args:
            source: The checkpoint's folder or hub id.
            manifest: The bundle's.
            device: "cpu" or "cuda".

        Raises:
            CheckpointError: It cannot be read.
            UnsupportedFamilyError: Not of the bundle's family.
            MissingDependencyError: torch has no CUDA where the bundle runs on it.
        """
        checkpoint = Checkpoint.open(source)
        if checkpoint.family != manifest.family:
            raise UnsupportedFamilyError(
                f"{source} is of the family {checkpoint.family} and the bundle of {manifest.family}; "
                "give the checkpoint that the bundle was exported from"
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise MissingDependencyError(
                "the bundle runs on CUDA and this torch has none: pip install a torch with CUDA, or "
                "use --device cpu"
            )
        torch_half, dtype = torch_family(checkpoint.family), DTYPES[manifest.precision]
        if manifest.weights == "random":
            model = torch_half.blank(checkpoint, dtype, ATTENTION, device)
        else:
            model = torch_half.load(checkpoint, dtype, ATTENTION).to(device)
        return cls(torch_half, model, torch_half.processor(checkpoint), device)

    def facts(self) -> dict[str, Any]:
        """Versions, and the most memory that torch held on the device."""
        cuda = self.device == "cuda"
        return {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "attention": ATTENTION,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.device,
            "peak_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        }

    def give(self, prompt: Prompt) -> Given:
        """Put a prompt on the device."""
        return Given(
            torch.from_numpy(prompt.token_ids).to(self.device),
            torch.from_numpy(prompt.visual_index).to(self.device),
            torch.from_numpy(prompt.position_ids[:, None]).to(self.device),
            prompt.next_position,
        )

    def through(self, prepare: Callable[[list[Image]], VisualInput]) -> Processor:
        """Another preprocessing, in the form that the vision tower takes."""

        def processor(pictures: list[Image]) -> Processed:
            """What `prepare` makes of pictures, in transformers' form."""
            return self._torch_half.processed(self.model, prepare(pictures))

        return processor

    @torch.inference_mode()
    def whole(
        self,
        pictures: list[Image],
        given: Given,
        new_tokens: int,
        processor: Processor | None = None,
    ) -> tuple[TransformersAnswer, Tensor]:
        """Answer from pixels in memory, with all visual tokens.

        Args:
            pictures: What the prompt is about.
            given: The prompt.
            new_tokens: How many tokens to generate.
            processor: Preprocessing to use instead of transformers'.

        Returns:
            What the pass gave, and the visual tokens E_v [N_v, H].
        """
        began = self._now()
        processed = (processor or self._processor)(pictures)
        prepared = time.perf_counter()
        visual = self._torch_half.encode_processed(self.model, processed)
        encoded = self._now()
        embeds = self._embed(given.token_ids)
        embeds[given.visual_index] = visual
        placed = self._now()
        sample, first, cache_bytes = self._generate(embeds, given.position_ids, given, new_tokens)
        stages = {
            "preprocess": prepared - began,
            "vision": encoded - prepared,
            **sample,
            "first_token": placed - began + sample["prefill"],
        }
        return TransformersAnswer(stages, first, cache_bytes), visual

    @torch.inference_mode()
    def pruned(
        self,
        visual: Tensor,
        kept: NDArray[np.int64],
        given: Given,
        before: TransformersAnswer,
        new_tokens: int,
    ) -> TransformersAnswer:
        """Answer with some visual tokens, at their own positions.

        Args:
            visual: E_v [N_v, H], as `whole` gave it.
            kept: int64 [K], ordinals of the visual tokens to keep, ascending.
            given: The prompt.
            before: The pass with all tokens: what came before prefill is the same.
            new_tokens: How many tokens to generate.
        """
        chosen = torch.from_numpy(np.asarray(kept, dtype=np.int64)).to(self.device)
        stays = torch.ones(len(given.token_ids), dtype=torch.bool, device=self.device)
        stays[given.visual_index] = False
        stays[given.visual_index[chosen]] = True
        index = stays.nonzero()[:, 0]
        places = (stays.cumsum(0) - 1)[given.visual_index[chosen]]
        began = self._now()
        embeds = self._embed(given.token_ids[index])
        embeds[places] = visual[chosen]
        positions = given.position_ids[:, :, index]
        gathered = self._now() - began
        sample, first, cache_bytes = self._generate(embeds, positions, given, new_tokens)
        ahead = before.sample["preprocess"] + before.sample["vision"]
        sample |= {stage: before.sample[stage] for stage in ("preprocess", "vision")}
        sample |= {"first_token": ahead + gathered + sample["prefill"]}
        return TransformersAnswer(sample, first, cache_bytes)

    def _generate(
        self, embeds: Tensor, positions: Tensor, given: Given, new_tokens: int
    ) -> tuple[Sample, int, int]:
        """Prefill and greedy steps: seconds, the first token, and the cache's bytes at the end."""
        cache = DynamicCache()
        began = self._now()
        first = token = self._step(embeds[None], positions, cache)
        prefilled = self._now()
        for number in range(new_tokens - 1):
            row = self._embed(torch.tensor([token], device=self.device))
            place = torch.full_like(positions[:, :, :1], given.next_position + number)
            token = self._step(row[None], place, cache)
        sample = {"prefill": prefilled - began}
        if new_tokens > 1:
            sample["per_token"] = (self._now() - prefilled) / (new_tokens - 1)
        states = [state for layer in cache.layers for state in (layer.keys, layer.values)]
        return sample, first, sum(state.nbytes for state in states)

    def _step(self, embeds: Tensor, positions: Tensor, cache: Any) -> int:
        """Take tokens in; the argmax of the logits after them."""
        hidden = self._torch_half.decode(self.model, embeds, positions, cache)
        return int(self._language.head(hidden[:, -1]).argmax())

    def _embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings [N, H] that may be written to."""
        embeds: Tensor = self._language.embedding(token_ids)
        return embeds

    def _now(self) -> float:
        """The time, when all that was given to the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
