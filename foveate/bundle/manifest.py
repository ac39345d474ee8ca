"""The manifest of a bundle: its fields, and how it is read and written as JSON."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from foveate._version import __version__
from foveate.errors import BundleError

FORMAT = "foveate-bundle"
VERSION = 7
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 4 * 1024 * 1024
EMBEDDINGS = "embeddings"
"""The role of the embedding table."""
CONTRIB_SUFFIX = ".contrib.onnx"
"""How the path of a graph of contrib operators ends, and of no other graph."""
DEEPEST = 16
"""How deep objects and lists of `preprocessing` may nest, itself counted."""

Quantized = Literal["int8", "fp8", "int4"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4"]
Weights = Literal["trained", "random"]
Operators = Literal["standard", "contrib"]
Decoder = Literal["concat", "static"]
DType = Literal[
    "float32", "float16", "bfloat16", "float64",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
]  # fmt: skip
Count = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Role = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Capability = Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d?\.\d\Z")]
Release = Annotated[str, msgspec.Meta(pattern=r"^\d{1,4}(\.\d{1,9}){0,5}\Z")]
Library = Literal["tensorrt", "tensorrt_rtx"]
Shape = list[Natural]
Span = tuple[Shape, Shape, Shape]

_PART = r"\w([\w.-]*[\w-])?"
_PATH = re.compile(rf"{_PART}(/{_PART})*", re.ASCII)
AGAIN = "Copy the bundle again from where it came, or export the checkpoint again."


def quantized(precision: Precision) -> Quantized | None:
    """The precision, if it is one that graphs are quantized to."""
    return cast(Quantized, precision) if precision in get_args(Quantized) else None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every object in the manifest: unknown and missing fields are errors."""


class Rope(Record, frozen=True, kw_only=True):
    """Rotary positions; `sections` splits a head among the axes of m-rope, empty for one axis."""

    theta: Positive
    sections: tuple[Count, ...]

    @property
    def axes(self) -> int:
        """The axes A of a position."""
        return max(1, len(self.sections))


class ModelFacts(Record, frozen=True, kw_only=True):
    """The language model's sizes."""

    hidden_size: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    tied_embeddings: bool
    rope: Rope


class FileEntry(Record, frozen=True, kw_only=True):
    """One file, by its path from the bundle's folder."""

    path: str
    sha256: Digest
    bytes: Natural


class TensorSpec(Record, frozen=True, kw_only=True):
    """A graph's input or output; an axis is a size, or a name where the size is free."""

    name: Text
    dtype: DType
    shape: list[Natural | Text]


class GraphSpec(Record, frozen=True, kw_only=True):
    """What an ONNX graph takes and gives."""

    opset: Count
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class AxisRange(Record, frozen=True, kw_only=True):
    """How long a named axis of the vision graph is.

    Its size is per_token · visual tokens + per_picture · pictures + plus.
    """

    per_token: Annotated[float, msgspec.Meta(ge=0)] = 0
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


class Generation(Record, frozen=True, kw_only=True):
    """When and how the checkpoint wants its text generated."""

    eos: Annotated[list[Natural], msgspec.Meta(min_length=1)]
    repetition_penalty: Positive
    max_new_tokens: Count


class Limits(Record, frozen=True, kw_only=True):
    """The most that one request may hold."""

    visual_tokens: Count
    prompt_tokens: Count


class CompressorFacts(Record, frozen=True, kw_only=True):
    """How visual tokens are ranked; `keep` is the default ratio, `figures` what it measured."""

    kind: Literal["attention", "f_theta"]
    keep: Ratio
    trained_on: str | None
    figures: dict[str, float]


class Manifest(Record, frozen=True, kw_only=True):
    """manifest.json, field by field and in its order.

    `weights` are a checkpoint's or drawn at random for measuring; `operators` are those of ONNX, which
    any engine can take, or onnxruntime's contrib operators beside them. `vision_axes` says how long each
    named axis of the vision graph is; `preprocessing` is the family's, nested by what it is about.
    """

    format: Literal["foveate-bundle"] = "foveate-bundle"
    version: Literal[7] = 7
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


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: UTF-8, two spaces of indent, fields in their declared order.

    Raises:
        BundleError: A manifest that `decode` would refuse.
    """
    source = Path(MANIFEST)
    with _refusing(source):
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode(data, source)
    return data


def decode(data: bytes, source: Path) -> Manifest:
    """Read a manifest strictly, without the files that it names.

    Args:
        data: The bytes of manifest.json.
        source: Where they came from, for messages.

    Raises:
        BundleError: Another format or version, or anything unknown, missing or out of range.
    """
    with _refusing(source):
        _check_version(parse(data), source)
        manifest = msgspec.json.decode(data, type=Manifest)
        for problem in _problems(manifest):
            raise ValueError(problem)
    return manifest


@contextlib.contextmanager
def _refusing(source: Path) -> Iterator[None]:
    """Turn what is wrong with a manifest into a BundleError."""
    try:
        yield
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source} is not a valid manifest: {short(error)}. {AGAIN}") from None


def parse(data: bytes) -> Any:
    """JSON as plain Python, with the same key twice in an object an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object, or ValueError naming a key that it holds twice."""
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"the key {key!r} stands twice in one object")
        return dict(pairs)

    return json.loads(data.decode("utf-8"), object_pairs_hook=unique)


def _check_version(document: Any, source: Path) -> None:
    """BundleError for another format or version, before any other field is read."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f'{source} does not say "format": "{FORMAT}". {AGAIN}')
    version = document.get("version")
    fix = "To read it, upgrade foveate; or export the checkpoint again."
    if type(version) is int and 0 < version < VERSION:
        fix = (
            "Older bundles are not converted: export the checkpoint again (foveate export CHECKPOINT "
            "BUNDLE), and if the bundle had engines, build them again (foveate build)."
        )
    if version != VERSION:
        raise BundleError(
            f"{source} has version {short(version)} of the bundle format, and Foveate {__version__} "
            f"reads version {VERSION}. {fix}"
        )


