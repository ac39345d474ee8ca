"""What export, calibration and benchmarks need of a model family in torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.types import Device
from transformers import DynamicCache

from foveate.bundle.manifest import AxisRange, ModelFacts
from foveate.families.base import VisualInput
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.language_model import Language

Processed = Mapping[str, NDArray[Any]]
"""Pictures as transformers' own image processor gives them."""
Processor = Callable[[list[Image]], Processed]


@dataclass(frozen=True, slots=True)
class VisionModule:
    """What becomes the vision graph of standard operators.

    Attributes:
        module: Gives the visual tokens E_v [N_v, H].
        inputs: By the names of `Call.inputs` an example, each free axis of a size of its own above 1,
            and the names of its free axes.
        ranges: How the size of each named axis follows from the request; where the output's rows are
            summed to visual tokens, also of
            `ROWS`, their number over all runs.
    """

    module: nn.Module
    inputs: dict[str, tuple[Tensor, dict[int, str]]]
    ranges: dict[str, AxisRange]


class TorchFamily(Protocol):
    """The torch half of one model family; `model` is always what its `load` or `blank` gave.

    Attributes:
        taps: The most rows of the vision graph's output that make up a visual token; 0 where each row is
            one, and there is no graph that sums them.
    """

    @property
    def taps(self) -> int:
        """See the class."""
        ...

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse settings of a checkpoint that cannot be honoured, before its weights are read.

        Raises:
            CheckpointError: There is one; the message names file and field.
        """
        ...

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> Any:
        """Load the weights as `dtype`, on the CPU.

        Args:
            checkpoint: An opened checkpoint of the family.
            dtype: Of the weights.
            attention: How attention is computed, as transformers names it.

        Raises:
            CheckpointError: Weights missing or unreadable, or a feature that Foveate does not have.
        """
        ...

    def blank(
        self, checkpoint: Checkpoint, dtype: torch.dtype, attention: str, device: Device = "cpu"
    ) -> Any:
        """Build the model with random weights, of which only config.json is read; as `load` otherwise.

        Raises:
            CheckpointError: config.json describes none, or asks for a feature that Foveate does not have.
        """
        ...

    def set_attention(self, model: Any, attention: str) -> None:
        """Let the language model alone compute attention by this name."""
        ...

    def facts(self, model: Any) -> ModelFacts:
        """The sizes that the manifest records."""
        ...

    def context(self, model: Any) -> int:
        """The longest sequence that the language model was made for, in tokens."""
        ...

    def tokens(self, checkpoint: Checkpoint, model: Any, tokenizer: Tokenizer) -> dict[str, int]:
        """Ids of the control tokens that the family's prompt layout needs, by role.

        Raises:
            CheckpointError: The tokenizer lacks one.
        """
        ...

    def language(self, model: Any) -> Language:
        """The parts of the language model."""
        ...

    def decode(self, model: Any, embeds: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Run the language model by transformers' own code.

        Args:
            model: The model.
            embeds: [B, S, H].
            positions: int64 [A, B, S].
            cache: Keys and values of what came before; grows by S tokens.

        Returns:
            [B, S, H], after the last norm.
        """
        ...

    def features(self, model: Any, visual: VisualInput) -> Tensor:
        """The real rows of the vision graph's output, over all calls: [R, H]; by transformers' own code."""
        ...

    def encode(self, model: Any, visual: VisualInput) -> Tensor:
        """Visual tokens E_v [N_v, H] by transformers' own code, of a family made without `levels`."""
        ...

    def encode_processed(self, model: Any, processed: Processed) -> Tensor:
        """Visual tokens E_v [N_v, H] by transformers' own code, of its own image processor's output."""
        ...

    def processor(self, checkpoint: Checkpoint) -> Processor:
        """Transformers' own image processor, the one that needs nothing beside Pillow and numpy."""
        ...

    def processed(self, model: Any, visual: VisualInput) -> Processed:
        """Prepared pictures or videos as transformers' image processor would give them."""
        ...

    def vision_module(self, model: Any) -> VisionModule:
        """What becomes the vision graph of standard operators; changes how `model` computes it."""
        ...

    def contrib_vision(self, model: Any, preprocessing: Mapping[str, Any]) -> ir.Model:
        """The vision graph of onnxruntime's contrib operators, which takes 8-bit levels.

        Args:
            model: The model.
            preprocessing: What `families.settings_from_checkpoint` gave.

        Raises:
            BundleError: Settings that are wrong.
            ExportError: A part that contrib operators cannot compute.
        """
        ...
