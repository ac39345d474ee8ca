"""Peak memory and processor time of the vision tower alone, against transformers with sdpa.

    python benchmarks/vision_tower.py CHECKPOINT BUNDLE [--side 896x896 …] [--count 1]

Each is measured in a process of its own: growth of resident memory over what it held after a small picture,
and processor time over threads (2), which a busy machine changes less than time; float32. Of the checkpoint only
config.json is read: weights are random.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

THREADS, SIDES = 2, ("896x896", "1792x896", "1792x1792")


def measure(checkpoint: str, bundle: str, engine: str, side: str, count: int) -> dict[str, Any]:
    """One run in this process: bytes and seconds."""
    from foveate.machine import Peak, resident

    width, height = map(int, side.split("x"))
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]
    prepare, run = ours(bundle) if engine == "foveate" else theirs(checkpoint)
    run(prepare([pictures[0][:112, :112]]))
    given = prepare(pictures)
    before, began = resident() or 0, time.process_time()
    with Peak(resident) as peak:
        run(given)
    seconds = (time.process_time() - began) / THREADS
    return {"bytes": (peak.most or 0) - before, "seconds": seconds}


def ours(bundle: str) -> Any:
    """What prepares pictures, and what encodes them."""
    from foveate import Pipeline
    from foveate.families.base import PixelLimits
    from foveate.runtime.stages import decoded

    pipe = Pipeline.load(bundle, device="cpu", threads=THREADS)
    limits = PixelLimits(max_pixels=1 << 30)
    return lambda pictures: decoded(
        pipe._preparation.open(pictures, None, limits)
    ), pipe._backend.encode


def theirs(checkpoint: str) -> Any:
    """The same of transformers: noise in place of pictures, which takes as long."""
    import torch
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling

    torch.set_num_threads(THREADS)
    config = Qwen2VLConfig.from_pretrained(checkpoint).vision_config
    config._attn_implementation = "sdpa"
    tower = modeling.Qwen2VisionTransformerPretrainedModel(config).eval()
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2

    def prepare(pictures: list[Any]) -> Any:
        grids = [(1, *(side // config.patch_size for side in one.shape[:2])) for one in pictures]
        return torch.randn(sum(h * w for _, h, w in grids), width), torch.tensor(grids)

    return prepare, torch.no_grad()(lambda given: tower(*given))


def main() -> None:
    """Run every size in both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("bundle")
    parser.add_argument("--side", nargs="+", default=SIDES)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "SIDE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.checkpoint, given.bundle, *given.one, given.count)))
        return
    for side in given.side:
        shown = [f"{given.count} of {side:10}"]
        for engine in ("foveate", "transformers"):
            command = [sys.executable, *sys.argv, "--one", engine, side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            one = json.loads(done.stdout.splitlines()[-1])
            shown.append(f"{engine} {one['bytes'] / 1e6:6.0f} MB {one['seconds']:6.1f} s")
        print("  ".join(shown), flush=True)


if __name__ == "__main__":
    main()
