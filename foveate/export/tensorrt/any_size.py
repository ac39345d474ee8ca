"""Rewrites what TensorRT computes slowly, or up to a size alone: attention in blocks, top-k and sorts."""

from pathlib import Path

from foveate.export.tensorrt.attention import has_blocks, inline_blocks
from foveate.export.tensorrt.rewriter import Rewriter
from foveate.export.tensorrt.topk import MOST, has_topk, replace_topk


class AnySize(Rewriter):
    """Rewrites one graph."""

    need = "building this bundle's engines needs onnx: pip install onnx"


def has_limits(graph: Path) -> bool:
    """Whether an ONNX file, its weights beside it, has something to rewrite."""
    return has_blocks(graph) or has_topk(graph)


def without_limits(graph: Path, most: int = MOST) -> bytes:
    """The bytes of an ONNX graph that computes the same; its weights stay in their file.

    Args:
        graph: The file.
        most: The most tokens of a prompt that the graph will be run with.

    Raises:
        MissingDependencyError: onnx is not installed.
        ExportError: A loop or a TopK that is not as foveate exports it.
    """
    rewriter = AnySize(graph)
    lift_limits(rewriter, most)
    return rewriter.serialized()


def lift_limits(rewriter: Rewriter, most: int = MOST) -> None:
    """Rewrite a graph in memory; see `without_limits`."""
    inline_blocks(rewriter)
    replace_topk(rewriter, most)
