"""Checkpoint to bundle: load, note what transformers gives, write the graphs, compare, seal."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import PIL
from msgspec.structs import replace
from tokenizers import Tokenizer

from foveate import families
from foveate._version import __version__
from foveate.atomic_write import scratch_folder, writing
from foveate.bundle import manifest as schema
from foveate.bundle.manifest import (
    CONTRIB_SUFFIX,
    EMBEDDINGS,
    GATHER,
    AutoKeep,
    GraphSpec,
    Manifest,
    Operators,
    Precision,
    quantized,
)
from foveate.bundle.reader import Bundle
from foveate.bundle.words import attention_words
from foveate.bundle.writer import BundleWriter
from foveate.errors import BundleError, CheckpointError, KeepError, LimitError, PromptError
from foveate.export.contrib.cases import checkpoint_cases
from foveate.export.contrib.compressor import compressor as compressor_graph
from foveate.export.contrib.decoder import decoder
from foveate.export.contrib.merge import merge
from foveate.export.embeddings import write_embeddings
from foveate.export.gather_visual import gather_visual
from foveate.export.options import check_choices
from foveate.export.parity import Case, compare
from foveate.export.plans import plans
from foveate.export.quantization.draft import Draft
from foveate.export.quantization.options import QuantizationOptions
from foveate.export.quantization.quantize import quantization_stages, quantize
from foveate.export.quantization.questions import choose_questions
from foveate.export.trace import Written, save_graph, write_graph
from foveate.modeling.attention import GROUPED
from foveate.modeling.base import TorchFamily
from foveate.modeling.cast_weights import cast_weights
from foveate.modeling.checkpoint import DTYPES, Checkpoint, release
from foveate.modeling.checkpoint_tokenizer import check_rows, tokenizer_bytes
from foveate.modeling.f_theta import FTheta, auto_keep_of
from foveate.modeling.families import torch_family
from foveate.modeling.random_weights import count_parameters
from foveate.modeling.ranker import Ranker
from foveate.modeling.weight_files import check_weights
from foveate.runtime.keep import AUTO, Keep

STAGES = (
    "weights", "reference", "vision", GATHER, "embeddings", "compressor", "merge", "decoder", "parity", "seal",
)  # fmt: skip
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
ATTENTION = "eager"
VISUAL_TOKENS = 16384
COMPARED = 1_000_000_000
"""Random weights are compared with transformers up to this many."""

Progress = Callable[[str, int, int], None]
"""Called as each stage begins: its name, its number from 1, how many there are."""

Write = Callable[[Path], Written]
"""Writes a graph into a folder."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user chooses.

    Attributes:
        compressor: "attention:mean" ranks by A_v⁰ itself, "attention:unusual" weighs the instruction's
            tokens by how unusual their attention is, "attention" is the better of both; a path is the
            weights of a trained f_θ.
        precision: What the graphs compute in; probe and f_θ always compute in float32.
        keep: What is kept of the visual tokens where a request does not say: a ratio in (0, 1], or "auto".
        auto_keep: What "auto" keeps; None takes what the compressor's file was calibrated to, if it was.
        visual_tokens: The most visual tokens of one request; None takes what the model's context allows.
        force: Replace a bundle that is already there.
        random_weights: Draw the weights at random and read only the checkpoint's configuration, to
            measure speed and memory; above `COMPARED` weights nothing is compared with transformers.
        operators: ONNX's own, which any engine takes, or also onnxruntime's contrib operators, faster there.
        quantization: What int8, fp8 and int4 are made from; see `QuantizationOptions`.
    """

    compressor: str | Path = "attention"
    precision: Precision = "fp32"
    keep: Keep = 0.25
    auto_keep: AutoKeep | None = None
    visual_tokens: int | None = None
    force: bool = False
    random_weights: bool = False
    operators: Operators = "standard"
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)


def export(
    source: str | Path,
    target: str | Path,
    options: ExportOptions = ExportOptions(),
    progress: Progress = lambda stage, number, total: None,
    say: Callable[[str], None] = lambda detail: None,
) -> Bundle:
    """Export a checkpoint to a bundle, and compare every graph with transformers before it is done.

    Large random weights are not compared: a bundle of them answers nothing, and it would take long.

    Args:
        source: A checkpoint folder, or a hub id where there is a network.
        target: The bundle's folder; written aside and renamed when whole.
        options: See `ExportOptions`.
        progress: Told as each stage begins.
        say: Told how far a stage is.

    Raises:
        DataError: Data to calibrate with that is missing or cannot be used.
        CheckpointError: The checkpoint cannot be read, or is of no known family.
        ExportError: A graph could not be written; ParityError: one does not agree with transformers.
        OutputExistsError: `target` is there, and `force` was not given.
        OutputError: It could not be written.
    """
    check(options)
    checkpoint = Checkpoint.open(source)
    torch_half = torch_family(checkpoint.family)
    torch_half.check(checkpoint)
    checkpoint.generation()
    ranker, compressor = choose_compressor(options)
    stages = choose_stages(options, torch_half.taps)
    base = options.precision
    if quantized(options.precision):
        base = options.quantization.base or "fp32"

    def begin(stage: str) -> None:
        progress(stage, stages.index(stage) + 1, len(stages))

    with (
        BundleWriter(target, force=options.force) as writer,
        writing(writer.root),
        scratch_folder(writer.path) as scratch,
    ):
        begin("weights")
        tokenizer = checkpoint.tokenizer()
        files = write_texts(checkpoint, tokenizer, options, writer.root)
        preprocessing = families.settings_from_checkpoint(checkpoint.family, checkpoint.root)
        if not options.random_weights:
            check_weights(checkpoint, half=base == "fp16", say=say)
        model = load(torch_half, checkpoint, options, DTYPES[base], str(scratch))
        manifest = describe(
            torch_half, checkpoint, model, tokenizer, options, preprocessing, compressor
        )
        manifest = replace(manifest, files=writer.entries(files))

        cases: list[Case] = []
        compared = not options.random_weights or count_parameters(model) <= COMPARED
        if compared:
            begin("reference")
            with blaming(checkpoint):
                bundle = Bundle(writer.root, manifest)
                cases = checkpoint_cases(torch_half, model, ranker, bundle)

        folder = scratch if quantized(options.precision) else writer.root
        writers, axes = graph_writers(torch_half, model, ranker, manifest)
        graphs: dict[str, GraphSpec] = {}
        for role in (stage for stage in stages if stage in writers):
            begin(role)
            written, specs = writers[role](folder)
            files, graphs = files | written, graphs | specs
        release(model)

        parity: dict[str, float] = {}
        if compared:
            begin("parity")
            paths = {role: folder / file for role, file in files.items()}
            parity = compare(paths, base, options.operators, cases, scratch / "copies")
        manifest = replace(manifest, graphs=graphs, vision_axes=axes, parity=parity)

        if quantized(options.precision):
            draft = Draft(Bundle(writer.root, manifest), folder, base)
            written, manifest = quantize(
                draft, writer.root, options.quantization, cases, begin, say
            )
            files |= written

        begin("seal")
        return writer.finish(replace(manifest, files=writer.entries(files)))


def check(options: ExportOptions) -> None:
    """Refuse what cannot be, before anything is read."""
    check_choices(
        compressor=options.compressor,
        precision=options.precision,
        keep=options.keep,
        auto_keep=options.auto_keep,
        visual_tokens=options.visual_tokens,
        random_weights=options.random_weights,
        operators=options.operators,
        quantization=options.quantization,
    )
    choose_questions(options.quantization)


def choose_stages(options: ExportOptions, taps: int) -> tuple[str, ...]:
    """The stages of an export, in order, of a family whose visual tokens are of so many rows."""
    without = {"merge": options.operators != "contrib", GATHER: not taps}
    *stages, seal = (name for name in STAGES if not without.get(name))
    return (*stages, *quantization_stages(options.precision, options.quantization), seal)


def load(
    torch_half: TorchFamily,
    checkpoint: Checkpoint,
    options: ExportOptions,
    dtype: Any,
    scratch: str,
) -> Any:
    """The model in the precision that its float graphs are to have."""
    if options.random_weights:
        return torch_half.blank(checkpoint, dtype, ATTENTION)
    return load_cast(torch_half, checkpoint, dtype, scratch)


def load_cast(
    torch_half: TorchFamily, checkpoint: Checkpoint, dtype: Any, scratch: str | None = None
) -> Any:
    """A checkpoint's model, its weights cast in a folder that is removed again."""
    with TemporaryDirectory(dir=scratch) as copies:
        return torch_half.load(cast_weights(checkpoint, dtype, Path(copies)), dtype, ATTENTION)


