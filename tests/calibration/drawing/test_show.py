"""Sheets of real questions: the answers under the panels, and what the verb refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from foveate.calibration.dataset import Record
from foveate.calibration.drawing.sheet import GAP, GUTTER, PANEL, draw_sheet, panel_size
from foveate.calibration.drawing.show import gather_samples, sheet_entry
from foveate.calibration.drawing.words import GROUND, Word, words_height
from foveate.calibration.evaluation.rankings import ranked
from foveate.calibration.ranking import top
from foveate.calibration.torch_model import TorchModel
from foveate.errors import DataError, ImageError, PromptError
from foveate.modeling.f_theta import FTheta
from foveate.modeling.ranker import Ranker
from foveate.runtime.heatmap import token_map
from tests.calibration.conftest import SCENE
from tests.calibration.drawing.test_sheet import panel
from tests.command import invoke, refused
from tests.conftest import NANO

RED_SQUARE, PURPLE_SQUARE = (
    f"What letter is in the {colour} square?" for colour in ("red", "purple")
)


def test_two_questions_about_one_picture_need_two_places(model: TorchModel) -> None:
    first, second = (
        sheet_entry(model, Record("", (SCENE,), question, ()), [0.25], mode="grad-clamp")
        for question in (RED_SQUARE, PURPLE_SQUARE)
    )
    assert (first.answer, second.answer) == ("E", "F")
    shares = []
    for entry in (first, second):
        scores = entry.rankings[0].scores
        relevance = token_map(scores / scores.sum(), entry.visual, 0)
        shares.append((relevance[:3, :4].sum(), relevance[8:, 3:7].sum()))
    (red_asked, purple_left), (red_left, purple_asked) = shares
    assert red_asked > 1.1 * red_left
    assert purple_asked > 1.1 * purple_left
    sheet = draw_sheet([first, second])
    width, _ = panel_size(first.pictures[0].size)
    assert (panel(sheet, 0, 0, width) == panel(sheet, 0, 2, width)).all()
    assert (panel(sheet, 1, 0, width) != panel(sheet, 1, 2, width)).any()


def test_answers_below_panels_are_those_of_the_kept_tokens(
    model: TorchModel, f_theta: Path
) -> None:
    network, _ = FTheta.load(f_theta)
    entry = sheet_entry(model, Record("", (SCENE,), RED_SQUARE, ()), [1.0, 0.5, 3], Ranker(network))
    question = model.prepare(RED_SQUARE, entry.pictures)
    relevance, guess = entry.rankings
    assert (relevance.name, guess.name) == ("R_v", "f_θ")
    logits = ranked(Ranker(network), model.attention(question))[0].numpy()
    assert guess.kept[1].indices.tolist() == top(logits, 55).tolist()
    assert guess.scores.sum() == pytest.approx(1, abs=1e-5)
    for each in entry.rankings:
        assert [len(kept.indices) for kept in each.kept] == [110, 55, 3]
        for kept in each.kept:
            answer = model.answer(question, kept.indices)
            assert kept.answer == model.text(answer)
            assert kept.same == (answer == model.answer(question))
    assert not guess.kept[2].same
    common = set(guess.kept[1].indices) & set(relevance.kept[1].indices)
    assert guess.kept[1].overlap == len(common) / 55
    assert [kept.overlap for kept in relevance.kept] == [None] * 3


def test_samples_of_a_command_line(tmp_path: Path) -> None:
    picture = Path("a.png")
    one, two = gather_samples(["a.png"], ["Which?", "Why?"], None, [])
    assert (one, two) == (
        Record("1", (picture,), "Which?", ()),
        Record("2", (picture,), "Why?", ()),
    )
    data = tmp_path / "data.jsonl"
    rows = [{"id": name, "image": "a.png", "question": f"{name}?", "answer": "E"} for name in "xyz"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = gather_samples([], [], data, ["z", "x"])
    assert [sample.question for sample in chosen] == ["z?", "x?"]
    assert chosen[0].pictures == (tmp_path / "a.png",)
    assert chosen[0].answers == ("E",)
    with pytest.raises(DataError, match="such as x, y, z"):
        gather_samples([], [], data, ["w"])
    with pytest.raises(DataError, match="--id"):
        gather_samples([], [], data, [])
    with pytest.raises(PromptError, match="--data and --id"):
        gather_samples(["a.png"], [], data, ["x"])
    with pytest.raises(PromptError, match="--question"):
        gather_samples(["a.png"], [], None, [])
    with pytest.raises(ImageError, match="--image"):
        gather_samples([], ["Which?"], None, [])


def test_verb_draws_and_tells(tmp_path: Path, f_theta: Path) -> None:
    out = tmp_path / "sheet.png"
    result = invoke(
        "calibrate", "show", NANO, out, "--image", SCENE, "--question", RED_SQUARE,
        "--question", PURPLE_SQUARE, "--compressor", f_theta, "--keep", "0.5,7", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert [sample["answer"] for sample in told["samples"]] == ["E", "F"]
    for sample in told["samples"]:
        assert (sample["tokens"], sample["tokens_by_image"]) == (110, [110])
        assert [ranking["ranking"] for ranking in sample["rankings"]] == ["R_v", "f_θ"]
        for ranking in sample["rankings"]:
            assert [keep["kept"] for keep in ranking["keeps"]] == [55, 7]
        words = sample["words"]
        assert "".join(word["text"] for word in words) == sample["question"]
        assert len({word["weight"] for word in words}) == 1
    with Image.open(out) as drawn:
        drawn.load()
        assert drawn.width == GUTTER + 4 * (PANEL + GAP)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    again = ("calibrate", "show", NANO, out, "--image", SCENE, "--question", RED_SQUARE)
    refused(invoke(*again), "sheet.png", "--force")


def test_words_are_shaded_by_what_they_count(model: TorchModel) -> None:
    """The colour asked for is darkest, and the words that every question has stay light."""
    record = Record("", (SCENE,), RED_SQUARE, ())
    entry = sheet_entry(model, record, [3], Ranker(words="unusual"), "grad-clamp")
    weights = {word.text.strip(): word.weight for word in entry.words}
    assert max(weights, key=weights.__getitem__) == "red"
    assert weights["red"] > 5 * max(weights[word] for word in ("What", "letter", "is", "in", "the"))
    alike = replace(entry, words=())
    with_words, without = draw_sheet([entry]), draw_sheet([alike])
    more = with_words.height - without.height
    assert more == words_height(entry.words, with_words.width)
    assert GROUND in {colour for _, colour in with_words.getcolors(1 << 24)}
    assert GROUND not in {colour for _, colour in without.getcolors(1 << 24)}


def test_words_wrap_and_parts_of_one_touch() -> None:
    words = [Word("Un", 0.2), Word("usual", 0.2), Word(" words", 0.6)]
    assert words_height(words, 1000) == words_height(words[:1], 1000)
    assert words_height(words, 60) == 3 * words_height(words[:1], 1000)
    assert words_height((), 60) == 0


def test_verb_refuses_early_and_says_why(tmp_path: Path) -> None:
    out, question = tmp_path / "sheet.png", ("--image", SCENE, "--question", RED_SQUARE)
    begin = ("calibrate", "show", NANO)
    refused(invoke(*begin, tmp_path / "sheet.gif", *question), ".png")
    refused(invoke(*begin, out, *question, "--keep", "0.5,much"), "much", "0.25")
    refused(invoke(*begin, out, *question, "--keep", "2000"), "110")
    refused(invoke(*begin, out, "--question", "What?", "--image", tmp_path / "no.png"), "no.png")
    refused(invoke(*begin, out, *question, "--compressor", tmp_path / "no.safetensors"), "no.safe")
    if not torch.cuda.is_available():
        refused(invoke(*begin, out, *question, "--device", "cuda"), "--device cpu")
    assert not list(tmp_path.iterdir())
