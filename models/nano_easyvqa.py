"""Exports easy-VQA (https://pypi.org/project/easy-vqa, MIT) to PNG files and data.jsonl.

python models/nano_easyvqa.py OUT --split test --count 1000
"""

import argparse
import json
import shutil
from pathlib import Path

import easy_vqa
import numpy as np


def export(out: Path, split: str, count: int | None = None, seed: int = 0) -> int:
    """Write a split's questions, or `count` drawn at random; return how many."""
    train = split == "train"
    texts, answers, numbers = (
        easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    )
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    order = np.arange(len(texts))
    if count is not None:
        order = np.sort(np.random.default_rng(seed).permutation(len(texts))[:count])
    (out / "images").mkdir(parents=True, exist_ok=True)
    with (out / "data.jsonl").open("w", encoding="utf-8") as lines:
        for index in order.tolist():
            name = f"images/{numbers[index]:04d}.png"
            if not (out / name).exists():
                shutil.copyfile(paths[numbers[index]], out / name)
            record = {
                "id": f"easy-vqa-{split}-{index}",
                "image": name,
                "question": texts[index],
                "answer": answers[index],
                "task": "easy-vqa",
                "scope": "local",
            }
            lines.write(json.dumps(record) + "\n")
    return len(order)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--count", type=int, help="questions to draw; all if left out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{export(args.out, args.split, args.count, args.seed)} questions in {args.out}")


if __name__ == "__main__":
    main()
