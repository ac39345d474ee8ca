"""What is marked to be computed in blocks gives in Scans what it gives at once."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from foveate.errors import ExportError
from foveate.export.tensorrt.any_size import without_limits
from foveate.export.trace import GraphPlan, write_graph
from foveate.modeling import attention
from foveate.modeling.attention import AttentionBlocks, pictures_attention
from foveate.modeling.blocks import Blocks, Part

HEADS, WIDTH = 3, 4


class Parts(nn.Module):
    """Two parts in blocks of three rows at most, with attention in blocks between them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)

    def forward(self, states: Tensor, factors: Tensor) -> Tensor:
        """[N · L, C] of `states` [N, L, C] and `factors` [N, L, 1]."""
        count, length, width = states.shape
        blocks = Blocks.of("rows", (count * length, width), 0, 3)
        part = Part(blocks)
        rows, scales = part.enter(states.flatten(0, 1), factors.flatten(0, 1))
        three = (self.linear(rows) * scales).unflatten(1, (3, HEADS, -1)).unbind(1)
        query, key, value = (part.leave(one.flatten(1)) for one in three)
        within = AttentionBlocks.of(count, HEADS, length, WIDTH)
        attended = pictures_attention(query, key, value, HEADS, count, within)
        part = Part(blocks)
        rows, attended = part.enter(states.flatten(0, 1), attended)
        return part.leave(rows + attended.exp())


class Loose(nn.Module):
    """A part that does not end."""

    def forward(self, states: Tensor) -> Tensor:
        """Some rows of `states` [L, C]."""
        part = Part(Blocks.of("rows", states.shape, 0, 3))
        (rows,) = part.enter(states)
        return part.leave(rows + 1).sum() + rows.exp()


def planned(module: nn.Module, **inputs: tuple[Tensor, Any]) -> GraphPlan:
    return GraphPlan("graph", module, inputs, ("out",))


def test_blocks_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 scores: all heads at once, two of six, or rows of one; the last block is full or padded."""
    monkeypatch.setattr(attention, "VISION_SCORES", 100)
    axes, module = {0: "pictures", 1: "patches"}, Parts().eval()
    states, factors = torch.randn(3, 5, HEADS * WIDTH), torch.randn(3, 5, 1)
    write_graph(planned(module, states=(states, axes), factors=(factors, axes)), tmp_path)
    path = tmp_path / "graph.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    assert {one.domain for one in onnx.load(path).opset_import} == {""}
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(without_limits(path))
    kinds = {node.op_type for node in onnx.load(whole, load_external_data=False).graph.node}
    assert not kinds & {"Scan", "Pad", "Div", "Max"}
    sessions = [onnxruntime.InferenceSession(one) for one in (path, whole)]
    for count, length in ((1, 3), (2, 7), (1, 7), (1, 12), (3, 11), (2, 101), (1, 1)):
        states, factors = torch.randn(count, length, HEADS * WIDTH), torch.rand(count, length, 1)
        with torch.no_grad():
            expected = module(states, factors).numpy()
        for session in sessions:
            feeds = {"states": states.numpy(), "factors": factors.numpy()}
            (found,) = session.run(None, feeds)
            # Sums of as many as 101 numbers of float32, and exp of them, in another order.
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_blocks_that_are_used_one_by_one_are_refused(tmp_path: Path) -> None:
    states = torch.randn(5, 4)
    with pytest.raises(ExportError, match="blocks of rows are used otherwise than all together"):
        write_graph(planned(Loose(), states=(states, {0: "rows"})), tmp_path)
