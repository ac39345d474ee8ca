"""A bench for people."""

from collections.abc import Iterable
from typing import Any

from foveate.bench.result import ALL, MEASURES, OURS, SAME, Bench, Case, Row, Spread
from foveate.terminal import one_line, plural, size, table

NAMES = {"first_token": "first token", "per_token": "per token"}
RATIOS = {
    "all_tokens": "all visual tokens",
    "transformers": ALL,
    "transformers_same_tokens": SAME,
}
SIDES = {OURS: "", ALL: "transformers", SAME: "transformers, same"}


def describe_bench(bench: Bench) -> str:
    """All that `foveate bench` shows."""
    made = bench.made
    rounds = f"{plural(made['repeats'], 'round')} after {made['warmup']} to warm up"
    return "\n\n".join(
        [
            "\n".join(_describe_made(bench)),
            *(_describe_case(case, rounds) for case in bench.cases),
            _describe_memory(bench),
        ]
    )


def _describe_made(bench: Bench) -> Iterable[str]:
    """What was measured, and on what."""
    made, machine = bench.made, bench.machine
    facts = made["bundle"]
    yield (
        f"{one_line(facts['path'])}: {facts['family']}, {facts['precision']}, {facts['operators']} "
        f"operators, ranked by {facts['compressor']}; {made['provider']}"
    )
    if facts["weights"] == "random":
        yield "its weights are random: times are a model's, answers are not"
    yield _describe_machine(machine)
    yield ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if bench.peer is not None:
        peer = bench.peer
        yield (
            f"against transformers {peer['transformers']}, torch {peer['torch']}, {peer['dtype']}, "
            f"attention {peer['attention']}, on {peer['device']}"
        )


def _describe_machine(machine: dict[str, Any]) -> str:
    """The GPU, or the processor."""
    gpu = machine["gpu"]
    if gpu is None:
        return f"{machine['processor'] or machine['machine']}, {plural(machine['cores'], 'core')}"
    parts = [gpu["name"] or "an unnamed GPU"]
    if gpu["driver"]:
        parts.append(f"driver {gpu['driver']}")
    if gpu["clocks"]:
        known = (f"{name} {mhz}" for name, mhz in gpu["clocks"].items() if mhz is not None)
        parts.append(f"clocks at the end in MHz: {', '.join(known)}")
    return ", ".join(parts)


def _describe_case(case: Case, rounds: str) -> str:
    """One picture or video: its rows, and what is how many times faster."""
    lines: list[list[str]] = [
        ["", "kept", *(NAMES.get(measure, measure) for measure in MEASURES), "tokens/s", "KV cache"]
    ]
    lines += [_describe_row(row) for row in case.rows]
    parts = [
        f"{case.scene}: {case.total} visual tokens and {case.text_tokens} others; {rounds}; "
        f"medians (5–95 %) in ms\n{table(lines)}"
    ]
    parts += filter(None, (_describe_ratios(case, other) for other in RATIOS))
    return "\n".join(parts)


def _describe_row(row: Row) -> list[str]:
    """One way to answer."""
    speed = row.tokens_per_second
    return [
        SIDES[row.side],
        str(row.visual.kept),
        *(_milliseconds(row.spread(measure)) for measure in MEASURES),
        "–" if speed is None else f"{speed:.1f}",
        size(row.cache_bytes),
    ]


def _milliseconds(spread: Spread | None) -> str:
    """A cell: 12.3 (12.1–12.9)."""
    if spread is None:
        return "–"
    median, low, high = (
        f"{1000 * value:.2f}" for value in (spread.median, spread.low, spread.high)
    )
    return f"{median} ({low}–{high})"


def _describe_ratios(case: Case, other: str) -> str:
    """How many times faster than something each of Foveate's rows is; nothing where it is not there."""
    lines = [["kept", *(NAMES.get(measure, measure) for measure in MEASURES)]]
    for row in case.rows:
        ratios = case.ratios(row).get(other) if row.side == OURS else None
        if ratios:
            cells = (f"{ratios[name]:.2f}" if name in ratios else "–" for name in MEASURES)
            lines.append([str(row.visual.kept), *cells])
    if len(lines) == 1:
        return ""
    return f"times faster than {RATIOS[other]}, round by round\n{table(lines)}"


def _describe_memory(bench: Bench) -> str:
    """Memory of Foveate alone, and of transformers where it tells."""
    memory = bench.memory
    whose = "of the GPU as a whole" if memory.of == "device" else "of this process"
    lines = [(name, _bytes(getattr(memory, key))) for key, name in _MOMENTS]
    if bench.peer is not None and bench.peer["peak_bytes"] is not None:
        lines.append(("transformers alone, at most", size(bench.peer["peak_bytes"])))
    return f"memory in use {whose}\n{table(lines)}"


_MOMENTS = (
    ("before", "before the bundle"),
    ("loaded", "the bundle loaded"),
    ("peak", "at most, over all that was kept"),
)


def _bytes(count: int | None) -> str:
    """A size, or that there is none."""
    return "unknown" if count is None else size(count)
