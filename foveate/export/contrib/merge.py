"""The graph that puts text and visual tokens together without dropping any."""

import onnx_ir as ir
import torch

from foveate.modeling.graph_builder import INT64, GraphBuilder


def merge(width: int, dtype: torch.dtype) -> ir.Model:
    """Text and visual tokens to the whole prompt.

    Takes `text_embeds` [N_t, H], `visual_embeds` [N_v, H] and `order` int64 [T], which of both
    together stands where; gives `inputs_embeds` [1, T, H].

    Args:
        width: H.
        dtype: Of the embeddings.
    """
    graph = GraphBuilder(dtype)
    text = graph.input("text_embeds", graph.dtype, ["text", width])
    visual = graph.input("visual_embeds", graph.dtype, ["visual", width])
    order = graph.input("order", INT64, ["prompt"])
    tokens = graph.op("Gather", graph.op("Concat", text, visual, axis=0), order, axis=0)
    whole = graph.op("Unsqueeze", tokens, [0])
    return graph.model("merge", {"inputs_embeds": (whole, graph.dtype, [1, "prompt", width])})
