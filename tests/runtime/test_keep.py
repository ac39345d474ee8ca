"""How many tokens are kept and which, as numbers alone."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from foveate.bundle.manifest import AutoKeep
from foveate.errors import KeepError
from foveate.families.base import VisualInput
from foveate.runtime.keep import (
    Rank,
    kept_count,
    parse_auto,
    parse_default,
    parse_keep,
    parse_request_keep,
    select,
)


def visual(sizes: list[int], fixed: tuple[int, ...] = ()) -> VisualInput:
    """Pictures of so many tokens, of which those of the ordinals `fixed` may not be dropped."""
    total = sum(sizes)
    candidates = np.ones(total, bool)
    candidates[list(fixed)] = False
    return VisualInput(
        calls=(),
        candidates=candidates,
        picture=np.repeat(np.arange(len(sizes)) * 2, sizes),
        boxes=np.zeros((total, 4), np.float32),
    )


def descending(total: int) -> np.ndarray[Any, Any]:
    """Scores that rank tokens from the last to the first."""
    return np.arange(total, dtype=np.float32)


# Counts


@pytest.mark.parametrize(
    ("keep", "total", "count"),
    [(0.25, 8, 2), (0.25, 10, 3), (0.25, 9, 2), (0.01, 8, 1), (1.0, 8, 8), (0.5, 1, 1), (3, 8, 3),
     (8, 8, 8), (np.int64(3), 8, 3), (np.float32(0.5), 8, 4), (Fraction(1, 4), 8, 2), (2, 8, 2),
     (1, 8, 8), (np.uint8(1), 8, 8), (np.float16(1), 8, 8), (1, 1, 1)],
)  # fmt: skip
def test_ratios_and_counts(keep: Any, total: int, count: int) -> None:
    assert kept_count(keep, total) == count
    found = select(visual([total]), keep)
    assert (found.total, found.count) == (total, count)


@pytest.mark.parametrize(
    "keep",
    [
        0,
        -1,
        9,
        0.0,
        1.5,
        2.0,
        float("nan"),
        float("inf"),
        True,
        np.True_,
        "0.5",
        None,
        Decimal("0.5"),
        [0.5],
        np.array([2]),
        1j,
        Fraction(10**400),
        np.float64("nan"),
        "1",
    ],
    ids=repr,
)
def test_what_is_no_count_is_refused(keep: Any) -> None:
    with pytest.raises(KeepError, match="give a ratio"):
        select(visual([8]), keep)


@pytest.mark.parametrize(
    ("text", "keep"), [("0.25", 0.25), ("300", 300), ("1", 1.0), (" 1 ", 1.0), ("1.0", 1.0)]
)
def test_keep_on_a_command_line(text: str, keep: float | int) -> None:
    assert parse_keep(text) == keep
    assert type(parse_keep(text)) is type(keep)
    with pytest.raises(KeepError, match=r"such as 0\.25"):
        parse_keep("much")


def test_one_is_all_in_python_and_on_a_command_line() -> None:
    for one in (1, 1.0, np.int64(1), parse_keep("1"), parse_keep("1.0")):
        for rank in ("together", "each"):
            assert select(visual([4, 6]), one, rank=rank).count == 10  # type: ignore[arg-type]
    assert select(visual([4, 6]), 1.0, kept=[3]).count == 1
    with pytest.raises(KeepError, match=r"named with kept=\[\.\.\.\]"):
        select(visual([8]), 0)


@pytest.mark.parametrize("wrong", ["0", "-1", "1.5", "nan", "inf", "", "1" * 5000, "0.5.1", "None"])
def test_no_keep_on_a_command_line(wrong: str) -> None:
    with pytest.raises(KeepError, match="keep is"):
        parse_keep(wrong)


# One budget


def test_one_budget_is_a_top_k_of_all() -> None:
    found = select(visual([4, 6]), 0.3)
    assert found.is_top_k and found.indices is None
    assert found.choose(descending(10)).tolist() == [7, 8, 9]
    assert found.choose(np.zeros(10)).tolist() == [0, 1, 2]
    assert found.choose(np.array([0, 5, 1, 5, 5, 0, 5, 2, 2, 2])).tolist() == [1, 3, 4]


def test_all_tokens_need_no_ranking() -> None:
    for rank in ("together", "each"):
        for keep in (1.0, 0.96) if rank == "together" else (1.0, 6):
            found = select(visual([4, 6]), keep, rank=rank)  # type: ignore[arg-type]
            assert not found.is_top_k and found.indices is not None
            assert found.indices.tolist() == list(range(10))
            assert found.count == 10


# Budgets of pictures


@pytest.mark.parametrize(
    ("keep", "budgets", "chosen"),
    [(0.5, [2, 3, 1], [2, 3, 7, 8, 9, 10]), (0.1, [1, 1, 1], [3, 9, 10]), (2, [2, 2, 1], [2, 3, 8, 9, 10]),
     (5, [4, 5, 1], [0, 1, 2, 3, 5, 6, 7, 8, 9, 10])],
)  # fmt: skip
def test_each_picture_has_a_budget(
    keep: float | int, budgets: list[int], chosen: list[int]
) -> None:
    found = select(visual([4, 6, 1]), keep, rank="each")
    assert not found.is_top_k
    assert found.budgets.tolist() == budgets
    assert found.count == sum(budgets)
    assert found.choose(descending(11)).tolist() == chosen


def test_a_count_beyond_the_largest_picture_is_refused() -> None:
    assert select(visual([4, 6]), 6, rank="each").count == 10
    with pytest.raises(KeepError, match="keep is 7 tokens and the request has 6"):
        select(visual([4, 6]), 7, rank="each")
    with pytest.raises(KeepError, match="give 'together' or 'each'"):
        select(visual([4]), 0.5, rank="apart")  # type: ignore[arg-type]


# As many as hold a share of the relevance

HALF = AutoKeep(share=0.5, least=0.1, most=0.6)


@pytest.mark.parametrize(
    ("relevance", "kept"),
    [
        ([0, 0, 0, 9, 0, 0, 0, 0, 0, 1], [3]),
        ([1] * 10, [0, 1, 2, 3, 4]),
        ([0.3, 0, 0, 0, 0, 0, 0, 0.3, 0.3, 0.1], [0, 7]),
        ([5, 0, 0, 0, 0, 0, 0, 0, 0, 5], [0]),
        ([0] * 10, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_fewest_that_hold_the_share(relevance: list[float], kept: list[int]) -> None:
    found = select(visual([10]), "auto", auto=HALF)
    assert (found.count, found.ranked_count, found.is_top_k, found.indices) == (6, 1, False, None)
    values = np.array(relevance, np.float32)
    assert found.choose(values, values).tolist() == kept


@pytest.mark.parametrize(("share", "count"), [(1e-9, 2), (1.0, 6), (0.3, 3), (0.35, 4)])
def test_bounds_hold_the_count(share: float, count: int) -> None:
    auto = AutoKeep(share=share, least=0.2, most=0.6)
    found = select(visual([10]), "auto", auto=auto)
    assert len(found.choose(descending(10), np.full(10, 0.1, np.float32))) == count


def test_scores_rank_and_relevance_counts() -> None:
    """f_θ's logits rank, and their softmax is what tokens hold."""
    logits = np.array([3.0, -8, -9, 2.9, -7, -8], np.float32)
    relevance = np.exp(logits) / np.exp(logits).sum()
    found = select(visual([6]), "auto", auto=AutoKeep(share=0.9, least=0.1, most=1))
    assert found.choose(logits, relevance).tolist() == [0, 3]
    assert found.count == 6 and found.indices is None


