"""TensorRT engines that are built and run: needs the GPU of a target that TensorRT builds for."""

import importlib.util
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, machine
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, ClosedError, ExportError, LimitError
from foveate.export.tensorrt.build import build_engines, check_targets
from foveate.export.tensorrt.library import numbers
from foveate.export.tensorrt.targets import read_targets
from tests.command import invoke
from tests.conftest import Sample

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


def target_here() -> tuple[str | None, str]:
    """A target that can be built for and run here; or none, and why."""
    here = machine.capability()
    if here is None:
        return None, "no GPU is to be seen"
    if importlib.util.find_spec("cuda") is None:
        return None, "cuda-bindings is not installed"
    why = []
    for name, target in read_targets().items():
        if here not in target.compute_capabilities:
            continue
        if importlib.util.find_spec(target.library) is None:
            why.append(f"{target.library}, for the target {name}, is not installed")
            continue
        version = numbers(importlib.import_module(target.library).__version__)
        first, before = (numbers(one) for one in target.versions)
        if first <= version < before:
            return name, ""
        why.append(f"{target.library} {version} is not for the target {name}")
    return None, "; ".join(why) or f"no target has compute capability {here}"


NAME, WHY = target_here()
if NAME is None:
    pytestmark = [pytest.mark.gpu, pytest.mark.skip(reason=WHY)]


@pytest.fixture(scope="module")
def built(nano_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The nano bundle with engines for this GPU."""
    folder = tmp_path_factory.mktemp("engines")
    shutil.copytree(nano_bundle.root, folder / "bundle")
    targets = folder / "targets.toml"
    targets.write_text(f"[{NAME}]" + RANGES.format(name=NAME))
    return build_engines(folder / "bundle", [str(NAME)], targets).bundle


@pytest.fixture(scope="module")
def pipe(built: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(built.root, backend="tensorrt") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def graphs(nano_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(nano_bundle.root, device="cpu") as pipeline:
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
    nano_bundle: Bundle, graphs: Pipeline, samples: list[Sample], tmp_path: Path
) -> None:
    shutil.copytree(nano_bundle.root, tmp_path / "bundle")
    targets = tmp_path / "targets.toml"
    targets.write_text(f"[{NAME}]" + RANGES.format(name=NAME))
    try:
        check_targets(tmp_path / "bundle", [str(NAME)], "fp32", "standard", "static")
    except ExportError as error:
        pytest.skip(str(error))
    built = build_engines(tmp_path / "bundle", [str(NAME)], targets, decoder="static").bundle
    with Pipeline.load(built.root, backend="tensorrt") as pipeline:
        for sample in samples[::6]:
            assert ask(pipeline, sample, 0.5).token_ids == ask(graphs, sample, 0.5).token_ids
        engine = pipeline._backend.engines["decoder"]  # type: ignore[attr-defined]
        assert engine.graphs.refusal is None
        assert engine.graphs.launched > 0


def test_verify_runs_them(built: Bundle) -> None:
    result = invoke("verify", built.root)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("run, within") == 3


def test_a_damaged_engine_is_refused_with_the_librarys_words(built: Bundle, tmp_path: Path) -> None:
    shutil.copytree(built.root, tmp_path / "bundle")
    path = Bundle.open(tmp_path / "bundle").file(f"engine.{NAME}.vision")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BackendError, match=r"cannot load it: .*foveate build"):
        Pipeline.load(tmp_path / "bundle", backend="tensorrt", checksums=False)


def test_a_closed_pipeline_refuses(built: Bundle, samples: list[Sample]) -> None:
    pipeline = Pipeline.load(built.root, backend="tensorrt")
    stream = pipeline.stream(samples[0].question, images=[samples[0].image])
    pipeline.close()
    pipeline.close()
    with pytest.raises(ClosedError):
        list(stream)
    with pytest.raises(ClosedError):
        ask(pipeline, samples[0], 1.0)
