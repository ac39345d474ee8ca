"""A graph of a compressor's last part alone: scores in, the tokens that are kept and their prompt out."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from foveate.bundle.manifest import GraphSpec, TensorSpec
from foveate.export.tensorrt.profiles import Plan

INPUTS = {
    "scores": ("float32", ["visual"]),
    "keep": ("int64", [1]),
    "text_index": ("int64", ["text"]),
    "visual_index": ("int64", ["visual"]),
    "position_ids": ("int64", [3, "prompt"]),
}
OUTPUTS = {"kept_indices": ("int64", ["kept"]), "kept_places": ("int64", ["text + kept"])}
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
NORMAL = [0.0, -0.0, 1.0, -1.0, 2.0**-126, -(2.0**-126), LARGEST, -LARGEST, float("inf")]
NORMAL += [float("-inf"), 1 - 2.0**-24, 1 + 2.0**-23, -1 - 2.0**-23]
SUBNORMAL = [SMALLEST, -SMALLEST, 2.0**-127, -(2.0**-126 - 2.0**-149)]
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def ranking_spec() -> GraphSpec:
    """What the graph takes and gives, as a manifest has it."""
    inputs, outputs = (
        [
            TensorSpec(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]
            for name, (dtype, shape) in side.items()
        ]
        for side in (INPUTS, OUTPUTS)
    )
    return GraphSpec(opset=18, inputs=inputs, outputs=outputs)


def write_ranking(path: Path) -> Path:
    """Write the graph, its nodes those that a compressor ends in."""
    make = helper.make_node
    nodes = [
        make("TopK", ["scores", "keep"], ["best_scores", "best"], name="best"),
        make("TopK", ["best", "keep"], ["kept_indices", "unused"], name="kept", largest=0),
        make("Gather", ["visual_index", "kept_indices"], ["kept_visual"]),
        make("Concat", ["text_index", "kept_visual"], ["places"], axis=0),
        make("Shape", ["places"], ["sizes"], start=0),
        make("Gather", ["sizes", "zero"], ["length"]),
        make("Reshape", ["length", "one"], ["count"]),
        make("TopK", ["places", "count"], ["sorted", "order"], name="order", largest=0),
        make("Gather", ["places", "order"], ["kept_places"]),
    ]
    inputs, outputs = (
        [
            helper.make_tensor_value_info(name, TYPES[kind], shape)
            for name, (kind, shape) in side.items()
        ]
        for side in (INPUTS, OUTPUTS)
    )
    constants = [
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
    ]
    graph = helper.make_graph(nodes, "ranking", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def ranking_plan(most: int) -> Plan:
    """A profile for up to `most` visual tokens, all of which may be kept."""
    sizes = (1, 256, most)
    axes = {"visual": sizes, "text": (1, 40, 512), "prompt": (2, 300, most + 512)}
    return Plan("default", axes, {"keep": sizes})


def kept_by_rule(scores: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """The `keep` best, of equal ones the first, ascending."""
    return np.sort(np.argsort(-scores, kind="stable")[:keep])


def ranking_feeds(scores: NDArray[np.float32], keep: int, text: int) -> dict[str, NDArray[Any]]:
    """Inputs: text stands before, between and behind the visual tokens."""
    total = len(scores) + text
    texts = np.unique(np.linspace(0, total - 1, text).astype(np.int64))
    visual = np.setdiff1d(np.arange(total), texts)
    assert len(visual) == len(scores)
    positions = np.tile(np.arange(total), (3, 1))
    return {
        "scores": scores, "keep": np.array([keep]), "text_index": texts, "visual_index": visual,
        "position_ids": positions,
    }  # fmt: skip
