"""foveate export: what is refused, what is missing, and an interrupt."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from foveate.bundle.manifest import Operators
from foveate.commands.export import OPERATORS
from tests.command import command, invoke, refused


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
            (("--keep", "Auto"), "or auto"),
            (("--auto-keep", "0.9"), "SHARE,LEAST,MOST"),
            (("--auto-keep", "0.9,0.6,0.5"), "must not be over the most"),
            (("--keep", "auto"), "--auto-keep SHARE,LEAST,MOST"),
            (("--visual-tokens", "0"), "visual tokens"),
            (("--visual-tokens", "99999999"), "context"),
            (("--compressor", "none.safetensors"), "none.safetensors"),
            (("--compressor", "attention:usual"), "attention:unusual"),
        ],
    )
    def test_options_out_of_range(
        self, tiny_checkpoint: Path, tmp_path: Path, option: tuple[str, str], word: str
    ) -> None:
        refused(invoke("export", tiny_checkpoint, tmp_path / "bundle", *option), word)
        assert os.listdir(tmp_path) == []

    def test_interrupt_leaves_nothing(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        words = command("export", tiny_checkpoint, tmp_path / "bundle")
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdout=pipe, stderr=pipe) as process:
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


def test_every_kind_of_operators_can_be_chosen() -> None:
    assert list(OPERATORS) == ["standard", "contrib"]
    assert set(OPERATORS) == set(get_args(Operators))
