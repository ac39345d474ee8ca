"""`keep`: how many visual tokens a request keeps, and which, once they are ranked."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import AutoKeep
from foveate.errors import KeepError
from foveate.families.base import VisualInput
from foveate.runtime.checks import shown

Rank = Literal["together", "each"]
"""Whether the pictures of a request share one budget, or each has its own."""
AUTO: Final = "auto"
Keep = float | int | Literal["auto"]
"""A ratio, a count, or the fewest tokens that hold a share of the relevance."""
KEEP_FIX = (
    "give a ratio in (0, 1] such as 0.25, a count of visual tokens from 2 on, or 1 for all "
    "(a single token can be named with kept=[...])"
)
REQUEST_FIX = KEEP_FIX.replace("or 1 for all", "1 for all, or 'auto'")

NOT_CALIBRATED = (
    "keep is 'auto', and this bundle does not say what that keeps; export it with an f_θ that "
    "`foveate calibrate auto-keep` was run on, or with --auto-keep, or give a ratio such as 0.25"
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which visual tokens a request keeps, as far as that is known before they are ranked.

    Attributes:
        total: Visual tokens of the request, N_v.
        count: How many of them are kept, K; those that may not be dropped are among them. Where the
            relevance decides, the most that may be kept.
        indices: int64 [K], their ordinals, ascending; None where the ranking decides.
        candidates: bool [N_v], which may be dropped.
        groups: int64 [N_v], the budget that each token counts to; None where all share one.
        budgets: int64 [groups], how many candidates each budget keeps, or keeps at most.
        floors: int64 [groups], how many it keeps at least.
        share: The share of its relevance that each budget is to hold, with the fewest tokens; None where
            each keeps all that it may.
    """

    total: int
    count: int
    indices: NDArray[np.int64] | None
    candidates: NDArray[np.bool_]
    groups: NDArray[np.int64] | None
    budgets: NDArray[np.int64]
    floors: NDArray[np.int64]
    share: float | None = None

    @property
    def is_top_k(self) -> bool:
        """Whether the kept tokens are the `count` best of all, which a graph can find by itself."""
        decided = self.indices is not None or self.share is not None
        return not decided and self.groups is None and bool(self.candidates.all())

    @property
    def ranked_count(self) -> int:
        """How many tokens a graph that ranks is to keep: one where they are chosen from its scores."""
        return self.count if self.is_top_k else 1

    def choose(
        self, scores: NDArray[np.floating], relevance: NDArray[np.floating] | None = None
    ) -> NDArray[np.int64]:
        """The tokens to keep.

        Args:
            scores: [N_v], by which they are ranked; of equal ones the first.
            relevance: [N_v], not negative: what each of them holds; None takes every budget as full.

        Returns:
            int64 [K], their ordinals, ascending.
        """
        kept = ~self.candidates
        for group, budget in enumerate(self.budgets):
            shared = True if self.groups is None else self.groups == group
            members = np.flatnonzero(self.candidates & shared)
            order = np.argsort(-scores[members], kind="stable")
            if self.share is not None and relevance is not None:
                needed = fewest(relevance[members[order]], self.share)
                budget = min(max(needed, self.floors[group]), budget)
            kept[members[order[:budget]]] = True
        return np.flatnonzero(kept)


def fewest(relevance: NDArray[np.floating], share: float) -> int:
    """How many of the first tokens hold a share of what all of them hold.

    Args:
        relevance: [N], not negative, in the order in which tokens are taken.
        share: In (0, 1].
    """
    held = np.cumsum(relevance, dtype=np.float64)
    if not len(held) or held[-1] <= 0:
        return len(held)
    # Sums are not exact: the last value is all of it.
    return min(int(np.searchsorted(held, share * held[-1])) + 1, len(held))


def check_default(keep: Keep) -> None:
    """Refuse a bundle's default that is none.

    Raises:
        KeepError: It is neither a ratio in (0, 1] nor "auto".
    """
    if keep != AUTO and not (isinstance(keep, float | int) and 0 < keep <= 1):
        raise KeepError(f"keep is {keep}; the default must be a ratio in (0, 1], or auto")


