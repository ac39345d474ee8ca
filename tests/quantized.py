"""The nano checkpoint's float graphs, quantized without exporting them again."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter
from foveate.export.contrib.cases import checkpoint_cases
from foveate.export.parity import Case
from foveate.export.quantization.draft import Draft
from foveate.export.quantization.options import QuantizationOptions
from foveate.export.quantization.quantize import quantize
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.families import torch_family
from foveate.modeling.ranker import Ranker

CASES: dict[Path, list[Case]] = {}
"""What transformers gave for each checkpoint, run once."""


def quantize_bundle(
    bundle: Bundle,
    checkpoint: Path,
    target: Path,
    precision: Any,
    options: QuantizationOptions = QuantizationOptions(),  # noqa: B008
) -> Bundle:
    """A float bundle's quantized sibling."""
    if checkpoint not in CASES:
        torch_half = torch_family(bundle.manifest.family)
        model = torch_half.load(Checkpoint.open(checkpoint), torch.float32, "eager")
        CASES[checkpoint] = checkpoint_cases(
            torch_half, model, Ranker(words=bundle.manifest.compressor.words), bundle
        )
    scratch = shutil.copytree(bundle.root, target.parent / f"{target.name}.float")
    draft = Draft(
        Bundle(bundle.root, replace(bundle.manifest, precision=precision)), scratch, "fp32"
    )
    with BundleWriter(target) as writer:
        written, manifest = quantize(
            draft, writer.root, options, CASES[checkpoint], lambda stage: None, lambda detail: None
        )
        files = {
            "tokenizer": "tokenizer.json",
            "chat_template": "chat_template.jinja",
            **written,
        }
        for role in ("tokenizer", "chat_template"):
            shutil.copyfile(bundle.file(role), writer.root / files[role])
        return writer.finish(replace(manifest, files=writer.entries(files)))


def write_records(folder: Path, records: list[dict[str, Any]]) -> Path:
    """A data set."""
    path = folder / "data.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path
