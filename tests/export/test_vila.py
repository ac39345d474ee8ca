"""VILA1.5 exported: every graph agrees with transformers, in either operators, and builds for TensorRT."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from foveate.bundle.reader import Bundle
from foveate.errors import ExportError, ParityError
from foveate.export.exporter import ExportOptions, export
from foveate.export.parity import TOLERANCE
from foveate.export.reference import pictures
from foveate.export.verify import verify
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.families import torch_family
from foveate.runtime.load import read_family, read_tokenizer
from tests.vila_checkpoints import write_vila

CLOSE = 1e-5
"""Of the largest value: float32 sums in another order."""


def test_graphs_agree_with_transformers(vila_bundle: Bundle, vila_checkpoint: Path) -> None:
    parity = vila_bundle.manifest.parity
    assert set(parity) == {"vision", "embeddings", "compressor", "decoder"}
    assert 0 < parity["vision"] <= max(parity.values()) <= CLOSE
    assert verify(vila_bundle, vila_checkpoint) == pytest.approx(parity, abs=CLOSE)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_contrib_operators_agree(vila_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    """Of the largest value fp32 1e-5, fp16 2e-2 and bf16 1e-1: rounding after each operator on both sides."""
    options = ExportOptions(operators="contrib", precision=precision)  # type: ignore[arg-type]
    parity = export(vila_checkpoint, tmp_path / "bundle", options).manifest.parity
    assert set(parity) == {"vision", "embeddings", "compressor", "merge", "decoder"}
    assert 0 < parity["vision"] <= TOLERANCE[precision]
    assert 0 < parity["decoder"] <= TOLERANCE[precision]


def test_another_projector_is_told_apart(vila_bundle: Bundle, tmp_path: Path) -> None:
    """The same weights, and tokens row by row in place of column by column."""
    other = write_vila(tmp_path / "rows", projector="mlp_downsample_2x2_fix")
    with pytest.raises(ParityError, match="vision: differs from transformers"):
        verify(vila_bundle, other)


def test_axes_of_the_vision_graph_follow_from_the_request(vila_bundle: Bundle) -> None:
    axes = vila_bundle.manifest.vision_axes
    (one,) = vila_bundle.graph("vision").inputs
    assert one.shape == ["tiles", 3, 54, 54]
    family = read_family(vila_bundle, read_tokenizer(vila_bundle))
    visual = family.prepare(pictures()[:1])
    assert visual.calls[0].inputs[one.name].shape[0] == axes["tiles"].plus == 1


def test_other_kinds_of_llama_agree(tmp_path: Path) -> None:
    """Llama 3.1's rope, biases, and heads of another size, in contrib operators."""
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    fields = {"rope_scaling": rope, "attention_bias": True, "mlp_bias": True, "head_dim": 32}
    folder = write_vila(tmp_path / "other", llm_cfg=fields, projector="mlp_downsample_2x2_fix")
    bundle = export(folder, tmp_path / "bundle", ExportOptions(operators="contrib"))
    assert bundle.manifest.model.head_dim == 32
    assert max(bundle.manifest.parity.values()) <= CLOSE
    odd = write_vila(tmp_path / "odd", llm_cfg={**fields, "head_dim": 24})
    with pytest.raises(ExportError, match=r"24 wide.*multiples of 16.*--operators standard"):
        export(odd, tmp_path / "none", ExportOptions(operators="contrib"))


@torch.no_grad()
def test_the_real_geometry_in_both_operators(tmp_path: Path) -> None:
    """384 pixels, 27 x 27 patches of 14, 196 tokens; what standard operators are traced from is run."""
    folder = write_vila(tmp_path / "real", side=384, patch=14)
    bundle = export(folder, tmp_path / "bundle", ExportOptions(operators="contrib"))
    assert 0 < bundle.manifest.parity["vision"] <= CLOSE
    half = torch_family("vila")
    model = half.load(Checkpoint.open(folder), torch.float32, "eager")
    family = read_family(bundle, read_tokenizer(bundle))
    levels = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (90, 60 + n, 3), dtype=np.uint8))
        for n in range(3)
    ]
    contrib = family.prepare(levels).calls[0].inputs
    session = onnxruntime.InferenceSession(bundle.file("vision"))
    (found,) = session.run(None, dict(contrib))
    table = 2 * (contrib["levels"].astype(np.float32) / 255) - 1
    pixels = np.ascontiguousarray(table.transpose(0, 3, 1, 2))
    wanted = half.encode_processed(model, {"pixel_values": pixels}).numpy()
    assert wanted.shape == (3 * 196, 64)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())

    traced = half.vision_module(model).module(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(traced, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


def test_engines_are_built_ahead_of_time(vila_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'foveate[rtx]'"
    )
    from foveate.export.tensorrt.build import build_engines

    shutil.copytree(vila_bundle.root, tmp_path / "bundle")
    result = build_engines(tmp_path / "bundle", ["rtx"])
    engines = {one.engine.role: one.engine for one in result.built}
    assert list(engines) == ["vision", "compressor", "decoder"]
    (profile,) = engines["vision"].profiles.values()
    assert profile.shapes["pixel_values"] == ([1, 3, 54, 54],) * 3
    data = result.bundle.file(engines["vision"].file).read_bytes()
    assert b"pixel_values" in data
    assert b"visual_embeds" in data
