"""The verbs, in this process through click and in processes of their own."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate import __version__
from foveate.bundle.reader import Bundle
from foveate.cli import main
from foveate.commands.calibrate import calibrate
from foveate.terminal import one_line
from tests.command import command, invoke, refused

SLIM = """
import sys
for name in ("torch", "transformers", "onnx", "matplotlib"):
    sys.modules[name] = None
from foveate.cli import main
from tests.command import command, invoke, refused
main(sys.argv[1:])
"""


@pytest.fixture
def bundle(tiny_bundle: Bundle) -> Path:
    return tiny_bundle.root


class TestShell:
    def test_version(self) -> None:
        assert invoke("--version").stdout == f"foveate {__version__}\n"

    def test_help_has_an_example_for_each_verb(self) -> None:
        verbs = ["calibrate", "demo", "doctor", "export", "inspect", "run", "verify"]
        assert set(main.commands) >= set(verbs)
        plain = [[verb] for verb in main.commands if verb != "calibrate"]
        calibration = [["calibrate", verb] for verb in calibrate.commands]
        assert ["calibrate", "train"] in calibration
        for verb in [*plain, *calibration]:
            result = invoke(*verb, "-h")
            assert result.exit_code == 0
            assert f"foveate {' '.join(verb)}" in result.stdout.split("Example:")[1]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["fly"],
            ["inspect"],
            ["inspect", "b", "--colour"],
            ["run", "b", "What?"],
            ["run", "b", "What?", "--image", "i.png", "--seed", "-1"],
            ["run", "b", "What?", "--image", "i.png", "--device", "tpu"],
            ["run", "b", "What?", "--image", "i.png", "--max-new-tokens", "1.5"],
            ["export", "c", "b", "--precision", "int3"],
        ],
    )
    def test_wrong_use_exits_with_2(self, arguments: list[str]) -> None:
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Usage: " in result.stderr
        assert result.stdout == ""

    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (KeyError("x"), 1, "foveate: error: KeyError: 'x' (this is a bug"),
            (MemoryError(), 1, "foveate: error: out of memory"),
            (KeyboardInterrupt(), 130, "foveate: error: interrupted"),
            (RuntimeError("a\n  b\x1b[2J"), 1, r"RuntimeError: a b\x1b[2J (this is a bug"),
        ],
    )
    def test_unexpected_errors_are_a_line(
        self, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("foveate.bundle.reader.Bundle.open", fail)
        result = invoke("inspect", "x")
        assert (result.exit_code, result.stdout) == (code, "")
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        "arguments", [["--debug", "inspect", "x"], ["inspect", "x", "--debug"]]
    )
    def test_debug_shows_the_traceback(self, arguments: list[str]) -> None:
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Traceback (most recent call last)" in result.stderr
        assert "foveate: error: " in result.stderr.splitlines()[-1]

    def test_debug_by_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FOVEATE_DEBUG", "1")
        assert "Traceback" in invoke("inspect", "x").stderr

    def test_a_reader_that_left_is_no_error(self, bundle: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(command("inspect", bundle), stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert done.stderr == b""
        assert done.returncode == 1

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_a_full_disk_under_standard_output_is_a_line(self, bundle: Path) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(command("inspect", bundle), stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert re.fullmatch(rb"foveate: error: .*standard output.*\n", done.stderr)

    @pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"]])
    def test_output_where_not_all_can_be_written(self, bundle: Path, arguments: list[str]) -> None:
        done = subprocess.run(
            command(*arguments, bundle),
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"qwen2_vl" in done.stdout


class TestInspect:
    def test_text(self, bundle: Path) -> None:
        result = invoke("inspect", bundle)
        assert (result.exit_code, result.stderr) == (0, "")
        for word in (str(bundle), "qwen2_vl", "fp32", "attention", "vision.onnx.data", "kept_indices",
                     "past.0.key … past.1.key", "checked with pillow", "transformers "):  # fmt: skip
            assert word in result.stdout

    def test_json_is_the_manifest_and_where_it_is(self, bundle: Path) -> None:
        facts = json.loads(invoke("inspect", bundle, "--json").stdout)
        assert facts.pop("root") == str(bundle)
        assert facts == json.loads((bundle / "manifest.json").read_bytes())

    def test_no_bundle(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        refused(invoke("inspect", tmp_path / "none"), "does not exist", "foveate export")
        refused(invoke("inspect", tmp_path), "is no bundle")
        refused(invoke("inspect", tiny_checkpoint), "is a checkpoint, not a bundle")


class TestVerify:
    def test_whole(self, bundle: Path) -> None:
        result = invoke("verify", bundle)
        assert result.exit_code == 0
        assert "is whole" in result.stdout
        assert re.search(r"^checksums … \d+\.\d s$", result.stderr, re.M)

    def test_json(self, bundle: Path) -> None:
        facts = json.loads(invoke("verify", bundle, "--json").stdout)
        assert facts["root"] == str(bundle)
        assert set(facts["graphs"]) == {"vision", "embeddings", "compressor", "decoder"}
        assert facts["files"] == 10
        assert facts["parity"] is None

    def test_against_the_checkpoint(self, bundle: Path, tiny_checkpoint: Path) -> None:
        result = invoke("verify", bundle, "--checkpoint", tiny_checkpoint, "--json")
        parity = json.loads(result.stdout)["parity"]
        assert set(parity) == {"vision", "embeddings", "compressor", "decoder"}
        assert max(parity.values()) < 1e-5

    def test_a_changed_byte(self, bundle: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(bundle, copy)
        weights = bytearray((copy / "decoder.onnx.data").read_bytes())
        weights[1000] ^= 1
        (copy / "decoder.onnx.data").write_bytes(weights)
        refused(invoke("verify", copy), "decoder.onnx.data", "checksum")

    def test_no_checkpoint(self, bundle: Path, tmp_path: Path) -> None:
        refused(invoke("verify", bundle, "--checkpoint", tmp_path / "none"), "no such folder")


class TestExport:
    def test_existing_output(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        refused(invoke("export", tiny_checkpoint, tmp_path), "already there", "--force")
        refused(invoke("export", tiny_checkpoint, tmp_path, "--force"), "neither a bundle")
        assert os.listdir(tmp_path) == ["mine.txt"]

    def test_no_folder_to_write_in(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        refused(invoke("export", tiny_checkpoint, tmp_path / "a" / "b"), "folder does not exist")
        (tmp_path / "file").touch()
        refused(invoke("export", tiny_checkpoint, tmp_path / "file" / "b"), "folder is a file")

    @pytest.mark.parametrize(
        ("config", "word"),
        [
            ({"model_type": "llama"}, "no model of type 'llama'"),
            ({}, "model_type"),
            ([], "not a JSON object"),
        ],
    )
    def test_checkpoint_that_is_none(self, tmp_path: Path, config: object, word: str) -> None:
        source = tmp_path / "checkpoint"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config))
        refused(invoke("export", source, tmp_path / "bundle"), word)
        assert os.listdir(tmp_path) == ["checkpoint"]

    @pytest.mark.parametrize(
        ("option", "word"),
        [
            (("--keep", "0"), "keep is 0"),
            (("--keep", "nan"), "keep is nan"),
            (("--visual-tokens", "0"), "visual tokens"),
            (("--visual-tokens", "99999999"), "context"),
            (("--compressor", "none.safetensors"), "none.safetensors"),
        ],
    )
    def test_options_out_of_range(
        self, tiny_checkpoint: Path, tmp_path: Path, option: tuple[str, str], word: str
    ) -> None:
        refused(invoke("export", tiny_checkpoint, tmp_path / "bundle", *option), word)
        assert os.listdir(tmp_path) == []

    def test_interrupt_leaves_nothing(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        asked = command("export", tiny_checkpoint, tmp_path / "bundle")
        pipe = subprocess.PIPE
        with subprocess.Popen(asked, stdout=pipe, stderr=pipe) as process:
            assert process.stderr is not None
            seen = b""
            while b"[3/8]" not in seen and process.poll() is None:
                seen += os.read(process.stderr.fileno(), 4096)
            assert os.listdir(tmp_path) != []
            process.send_signal(signal.SIGINT)
            out, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out == b""
        assert rest.decode().splitlines()[-1].startswith("foveate: error: interrupted")
        assert b"Traceback" not in rest
        assert os.listdir(tmp_path) == []


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
        asked = ["demo", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
        result = invoke(*asked)
        assert result.exit_code == 0, result.stderr
        words = ("Q3?", "3   (expected)", "24 of 24", "6 of 24", "KV cache", "Of 3 such")
        for word in words:
            assert word in result.stdout
        assert "[8/8] seal … " in result.stderr
        assert sorted(os.listdir(tmp_path / "out")) == ["bundle", "heatmap.png"]
        assert Bundle.open(tmp_path / "out" / "bundle").manifest.compressor.kind == "attention"

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        asked = ["demo", "--checkpoint", tmp_path / "none", "--out", tmp_path / "out"]
        refused(invoke(*asked), "models/nano", "repository")
        assert os.listdir(tmp_path) == []

    def test_no_questions(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        asked = ["demo", "--checkpoint", tiny_checkpoint, "--out", tmp_path / "out"]
        refused(invoke(*asked), "data.jsonl", "models/nano")
        assert os.listdir(tmp_path) == []


class TestSlim:
    """Without torch and transformers, as on the device."""

    def slim(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        asked = [sys.executable, "-c", SLIM, *map(str, arguments)]
        return subprocess.run(asked, capture_output=True, text=True, encoding="utf-8")

    def test_inspect_verify_run_doctor(self, bundle: Path, tmp_path: Path) -> None:
        picture = tmp_path / "scene.png"
        Image.new("RGB", (112, 84)).save(picture)
        ask = ["run", bundle, "?", "--image", picture, "--max-new-tokens", 2]
        for arguments in (
            ["inspect", bundle],
            ["verify", bundle],
            [*ask, "--heatmap", tmp_path / "map.png"],
            ["doctor"],
        ):
            done = self.slim(*arguments)
            assert done.returncode == 0, done.stderr

    def test_export_says_what_to_install(self, tmp_path: Path) -> None:
        done = self.slim("export", tmp_path, tmp_path / "bundle")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("pip install foveate[export]")
        assert "Traceback" not in done.stderr

    def test_the_command_line_alone_imports_little(self) -> None:
        names = "'numpy', 'onnxruntime', 'PIL', 'tokenizers', 'torch'"
        code = f"import sys, foveate.cli; print([n for n in [{names}] if n in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "[]\n"


def test_one_line_is_one_line() -> None:
    assert one_line(" a\r\n b\n\nc\x07 ") == "a b c\\x07"
    assert one_line("x" * 5000).endswith("x…")
    assert io.StringIO(one_line("a\u2028b")).read() == r"a\u2028b"
