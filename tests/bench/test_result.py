"""What follows from the seconds of a bench."""

from foveate.bench.result import OURS, Case, Row, speedup


def test_ratios_are_those_of_the_rounds() -> None:
    """A drift that slows both sides leaves the ratio as it is."""
    slow, fast = (
        Row(OURS, keep, None, 0, 0, 0, [{"prefill": time * scale} for scale in (1.0, 5.0, 9.0)])  # type: ignore[arg-type]
        for keep, time in ((1.0, 4.0), (0.5, 1.0))
    )
    assert speedup(slow, fast, "prefill") == 4
    assert speedup(slow, fast, "vision") is None
    assert Case("", 1, 0, [slow]).find(OURS, 0.25) is None
    spread = slow.spread("prefill")
    assert spread is not None
    assert (spread.median, slow.tokens_per_second) == (20.0, None)
