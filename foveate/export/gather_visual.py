"""The graph that sums rows of the vision graph to visual tokens: unpadding, pooling, interpolation."""

import onnx_ir as ir
import torch

from foveate.bundle.manifest import GATHER, ROWS
from foveate.modeling.graph_builder import FLOAT, INT64, GraphBuilder


def gather_visual(width: int, dtype: torch.dtype, taps: int) -> ir.Model:
    """Weighted sums of rows, of standard operators alone.

    Takes `features` [R, H], the vision graph's rows over all runs; `rows` int64 [N_v, K] and `weights`
    float32 [N_v, K], K rows of a token and what each counts. Gives `visual_embeds` [N_v, H], summed in
    float32.

    Args:
        width: H.
        dtype: Of rows and tokens.
        taps: K.
    """
    graph = GraphBuilder(dtype)
    features = graph.input("features", graph.dtype, [ROWS, width])
    rows = graph.input("rows", INT64, ["visual", taps])
    weights = graph.input("weights", FLOAT, ["visual", taps])
    total: ir.Value | None = None
    for place in range(taps):
        row = graph.op("Slice", rows, [place], [place + 1], [1])
        share = graph.op("Slice", weights, [place], [place + 1], [1])
        taken = graph.op("Gather", features, graph.op("Squeeze", row, [1]), axis=0)
        product = graph.op("Mul", graph.cast(taken, FLOAT), share)
        total = product if total is None else graph.op("Add", total, product)
    assert total is not None
    tokens = graph.cast(total, graph.dtype)
    return graph.model(GATHER, {"visual_embeds": (tokens, graph.dtype, ["visual", width])})