def short(value: object) -> str:
    """Text from a file made fit for a message: no control characters, no more than 200."""
    text = repr(str(value))[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}…"


def _problems(manifest: Manifest) -> Iterator[str]:
    """What the types alone do not refuse, as sentences."""
    yield from _file_problems(manifest.files)
    yield from _graph_problems(manifest)
    yield from _engine_problems(manifest)
    yield from _json_problems(manifest.preprocessing, DEEPEST)


def _file_problems(files: dict[str, FileEntry]) -> Iterator[str]:
    """What is wrong with the files' paths, as sentences."""
    taken = {MANIFEST}
    for role, entry in files.items():
        path = short(entry.path)
        if len(entry.path) > 255 or not _PATH.fullmatch(entry.path):
            yield (
                f"the path '{path}' of {role!r} leaves the folder or is not plain (at most 255 "
                "letters, digits, '.', '_' and '-', with '/' between parts)"
            )
        if entry.path.lower() in taken:
            yield f"the path '{path}' of {role!r} is taken by another file"
        taken.add(entry.path.lower())
    if EMBEDDINGS not in files:
        yield f"no file has the role {EMBEDDINGS!r}"
    elif files[EMBEDDINGS].path.lower().endswith(".onnx"):
        yield f"the file of {EMBEDDINGS!r} is a graph, where a safetensors file is to be"


def _graph_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the graphs, as sentences."""
    contrib = manifest.operators == "contrib"
    for role, graph in manifest.graphs.items():
        path = manifest.files[role].path if role in manifest.files else None
        if path is None:
            yield f"the graph {role!r} is not among the files"
        elif not path.endswith(".onnx"):
            yield f"the graph {role!r} is no .onnx file"
        elif path.endswith(CONTRIB_SUFFIX) != contrib:
            yield (
                f"the graph {role!r} is in '{path}', and 'operators' is {manifest.operators!r}: only "
                f"graphs of contrib operators, and all of them, are {CONTRIB_SUFFIX} files"
            )
        for tensors in (graph.inputs, graph.outputs):
            if len({tensor.name for tensor in tensors}) < len(tensors):
                yield f"the graph {role!r} names a tensor twice"
    if vision := manifest.graphs.get("vision"):
        known = {axis for tensor in (*vision.inputs, *vision.outputs) for axis in tensor.shape}
        for axis in manifest.vision_axes:
            if axis not in known:
                yield f"'vision_axes' names '{short(axis)}', which is no axis of the graph 'vision'"


def outdated(manifest: Manifest, engine: EngineVariant) -> str | None:
    """The role of a file that an engine was not built from; None where it is this bundle's own."""
    for role in {engine.role: None, **engine.built_from}:
        entry = manifest.files.get(role)
        if entry is None or engine.built_from.get(role) != entry.sha256:
            return role
    return None


def _engine_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the engines, as sentences."""
    made = set()
    for engine in manifest.engines:
        name = f"the engine {engine.file!r}"
        if engine.file not in manifest.files:
            yield f"{name} is not among the files"
        if engine.role not in manifest.graphs:
            yield f"{name} plays {engine.role!r}, which is no graph"
        if (engine.target, engine.role) in made:
            yield f"{name} is not the only one of {engine.role!r} for {engine.target!r}"
        made.add((engine.target, engine.role))
        if (engine.decoder is None) == (engine.role == "decoder"):
            yield f"{name} of {engine.role!r} has the decoder {engine.decoder!r}"
        if engine.decoder == "static" and len(_cache_lengths(engine)) != 1:
            yield f"{name} has a static decoder, and its profiles do not give its cache one length"
        for profile, ranges in engine.profiles.items():
            for tensor, span in (*ranges.shapes.items(), *ranges.values.items()):
                rising = all(a <= b <= c for a, b, c in zip(*span, strict=False))
                if not rising or len({len(part) for part in span}) > 1:
                    yield f"{name} has an impossible range for {short(tensor)!r} in {profile!r}"


def _cache_lengths(engine: EngineVariant) -> set[tuple[int, ...]]:
    """The lengths that a decoder's profiles give its cache."""
    spans = (profile.shapes.get("past.0.key", ([], [], [])) for profile in engine.profiles.values())
    lengths = {tuple(shape[2:3]) for span in spans for shape in span}
    return lengths if all(lengths) else set()


def _json_problems(value: Any, levels: int) -> Iterator[str]:
    """What is wrong with a value of `preprocessing` in which `levels` more may nest, as sentences."""
    if isinstance(value, dict | list):
        if not levels:
            yield f"'preprocessing' nests more than {DEEPEST} deep"
            return
        for one in value.values() if isinstance(value, dict) else value:
            yield from _json_problems(one, levels - 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield "'preprocessing' holds an integer of more than 64 bits"
