"""Rotary positions of the language model in a graph of contrib operators."""

import numpy as np
import onnx_ir as ir
from torch import nn

from foveate.bundle.manifest import ModelFacts
from foveate.modeling.graph_builder import FLOAT, GraphBuilder
from foveate.modeling.rope import rates


def rotary_tables(
    graph: GraphBuilder, positions: ir.Value, facts: ModelFacts, rotary: nn.Module
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines float32 [N, head_dim / 2] of positions int64 [N, A].

    Each section of a head turns by its own axis; without sections all of it by the one there is.

    Args:
        graph: The graph.
        positions: Of its tokens.
        facts: The model's sizes.
        rotary: The model's own rotary embedding, of whatever kind: its rates are taken over.
    """
    sections = facts.rope.sections or (facts.head_dim // 2,)
    axes = np.repeat(np.arange(len(sections), dtype=np.int64), sections)
    turning, scaling = rates(rotary)
    chosen = graph.op("Gather", positions, axes, axis=1)
    angles = graph.op("Mul", graph.cast(chosen, FLOAT), turning.numpy())
    tables = graph.op("Cos", angles), graph.op("Sin", angles)
    if scaling == 1:
        return tables
    cos, sin = (graph.op("Mul", table, np.float32(scaling)) for table in tables)
    return cos, sin
