"""onnxruntime on standard operators: what it stages, encodes and gathers."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import ClosedError
from foveate.families.base import Prompt, VisualInput, user_turn
from foveate.runtime.backends.ort.backend import OrtBackend
from foveate.runtime.keep import select
from foveate.runtime.tensors import on_host
from tests.conftest import NANO


@pytest.fixture(scope="module")
def pipe(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture
def backend(pipe: Pipeline) -> OrtBackend:
    assert isinstance(pipe._backend, OrtBackend)
    return pipe._backend


@pytest.fixture
def prepared(pipe: Pipeline, pictures: list[Image.Image]) -> tuple[VisualInput, Prompt]:
    """Three pictures, and a prompt about them."""
    visual = pipe._family.prepare(pictures)
    return visual, pipe._family.layout(user_turn("What is there?", pictures), visual)


@pytest.fixture(scope="module")
def rows() -> NDArray[Any]:
    """The checkpoint's embedding rows, read as the specification of safetensors has them."""
    data = (NANO / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    (entry,) = (one for name, one in header.items() if name.endswith("embed_tokens.weight"))
    begin, end = entry["data_offsets"]
    kind = {"F32": np.float32, "F16": np.float16}[entry["dtype"]]
    part = np.frombuffer(data[8 + length + begin : 8 + length + end], kind)
    return part.reshape(entry["shape"]).astype(np.float32)


def test_rows_of_the_table_are_those_of_the_checkpoint(
    backend: OrtBackend, rows: NDArray[Any]
) -> None:
    assert backend.table.rows.shape == rows.shape
    assert np.array_equal(backend.table.rows, rows)


def test_all_tokens_are_gathered_in_the_prompts_order(
    backend: OrtBackend, prepared: tuple[VisualInput, Prompt], rows: NDArray[Any]
) -> None:
    visual, prompt = prepared
    embeds = backend.encode(visual)
    kept = backend.compress(embeds, backend.stage(prompt, select(visual, 1.0)))
    whole = rows[prompt.token_ids]
    whole[prompt.visual_index] = on_host(embeds)
    assert np.array_equal(on_host(kept.embeds)[0], whole)
    positions: Any = kept.position_ids
    assert np.array_equal(positions, prompt.position_ids[:, None])
    assert kept.scores is None and kept.selection().relevance is None


def test_the_graphs_top_k_is_that_of_the_scores(
    backend: OrtBackend, prepared: tuple[VisualInput, Prompt], rows: NDArray[Any]
) -> None:
    visual, prompt = prepared
    embeds = backend.encode(visual)
    for keep in (2, 0.1, 0.5):
        selection = select(visual, keep)
        kept = backend.compress(embeds, backend.stage(prompt, selection))
        assert kept.scores is not None
        indices = kept.selection().indices
        assert np.array_equal(indices, selection.choose(kept.scores.numpy()))
        whole = rows[prompt.token_ids]
        whole[prompt.visual_index] = on_host(embeds)
        assert np.array_equal(on_host(kept.embeds)[0], whole[kept.kept_index])
        positions: Any = kept.position_ids
        assert np.array_equal(positions.numpy()[:, 0], prompt.position_ids[:, kept.kept_index])


def test_a_closed_backend_refuses(
    nano_bundle: Bundle, prepared: tuple[VisualInput, Prompt]
) -> None:
    backend = OrtBackend.open(nano_bundle, device="cpu", threads=1)
    visual, prompt = prepared
    embeds, staged = backend.encode(visual), backend.stage(prompt, select(visual, 0.5))
    backend.close()
    backend.close()
    with pytest.raises(ClosedError):
        backend.encode(visual)
    with pytest.raises(ClosedError):
        backend.compress(embeds, staged)
