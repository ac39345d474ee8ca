"""Bundles that tests share, exported with torch: imported where one is asked for, and nowhere before."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate.bundle.manifest import AutoKeep
from foveate.bundle.reader import Bundle
from foveate.export.exporter import ExportOptions, export
from foveate.export.quantization.options import QuantizationOptions
from foveate.modeling.f_theta import FTheta
from tests.command import invoke
from tests.conftest import NANO, VerbExport
from tests.quantized import quantize_bundle, write_records

AUTO_KEEP = AutoKeep(share=0.4, least=0.05, most=0.5)
PICTURE = NANO / "samples" / "scene-77-00000.png"


def export_tiny(checkpoint: Path, target: Path, **options: Any) -> Bundle:
    """A small checkpoint's fp32 bundle."""
    return export(checkpoint, target, ExportOptions(**options))


def export_half(checkpoint: Path, target: Path) -> Bundle:
    """A small checkpoint's fp16 bundle, ranked by an untrained f_θ."""
    weights = target.parent / "f_theta.safetensors"
    FTheta(4, "log").save(weights, {"trained_on": "nothing"})
    return export(checkpoint, target, ExportOptions(weights, precision="fp16"))


def export_by_the_verb(checkpoint: Path, folder: Path) -> VerbExport:
    """A small checkpoint in int8 over fp16, calibrated, with engines where their library is installed."""
    record = {"id": "1", "image": str(PICTURE), "question": "What is it?"}
    engines = ("--target", "rtx") if find_spec("tensorrt_rtx") else ()
    done = invoke(
        "export", checkpoint, folder / "bundle", "--precision", "int8", "--base", "fp16",
        "--calibration", write_records(folder, [record]), *engines, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return VerbExport(folder / "bundle", json.loads(done.stdout), done.stderr)


def export_nano(target: Path, **options: Any) -> Bundle:
    """A bundle of the nano checkpoint."""
    return export(NANO, target, ExportOptions(auto_keep=AUTO_KEEP, **options))


def quantize_nano(bundle: Bundle, folder: Path) -> dict[str, Bundle]:
    """The nano checkpoint's quantized bundles by precision, made from its fp32 one."""
    options = {"int4": QuantizationOptions()}
    calibrated = QuantizationOptions(NANO / "samples" / "data.jsonl", limit=8)
    return {
        precision: quantize_bundle(
            bundle, NANO, folder / precision, precision, options.get(precision, calibrated)
        )
        for precision in ("int8", "fp8", "int4")
    }
