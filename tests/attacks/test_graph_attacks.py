"""Graphs that are not what the manifest says, or that take weights from where they may not."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx
import onnxruntime
import pytest

from foveate.bundle.manifest import TensorSpec
from foveate.bundle.manifest_json import decode
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError
from tests.attacks.harness import AGAIN, GOLDEN, drop, edit, put, refused, vouch

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


def describe(session: onnxruntime.InferenceSession) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs as onnxruntime sees them."""

    def specs(nodes: Any) -> list[TensorSpec]:
        """One side of the graph."""
        return [TensorSpec(name=n.name, dtype=TYPES[n.type], shape=n.shape) for n in nodes]  # type: ignore[arg-type]

    return specs(session.get_inputs()), specs(session.get_outputs())


def open_graph(bundle: Path) -> onnxruntime.InferenceSession:
    """The bundle's vision graph in onnxruntime, which is to say nothing on its own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    path = str(Bundle.open(bundle).file("vision"))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_the_golden_graph_is_what_its_manifest_says(bundle: Path) -> None:
    Bundle.open(bundle).check_graph("vision", *describe(open_graph(bundle)))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"shape": ["patches", 8]}, "is float32 [free, 4] in the graph and float32 [free, 8]"),
        ({"shape": [1, 4]}, "is float32 [free, 4] in the graph and float32 [1, 4]"),
        ({"shape": ["patches", 4, 1]}, "in the graph and float32 [free, 4, 1]"),
        ({"dtype": "float16"}, "is float32 [free, 4] in the graph and float16 [free, 4]"),
        ({"name": "image"}, "the input 'image' is absent in the graph"),
    ],
)
def test_promises_that_the_graph_does_not_keep(
    bundle: Path, change: dict[str, object], difference: str
) -> None:
    opened, loaded = Bundle.open(bundle), describe(open_graph(bundle))
    edit(lambda document: document["graphs"]["vision"]["inputs"][0].update(change))(bundle)
    manifest = decode((bundle / "manifest.json").read_bytes(), bundle)
    promising = replace(opened, manifest=manifest)
    for part in (f"{bundle / 'vision.onnx'}: the input", difference):
        refused(lambda: Bundle.open(bundle), BundleError, part, "Export the")
        refused(lambda: promising.check_graph("vision", *loaded), BundleError, part, "Export the")


def external(location: str) -> onnx.TensorProto:
    """A tensor that lies elsewhere."""
    tensor = onnx.TensorProto(name="t", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def initializer(model: onnx.ModelProto, location: str) -> None:
    """The place where exporters put weights."""
    model.graph.initializer.append(external(location))


def sparse(model: onnx.ModelProto, location: str) -> None:
    """A sparse weight's values."""
    model.graph.sparse_initializer.add().values.CopyFrom(external(location))


def constant(model: onnx.ModelProto, location: str) -> None:
    """A Constant node's value."""
    node = onnx.helper.make_node("Constant", [], ["c"], value=external(location))
    model.graph.node.append(node)


def branch(model: onnx.ModelProto, location: str) -> None:
    """A weight of a graph within a graph within the graph."""
    inner = onnx.helper.make_graph([], "inner", [], [], [external(location)])
    middle = onnx.helper.make_node("If", ["c"], ["d"], then_branch=inner)
    outer = onnx.helper.make_graph([middle], "outer", [], [])
    model.graph.node.append(onnx.helper.make_node("Many", [], ["e"], graphs=[outer]))


def listed(model: onnx.ModelProto, location: str) -> None:
    """An attribute with several tensors."""
    node = onnx.helper.make_node("Many", [], ["c"], tensors=[external(location)])
    model.graph.node.append(node)


def sparse_constant(model: onnx.ModelProto, location: str) -> None:
    """The indices of a Constant node's sparse value."""
    attribute = model.graph.node.add(op_type="Constant", output=["c"]).attribute.add()
    attribute.sparse_tensor.indices.CopyFrom(external(location))


def sparse_listed(model: onnx.ModelProto, location: str) -> None:
    """An attribute with several sparse tensors."""
    attribute = model.graph.node.add(op_type="Many", output=["c"]).attribute.add()
    attribute.sparse_tensors.add().values.CopyFrom(external(location))


