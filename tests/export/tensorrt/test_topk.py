"""Top-k and sorts rewritten for TensorRT keep onnxruntime's tokens, ties and all, whatever N and K."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from foveate.bundle.reader import Bundle
from foveate.errors import ExportError
from foveate.export.tensorrt.any_size import has_limits, without_limits
from foveate.export.tensorrt.builder import Job, build_engine
from foveate.export.tensorrt.library import open_library
from foveate.export.tensorrt.opset17 import to_opset17
from foveate.export.tensorrt.targets import read_targets
from tests.export.tensorrt.ranking import (
    NORMAL,
    SUBNORMAL,
    kept_by_rule,
    ranking_feeds,
    ranking_plan,
    ranking_spec,
    write_ranking,
)

IN_TENSORRT_8_6 = {
    "Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Gather", "Greater",
    "GreaterOrEqual", "Less", "MatMul", "Max", "Min", "Mul", "Or", "Range", "ReduceSum", "Reshape",
    "ScatterElements", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that TensorRT's parser has had since 8.6 without a loop, for the types that are used here."""


@pytest.fixture(scope="module")
def rankings(tmp_path_factory: pytest.TempPathFactory) -> list[onnxruntime.InferenceSession]:
    """A ranking as it is exported, rewritten, and rewritten to opset 17."""
    folder = tmp_path_factory.mktemp("ranking")
    source = write_ranking(folder / "ranking.onnx")
    graphs = [source.read_bytes(), without_limits(source, 20_000), to_opset17(source)]
    return [onnxruntime.InferenceSession(data) for data in graphs]


def check_kept(
    rankings: list[onnxruntime.InferenceSession], scores: NDArray[np.float32], keep: int, text: int
) -> None:
    feeds = ranking_feeds(scores, keep, text)
    kept, prompt = rankings[0].run(None, feeds)
    assert np.array_equal(kept, kept_by_rule(scores, keep))
    assert np.array_equal(prompt, np.sort(prompt))
    for rewritten in rankings[1:]:
        found, places = rewritten.run(None, feeds)
        assert found.dtype == places.dtype == np.int64
        assert np.array_equal(found, kept)
        assert np.array_equal(places, prompt)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_drawn_scores(rankings: list[onnxruntime.InferenceSession], data: st.DataObject) -> None:
    """Any float32 but NaN, repeated so often that most scores have equals."""
    number = st.floats(width=32, allow_nan=False) | st.sampled_from(NORMAL + SUBNORMAL)
    pool = np.array(data.draw(st.lists(number, min_size=1, max_size=40)), np.float32)
    count = data.draw(st.integers(1, 9000) | st.sampled_from([255, 256, 257, 511, 512, 8667]))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 16)))
    scores = random.choice(pool, count)
    keep = data.draw(st.integers(1, count) | st.sampled_from([1, count]))
    check_kept(rankings, scores, keep, data.draw(st.integers(1, 300)))


@pytest.mark.parametrize("count", [1, 2, 3840, 3841, 8667, 17_000])
def test_scores_that_all_differ(rankings: list[onnxruntime.InferenceSession], count: int) -> None:
    """Bits drawn at random, which are numbers of all sizes, and logits, which are close together."""
    random = np.random.default_rng(count)
    bits = random.integers(0, 1 << 32, 2 * count, np.uint32).view(np.float32)
    wide = bits[~np.isnan(bits)][:count]
    for scores in (wide, random.standard_normal(len(wide), np.float32)):
        for keep in sorted({1, min(3840, len(wide)), min(3841, len(wide)), len(wide)}):
            check_kept(rankings, scores, keep, 40)


@pytest.mark.parametrize("holes", [1, 500, 600])
def test_what_is_kept_of_nan_is_safe_to_gather(
    rankings: list[onnxruntime.InferenceSession], holes: int
) -> None:
    """Scores are checked when they are read; until then every index must be that of a token."""
    scores = np.random.default_rng(0).standard_normal(600, np.float32)
    scores[:holes] = np.nan
    for rewritten in rankings[1:]:
        kept, _ = rewritten.run(None, ranking_feeds(scores, 300, 9))
        assert len(set(kept.tolist())) == 300
        assert kept.min() >= 0 and kept.max() < 600


def test_tensorrt_for_rtx_builds_it(tmp_path: Path) -> None:
    """For a K of up to 16,384, ahead of time; no engine is run."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'foveate[rtx]'")
    target = read_targets()["rtx"]
    plan = ranking_plan(16_384)
    job = Job("rtx", target, open_library("rtx", target), "fp32", {"compressor": [plan]})
    source = write_ranking(tmp_path / "ranking.onnx")
    engine, profiles, _ = build_engine(job, "compressor", source, ranking_spec(), lambda _: None)
    assert len(memoryview(engine)) > 1000
    assert profiles["default"].values == {"keep": ([1], [256], [16_384])}


@pytest.mark.parametrize("rewrite", [without_limits, to_opset17])
def test_a_bundles_compressor_has_no_sort_left(
    half_bundle: Bundle, tmp_path: Path, rewrite: Callable[[Path], bytes]
) -> None:
    source = half_bundle.file("compressor")
    before = {node.name for node in onnx.load(source, load_external_data=False).graph.node}
    rewritten = tmp_path / "compressor.onnx"
    rewritten.write_bytes(rewrite(source))
    data = source.with_name(f"{source.name}.data")
    (tmp_path / data.name).write_bytes(data.read_bytes())
    onnx.checker.check_model(str(rewritten), full_check=True)
    assert has_limits(source) and not has_limits(rewritten)
    nodes = onnx.load(rewritten, load_external_data=False).graph.node
    added = {node.op_type for node in nodes if node.name not in before}
    allowed = IN_TENSORRT_8_6 | {"Sqrt", "Pow", "ReduceMean", "Identity"}
    assert added <= allowed


def sort_nodes(kind: str) -> list[Any]:
    """A TopK of a computed K that keeps no scores, and is no order of a prompt's places."""
    options: dict[str, Any] = {"name": "odd", "largest": int(kind != "smallest")}
    return [
        helper.make_node("Abs", ["keep"], ["count"]),
        helper.make_node("TopK", ["scores", "count"], ["values", "indices"], **options),
        helper.make_node("Neg", ["values" if kind == "values" else "indices"], ["out"]),
    ]


@pytest.mark.parametrize("kind", ["values", "indices", "smallest"])
def test_another_sort_is_refused(tmp_path: Path, kind: str) -> None:
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["visual"])
    keep = helper.make_tensor_value_info("keep", TensorProto.INT64, [1])
    graph = helper.make_graph(
        sort_nodes(kind), "graph", [scores, keep], [onnx.ValueInfoProto(name="out")]
    )
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    with pytest.raises(ExportError, match=r"sorts no more than 3840 .* node odd .* cannot be"):
        without_limits(path)
