"""foveate demo: from a checkpoint to a heatmap, and what is refused."""

import json
import os
import shutil
from pathlib import Path

from PIL import Image

from foveate.bundle.reader import Bundle
from foveate.commands.demo import NANO, Sample, choose_pair
from foveate.runtime.heatmap import LEAST_WIDTH, MARGIN
from tests.command import invoke, refused


class TestDemo:
    def test_from_checkpoint_to_heatmap(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(tiny_checkpoint, checkpoint)
        samples = checkpoint / "samples"
        samples.mkdir()
        for name, width in (("small", 112), ("large", 168)):
            Image.new("RGB", (width, 112), "white").save(samples / f"{name}.png")
        lines = [
            {"id": "chart-1", "image": "large.png", "question": "Q1?", "answer": "1"},
            {"id": "scene-1", "image": "small.png", "question": "Q2?", "answer": "2",
             "task": "letter", "scope": "local"},
            {"id": "scene-2", "image": "large.png", "question": "Q3?", "answers": ["3"],
             "task": "letter", "scope": "local"},
            {"id": "scene-3", "image": "gone.png", "question": "Q4?", "answer": "4",
             "task": "letter", "scope": "local"},
            {"id": "scene-4"},
        ]  # fmt: skip
        data = "\n".join([*map(json.dumps, lines), "no JSON", "[]", ""])
        (samples / "data.jsonl").write_text(data)
        arguments = ["demo", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
        result = invoke(*arguments)
        assert result.exit_code == 0, result.stderr
        words = ("Q3?", "3   (expected)", "24 of 24", "6 of 24", "KV cache", "Of 3 such", "Q1?")
        for word in words:
            assert word in result.stdout
        assert "[9/9] seal … " in result.stderr
        assert sorted(os.listdir(tmp_path / "out")) == ["bundle", "heatmap.png"]
        with Image.open(tmp_path / "out" / "heatmap.png") as drawn:
            # The picture, and two questions beside it.
            assert drawn.width == MARGIN + 3 * (LEAST_WIDTH + MARGIN)
        assert Bundle.open(tmp_path / "out" / "bundle").manifest.compressor.kind == "attention"

    def test_which_questions_are_shown(self) -> None:
        one, two = Path("1.png"), Path("2.png")
        samples = [Sample(one, "a", ""), Sample(two, "b", ""), Sample(two, "c", ""),
                   Sample(one, "d", ""), Sample(one, "e", "")]  # fmt: skip
        a, b, c, d, e = samples
        for right, pair in (
            ((1, 1, 1, 1, 1), (a, d)), ((1, 1, 1, 0, 0), (b, c)), ((1, 0, 0, 0, 1), (a, e)),
            ((0, 0, 1, 0, 0), (c, b)), ((0, 0, 0, 1, 1), (d, e)), ((0, 0, 0, 0, 0), (a, d)),
        ):  # fmt: skip
            assert choose_pair(samples, [bool(one) for one in right]) == pair
        assert choose_pair(samples[:2], [False, True]) == (b, None)

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        arguments = ["demo", "--checkpoint", tmp_path / "none", "--out", tmp_path / "out"]
        refused(invoke(*arguments), "models/nano", "repository")
        assert os.listdir(tmp_path) == []

    def test_no_questions(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        arguments = ["demo", "--checkpoint", tiny_checkpoint, "--out", tmp_path / "out"]
        refused(invoke(*arguments), "data.jsonl", "models/nano")
        assert os.listdir(tmp_path) == []

    def test_its_own_checkpoint_is_the_repositorys(self) -> None:
        assert Path(__file__).parents[2] / "models" / "nano" == NANO
