"""Rotary positions of the language model in a graph of contrib operators."""

import numpy as np
import onnx_ir as ir

from foveate.bundle.manifest import ModelFacts
from foveate.modeling.graph_builder import FLOAT, GraphBuilder


def rotary_angles(graph: GraphBuilder, positions: ir.Value, facts: ModelFacts) -> ir.Value:
    """Angles float32 [N, head_dim / 2] of positions int64 [N, A].

    Each section of a head turns by its own axis; without sections all of it by the one there is.
    """
    sections = facts.rope.sections or (facts.head_dim // 2,)
    axes = np.repeat(np.arange(len(sections), dtype=np.int64), sections)
    powers = np.arange(0, facts.head_dim, 2, dtype=np.float32) / np.float32(facts.head_dim)
    rates = (1 / np.float32(facts.rope.theta) ** powers).astype(np.float32)
    chosen = graph.op("Gather", positions, axes, axis=1)
    return graph.op("Mul", graph.cast(chosen, FLOAT), rates)
