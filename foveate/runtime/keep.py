"""`keep`: how many visual tokens a request keeps, and which, once they are ranked."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.errors import KeepError
from foveate.families.base import VisualInput
from foveate.runtime.checks import shown

Rank = Literal["together", "each"]
"""Whether the pictures of a request share one budget, or each has its own."""
KEEP_FIX = (
    "give a ratio in (0, 1] such as 0.25, a count of visual tokens from 2 on, or 1 for all "
    "(a single token can be named with kept=[...])"
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which visual tokens a request keeps, as far as that is known before they are ranked.

    Attributes:
        total: Visual tokens of the request, N_v.
        count: How many of them are kept, K; those that may not be dropped are among them.
        indices: int64 [K], their ordinals, ascending; None where the ranking decides.
        candidates: bool [N_v], which may be dropped.
        groups: int64 [N_v], the budget that each token counts to; None where all share one.
        budgets: int64 [groups], how many candidates each budget keeps.
    """

    total: int
    count: int
    indices: NDArray[np.int64] | None
    candidates: NDArray[np.bool_]
    groups: NDArray[np.int64] | None
    budgets: NDArray[np.int64]

    @property
    def is_top_k(self) -> bool:
        """Whether the kept tokens are the `count` best of all, which a graph can find by itself."""
        return self.indices is None and self.groups is None and bool(self.candidates.all())

    def choose(self, scores: NDArray[np.floating]) -> NDArray[np.int64]:
        """The kept tokens' ordinals int64 [K], ascending, by scores [N_v]; of equal ones the first."""
        kept = ~self.candidates
        for group, budget in enumerate(self.budgets):
            shared = True if self.groups is None else self.groups == group
            members = np.flatnonzero(self.candidates & shared)
            order = np.argsort(-scores[members], kind="stable")
            kept[members[order[:budget]]] = True
        return np.flatnonzero(kept)


def check_ratio(keep: float) -> None:
    """Refuse a bundle's default ratio that is none.

    Raises:
        KeepError: It is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise KeepError(f"keep is {keep}; the default ratio must be in (0, 1]")


def select(
    visual: VisualInput,
    keep: float | int,
    kept: Iterable[int] | None = None,
    rank: Rank = "together",
) -> Selection:
    """What a request keeps of its visual tokens.

    Args:
        visual: Its pictures.
        keep: A ratio or a count of the tokens that may be dropped; see `checked_keep`. With "each" of
            every picture, where a count takes all of a picture that has fewer.
        kept: The tokens to keep, by their ordinals, in place of a ranking.
        rank: "together" or "each".

    Raises:
        KeepError: A `keep` or `kept` that there cannot be.
    """
    candidates, total = visual.candidates, visual.tokens
    if rank not in ("together", "each"):
        raise KeepError(f"rank is {rank!r}; give 'together' or 'each'")
    groups, sizes = None, np.array([candidates.sum()])
    if rank == "each":
        pictures, groups = np.unique(visual.picture, return_inverse=True)
        sizes = np.bincount(groups[candidates], minlength=len(pictures))
    if kept is not None:
        indices = _checked_indices(kept, candidates)
        return Selection(total, len(indices), indices, candidates, groups, sizes)
    keep = checked_keep(keep)
    if rank == "each" and isinstance(keep, int):
        budgets = np.minimum(kept_count(keep, int(sizes.max(initial=0))), sizes)
    else:
        budgets = np.array([kept_count(keep, int(size)) if size else 0 for size in sizes])
    count = int(budgets.sum() + total - sizes.sum())
    everything = np.arange(total) if count == total else None
    return Selection(total, count, everything, candidates, groups, budgets)


def _checked_indices(kept: Iterable[int], candidates: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The ordinals to keep, ascending, with those that may not be dropped; KeepError for odd ones."""
    chosen = np.array(list(kept))
    total = len(candidates)
    fix = f"give ordinals of visual tokens, whole numbers from 0 to {total - 1}, each once"
    if not chosen.size or chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise KeepError(f"kept names no visual tokens; {fix}")
    if chosen.min() < 0 or chosen.max() >= total or len(np.unique(chosen)) < len(chosen):
        raise KeepError(f"kept has a number that is no visual token's, or one twice; {fix}")
    wanted = ~candidates
    wanted[chosen] = True
    return np.flatnonzero(wanted)


def checked_keep(keep: object) -> float | int:
    """`keep` as a ratio or a count of Python's own types; 1, which is all tokens, as the ratio 1.0.

    Args:
        keep: A ratio in (0, 1], or a whole number: 1 for all, or a count from 2 on. Numbers of numpy
            and fractions are taken too.

    Raises:
        KeepError: Any other value.
    """
    if not isinstance(keep, bool) and isinstance(keep, Integral):
        count = int(keep)
        if count >= 1:
            return 1.0 if count == 1 else count
    elif not isinstance(keep, bool) and isinstance(keep, Real):
        with contextlib.suppress(OverflowError):
            ratio = float(keep)
            if 0 < ratio <= 1:
                return ratio
    raise KeepError(f"keep is {shown(keep)}; {KEEP_FIX}")


def kept_count(keep: object, total: int) -> int:
    """How many of `total` visual tokens `keep` asks for.

    Args:
        keep: What `checked_keep` takes. A ratio keeps at least one token and rounds halves up.
        total: Visual tokens of the request; a count may not be above it.

    Raises:
        KeepError: Any other value.
    """
    checked = checked_keep(keep)
    if isinstance(checked, float):
        return max(1, math.floor(total * checked + 0.5))
    if checked > total:
        raise KeepError(
            f"keep is {checked} tokens and the request has {total}; give a ratio in (0, 1], a count "
            f"up to {total}, or 1 for all"
        )
    return checked


def parse_keep(text: str) -> float | int:
    """Read `keep` from a command line: "0.25" is a ratio, "300" a count, "1" all tokens.

    Raises:
        KeepError: Neither a ratio nor a count.
    """
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return checked_keep(number(text))
    raise KeepError(f"keep is {text!r}; {KEEP_FIX}")
