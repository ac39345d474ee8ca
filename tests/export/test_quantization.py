"""Quantization: what is in the graphs, what they still answer, what it costs, and what is refused."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from foveate import Pipeline
from foveate.bundle.quantization_report import cost_facts, describe_cost
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, DataError, ExportError
from foveate.export.exporter import ExportOptions, export
from foveate.export.quantization.linears import HEAD, find_linears
from foveate.export.quantization.numbers import quantize_weight
from foveate.export.quantization.options import QuantizationOptions
from foveate.export.quantization.quantize import _write
from foveate.export.quantization.ranges import best_range
from foveate.export.verify import verify
from foveate.runtime.backends.ort.precision import check_precision
from tests.command import invoke, refused
from tests.conftest import NANO, Sample, VerbExport
from tests.quantized import quantize_bundle, write_records

TYPES = {
    "int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4
}  # fmt: skip
PRECISIONS = ("int8", "fp8", "int4")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nano_still_answers(
    quantized_bundles: dict[str, Bundle], samples: list[Sample], precision: str
) -> None:
    with Pipeline.load(quantized_bundles[precision].root, device="cpu") as pipe:
        for sample in samples[1::34]:
            for keep in (1.0, 0.25):
                answer = pipe.generate(sample.question, images=[sample.image], keep=keep)
                assert answer.text == sample.answer, (sample.id, keep)


def _all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_of_the_type_asked_for(
    quantized_bundles: dict[str, Bundle], nano_bundle: Bundle, precision: str
) -> None:
    bundle = quantized_bundles[precision]
    assert bundle.manifest.precision == precision
    for role, products in (("vision", 18), ("decoder", 43)):
        graph = onnx.load(bundle.file(role), load_external_data=False).graph
        types = {weight.name: weight.data_type for weight in graph.initializer}
        codes = [one.name for one in graph.initializer if one.data_type == TYPES[precision]]
        matrices = [one for one in graph.initializer if len(one.dims) == 2 and one.name in codes]
        assert len(matrices) == products
        nodes = [*_all_nodes(graph)]
        products_of = [node for node in nodes if node.op_type == "MatMul"]
        dequantized = {node.output[0]: node for node in nodes if node.op_type == "DequantizeLinear"}
        weighted = [node for node in products_of if node.input[1] in dequantized]
        assert len(weighted) == products
        for node in weighted:
            assert types[dequantized[node.input[1]].input[0]] == TYPES[precision]
            assert (node.input[0] in dequantized) == (precision != "int4")
        weights = f"{role}.weights"
        files, floats = bundle.manifest.files, nano_bundle.manifest.files
        assert files[weights].bytes < floats[weights].bytes * (
            0.23 if precision == "int4" else 0.35
        )
        assert files[role].path != weights
        assert bundle.manifest.graphs[role].opset == (21 if precision == "int4" else 19)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_chooses_tokens_is_untouched(
    quantized_bundles: dict[str, Bundle], nano_bundle: Bundle, precision: str
) -> None:
    files, floats = quantized_bundles[precision].manifest.files, nano_bundle.manifest.files
    for role in ("compressor", "compressor.weights", "embeddings"):
        assert files[role].sha256 == floats[role].sha256


def test_what_it_costs_is_told(quantized_bundles: dict[str, Bundle]) -> None:
    for precision, bundle in quantized_bundles.items():
        facts = cost_facts(bundle)
        assert facts is not None
        for role, one in facts["graphs"].items():
            assert one["left"] == {}
            assert one["bytes"]["after"] < one["bytes"]["before"] / 2
            assert one["parity"]["after"] == bundle.manifest.parity[role]
            assert 1e-3 < one["parity"]["after"] < 1
            assert one["parity"]["before"] < 1e-5
        text = describe_cost(facts)
        if precision == "int4":
            assert facts["calibration"] is None
            assert "give --evaluate" in text
            continue
        assert facts["calibration"]["used"] + facts["evaluation"]["used"] == 8
        assert [row["keep"] for row in facts["answers"]] == [1.0, 0.25]
        for row in facts["answers"]:
            assert row["before"]["n"] == row["after"]["n"] == facts["evaluation"]["used"]
            low, high = row["after"]["interval"]
            assert low < 100 * row["after"]["right"] / row["after"]["n"] <= high
        assert "right answers before and after, with 95 % intervals" in text


def test_pictures_that_cannot_be_read_are_counted(nano_bundle: Bundle, tmp_path: Path) -> None:
    lines = (NANO / "samples" / "data.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines[:12:4]]
    for record in records:
        shutil.copy(NANO / "samples" / record["image"], tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    missing = [
        {"id": name, "image": name, "question": "What is it?", "answer": "x"}
        for name in ("broken.png", "gone.png")
    ]
    data = write_records(tmp_path, [records[0], *missing, *records[1:]])
    options = QuantizationOptions(data)
    bundle = quantize_bundle(nano_bundle, NANO, tmp_path / "bundle", "int8", options)
    facts = cost_facts(bundle)
    assert facts is not None
    assert facts["calibration"]["unreadable"] == ["gone.png"]
    assert facts["evaluation"]["unreadable"] == ["broken.png"]
    assert (facts["calibration"]["used"], facts["evaluation"]["used"]) == (2, 1)
    assert "1 unreadable (gone.png)" in describe_cost(facts)
    data = write_records(tmp_path, missing)
    with pytest.raises(
        DataError, match=r"none of 1 record could be asked; the first is broken\.png"
    ):
        quantize_bundle(nano_bundle, NANO, tmp_path / "other", "int8", QuantizationOptions(data))


def test_the_verb_verify_and_a_half_base(verb_export: VerbExport, tiny_checkpoint: Path) -> None:
    facts = verb_export.facts
    assert re.search(r"\[8/\d+\] calibrate", verb_export.stderr)
    assert (facts["precision"], facts["quantization"]["base"]) == ("int8", "fp16")
    assert facts["quantization"]["evaluation"] is None
    bundle = Bundle.open(verb_export.root)
    assert bundle.graph("decoder").inputs[0].dtype == "float16"
    assert set(verify(bundle, tiny_checkpoint)) == {*bundle.manifest.graphs, "embeddings"}
    picture = NANO / "samples" / "scene-77-00000.png"
    with Pipeline.load(bundle.root, device="cpu") as pipe:
        assert pipe.generate("What is it?", images=[picture], max_new_tokens=2).token_ids


@pytest.mark.parametrize(
    ("precision", "options", "words"),
    [
        ("int8", {}, "give --calibration"),
        ("fp8", {"evaluate": Path("x")}, "or choose --precision int4"),
        ("int4", {"calibration": Path("x")}, "takes no calibration data"),
        ("fp16", {"base": "fp16"}, "are for --precision int8, fp8 or int4"),
        ("int4", {"limit": 1}, "give at least 2"),
        ("int8", {"calibration": Path("missing.jsonl")}, "there is no such file"),
    ],
)
def test_what_does_not_go_together_is_refused_first(
    tmp_path: Path, precision: str, options: dict[str, object], words: str
) -> None:
    chosen = ExportOptions(precision=precision, quantization=QuantizationOptions(**options))  # type: ignore[arg-type]
    with pytest.raises((DataError, ExportError), match=words):
        export(tmp_path / "never read", tmp_path / "b", chosen)


def test_missing_calibration_is_one_line(tmp_path: Path) -> None:
    done = invoke("export", tmp_path, tmp_path / "b", "--precision", "int8")
    refused(done, "give --calibration DATA.jsonl", "--precision int4, which needs none")


def test_cuda_is_refused_for_quantized_graphs() -> None:
    for precision in PRECISIONS:
        with pytest.raises(BackendError, match="foveate build bundle --target NAME"):
            check_precision(Path("bundle"), precision, "cuda")  # type: ignore[arg-type]
        check_precision(Path("bundle"), precision, "cpu")  # type: ignore[arg-type]


# Numbers


def test_weights_round_to_the_nearest_code() -> None:
    weight = np.random.default_rng(0).standard_normal((192, 5)).astype(np.float32)
    weight[:, 4] = 0
    for precision, most in (("int8", 0.5 / 127), ("fp8", 2**-4), ("int4", 0.2)):
        made = quantize_weight(weight, precision)  # type: ignore[arg-type]
        assert made.block == (64 if precision == "int4" else 0)
        scales = np.repeat(made.scales, made.block, axis=0) if made.block else made.scales
        error = np.abs(made.codes.astype(np.float32) * scales - weight).max(axis=0)
        assert (error <= 1.01 * most * np.abs(weight).max(axis=0)).all()
        assert np.all(made.scales > 0)
    with pytest.raises(ValueError, match="no multiple of 32"):
        quantize_weight(weight[:33], "int4")


def test_one_loud_row_does_not_take_the_codes_of_the_others() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    quiet = best_range(rows, float(np.abs(rows).max()), "int8")
    rows[7, 3] = 1000.0
    loud = best_range(rows, 1000.0, "int8")
    assert quiet <= loud < 60
    assert best_range(np.zeros((4, 4), np.float32), 0.0, "int8") == 0.0


def test_a_graph_of_which_nothing_can_be_quantized(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 33]) for n in ("x", "logits"))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [33, 33], np.ones(33 * 33, np.float32))
    node = helper.make_node("MatMul", ["x", "w"], ["logits"], name="m")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]))
    onnx.save(model, tmp_path / "g.onnx")
    (linear,) = find_linears(ir.load(tmp_path / "g.onnx").graph)
    assert linear.name == HEAD
    with pytest.raises(ExportError, match="no matrix product of it can be quantized to int4"):
        _write(tmp_path / "g.onnx", tmp_path / "h.onnx", "decoder", "int4", {})
    assert _write(tmp_path / "g.onnx", tmp_path / "h.onnx", "decoder", "int8", {"x": 1.0}) == {
        "products": 1,
        "left": {},
    }
