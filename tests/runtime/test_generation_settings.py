"""A checkpoint's generation settings in answers: in every form of graph, alone and in batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import LimitError
from foveate.runtime.request import Request
from tests.conftest import NANO, Sample

PROMPT = "Describe the picture."
SETTINGS: dict[str, dict[str, Any]] = {
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 40},
    "bad_words_ids": {"bad_words_ids": [[448, 363], [427]]},
    "suppress_tokens": {"suppress_tokens": [427, 385], "begin_suppress_tokens": [448]},
    "repetition_penalty": {"repetition_penalty": 1.4, "sequence_bias": [[[448], -50.0]]},
    "forced_eos_token_id": {"forced_eos_token_id": [479], "max_new_tokens": 6},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return Qwen2VLForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32)


@pytest.fixture(scope="module", params=["nano_bundle", "contrib_bundle"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    bundle: Bundle = request.getfixturevalue(request.param)
    with Pipeline.load(bundle.root) as opened:
        yield opened


def set_generation(pipe: Pipeline, **fields: Any) -> None:
    """Change the settings of an opened bundle for good."""
    manifest = pipe.bundle.manifest
    generation = replace(manifest.generation, **fields)
    pipe.bundle = Bundle(pipe.bundle.root, replace(manifest, generation=generation))


@pytest.fixture
def usual(pipe: Pipeline) -> Iterator[None]:
    """The settings as they are, afterwards."""
    bundle = pipe.bundle
    yield
    pipe.bundle = bundle


def of_transformers(model: Any, pipe: Pipeline, image: Path, **fields: Any) -> list[int]:
    """The tokens that transformers' generate gives for the same prompt."""
    family: Any = pipe._family
    visual = family.prepare([Image.open(image)])
    prompt = family.layout(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}], visual
    )
    settings = {"max_new_tokens": 64, **fields}
    processed = _processed(image)
    output = model.generate(
        input_ids=torch.from_numpy(prompt.token_ids[None]),
        attention_mask=torch.ones(1, len(prompt.token_ids), dtype=torch.int64),
        mm_token_type_ids=torch.from_numpy(
            (prompt.token_ids[None] == model.config.image_token_id).astype(np.int64)
        ),
        **processed,
        **settings,
    )[0, len(prompt.token_ids) :].tolist()
    return [token for token in output if token not in pipe.bundle.manifest.generation.eos]


def _processed(image: Path) -> dict[str, Any]:
    """A picture by transformers' own image processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(NANO)
    return dict(processor(images=[Image.open(image)], return_tensors="pt"))


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_transformers_generate(
    pipe: Pipeline, model: Any, samples: list[Sample], usual: None, name: str
) -> None:
    image = samples[0].image
    plain = pipe.generate(PROMPT, images=[image], keep=1.0, max_new_tokens=64).token_ids
    wanted = of_transformers(model, pipe, image, **SETTINGS[name])
    settings = {"max_new_tokens": 64, **SETTINGS[name]}
    set_generation(pipe, **settings)
    assert pipe.generate(PROMPT, images=[image], keep=1.0).token_ids == wanted != plain
    requests = [Request(PROMPT, images=[image], keep=1.0)] * 2
    assert [answer.token_ids for answer in pipe.generate_batch(requests)] == [wanted] * 2


def test_a_checkpoint_that_samples_samples(
    pipe: Pipeline, samples: list[Sample], usual: None
) -> None:
    def ask(**options: Any) -> list[int]:
        return pipe.generate(PROMPT, images=[samples[0].image], keep=1.0, **options).token_ids

    greedy = ask()
    set_generation(pipe, do_sample=True, temperature=3.0, top_k=0, max_new_tokens=12)
    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    assert len({tuple(ask()) for _ in range(3)}) > 1
    assert ask(temperature=0) == greedy[:12]
    set_generation(pipe, top_k=1)
    assert ask() == greedy[:12]


def test_max_length_counts_the_whole_prompt(
    pipe: Pipeline, samples: list[Sample], usual: None
) -> None:
    def ask(**options: Any) -> int:
        return len(pipe.generate(PROMPT, images=[samples[0].image], **options).token_ids)

    whole = pipe.generate(PROMPT, images=[samples[0].image], keep=1.0, max_new_tokens=1)
    set_generation(pipe, max_new_tokens=None, max_length=whole.prompt_tokens + 4)
    assert (ask(keep=1.0), ask(keep=0.5), ask(max_new_tokens=7)) == (4, 4, 7)
    set_generation(pipe, max_length=whole.prompt_tokens)
    with pytest.raises(LimitError, match="max_length"):
        ask()
