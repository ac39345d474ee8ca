"""Peak memory and time of requests with pictures, against transformers with sdpa, each in a process of its own.

    python benchmarks/vision_memory.py models/nano bundle [--keep 0.1] [--json OUT]

The bundle must take pictures of 1792 x 896: export it from a copy of the checkpoint whose
preprocessor_config.json says "max_pixels": 1605632. What is measured is the growth of the process's
resident memory over what it held before the request, after one request about a small picture; float32
on two threads. transformers runs its vision tower and the prefill of all tokens.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
from PIL import Image

CASES = {
    "1 picture": ("images", 1, 448, 448),
    "4 pictures": ("images", 4, 448, 448),
    "8 pictures": ("images", 8, 448, 448),
    "15 pictures": ("images", 15, 448, 448),
    "16 frames": ("video", 16, 448, 448),
    "1792 x 896": ("images", 1, 896, 1792),
}
"""Sixteen pictures are more tokens than nano's context of 4,096 has room for."""
PROMPT, THREADS = "What?", 2
MOST_FACTOR, MOST_MORE = 1.5, 200 * 10**6


def pattern(height: int, width: int, seed: int) -> Image.Image:
    """A smooth picture with noise in it."""
    rows, columns = np.mgrid[0:height, 0:width]
    levels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1)
    noise = np.random.default_rng(seed).integers(0, 64, levels.shape)
    return Image.fromarray(((levels + noise) % 256).astype(np.uint8))


def measure(checkpoint: str, bundle: str, case: str, engine: str, keep: float) -> dict[str, Any]:
    """One request in this process."""
    from foveate.machine import Peak, resident

    kind, count, height, width = CASES[case]
    pictures = [pattern(height, width, seed) for seed in range(count)]
    ask = foveate(bundle, keep) if engine == "foveate" else transformers(checkpoint, bundle)
    ask("images", [pattern(112, 112, 99)])
    before = resident() or 0
    began = time.perf_counter()
    with Peak(resident) as peak:
        token = ask(kind, pictures)
    return {
        "bytes": (peak.most or 0) - before,
        "seconds": time.perf_counter() - began,
        "token": token,
    }


def foveate(bundle: str, keep: float) -> Any:
    """A function that gives the first token of an answer about pictures."""
    from foveate import Pipeline

    pipe = Pipeline.load(bundle, device="cpu", threads=THREADS)

    def ask(kind: str, pictures: list[Image.Image]) -> int:
        options: Any = {kind: pictures}
        answer = pipe.generate(PROMPT, keep=keep, max_new_tokens=1, ignore_eos=True, **options)
        return answer.token_ids[0]

    return ask


def transformers(checkpoint: str, bundle: str) -> Any:
    """The same of transformers, which is given the same pixels and tokens."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration as Model

    from foveate.bundle.reader import Bundle
    from foveate.families.base import Video, user_turn
    from foveate.runtime.load import read_family, read_tokenizer

    torch.set_num_threads(THREADS)
    model = Model.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
    opened = Bundle.open(bundle)
    family = read_family(opened, read_tokenizer(opened))

    @torch.no_grad()
    def ask(kind: str, pictures: list[Image.Image]) -> int:
        media: Any = [Video(tuple(pictures))] if kind == "video" else pictures
        visual: Any = family.prepare(media)
        prompt = family.layout(user_turn(PROMPT, media), visual)
        rows = [row for call in visual.calls for row in call.inputs["pixel_values"]]
        pixels = torch.from_numpy(np.concatenate(rows))
        grids = torch.tensor([(t, 2 * h, 2 * w) for t, h, w in visual.grids])
        embeds = model.get_input_embeddings()(torch.from_numpy(prompt.token_ids))
        embeds[prompt.visual_index] = model.model.visual(pixels, grids).pooler_output
        positions = torch.from_numpy(prompt.position_ids[:, None])
        out = model(inputs_embeds=embeds[None], position_ids=positions, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())

    return ask


def main() -> None:
    """Run every case in both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("bundle")
    parser.add_argument("--keep", type=float, default=1.0)
    parser.add_argument("--json")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "ENGINE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.checkpoint, given.bundle, *given.one, given.keep)))
        return
    found: dict[str, dict[str, Any]] = {}
    print(f"{'':12} {'foveate':>16} {'sdpa':>16}  ratio  allowed  same first token")
    for case in CASES:
        for engine in ("foveate", "transformers"):
            command = [sys.executable, *sys.argv, "--one", case, engine]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.setdefault(case, {})[engine] = json.loads(done.stdout.splitlines()[-1])
        ours, theirs = found[case]["foveate"], found[case]["transformers"]
        shown = [f"{one['bytes'] / 1e6:6.0f} MB {one['seconds']:5.1f} s" for one in (ours, theirs)]
        allowed = ours["bytes"] <= MOST_FACTOR * theirs["bytes"] + MOST_MORE
        print(
            f"{case:12} {shown[0]:>16} {shown[1]:>16}  {ours['bytes'] / theirs['bytes']:5.2f}  "
            f"{'yes' if allowed else 'NO':7}  {'yes' if ours['token'] == theirs['token'] else 'no'}",
            flush=True,
        )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
