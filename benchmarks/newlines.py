"""Tokens that are always kept, such as newlines, against letting them be dropped: right answers of both.

    python benchmarks/newlines.py CHECKPOINT DATA.jsonl --rank f_theta.safetensors,attention --json OUT.json

Both keep the same number of tokens: `keep` of those that may be dropped, and as many more as are always
kept, which one way gives to these and the other to whatever is ranked highest.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from foveate.calibration.answers import is_right
from foveate.calibration.dataset import read_records
from foveate.calibration.evaluation.answer_cache import AnswerCache
from foveate.calibration.evaluation.evaluate import capped_count, parse_keeps
from foveate.calibration.evaluation.rankings import Ranking, find_rankings
from foveate.calibration.torch_model import TorchModel

WAYS = ("always kept", "competing")


def competing(cache: AnswerCache) -> AnswerCache:
    """The same record, of which every visual token may be dropped."""
    question = cache.answered.question
    visual = replace(question.visual, candidates=np.ones(question.visual.tokens, np.bool_))
    answered = replace(cache.answered, question=replace(question, visual=visual))
    return AnswerCache(answered, cache.full, cache.media, cache.text, cache.most)


def judged(cache: AnswerCache, ranking: Ranking, keep: float | int) -> dict[str, str | None]:
    """The answers of both ways from equally many tokens."""
    count = capped_count(keep, int(cache.candidates.sum()))
    more = cache.total - int(cache.candidates.sum())
    asked = {WAYS[0]: (cache, count), WAYS[1]: (competing(cache), count + more)}
    return {way: one.answer(ranking, number)[0] for way, (one, number) in asked.items()}


def main() -> None:
    """Read the command line, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rank", default="attention")
    parser.add_argument("--keep", default="0.5,0.25,0.1")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rule", default="exact")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = TorchModel.load(options.checkpoint, options.dtype, options.device)
    records = read_records(options.data)[: options.limit]
    right: Counter[tuple[str, str, str]] = Counter()
    always = total = 0
    for record in records:
        cache = AnswerCache.of(model, record, 64)
        always += cache.total - int(cache.candidates.sum())
        total += cache.total
        for ranking in find_rankings([options.rank]):
            for keep in parse_keeps(options.keep):
                for way, answer in judged(cache, ranking, keep).items():
                    correct = answer is not None and is_right(answer, record.answers, options.rule)
                    right[ranking.name, str(keep), way] += correct
    rows: list[dict[str, Any]] = [
        {"ranking": ranking, "keep": keep, "way": way, "right": count}
        for (ranking, keep, way), count in right.items()
    ]
    facts = {"records": len(records), "always": always, "tokens": total, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{len(records)} records, {always} of {total} visual tokens are always kept")
    for row in rows:
        print(f"{row['ranking']:24} {row['keep']:>6} {row['way']:12} {row['right']} right")


if __name__ == "__main__":
    main()
