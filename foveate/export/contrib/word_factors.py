"""The weights of an instruction's tokens in a graph; see `WordWeights`."""

import numpy as np
import onnx_ir as ir

from foveate.modeling.graph_builder import GraphBuilder
from foveate.modeling.word_weights import LEAST, NOTHING, SHARPNESS, SMOOTHING, WordWeights


def word_factors(
    graph: GraphBuilder, attention: ir.Value, weights: ir.Value, words: WordWeights
) -> ir.Value:
    """By what each instruction token's attention is multiplied before it is summed up, float32 [N_u].

    Args:
        graph: What to add operators to.
        attention: float32 [N_u, N_v], averaged over heads.
        weights: float32 [N_u], equal and of sum 1 but for padding, which has 0.
        words: Of another form than "mean".
    """
    op = graph.op
    visual = op("Shape", attention, start=1, end=2)
    ones = op("ConstantOfShape", visual, value=ir.tensor(np.ones(1, np.float32)))
    mass = op("Add", op("ReduceSum", attention, [1], keepdims=1), np.float32(NOTHING))
    # A shape's value is in host memory, so the count is summed up.
    shares = op("Mul", attention, op("Div", op("ReduceSum", ones, [0], keepdims=1), mass))
    usual = op("MatMul", op("Unsqueeze", weights, [0]), shares)
    smooth, usually = (op("Add", one, np.float32(SMOOTHING)) for one in (shares, usual))
    information = op("Mul", shares, op("Log", op("Div", smooth, usually)))
    far = logarithm(graph, op("ReduceMean", information, [1], keepdims=1))
    if words.form == "unusual":
        logits = op("Mul", far, np.float32(SHARPNESS))
    else:
        peak = logarithm(graph, op("ReduceMax", shares, [1], keepdims=1))
        found = op("Concat", far, logarithm(graph, mass), peak, axis=1)
        logits = graph.linear(found, "words", words.slopes[None], None)
    logits = op("Add", op("Log", op("Unsqueeze", weights, [1])), logits)
    weighed = op("Div", op("Softmax", logits, axis=0), mass)
    return op("Squeeze", weighed, [1])


def logarithm(graph: GraphBuilder, statistic: ir.Value) -> ir.Value:
    """The logarithm of a statistic, which is at least `LEAST`."""
    return graph.op("Log", graph.op("Max", statistic, np.float32(LEAST)))
