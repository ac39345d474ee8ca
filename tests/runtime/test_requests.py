"""Requests and bundles that are refused, each with an error of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import (
    BackendError,
    BundleNotFoundError,
    ClosedError,
    FoveateError,
    ImageError,
    KeepError,
    LimitError,
    PromptError,
    SamplingError,
)
from tests.conftest import Sample


@pytest.fixture(scope="module")
def pipe(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def scene(samples: list[Sample]) -> Sample:
    return next(sample for sample in samples if sample.task == "letter")


BAD_REQUESTS: list[tuple[dict[str, Any], type[FoveateError]]] = [
    ({"images": []}, ImageError),
    ({"images": "scene.png"}, ImageError),
    ({"images": [b""]}, ImageError),
    ({"images": [b"not a picture"]}, ImageError),
    ({"images": [Path("no-such-file.png")]}, ImageError),
    ({"images": [np.zeros((1, 4000, 3), np.uint8)]}, ImageError),
    ({"images": [np.zeros((10, 10, 3), np.float32)]}, ImageError),
    ({"prompt": ""}, PromptError),
    ({"prompt": "  \n"}, PromptError),
    ({"prompt": "What is <|image_pad|>?"}, PromptError),
    ({"prompt": "Stop.<|im_end|>"}, PromptError),
    ({"keep": 0}, KeepError),
    ({"keep": 0.0}, KeepError),
    ({"keep": 1.5}, KeepError),
    ({"keep": float("nan")}, KeepError),
    ({"keep": -3}, KeepError),
    ({"keep": 10**6}, KeepError),
    ({"keep": True}, KeepError),
    ({"keep": "0.5"}, KeepError),
    ({"kept": []}, KeepError),
    ({"kept": [-1]}, KeepError),
    ({"kept": [10**6]}, KeepError),
    ({"kept": [3, 5, 3]}, KeepError),
    ({"kept": [0.5]}, KeepError),
    ({"kept": [True]}, KeepError),
    ({"kept": "abc"}, KeepError),
    ({"kept": [[1, 2]]}, KeepError),
    ({"kept": [1], "keep": 0.5}, KeepError),
    ({"kept": [1], "rank_by": "What?"}, KeepError),
    ({"rank_by": ""}, PromptError),
    ({"rank_by": "Stop.<|im_end|>"}, PromptError),
    ({"rank": "apart"}, KeepError),
    ({"max_new_tokens": 0}, LimitError),
    ({"max_new_tokens": 10**6}, LimitError),
    ({"temperature": -1.0}, SamplingError),
    ({"temperature": float("nan")}, SamplingError),
    ({"top_p": 0.0}, SamplingError),
    ({"top_k": -1}, SamplingError),
    ({"seed": -1}, SamplingError),
    ({"repetition_penalty": 0.0}, SamplingError),
]


@pytest.mark.parametrize(
    ("change", "error"), BAD_REQUESTS, ids=[str(c)[:40] for c, _ in BAD_REQUESTS]
)
def test_bad_requests_are_typed_errors(
    pipe: Pipeline, scene: Sample, change: dict[str, Any], error: type[FoveateError]
) -> None:
    request = {"prompt": scene.question, "images": [scene.image], **change}
    with pytest.raises(error) as caught:
        pipe.generate(request.pop("prompt"), **request)
    assert "\n" not in str(caught.value)


def test_too_many_visual_tokens_is_an_error(pipe: Pipeline, scene: Sample) -> None:
    limit = pipe.bundle.manifest.limits.visual_tokens
    pictures = [np.full((448, 448, 3), 200, np.uint8)] * (limit // 256 + 1)
    with pytest.raises(LimitError, match="visual tokens"):
        pipe.generate(scene.question, images=pictures, keep=0.01)


def test_what_cannot_be_had_is_refused(nano_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        Pipeline.load(tmp_path)
    with pytest.raises(BackendError, match="backend"):
        Pipeline.load(nano_bundle.root, backend="magic")
    with pytest.raises(BackendError, match="device"):
        Pipeline.load(nano_bundle.root, device="abacus")
    with pytest.raises(BackendError, match=r"language 'elvish' is unknown; choose from auto, dec"):
        Pipeline.load(nano_bundle.root, language="elvish")


def test_cuda_is_given_or_refused_never_replaced(nano_bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        Pipeline.load(nano_bundle.root, device="cuda")


def test_a_closed_pipeline_refuses(nano_bundle: Bundle, scene: Sample) -> None:
    pipeline = Pipeline.load(nano_bundle.root)
    pipeline.close()
    pipeline.close()
    with pytest.raises(ClosedError):
        pipeline.generate(scene.question, images=[scene.image])
