"""TensorRT keeps onnxruntime's tokens whatever N and K, on a GPU; see tests/runtime/ready.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from foveate.bundle.manifest import EngineVariant, GraphSpec
from foveate.runtime.backends.trt.cuda import Gpu, load_cuda
from foveate.runtime.backends.trt.engine import Opener, TensorRTEngine
from tests.long_prompts import GRIDS, long_prompt
from tests.runtime.ready import ready_bundle

pytestmark = pytest.mark.gpu
MOST = 9000
BuildAndLoad = Callable[[Path, GraphSpec, Any], TensorRTEngine]


@pytest.fixture(scope="module")
def load(
    capability: str, target: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BuildAndLoad]:
    """Builds the engine of a graph, with one profile, and loads it."""
    from foveate.export.tensorrt.builder import Job, build_engine
    from foveate.export.tensorrt.library import open_library
    from foveate.export.tensorrt.targets import read_targets

    folder = tmp_path_factory.mktemp("engines")
    described = replace(read_targets()[target], optimization_level=0)
    builder, gpu = open_library(target, described), Gpu(load_cuda())
    opener = Opener(builder.library, gpu)

    def build_and_load(graph: Path, spec: GraphSpec, plan: Any) -> TensorRTEngine:
        job = Job(target, described, builder, "fp32", {"compressor": [plan]})
        data, profiles, _ = build_engine(job, "compressor", graph, spec, lambda _: None)
        path = folder / f"{graph.stem}.engine"
        path.write_bytes(memoryview(data))
        variant = EngineVariant(
            target=target, role="compressor", file="engine", library=builder.library,
            version=builder.version, compute_capabilities=[capability], precision="fp32",
            decoder=None, profiles=profiles, built_from={},
        )  # fmt: skip
        bundle: Any = SimpleNamespace(root=folder, file=lambda role: path, graph=lambda role: spec)
        return opener.open(bundle, variant)

    yield build_and_load
    gpu.close()


@pytest.fixture(scope="module")
def ranking(load: BuildAndLoad, tmp_path_factory: pytest.TempPathFactory) -> TensorRTEngine:
    """An engine of a compressor's last part: scores in, kept tokens out."""
    from tests.export.tensorrt.ranking import ranking_plan, ranking_spec, write_ranking

    graph = write_ranking(tmp_path_factory.mktemp("ranking") / "ranking.onnx")
    return load(graph, ranking_spec(), ranking_plan(MOST))


@pytest.fixture(scope="module")
def compressor(load: BuildAndLoad) -> TensorRTEngine:
    """An engine of nano's compressor, for thousands of visual tokens."""
    from foveate.export.tensorrt.profiles import Plan

    bundle = ready_bundle("nano-fp32")
    spec = bundle.graph("compressor")
    (kept,) = (str(one.shape[0]) for one in spec.outputs if one.name == "kept_indices")
    sizes, text = (1, 1024, MOST), (1, 24, 64)
    axes = {
        "text": text, "instruction": text, "visual": sizes, kept: sizes, "prompt": (2, 1100, MOST + 64),
    }  # fmt: skip
    plan = Plan("default", axes, {"keep": sizes})
    return load(bundle.file("compressor"), spec, plan)


def kinds_of_scores(count: int) -> dict[str, NDArray[np.float32]]:
    """Scores that all differ, that are often equal, and that are of all sizes."""
    from tests.export.tensorrt.ranking import NORMAL

    random = np.random.default_rng(count)
    signs = np.where(random.random(count) < 0.5, -1, 1)
    return {
        "logits": random.standard_normal(count, np.float32),
        "ties": random.integers(-4, 4, count).astype(np.float32),
        "equal": np.full(count, 0.25, np.float32),
        "of all sizes": (signs * np.exp2(random.uniform(-125, 127, count))).astype(np.float32),
        "special": random.choice(np.array(NORMAL, np.float32), count),
    }


def check_ranking(engine: TensorRTEngine, scores: NDArray[np.float32], keep: int) -> None:
    from tests.export.tensorrt.ranking import kept_by_rule, ranking_feeds

    feeds = ranking_feeds(scores, keep, 24)
    found = engine.run(feeds)
    kept = kept_by_rule(scores, keep)
    places = np.sort(np.concatenate([feeds["text_index"], feeds["visual_index"][kept]]))
    assert np.array_equal(found["kept_indices"].numpy(), kept)
    assert np.array_equal(found["kept_places"].numpy(), places)


@pytest.mark.parametrize("keep", [1, 2, 1500, 3840, 3841, None])
@pytest.mark.parametrize("count", [1, 255, 256, 6000, 8667])
def test_kept_sets_are_those_of_the_rule(
    ranking: TensorRTEngine, count: int, keep: int | None
) -> None:
    for scores in kinds_of_scores(count).values():
        check_ranking(ranking, scores, min(keep or count, count))


def test_numbers_next_to_zero_are_told_apart(ranking: TensorRTEngine) -> None:
    """Those below 2⁻¹²⁶, which hardware may take for zero; an attention of so little can be."""
    from tests.export.tensorrt.ranking import SUBNORMAL

    scores = np.random.default_rng(0).choice(np.array([*SUBNORMAL, 0.0], np.float32), 6000)
    check_ranking(ranking, scores, 1500)


def test_scores_that_are_no_numbers_give_indices_of_tokens(ranking: TensorRTEngine) -> None:
    from tests.export.tensorrt.ranking import ranking_feeds

    scores = np.random.default_rng(0).standard_normal(6000, np.float32)
    for holes in (scores < 0, scores < 10):
        poisoned = np.where(holes, np.float32(np.nan), scores)
        kept = ranking.run(ranking_feeds(poisoned, 5000, 24))["kept_indices"].numpy()
        assert len(set(kept.tolist())) == 5000
        assert kept.min() >= 0 and kept.max() < 6000


@pytest.mark.parametrize("keep", [1, 1500, 3840, 3841, None])
@pytest.mark.parametrize("visual", list(GRIDS))
def test_a_compressor_of_thousands_of_tokens(
    compressor: TensorRTEngine, visual: int, keep: int | None
) -> None:
    """Its kept prompt is that of its own scores, and its scores are onnxruntime's.

    Attention of float32 is summed in another order: each score may be off by 1e-4 of itself.
    """
    from tests.export.tensorrt.ranking import kept_by_rule

    bundle, hidden = ready_bundle("nano-fp32"), compressor.inputs[0].shape[1]
    feeds = long_prompt(visual, keep or visual, int(hidden))
    found = {name: tensor.numpy() for name, tensor in compressor.run(feeds).items()}
    kept = kept_by_rule(found["scores"], keep or visual)
    assert np.array_equal(found["kept_indices"], kept)
    index = np.concatenate([feeds["text_index"], feeds["visual_index"][kept]])
    rows = np.concatenate([feeds["text_embeds"], feeds["visual_embeds"][kept]])
    order = np.argsort(index)
    assert np.array_equal(found["inputs_embeds"][0], rows[order])
    positions = feeds["position_ids"][:, index[order]]
    assert np.array_equal(found["kept_position_ids"][:, 0], positions)

    onnxruntime = pytest.importorskip("onnxruntime", reason="comparing needs onnxruntime")
    session = onnxruntime.InferenceSession(
        str(bundle.file("compressor")), providers=["CPUExecutionProvider"]
    )
    (scores,) = session.run(["scores"], feeds)
    assert np.abs(found["scores"] - scores).max() <= 1e-4 * np.abs(scores).max()
