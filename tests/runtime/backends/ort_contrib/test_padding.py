"""Pictures padded to buckets: the visual tokens of bare ones, and which pictures are padded."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.families.base import Medium, Video, VisualInput
from foveate.runtime.backends import buckets
from foveate.runtime.backends.ort_contrib import padding
from foveate.runtime.backends.ort_contrib.backend import ContribBackend
from foveate.runtime.backends.ort_contrib.io_binding import IoBoundEngine
from foveate.runtime.backends.ort_contrib.padding import PICTURE
from foveate.runtime.tensors import on_host
from tests.conftest import Sample

VISUAL = 1e-5
"""Of the largest value: padding has weights of exactly 0, yet longer sums may be added up in
another order (they were not where this was written: there was no difference)."""

SIZES = [(364, 252), (224, 308), (252, 420), (252, 252), (224, 224), (448, 252)]
"""117, 88, 135, 81, 64 and 144 visual tokens, of which 64 are a full bucket."""
BUCKET = 2 * PICTURE


@pytest.fixture
def pipe(contrib_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(contrib_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture
def backend(pipe: Pipeline) -> ContribBackend:
    assert isinstance(pipe._backend, ContribBackend)
    return pipe._backend


@pytest.fixture
def captures(backend: ContribBackend, monkeypatch: pytest.MonkeyPatch) -> IoBoundEngine:
    """The vision engine as it is on CUDA; a CPU runs every time what CUDA captures once."""
    monkeypatch.setattr(backend.engines["vision"], "captures", True)
    return backend.engines["vision"]


@pytest.fixture
def runs(captures: IoBoundEngine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool | None]]:
    """Visual tokens of each run of the vision graph, and what is to be captured."""
    noted: list[tuple[int, bool | None]] = []
    run = captures.run

    def noting(feeds: Any, *others: Any, **options: Any) -> Any:
        """Note the run, and run."""
        noted.append((len(feeds["position_ids"]) // 4, options["capture"]))
        return run(feeds, *others, **options)

    monkeypatch.setattr(captures, "run", noting)
    return noted


def noise(height: int, width: int) -> Image.Image:
    """A picture that nothing resizes."""
    random = np.random.default_rng(height * width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def spoil(backend: ContribBackend) -> None:
    """Put other bytes where pictures of this thread are padded."""
    memory = getattr(backend._padding.own, "memory", None)
    if memory is not None:
        memory[:] = np.random.default_rng(1).integers(0, 256, memory.shape, np.uint8)


def encode(backend: ContribBackend, visual: VisualInput) -> NDArray[Any]:
    """The visual tokens as the backend gives them."""
    return np.array(on_host(backend.encode(visual)), np.float32)


def bare(backend: ContribBackend, visual: VisualInput) -> NDArray[Any]:
    """The visual tokens of one picture or video that is run as it is."""
    shapes = {"visual_embeds": (visual.tokens, backend._width)}
    outputs = backend.engines["vision"].run(visual.calls[0].inputs, shapes, capture=False)
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
    backend: ContribBackend,
    runs: list[tuple[int, bool | None]],
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    steps: list[int],
) -> None:
    monkeypatch.setattr(padding, "PART", tokens)
    frames = [noise(224, 364 + 28 * number).resize((280, 280)) for number in range(25)]
    visual = pipe._family.prepare([Video(tuple(frames))])
    parts = visual.calls[0].parts(padding.PART)
    assert [len(part.inputs["levels"]) for part in parts] == steps
    assert sum(part.tokens for part in parts) == visual.tokens
    runs.clear()
    close(encode(backend, visual), bare(backend, visual))
    assert runs[:-1] == [(100, False)] * len(steps)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_padded_picture_gives_the_visual_tokens_of_a_bare_one(
    pipe: Pipeline,
    backend: ContribBackend,
    captures: IoBoundEngine,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
) -> None:
    """Memory is used again, buckets are captured from their second picture on, and their rest is not read."""
    family = pipe._family
    monkeypatch.setattr(buckets, "MOST_EXACT", 0)
    for height, width in SIZES * 2:
        picture = noise(height, width)
        if frames == 1:
            visual = family.prepare([picture])
        else:
            visual = family.prepare([Video((picture, picture.rotate(180)))])
        assert visual.calls[0].inputs["levels"].shape[:2] == (1, frames)
        spoil(backend)
        close(encode(backend, visual), bare(backend, visual))
    assert len(captures.graphs) == 3


def test_answers_are_those_of_bare_pictures(
    pipe: Pipeline,
    backend: ContribBackend,
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
    monkeypatch.setattr(backend.engines["vision"], "captures", True)
    for given, wanted in zip(answers(), unpadded, strict=True):
        assert given.token_ids == wanted.token_ids
        assert np.array_equal(given.visual.indices, wanted.visual.indices)
        assert given.cache_bytes == wanted.cache_bytes
    assert backend._padding.own.memory.size


def test_a_size_is_padded_until_it_has_come_often(
    pipe: Pipeline,
    backend: ContribBackend,
    captures: IoBoundEngine,
    runs: list[tuple[int, bool | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "MOST_EXACT", 2)

    def encode(*size: int) -> tuple[int, bool | None]:
        """Encode a picture of this size and tell how."""
        backend.encode(pipe._family.prepare([noise(*size)]))
        return runs[-1]

    assert encode(252, 252) == (BUCKET, None)
    assert len(captures.graphs) == 0
    assert encode(224, 308) == (BUCKET, None)
    assert len(captures.graphs) == 1
    assert encode(252, 252) == (BUCKET, None)
    assert encode(252, 252) == (81, True)
    assert encode(252, 252) == (81, True)
    assert len(captures.graphs) == 2
    assert encode(308, 224) == (BUCKET, None)
    assert encode(308, 224) == (88, True)
    for _ in range(4):
        assert encode(168, 420) == (BUCKET, None)
    assert encode(224, 308) == (88, True)
    assert len(captures.graphs) == 3
    assert len(backend._padding.repeats.exact) == 2


def test_what_is_padded(
    pipe: Pipeline,
    backend: ContribBackend,
    runs: list[tuple[int, bool | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family, small = pipe._family, noise(252, 252)

    def encode(*media: Medium, lasting: bool = False) -> list[tuple[int, bool | None]]:
        """Encode and tell how."""
        runs.clear()
        backend.encode(family.prepare(media), lasting=lasting)
        return runs

    def video(count: int) -> Video:
        """A video of so many frames."""
        return Video((small,) * count)

    assert encode(small, noise(224, 308)) == [(BUCKET, False)] * 2
    assert encode(video(3)) == [(81, None)]
    monkeypatch.setattr(padding, "PART", 200)
    for _ in range(2):
        # Tokens of a step, of which a run has two or one.
        assert encode(video(9)) == [(81, False)] * 3
    assert encode(video(9)) == [(81, True)]
    assert encode(video(2)) == [(BUCKET, None)]
    assert encode(small) == [(BUCKET, None)]
    assert encode(small) == [(81, True)]
    assert encode(small, lasting=True) == [(81, False)]
    assert encode(small, small) == [(81, False)] * 2
    monkeypatch.setattr(backend.engines["vision"], "captures", False)
    assert encode(small) == [(81, None)]


def test_threads_pad_pictures_in_memory_of_their_own(
    pipe: Pipeline, backend: ContribBackend, captures: IoBoundEngine
) -> None:
    visuals = [pipe._family.prepare([noise(*size)]) for size in SIZES]
    wanted = [bare(backend, visual) for visual in visuals]
    found: dict[int, list[NDArray[Any]]] = {}

    def work(start: int) -> None:
        """Encode every picture twice, each thread in another order."""
        order = [(start + number) % len(visuals) for number in range(len(visuals))] * 2
        encoded = [(number, encode(backend, visuals[number])) for number in order]
        found[start] = [part for _, part in sorted(encoded, key=lambda one: one[0])]

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for parts in found.values():
        for number, given in enumerate(parts):
            close(given, wanted[number // 2])
