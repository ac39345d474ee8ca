"""TensorRT engines on a GPU; see tests/runtime/ready.py."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.manifest import Decoder
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, ExportError, LimitError
from foveate.runtime.backends.trt.choose import fitting_engines
from foveate.runtime.backends.trt.library import installed_version
from tests.command import invoke
from tests.conftest import Sample
from tests.runtime.ready import ready_bundle
from tests.runtime.seams import check_encoded_pictures, check_kept_tokens, check_streams_left_early
from tests.runtime.watched import graph_of

pytestmark = pytest.mark.gpu
RANGES = """
optimization_level = 0
[{name}.ranges]
visual = [96, 512]
pictures = [1, 4]
text = [40, 256]
keep = [32, 512]
prompt = [96, 1024]
cache = [128, 1024]
"""


def build(folder: Path, target: str, decoder: Decoder) -> Bundle:
    """The nano bundle with engines for this GPU, built in `folder`; skips where they cannot be."""
    from foveate.export.tensorrt.build import build_engines, check_targets

    shutil.copytree(ready_bundle("nano-fp32").root, folder / "bundle")
    targets = folder / "targets.toml"
    targets.write_text(f"[{target}]" + RANGES.format(name=target))
    try:
        check_targets(folder / "bundle", [target], "fp32", "standard", decoder)
    except ExportError as error:
        pytest.skip(str(error))
    return build_engines(folder / "bundle", [target], targets, decoder=decoder).bundle


def ready_engines(capability: str) -> Bundle | None:
    """The folder's bundle with engines, where they fit this machine."""
    try:
        bundle = ready_bundle("nano-engines")
    except pytest.skip.Exception:
        return None
    fitting, _ = fitting_engines(bundle, capability, installed_version)
    return bundle if fitting else None


@pytest.fixture(scope="module")
def built(
    capability: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The nano bundle with engines for this GPU."""
    ready = ready_engines(capability)
    if ready is not None:
        return ready
    return build(tmp_path_factory.mktemp("engines"), request.getfixturevalue("target"), "concat")


@pytest.fixture(scope="module")
def name(built: Bundle, capability: str) -> str:
    """The name of the target whose engines run here."""
    fitting, _ = fitting_engines(built, capability, installed_version)
    return next(iter(fitting))


@pytest.fixture(scope="module")
def pipe(built: Bundle, name: str) -> Iterator[Pipeline]:
    with Pipeline.load(built.root, backend="tensorrt", target=name) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def graphs(built: Bundle) -> Iterator[Pipeline]:
    """The bundle's graphs on the CPU."""
    pytest.importorskip("onnxruntime", reason="comparing needs onnxruntime, which is not installed")
    with Pipeline.load(built.root, device="cpu") as pipeline:
        yield pipeline


def ask(pipeline: Pipeline, sample: Sample, keep: float) -> Any:
    return pipeline.generate(sample.question, images=[sample.image], keep=keep, max_new_tokens=16)


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.25])
def test_answers_are_those_of_the_graphs(
    pipe: Pipeline, graphs: Pipeline, samples: list[Sample], keep: float
) -> None:
    for sample in samples[::6]:
        wanted, found = ask(graphs, sample, keep), ask(pipe, sample, keep)
        assert found.token_ids == wanted.token_ids, sample.id
        assert np.array_equal(found.visual.indices, wanted.visual.indices)
        assert found.visual.indices.dtype == np.int64
        assert found.cache_bytes == wanted.cache_bytes


def test_cuda_graphs_change_nothing(pipe: Pipeline, samples: list[Sample]) -> None:
    first = ask(pipe, samples[0], 0.5)
    for _ in range(4):
        again = ask(pipe, samples[0], 0.5)
        assert again.token_ids == first.token_ids
        assert np.array_equal(again.visual.relevance, first.visual.relevance)
        ask(pipe, samples[7], 0.25)
    engine = pipe._backend.engines["vision"]  # type: ignore[attr-defined]
    assert engine.graphs.refusal is None
    assert engine.graphs.launched > 0


def test_memory_is_used_again(pipe: Pipeline, samples: list[Sample]) -> None:
    device = pipe._backend.gpu  # type: ignore[attr-defined]
    for number in range(30):
        ask(pipe, samples[number % 5], 0.5)
        if number == 9:
            before = len(device._owned)
    assert len(device._owned) == before


def test_threads_may_share_engines(pipe: Pipeline, samples: list[Sample]) -> None:
    chosen = samples[:8]
    alone = [ask(pipe, sample, 0.5).token_ids for sample in chosen]
    together: dict[int, list[int]] = {}

    def work(first: int) -> None:
        for number in range(first, len(chosen), 4):
            together[number] = ask(pipe, chosen[number], 0.5).token_ids

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(chosen))] == alone


def test_requests_beyond_the_ranges_are_refused(pipe: Pipeline) -> None:
    big = [Image.new("RGB", (448, 448))] * 4
    with pytest.raises(LimitError, match="visual tokens and 512 are taken"):
        pipe.generate("What?", images=big, keep=0.1)
    with pytest.raises(LimitError, match="for the answer"):
        pipe.generate("What?", images=[big[0]], max_new_tokens=2000)
    with pytest.raises(LimitError, match="'text_embeds' is"):
        pipe.generate("What " * 600, images=[big[0]], max_new_tokens=1, keep=0.5)


def test_a_static_decoder_answers_the_same_and_launches_its_steps(
    target: str, samples: list[Sample], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="comparing needs onnxruntime, which is not installed")
    built = build(tmp_path, target, "static")
    with (
        Pipeline.load(built.root, backend="tensorrt") as pipeline,
        Pipeline.load(built.root, device="cpu") as graphs,
    ):
        for sample in samples[::6]:
            assert ask(pipeline, sample, 0.5).token_ids == ask(graphs, sample, 0.5).token_ids
        engine = graph_of(pipeline).engine
        assert engine.graphs.refusal is None
        assert engine.graphs.launched > 0


def test_kept_tokens(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    for _ in range(3):
        check_kept_tokens(pipe, pictures)


def test_encoded_pictures(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    check_encoded_pictures(pipe, pictures)


def test_streams_left_early(pipe: Pipeline, pictures: list[Image.Image]) -> None:
    check_streams_left_early(pipe, pictures)


def test_verify_runs_them(built: Bundle) -> None:
    pytest.importorskip("onnxruntime", reason="comparing needs onnxruntime, which is not installed")
    result = invoke("verify", built.root)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("run, within") == 3


def test_a_damaged_engine_is_refused_with_the_librarys_words(
    built: Bundle, name: str, tmp_path: Path
) -> None:
    shutil.copytree(built.root, tmp_path / "bundle")
    path = Bundle.open(tmp_path / "bundle").file(f"engine.{name}.vision")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BackendError, match=r"cannot load it: .*foveate build"):
        Pipeline.load(tmp_path / "bundle", backend="tensorrt", target=name, checksums=False)


def test_a_closed_pipeline_refuses(built: Bundle, name: str, samples: list[Sample]) -> None:
    pipeline = Pipeline.load(built.root, backend="tensorrt", target=name)
    stream = pipeline.stream(samples[0].question, images=[samples[0].image])
    pipeline.close()
    pipeline.close()
    with pytest.raises(ClosedError):
        ask(pipeline, samples[0], 1.0)
    assert "".join(stream) == stream.answer.text
    assert pipeline._backend.gpu.closed  # type: ignore[attr-defined]
