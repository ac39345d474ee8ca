"""`foveate inspect`: what a bundle holds."""

import re
import textwrap
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
import msgspec

from foveate.bundle.generation import Generation
from foveate.bundle.manifest import (
    EngineVariant,
    GraphSpec,
    Manifest,
    TensorSpec,
    outdated,
)
from foveate.bundle.reader import Bundle
from foveate.bundle.words import Words
from foveate.commands.options import PATH, as_json, verb
from foveate.terminal import plural, size, table, tell, tell_json


@verb("foveate inspect bundle")
@click.argument("bundle", type=PATH)
@as_json
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds; checksums are left to verify."""
    opened = Bundle.open(bundle, checksums=False)
    tell_json(bundle_facts(opened)) if as_json else tell(describe_bundle(opened))


def bundle_bytes(bundle: Bundle) -> int:
    """The size of all files that the manifest names."""
    return sum(entry.bytes for entry in bundle.manifest.files.values())


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """The manifest as plain data, and where the bundle is."""
    return {"root": str(bundle.root), **msgspec.to_builtins(bundle.manifest)}


def describe_bundle(bundle: Bundle) -> str:
    """What `foveate inspect` shows."""
    manifest = bundle.manifest
    model, limits = manifest.model, manifest.limits
    rope = f"theta {model.rope.theta:g}"
    if model.rope.sections:
        rope += f", sections {' '.join(map(str, model.rope.sections))}"
    general = [
        ("family", manifest.family),
        ("precision", manifest.precision),
        ("weights", describe_weights(manifest)),
        ("operators", describe_operators(manifest)),
        ("size", f"{size(bundle_bytes(bundle))} in {plural(len(manifest.files), 'file')}"),
        (
            "model",
            f"{plural(model.layers, 'layer')}, hidden size {model.hidden_size}, "
            f"{plural(model.heads, 'head')} of {model.head_dim} ({model.kv_heads} for keys and "
            f"values), vocabulary {model.vocabulary}",
        ),
        ("rope", rope),
        ("compressor", describe_compressor(bundle)),
        ("limits", f"{limits.visual_tokens} visual tokens, {limits.prompt_tokens} tokens in all"),
        ("answers", describe_generation(manifest.generation)),
        (
            "pictures",
            ", ".join(f"{key} {_brief(value)}" for key, value in manifest.preprocessing.items()),
        ),
        ("", f"checked with {manifest.image_backend.name} {manifest.image_backend.version}"),
        ("written by", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())),
    ]
    lines = [
        row
        for name, text in general
        for row in zip_longest([name], textwrap.wrap(text, 84), fillvalue="")
    ]
    files = [
        (role, entry.path, size(entry.bytes), f"sha256 {entry.sha256[:12]}…")
        for role, entry in manifest.files.items()
    ]
    engines = [row for engine in manifest.engines for row in _engine_rows(manifest, engine)]
    graphs = [
        f"\ngraph {role} (ONNX opset {graph.opset}{_parity(manifest.parity.get(role))})\n"
        + table(_graph_rows(graph))
        for role, graph in manifest.graphs.items()
    ]
    return "\n".join(
        [
            str(bundle.root),
            table(lines),
            "\nfiles",
            table(files),
            *graphs,
            "\nTensorRT engines (smallest, best, largest)",
            table(engines) if engines else "  none",
        ]
    )


def describe_generation(generation: Generation) -> str:
    """How long answers are and how their tokens are chosen, where a request does not say."""
    if generation.max_new_tokens is None:
        length = f"up to {generation.max_length} tokens with their prompts"
    else:
        length = f"up to {plural(generation.max_new_tokens, 'token')}"
    chosen = "greedy"
    if generation.do_sample:
        chosen = (
            f"sampled (temperature {generation.temperature:g}, top_k {generation.top_k}, "
            f"top_p {generation.top_p:g})"
        )
    return f"{length}, {chosen}, by default"


WEIGHED: dict[Words, str] = {
    "mean": " over all words alike",
    "unusual": " over words by how unusual their attention is",
    "learned": " over words by learned weights",
}
"""How a compressor weighs words, after its kind."""


def describe_compressor(bundle: Bundle) -> str:
    """The compressor in a line."""
    facts = bundle.manifest.compressor
    trained = f", trained on {facts.trained_on}" if facts.trained_on else ""
    figures = "".join(f", {name} {value:g}" for name, value in facts.figures.items())
    usual = "auto" if facts.keep == "auto" else f"{facts.keep:.0%}"
    auto = facts.auto
    means = (
        f"; auto keeps {auto.share:.1%} of the relevance, {auto.least:.0%} to {auto.most:.0%}"
        if auto
        else ""
    )
    return (
        f"{facts.kind}{WEIGHED[facts.words]}{trained}{figures}; keeps {usual} where a request does not "
        f"say{means}"
    )


def describe_weights(manifest: Manifest) -> str:
    """Whether the weights are a checkpoint's."""
    if manifest.weights == "random":
        return "random: for measuring speed, and no answer means anything"
    return "trained"