@contextmanager
def blaming(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn a prompt that cannot be made into a CheckpointError: only the checkpoint is at fault."""
    try:
        yield
    except (PromptError, BundleError) as error:
        raise CheckpointError(
            f"{checkpoint.name}: no prompt can be made with its chat template and tokenizer: {error}"
        ) from error


def write_texts(
    checkpoint: Checkpoint, tokenizer: Tokenizer, options: ExportOptions, folder: Path
) -> dict[str, str]:
    """Write what is copied from elsewhere; file names by role."""
    contents = {
        "tokenizer.json": tokenizer_bytes(checkpoint.text_root, tokenizer),
        "chat_template.jinja": checkpoint.chat_template().encode(),
    }
    if attention_words(options.compressor) is None:
        contents["f_theta.safetensors"] = Path(options.compressor).read_bytes()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {Path(name).stem: name for name in contents}


def describe(
    torch_half: TorchFamily,
    checkpoint: Checkpoint,
    model: Any,
    tokenizer: Tokenizer,
    options: ExportOptions,
    preprocessing: dict[str, Any],
    compressor: schema.CompressorFacts,
) -> Manifest:
    """What the manifest says before there are graphs."""
    facts = torch_half.facts(model)
    file = checkpoint.shown(checkpoint.beside_text("tokenizer.json"))
    check_rows(tokenizer, facts.vocabulary, file)
    tools = {name: version(name) for name in TOOLS}
    return Manifest(
        family=checkpoint.family,
        precision=options.precision,
        weights="random" if options.random_weights else "trained",
        operators=options.operators,
        model=facts,
        files={},
        graphs={},
        vision_axes={},
        preprocessing=preprocessing,
        image_backend=schema.ImageBackend(name="pillow", version=PIL.__version__),
        tokens=torch_half.tokens(checkpoint, model, tokenizer),
        generation=checkpoint.generation(facts.vocabulary),
        limits=choose_limits(torch_half.context(model), options),
        compressor=compressor,
        parity={},
        tools={"foveate": __version__, "python": platform.python_version(), **tools},
    )


def choose_compressor(options: ExportOptions) -> tuple[Ranker, schema.CompressorFacts]:
    """What ranks, and what the manifest says of it."""
    words, header = attention_words(options.compressor), dict[str, str]()
    if words is None:
        network, header = FTheta.load(Path(options.compressor))
        ranker = Ranker(network)
    else:
        ranker = Ranker(words=words)
    names = [name for name in header if name.startswith("figure.")]
    auto = options.auto_keep or auto_keep_of(header)
    if options.keep == AUTO and auto is None:
        raise KeepError(
            f"keep is 'auto', and {options.compressor} does not say what that keeps; run `foveate "
            "calibrate auto-keep` on it, or give --auto-keep SHARE,LEAST,MOST"
        )
    return ranker, schema.CompressorFacts(
        kind="attention" if ranker.network is None else "f_theta",
        words=ranker.words.form,
        keep=options.keep,
        auto=auto,
        trained_on=header.get("trained_on"),
        figures={name.removeprefix("figure."): float(header[name]) for name in names},
    )


def choose_limits(context: int, options: ExportOptions) -> schema.Limits:
    """The bundle's limits: the model's context, and the visual tokens allowed in it."""
    wanted = min(context, VISUAL_TOKENS) if options.visual_tokens is None else options.visual_tokens
    if not 1 <= wanted <= context:
        raise LimitError(
            f"{wanted} visual tokens do not fit the model's context of {context}; give fewer"
        )
    return schema.Limits(visual_tokens=wanted, prompt_tokens=context)


def graph_writers(
    torch_half: TorchFamily, model: Any, ranker: Ranker, manifest: Manifest
) -> tuple[dict[str, Write], dict[str, schema.AxisRange]]:
    """What writes each graph and the embeddings, by role, and the standard vision graph's axes."""
    language, facts, dtype = torch_half.language(model), manifest.model, model.dtype
    table: dict[str, Write] = {EMBEDDINGS: partial(write_embeddings, language.embedding)}
    # Each is made at its turn: it copies weights.
    makers: dict[str, Callable[[], ir.Model]] = {}
    if torch_half.taps:
        makers[GATHER] = lambda: gather_visual(facts.hidden_size, dtype, torch_half.taps)
    suffix = ".onnx" if manifest.operators == "standard" else CONTRIB_SUFFIX

    def write(role: str, folder: Path) -> Written:
        """Make a graph and write it."""
        return save_graph(role, makers[role](), folder, suffix)

    if manifest.operators == "standard":
        torch_half.set_attention(model, GROUPED)
        vision = torch_half.vision_module(model)
        made = plans(vision, language, facts, ranker)
        table |= {plan.role: partial(write_graph, plan) for plan in made}
        return table | {role: partial(write, role) for role in makers}, vision.ranges

    makers |= {
        "vision": lambda: torch_half.contrib_vision(model, manifest.preprocessing),
        "compressor": lambda: compressor_graph(language, facts, ranker, dtype),
        "merge": lambda: merge(facts.hidden_size, dtype),
        "decoder": lambda: decoder(language, facts, dtype),
    }
    return table | {role: partial(write, role) for role in makers}, {}
