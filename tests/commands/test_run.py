"""foveate run: questions, pictures, heatmaps, and what is refused."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.commands.run import run
from foveate.runtime.contact_sheet import WIDTH
from foveate.runtime.media.pictures import MAX_PIXELS
from tests.command import command, invoke, refused
from tests.conftest import Sample
from tests.runtime.media.films import seconds, write_film


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 112 x 84 pixels: 12 visual tokens."""
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    image = Image.new("RGB", (112, 84), (240, 240, 230))
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=(200, 30, 30))
    image.save(path)
    return path


class TestRun:
    def test_answer_and_remarks_are_apart(self, bundle: Path, picture: Path) -> None:
        done = subprocess.run(
            command("run", bundle, "What?", "--image", picture, "--max-new-tokens", 4),
            capture_output=True,
        )
        assert done.returncode == 0
        assert done.stdout.endswith(b"\n")
        assert done.stderr.decode().startswith("kept 3 of 12 visual tokens; first token after ")
        for stage in ("preprocess", "vision", "compress", "prefill", "decode"):
            assert stage in done.stderr.decode()

    def test_json(self, bundle: Path, picture: Path) -> None:
        result = invoke("run", bundle, "What?", "--image", picture, "--max-new-tokens", 4,
                        "--keep", "5", "--json")  # fmt: skip
        facts = json.loads(result.stdout)
        assert set(facts) == {
            "text", "token_ids", "finish_reason", "prompt_tokens", "cache_bytes", "visual", "timing",
        }  # fmt: skip
        visual = facts["visual"]
        assert (visual["total"], visual["kept"], visual["picture"]) == (12, 5, [0] * 12)
        assert visual["boxes"][1] == pytest.approx([0.25, 0, 0.5, 1 / 3])
        assert len(visual["indices"]) == 5
        assert sum(visual["relevance"]) == pytest.approx(1, abs=1e-4)
        assert facts["timing"]["total"] >= facts["timing"]["first_token"] > 0

    def test_auto_keeps_a_count_of_its_own(
        self, nano_bundle: Bundle, bundle: Path, picture: Path, samples: list[Sample]
    ) -> None:
        asked = ["run", nano_bundle.root, samples[0].question, "--image", samples[0].image]
        facts = json.loads(invoke(*asked, "--keep", "auto", "--json").stdout)["visual"]
        with Pipeline.load(nano_bundle.root) as pipe:
            visual = pipe.generate(
                samples[0].question, images=[samples[0].image], keep="auto"
            ).visual
        assert (facts["kept"], facts["indices"]) == (visual.kept, visual.indices.tolist())
        assert 0 < visual.kept < visual.total
        result = invoke(*asked, "--keep", "auto")
        assert f"kept {visual.kept} of {visual.total} visual tokens" in result.stderr
        refused(
            invoke("run", bundle, "What?", "--image", picture, "--keep", "auto"),
            "auto-keep",
            "ratio",
        )

    def test_text_is_the_same_streamed_and_in_json(self, bundle: Path, picture: Path) -> None:
        words = ["run", bundle, "What?", "--image", picture, "--max-new-tokens", "6"]
        text = json.loads(invoke(*words, "--json").stdout)["text"]
        assert invoke(*words).stdout == text + "\n"

    def test_standard_input_and_all_tokens(self, bundle: Path, picture: Path) -> None:
        result = invoke("run", bundle, "What?", "--image", "-", "--keep", "1", "--json",
                        "--max-new-tokens", 2, stdin=picture.read_bytes())  # fmt: skip
        visual = json.loads(result.stdout)["visual"]
        assert (visual["kept"], visual["relevance"]) == (12, None)

    def test_sampling_is_repeatable(self, bundle: Path, picture: Path) -> None:
        options = ["--temperature", 2, "--top-p", 0.9, "--top-k", 50, "--max-new-tokens", 8]
        words = ["run", bundle, "What?", "--image", picture, *options, "--json", "--seed"]
        first, again, other = (
            json.loads(invoke(*words, seed).stdout)["token_ids"] for seed in (7, 7, 8)
        )
        assert first == again != other

    def test_system_prompt_and_sizes(self, bundle: Path, picture: Path) -> None:
        words = ["run", bundle, "What?", "--image", picture, "--json", "--max-new-tokens", 2]
        plain, asked, small = (
            json.loads(invoke(*words, *more).stdout)
            for more in ([], ["--system", "Be brief."], ["--max-pixels", 56 * 56])
        )
        assert asked["prompt_tokens"] != plain["prompt_tokens"]
        assert (asked["visual"]["total"], small["visual"]["total"]) == (12, 2)
        refused(invoke(*words, "--system", "Obey <|im_start|>"), "control token")
        refused(invoke(*words, "--max-pixels", 99, "--min-pixels", 100), "give both")

    @pytest.mark.parametrize("keep", ["0", "1.5", "nan", "-3", "1000000000", "some", "", "inf"])
    def test_keep_that_is_none(self, bundle: Path, picture: Path, keep: str) -> None:
        refused(invoke("run", bundle, "What?", "--image", picture, f"--keep={keep}"), "keep is")

    @pytest.mark.parametrize(
        ("prompt", "word"),
        [("", "empty"), (" \n", "empty"), ("a <|image_pad|> b", "control token")],
    )
    def test_prompt_that_is_none(self, bundle: Path, picture: Path, prompt: str, word: str) -> None:
        refused(invoke("run", bundle, prompt, "--image", picture), word)

    @pytest.mark.parametrize(
        ("name", "content", "word"),
        [
            ("none.png", None, "no file"),
            ("empty.png", b"", "0 bytes"),
            ("text.png", b"not a picture at all", "in no format"),
            ("cut.png", "cut", "Picture 1"),
        ],
    )
    def test_picture_that_is_none(
        self, bundle: Path, picture: Path, tmp_path: Path, name: str, content: object, word: str
    ) -> None:
        if content is not None:
            whole = picture.read_bytes()
            data = whole[: len(whole) // 2] if content == "cut" else content
            (tmp_path / name).write_bytes(data)  # type: ignore[arg-type]
        refused(invoke("run", bundle, "What?", "--image", tmp_path / name), word)

    def test_a_picture_over_the_limit(self, bundle: Path, picture: Path) -> None:
        words = ["run", bundle, "What?", "--image", picture, "--max-new-tokens", 1]
        assert invoke(*words, "--max-picture-pixels", 112 * 84).exit_code == 0
        for more in ([], ["--heatmap", "x.png"]):
            told = refused(
                invoke(*words, "--max-picture-pixels", 112 * 84 - 1, *more), "over the limit"
            )
            assert "--max-picture-pixels" in told
        (option,) = (one for one in run.params if one.name == "max_picture_pixels")
        assert option.default == MAX_PIXELS

    def test_standard_input_twice(self, bundle: Path) -> None:
        refused(invoke("run", bundle, "What?", "--image", "-", "--image", "-"), "one picture")

    @pytest.mark.parametrize(
        "option", [("--max-new-tokens", 0), ("--max-new-tokens", 10**9), ("--temperature", "nan"),
                   ("--top-p", 0), ("--top-k", -1)]
    )  # fmt: skip
    def test_options_out_of_range(
        self, bundle: Path, picture: Path, option: tuple[str, object]
    ) -> None:
        refused(invoke("run", bundle, "What?", "--image", picture, *option))

    def test_deadline_that_passes(self, bundle: Path, picture: Path, tmp_path: Path) -> None:
        words = ["run", bundle, "What?", "--image", picture, "--deadline", "1e-9"]
        result = invoke(*words)
        assert (result.exit_code, result.stdout) == (0, "\n")
        assert result.stderr.startswith("the deadline passed before the first token, in ")
        facts = json.loads(invoke(*words, "--json").stdout)
        assert (facts["finish_reason"], facts["text"], facts["visual"]["kept"]) == (
            "deadline",
            "",
            0,
        )
        refused(invoke(*words, "--heatmap", tmp_path / "map.png", "--json"), "was not drawn")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("deadline", ["0", "-1", "nan", "inf"])
    def test_deadline_that_is_none(self, bundle: Path, picture: Path, deadline: str) -> None:
        words = ["run", bundle, "What?", "--image", picture, f"--deadline={deadline}"]
        refused(invoke(*words), "give seconds above 0")

    def test_checkpoint_in_the_place_of_a_bundle(
        self, tiny_checkpoint: Path, picture: Path
    ) -> None:
        refused(invoke("run", tiny_checkpoint, "What?", "--image", picture), "is a checkpoint")

    def test_cuda_that_is_not_there(self, bundle: Path, picture: Path) -> None:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has CUDA")
        words = ["run", bundle, "What?", "--image", picture, "--device", "cuda"]
        refused(invoke(*words), "CUDAExecutionProvider")


class TestHeatmapOption:
    def test_written_and_replaced(self, bundle: Path, picture: Path, tmp_path: Path) -> None:
        out = tmp_path / "map.png"
        words = ["run", bundle, "What?", "--image", picture, "--image", picture,
                 "--max-new-tokens", 2, "--heatmap", out]  # fmt: skip
        assert invoke(*words).exit_code == 0
        with Image.open(out) as drawn:
            assert drawn.format == "PNG"
            assert drawn.width >= 3 * 448
            assert drawn.height >= 2 * 336
        before = out.read_bytes()
        refused(invoke(*words), "already there", "--force")
        assert out.read_bytes() == before
        assert invoke(*words, "--force", "--keep", "2").exit_code == 0
        assert out.read_bytes() != before
        assert os.listdir(tmp_path) == ["map.png"]

    @pytest.mark.parametrize(
        ("name", "word"),
        [("no/map.png", "folder does not exist"), ("map.jpg", ".png"), ("map", ".png")],
    )
    def test_refused_before_anything_runs(
        self, picture: Path, tmp_path: Path, name: str, word: str
    ) -> None:
        result = invoke("run", tmp_path, "?", "--image", picture, "--heatmap", tmp_path / name)
        refused(result, word)
        assert os.listdir(tmp_path) == []

    def test_folder_that_may_not_be_written(
        self, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("foveate.runtime.heatmap.os.access", lambda *_: False)
        words = ["run", tmp_path, "?", "--image", picture]
        refused(invoke(*words, "--heatmap", tmp_path / "map.png"), "may not be written to")

    @pytest.mark.parametrize("keep", ["1", "1.0"])
    def test_nothing_to_draw(self, bundle: Path, picture: Path, tmp_path: Path, keep: str) -> None:
        words = ["run", bundle, "?", "--image", picture, "--keep", keep]
        refused(invoke(*words, "--heatmap", tmp_path / "map.png"), "nothing is ranked")
        assert os.listdir(tmp_path) == []

    def test_count_that_turns_out_to_be_all(
        self, bundle: Path, picture: Path, tmp_path: Path
    ) -> None:
        words = ["run", bundle, "?", "--image", picture, "--keep", "12", "--max-new-tokens", "2"]
        result = invoke(*words, "--heatmap", tmp_path / "map.png", "--json")
        refused(result, "all tokens were kept")
        assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, 30 frames each, that begin at 10 s."""
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", seconds(60, start=10))


class TestVideo:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ((), 2), (("--fps", 1), 2), (("--fps", 6), 6), (("--frames", 2), 1),
            (("--start", 1, "--end", 1.1), 1), (("--start", 0.5, "--fps", 4), 3),
        ],
    )  # fmt: skip
    def test_which_frames_are_taken(
        self, bundle: Path, film: Path, options: tuple[object, ...], steps: int
    ) -> None:
        done = invoke("run", bundle, "What?", "--video", film, "--max-new-tokens", 1, "--json",
                      *options)  # fmt: skip
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["visual"]["total"] == steps * 6

    def test_a_contact_sheet_is_drawn(self, bundle: Path, film: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        words = ("run", bundle, "What?", "--video", film, "--max-new-tokens", 1)
        done = invoke(*words, "--fps", 4, "--keep", 0.5, "--heatmap", out)
        assert done.exit_code == 0, done.stderr
        with Image.open(out) as drawn:
            drawn.load()
            assert (drawn.format, drawn.width) == ("PNG", WIDTH)
        refused(invoke(*words, "--heatmap", out), "already there", "--force")
        refused(invoke(*words, "--heatmap", tmp_path / "s.png", "--keep", 1), "nothing is ranked")
        assert os.listdir(tmp_path) == ["sheet.png"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--fps", 0), "more than 0"), (("--fps", "nan"), "fps is nan"),
            (("--frames", 0), "frames is 0"), (("--fps", 1, "--frames", 4), "not both"),
            (("--frames", 61), "61 frames"), (("--start", 5), "lasts 2.000 seconds"),
            (("--start", 1, "--end", 0.5), "not after start"), (("--end", 3), "lasts 2.000"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_taken(
        self, bundle: Path, film: Path, options: tuple[object, ...], words: str
    ) -> None:
        refused(invoke("run", bundle, "What?", "--video", film, *options), words)

    def test_options_of_a_video_without_one(self, bundle: Path, picture: Path) -> None:
        for option in (("--fps", 2), ("--frames", 2), ("--start", 1), ("--end", 1)):
            result = invoke("run", bundle, "What?", "--image", picture, *option)
            assert result.exit_code == 2
            assert "give --video FILE" in result.stderr

    def test_damage_and_addresses(self, bundle: Path, film: Path, tmp_path: Path) -> None:
        data = film.read_bytes()
        (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
        refused(invoke("run", bundle, "What?", "--video", tmp_path / "cut.mp4"), "cut.mp4")
        refused(invoke("run", bundle, "What?", "--video", "http://127.0.0.1:9/a.mp4"), "no file")

    def test_warnings_are_remarks(self, bundle: Path, tmp_path: Path) -> None:
        film = write_film(tmp_path / "film.ts", seconds(30), every=30)
        data = film.read_bytes()
        packets = [data[place : place + 188] for place in range(0, len(data), 188)]
        starts = [n for n, one in enumerate(packets) if one[1] == 0x41 and one[2] == 0]
        del packets[starts[20]]
        film.write_bytes(b"".join(packets))
        done = invoke("run", bundle, "What?", "--video", film, "--max-new-tokens", 1, "--frames", 2)
        assert done.exit_code == 0, done.stderr
        assert "packets are marked as damaged, so that frames may be missing\n" in done.stderr
        assert "VideoWarning" not in done.stderr
