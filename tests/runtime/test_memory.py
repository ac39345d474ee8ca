"""Memory: linear in pictures, bounded for a large one, estimated, and refused before it runs out."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import LimitError
from foveate.runtime.backends.ort import backend as ort_backend
from foveate.runtime.memory_estimate import (
    MemoryModel,
    Work,
    check_memory,
    memory_room,
    parse_memory,
)

MB = 10**6
FACTOR = 2.5
"""The estimate lies within this factor of what is measured: its rows are a mean over models, and
systems hand memory out in pieces."""
MEASURE = """
import json, sys
import numpy as np
from PIL import Image
from foveate import Pipeline
from foveate.families.base import PixelLimits
from foveate.machine import Peak, resident
from foveate.runtime.stages import decoded

bundle, kind, count, side = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
random = np.random.default_rng(0)
pictures = [random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
with Pipeline.load(bundle, device="cpu", threads=2) as pipe:
    pipe.generate("What?", images=[pictures[0][:112, :112]], keep=0.5, max_new_tokens=1)
    media = (pictures, None) if kind == "images" else (None, pictures)
    prepared = pipe._preparation.open(*media, PixelLimits())
    visual = decoded(prepared)
    before = resident()
    with Peak(resident) as peak:
        pipe._backend.encode(visual)
    largest = pipe._backend.largest_run(prepared.visual)
    from foveate.runtime.memory_estimate import Work
    estimate = pipe._backend.memory.peak([Work(visual=prepared.visual.tokens, largest=largest)])
print(json.dumps([peak.most - before, estimate]))
"""


def measured(bundle: Bundle, kind: str, count: int, side: int) -> tuple[float, float]:
    """MB by which the vision stage grows a process of its own, and what is estimated."""
    arguments = [str(bundle.root), kind, str(count), str(side)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
    )
    grown, estimate = json.loads(done.stdout)
    return grown / MB, estimate / MB


def test_the_vision_stage_is_linear_in_pictures_and_frames(nano_bundle: Bundle) -> None:
    """Squared, 32 pictures of 256 patches would take 5 GB."""
    half, _ = measured(nano_bundle, "images", 16, 224)
    whole, estimate = measured(nano_bundle, "images", 32, 224)
    frames, _ = measured(nano_bundle, "video", 64, 224)
    assert whole <= max(2.2 * half, 60) and whole < 150
    assert frames <= max(1.2 * whole, 60)
    assert estimate / FACTOR <= whole <= estimate * FACTOR


def test_attention_within_a_picture_is_never_whole(nano_bundle: Bundle, tmp_path: Path) -> None:
    """3,136 patches have 236 MB of scores, of which several copies would be held."""
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from foveate.machine import Peak, resident\n"
        "from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions\n"
        "engine = OnnxEngine(Path(sys.argv[1]), OnnxOptions(threads=2, arena=True))\n"
        "def feeds(side):\n"
        "    places = np.indices((side, side)).reshape(2, -1).T[None].astype(np.int64)\n"
        "    return {'pixel_values': np.zeros((1, side**2, 1176), np.float32), 'position_ids': places}\n"
        "engine.run(feeds(8)); given = feeds(56); before = resident()\n"
        "with Peak(resident) as peak: engine.run(given)\n"
        "print(peak.most - before)\n"
    )
    command = [sys.executable, "-c", code, str(nano_bundle.file("vision"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90 * MB


def test_a_prompt_in_parts_gives_the_same_answer(
    nano_bundle: Bundle, samples: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipe:
        decoder: Any = pipe._backend.graph
        ask = {"images": [samples[0].image], "keep": 1.0, "max_new_tokens": 6}
        whole = pipe.generate(samples[0].question, **ask)
        assert decoder.prefill_chunk(whole.prompt_tokens) == whole.prompt_tokens
        monkeypatch.setattr(ort_backend, "LEAST_CHUNK", 1)
        monkeypatch.setitem(
            ort_backend.SCORES, "cpu", decoder.model.heads * whole.prompt_tokens * 9
        )
        assert decoder.prefill_chunk(whole.prompt_tokens) in (8, 9)
        parts = pipe.generate(samples[0].question, **ask)
    assert parts.token_ids == whole.token_ids
    assert parts.cache_bytes == whole.cache_bytes


MODEL = MemoryModel(
    hidden=256,
    heads=4,
    vision_width=768,
    decoder_width=640,
    patches=4.0,
    cache=6144,
    scores=1 << 21,
    chunk=lambda length: length,
)
WIDE = Work(visual=2048, largest=2048, text=40, instruction=10, kept=512, new=8)


def test_what_is_advised_fits() -> None:
    room = 100 * MB
    with pytest.raises(LimitError) as caught:
        check_memory(MODEL, [WIDE], room, "this machine")
    text = str(caught.value)
    assert "most in vision, and this machine has 100 MB left" in text
    advised = int(text.split("at most ")[1].split()[0])
    smaller = replace(WIDE, visual=advised, largest=advised, kept=min(512, advised))
    check_memory(MODEL, [smaller], room, "this machine")
    larger = replace(smaller, visual=advised + 1, largest=advised + 1)
    with pytest.raises(LimitError):
        check_memory(MODEL, [larger], room, "this machine")


def test_where_prefill_is_the_peak_fewer_tokens_are_advised() -> None:
    work = replace(WIDE, largest=0, kept=2048)
    with pytest.raises(LimitError, match="most in prefill") as caught:
        check_memory(MODEL, [work], 60 * MB, "the limit of 60 MB")
    advised = int(str(caught.value).split("keep at most ")[1].split()[0])
    check_memory(MODEL, [replace(work, kept=advised)], 60 * MB, "")


def test_a_batch_is_estimated_together() -> None:
    room = MODEL.peak([WIDE, WIDE])
    check_memory(MODEL, [WIDE, WIDE], room, "")
    with pytest.raises(LimitError, match="ask 2 at a time"):
        check_memory(MODEL, [WIDE] * 9, room, "")


def test_nothing_would_do() -> None:
    with pytest.raises(LimitError, match="no smaller picture would do"):
        check_memory(MODEL, [WIDE], 1000, "")


def test_a_memory_limit_refuses_before_anything_runs(nano_bundle: Bundle) -> None:
    picture = Image.fromarray(np.zeros((448, 448, 3), np.uint8))
    with Pipeline.load(nano_bundle.root, device="cpu", memory_limit="1MB") as pipe:
        with pytest.raises(LimitError, match=r"limit of 1 MB has 0 MB left"):
            pipe.generate("What?", images=[picture])
        with pytest.raises(LimitError, match="memory"):
            pipe.encode(images=[picture])
    with Pipeline.load(nano_bundle.root, device="cpu", memory_limit="64GiB") as pipe:
        assert pipe.generate("What?", images=[picture], max_new_tokens=1).token_ids


@pytest.mark.parametrize(
    ("limit", "count"),
    [(5, 5), ("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("300mb", 300 * MB), ("7", 7)],
)
def test_limits_that_are_sizes(limit: int | str, count: int) -> None:
    assert parse_memory(limit) == count


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "", "GB", "2 apples", "0GB", "-1GB", b"1"])
def test_limits_that_are_none(limit: Any) -> None:
    with pytest.raises(LimitError, match="memory_limit"):
        parse_memory(limit)


def test_a_backend_without_an_estimate_keeps_no_limit(contrib_bundle: Bundle) -> None:
    with pytest.raises(LimitError, match="standard operators on a CPU"):
        Pipeline.load(contrib_bundle.root, device="cpu", memory_limit="2GB")


def test_the_smaller_of_machine_and_limit_counts() -> None:
    assert memory_room(1 << 60)[1] == "this machine"
    assert memory_room(1)[0] < 0


def test_memory_that_runs_out_is_told(nano_bundle: Bundle) -> None:
    """An address space without room, past the estimate."""
    code = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from foveate import Pipeline\n"
        "from foveate.errors import BackendError\n"
        "from foveate.families.base import PixelLimits\n"
        "from foveate.runtime.stages import decoded\n"
        "pipe = Pipeline.load(sys.argv[1], device='cpu', threads=1)\n"
        "pictures = [np.zeros((448, 448, 3), np.uint8)]\n"
        "pipe.generate('What?', images=[p[:112, :112] for p in pictures], max_new_tokens=1)\n"
        "visual = decoded(pipe._preparation.open(pictures, None, PixelLimits()))\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "room = pages * resource.getpagesize() + 4 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
        "try: pipe._backend.encode(visual)\n"
        "except BackendError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(nano_bundle.root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "there was not enough memory" in done.stdout, done.stderr
