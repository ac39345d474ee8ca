"""Buckets: few, and little fills them up."""

from foveate.runtime.buckets import STEPS, bucket
from foveate.runtime.language.shared import STEP, filled


def test_buckets_are_few_and_little_fills_them_up() -> None:
    buckets = {bucket(count, 64) for count in range(1, 16385)}
    assert len(buckets) == STEPS + 3 * STEPS // 2
    for count in range(1, 16385):
        filled = bucket(count, 64)
        assert count <= filled < count + max(64, count / 16)
        assert filled == bucket(filled, 64)
    assert [bucket(count, 64) for count in (1, 64, 65, 1302, 2048, 2049)] == [
        64, 64, 128, 1344, 2048, 2176,
    ]  # fmt: skip


def test_prompts_have_buckets_that_a_cache_has_room_for() -> None:
    assert [filled(count) for count in (1, 366, 1024, 1025, 1342, 5864)] == [
        128, 384, 1024, 1088, 1344, 5888,
    ]  # fmt: skip
    for count in range(1, 32768, 5):
        assert bucket(count + 1, STEP) >= filled(count)
