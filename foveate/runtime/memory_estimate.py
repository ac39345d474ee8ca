"""How much memory a request takes at its peak, told from its sizes before it runs."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from foveate.bundle.onnx_file import weight_shapes
from foveate.bundle.reader import Bundle
from foveate.errors import LimitError
from foveate.machine import available_memory, resident
from foveate.runtime.language.base import token_bytes

VISION_ROWS = 9
"""Rows as wide as the vision tower that are held at once for each patch: measured."""
DECODER_ROWS = 4
"""Rows as wide as the decoder's widest product that are held at once for each token: measured."""
VISION_SCORES = 1 << 22
"""How many attention scores, or numbers between the products of an MLP, the vision graph holds at once.

Never less than one head's of one patch.
"""
SCORES_HELD = 3
"""Scores are held before and after softmax, and once more while they are computed."""
FLOAT = 4
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks of the graphs, in tokens.

    Attributes:
        visual: Visual tokens of all pictures.
        largest: Rows of the largest run of the vision graph; 0 where the pictures were encoded before.
        rows: Rows of all runs, of which the visual tokens are summed; 0 where they are those themselves.
        text: Text tokens.
        instruction: Those of them that rank the visual tokens.
        kept: Visual tokens that are kept.
        new: The most tokens of the answer.
    """

    visual: int
    largest: int = 0
    rows: int = 0
    text: int = 0
    instruction: int = 0
    kept: int = 0
    new: int = 0


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What a bundle's graphs of standard operators take in host memory, for each token.

    Attributes:
        hidden: Numbers of a token's embedding.
        heads: The language model's.
        vision_width: Numbers of a patch in the vision tower.
        decoder_width: The decoder's, but for the one that gives logits.
        patches: Of a row of the vision graph.
        cache: Bytes of keys and values of a token.
        scores: The most attention scores that the vision graph holds.
        chunk: How many tokens of a prompt of a length are taken in by a run.
    """

    hidden: int
    heads: int
    vision_width: int
    decoder_width: int
    patches: float
    cache: int
    scores: int
    chunk: Callable[[int], int]

    @classmethod
    def of(
        cls, bundle: Bundle, dtype: str, scores: int, chunk: Callable[[int], int]
    ) -> "MemoryModel":
        """Read the widths off a bundle's graphs; `dtype` is the caches'."""
        model = bundle.manifest.model
        vision, decoder = (
            [
                shape
                for shape in weight_shapes(bundle.file(role))
                if len(shape) == 2 and model.vocabulary not in shape
            ]
            for role in ("vision", "decoder")
        )
        # Most square weights are projections of attention; of as many of two widths, the narrower ones.
        squares = Counter(wide for high, wide in vision if high == wide > 1)
        return cls(
            model.hidden_size,
            model.heads,
            max(sorted(squares), key=squares.__getitem__, default=model.hidden_size),
            max((max(shape) for shape in decoder), default=model.hidden_size),
            _patches(bundle),
            token_bytes(model, dtype),
            scores,
            chunk,
        )

    def stages(self, work: Work) -> dict[str, int]:
        """Bytes that each stage takes at its peak, with what earlier ones left."""
        row = self.hidden * FLOAT
        whole, kept = work.visual + work.text, work.kept + work.text
        rows, part = work.largest * self.patches, self.chunk(kept) if kept else 0
        # Rows are concatenated; or summed, and each token's sum is there twice while it is added to.
        held = 2 * work.rows + 3 * work.visual if work.rows else 2 * work.visual
        vision = rows * VISION_ROWS * self.vision_width * FLOAT
        prefill = part * DECODER_ROWS * self.decoder_width * FLOAT
        return {
            "vision": int(vision)
            + (SCORES_HELD * self.scores * FLOAT + held * row if work.largest else 0),
            "compressor": 6 * whole * row
            + SCORES_HELD * self.heads * work.instruction * whole * FLOAT,
            "prefill": prefill
            + SCORES_HELD * self.heads * part * kept * FLOAT
            + (work.visual + 2 * kept) * row
            + 2 * kept * self.cache,
            "decoding": work.visual * row + 2 * (kept + work.new) * self.cache,
        }

    def peak(self, works: Sequence[Work]) -> int:
        """Bytes that requests take which are answered together: the largest stage, and all caches."""
        caches = sum((work.kept + work.text + work.new) * self.cache for work in works)
        most = max(range(len(works)), key=lambda place: max(self.stages(works[place]).values()))
        own = (works[most].kept + works[most].text + works[most].new) * self.cache
        return max(self.stages(works[most]).values()) + 2 * (caches - own)


