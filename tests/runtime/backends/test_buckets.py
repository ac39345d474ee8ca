"""Buckets: few, with little padding in them."""

from foveate.runtime.backends.buckets import (
    AGAIN,
    MOST_EXACT,
    MOST_SEEN,
    STEPS,
    Repeats,
    bucket,
)
from foveate.runtime.backends.ort_contrib.decoder import STEP, prompt_bucket


def test_buckets_are_few_and_padded_little() -> None:
    buckets = {bucket(count, 64) for count in range(1, 16385)}
    assert len(buckets) == STEPS + 3 * STEPS // 2
    for count in range(1, 16385):
        size = bucket(count, 64)
        assert count <= size < count + max(64, count / 16)
        assert size == bucket(size, 64)
    assert [bucket(count, 64) for count in (1, 64, 65, 1302, 2048, 2049)] == [
        64, 64, 128, 1344, 2048, 2176,
    ]  # fmt: skip


def test_prompts_have_buckets_that_a_cache_has_room_for() -> None:
    assert [prompt_bucket(count) for count in (1, 366, 1024, 1025, 1342, 5864)] == [
        128, 384, 1024, 1088, 1344, 5888,
    ]  # fmt: skip
    for count in range(1, 32768, 5):
        assert bucket(count + 1, STEP) >= prompt_bucket(count)


def test_sizes_that_came_often_are_told_and_forgotten_once_they_are_too_many() -> None:
    sizes = Repeats()
    assert [sizes.comes_again(0) for _ in range(AGAIN - 1)] == [False] * (AGAIN - 1)
    for number in range(1, 2 * MOST_SEEN):
        assert not sizes.comes_again(number)
        assert len(sizes.counts) <= MOST_SEEN
    again = [sizes.comes_again(0) for _ in range(AGAIN + 1)]
    assert again == [False] * (AGAIN - 1) + [True] * 2
    for number in range(1, 2 * MOST_EXACT):
        often = [sizes.comes_again(number) for _ in range(AGAIN)][-1]
        assert often == (number < MOST_EXACT)
    assert sizes.comes_again(0)
