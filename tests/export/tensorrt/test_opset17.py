"""Graphs rewritten to opset 17 compute the same, without what TensorRT before version 10 misreads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from foveate.bundle.reader import Bundle
from foveate.commands.stage_parity import small_request
from foveate.errors import ExportError
from foveate.export.tensorrt.library import Builder, engine_precision
from foveate.export.tensorrt.opset17 import to_opset17
from foveate.export.tensorrt.targets import read_targets


def feeds_of(bundle: Bundle, role: str) -> dict[str, Any]:
    """Inputs of a graph."""
    generator = np.random.default_rng(0)
    vision, prompt = small_request(bundle)
    total, text = len(prompt.token_ids), len(prompt.token_ids) - vision.tokens

    def values(*shape: int) -> Any:
        return generator.standard_normal(shape).astype(np.float32)

    if role == "vision":
        return dict(vision.calls[0].inputs)
    if role == "compressor":
        index = np.setdiff1d(np.arange(total), prompt.visual_index)
        return {
            "text_embeds": values(text, 64), "visual_embeds": values(vision.tokens, 64),
            "text_index": index, "visual_index": prompt.visual_index,
            "instruction_rows": np.arange(text - 6, text - 2), "position_ids": prompt.position_ids,
            "keep": np.array([5]),
        }  # fmt: skip
    past = 6 if role == "decoder step" else 0
    pasts = {
        one.name: values(1, 2, past, 16)
        for one in bundle.graph("decoder").inputs
        if one.name.startswith("past")
    }
    return {
        "inputs_embeds": values(1, 9, 64), "position_ids": np.tile(np.arange(9), (3, 1, 1)),
        "attention_mask": np.ones((1, past + 9), np.int64), **pasts,
    }  # fmt: skip


def test_rows_are_summed_to_the_same_tokens(llava_bundle: Bundle, tmp_path: Path) -> None:
    rewritten = tmp_path / "old.onnx"
    rewritten.write_bytes(to_opset17(llava_bundle.file("gather_visual")))
    onnx.checker.check_model(str(rewritten), full_check=True)
    random = np.random.default_rng(0)
    feeds = {
        "features": random.standard_normal((30, 64), np.float32),
        "rows": random.integers(0, 30, (9, 4)),
        "weights": random.random((9, 4), np.float32),
    }
    (found,) = onnxruntime.InferenceSession(rewritten).run(None, feeds)
    wanted = np.einsum("nk,nkh->nh", feeds["weights"], feeds["features"][feeds["rows"]])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", ["vision", "compressor", "decoder", "decoder step"])
def test_the_same_is_computed(tiny_bundle: Bundle, tmp_path: Path, stage: str) -> None:
    role = stage.split()[0]
    for name in (f"{role}.onnx", f"{role}.onnx.data"):
        (tmp_path / name).write_bytes((tiny_bundle.root / name).read_bytes())
    data = to_opset17(tmp_path / f"{role}.onnx")
    rewritten = tmp_path / f"{role}.old.onnx"
    rewritten.write_bytes(data)
    onnx.checker.check_model(str(rewritten), full_check=True)
    model = onnx.load_from_string(data)
    assert model.opset_import[0].version == 17
    kinds = {node.op_type for node in model.graph.node}
    assert "LayerNormalization" not in kinds
    for node in model.graph.node:
        if node.op_type == "Shape":
            assert not node.attribute
        if node.op_type == "ReduceMean":
            assert len(node.input) == 1
    feeds = feeds_of(tiny_bundle, stage)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    before, after = (
        onnxruntime.InferenceSession(str(path), options).run(None, feeds)
        for path in (tiny_bundle.file(role), rewritten)
    )
    for wanted, found in zip(before, after, strict=True):
        assert np.abs(found - wanted).max(initial=0) <= 1e-5 * np.abs(wanted).max(initial=1)


def write_graph(path: Path, node: Any, *more: Any) -> Path:
    """A graph of one node from x [n, 4] to y, of opset 18."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = onnx.ValueInfoProto(name="y")
    constants = [one for one in more if isinstance(one, TensorProto)]
    inputs = [one for one in more if not isinstance(one, TensorProto)]
    graph = helper.make_graph([node], "graph", [x, *inputs], [y], constants)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


AXES = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
SCALE = helper.make_tensor("scale", TensorProto.FLOAT, [4], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("operator", "constant", "options"),
    [
        ("Shape", None, {"start": 1}),
        ("Shape", None, {"start": -2, "end": -1}),
        ("ReduceMax", AXES, {"keepdims": 0}),
        ("ReduceMin", None, {}),
        ("ReduceMean", None, {"noop_with_empty_axes": 1}),
        ("ReduceSum", AXES, {}),
        ("LayerNormalization", SCALE, {"axis": -1}),
    ],
)
def test_one_operator_computes_the_same(
    tmp_path: Path, operator: str, constant: Any, options: dict[str, Any]
) -> None:
    names = ["x"] if constant is None else ["x", constant.name]
    node = helper.make_node(operator, names, ["y"], **options)
    graph = write_graph(tmp_path / "graph.onnx", node, *([] if constant is None else [constant]))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    (before,), (after,) = (
        onnxruntime.InferenceSession(data).run(None, {"x": x})
        for data in (graph.read_bytes(), to_opset17(graph))
    )
    assert before.shape == after.shape
    assert np.abs(after - before).max() <= 1e-6


def test_what_cannot_be_rewritten_is_refused(tmp_path: Path) -> None:
    axes = helper.make_tensor_value_info("axes", TensorProto.INT64, [1])
    path = tmp_path / "graph.onnx"
    for node, more, words in (
        (helper.make_node("ReduceMean", ["x", "axes"], ["y"]), axes, "input axes is computed"),
        (
            helper.make_node("LayerNormalization", ["x", "scale"], ["y"], axis=0), SCALE,
            "more than the last axis",
        ),
        (helper.make_node("Split", ["x"], ["y"], num_outputs=1), None, "sizes of its parts"),
    ):  # fmt: skip
        node.name = "odd"
        write_graph(path, node, *([] if more is None else [more]))
        with pytest.raises(ExportError, match=rf"misread the node odd .*{words}"):
            to_opset17(path)


def builder(library: Any, version: str, *flags: str) -> Builder:
    members = SimpleNamespace(__members__=dict.fromkeys(flags, 0))
    return Builder(SimpleNamespace(NetworkDefinitionCreationFlag=members), library, version)


def test_which_libraries_are_old_and_which_choose_types() -> None:
    old, new = builder("tensorrt", "8.6.0"), builder("tensorrt", "10.3.0", "STRONGLY_TYPED")
    rtx = builder("tensorrt_rtx", "1.7.1", "STRONGLY_TYPED")
    assert [one.is_old for one in (old, new, rtx)] == [True, False, False]
    h100 = read_targets()["h100"]
    assert engine_precision("h100", h100, old, "fp32", "fp16") == "fp16"
    assert engine_precision("h100", h100, old, "fp32", None) == "fp32"
    assert engine_precision("h100", h100, new, "fp16", "fp16") == "fp16"
    with pytest.raises(
        ExportError, match=r"types of the graphs, which are fp32.* --precision fp16"
    ):
        engine_precision("h100", h100, new, "fp32", "fp16")
    with pytest.raises(ExportError, match="it takes fp32 alone"):
        engine_precision("h100", h100, old, "fp16", None)
