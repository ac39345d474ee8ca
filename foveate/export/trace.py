"""One torch module to one ONNX file, weights beside it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from foveate.bundle.manifest import GraphSpec, TensorSpec
from foveate.errors import ExportError

OPSET = 18


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """How one module becomes a graph.

    Attributes:
        role: The graph's role in the bundle; also its file name.
        module: What is traced.
        arguments: Example inputs, every dynamic axis of a size of its own above 1.
        inputs: Input names, flat, in order.
        outputs: Output names, flat, in order.
        axes: For each argument the names of its dynamic axes, nested as the arguments are.
    """

    role: str
    module: torch.nn.Module
    arguments: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[Any, ...]


def write_graph(plan: GraphPlan, folder: Path) -> tuple[dict[str, str], GraphSpec]:
    """Trace the plan's module and write `ROLE.onnx` and `ROLE.onnx.data` into `folder`.

    Returns:
        Role to file name, and what the graph takes and gives, for the manifest.

    Raises:
        ExportError: The module cannot be traced, or the graph is not as planned.
    """
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                plan.module.eval(),
                plan.arguments,
                input_names=list(plan.inputs),
                output_names=list(plan.outputs),
                dynamic_shapes=plan.axes,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"{plan.role}: torch cannot export it: {error}") from error
    assert program is not None
    names = tuple(value.name for value in program.model.graph.inputs)
    if names != plan.inputs:
        raise ExportError(f"{plan.role}: the graph takes {names}, planned were {plan.inputs}")
    return save_graph(plan.role, program.model, folder)


def save_graph(
    role: str, model: ir.Model, folder: Path, kind: str = ""
) -> tuple[dict[str, str], GraphSpec]:
    """Write a graph as `ROLE.onnx` and `ROLE.onnx.data` into `folder`; its weights are let go.

    Args:
        role: The graph's role in the bundle.
        model: The graph.
        folder: Where to write it.
        kind: Stands before ".onnx" in the file's name, with a dot.

    Returns:
        Role to file name, and what the graph takes and gives, for the manifest.
    """
    path = folder / f"{role}{kind}.onnx"
    strip_metadata(model)
    ir.save(model, path, external_data=f"{path.name}.data")
    spec = describe(model.graph)
    for value in model.graph.initializers.values():
        # onnxscript's rewrite rules keep the last graph they saw, and with it every weight.
        value.const_value = None
    files, data = {role: path.name}, path.with_name(f"{path.name}.data")
    if data.exists() and data.stat().st_size:
        files[f"{role}.weights"] = data.name
    else:
        data.unlink(missing_ok=True)
    return files, spec


def strip_metadata(model: ir.Model) -> None:
    """Drop torch's stack traces: they hold the exporting machine's paths, and most of the file."""
    model.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def describe(graph: ir.Graph) -> GraphSpec:
    """What a graph takes and gives, in the manifest's words."""
    return GraphSpec(
        opset=graph.opset_imports[""],
        inputs=[tensor_spec(value) for value in graph.inputs],
        outputs=[tensor_spec(value) for value in graph.outputs],
    )


def tensor_spec(value: ir.Value) -> TensorSpec:
    """One input or output: a free axis by its name."""
    if value.name is None or value.dtype is None or value.shape is None:
        raise ExportError(f"the graph's {value.name or 'unnamed value'} has no type or shape")
    shape: list[int | str] = [
        axis if isinstance(axis, int) else str(axis.value or f"{value.name}_{place}")
        for place, axis in enumerate(value.shape)
    ]
    return TensorSpec(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)  # type: ignore[arg-type]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's graph dumps and warnings off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
