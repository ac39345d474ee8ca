"""What tests of TensorRT on a GPU share."""

import importlib.util

import pytest

from tests.runtime.ready import need_gpu


@pytest.fixture(scope="session")
def capability() -> str:
    """The GPU's compute capability, where engines can be run."""
    found = need_gpu()
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    return found


@pytest.fixture(scope="session")
def target(capability: str) -> str:
    """A target that can be built for and run here."""
    pytest.importorskip("onnx", reason="building engines needs onnx, which is not installed")
    from foveate.export.tensorrt.library import numbers
    from foveate.export.tensorrt.targets import read_targets

    why = []
    for name, one in read_targets().items():
        if capability not in one.compute_capabilities:
            continue
        if importlib.util.find_spec(one.library) is None:
            why.append(f"{one.library}, for the target {name}, is not installed")
            continue
        version = numbers(importlib.import_module(one.library).__version__)
        first, before = (numbers(part) for part in one.versions)
        if first <= version < before:
            return name
        why.append(f"{one.library} {version} is not for the target {name}")
    pytest.skip("; ".join(why) or f"no target has compute capability {capability}")
