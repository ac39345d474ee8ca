"""foveate verify: files, graphs and the checkpoint, and two backends compared stage by stage."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from foveate.bundle.reader import Bundle
from foveate.commands.stage_parity import Arrays, differences, run_stages, small_request
from foveate.runtime.backends import open_backend
from tests.command import invoke, refused

ZERO = {"vision": 0.0, "merge": 0.0, "compressor": 0.0, "decoder": 0.0}


class TestVerify:
    def test_whole(self, bundle: Path) -> None:
        result = invoke("verify", bundle)
        assert result.exit_code == 0
        assert "is whole" in result.stdout
        assert re.search(r"^checksums … \d+\.\d s$", result.stderr, re.M)

    def test_json(self, bundle: Path) -> None:
        facts = json.loads(invoke("verify", bundle, "--json").stdout)
        assert facts["root"] == str(bundle)
        assert set(facts["graphs"]) == {"vision", "compressor", "decoder"}
        assert facts["files"] == 9
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


@pytest.fixture(scope="module")
def found(tiny_bundle: Bundle) -> Arrays:
    """What the tiny bundle's stages give."""
    backend = open_backend(tiny_bundle, "onnxruntime", device="cpu")
    visual, prompt = small_request(tiny_bundle)
    count = visual.tokens // 4
    first = run_stages(backend, visual, prompt, count, {})
    again = run_stages(backend, visual, prompt, count, first)
    backend.close()
    assert differences(again, first) == ZERO
    return first


@pytest.mark.parametrize("name", ["vision.visual_embeds", "compressor.scores", "decoder.step"])
def test_a_wrong_value_is_seen(found: Arrays, name: str) -> None:
    wrong = found[name].copy()
    wrong.reshape(-1)[3] += 0.5 * np.abs(wrong).max()
    stage = name.split(".")[0]
    assert differences({**found, name: wrong}, found) == {
        **ZERO,
        stage: pytest.approx(0.5, rel=1e-3),
    }
    for bad in (np.full_like(wrong, np.nan), wrong[:1]):
        assert differences({**found, name: bad}, found)[stage] == float("inf")


def test_tokens_kept_instead_of_others_count_by_their_scores(found: Arrays) -> None:
    scores, kept = found["compressor.scores"], found["compressor.kept_indices"]
    others = np.setdiff1d(np.arange(len(scores)), kept)
    swapped = np.sort([*kept[kept != kept[scores[kept].argmin()]], others[scores[others].argmin()]])
    distance = differences({**found, "compressor.kept_indices": swapped}, found)["compressor"]
    gap = scores[kept].min() - scores[others].min()
    assert distance == pytest.approx(float(gap / np.abs(scores).max()))
