"""Engines of quantized graphs, built ahead of time by TensorRT for RTX; none is run."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from foveate.bundle.reader import Bundle
from foveate.errors import ExportError
from foveate.export.tensorrt import builder
from foveate.export.tensorrt.build import build_engines
from foveate.export.tensorrt.library import Builder, check_precision
from foveate.export.tensorrt.targets import read_targets
from tests.command import invoke, refused

pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'foveate[rtx]'"
)

NAMES = {"int8": "INT8", "fp8": "FP8", "int4": "INT4"}
PRODUCTS = {"vision": 18, "compressor": 0, "decoder": 43}
ONE = '[rtx-40]\ncompute_capabilities = ["8.9"]\n'


@pytest.fixture(scope="module")
def float_sizes(nano_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The sizes of nano's fp32 engines."""
    folder = tmp_path_factory.mktemp("float")
    shutil.copytree(nano_bundle.root, folder / "bundle")
    (folder / "targets.toml").write_text(ONE)
    result = build_engines(folder / "bundle", ["rtx-40"], folder / "targets.toml")
    return {one.engine.role: one.bytes for one in result.built}


@pytest.mark.parametrize("precision", list(NAMES))
def test_engines_are_smaller_and_their_layers_quantized(
    quantized_bundles: dict[str, Bundle], float_sizes: dict[str, int], tmp_path: Path,
    precision: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found: dict[str, Counter[str]] = {}
    original = builder.check_network

    def counted(trt: Any, network: Any, role: str, *rest: Any) -> None:
        """Count the types that the DequantizeLinear layers of the parsed network read."""
        layers = (network.get_layer(place) for place in range(network.num_layers))
        found[role] = Counter(
            layer.get_input(0).dtype.name
            for layer in layers
            if layer.type == trt.LayerType.DEQUANTIZE
        )
        original(trt, network, role, *rest)

    monkeypatch.setattr(builder, "check_network", counted)
    bundle = quantized_bundles[precision]
    shutil.copytree(bundle.root, tmp_path / "bundle")
    (tmp_path / "targets.toml").write_text(ONE)
    result = build_engines(tmp_path / "bundle", ["rtx-40"], tmp_path / "targets.toml")
    sides = 1 if precision == "int4" else 2
    for one in result.built:
        role, name = one.engine.role, NAMES[precision]
        assert one.engine.precision == precision
        assert found[role] == (Counter({name: sides * PRODUCTS[role]}) if PRODUCTS[role] else {})
        if PRODUCTS[role]:
            floats, weights = bundle.manifest.files, f"{role}.weights"
            assert floats[weights].bytes < one.bytes < 0.75 * float_sizes[role]


def test_targets_and_libraries_without_a_precision(
    quantized_bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    shutil.copytree(quantized_bundles["fp8"].root, tmp_path / "bundle")
    done = invoke("build", tmp_path / "bundle", "--target", "rtx")
    refused(done, "not in fp8", "compute capability 8.9 or later: rtx-40, h100, jetson-thor")
    old = Builder(None, "tensorrt", "9.3.0")
    with pytest.raises(ExportError, match=r"TensorRT 9\.3\.0 does not take int4 graphs"):
        check_precision("h100", read_targets()["h100"], old, "int4")
