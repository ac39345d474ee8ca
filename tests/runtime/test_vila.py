"""VILA1.5 from pictures to tokens on every engine, against a plain loop over transformers' own parts."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import LimitError
from foveate.families.base import Prompt, Video, user_turn
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.vila import TorchVila
from foveate.runtime import VideoFile, read_video
from foveate.runtime.answer import Answer
from foveate.runtime.heatmap import draw_heatmaps
from tests.runtime.media.films import number_of, seconds, write_film
from tests.runtime.watched import grids

ENGINES = ("standard", "contrib", "tensorrt")
EACH, NEW = 49, 6
QUESTIONS = (
    "What can be seen in the pictures?",
    "Which one is seen?",
    "What is the helpful picture?",
    "Can a language assistant see?",
)


class Reference:
    """The checkpoint's parts as transformers loads them, and a loop that decodes greedily."""

    def __init__(self, folder: Path) -> None:
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
        self.tower = SiglipVisionModel.from_pretrained(folder / "vision_tower", **options).eval()
        self.llm = LlamaForCausalLM.from_pretrained(folder / "llm", **options).eval()
        self.processor = SiglipImageProcessorPil.from_pretrained(folder / "vision_tower")
        checkpoint = Checkpoint.open(folder)
        self.projector = TorchVila().load(checkpoint, torch.float32, "eager").projector
        self.stops = set(checkpoint.stops())

    @torch.no_grad()
    def encode(self, pictures: list[Image.Image]) -> Tensor:
        """Visual tokens [N_v, H]."""
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        return torch.cat([self.projector(one[None])[0] for one in states])

    @torch.no_grad()
    def generate(
        self, prompt: Prompt, visual: Tensor, kept: NDArray[np.int64] | None = None
    ) -> list[int]:
        """Greedy tokens, with all visual tokens or with those of the ordinals `kept`, at their positions."""
        embeds = self.llm.model.embed_tokens(torch.from_numpy(prompt.token_ids))
        embeds[prompt.visual_index] = visual
        stays = np.arange(len(embeds))
        if kept is not None:
            stays = np.setdiff1d(stays, np.delete(prompt.visual_index, kept))
        states, places = embeds[stays][None], torch.from_numpy(stays)[None]
        cache, found = DynamicCache(), list[int]()
        while len(found) < NEW:
            logits = self.llm(
                inputs_embeds=states, position_ids=places, past_key_values=cache, use_cache=True
            ).logits
            found.append(int(logits[0, -1].argmax()))
            if found[-1] in self.stops:
                return found[:-1]
            states = self.llm.model.embed_tokens(torch.tensor([found[-1:]]))
            places = torch.tensor([[len(embeds) + len(found) - 1]])
        return found


