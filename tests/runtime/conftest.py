"""The nano checkpoint on every engine that runs without a GPU."""

from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from tests.conftest import Sample

ENGINES = ("standard", "contrib", "tensorrt")
"""onnxruntime on graphs of either operators, and TensorRT acted out in host memory."""


@pytest.fixture(scope="session")
def open_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Pipeline]]:
    """Opens the nano checkpoint on an engine, once a session."""
    opened: dict[str, Pipeline] = {}

    def load(name: str) -> Pipeline:
        """A pipeline on the CPU."""
        if name == "tensorrt":
            from tests.runtime.backends.trt.hosted import host_pipeline

            return host_pipeline(request.getfixturevalue("nano_bundle"), "static")
        fixture = "nano_bundle" if name == "standard" else "contrib_bundle"
        bundle: Bundle = request.getfixturevalue(fixture)
        return Pipeline.load(bundle.root, device="cpu")

    def find(name: str) -> Pipeline:
        """The engine's pipeline, opened when it is first asked for."""
        if name not in opened:
            opened[name] = load(name)
        return opened[name]

    yield find
    for pipeline in opened.values():
        pipeline.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, open_engine: Callable[[str], Pipeline]) -> Pipeline:
    """The nano checkpoint on each engine."""
    return open_engine(request.param)


@pytest.fixture(scope="session")
def pictures(samples: list[Sample]) -> list[Image.Image]:
    """Three pictures of unequal sizes."""
    opened = [Image.open(sample.image).convert("RGB") for sample in samples[:12:4]]
    return [opened[0], opened[1].resize((168, 140)), opened[2].resize((196, 84))]