def _patches(bundle: Bundle) -> float:
    """How many patches a row of the vision graph stands for."""
    axes = {axis for tensor in bundle.graph("vision").inputs for axis in tensor.shape}
    ranges = bundle.manifest.vision_axes.items()
    return max((one.per_token for name, one in ranges if name in axes), default=0) or 1


def check_memory(model: MemoryModel, works: Sequence[Work], room: int, whose: str) -> None:
    """Refuse requests that would take more memory than there is.

    Args:
        model: What the graphs take.
        works: The requests; several are answered together.
        room: Bytes that may be taken.
        whose: What sets the limit, for the message.

    Raises:
        LimitError: They would; it says how much they take and what size would do.
    """
    needed = model.peak(works)
    if needed <= room:
        return
    stages = [model.stages(work) for work in works]
    stage = max(stages[0], key=lambda name: max(one[name] for one in stages))
    raise LimitError(
        f"the {'requests take' if len(works) > 1 else 'request takes'} about {shown(needed)} more "
        f"memory at the peak, most in {stage}, and {whose} has {shown(room)} left; "
        f"{' or '.join(_remedies(model, works, room))}"
    )


def _remedies(model: MemoryModel, works: Sequence[Work], room: int) -> Iterator[str]:
    """What would make requests fit: a size that does, or what to do where none does."""
    if len(works) > 1 and all(model.peak([work]) <= room for work in works):
        most = next(n for n in range(len(works), 0, -1) if model.peak(works[:n]) <= room)
        yield f"ask {most} at a time"
        return

    def keeping(count: int) -> list[Work]:
        return [replace(work, kept=min(work.kept, count)) for work in works]

    def seeing(count: int) -> list[Work]:
        return [
            replace(
                work,
                visual=min(work.visual, count),
                largest=min(work.largest, count),
                rows=work.rows * min(work.visual, count) // max(work.visual, 1),
                kept=min(work.kept, count),
            )
            for work in works
        ]

    kept = _most(max(work.kept for work in works), lambda n: model.peak(keeping(n)) <= room)
    visual = _most(max(work.visual for work in works), lambda n: model.peak(seeing(n)) <= room)
    if kept:
        yield f"keep at most {kept} visual tokens"
    elif visual:
        total = max(work.visual for work in works)
        yield (
            f"use fewer or smaller pictures, of at most {visual} visual tokens in place of {total}"
        )
    else:
        yield "no smaller picture would do: shorten the prompt and the answer"
    yield "give it more memory"


def _most(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number below `high` that fits; 0 where none does."""
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def memory_room(limit: int | None) -> tuple[int, str]:
    """Bytes that may still be taken, and what sets that limit, in words.

    Args:
        limit: The most that the process is to hold; None for what the machine has.
    """
    available = available_memory()
    room, whose = sys.maxsize if available is None else available, "this machine"
    if limit is not None and limit - (resident() or 0) < room:
        room, whose = limit - (resident() or 0), f"the limit of {shown(limit)}"
    return room, whose


def parse_memory(limit: int | str | None) -> int | None:
    """Bytes of a limit such as 2000000000, "2GB" or "1.5 GiB".

    Raises:
        LimitError: It is neither, or not above 0.
    """
    if limit is None:
        return None
    if isinstance(limit, int) and not isinstance(limit, bool):
        count = limit
    else:
        found = (
            re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", limit)
            if isinstance(limit, str)
            else None
        )
        if found is None or found[2].upper() not in UNITS:
            raise LimitError(
                f"memory_limit is {limit!r}; give bytes, or a number and a unit, such as 2GB or 1.5GiB"
            )
        count = int(float(found[1]) * UNITS[found[2].upper()])
    if count < 1:
        raise LimitError(f"memory_limit is {limit!r}; give more than 0 bytes")
    return count


def shown(count: int) -> str:
    """Bytes as a person reads them."""
    count = max(0, count)
    return f"{count / 10**9:.1f} GB" if count >= 10**9 else f"{count / 10**6:.0f} MB"
