"""What sheets show: every panel's pixels, the answers under them, and what the verb refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from foveate.calibration.drawing.sheet import (
    GAP,
    GUTTER,
    GUTTER_COLOURS,
    PANEL,
    Kept,
    Look,
    View,
    draw_sheet,
    legible,
    masked,
    panel_size,
    signed_colours,
    signed_spread,
    typeface,
    wrapped,
)
from foveate.calibration.drawing.show import Sample, gather_samples, look
from foveate.calibration.evaluation.rankings import predicted, top
from foveate.calibration.torch_model import TorchModel
from foveate.errors import DataError, ImageError, PromptError
from foveate.modeling.f_theta import FTheta
from tests.command import invoke, refused
from tests.conftest import NANO

GREEN = (40, 170, 60)
SCENE = NANO / "samples" / "scene-77-00004.png"
RED_SQUARE, PURPLE_SQUARE = (
    f"What letter is in the {colour} square?" for colour in ("red", "purple")
)


@pytest.fixture(scope="module")
def model() -> TorchModel:
    return TorchModel.load(NANO)


@pytest.fixture(scope="module")
def compressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compressor") / "f_theta.safetensors"
    torch.manual_seed(0)
    FTheta().save(path, {})
    return path


def view(scores: list[float], kept: list[int], name: str = "R_v") -> View:
    left = Kept(0.5, np.array(kept), "E", True, None)
    return View(name, "of a test", np.array(scores, dtype=np.float32), (left,))


def one_look(view: View, *grids: tuple[int, int, int], size: tuple[int, int] = (400, 400)) -> Look:
    pictures = tuple(Image.new("RGB", size, GREEN) for _ in grids)
    return Look("What?", pictures, ("scene.png",) * len(grids), grids, "E", (), (view,))


def panel(sheet: Image.Image, column: int, row: int = 0, width: int = PANEL) -> NDArray[np.uint8]:
    """A panel of a sheet; rows begin and end with the label at the left."""
    pixels = np.asarray(sheet)
    label = np.isin(pixels[:, GAP // 2 + 1], GUTTER_COLOURS).all(axis=-1).astype(int)
    edges = np.diff(label, prepend=0, append=0)
    begin, end = np.flatnonzero(edges == 1)[row], np.flatnonzero(edges == -1)[row]
    left = GUTTER + GAP // 2 + column * (PANEL + GAP)
    return pixels[begin:end, left : left + width]


def cell(pixels: NDArray[np.uint8], token: int, side: int) -> NDArray[np.uint8]:
    """One token's pixels in the panel of a grid of `side` rows and columns."""
    step = PANEL // side
    row, column = divmod(token, side)
    return pixels[row * step : (row + 1) * step, column * step : (column + 1) * step]


def test_dropped_tokens_are_exactly_white_and_kept_ones_exactly_the_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 250, (PANEL, PANEL, 3), dtype=np.uint8)
    seen = one_look(view([0.1] * 16, [0, 5, 6, 11]), (1, 4, 4))
    seen.pictures[0].paste(Image.fromarray(noise).resize(seen.pictures[0].size))
    sheet = draw_sheet([seen])
    original, result = panel(sheet, 0), panel(sheet, 2)
    for token in range(16):
        inner = cell(result, token, 4)
        if token in (0, 5, 6, 11):
            assert (inner == cell(original, token, 4))[1:-1, 1:-1].all()
        else:
            assert (inner == 255).all()


def test_outline_is_on_the_kept_side_alone() -> None:
    kept = np.array([[True, False], [False, False]])
    result = np.asarray(masked(Image.new("RGB", (80, 80), GREEN), kept))
    assert (result[:, 40:] == 255).all()
    assert (result[40:] == 255).all()
    assert (result[:39, :39] == GREEN).all()
    assert not (result[39, :40] == GREEN).all(axis=-1).any()
    assert not (result[39, :40] == 255).all(axis=-1).any()


