"""Examples: stored samples made ready to train on, split by picture, and packed into rows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.bundle.words import Words
from foveate.calibration.relevance.store import Sample
from foveate.calibration.training.labels import MakeLabel
from foveate.errors import DataError
from foveate.modeling.f_theta import FTheta, Inputs, Scaling

PACK_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as f_θ sees it.

    Attributes:
        pictures: As the data set names them.
        features: float32 [channels_in, N_v], attention pooled and scaled.
        label: float32 [N_v], R_v*.
        relevance: float32 [N_v], R_v.
        attention: float32 [N_v], A_v⁰.
        words: float32 [1, N_u, N_v], what is pooled anew in every step; None where that changes nothing.
    """

    pictures: tuple[str, ...]
    features: Tensor
    label: Tensor
    relevance: NDArray[np.float32]
    attention: NDArray[np.float32]
    words: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """A data set ready for training.

    Attributes:
        all: In the order of the samples.
        channels_in: What f_θ must read.
        skipped: How many samples had no label to make or attention that is not finite.
        digest: SHA-256 of everything above.
    """

    all: list[Example]
    channels_in: int
    skipped: int
    digest: str


@dataclass(frozen=True, slots=True)
class Pack:
    """Sequences end to end in one row, with a hole after each, and their labels one a row.

    Attributes:
        features: float32 [1, channels_in, T].
        mask: bool [1, T], false at the holes.
        labels: float32 [B, N], 0 after each sequence's end.
        inside: bool [B, N], false after each sequence's end.
    """

    features: Tensor
    mask: Tensor
    labels: Tensor
    inside: Tensor

    def to(self, device: torch.device) -> "Pack":
        """The same pack on a device."""
        return Pack(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def log_softmax(self, logits: Tensor) -> Tensor:
        """f_θ's logits [1, T] as log-probabilities [B, N], 0 after each sequence's end."""
        rows = logits.new_full(self.inside.shape, float("-inf"))
        rows[self.inside] = logits[self.mask]
        return torch.log_softmax(rows, -1).masked_fill(~self.inside, 0)


def prepare(
    samples: Iterable[Sample],
    inputs: Inputs,
    scaling: Scaling,
    make_label: MakeLabel,
    words: Words = "mean",
) -> Examples:
    """Make each sample's features and label.

    Raises:
        DataError: No sample can be trained on, or samples are of models with different heads.
    """
    digest = hashlib.sha256()
    examples: list[Example] = []
    skipped = heads = 0
    network: FTheta | None = None
    for sample in samples:
        digest.update(repr((sample.id, sample.pictures)).encode())
        digest.update(sample.relevance.tobytes() + sample.attention.tobytes())
        digest.update(sample.words.tobytes())
        target = make_label(sample)
        if target is None or not np.isfinite(sample.attention).all():
            skipped += 1
            continue
        if network is None:
            heads = len(sample.attention)
            network = FTheta(heads if inputs == "heads" else 1, scaling, words)
        if len(sample.attention) != heads:
            raise DataError(
                f"sample {sample.id!r} has attention of {len(sample.attention)} heads and others have "
                f"{heads}; make the relevance maps of one checkpoint anew"
            )
        by_head = torch.from_numpy(sample.attention)[:, None]
        source = by_head if words == "mean" else torch.from_numpy(sample.words)[None]
        pictures, wanted = sample.pictures or (sample.id,), torch.from_numpy(target)
        with torch.no_grad():
            features = pooled_features(network, source)
        attention = sample.attention.mean(0)
        again = source if words == "learned" else None
        examples.append(Example(pictures, features, wanted, sample.relevance, attention, again))
    if network is None:
        raise DataError(
            f"there is nothing to train on: no samples but {skipped} without usable relevance; "
            "make relevance maps of more questions (foveate calibrate relevance)"
        )
    return Examples(examples, network.channels_in, skipped, digest.hexdigest())


def pooled_features(network: FTheta, source: Tensor) -> Tensor:
    """What f_θ reads of attention [heads, N_u, N_v]: float32 [channels_in, N_v]."""
    pooled = network.pool(source)
    return network.scale(pooled[None])[0].reshape(network.channels_in, -1)


def pooled_anew(network: FTheta, examples: Sequence[Example]) -> list[Example]:
    """Examples with the features that a network's weights of words give now, where these are trained."""
    device = network.head.weight.device
    return [
        one
        if one.words is None
        else replace(one, features=pooled_features(network, one.words.to(device)))
        for one in examples
    ]


class Pictured(Protocol):
    """Something about pictures."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """As the data set names them."""
        ...


ONE = TypeVar("ONE", bound=Pictured)


def split(examples: Sequence[ONE], share: float, seed: int) -> tuple[list[ONE], list[ONE]]:
    """Part training from validation such that no picture is in both.

    Samples that share a picture stay together. A hash of the seed and the first picture's name
    decides, so that a picture stays on its side as others come and go; either side has at least
    one group.

    Args:
        examples: All of them.
        share: What part of the pictures to validate on, about, in (0, 1).
        seed: Another split for another seed.

    Raises:
        DataError: All samples share a picture.
    """
    groups = _groups(examples)
    order = sorted(groups, key=lambda name: _draw(name, seed))
    if len(order) < 2:
        raise DataError(
            "all samples are of one picture, so none is left to validate on; "
            "take questions about more pictures"
        )
    held = {name for name in order if _draw(name, seed) < share}
    held = (held | {order[0]}) - {order[-1]}
    chosen = {index for name in held for index in groups[name]}
    training = [example for index, example in enumerate(examples) if index not in chosen]
    return training, [examples[index] for index in sorted(chosen)]


def packs(examples: Iterable[Example], most: int = PACK_TOKENS) -> Iterator[Pack]:
    """Pack examples in their order, each pack of at most `most` tokens or of one example."""
    waiting: list[Example] = []
    tokens = 0
    for example in examples:
        length = len(example.label) + 1
        if waiting and tokens + length > most:
            yield pack(waiting)
            waiting, tokens = [], 0
        waiting.append(example)
        tokens += length
    if waiting:
        yield pack(waiting)


def pack(examples: Sequence[Example]) -> Pack:
    """Pack examples into one row."""
    labels = [example.label for example in examples]
    lengths = torch.tensor([len(label) for label in labels])
    hole = examples[0].features.new_zeros(len(examples[0].features), 1)
    mask = torch.ones(1, int(lengths.sum()) + len(examples), dtype=torch.bool)
    mask[0, (lengths + 1).cumsum(0) - 1] = False
    return Pack(
        torch.cat([part for example in examples for part in (example.features, hole)], 1)[None],
        mask,
        torch.nn.utils.rnn.pad_sequence(labels, batch_first=True),
        torch.arange(int(lengths.max())) < lengths[:, None],
    )


def _groups(examples: Sequence[Pictured]) -> dict[str, list[int]]:
    """Examples by the pictures they share, directly or through others, under the first one's name."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for example in examples:
        for picture in example.pictures:
            first, second = sorted((find(example.pictures[0]), find(picture)))
            parent[second] = first
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(find(example.pictures[0]), []).append(index)
    return groups


def _draw(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on name and seed alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
