"""The weights of an instruction's tokens in a graph; see `WordWeights`."""

import numpy as np
import onnx_ir as ir

from foveate.modeling.graph_builder import GraphBuilder
from foveate.modeling.word_weights import LEAST, NOISE, NOTHING, SHARPNESS, SMOOTHING, WordWeights


def word_factors(
    graph: GraphBuilder,
    attention: ir.Value,
    weights: ir.Value,
    count: ir.Value,
    words: WordWeights,
) -> ir.Value:
    """By what each instruction token's attention is multiplied before it is summed up, float32 [N_u].

    Args:
        graph: What to add operators to.
        attention: float32 [N_u, N_v], averaged over heads.
        weights: float32 [N_u], equal and of sum 1 but for padding, which has 0.
        count: N_v, float32 [1].
        words: Of another form than "mean".
    """
    op = graph.op
    mass = op("Add", op("ReduceSum", attention, [1], keepdims=1), np.float32(NOTHING))
    shares = op("Mul", attention, op("Div", count, mass))
    usual = op("MatMul", op("Unsqueeze", weights, [0]), shares)
    smooth, usually = (op("Add", one, np.float32(SMOOTHING)) for one in (shares, usual))
    information = op("Mul", shares, op("Log", op("Div", smooth, usually)))
    far = op("ReduceMean", information, [1], keepdims=1)
    mean = op("MatMul", op("Unsqueeze", weights, [0]), far)
    found = op("Max", far, op("Mul", mean, np.float32(NOISE)))
    if words.form == "learned":
        found = op("Concat", found, mass, op("ReduceMax", shares, [1], keepdims=1), axis=1)
    found = op("Log", op("Add", found, np.float32(LEAST)))
    if words.form == "unusual":
        logits = op("Mul", found, np.float32(SHARPNESS))
    else:
        logits = graph.linear(found, "words", words.slopes[None], None)
    logits = op("Add", op("Log", op("Unsqueeze", weights, [1])), logits)
    weighed = op("Div", op("Softmax", logits, axis=0), mass)
    return op("Squeeze", weighed, [1])
