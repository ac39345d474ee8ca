"""Pictures filled up to buckets: the visual tokens of bare ones, and which pictures are filled up."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.export.exporter import ExportOptions, export
from foveate.families.base import Vision
from foveate.runtime.backends.ort_contrib import buckets, padding
from foveate.runtime.backends.ort_contrib.backend import FusedBackend
from foveate.runtime.backends.ort_contrib.io_binding import BoundEngine
from foveate.runtime.backends.ort_contrib.padding import PICTURE
from tests.conftest import NANO, Sample

VISUAL = 1e-5
"""Of the largest value: what fills up has weights of exactly 0, yet longer sums may be added up in
another order (they were not where this was written: there was no difference)."""

SIZES = [(364, 252), (224, 308), (252, 420), (252, 252), (224, 224), (448, 252)]
"""117, 88, 135, 81, 64 and 144 visual tokens, of which 64 are a full bucket."""
BUCKET = 2 * PICTURE

cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no CUDA",
)


@pytest.fixture
def pipe(fused_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(fused_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture
def backend(pipe: Pipeline) -> FusedBackend:
    assert isinstance(pipe._backend, FusedBackend)
    return pipe._backend


@pytest.fixture
def captures(backend: FusedBackend, monkeypatch: pytest.MonkeyPatch) -> BoundEngine:
    """The vision engine as it is on CUDA; a CPU runs every time what CUDA records once."""
    monkeypatch.setattr(backend._engines["vision"], "captures", True)
    return backend._engines["vision"]


@pytest.fixture
def asked(captures: BoundEngine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool | None]]:
    """Visual tokens of each run of the vision graph, and what is to be recorded."""
    runs: list[tuple[int, bool | None]] = []
    run = captures.run

    def noted(feeds: Any, *others: Any, **options: Any) -> Any:
        """Note the run, and run."""
        runs.append((len(feeds["position_ids"]) // 4, options["record"]))
        return run(feeds, *others, **options)

    monkeypatch.setattr(captures, "run", noted)
    return runs


def noise(height: int, width: int) -> Image.Image:
    """A picture that nothing resizes."""
    random = np.random.default_rng(height * width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def spoil(backend: FusedBackend) -> None:
    """Put other bytes where pictures of this thread are filled up."""
    levels = getattr(backend._padding.own, "levels", None)
    if levels is not None:
        levels[:] = np.random.default_rng(1).integers(0, 256, levels.shape, np.uint8)


def bare(backend: FusedBackend, vision: Vision) -> NDArray[Any]:
    """The visual tokens of one picture or video that is run as it is."""
    sizes = {"visual_embeds": (vision.tokens, backend._width)}
    outputs = backend._engines["vision"].run(vision.runs[0], sizes, record=False)
    return outputs["visual_embeds"].numpy().astype(np.float32)


def close(given: NDArray[Any], wanted: NDArray[Any], most: float = VISUAL) -> None:
    """Compare visual tokens."""
    assert given.shape == wanted.shape
    assert np.abs(given - wanted).max() <= most * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("tokens", "steps"), [(199, [1] * 13), (200, [2] * 6 + [1]), (2048, [8, 4, 1])]
)
def test_a_video_in_parts_gives_the_visual_tokens_of_one_run(
    pipe: Pipeline,
    backend: FusedBackend,
    captures: BoundEngine,
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    steps: list[int],
) -> None:
    monkeypatch.setattr(padding, "PART", tokens)
    frames = [noise(224, 364 + 28 * number).resize((280, 280)) for number in range(25)]
    vision = pipe._family.levels_of_frames(frames)  # type: ignore[attr-defined]
    parts = padding.split(vision.runs[0], vision.tokens)
    assert [len(part.feeds["levels"]) for part in parts] == steps
    done: list[int] = []
    close(backend.encode(vision, lambda: done.append(1)).numpy(), bare(backend, vision))
    assert done == [1]


@pytest.mark.parametrize("frames", [1, 2])
def test_a_padded_picture_gives_the_visual_tokens_of_a_bare_one(
    pipe: Pipeline,
    backend: FusedBackend,
    captures: BoundEngine,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
) -> None:
    """Memory is used again, buckets are recorded from their second picture on, and their rest is not read."""
    family = pipe._family
    monkeypatch.setattr(buckets, "MOST_EXACT", 0)
    for height, width in SIZES * 2:
        picture = noise(height, width)
        if frames == 1:
            vision = family.levels([picture])
        else:
            vision = family.levels_of_frames([picture, picture.rotate(180)])  # type: ignore[attr-defined]
        assert vision.runs[0]["levels"].shape[:2] == (1, frames)
        spoil(backend)
        close(backend.encode(vision).numpy(), bare(backend, vision))
    assert len(captures.calls) == 3


def test_answers_are_those_of_bare_pictures(
    pipe: Pipeline,
    backend: FusedBackend,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = Image.open(samples[0].image)
    frames = [np.asarray(picture.resize((168, 140))), np.asarray(picture.resize((168, 140)))[::-1]]
    asked: list[dict[str, Any]] = [
        {"images": [picture.resize(size)]} for size in ((224, 224), (180, 300), (310, 130))
    ]
    asked.append({"images": [one["images"][0] for one in asked]})
    asked.append({"video": frames})

    def answers() -> list[Any]:
        """With all kept, and with a part."""
        return [
            pipe.generate(samples[0].question, **one, keep=keep)
            for one in asked
            for keep in (1.0, 0.3)
        ]

    unpadded = answers()
    monkeypatch.setattr(buckets, "MOST_EXACT", 0)
    monkeypatch.setattr(backend._engines["vision"], "captures", True)
    for given, wanted in zip(answers(), unpadded, strict=True):
        assert given.token_ids == wanted.token_ids
        assert np.array_equal(given.visual.indices, wanted.visual.indices)
        assert given.cache_bytes == wanted.cache_bytes
    assert backend._padding.own.levels.size


def test_a_size_is_padded_until_it_has_come_often(
    pipe: Pipeline,
    backend: FusedBackend,
    captures: BoundEngine,
    asked: list[tuple[int, bool | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "MOST_EXACT", 2)

    def encode(*size: int) -> tuple[int, bool | None]:
        """Encode a picture of this size and tell how."""
        backend.encode(pipe._family.levels([noise(*size)]))
        return asked[-1]

    assert encode(252, 252) == (BUCKET, None)
    assert len(captures.calls) == 0
    assert encode(224, 308) == (BUCKET, None)
    assert len(captures.calls) == 1
    assert encode(252, 252) == (BUCKET, None)
    assert encode(252, 252) == (81, True)
    assert encode(252, 252) == (81, True)
    assert len(captures.calls) == 2
    assert encode(308, 224) == (BUCKET, None)
    assert encode(308, 224) == (88, True)
    for _ in range(4):
        assert encode(168, 420) == (BUCKET, None)
    assert encode(224, 308) == (88, True)
    assert len(captures.calls) == 3
    assert len(backend._padding.repeats.exact) == 2


def test_what_is_padded(
    pipe: Pipeline,
    backend: FusedBackend,
    asked: list[tuple[int, bool | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family, small = pipe._family, noise(252, 252)

    def encode(vision: Vision) -> list[tuple[int, bool | None]]:
        """Encode and tell how."""
        asked.clear()
        backend.encode(vision)
        return asked

    assert encode(family.levels([small, noise(224, 308)])) == [(BUCKET, False)] * 2
    assert encode(family.levels_of_frames([small] * 3)) == [(81, None)]  # type: ignore[attr-defined]
    monkeypatch.setattr(padding, "PART", 200)
    for _ in range(2):
        # Tokens of a step, of which a run has two or one.
        assert encode(family.levels_of_frames([small] * 9)) == [(81, False)] * 3  # type: ignore[attr-defined]
    assert encode(family.levels_of_frames([small] * 9)) == [(81, True)]  # type: ignore[attr-defined]
    assert encode(family.levels_of_frames([small] * 2)) == [(BUCKET, None)]  # type: ignore[attr-defined]
    assert encode(family.levels([small])) == [(BUCKET, None)]
    assert encode(family.levels([small])) == [(81, True)]
    assert encode(family.levels([small, small])) == [(81, False)] * 2
    monkeypatch.setattr(backend._engines["vision"], "captures", False)
    assert encode(family.levels([small])) == [(81, None)]


def test_threads_fill_up_pictures_in_memory_of_their_own(
    pipe: Pipeline, backend: FusedBackend, captures: BoundEngine
) -> None:
    visions = [pipe._family.levels([noise(*size)]) for size in SIZES]
    wanted = [bare(backend, vision) for vision in visions]
    found: dict[int, list[NDArray[Any]]] = {}

    def encode(start: int) -> None:
        """Encode every picture twice, each thread in another order."""
        order = [(start + number) % len(visions) for number in range(len(visions))] * 2
        encoded = [(number, backend.encode(visions[number]).numpy().copy()) for number in order]
        found[start] = [part for _, part in sorted(encoded, key=lambda one: one[0])]

    threads = [threading.Thread(target=encode, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for parts in found.values():
        for number, given in enumerate(parts):
            close(given, wanted[number // 2])


@pytest.mark.gpu
@cuda
def test_padded_pictures_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16, whose kernels may differ by size; from the second round on, buckets alone are launched."""
    written = export(
        NANO, tmp_path / "bundle", ExportOptions(precision="fp16", operators="onnxruntime")
    )
    monkeypatch.setattr(buckets, "MOST_EXACT", 0)
    with Pipeline.load(written.root, device="cuda") as pipeline:
        backend = pipeline._backend
        assert isinstance(backend, FusedBackend)
        for height, width in SIZES * 3:
            vision = pipeline._family.levels([noise(height, width)])
            spoil(backend)
            given = backend.encode(vision).numpy().astype(np.float32)
            close(given, bare(backend, vision), 0.01)
        assert len(backend._engines["vision"].calls) == 3
