"""Networks that would not compute what their graphs do are refused; TensorRT for RTX parses them."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from foveate.bundle.manifest import GraphSpec, TensorSpec
from foveate.errors import ExportError
from foveate.export.tensorrt import builder, checks
from foveate.export.tensorrt.builder import Job, build_engine
from foveate.export.tensorrt.library import open_library
from foveate.export.tensorrt.profiles import Plan
from foveate.export.tensorrt.targets import read_targets

pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'foveate[rtx]'"
)


def tensors(*several: tuple[str, str, list[int | str]]) -> list[TensorSpec]:
    return [
        TensorSpec(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]
        for name, dtype, shape in several
    ]


def try_to_build(
    folder: Path, nodes: list[Any], spec: GraphSpec, axes: dict[str, tuple[int, int, int]]
) -> None:
    """Build a small graph with one profile."""
    kinds = {
        "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64
    }  # fmt: skip
    inputs, outputs = (
        [helper.make_tensor_value_info(one.name, kinds[one.dtype], one.shape) for one in side]
        for side in (spec.inputs, spec.outputs)
    )
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", spec.opset)],
    )
    onnx.save(model, folder / "graph.onnx")
    target = read_targets()["rtx"]
    values = {"k": axes["kept"]} if "kept" in axes else {}
    plans = {"decoder": [Plan("default", axes, values)]}
    job = Job("rtx", target, open_library("rtx", target), "fp32", plans)
    build_engine(job, "decoder", folder / "graph.onnx", spec, lambda detail: None)


ADD = helper.make_node("Add", ["x", "x"], ["y"], name="add")
X, Y = ("x", "float32", ["b", 4]), ("y", "float32", ["b", 4])
SIZES = {"b": (1, 2, 4)}


def test_a_graph_as_promised(tmp_path: Path) -> None:
    spec = GraphSpec(opset=18, inputs=tensors(X), outputs=tensors(Y))
    try_to_build(tmp_path, [ADD], spec, SIZES)


@pytest.mark.parametrize(
    ("nodes", "spec", "axes", "words"),
    [
        pytest.param(
            [ADD],
            GraphSpec(opset=18, inputs=tensors(X, ("z", "float32", ["b", 4])), outputs=tensors(Y)),
            SIZES,
            "TensorRT ignores the input 'z'",
            id="an input that nothing reads",
        ),
        pytest.param(
            [
                helper.make_node(
                    "Attention", ["q", "k", "v", "", "", "", "seen"], ["y"], name="attention"
                )
            ],
            GraphSpec(
                opset=24,
                inputs=tensors(
                    *((name, "float16", ["b", 2, "t", 64]) for name in "qkv"),
                    ("seen", "int64", ["b"]),
                ),
                outputs=tensors(("y", "float16", ["b", 2, "t", 64])),
            ),
            {"b": (1, 1, 1), "t": (1, 4, 8)},
            "'seen'",
            id="an input that the parser drops",
        ),
        pytest.param(
            [helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention", is_causal=1)],
            GraphSpec(
                opset=23,
                inputs=tensors(*((name, "float16", ["b", 2, "t", 64]) for name in "qkv")),
                outputs=tensors(("y", "float16", ["b", 2, "t", 64])),
            ),
            {"b": (1, 1, 1), "t": (1, 4, 8)},
            "is causal attention",
            id="attention that guesses its mask",
        ),
        pytest.param(
            [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="best")],
            GraphSpec(
                opset=18,
                inputs=tensors(("x", "float32", ["all"]), ("k", "int64", [1])),
                outputs=tensors(("y", "float32", ["kept"]), ("i", "int64", ["kept"])),
            ),
            {"all": (1, 64, 8000), "kept": (1, 8, 3841)},
            "sorts no more than 3840 elements, and the node best",
            id="a sort that may be too large",
        ),
        pytest.param(
            [helper.make_node("Add", ["x", "z"], ["y"], name="add")],
            GraphSpec(opset=18, inputs=tensors(X, ("z", "float32", ["c", 4])), outputs=tensors(Y)),
            {"b": (1, 2, 4), "c": (1, 2, 5)},
            "finds the profiles impossible",
            id="shapes that do not go together",
        ),
        pytest.param(
            [helper.make_node("Nonsense", ["x"], ["y"])],
            GraphSpec(opset=18, inputs=tensors(X), outputs=tensors(Y)),
            SIZES,
            "cannot take the graph",
            id="an operator that there is not",
        ),
    ],
)
def test_networks_that_are_refused(
    tmp_path: Path,
    nodes: list[Any],
    spec: GraphSpec,
    axes: dict[str, tuple[int, int, int]],
    words: str,
) -> None:
    with pytest.raises(ExportError) as caught:
        try_to_build(tmp_path, nodes, spec, axes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("decoder: ")


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([("w", "float32", ["b", 4])], [Y], "lost the input 'w'"),
        ([X], [("w", "float32", ["b", 4])], "'w'"),
        ([("x", "float16", ["b", 4])], [Y], "'x' is float16 ['b', 4] in the manifest and float32"),
        ([("x", "float32", ["b", 5])], [Y], "'x' is float32 ['b', 5]"),
        ([("x", "float32", [2, 4])], [("y", "float32", ["b"])], "'y' is float32 ['b']"),
    ],
)
def test_promises_that_the_network_does_not_keep(
    tmp_path: Path, inputs: list[Any], outputs: list[Any], words: str
) -> None:
    promised = GraphSpec(opset=18, inputs=tensors(*inputs), outputs=tensors(*outputs))
    original = checks.check_network
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ExportError) as caught:
        patch.setattr(
            builder, "check_network",
            lambda trt, network, role, spec, *rest: original(trt, network, role, promised, *rest),
        )  # fmt: skip
        true = GraphSpec(opset=18, inputs=tensors(X), outputs=tensors(Y))
        try_to_build(tmp_path, [ADD], true, SIZES)
    assert words in str(caught.value)