def check_auto(auto: AutoKeep) -> None:
    """Refuse what keep="auto" cannot keep.

    Raises:
        KeepError: A share or a bound that is not in (0, 1], or bounds the wrong way round.
    """
    if not all(0 < value <= 1 for value in (auto.share, auto.least, auto.most)):
        raise KeepError(f"{_told(auto)}; each must be in (0, 1]")
    if auto.least > auto.most:
        raise KeepError(f"{_told(auto)}; the least must not be over the most")


def _told(auto: AutoKeep) -> str:
    """What keep="auto" keeps, in a clause."""
    return f"auto keeps a share of {auto.share}, at least {auto.least} and at most {auto.most}"


def parse_auto(text: str) -> AutoKeep:
    """Read what keep="auto" keeps from a command line: "0.95,0.02,0.5", share, least and most.

    Raises:
        KeepError: No three numbers in (0, 1], or bounds the wrong way round.
    """
    try:
        share, least, most = map(float, text.split(","))
    except ValueError:
        raise KeepError(
            f"auto-keep is {text!r}; give SHARE,LEAST,MOST, such as 0.95,0.02,0.5"
        ) from None
    auto = AutoKeep(share=share, least=least, most=most)
    check_auto(auto)
    return auto


def parse_default(text: str) -> Keep:
    """Read a bundle's default from a command line: a ratio, or "auto".

    Raises:
        KeepError: Neither.
    """
    if text.strip() == AUTO:
        return AUTO
    try:
        ratio = float(text)
    except ValueError:
        raise KeepError(
            f"keep is {text!r}; the default must be a ratio in (0, 1], or auto"
        ) from None
    check_default(ratio)
    return ratio


def select(
    visual: VisualInput,
    keep: Keep,
    kept: Iterable[int] | None = None,
    rank: Rank = "together",
    auto: AutoKeep | None = None,
) -> Selection:
    """What a request keeps of its visual tokens.

    Args:
        visual: Its pictures.
        keep: A ratio or a count of the tokens that may be dropped, or "auto"; see `checked_request_keep`.
            With "each" of every picture, where a count takes all of a picture that has fewer.
        kept: The tokens to keep, by their ordinals, in place of a ranking.
        rank: "together" or "each".
        auto: What "auto" keeps; None where that is not known.

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
        return Selection(total, len(indices), indices, candidates, groups, sizes, sizes)
    keep, share = checked_request_keep(keep), None
    if keep == AUTO:
        if auto is None:
            raise KeepError(NOT_CALIBRATED)
        share, floors = auto.share, _ratios_of(auto.least, sizes)
        budgets = _ratios_of(auto.most, sizes)
    elif rank == "each" and isinstance(keep, int):
        floors = budgets = np.minimum(kept_count(keep, int(sizes.max(initial=0))), sizes)
    else:
        floors = budgets = _ratios_of(keep, sizes)
    everything = np.arange(total) if floors.sum() == sizes.sum() else None
    count = int(budgets.sum() + total - sizes.sum())
    return Selection(total, count, everything, candidates, groups, budgets, floors, share)


def _ratios_of(keep: float | int, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of each size a ratio or a count is."""
    return np.array([kept_count(keep, int(size)) if size else 0 for size in sizes])


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


def checked_request_keep(keep: object) -> Keep:
    """`keep` of a request: what `checked_keep` gives, or "auto".

    Raises:
        KeepError: Any other value.
    """
    if isinstance(keep, str) and keep == AUTO:
        return AUTO
    with contextlib.suppress(KeepError):
        return checked_keep(keep)
    raise KeepError(f"keep is {shown(keep)}; {REQUEST_FIX}")


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


def parse_request_keep(text: str) -> Keep:
    """Read the `keep` of a request from a command line: what `parse_keep` takes, or "auto".

    Raises:
        KeepError: None of them.
    """
    if text.strip() == AUTO:
        return AUTO
    with contextlib.suppress(KeepError):
        return parse_keep(text)
    raise KeepError(f"keep is {text!r}; {REQUEST_FIX}")
