"""What range of each activation of a float graph to represent, from real requests.

A range that reaches the largest value wastes codes on the few tokens whose values are hundreds of times
the others'; a percentile cuts too little of some activations and too much of others. So rows are sampled
and the range is searched that loses least of a row, averaged over rows.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from foveate.bundle.manifest import Quantized
from foveate.errors import ExportError
from foveate.export.quantization.linears import find_linears
from foveate.export.quantization.numbers import LARGEST, encode
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions
from foveate.runtime.tensors import DeviceTensor, Feeds, on_host

ROWS = 512
"""Rows to sample of each activation, over all requests."""
STEPS = tuple(0.85**step for step in range(25))
"""Ranges to try, as shares of the largest magnitude."""
HELD = 1 << 30
"""Bytes of activations to hold at once; a graph runs several times where it has more."""


class Observer(OnnxEngine):
    """A float graph that runs as ever, and notes what its matrix products take."""

    def __init__(self, path: Path, requests: int) -> None:
        """Open a graph, its activations as outputs of a copy beside it.

        Args:
            path: The graph; the copy needs its weights, and is written beside them.
            requests: How many are to come.

        Raises:
            BackendError: onnxruntime cannot open it.
        """
        model = ir.load(path)
        self.plain = {str(value.name) for value in model.graph.outputs}
        linears = {str(one.activation.name): one for one in find_linears(model.graph)}
        seen = {name: _outside(model.graph, one.activation) for name, one in linears.items()}
        self.activations = {str(value.name): name for name, value in seen.items()}
        self.widths = {
            name: linears[own].matrix().shape[0] for name, own in self.activations.items()
        }
        wanted = [one for one in seen.values() if one.producer() and one.name not in self.plain]
        model.graph.outputs.extend(wanted)
        copy = path.with_name(f"{path.stem}.observed.onnx")
        ir.save(model, copy)
        super().__init__(copy, OnnxOptions())
        self.everything = self.outputs
        self.count = max(4, math.ceil(ROWS / max(requests, 1)))
        self.random = np.random.default_rng(0)
        self.largest: dict[str, float] = {}
        self.rows: dict[str, list[NDArray[np.float32]]] = {}

    def run(self, feeds: Feeds) -> dict[str, DeviceTensor]:
        """Run, note the activations and give the outputs."""
        for name in self.widths.keys() & feeds.keys():
            self._note(name, on_host(feeds[name]))
        found: dict[str, DeviceTensor] = {}
        for names in self._batches(feeds):
            self.outputs = tuple(one for one in self.everything if one.name in names)
            found = super().run(feeds)
            for name, value in found.items():
                if name in self.widths:
                    self._note(name, value.numpy())
        return {name: found[name] for name in self.plain}

    def ranges(self, precision: Quantized) -> dict[str, float]:
        """For each activation the largest magnitude to represent.

        Raises:
            ExportError: Activations that are not finite.
        """
        for name, largest in self.largest.items():
            if not math.isfinite(largest):
                raise ExportError(
                    f"{self.path.name}: {name} is not finite on the calibration data; "
                    "export with --base fp32"
                )
        return {
            self.activations[name]: best_range(np.concatenate(rows), self.largest[name], precision)
            for name, rows in self.rows.items()
        }

    def _batches(self, feeds: Feeds) -> list[set[str]]:
        """The activations' names in batches that `HELD` has room for, the outputs' in the last."""
        rows = max(math.prod(value.shape[:-1]) for value in feeds.values())
        batches, held = [set[str]()], 0
        for name in (name for name in self.widths if name not in feeds.keys() | self.plain):
            held += 4 * rows * self.widths[name]
            if held > HELD and batches[-1]:
                batches.append(set())
                held = 4 * rows * self.widths[name]
            batches[-1].add(name)
        batches[-1] |= self.plain
        return batches

    def _note(self, name: str, values: NDArray[Any]) -> None:
        """Note an activation's largest magnitude and some of its rows [..., K], chosen by chance."""
        rows = values.reshape(-1, values.shape[-1])
        self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(rows).max()))
        chosen = self.random.choice(len(rows), min(len(rows), self.count), replace=False)
        self.rows.setdefault(name, []).append(rows[chosen].astype(np.float32))


def _outside(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A value that can be an output of a graph: itself, or that of all blocks where a Scan has it of one.

    The last block has a few rows of padding, fewer than there are blocks.
    """
    owner = value.graph or (node.graph if (node := value.producer()) else None)
    scans = {
        id(body): node
        for node in graph.all_nodes()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for body in [attribute.as_graph()]
    }
    while isinstance(owner, ir.Graph) and owner is not graph:
        scan, name = scans[id(owner)], str(value.name)
        if value.producer() is None:
            copy = ir.node("Identity", [value], name=f"{name}.copy")
            copy.outputs[0].name, copy.outputs[0].type = f"{name}.copied", value.type
            owner.append(copy)
            value = copy.outputs[0]
        owner.outputs.append(value)
        scan.resize_outputs(len(scan.outputs) + 1)
        kind, value = value.type, scan.outputs[-1]
        value.name, value.type = f"{name}.blocks", kind
        owner = scan.graph
    return value


def best_range(rows: NDArray[np.float32], largest: float, precision: Quantized) -> float:
    """The range that loses least of a row, averaged over rows [n, K], up to `largest`."""
    energy = np.maximum(np.square(rows).sum(axis=1), np.finfo(np.float32).tiny)
    losses = []
    for step in STEPS:
        scale = np.float32(largest * step / LARGEST[precision] or 1.0)
        error = encode(rows / scale, precision).astype(np.float32) * scale - rows
        losses.append(float((np.square(error).sum(axis=1) / energy).mean()))
    return largest * STEPS[int(np.argmin(losses))]
