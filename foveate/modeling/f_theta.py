"""f_θ: the small convolutional network that turns first-layer attention into relevance (paper, appendix B)."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from foveate.atomic_write import replace_file
from foveate.bundle.manifest import AutoKeep
from foveate.bundle.words import WORDS, Words
from foveate.errors import CheckpointError, KeepError
from foveate.modeling.word_weights import WordWeights
from foveate.runtime.keep import check_auto

CHANNELS = (32, 64, 128, 256, 512)
KERNEL = 3
MOST_CHANNELS = 1024
EPSILON = 1e-4

Inputs = Literal["mean", "heads"]
Scaling = Literal["none", "log"]

SCALINGS: dict[str, Callable[[Tensor, int | Tensor], Tensor]] = {
    "none": lambda attention, count: attention,
    "log": lambda attention, count: torch.log(attention * count + EPSILON),
}
"""What attention becomes before the first convolution, by its name and the count N_v of tokens.
"none" is the paper's; "log" takes out how attention thins as N_v grows, and learns faster."""


class FTheta(nn.Module):
    """Five depthwise-separable 1-D convolutions and a last pointwise one; any length in, the same length out.

    Attributes:
        channels_in: 1 reads A_v⁰, the paper's input; more read that many heads apart.
        scaling: One of `SCALINGS`.
        words: How the instruction's tokens are weighed in what it reads.
    """

    def __init__(
        self, channels_in: int = 1, scaling: Scaling = "none", words: Words = "mean"
    ) -> None:
        super().__init__()
        self.channels_in = channels_in
        self.scaling = scaling
        self.words = WordWeights(words)
        widths = (channels_in, *CHANNELS)
        self.depthwise = nn.ModuleList(
            nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
            for width in widths[:-1]
        )
        self.pointwise = nn.ModuleList(
            nn.Conv1d(width, wider, 1) for width, wider in pairwise(widths)
        )
        self.head = nn.Conv1d(CHANNELS[-1], 1, 1)

    def pool(self, attention: Tensor) -> Tensor:
        """What `forward` takes of one request's attention.

        Args:
            attention: float32 [heads, N_u, N_v], from each instruction token to each visual token.

        Returns:
            float32 [N_v], its mean over heads, summed over the instruction's tokens by their weights;
            [heads, N_v] where heads are read apart.

        Raises:
            CheckpointError: It reads the heads of another model.
        """
        self.check_heads(attention.shape[0])
        return self.words.pool(attention, apart=self.channels_in > 1)

    def check_heads(self, heads: int) -> None:
        """CheckpointError where it reads the heads of a model that has another number of them."""
        if self.channels_in not in (1, heads):
            raise CheckpointError(
                f"this f_θ reads {self.channels_in} heads and the model has {heads}; "
                "train one on this checkpoint (foveate calibrate train)"
            )

    def scale(self, attention: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply the scaling to what `forward` takes; N_v is what the mask leaves of each row."""
        count = attention.shape[-1] if mask is None else mask.sum(-1, keepdim=True)
        if isinstance(count, Tensor) and attention.dim() == 3:
            count = count.unsqueeze(1)
        return SCALINGS[self.scaling](attention, count)

    def forward(self, attention: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predict the logits of visual relevance (Eq. 2 before its softmax).

        Args:
            attention: float32 [B, N_v], the mean first-layer attention A_v⁰ of each visual token;
                [B, channels_in, N_v] where heads are read apart.
            mask: bool [B, N_v], false where a row holds no token; None where all rows are full.

        Returns:
            float32 [B, N_v]; their softmax is the predicted relevance. -inf outside the mask.
        """
        scaled = self.scale(attention, mask)
        scaled = scaled if scaled.dim() == 3 else scaled.unsqueeze(1)
        return self.convolve(scaled) if mask is None else self.convolve_masked(scaled, mask)

    def convolve(self, hidden: Tensor) -> Tensor:
        """Scaled attention float32 [B, channels_in, N_v] to logits [B, N_v]."""
        for depthwise, pointwise in self._layers():
            hidden = torch.relu(pointwise(depthwise(hidden)))
        logits: Tensor = self.head(hidden).squeeze(1)
        return logits

    def convolve_masked(self, scaled: Tensor, mask: Tensor) -> Tensor:
        """`convolve` for rows with holes, and much the faster of the two in training on a CPU.

        Each run of tokens without a hole gives what it gives alone: what stands outside the mask is
        zero before every convolution, as its own padding would be. So one row can hold many
        sequences with a hole between each two.

        Args:
            scaled: float32 [B, channels_in, N].
            mask: bool [B, N].

        Returns:
            float32 [B, N], -inf outside the mask.
        """
        rows, length = mask.shape
        outside = mask.logical_not().flatten().nonzero().squeeze(1)
        hidden = scaled.masked_fill(mask.logical_not().unsqueeze(1), 0)
        for depthwise, pointwise in self._layers():
            mixed = conv2d(
                hidden.unsqueeze(2).contiguous(memory_format=torch.channels_last),
                depthwise.weight.unsqueeze(2),
                depthwise.bias,
                padding=(0, KERNEL // 2),
                groups=hidden.shape[1],
            )
            tokens = mixed.squeeze(2).transpose(1, 2).flatten(0, 1)
            wide = linear(tokens, pointwise.weight.squeeze(2), pointwise.bias)
            wide = wide.index_fill_(0, outside, 0).relu_()
            hidden = wide.view(rows, length, -1).transpose(1, 2)
        logits = linear(hidden.transpose(1, 2), self.head.weight.squeeze(2), self.head.bias)
        return logits.squeeze(2).masked_fill(mask.logical_not(), float("-inf"))

    def merged(self) -> list[tuple[Tensor, Tensor]]:
        """Each layer's two convolutions as the one that they equal: weight [out, in, 3] and bias [out]."""
        layers = []
        for depthwise, pointwise in self._layers():
            assert depthwise.bias is not None and pointwise.bias is not None
            point = pointwise.weight.detach().double()[..., 0]
            weight = point[:, :, None] * depthwise.weight.detach().double()[None, :, 0]
            bias = point @ depthwise.bias.detach().double() + pointwise.bias.detach().double()
            layers.append((weight.float(), bias.float()))
        return layers

    def _layers(self) -> Iterable[tuple[nn.Conv1d, nn.Conv1d]]:
        """Each layer's depthwise and pointwise convolution."""
        return zip(self.depthwise, self.pointwise, strict=True)  # type: ignore[arg-type]

    def save(self, path: Path, facts: dict[str, str], *, force: bool = True) -> None:
        """Write the weights as safetensors with `facts` (trained on, figures) in the header.

        Raises:
            OutputError: The disk did not take it, or it is there and `force` was not given.
        """
        replace_file(path, self.serialized(facts), force=force)

    def serialized(self, facts: dict[str, str]) -> bytes:
        """The bytes of the file that `save` writes."""
        form = {
            "channels_in": str(self.channels_in),
            "scaling": self.scaling,
            "words": self.words.form,
        }
        return bytes(save(self.state_dict(), {**facts, "kind": "f_theta", **form}))

    @classmethod
    def load(cls, path: Path) -> tuple["FTheta", dict[str, str]]:
        """Read what `save` wrote.

        Raises:
            CheckpointError: No such file, or not the weights of an f_θ.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                facts = dict(sorted((file.metadata() or {}).items()))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: no readable safetensors file ({error})") from error
        if facts.pop("kind", None) != "f_theta":
            raise CheckpointError(
                f"{path}: not an f_θ file; make one with `foveate calibrate train`"
            )
        channels, scaling = facts.pop("channels_in", "1"), facts.pop("scaling", "none")
        if not channels.isdecimal() or not 1 <= int(channels) <= MOST_CHANNELS:
            raise CheckpointError(f"{path}: an f_θ of {channels} channels; train it anew")
        if scaling not in SCALINGS:
            raise CheckpointError(
                f"{path}: an f_θ of an unknown scaling, {scaling}; train it anew, with one of "
                f"{', '.join(SCALINGS)}"
            )
        words = facts.pop("words", "mean")
        if words not in WORDS:
            raise CheckpointError(
                f"{path}: an f_θ whose words are weighed in an unknown way, {words}; train it anew, with "
                f"one of {', '.join(WORDS)}"
            )
        network = cls(int(channels), scaling, words)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not the weights of an f_θ ({error})") from error
        return network.eval(), facts


def auto_keep_facts(auto: AutoKeep) -> dict[str, str]:
    """What the header of an f_θ says of keep="auto"."""
    return {f"auto.{name}": repr(getattr(auto, name)) for name in AutoKeep.__struct_fields__}


def auto_keep_of(facts: dict[str, str]) -> AutoKeep | None:
    """What an f_θ's header says of keep="auto"; None where it was not calibrated.

    Raises:
        CheckpointError: It is damaged.
    """
    found = {name: facts.get(f"auto.{name}") for name in AutoKeep.__struct_fields__}
    if not any(found.values()):
        return None
    try:
        auto = AutoKeep(**{name: float(value or "none") for name, value in found.items()})
        check_auto(auto)
    except (ValueError, KeepError) as error:
        raise CheckpointError(
            f"the f_θ's header says of keep='auto' what cannot be ({error}); run `foveate calibrate "
            "auto-keep` again"
        ) from error
    return auto
