"""What the types of a manifest's fields alone do not refuse: fields that contradict each other."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from foveate.bundle.generation import generation_problems
from foveate.bundle.manifest import (
    CONTRIB_SUFFIX,
    EMBEDDINGS,
    GATHER,
    MANIFEST,
    CompressorFacts,
    EngineVariant,
    FileEntry,
    Manifest,
    ModelFacts,
    TensorSpec,
    short,
)

DEEPEST = 16
"""How deep objects and lists of `preprocessing` may nest, itself counted."""

_PART = r"\w([\w.-]*[\w-])?"
_PATH = re.compile(rf"{_PART}(/{_PART})*", re.ASCII)
_STATE = re.compile(r"(?:past|present)\.(\d+)\.(?:key|value)")
_FLOATS = {"fp32": ("float32",), "fp16": ("float16",), "bf16": ("bfloat16",)}


def problems(manifest: Manifest) -> Iterator[str]:
    """What the types alone do not refuse, as sentences."""
    yield from _file_problems(manifest.files)
    yield from _model_problems(manifest)
    yield from _graph_problems(manifest)
    yield from _agreement_problems(manifest)
    yield from _engine_problems(manifest)
    yield from _compressor_problems(manifest.compressor)
    yield from generation_problems(manifest.generation, manifest.model.vocabulary)
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


def _model_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the numbers of the model, its tokens and limits, as sentences."""
    model, limits = manifest.model, manifest.limits
    if model.heads % model.kv_heads:
        yield f"'heads' {model.heads} is no multiple of 'kv_heads' {model.kv_heads}"
    if model.rope.sections and 2 * sum(model.rope.sections) != model.head_dim:
        yield f"'sections' do not split half of 'head_dim' {model.head_dim}"
    for name, token in manifest.tokens.items():
        if token >= model.vocabulary:
            yield f"the token {short(name)!r} is {token}, and 'vocabulary' is {model.vocabulary}"
    if limits.visual_tokens > limits.prompt_tokens:
        yield (
            f"'visual_tokens' {limits.visual_tokens} is over 'prompt_tokens' {limits.prompt_tokens}"
        )


def _agreement_problems(manifest: Manifest) -> Iterator[str]:
    """Where graphs are not of the model's sizes and precision, as sentences."""
    model = manifest.model
    ends = dict.fromkeys(
        ("text_embeds", "visual_embeds", "inputs_embeds"), (model.hidden_size, "hidden_size")
    )
    ends["logits"] = (model.vocabulary, "vocabulary")
    for role, graph in manifest.graphs.items():
        for tensor in (*graph.inputs, *graph.outputs):
            where = f"{short(tensor.name)!r} of the graph {role!r}"
            size, name = ends.get(tensor.name, (None, ""))
            if size is not None and tensor.shape[-1:] != [size]:
                yield f"{where} does not end with {name!r} {size}"
            wanted = _FLOATS.get(manifest.precision)
            if (
                size is not None
                and tensor.name != "logits"
                and wanted
                and tensor.dtype not in wanted
            ):
                yield f"{where} is {tensor.dtype}, and 'precision' is {manifest.precision!r}"
            if tensor.name == "position_ids" and role != "vision":
                yield from _axis_problems(tensor, where, model.rope.axes)
        if role == "decoder":
            yield from _cache_problems((*graph.inputs, *graph.outputs), model)


def _axis_problems(tensor: TensorSpec, where: str, axes: int) -> Iterator[str]:
    """Where positions do not have the model's axes, which stand first or last, as sentences."""
    if axes not in (*tensor.shape[:1], *tensor.shape[-1:]):
        yield f"{where} does not have the {axes} axes of 'sections'"


def _cache_problems(tensors: Iterable[TensorSpec], model: ModelFacts) -> Iterator[str]:
    """Where a decoder's cache is not of the model's layers and heads, as sentences."""
    layers = set()
    for tensor in tensors:
        if match := _STATE.fullmatch(tensor.name):
            layers.add(int(match[1]) if len(match[1]) < 9 else -1)
            if tensor.shape[1::2] != [model.kv_heads, model.head_dim] or len(tensor.shape) != 4:
                yield (
                    f"{short(tensor.name)!r} is no cache of {model.kv_heads} heads of "
                    f"{model.head_dim}, 'kv_heads' of 'head_dim'"
                )
    if layers and layers != set(range(model.layers)):
        yield f"the graph 'decoder' has {len(layers)} layers, and 'layers' is {model.layers}"


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
        graphs = [vision, *([manifest.graphs[GATHER]] if GATHER in manifest.graphs else [])]
        tensors = [tensor for graph in graphs for tensor in (*graph.inputs, *graph.outputs)]
        known = {axis for tensor in tensors for axis in tensor.shape}
        for axis in manifest.vision_axes:
            if axis not in known:
                yield f"'vision_axes' names '{short(axis)}', which is no axis of the graph 'vision'"


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


def _compressor_problems(facts: CompressorFacts) -> Iterator[str]:
    """What is wrong with what is kept, as sentences."""
    if facts.keep == "auto" and facts.auto is None:
        yield "'keep' is 'auto', and 'auto' does not say what that keeps"
    if facts.auto is not None and facts.auto.least > facts.auto.most:
        yield f"'least' {facts.auto.least:g} is over 'most' {facts.auto.most:g}"


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
