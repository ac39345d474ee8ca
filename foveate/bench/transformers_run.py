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
from foveate.errors import MissingDependencyError, UnsupportedFamilyError, needed
from foveate.families.base import Prompt, VisualInput

with needed(
    "comparing with transformers needs {}, which is not installed: pip install 'foveate[export]'"
):
    import torch
    import transformers
    from torch import Tensor
    from transformers import DynamicCache

from foveate.modeling.base import Processor, TorchFamily
from foveate.modeling.checkpoint import DTYPES, Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.language_model import Language

ATTENTION = "sdpa"


@dataclass(frozen=True, slots=True)
class TransformersAnswer:
    """What one pass gave: seconds by measure, the first token, and the cache's bytes at its end."""

    sample: Sample
    first: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """A checkpoint in transformers, on one device; `load` makes one."""

    device: str
    model: Any
    _torch_half: TorchFamily
    _language: Language
    _processor: Processor

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
        language, processor = torch_half.language(model), torch_half.processor(checkpoint)
        return cls(device, model, torch_half, language, processor)

    def facts(self) -> dict[str, Any]:
        """Versions, and the most memory that torch held on the device."""
        return {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "attention": ATTENTION,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.device,
            "peak_bytes": torch.cuda.max_memory_reserved() if self.device == "cuda" else None,
        }

    @torch.inference_mode()
    def whole(
        self,
        pictures: list[Image],
        prompt: Prompt,
        new_tokens: int,
        prepare: Callable[[list[Image]], VisualInput] | None = None,
    ) -> tuple[TransformersAnswer, Tensor]:
        """Answer from pixels in memory, with all visual tokens.

        Args:
            pictures: What the prompt is about.
            prompt: The prompt.
            new_tokens: How many tokens to generate.
            prepare: Preprocessing to use instead of transformers'.

        Returns:
            What the pass gave, and the visual tokens E_v [N_v, H].
        """
        token_ids, index = self._sent(prompt.token_ids), self._sent(prompt.visual_index)
        positions = self._sent(prompt.position_ids[:, None])
        began = self._now()
        if prepare is None:
            processed = self._processor(pictures)
        else:
            processed = self._torch_half.processed(self.model, prepare(pictures))
        prepared = time.perf_counter()
        visual = self._torch_half.encode_processed(self.model, processed)
        encoded = self._now()
        embeds = self._language.embedding(token_ids)
        embeds[index] = visual
        placed = self._now()
        answer = self._generate(embeds, positions, prompt.next_position, new_tokens)
        first_token = placed - began + answer.sample["prefill"]
        stages = {"preprocess": prepared - began, "vision": encoded - prepared}
        answer.sample.update(stages, first_token=first_token)
        return answer, visual

    @torch.inference_mode()
    def pruned(
        self,
        visual: Tensor,
        kept: NDArray[np.int64],
        prompt: Prompt,
        before: TransformersAnswer,
        new_tokens: int,
    ) -> TransformersAnswer:
        """Answer with some visual tokens, at their own positions.

        Args:
            visual: E_v [N_v, H], as `whole` gave it.
            kept: int64 [K], ordinals of the visual tokens to keep, ascending.
            prompt: The prompt.
            before: The pass with all tokens: what came before prefill is the same.
            new_tokens: How many tokens to generate.
        """
        stays = prompt.kept_index(kept)
        places = self._sent(np.searchsorted(stays, prompt.visual_index[kept]))
        token_ids, index = self._sent(prompt.token_ids), self._sent(stays)
        everywhere, chosen = self._sent(prompt.position_ids[:, None]), self._sent(kept)
        began = self._now()
        embeds = self._language.embedding(token_ids[index])
        embeds[places] = visual[chosen]
        positions = everywhere[:, :, index]
        gathered = self._now() - began
        answer = self._generate(embeds, positions, prompt.next_position, new_tokens)
        ahead = {stage: before.sample[stage] for stage in ("preprocess", "vision")}
        first_token = sum(ahead.values()) + gathered + answer.sample["prefill"]
        answer.sample.update(ahead, first_token=first_token)
        return answer

    def _generate(
        self, embeds: Tensor, positions: Tensor, next_position: int, new_tokens: int
    ) -> TransformersAnswer:
        """Prefill and greedy steps."""
        cache = DynamicCache()
        began = self._now()
        first = token = self._step(embeds[None], positions, cache)
        prefilled = self._now()
        for number in range(new_tokens - 1):
            row = self._language.embedding(torch.tensor([token], device=self.device))
            place = torch.full_like(positions[:, :, :1], next_position + number)
            token = self._step(row[None], place, cache)
        sample = {"prefill": prefilled - began}
        if new_tokens > 1:
            sample["per_token"] = (self._now() - prefilled) / (new_tokens - 1)
        states = [state for layer in cache.layers for state in (layer.keys, layer.values)]
        return TransformersAnswer(sample, first, sum(state.nbytes for state in states))

    def _step(self, embeds: Tensor, positions: Tensor, cache: Any) -> int:
        """Take tokens in; the argmax of the logits after them."""
        hidden = self._torch_half.decode(self.model, embeds, positions, cache)
        return int(self._language.head(hidden[:, -1]).argmax())

    def _sent(self, values: NDArray[np.int64]) -> Tensor:
        """Values on the device."""
        return torch.from_numpy(values).to(self.device)

    def _now(self) -> float:
        """The time, when all that was given to the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