def training(model: onnx.ModelProto, location: str) -> None:
    """A weight of a graph that is for training."""
    model.training_info.add().algorithm.initializer.append(external(location))


def default(model: onnx.ModelProto, location: str) -> None:
    """What a function's attribute is when it is not given."""
    model.functions.add(name="f", domain="d").attribute_proto.add().t.CopyFrom(external(location))


def function(model: onnx.ModelProto, location: str) -> None:
    """A Constant of a function that the model brings."""
    node = onnx.helper.make_node("Constant", [], ["c"], value=external(location))
    model.functions.add(name="f", domain="d").node.append(node)


PLACES = [
    initializer, sparse, constant, listed, sparse_constant, sparse_listed, branch, training,
    default, function,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_weights_that_the_manifest_does_not_list(
    bundle: Path, place: Callable[[onnx.ModelProto, str], None]
) -> None:
    """onnxruntime 1.23 follows such a path wherever it leads, so the reader must not let it."""
    for location in (
        "../outside/vision.onnx.data",
        "../../../../../etc/passwd",
        "/etc/passwd",
        "text/../vision.onnx.data",
        "unlisted",
        "link",
        "folder/vision.onnx.data",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "\x1b[2J" * 99,
    ):
        model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
        place(model, location)
        vouch(bundle, model.SerializeToString())
        (bundle / "unlisted").write_bytes(bytes(16))
        if not (bundle / "link").is_symlink():
            (bundle / "link").symlink_to("../outside/vision.onnx.data")
            (bundle / "folder").symlink_to("../outside")
        named = "vision.onnx takes weights from '"
        refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)
        refused(lambda: Bundle.open(bundle, checksums=False), BundleError, named, AGAIN)

    model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
    place(model, "vision.onnx.data")
    vouch(bundle, model.SerializeToString())
    Bundle.open(bundle)


def test_a_graph_that_the_manifest_does_not_describe_is_checked_too(bundle: Path) -> None:
    model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
    initializer(model, "/etc/passwd")
    vouch(bundle, model.SerializeToString())
    drop("graphs/vision")(bundle)
    drop("engines")(bundle)
    named = "vision.onnx takes weights from '/etc/passwd'"
    refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)


def test_weights_are_sought_beside_their_graph(bundle: Path) -> None:
    (bundle / "vision.onnx").rename(bundle / "text" / "vision.onnx")
    put("files/vision/path", "text/vision.onnx")(bundle)
    named = "text/vision.onnx takes weights from 'vision.onnx.data'"
    refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)
    (bundle / "vision.onnx.data").rename(bundle / "text" / "vision.onnx.data")
    put("files/vision.weights/path", "text/vision.onnx.data")(bundle)
    open_graph(bundle)


def test_fields_that_nobody_knows_do_no_harm(bundle: Path) -> None:
    """Fields of each kind: an integer, a text, 64 bits, 32 bits."""
    unknown = b"\xf8\x3e\x80\x01\xfa\x3e\x01x\xf9\x3e" + b"\xff" * 8 + b"\xfd\x3e" + b"\xff" * 4
    vouch(bundle, (GOLDEN / "vision.onnx").read_bytes() + unknown)
    open_graph(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a",
        b"\x3a\x05\x00",
        b"\x3a\x03\x2a\x7f\x00",
        b"\x09\x00",
        b"\x0d\x00",
        b"\x08" + b"\xff" * 11,
        b"\x08\xff",
        b"\x3b\x3c",
        b"\x04",
        b"\xba\x80\x80\x80\x10\x00",
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_what_is_no_graph(bundle: Path, content: bytes) -> None:
    vouch(bundle, content)
    named = "vision.onnx does not hold a readable ONNX graph"
    refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)


def test_a_tag_too_wide_hides_nothing(bundle: Path) -> None:
    """A parser that keeps 32 bits of a tag sees the graph field where one of 64 bits would not."""
    model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
    initializer(model, "/etc/passwd")
    body = model.graph.SerializeToString()
    size = bytes([len(body) & 127 | 128, len(body) >> 7])
    vouch(bundle, b"\xba\x80\x80\x80\x10" + size + body)
    refused(lambda: Bundle.open(bundle), BundleError, "vision.onnx does not hold a readable", AGAIN)
