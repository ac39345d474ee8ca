"""Bundles shared by all tests, exported once a session."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle
from foveate.export.exporter import ExportOptions, export
from foveate.export.quantization.options import QuantizationOptions
from foveate.modeling.f_theta import FTheta
from tests.checkpoints import write_checkpoint
from tests.quantized import quantize_bundle

NANO = Path(__file__).parent.parent / "models" / "nano"


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out question of the nano checkpoint."""

    id: str
    image: Path
    question: str
    answer: str
    task: str
    scope: str


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL checkpoint of two layers."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Bundle:
    """The random checkpoint's fp32 bundle; tests must not write in it."""
    return export(tiny_checkpoint, tiny_checkpoint.parent / "bundle")


@pytest.fixture(scope="session")
def half_bundle(tiny_checkpoint: Path) -> Bundle:
    """The random checkpoint's fp16 bundle, ranked by an untrained f_θ; tests must not write in it."""
    weights = tiny_checkpoint.parent / "f_theta.safetensors"
    FTheta(4, "log").save(weights, {"trained_on": "nothing"})
    options = ExportOptions(weights, precision="fp16")
    return export(tiny_checkpoint, tiny_checkpoint.parent / "half", options)


@pytest.fixture(scope="session")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The nano checkpoint's fp32 bundle, ranked by attention; tests must not write in it."""
    return export(NANO, tmp_path_factory.mktemp("nano") / "bundle", ExportOptions())


@pytest.fixture(scope="session")
def contrib_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The nano checkpoint's fp32 bundle of contrib operators; tests must not write in it."""
    options = ExportOptions(operators="contrib")
    return export(NANO, tmp_path_factory.mktemp("contrib") / "bundle", options)


@pytest.fixture(scope="session")
def quantized_bundles(
    nano_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """The nano checkpoint's bundles in int8, fp8 and int4; tests must not write in them."""
    folder = tmp_path_factory.mktemp("quantized")
    options = {"int4": QuantizationOptions()}
    calibrated = QuantizationOptions(NANO / "samples" / "data.jsonl", limit=8)
    return {
        precision: quantize_bundle(
            nano_bundle, NANO, folder / precision, precision, options.get(precision, calibrated)
        )
        for precision in ("int8", "fp8", "int4")
    }


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """The nano checkpoint's held-out questions."""
    folder = NANO / "samples"
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [Sample(**{**record, "image": folder / record["image"]}) for record in records]