def noise(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Pictures of random levels, and of a colour of their own."""
    random = np.random.default_rng(count * 1000 + height)
    levels = random.integers(0, 256, (count, height, width, 3)) // 2
    return np.asarray(levels + random.integers(0, 128, (count, 1, 1, 3)), np.uint8)


PICTURES = [Image.fromarray(noise(1, 40 + 9 * n, 90 - 7 * n)[0]) for n in range(8)]
VIDEOS = [noise(2 + n % 3, 30 + n, 50) for n in range(8)]


class Asked:
    """A question about pictures or frames, prepared once for all engines."""

    def __init__(self, reference: Reference, pipe: Pipeline, question: str, **media: Any) -> None:
        self.reference, self.question, self.media = reference, question, media
        frames = [Image.fromarray(one) for one in media.get("video", ())]
        self.shown: list[Image.Image] = frames or media["images"]
        given: list[Any] = [Video(tuple(frames))] if frames else self.shown
        family = pipe._family
        self.prompt = family.layout(user_turn(question, given), family.plan(given))

    @cached_property
    def visual(self) -> Tensor:
        return self.reference.encode(self.shown)

    @cached_property
    def whole(self) -> list[int]:
        return self.reference.generate(self.prompt, self.visual)

    def answered(self, pipe: Pipeline, **options: Any) -> Answer:
        """What the pipeline answers."""
        return pipe.generate(self.question, **self.media, **options, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def reference(vila_checkpoint: Path) -> Reference:
    return Reference(vila_checkpoint)


@pytest.fixture(scope="module")
def contrib(vila_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The checkpoint's bundle of contrib operators."""
    from foveate.export.exporter import ExportOptions, export

    folder = tmp_path_factory.mktemp("vila_contrib") / "bundle"
    return export(vila_checkpoint, folder, ExportOptions(operators="contrib"))


@pytest.fixture(scope="module")
def pipes(vila_bundle: Bundle, contrib: Bundle) -> Iterator[dict[str, Pipeline]]:
    """The checkpoint on every engine that runs without a GPU."""
    from tests.runtime.backends.trt.hosted import host_pipeline

    opened = {
        "standard": Pipeline.load(vila_bundle.root, device="cpu"),
        "contrib": Pipeline.load(contrib.root, device="cpu"),
        "tensorrt": host_pipeline(vila_bundle, "static"),
    }
    yield opened
    for pipe in opened.values():
        pipe.close()


@pytest.fixture(scope="module")
def asked(reference: Reference, pipes: dict[str, Pipeline]) -> list[Asked]:
    """Eight questions about a picture, eight about a video, and two about several pictures."""
    pipe = pipes["standard"]
    media: list[dict[str, Any]] = [{"images": [picture]} for picture in PICTURES]
    media += [{"video": video} for video in VIDEOS]
    media += [{"images": PICTURES[:2]}, {"images": PICTURES[3:6]}]
    return [
        Asked(reference, pipe, QUESTIONS[number % len(QUESTIONS)], **one)
        for number, one in enumerate(media)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_with_all_tokens_answers_are_those_of_the_model(
    engine: str, pipes: dict[str, Pipeline], asked: list[Asked]
) -> None:
    """Greedy tokens identical, which leaves no tolerance."""
    answers = [tuple(one.answered(pipes[engine], keep=1.0).token_ids) for one in asked]
    assert answers == [tuple(one.whole) for one in asked]
    assert len(set(answers)) > 8


@pytest.mark.parametrize(
    ("engine", "keep"), [("standard", 0.5), ("standard", 7), ("contrib", 0.25), ("tensorrt", 0.1)]
)
def test_with_some_answers_are_those_of_dropping_the_same(
    engine: str, keep: float, pipes: dict[str, Pipeline], asked: list[Asked]
) -> None:
    for one in asked:
        answer = one.answered(pipes[engine], keep=keep)
        kept = answer.visual.indices
        assert len(kept) == answer.visual.kept < answer.visual.total == EACH * len(one.shown)
        assert answer.token_ids == one.reference.generate(one.prompt, one.visual, kept)


def test_engines_rank_alike(pipes: dict[str, Pipeline], asked: list[Asked]) -> None:
    """1e-4 relative: float32 sums in another order."""
    for one in asked[::4]:
        relevance = [one.answered(pipe, keep=0.25).visual.relevance for pipe in pipes.values()]
        for other in relevance[1:]:
            np.testing.assert_allclose(other, relevance[0], rtol=1e-4, atol=1e-7)


def test_generate_of_transformers_says_the_same(asked: list[Asked], reference: Reference) -> None:
    one = asked[0]
    embeds = reference.llm.model.embed_tokens(torch.from_numpy(one.prompt.token_ids))
    with torch.no_grad():
        embeds[one.prompt.visual_index] = one.visual
        tokens = reference.llm.generate(
            inputs_embeds=embeds[None], max_new_tokens=NEW, do_sample=False,
            eos_token_id=list(reference.stops), pad_token_id=0,
        )[0].tolist()  # fmt: skip
    assert [token for token in tokens if token not in reference.stops] == one.whole


def test_a_conversation_of_pictures_and_a_video(
    pipes: dict[str, Pipeline], reference: Reference
) -> None:
    """Turns of both kinds go through the family: the pipeline's requests take one kind at a time."""
    pipe = pipes["standard"]
    frames = [Image.fromarray(one) for one in VIDEOS[1]]
    media = [PICTURES[0], Video(tuple(frames)), PICTURES[1]]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "video"}]},
        {"role": "assistant", "content": "Seen."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]},
    ]
    visual = pipe._family.prepare(media)
    prompt = pipe._family.layout(messages, visual)
    shown = [PICTURES[0], *frames, PICTURES[1]]
    wanted = reference.encode(shown).numpy()
    found = np.asarray(pipe._backend.encode(visual))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert prompt.visual_index.shape == (EACH * len(shown),)
    images = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, said("And?")]},
        {"role": "assistant", "content": "Seen."},
        {"role": "user", "content": [{"type": "image"}, said("Which?")]},
    ]
    answer = pipe.generate(images, images=PICTURES[:3], keep=0.3, max_new_tokens=NEW)
    plan = pipe._family.plan(PICTURES[:3])
    laid = pipe._family.layout(images, plan)
    visual_embeds = reference.encode(PICTURES[:3])
    assert answer.token_ids == reference.generate(laid, visual_embeds, answer.visual.indices)


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_a_video_file_gives_frames_evenly_apart(
    pipes: dict[str, Pipeline], reference: Reference, tmp_path: Path
) -> None:
    """Eight frames by the checkpoint, whatever the film's length; another number is to be had."""
    pytest.importorskip("av")
    film = write_film(tmp_path / "film.mkv", seconds(90))
    pipe = pipes["standard"]
    frames = read_video(film, rule=pipe._family.frame_rule)
    assert list(map(number_of, frames)) == [number * 90 // 8 for number in range(8)]
    answer = pipe.generate(QUESTIONS[0], video=film, keep=0.25, max_new_tokens=NEW)
    assert grids(answer.visual) == [(number, 7, 7) for number in range(8)]
    assert (answer.visual.total, answer.visual.kept) == (8 * EACH, 2 * EACH)
    one = Asked(reference, pipe, QUESTIONS[0], images=frames)
    assert answer.token_ids == reference.generate(one.prompt, one.visual, answer.visual.indices)
    few = pipe.generate(QUESTIONS[0], video=VideoFile(film, fps=1), max_new_tokens=1)
    assert len(grids(few.visual)) == 3


def test_heatmaps_of_pictures_and_frames(pipes: dict[str, Pipeline], asked: list[Asked]) -> None:
    for one in (asked[0], asked[10]):
        answer = one.answered(pipes["standard"], keep=0.25)
        drawn = draw_heatmaps(one.shown, answer.visual)
        assert drawn.mode == "RGB"
        assert len(np.unique(np.asarray(drawn))) > 50


def test_a_limit_of_pixels_is_refused(pipes: dict[str, Pipeline]) -> None:
    with pytest.raises(LimitError, match="54 x 54"):
        pipes["standard"].generate("What?", images=[PICTURES[0]], max_pixels=1000)
