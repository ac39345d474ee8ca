"""A graph built operator by operator, its weights left where torch has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.tape import Tape
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

OPSET = 18
IR_VERSION = 10
CONTRIB = "com.microsoft"
FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
INT32, INT64, UINT8 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8
DTYPES = {torch.float32: FLOAT, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
Outputs = dict[str, tuple[ir.Value, ir.DataType, list[int | str]]]

Input = ir.Value | list[int] | NDArray[Any] | np.generic | None
"""What an operator takes: a value, a constant, or nothing where an input may be left out."""


class GraphBuilder:
    """Builds a graph; `dtype` is what it computes in."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Begin without operators."""
        self.dtype = DTYPES[dtype]
        self._tape = Tape()
        self.inputs: list[ir.Value] = []
        self.constants: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        """A graph input; an axis that is free has a name."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def weight(self, name: str, tensor: Tensor) -> ir.Value:
        """A weight, as the module has it."""
        return self._tape.initializer(TorchTensor(tensor.detach().contiguous(), name), name)

    def constant(self, value: list[int] | NDArray[Any] | np.generic) -> ir.Value:
        """A small constant, integers as int64; the same one twice is stored once."""
        array = np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)
        key = f"constant_{array.dtype}_{array.shape}_{array.tobytes().hex()}"
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = self._tape.initializer(ir.tensor(array, name=name), name)
        return self.constants[key]

    def op(self, kind: str, *inputs: Input, **attributes: Any) -> ir.Value:
        """One standard operator with one output."""
        return self.outputs(kind, inputs, 1, **attributes)[0]

    def contrib(self, kind: str, *inputs: Input, **attributes: Any) -> ir.Value:
        """One contrib operator with one output."""
        return self.outputs(kind, inputs, 1, CONTRIB, **attributes)[0]

    def outputs(
        self, kind: str, inputs: Sequence[Input], count: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """One operator with `count` outputs."""
        values = [
            one if one is None or isinstance(one, ir.Value) else self.constant(one)
            for one in inputs
        ]
        return self._tape.op_multi_out(kind, values, attributes, num_outputs=count, domain=domain)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`."""
        return self.op("Cast", value, to=dtype)

    def linear(self, value: ir.Value, name: str, weight: Tensor, bias: Tensor | None) -> ir.Value:
        """value · weightᵀ + bias, the weight [out, in] stored as torch has it."""
        out = self.contrib("FusedMatMul", value, self.weight(f"{name}.weight", weight), transB=1)
        return out if bias is None else self.op("Add", out, self.weight(f"{name}.bias", bias))

    def layer(self, value: ir.Value, name: str, layer: Any) -> ir.Value:
        """What a linear layer of torch makes of `value`; it may be without a bias."""
        return self.linear(value, name, layer.weight, layer.bias)

    def normalised(
        self,
        rows: ir.Value,
        factor: float,
        mean: Sequence[float],
        std: Sequence[float],
        pixels: int,
    ) -> ir.Value:
        """8-bit levels [..., pixels · 3], the three colours of each pixel together, as the model takes them."""
        means, stds = (np.array(one, np.float64) for one in (mean, std))
        scale = np.tile(factor / stds, pixels).astype(np.float32)
        shift = np.tile(-means / stds, pixels).astype(np.float32)
        scaled = self.op("Mul", self.cast(rows, FLOAT), scale)
        return self.cast(self.op("Add", scaled, shift), self.dtype)

    def attention(
        self, states: Sequence[ir.Value], heads: int, lengths: ir.Value | None = None
    ) -> ir.Value:
        """Attention of query, key and value [N, L, C] within each of N, to the first `lengths` int32 [N] of it.

        onnxruntime has no kernel of it for bfloat16.
        """
        if self.dtype == BFLOAT16:
            states = [self.cast(state, FLOAT16) for state in states]
        more = () if lengths is None else (None, lengths)
        attended = self.contrib("MultiHeadAttention", *states, *more, num_heads=heads)
        return self.cast(attended, BFLOAT16) if self.dtype == BFLOAT16 else attended

    def rotation(self, angles: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of angles, computed in float32."""
        cos, sin = (self.cast(self.op(kind, angles), self.dtype) for kind in ("Cos", "Sin"))
        return cos, sin

    def rms_norm(self, value: ir.Value, name: str, norm: Any, weight: Tensor) -> ir.Value:
        """Root-mean-square normalisation by `weight`, of the value's own type."""
        return self.op(
            "SimplifiedLayerNormalization", value, self.weight(name, weight),
            epsilon=float(norm.variance_epsilon), axis=-1, stash_type=1,
        )  # fmt: skip

    def skip_rms_norm(
        self, value: ir.Value, skip: ir.Value, name: str, norm: Any
    ) -> tuple[ir.Value, ir.Value]:
        """Root-mean-square normalisation of value + skip; also the sum itself."""
        inputs = [value, skip, self.weight(name, norm.weight)]
        return self._skip("SkipSimplifiedLayerNormalization", inputs, float(norm.variance_epsilon))

    def skip_layer_norm(
        self, value: ir.Value, skip: ir.Value, name: str, norm: nn.LayerNorm, bias: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Layer normalisation of value + skip + bias; also the sum itself."""
        weights = [
            self.weight(f"{name}.{kind}", getattr(norm, kind)) for kind in ("weight", "bias")
        ]
        return self._skip("SkipLayerNormalization", [value, skip, *weights, bias], norm.eps)

    def _skip(self, kind: str, inputs: list[ir.Value], epsilon: float) -> tuple[ir.Value, ir.Value]:
        """A skip normalisation's first and last output; the two between are left out."""
        outputs = [ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()]
        self._tape.op_multi_out(kind, inputs, {"epsilon": epsilon}, outputs=outputs, domain=CONTRIB)
        return outputs[0], outputs[3]

    def model(self, name: str, outputs: Outputs) -> ir.Model:
        """The finished graph; outputs by name with their types and shapes."""
        for output, (value, dtype, shape) in outputs.items():
            value.name, value.dtype, value.shape = output, dtype, ir.Shape(shape)
        domains = {node.domain for node in self._tape.nodes}
        graph = ir.Graph(
            self.inputs,
            [value for value, _, _ in outputs.values()],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET, **({CONTRIB: 1} if CONTRIB in domains else {})},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="foveate")
