"""The manifest of a bundle: its fields, and what each may hold."""

from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from foveate.bundle.generation import Generation
from foveate.bundle.words import Words

FORMAT = "foveate-bundle"
VERSION = 8
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 4 * 1024 * 1024
EMBEDDINGS = "embeddings"
"""The role of the embedding table."""
GATHER, ROWS = "gather_visual", "rows"
"""The role of the graph that sums the vision graph's rows to visual tokens, which some families have, and
its axis that counts those rows."""
CONTRIB_SUFFIX = ".contrib.onnx"
"""How the path of a graph of contrib operators ends, and of no other graph."""

Quantized = Literal["int8", "fp8", "int4"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4"]
Weights = Literal["trained", "random"]
Operators = Literal["standard", "contrib"]
Decoder = Literal["concat", "static"]
DType = Literal[
    "float32", "float16", "bfloat16", "float64",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
]  # fmt: skip
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Width = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Vocabulary = Annotated[int, msgspec.Meta(ge=1, le=2**26)]
Opset = Annotated[int, msgspec.Meta(ge=1, le=255)]
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Role = Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Capability = Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d?\.\d\Z")]
Release = Annotated[str, msgspec.Meta(pattern=r"^\d{1,4}(\.\d{1,9}){0,5}\Z")]
Library = Literal["tensorrt", "tensorrt_rtx"]
Shape = list[Natural]
Span = tuple[Shape, Shape, Shape]

AGAIN = "Copy the bundle again from where it came, or export the checkpoint again."


def quantized(precision: Precision) -> Quantized | None:
    """The precision, if it is one that graphs are quantized to."""
    return cast(Quantized, precision) if precision in get_args(Quantized) else None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every object in the manifest: unknown and missing fields are errors."""


class Rope(Record, frozen=True, kw_only=True):
    """Rotary positions; `sections` splits a head among the axes of m-rope, empty for one axis."""

    theta: Annotated[float, msgspec.Meta(gt=0, le=1e18)]
    sections: Annotated[tuple[Width, ...], msgspec.Meta(max_length=16)]

    @property
    def axes(self) -> int:
        """The axes A of a position."""
        return max(1, len(self.sections))


class ModelFacts(Record, frozen=True, kw_only=True):
    """The language model's sizes."""

    hidden_size: Width
    layers: Layers
    heads: Width
    kv_heads: Width
    head_dim: Width
    vocabulary: Vocabulary
    tied_embeddings: bool
    rope: Rope


class FileEntry(Record, frozen=True, kw_only=True):
    """One file, by its path from the bundle's folder."""

    path: str
    sha256: Digest
    bytes: Size


class TensorSpec(Record, frozen=True, kw_only=True):
    """A graph's input or output; an axis is a size, or a name where the size is free."""

    name: Text
    dtype: DType
    shape: list[Natural | Text]


class GraphSpec(Record, frozen=True, kw_only=True):
    """What an ONNX graph takes and gives."""

    opset: Opset
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class AxisRange(Record, frozen=True, kw_only=True):
    """How long a named axis of the vision graph is.

    Its size is per_token · visual tokens + per_picture · pictures + plus.
    """

    per_token: Annotated[float, msgspec.Meta(ge=0, le=2**20)] = 0
    per_picture: Natural = 0
    plus: Natural = 0


class Profile(Record, frozen=True, kw_only=True):
    """What an engine was tuned for: (smallest, best, largest) by input.

    `shapes` holds the sizes of every input, `values` what the inputs that are sizes themselves hold.
    """

    shapes: dict[Text, Span]
    values: dict[Text, Span]


class EngineVariant(Record, frozen=True, kw_only=True):
    """A TensorRT engine of one graph for one target.

    `decoder` says of a decoder whether its cache grows by concatenation or has a fixed length and is
    written in place; None for other graphs. `version` is the library's own, exactly; `built_from` holds
    the SHA-256 of the graph and of its weights by role, `profiles` the profiles by name in the engine's
    order.
    """

    target: Role
    role: Role
    file: Role
    library: Library
    version: Annotated[str, msgspec.Meta(pattern=r"^\d{1,4}(\.\w{1,12}){0,6}\Z")]
    compute_capabilities: Annotated[list[Capability], msgspec.Meta(min_length=1)]
    precision: Precision
    decoder: Decoder | None
    profiles: dict[Role, Profile]
    built_from: dict[Role, Digest]


class ImageBackend(Record, frozen=True, kw_only=True):
    """The image library that the preprocessing parameters were checked with."""

    name: Literal["pillow"]
    version: Text


class Limits(Record, frozen=True, kw_only=True):
    """The most that one request may hold."""

    visual_tokens: Count
    prompt_tokens: Count


class AutoKeep(Record, frozen=True, kw_only=True):
    """What keep="auto" keeps: the fewest visual tokens that hold a `share` of the relevance.

    `least` and `most` are ratios of the tokens that may be dropped.
    """

    share: Ratio
    least: Ratio
    most: Ratio


class CompressorFacts(Record, frozen=True, kw_only=True):
    """How visual tokens are ranked, and how the instruction's tokens are weighed for it.

    `keep` is the default, `figures` what it measured; `auto` is what keep="auto" keeps, None where it was
    not calibrated.
    """

    kind: Literal["attention", "f_theta"]
    words: Words
    keep: Ratio | Literal["auto"]
    auto: AutoKeep | None
    trained_on: str | None
    figures: dict[str, float]


class Manifest(Record, frozen=True, kw_only=True):
    """manifest.json, field by field and in its order.

    `weights` are a checkpoint's or drawn at random for measuring; `operators` are those of ONNX, which
    any engine can take, or onnxruntime's contrib operators beside them. `vision_axes` says how long each
    named axis of the vision graph is; `preprocessing` is the family's, nested by what it is about.
    """

    format: Literal["foveate-bundle"] = "foveate-bundle"
    version: Literal[8] = 8
    family: Text
    precision: Precision
    weights: Weights
    operators: Operators
    model: ModelFacts
    files: dict[Role, FileEntry]
    graphs: dict[Role, GraphSpec]
    engines: list[EngineVariant] = []
    vision_axes: dict[Text, AxisRange]
    preprocessing: dict[str, Any]
    image_backend: ImageBackend
    tokens: dict[str, Natural]
    generation: Generation
    limits: Limits
    compressor: CompressorFacts
    parity: dict[str, float]
    tools: dict[str, str]


def short(value: object, most: int = 200) -> str:
    """Text from a file made fit for a message: no control characters, no more than `most`."""
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(value)[: most + 1])
    return text if len(text) <= most else f"{text[:most]}…"


def outdated(manifest: Manifest, engine: EngineVariant) -> str | None:
    """The role of a file that an engine was not built from; None where it is this bundle's own."""
    for role in {engine.role: None, **engine.built_from}:
        entry = manifest.files.get(role)
        if entry is None or engine.built_from.get(role) != entry.sha256:
            return role
    return None
