"""Bundles and answers as plain data for --json, and as text for people."""

import dataclasses
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import msgspec

from foveate.bundle.manifest import (
    EngineVariant,
    GraphSpec,
    Manifest,
    Operators,
    TensorSpec,
    outdated,
)
from foveate.bundle.quantization_report import cost_facts, describe_cost
from foveate.bundle.reader import Bundle
from foveate.runtime.answer import Answer, Timing
from foveate.runtime.backends.trt.fit import NAMES
from foveate.runtime.backends.trt.ranges import largest
from foveate.runtime.backends.trt.tensor_specs import engine_spec
from foveate.terminal import duration, plain, plural, size, table

OPERATORS: dict[Operators, str] = {
    "standard": "those of ONNX, for any engine",
    "onnxruntime": "fused ones of onnxruntime's own (com.microsoft), for onnxruntime alone",
}
STAGES = ("preprocess", "vision", "compress", "prefill", "decode")


def bundle_bytes(bundle: Bundle) -> int:
    """The size of all files that the manifest names."""
    return sum(entry.bytes for entry in bundle.manifest.files.values())


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """The manifest as plain data, and where the bundle is."""
    return {"root": str(bundle.root), **msgspec.to_builtins(bundle.manifest)}


def describe_bundle(bundle: Bundle) -> str:
    """All that `foveate inspect` shows."""
    manifest = bundle.manifest
    model, limits = manifest.model, manifest.limits
    rope = f"theta {model.rope.theta:g}"
    if model.rope.sections:
        rope += f", sections {' '.join(map(str, model.rope.sections))}"
    general = [
        ("family", manifest.family),
        ("precision", manifest.precision),
        ("weights", describe_weights(manifest)),
        ("operators", OPERATORS[manifest.operators]),
        ("size", f"{size(bundle_bytes(bundle))} in {plural(len(manifest.files), 'file')}"),
        (
            "model",
            f"{plural(model.layers, 'layer')}, hidden size {model.hidden_size}, "
            f"{plural(model.heads, 'head')} of {model.head_dim} ({model.kv_heads} for keys and "
            f"values), vocabulary {model.vocabulary}",
        ),
        ("rope", rope),
        ("compressor", describe_compressor(bundle)),
        (
            "limits",
            f"{limits.visual_tokens} visual tokens, {limits.prompt_tokens} tokens in all",
        ),
        ("answers", f"up to {plural(manifest.generation.max_new_tokens, 'token')} by default"),
        (
            "pictures",
            ", ".join(f"{key} {_brief(value)}" for key, value in manifest.preprocessing.items()),
        ),
        ("", f"checked with {manifest.image_backend.name} {manifest.image_backend.version}"),
        ("written by", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())),
    ]
    lines = [
        (name if first else "", line) for name, text in general for first, line in _wrapped(text)
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


def describe_compressor(bundle: Bundle) -> str:
    """The compressor in a line."""
    facts = bundle.manifest.compressor
    trained = f", trained on {facts.trained_on}" if facts.trained_on else ""
    figures = "".join(f", {name} {value:g}" for name, value in facts.figures.items())
    return f"{facts.kind}{trained}{figures}; keeps {facts.keep:.0%} where a request does not say"


def describe_weights(manifest: Manifest) -> str:
    """Whether the weights are a checkpoint's."""
    if manifest.weights == "random":
        return "random: for measuring speed, and no answer means anything"
    return "trained"


def describe_parity(parity: dict[str, float]) -> str:
    """How far each graph is from the checkpoint run by transformers."""
    return table((role, f"{value:.1e}") for role, value in parity.items())


def export_facts(bundle: Bundle) -> dict[str, Any]:
    """What `foveate export --json` says."""
    manifest = bundle.manifest
    return {
        "root": str(bundle.root),
        "bytes": bundle_bytes(bundle),
        "family": manifest.family,
        "precision": manifest.precision,
        "weights": manifest.weights,
        "operators": manifest.operators,
        "compressor": manifest.compressor.kind,
        "keep": manifest.compressor.keep,
        "visual_tokens": manifest.limits.visual_tokens,
        "parity": manifest.parity,
        "quantization": cost_facts(bundle),
    }


def describe_export(bundle: Bundle) -> str:
    """What `foveate export` says when it is done."""
    manifest, cost = bundle.manifest, cost_facts(bundle)
    return "\n".join(
        [
            f"{bundle.root}: {manifest.family} in {manifest.precision}, "
            f"{size(bundle_bytes(bundle))} in {plural(len(manifest.files), 'file')}",
            f"compressor: {describe_compressor(bundle)}",
            *([f"weights: {describe_weights(manifest)}"] if manifest.weights == "random" else []),
            "largest difference from transformers, over the largest value:",
            describe_parity(manifest.parity) if manifest.parity else "  not compared",
            *([describe_cost(cost)] if cost else []),
        ]
    )


def answer_facts(answer: Answer) -> dict[str, Any]:
    """An answer as plain data."""
    visual = answer.visual
    return {
        "text": answer.text,
        "token_ids": [int(token) for token in answer.token_ids],
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cache_bytes": answer.cache_bytes,
        "visual": {
            "total": visual.total,
            "kept": visual.kept,
            "indices": plain(visual.indices),
            "relevance": plain(visual.relevance),
            "grids": [list(grid) for grid in visual.grids],
        },
        "timing": dataclasses.asdict(answer.timing),
    }


def describe_answer(answer: Answer) -> str:
    """What was kept and how long it took, in a line or two."""
    visual, timing = answer.visual, answer.timing
    ending = " (cut at the limit)" if answer.finish_reason == "length" else ""
    return (
        f"kept {visual.kept} of {visual.total} visual tokens; first token after "
        f"{duration(timing.first_token)}, {plural(len(answer.token_ids), 'token')}{ending} in "
        f"{duration(timing.total)}\n({describe_stages(timing)}; KV cache {size(answer.cache_bytes)})"
    )


def describe_stages(timing: Timing) -> str:
    """Seconds by stage, in a line."""
    return ", ".join(f"{stage} {duration(getattr(timing, stage))}" for stage in STAGES)


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


def _wrapped(text: str) -> Iterable[tuple[bool, str]]:
    """A text's lines at a width that fits beside their names, and which is the first."""
    return ((number == 0, line) for number, line in enumerate(textwrap.wrap(text, 84)))


def _brief(value: Any) -> str:
    """A setting's value without its last digits."""
    if isinstance(value, list):
        return f"({' '.join(_brief(part) for part in value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
