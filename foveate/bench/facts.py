"""A bench as plain data, for --json."""

from dataclasses import asdict
from typing import Any

from foveate.bench.result import FORMAT, MEASURES, OURS, VERSION, Bench, Case, Row


def bench_facts(bench: Bench) -> dict[str, Any]:
    """All that was measured; times are in seconds, memory in bytes."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **bench.made,
        "machine": bench.machine,
        "memory": asdict(bench.memory),
        "transformers": bench.transformers,
        "cases": [
            {
                "scene": case.scene,
                "visual_tokens": case.total,
                "text_tokens": case.text_tokens,
                "rows": [_row_facts(case, row) for row in case.rows],
            }
            for case in bench.cases
        ],
    }


def _row_facts(case: Case, row: Row) -> dict[str, Any]:
    """One way to answer."""
    spreads = {measure: row.spread(measure) for measure in MEASURES}
    return {
        "side": row.side,
        "keep": row.keep,
        "batch": row.batch,
        "kept": row.visual.kept,
        "prompt_tokens": row.prompt_tokens,
        "cache_bytes": row.cache_bytes,
        "tokens_per_second": row.tokens_per_second,
        "first_token_id": row.first,
        "seconds": {measure: asdict(one) for measure, one in spreads.items() if one},
        **({"times_faster_than": case.ratios(row)} if row.side == OURS else {}),
        "rounds": row.samples,
    }
