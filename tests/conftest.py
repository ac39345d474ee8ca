"""Bundles shared by all tests, exported once a session."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from foveate.bundle.reader import Bundle

NANO = Path(__file__).parent.parent / "models" / "nano"
GPU_TESTS = "test_*_gpu.py"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu` no other modules are imported, which may need what is not installed, such as torch."""
    if config.option.markexpr != "gpu":
        return None
    if collection_path.is_dir():
        return not any(collection_path.rglob(GPU_TESTS)) or None
    return not collection_path.match(GPU_TESTS) or None


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Answers kept aside by evaluations go nowhere near the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out question of the nano checkpoint."""

    id: str
    image: Path
    question: str
    answer: str
    task: str
    scope: str


@dataclass(frozen=True, slots=True)
class VerbExport:
    """What `foveate export` wrote and said."""

    root: Path
    facts: dict[str, Any]
    stderr: str


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL checkpoint of two layers."""
    from tests.checkpoints import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Bundle:
    """The random checkpoint's fp32 bundle, words weighed; tests must not write in it."""
    from tests.exported import export_tiny

    target = tiny_checkpoint.parent / "bundle"
    return export_tiny(tiny_checkpoint, target, compressor="attention:unusual")


@pytest.fixture(scope="session")
def half_bundle(tiny_checkpoint: Path) -> Bundle:
    """The random checkpoint's fp16 bundle, ranked by an untrained f_θ; tests must not write in it."""
    from tests.exported import export_half

    return export_half(tiny_checkpoint, tiny_checkpoint.parent / "half")


@pytest.fixture(scope="session")
def vila_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VILA1.5 checkpoint of two layers, whose pictures are 13 x 13 patches; not to be written in."""
    from tests.vila_checkpoints import write_vila

    return write_vila(tmp_path_factory.mktemp("vila") / "checkpoint")


@pytest.fixture(scope="session")
def vila_bundle(vila_checkpoint: Path) -> Bundle:
    """Its fp32 bundle; tests must not write in it."""
    from tests.exported import export_tiny

    return export_tiny(vila_checkpoint, vila_checkpoint.parent / "bundle")


@pytest.fixture(scope="session")
def verb_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> VerbExport:
    """The random checkpoint exported by the verb, with all it can do; tests must not write in it."""
    from tests.exported import export_by_the_verb

    return export_by_the_verb(tiny_checkpoint, tmp_path_factory.mktemp("verb"))


@pytest.fixture(scope="session")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The nano checkpoint's fp32 bundle, ranked by attention; tests must not write in it."""
    from tests.exported import export_nano

    return export_nano(tmp_path_factory.mktemp("nano") / "bundle")


@pytest.fixture(scope="session")
def contrib_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The nano checkpoint's fp32 bundle of contrib operators; tests must not write in it."""
    from tests.exported import export_nano

    return export_nano(tmp_path_factory.mktemp("contrib") / "bundle", operators="contrib")


@pytest.fixture(scope="session")
def llava_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA-OneVision checkpoint of tiles of 13 x 13 patches."""
    from tests.llava_onevision import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture(scope="session")
def llava_bundle(llava_checkpoint: Path) -> Bundle:
    """Its fp32 bundle; tests must not write in it."""
    from tests.exported import export_tiny

    return export_tiny(llava_checkpoint, llava_checkpoint.parent / "bundle")


@pytest.fixture(scope="session")
def llava_contrib_bundle(llava_checkpoint: Path) -> Bundle:
    """Its fp32 bundle of contrib operators; tests must not write in it."""
    from tests.exported import export_tiny

    return export_tiny(llava_checkpoint, llava_checkpoint.parent / "contrib", operators="contrib")


@pytest.fixture(scope="session")
def quantized_bundles(
    nano_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """The nano checkpoint's bundles in int8, fp8 and int4; tests must not write in them."""
    from tests.exported import quantize_nano

    return quantize_nano(nano_bundle, tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """The nano checkpoint's held-out questions."""
    folder = NANO / "samples"
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [Sample(**{**record, "image": folder / record["image"]}) for record in records]
