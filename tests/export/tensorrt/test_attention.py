"""Attention in blocks is rewritten to attention over all queries, and computes the same."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from foveate.bundle.reader import Bundle
from foveate.errors import ExportError
from foveate.export.tensorrt.any_size import without_limits
from foveate.export.tensorrt.attention import has_blocks


def test_the_same_without_a_loop(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Two pictures of 1,216 patches are in blocks; sums of as many may be added up in another order."""
    source = tiny_bundle.file("vision")
    data = source.with_name(f"{source.name}.data")
    (tmp_path / data.name).write_bytes(data.read_bytes())
    rewritten = tmp_path / "whole.onnx"
    rewritten.write_bytes(without_limits(source))
    onnx.checker.check_model(str(rewritten), full_check=True)
    assert has_blocks(source) and not has_blocks(rewritten)
    kinds = {node.op_type for node in onnx.load(rewritten, load_external_data=False).graph.node}
    assert not kinds & {"Scan", "Pad", "Min", "Max"}
    random, (pixels, _) = np.random.default_rng(0), tiny_bundle.graph("vision").inputs
    feeds = {
        "pixel_values": random.standard_normal((2, 1216, pixels.shape[2]), np.float32),
        "position_ids": random.integers(0, 40, (2, 1216, 2)),
    }
    before, after = (
        onnxruntime.InferenceSession(str(path)).run(None, feeds)[0] for path in (source, rewritten)
    )
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_another_loop_is_refused(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    row, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "ab")
    body = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "body", [row], [out])
    node = helper.make_node("Scan", ["x"], ["y"], name="loop", body=body, num_scan_inputs=1)
    model = helper.make_model(helper.make_graph([node], "graph", [x], [y]))
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(ExportError, match=r"the loop loop slowly.*nothing is where a Reshape"):
        without_limits(tmp_path / "graph.onnx")
