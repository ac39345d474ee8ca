"""The nano checkpoint in torch against transformers' own, whole, pruned and with smaller pictures."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

from foveate.calibration.torch_model import TorchModel
from tests.calibration.plain import attention_maps, close
from tests.conftest import NANO, Sample
from tests.reference import Reference


def test_the_first_layers_attention_is_transformers_own(
    model: TorchModel, eager: Qwen2VLForConditionalGeneration, sample: Sample
) -> None:
    question = model.prepare(sample.question, [Image.open(sample.image)])
    maps = attention_maps(
        eager.model.language_model,
        eager.lm_head,
        question.embeds.double(),
        question.positions[:, None],
        0,
        True,
    )
    prompt = question.prompt
    wanted = maps[0][0][:, prompt.instruction_index][:, :, prompt.visual_index]
    found = model.attention(question)
    assert found.shape == (4, len(prompt.instruction_index), len(prompt.visual_index))
    assert close(found, wanted)


def test_what_is_kept_alone_answers_as_transformers_does(
    model: TorchModel, samples: list[Sample]
) -> None:
    by_transformers = Reference()
    for sample in samples[:4]:
        picture = Image.open(sample.image)
        question = model.prepare(sample.question, [picture])
        kept = np.arange(0, len(question.prompt.visual_index), 3)
        request = by_transformers.prepare(sample.question, [picture])
        assert model.answer(question, kept) == by_transformers.generate_kept(request, kept, 64)


def sides(boxes: NDArray[np.float32]) -> tuple[int, int]:
    """How many boxes stand side by side, and how many one under the other."""
    return len(np.unique(boxes[:, 0])), len(np.unique(boxes[:, 1]))


class TestShrunk:
    @pytest.mark.parametrize("name", ["scene-77-00004.png", "easy-vqa-0113.png"])
    def test_no_more_tokens_than_the_limit(self, model: TorchModel, name: str) -> None:
        picture = Image.open(NANO / "samples" / name)
        whole = model.prepare("What?", [picture])
        columns, rows = sides(whole.visual.boxes)
        used = []
        for most in (1, 2, 5, 11, 32, whole.visual.tokens - 1):
            smaller = model.prepare("What?", [picture], [most])
            used.append(smaller.visual.tokens)
            assert most / 3 <= used[-1] <= most
            some_columns, some_rows = sides(smaller.visual.boxes)
            assert some_rows <= rows
            assert some_columns <= columns
        assert used == sorted(used)
        same = model.prepare("What?", [picture], [whole.visual.tokens])
        assert torch.equal(same.embeds, whole.embeds)

    @pytest.mark.parametrize("size", [(30, 3000), (4000, 40), (7, 900), (1, 1), (3000, 2900)])
    def test_odd_shapes(self, model: TorchModel, size: tuple[int, int]) -> None:
        picture = Image.new("RGBA", size, (200, 10, 10, 90))
        for most in (1, 3, 20):
            assert 1 <= model.prepare("What?", [picture], [most]).visual.tokens <= most