def describe_operators(manifest: Manifest) -> str:
    """Whose operators the graphs are made of."""
    if manifest.operators == "standard":
        return "those of the ONNX standard, for any engine"
    return "contrib operators of onnxruntime (com.microsoft), for onnxruntime alone"


def _graph_rows(graph: GraphSpec) -> Iterable[tuple[str, str, str]]:
    """A row for each input and output; a layer's like the layer before share its row."""
    for kind, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        alike: dict[tuple[str, str, int], list[TensorSpec]] = {}
        for tensor in tensors:
            pattern = re.sub(r"\d+", "#", tensor.name)
            alike.setdefault((pattern, tensor.dtype, len(tensor.shape)), []).append(tensor)
        for group in alike.values():
            axes = ", ".join(map(str, group[0].shape))
            name = group[0].name
            if len(group) > 1:
                name = f"{name} … {group[-1].name}"
            yield kind, name, f"{group[0].dtype} [{axes}]"


def _engine_rows(manifest: Manifest, engine: EngineVariant) -> Iterable[tuple[str, ...]]:
    """A row for an engine, and one for each of its profiles."""
    from foveate.runtime.backends.trt.fit import NAMES
    from foveate.runtime.backends.trt.ranges import largest
    from foveate.runtime.backends.trt.tensor_specs import engine_spec

    yield (
        f"{engine.target} {engine.role}",
        f"{NAMES[engine.library]} {engine.version}, {engine.precision}, "
        f"{f'{engine.decoder} decoder, ' if engine.decoder else ''}compute capability "
        f"{', '.join(engine.compute_capabilities)}",
        size(manifest.files[engine.file].bytes),
        *(["OUTDATED: build it again"] if outdated(manifest, engine) else []),
    )
    spec = engine_spec(manifest.graphs[engine.role], engine)
    axes = {tensor.name: tensor.shape for tensor in spec.inputs}
    for name, profile in engine.profiles.items():
        ranges = {
            axis: " ".join(str(shape[place]) for shape in span)
            for tensor, span in profile.shapes.items()
            for place, axis in enumerate(axes.get(tensor, []))
            if isinstance(axis, str)
        }
        ranges |= {
            tensor: " ".join(str(value[0]) for value in span)
            for tensor, span in profile.values.items()
        }
        if engine.decoder == "static":
            ranges["cache"] = str(largest(engine, "past.0.key", 2))
        yield f"  {name}", ", ".join(f"{axis} {span}" for axis, span in ranges.items())


def _parity(value: float | None) -> str:
    """A graph's parity as a clause."""
    return "" if value is None else f", {value:.1e} from transformers"


def _brief(value: Any) -> str:
    """A setting's value without its last digits."""
    if isinstance(value, list):
        return f"({' '.join(_brief(part) for part in value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
