"""A bench for people: tables of its times, ratios and memory."""

from collections.abc import Iterable
from typing import Any

from foveate.bench.result import ALL, MEASURES, OURS, SAME, Bench, Case, Row, Spread
from foveate.terminal import one_line, plural, size, table

LAST = "last_first_token"
TOGETHER = "; of a batch, stages are all requests' together and a step gives each of them a token"
RATIOS = {"all_tokens": "all visual tokens", "transformers": ALL, "transformers_same_tokens": SAME}
SIDES = {OURS: "", ALL: "transformers", SAME: "transformers, same"}


def describe_bench(bench: Bench) -> str:
    """All that `foveate bench` shows."""
    made = bench.made
    rounds = f"{plural(made['repeats'], 'round')} after {made['warmup']} to warm up"
    cases = (_describe_case(case, rounds) for case in bench.cases)
    return "\n\n".join(["\n".join(_describe_made(bench)), *cases, _describe_memory(bench)])


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
    if (other := bench.transformers) is not None:
        yield (
            f"against transformers {other['transformers']}, torch {other['torch']}, "
            f"{other['dtype']}, attention {other['attention']}, on {other['device']}"
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
    batched = any(row.batch > 1 for row in case.rows)
    measures = [name for name in MEASURES if batched or name != LAST]
    names = [measure.replace("_", " ") for measure in measures]
    way = ["batch", "kept"] if batched else ["kept"]
    lines = [["", *way, *names, "tokens/s", "KV cache"]]
    lines += [_describe_row(row, measures, batched) for row in case.rows]
    parts = [
        f"{case.scene}: {case.total} visual tokens and {case.text_tokens} others; {rounds}; "
        f"medians (5–95 %) in ms{TOGETHER if batched else ''}\n{table(lines)}"
    ]
    for other, name in RATIOS.items():
        lines = list(_describe_ratios(case, other, measures, batched))
        if lines:
            parts.append(
                f"times faster than {name}, round by round\n{table([way + names, *lines])}"
            )
    return "\n".join(parts)


def _way(row: Row, batched: bool) -> list[str]:
    """Requests at once, where that may be several, and tokens kept."""
    return [str(row.batch), str(row.visual.kept)] if batched else [str(row.visual.kept)]


def _describe_row(row: Row, measures: list[str], batched: bool) -> list[str]:
    """One way to answer."""
    speed = row.tokens_per_second
    return [
        SIDES[row.side],
        *_way(row, batched),
        *(_milliseconds(row.spread(measure)) for measure in measures),
        "–" if speed is None else f"{speed:.1f}",
        size(row.cache_bytes),
    ]


def _milliseconds(spread: Spread | None) -> str:
    """A cell: 12.3 (12.1–12.9)."""
    if spread is None:
        return "–"
    return f"{1000 * spread.median:.2f} ({1000 * spread.p5:.2f}–{1000 * spread.p95:.2f})"


def _describe_ratios(
    case: Case, other: str, measures: list[str], batched: bool
) -> Iterable[list[str]]:
    """How many times faster than something each of Foveate's rows is; nothing where it is not there."""
    for row in case.ours:
        if ratios := case.ratios(row).get(other):
            cells = [f"{ratios[name]:.2f}" if name in ratios else "–" for name in measures]
            yield _way(row, batched) + cells


def _describe_memory(bench: Bench) -> str:
    """Memory of Foveate alone, and of transformers where it tells."""
    memory = bench.memory
    whose = "of the GPU as a whole" if memory.of == "device" else "of this process"
    moments = {
        "before the bundle": memory.before,
        "the bundle loaded": memory.loaded,
        "at most, over all that was kept": memory.peak,
    }
    if len(memory.by_batch) > 1:
        moments |= {f"at most, up to batch {n}": most for n, most in memory.by_batch.items()}
    if bench.transformers and bench.transformers["peak_bytes"] is not None:
        moments["transformers alone, at most"] = bench.transformers["peak_bytes"]
    lines = [(name, "unknown" if count is None else size(count)) for name, count in moments.items()]
    return f"memory in use {whose}\n{table(lines)}"
