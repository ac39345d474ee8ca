"""Visual tokens that are sums of rows, in TensorRT's engines, acted out by onnxruntime in host memory."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from foveate import Pipeline
from foveate.bundle.manifest import GATHER
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError
from foveate.export.tensorrt.build import build_engines
from foveate.export.tensorrt.targets import Ranges
from foveate.runtime.backends.trt.choose import choose_engines
from tests.llava_onevision import noise
from tests.runtime.backends.trt.engines import copy_of, with_engines
from tests.runtime.backends.trt.hosted import host_pipeline

QUESTION = "What can be seen in the two pictures?"
RANGES = Ranges(
    visual=(700, 2048), pictures=(1, 4), text=(40, 256), keep=(32, 2048), prompt=(96, 2300), cache=(128, 2400)
)  # fmt: skip


def test_pictures_and_videos_get_the_same_answers(llava_bundle: Bundle) -> None:
    several: list[dict[str, Any]] = [
        {"images": [noise(150, 320)]},
        {"images": [noise(20, 30)]},
        {"images": [noise(40, 60), noise(60, 40)]},
        {"video": [noise(40, 60, 1), noise(40, 60, 2)]},
    ]
    with (
        Pipeline.load(llava_bundle.root, device="cpu") as plain,
        host_pipeline(llava_bundle, "concat", ranges=RANGES) as hosted,
    ):
        for media in several:
            for keep in (1.0, 0.3):
                ask: dict[str, Any] = {**media, "keep": keep, "max_new_tokens": 4}
                one, other = (pipe.generate(QUESTION, **ask) for pipe in (plain, hosted))
                assert one.token_ids == other.token_ids
                assert one.visual.indices.tolist() == other.visual.indices.tolist()


def test_engines_of_a_target_are_those_of_all_graphs(llava_bundle: Bundle, tmp_path: Path) -> None:
    versions: Any = ("9.0", lambda library: "10.3.0")
    whole = with_engines(copy_of(llava_bundle, tmp_path / "whole"), "h100")
    roles = ["vision", "compressor", "decoder", GATHER]
    assert list(choose_engines(whole, None, *versions)) == roles
    lacking = with_engines(
        copy_of(llava_bundle, tmp_path / "lacking"), "h100", roles=tuple(roles[:3])
    )
    with pytest.raises(BackendError, match=f"no engine of {GATHER} for h100. Build it"):
        choose_engines(lacking, None, *versions)


def test_engines_are_built_ahead_of_time(llava_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'foveate[rtx]'")
    folder = shutil.copytree(llava_bundle.root, tmp_path / "bundle")
    result = build_engines(folder, ["rtx"])
    engines = {engine.role: engine for engine in result.bundle.manifest.engines}
    assert set(engines) == set(llava_bundle.manifest.graphs)
    side = engines["vision"].profiles["default"].shapes["pixel_values"]
    assert [shape[0] for shape in side] == [1, 1, 1]
    rows = engines[GATHER].profiles["default"].shapes["features"]
    assert rows[0][0] == 1
    assert rows[2][0] > 37 * 13**2