@pytest.mark.parametrize("rest", [0.01, -0.01])
def test_map_is_hottest_where_relevance_is_planted(rest: float) -> None:
    scores = [rest] * 16
    scores[9], scores[2] = 0.4, 3 * rest
    pixels = panel(draw_sheet([one_look(view(scores, [9]), (1, 4, 4))]), 1).astype(float)
    light = pixels.mean(axis=-1)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (row // (PANEL // 4), column // (PANEL // 4)) == (2, 1)


def test_negative_relevance_is_cold_and_positive_is_warm() -> None:
    scores = [0.0] * 16
    scores[5], scores[10], scores[0] = 0.3, -0.3, 0.003
    pixels = panel(draw_sheet([one_look(view(scores, [5]), (1, 4, 4))]), 1).astype(int)
    warm, cold = (cell(pixels, token, 4)[40:56, 40:56].mean(axis=(0, 1)) for token in (5, 10))
    assert warm[0] > warm[2] + 40
    assert cold[2] > cold[0] + 40


def test_signed_scale_keeps_sign_order_and_size() -> None:
    scores = np.array([-0.2, -0.05, -0.001, 0.0, 0.002, 0.05, 0.1])
    scaled = signed_spread(scores)
    assert (np.diff(scaled) > 0).all()
    assert (np.sign(scaled) == np.sign(scores)).all()
    assert scaled[1] == -scaled[5]
    assert signed_spread(np.array([np.nan, np.inf, 0.0])).tolist() == [0, 0, 0]
    light = signed_colours(np.linspace(-1, 1, 65)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light)[:32] < 0).all()
    assert (np.diff(light)[32:] > 0).all()
    assert light[0] < light[-1] - 80


def test_each_picture_and_view_has_a_row_with_its_own_tokens() -> None:
    views = (view([0.1] * 8, [0, 1, 2, 3]), view([0.1] * 8, [4, 5, 6, 7], "f_θ"))
    seen = one_look(views[0], (1, 2, 2), (1, 2, 2))
    sheet = draw_sheet([Look(*(getattr(seen, name) for name in Look.__slots__[:-1]), views)])
    whole = [bool((panel(sheet, 2, row) == GREEN).all()) for row in range(4)]
    empty = [bool((panel(sheet, 2, row) == 255).all()) for row in range(4)]
    assert whole == [True, False, False, True]
    assert empty == [False, True, True, False]


@pytest.mark.parametrize(
    ("size", "grid"),
    [((1, 1), (1, 1, 1)), ((4000, 20), (1, 1, 40)), ((20, 4000), (1, 40, 1)), ((900, 700), (2, 3, 4))],
)  # fmt: skip
def test_any_picture_is_drawn_to_be_seen(size: tuple[int, int], grid: tuple[int, int, int]) -> None:
    tokens = int(np.prod(grid))
    sheet = draw_sheet([one_look(view([-0.1] * tokens, [0]), grid, size=size)])
    width, height = panel_size(size)
    assert min(width, height) >= 48
    assert panel(sheet, 0, width=width).shape[:2] == (height, width)
    assert (panel(sheet, 0, width=width) == GREEN).all()
    assert sheet.height < 700


