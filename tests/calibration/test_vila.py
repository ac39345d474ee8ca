"""VILA1.5 calibrated: attention and relevance against their definitions, and the verbs one after the other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.torch_model import TorchModel
from foveate.errors import ImageError
from foveate.families.base import Video
from tests.calibration.plain import attention_maps, close, plain_relevance
from tests.command import invoke

QUESTION, EACH = "What can be seen in the pictures?", 49


@pytest.fixture(scope="module")
def vila(vila_checkpoint: Path) -> TorchModel:
    return TorchModel.load(str(vila_checkpoint), "fp32", "cpu")


@pytest.fixture(scope="module")
def llama(vila_checkpoint: Path) -> LlamaForCausalLM:
    """Its language model as transformers loads it, eager and in float64."""
    model = LlamaForCausalLM.from_pretrained(
        vila_checkpoint / "llm", dtype=torch.float64, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


def noise(seed: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    )


def test_attention_and_relevance_are_their_definitions(
    vila: TorchModel, llama: LlamaForCausalLM
) -> None:
    for media in ([noise(1)], [Video((noise(2), noise(3))), noise(4)]):
        question = vila.prepare(QUESTION, media)
        prompt, embeds = question.prompt, question.embeds.double()
        maps = attention_maps(llama.model, llama.lm_head, embeds, question.positions, 0, True)
        wanted = maps[0][0][:, prompt.instruction_index][:, :, prompt.visual_index]
        assert close(vila.attention(question), wanted)
    said = vila.answer(question, most=2)
    assert len(said) == 2
    rows = vila.language.embedding(torch.tensor(said)).double()[None]
    positions = torch.arange(prompt.next_position + 2)[None]
    modes: tuple[Mode, ...] = ("grad", "grad-clamp", "mean")
    for mode in modes:
        whole = plain_relevance(
            llama.model, llama.lm_head, torch.cat([embeds, rows], 1), positions, said, mode
        )
        assert close(vila.relevance(question, said, mode), whole[prompt.visual_index])


def test_text_alone_is_answered(vila: TorchModel, llama: LlamaForCausalLM) -> None:
    question = vila.prepare(QUESTION, [])
    assert question.visual.tokens == 0
    with torch.no_grad():
        logits = llama(torch.from_numpy(question.prompt.token_ids)[None]).logits[0, -1]
    assert vila.answer(question, most=1) == [int(logits.argmax())]


def test_pictures_have_fewer_tokens_by_pooling(vila: TorchModel) -> None:
    """A picture has 7 x 7 tokens whatever its size: fewer are means of them, each with what it shows."""
    pictures = [noise(1), noise(4)]
    whole, smaller = vila.encode(pictures), vila.encode(pictures, [EACH, 1])
    assert smaller.visual.picture.tolist() == [0] * EACH + [1]
    assert close(smaller.embeds[:EACH], whole.embeds[:EACH].double())
    assert close(smaller.embeds[EACH], whole.embeds[EACH:].double().mean(0))
    assert np.array_equal(smaller.visual.boxes[:EACH], whole.visual.boxes[:EACH])
    assert smaller.visual.boxes[EACH].tolist() == [0, 0, *whole.visual.boxes[EACH - 1, 2:]]
    question = vila.ask(QUESTION, smaller)
    assert len(question.prompt.visual_index) == EACH + 1
    assert vila.answer(question, most=1)
    (few,) = vila.encode([noise(1)], [4]).embeds[None]
    grid = whole.embeds[:EACH].double().reshape(7, 7, -1)
    shares = torch.tensor([1, 1, 1, 0.5]).double() / 3.5
    corner = (shares[:, None, None] * shares[None, :, None] * grid[:4, :4]).sum((0, 1))
    assert close(few[0], corner)
    with pytest.raises(ImageError, match="a video is not made smaller"):
        vila.encode([Video((noise(1),))], [4])


def test_the_verbs_make_a_compressor_that_ranks(vila_checkpoint: Path, tmp_path: Path) -> None:
    lines = []
    for number in range(10):
        noise(number).save(tmp_path / f"{number}.png")
        record = {"id": str(number), "image": f"{number}.png", "question": QUESTION, "answer": "x"}
        lines.append(json.dumps(record))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines))
    maps, weights, bundle = tmp_path / "maps", tmp_path / "f.safetensors", tmp_path / "bundle"
    for command in (
        ("calibrate", "relevance", vila_checkpoint, data, maps, "--keep-wrong", "--mode", "grad-clamp",
         "--max-new-tokens", 3),
        ("calibrate", "train", maps, weights, "--epochs", 2),
        ("calibrate", "show", vila_checkpoint, tmp_path / "sheet.png", "--image", tmp_path / "0.png",
         "--question", QUESTION, "--compressor", weights),
        ("export", vila_checkpoint, bundle, "--compressor", weights, "--operators", "contrib"),
    ):  # fmt: skip
        done = invoke(*command)
        assert done.exit_code == 0, done.stderr
    told = invoke(
        "evaluate", vila_checkpoint, data, "--limit", 2, "--keep", "0.25",
        "--rank", weights, "--ways", "own,smaller", "--answers", tmp_path / "answers.jsonl", "--json",
    )  # fmt: skip
    assert told.exit_code == 0, told.stderr
    assert '"smaller"' in told.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 200
    assert Bundle.open(bundle).manifest.compressor.kind == "f_theta"
    with Pipeline.load(bundle, device="cpu") as pipe:
        answer = pipe.generate(QUESTION, images=[noise(0)], keep=0.25, max_new_tokens=1)
    assert (answer.visual.kept, answer.visual.total) == (12, EACH)
