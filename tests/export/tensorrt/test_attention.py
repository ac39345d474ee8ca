"""Attention in blocks is rewritten to attention over all queries, and computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from foveate.bundle.reader import Bundle
from foveate.errors import ExportError
from foveate.export.tensorrt.any_size import without_limits
from foveate.export.tensorrt.attention import has_blocks


def inputs(bundle: Bundle) -> dict[str, Any]:
    """Two pictures of 1,216 patches, or 80 tiles of 169: so many are in blocks."""
    random, (pixels, *_) = np.random.default_rng(0), bundle.graph("vision").inputs
    if len(pixels.shape) == 4:
        side = pixels.shape[2]
        return {"pixel_values": random.standard_normal((80, 3, side, side), np.float32)}
    return {
        "pixel_values": random.standard_normal((2, 1216, pixels.shape[2]), np.float32),
        "position_ids": random.integers(0, 40, (2, 1216, 2)),
    }


@pytest.mark.parametrize("name", ["tiny_bundle", "llava_bundle"])
def test_the_same_without_a_loop(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    """Sums of as many may be added up in another order."""
    bundle: Bundle = request.getfixturevalue(name)
    source = bundle.file("vision")
    data = source.with_name(f"{source.name}.data")
    (tmp_path / data.name).write_bytes(data.read_bytes())
    rewritten = tmp_path / "whole.onnx"
    rewritten.write_bytes(without_limits(source))
    onnx.checker.check_model(str(rewritten), full_check=True)
    assert has_blocks(source) and not has_blocks(rewritten)
    kinds = {node.op_type for node in onnx.load(rewritten, load_external_data=False).graph.node}
    assert not kinds & {"Scan", "Pad", "Min", "Max"}
    before, after = (
        onnxruntime.InferenceSession(str(path)).run(None, inputs(bundle))[0]
        for path in (source, rewritten)
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
