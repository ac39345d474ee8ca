"""The click group: help, errors as one line, standard output, and what it needs installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image

from foveate import __version__
from foveate.cli import main
from foveate.commands.calibrate import calibrate
from tests.command import command, invoke

ROOT = Path(__file__).parents[2]
SLIM = """
import sys
for name in ("torch", "transformers", "onnx", "matplotlib"):
    sys.modules[name] = None
from foveate.cli import main
main(sys.argv[1:])
"""


class TestGroup:
    def test_version(self) -> None:
        assert invoke("--version").stdout == f"foveate {__version__}\n"

    def test_help_has_an_example_for_each_verb(self) -> None:
        verbs = ["calibrate", "demo", "doctor", "export", "inspect", "run", "verify"]
        listed = main.list_commands(click.Context(main))
        assert set(listed) >= set(verbs)
        plain = [[verb] for verb in listed if verb != "calibrate"]
        calibration = [["calibrate", verb] for verb in calibrate.commands]
        assert ["calibrate", "train"] in calibration
        for verb in [*plain, *calibration]:
            result = invoke(*verb, "-h")
            assert result.exit_code == 0
            assert f"foveate {' '.join(verb)}" in result.stdout.split("Example:")[1]

    def test_help_lists_the_verbs_in_order_with_their_first_line(self) -> None:
        listing = invoke("--help").stdout.split("Commands:")[1]
        shown = re.findall(r"^  (\w+)  +\S", listing, re.MULTILINE)
        assert shown == sorted(shown) == main.list_commands(click.Context(main))

    def test_a_misspelt_verb_is_no_command(self) -> None:
        assert "No such command 'exprt'" in invoke("exprt").stderr

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


class TestSlim:
    """Without torch and transformers, as on the device."""

    def slim(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", SLIM, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            line, capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=environment
        )

    def test_inspect_verify_run_doctor(self, bundle: Path, tmp_path: Path) -> None:
        picture = tmp_path / "scene.png"
        Image.new("RGB", (112, 84)).save(picture)
        run = ["run", bundle, "?", "--image", picture, "--max-new-tokens", 2]
        for arguments in (
            ["inspect", bundle],
            ["verify", bundle],
            [*run, "--heatmap", tmp_path / "map.png"],
            ["doctor"],
        ):
            done = self.slim(*arguments)
            assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ["export", "checkpoint", "bundle"],
            ["demo", "--out", "demo"],
            ["verify", "BUNDLE", "--checkpoint", "checkpoint"],
            ["calibrate", "show", "checkpoint", "out.png", "--question", "?"],
            ["calibrate", "train", "maps", "f_theta.safetensors"],
        ],
    )
    def test_what_needs_torch_says_what_to_install(
        self, bundle: Path, tmp_path: Path, arguments: list[str]
    ) -> None:
        (tmp_path / "maps").mkdir()
        done = self.slim(
            *(str(bundle) if word == "BUNDLE" else word for word in arguments), cwd=tmp_path
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("pip install 'foveate[export]'")
        assert "Traceback" not in done.stderr

    def test_the_command_line_alone_imports_little(self) -> None:
        names = "'numpy', 'onnxruntime', 'PIL', 'tokenizers', 'torch'"
        code = f"import sys, foveate.cli; print([n for n in [{names}] if n in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "[]\n"

    def test_help_imports_little(self) -> None:
        names = ("numpy", "onnxruntime", "PIL", "tokenizers", "torch", "transformers")
        verbs = [["calibrate", verb] for verb in calibrate.commands]
        verbs += [[verb] for verb in main.list_commands(click.Context(main))]
        code = (
            "import sys\nfrom foveate.cli import main\n"
            f"for words in {[[], *verbs]}:\n"
            "    main([*words, '--help'], standalone_mode=False)\n"
            f"print([n for n in {names} if n in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