def test_text_wraps_and_is_cut_with_a_sign() -> None:
    font = typeface(16)
    lines = wrapped("some words " * 40 + "x" * 300, font, 300, 99)
    assert all(font.getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == "somewords" * 40 + "x" * 300
    assert wrapped("A. one\nB. two", font, 300, 9) == ["A. one", "B. two"]
    cut = wrapped("words " * 100, font, 300, 2)
    assert len(cut) == 2
    assert cut[1].endswith("…")
    assert font.getlength(cut[1]) <= 300
    assert wrapped("", font, 300, 2) == [""]


def test_letters_that_the_font_lacks_are_spelled() -> None:
    assert legible("E 中\x1b", typeface(16)) == "E \\u4e2d\\x1b"


def test_top_takes_the_first_of_equals_in_order() -> None:
    scores = np.array([0.1, -3, 0.5, 0.5, 0.1, 0.5], dtype=np.float32)
    assert top(scores, 2).tolist() == [2, 3]
    assert top(scores, 4).tolist() == [0, 2, 3, 5]


def test_two_questions_about_one_picture_look_at_two_places(model: TorchModel) -> None:
    first, second = (
        look(model, Sample("", (SCENE,), question), [0.25], mode="grad-clamp")
        for question in (RED_SQUARE, PURPLE_SQUARE)
    )
    assert (first.answer, second.answer) == ("E", "F")
    shares = []
    for seen in (first, second):
        _, rows, columns = seen.grids[0]
        relevance = seen.views[0].scores.reshape(rows, columns) / seen.views[0].scores.sum()
        shares.append((relevance[:3, :4].sum(), relevance[8:, 3:7].sum()))
    (red_asked, purple_left), (red_left, purple_asked) = shares
    assert red_asked > 1.1 * red_left
    assert purple_asked > 1.1 * purple_left
    sheet = draw_sheet([first, second])
    width, _ = panel_size(first.pictures[0].size)
    assert (panel(sheet, 0, 0, width) == panel(sheet, 0, 2, width)).all()
    assert (panel(sheet, 1, 0, width) != panel(sheet, 1, 2, width)).any()


def test_answers_below_panels_are_those_of_the_kept_tokens(
    model: TorchModel, compressor: Path
) -> None:
    network, _ = FTheta.load(compressor)
    seen = look(model, Sample("", (SCENE,), RED_SQUARE), [1.0, 0.5, 3], network)
    question = model.prepare(RED_SQUARE, seen.pictures)
    relevance, guess = seen.views
    assert (relevance.name, guess.name) == ("R_v", "f_θ")
    logits = predicted(network, model.attention(question)).numpy()
    assert guess.kept[1].indices.tolist() == top(logits, 55).tolist()
    assert guess.scores.sum() == pytest.approx(1, abs=1e-5)
    for each in seen.views:
        assert [len(kept.indices) for kept in each.kept] == [110, 55, 3]
        for kept in each.kept:
            said = model.answer(question, kept.indices)
            assert kept.answer == model.text(said)
            assert kept.same == (said == model.answer(question))
    assert not guess.kept[2].same
    common = set(guess.kept[1].indices) & set(relevance.kept[1].indices)
    assert guess.kept[1].overlap == len(common) / 55
    assert [kept.overlap for kept in relevance.kept] == [None] * 3


def test_heads_apart(model: TorchModel) -> None:
    question = model.prepare(RED_SQUARE, [Image.open(SCENE)])
    heads = len(model.attention(question))
    assert predicted(FTheta(heads), model.attention(question)).shape == (110,)


def test_samples_of_a_command_line(tmp_path: Path) -> None:
    picture = Path("a.png")
    one, two = gather_samples(["a.png"], ["Which?", "Why?"], None, [])
    assert (one, two) == (Sample("1", (picture,), "Which?"), Sample("2", (picture,), "Why?"))
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


def test_verb_draws_and_tells(tmp_path: Path, compressor: Path) -> None:
    out = tmp_path / "look.png"
    result = invoke(
        "calibrate", "show", NANO, out, "--image", SCENE, "--question", RED_SQUARE,
        "--question", PURPLE_SQUARE, "--compressor", compressor, "--keep", "0.5,7", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert [sample["answer"] for sample in told["samples"]] == ["E", "F"]
    for sample in told["samples"]:
        assert [ranking["ranking"] for ranking in sample["rankings"]] == ["R_v", "f_θ"]
        for ranking in sample["rankings"]:
            assert [keep["kept"] for keep in ranking["keeps"]] == [55, 7]
    with Image.open(out) as drawn:
        drawn.load()
        assert drawn.width == GUTTER + 4 * (PANEL + GAP)
    assert [path.name for path in tmp_path.iterdir()] == ["look.png"]
    again = ("calibrate", "show", NANO, out, "--image", SCENE, "--question", RED_SQUARE)
    refused(invoke(*again), "look.png", "--force")


def test_verb_refuses_early_and_says_why(tmp_path: Path) -> None:
    out, asked = tmp_path / "look.png", ("--image", SCENE, "--question", RED_SQUARE)
    begin = ("calibrate", "show", NANO)
    refused(invoke(*begin, tmp_path / "look.gif", *asked), ".png")
    refused(invoke(*begin, out, *asked, "--keep", "0.5,much"), "much", "0.25")
    refused(invoke(*begin, out, *asked, "--keep", "2000"), "110")
    refused(invoke(*begin, out, "--question", "What?", "--image", tmp_path / "no.png"), "no.png")
    refused(invoke(*begin, out, *asked, "--compressor", tmp_path / "no.safetensors"), "no.safe")
    if not torch.cuda.is_available():
        refused(invoke(*begin, out, *asked, "--device", "cuda"), "--device cpu")
    assert not list(tmp_path.iterdir())
