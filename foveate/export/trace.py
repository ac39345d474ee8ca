"""One torch module to one ONNX file, weights beside it."""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from foveate.bundle.manifest import GraphSpec, TensorSpec
from foveate.errors import ExportError
from foveate.export.scans import make_scans

OPSET = 18

Written = tuple[dict[str, str], dict[str, GraphSpec]]
"""What was written, for the manifest: file names by role, and what a graph takes and gives by its role."""


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """How one module becomes a graph.

    Attributes:
        role: The graph's role in the bundle; also its file name.
        module: What is traced.
        inputs: For each argument, in order, an example whose dynamic axes all have a size of their own
            above 1, and their names. An argument may be several tensors by name: of "past" and "0.key"
            the graph's input is "past.0.key".
        outputs: Output names, flat, in order.
    """

    role: str
    module: torch.nn.Module
    inputs: Mapping[str, tuple[Any, Any]]
    outputs: tuple[str, ...]


def write_graph(plan: GraphPlan, folder: Path) -> Written:
    """Trace the plan's module and write `ROLE.onnx` and `ROLE.onnx.data` into `folder`.

    Raises:
        ExportError: The module cannot be traced, or the graph is not as planned.
    """
    planned: list[str] = []
    for name, (example, _) in plan.inputs.items():
        several = isinstance(example, dict)
        planned += [f"{name}.{part}" for part in example] if several else [name]
    try:
        with quiet(), uncollected(), torch.no_grad():
            program = torch.onnx.export(
                plan.module.eval(),
                kwargs={name: example for name, (example, _) in plan.inputs.items()},
                input_names=planned,
                output_names=list(plan.outputs),
                dynamic_shapes={name: axes for name, (_, axes) in plan.inputs.items()},
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"{plan.role}: torch cannot export it: {error}") from error
    assert program is not None
    names = [value.name for value in program.model.graph.inputs]
    if names != planned:
        raise ExportError(f"{plan.role}: the graph takes {names}, planned were {planned}")
    make_scans(program.model.graph)
    return save_graph(plan.role, program.model, folder)


def save_graph(role: str, model: ir.Model, folder: Path, suffix: str = ".onnx") -> Written:
    """Write a graph and its weights, `.data` after its name, into `folder`; its weights are let go.

    Args:
        role: The graph's role in the bundle.
        model: The graph.
        folder: Where to write it.
        suffix: How the file's name ends, after the role.
    """
    path = folder / f"{role}{suffix}"
    strip_metadata(model)
    ir.save(model, path, external_data=f"{path.name}.data")
    spec = GraphSpec(
        opset=model.graph.opset_imports[""],
        inputs=[tensor_spec(value) for value in model.graph.inputs],
        outputs=[tensor_spec(value) for value in model.graph.outputs],
    )
    for value in model.graph.initializers.values():
        # onnxscript's rewrite rules keep the last graph they saw, and with it every weight.
        value.const_value = None
    files, data = {role: path.name}, path.with_name(f"{path.name}.data")
    if data.exists() and data.stat().st_size:
        files[f"{role}.weights"] = data.name
    else:
        data.unlink(missing_ok=True)
    return files, {role: spec}


def strip_metadata(model: ir.Model) -> None:
    """Drop torch's stack traces: they hold the exporting machine's paths, and most of the file."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    for node in nodes:
        node.doc_string = None
    values = [value for node in nodes for value in node.outputs]
    values += [*model.graph.inputs, *model.graph.initializers.values()]
    holders: tuple[ir.Model | ir.Graph | ir.Node | ir.Value, ...]
    holders = (model, model.graph, *nodes, *values)
    for holder in holders:
        holder.metadata_props.clear()


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
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector off: tracing makes millions of objects that stay, a tenth of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
