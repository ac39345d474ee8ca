"""Tokens that are always kept, such as newlines, against letting them be dropped: right answers of both.

    python benchmarks/newlines.py CHECKPOINT DATA.jsonl --rank f_theta.safetensors,attention --json OUT.json

Both keep the same number of tokens: `keep` of those that may be dropped, and as many more as are always
kept, which one way gives to these and the other to whatever is ranked highest.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))
from foveate.calibration.answers import is_right
from foveate.calibration.dataset import read_records
from foveate.calibration.evaluation.checkpoint import CheckpointScene, LoadedCheckpoint
from foveate.calibration.evaluation.rankings import find_rankings
from foveate.calibration.evaluation.ways import kept_tokens, parse_keeps
from foveate.calibration.ranking import top
from foveate.calibration.torch_model import TorchModel

WAYS = ("always kept", "competing")


def both(
    scene: CheckpointScene, keep: float | int, scores: NDArray[np.floating]
) -> list[NDArray[np.int64]]:
    """What both ways keep of a scene's tokens, equally many."""
    always = kept_tokens(scene.visual, keep, scores)
    return [always, top(scores, len(always))]


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
    rankings = {one.name: one for one in find_rankings([options.rank])}
    subject = LoadedCheckpoint(model, rankings, 64, len(WAYS))
    records = read_records(options.data)[: options.limit]
    right: Counter[tuple[str, str, str]] = Counter()
    always = total = 0
    for record in records:
        scene = subject.open(record)
        always += int((~scene.visual.candidates).sum())
        total += scene.visual.tokens
        for ranking in rankings:
            scores = scene.scores(ranking, record.question)
            for keep in () if scores is None else parse_keeps(options.keep):
                texts = scene.answers(record.question, both(scene, keep, scores))
                for way, text in zip(WAYS, texts, strict=True):
                    correct = is_right(text, record.answers, options.rule)
                    right[ranking, str(keep), way] += correct
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