def test_each_picture_keeps_what_holds_its_own_share() -> None:
    relevance = np.array([8, 0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32)
    each = select(visual([4, 6]), "auto", rank="each", auto=HALF)
    assert each.choose(relevance, relevance).tolist() == [0, 4, 5, 6]
    assert each.count == 2 + 4
    together = select(visual([4, 6]), "auto", auto=HALF)
    assert together.choose(relevance, relevance).tolist() == [0]


def test_tokens_that_may_not_be_dropped_hold_no_share() -> None:
    relevance = np.array([90, 1, 1, 1, 1, 1, 1, 1, 1, 90], np.float32)
    found = select(visual([10], fixed=(0, 9)), "auto", auto=HALF)
    assert found.choose(relevance, relevance).tolist() == [0, 1, 2, 3, 4, 9]
    whole = select(visual([2], fixed=(0, 1)), "auto", auto=HALF)
    assert whole.indices is not None and whole.indices.tolist() == [0, 1]
    assert select(visual([]), "auto", auto=HALF).count == 0


def test_auto_needs_to_be_calibrated_and_named_kept_tokens_do_not() -> None:
    with pytest.raises(KeepError, match=r"calibrate auto-keep.*--auto-keep, or give a ratio"):
        select(visual([8]), "auto")
    assert select(visual([8]), "auto", [3]).count == 1


def test_auto_on_a_command_line() -> None:
    assert [parse_request_keep(text) for text in ("auto", "0.25", "1")] == ["auto", 0.25, 1.0]
    assert [parse_default(text) for text in ("auto", "0.25", "1")] == ["auto", 0.25, 1.0]
    assert parse_auto("0.9,0.02,0.5") == AutoKeep(share=0.9, least=0.02, most=0.5)
    for text in ("Auto", "automatic", ""):
        with pytest.raises(KeepError, match="'auto'"):
            parse_request_keep(text)
        with pytest.raises(KeepError, match="or auto"):
            parse_default(text)
    with pytest.raises(KeepError, match="or auto"):
        parse_default("300")
    for text in ("0.9", "0.9,0.6,0.5", "2,0.1,0.5", "0.9,0,1", "a,b,c", "nan,0.1,0.2"):
        with pytest.raises(KeepError, match=r"auto(-keep)? "):
            parse_auto(text)


# Tokens that may not be dropped


@pytest.mark.parametrize("rank", ["together", "each"])
def test_tokens_that_may_not_be_dropped_are_kept_beside_the_budget(rank: Rank) -> None:
    found = select(visual([5, 5], fixed=(0, 9)), 0.5, rank=rank)
    assert not found.is_top_k
    assert found.count == 6
    kept = found.choose(-descending(10)).tolist()
    assert kept == ([0, 1, 2, 3, 4, 9] if rank == "together" else [0, 1, 2, 5, 6, 9])


def test_a_picture_of_fixed_tokens_alone_has_no_budget() -> None:
    found = select(visual([2, 4], fixed=(0, 1)), 0.5, rank="each")
    assert found.budgets.tolist() == [0, 2]
    assert found.choose(descending(6)).tolist() == [0, 1, 4, 5]
    assert select(visual([2, 4], fixed=(0, 1)), 3, rank="each").budgets.tolist() == [0, 3]
    assert select(visual([3], fixed=(0, 2)), 1.0).count == 3
    with pytest.raises(KeepError, match="keep is 5 tokens and the request has 4"):
        select(visual([2, 4], fixed=(0, 1)), 5)


def test_nothing_but_fixed_tokens_is_kept_whole() -> None:
    for rank in ("together", "each"):
        found = select(visual([2], fixed=(0, 1)), 0.5, rank=rank)  # type: ignore[arg-type]
        assert found.indices is not None
        assert found.indices.tolist() == [0, 1]


# Named tokens


def test_named_tokens_come_in_order_and_fixed_ones_with_them() -> None:
    found = select(visual([4, 6], fixed=(5,)), 0.5, kept=iter([8, 2]))
    assert found.indices is not None
    assert (found.indices.tolist(), found.count, found.total) == ([2, 5, 8], 3, 10)
    assert not found.is_top_k
    assert select(visual([4]), 0.5, kept=np.array([3, 1], np.int32)).count == 2


@pytest.mark.parametrize("kept", [[], [10], [-1], [2, 2], [1.0], [True], ["1"], [[1], [2]]])
def test_odd_names_are_refused(kept: Any) -> None:
    with pytest.raises(KeepError, match="whole numbers from 0 to 9, each once"):
        select(visual([4, 6]), 0.5, kept=kept)
