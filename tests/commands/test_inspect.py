"""foveate inspect: text, JSON, and folders that are no bundle."""

import json
from pathlib import Path

from tests.command import invoke, refused


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
        document = json.loads((bundle / "manifest.json").read_bytes())
        assert facts == {key: value for key, value in document.items() if key != "checksum"}

    def test_no_bundle(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        refused(invoke("inspect", tmp_path / "none"), "does not exist", "foveate export")
        refused(invoke("inspect", tmp_path), "is no bundle")
        refused(invoke("inspect", tiny_checkpoint), "is a checkpoint, not a bundle")
