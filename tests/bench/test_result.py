"""What follows from the seconds of a bench."""

import re

from foveate.bench.result import OURS, Bench, Case, Memory, Row, speedup
from foveate.bench.table import describe_bench
from foveate.machine import machine_facts


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


def test_a_table_tells_of_the_gpu_and_of_random_weights() -> None:
    bundle = {
        "path": "b", "family": "f", "precision": "fp16", "operators": "contrib",
        "compressor": "attention", "weights": "random",
    }  # fmt: skip
    made = {"bundle": bundle, "provider": "CUDAExecutionProvider", "warmup": 1, "repeats": 2}
    gpu = {"name": None, "driver": "580.1", "clocks": {"SM": 1980, "memory": None}}
    machine = {**machine_facts("cpu"), "gpu": gpu}
    memory = Memory("device", 1, None, 3, {1: 4, 8: 5})
    peak = {
        "peak_bytes": 1 << 30, "transformers": "5.23.0", "torch": "2.13.0", "dtype": "float16",
        "attention": "sdpa", "device": "cuda",
    }  # fmt: skip
    told = describe_bench(Bench(made, machine, memory, [], peak))
    assert "its weights are random" in told
    assert "an unnamed GPU, driver 580.1, clocks at the end in MHz: SM 1980\n" in told
    assert "at most, up to batch 8" in told
    assert re.search(r"the bundle loaded +unknown", told)
    assert re.search(r"transformers alone, at most +1\.1 GB", told)
