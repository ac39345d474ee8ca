"""Checkpoint to bundle: load, note what transformers gives, write the graphs, compare, seal."""

import platform
from collections.abc import Callable
from contextlib import ExitStack
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
from foveate.atomic_write import writing
from foveate.bundle.manifest import (
    AxisRange,
    CompressorFacts,
    Generation,
    GraphSpec,
    ImageBackend,
    Limits,
    Manifest,
    Operators,
    Precision,
)
from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter
from foveate.errors import ExportError, KeepError, LimitError
from foveate.export import embeddings
from foveate.export.contrib.cases import contrib_cases
from foveate.export.contrib.compressor import compressor
from foveate.export.contrib.decoder import decoder
from foveate.export.contrib.merge import merge
from foveate.export.parity import Case, compare
from foveate.export.plans import plans
from foveate.export.quantization.draft import Draft
from foveate.export.quantization.options import QuantizationOptions, check_options, quantized
from foveate.export.quantization.quantize import quantization_stages, quantize
from foveate.export.quantization.questions import choose_questions
from foveate.export.reference import reference
from foveate.export.trace import save_graph, write_graph
from foveate.modeling.attention import GROUPED
from foveate.modeling.base import TorchFamily
from foveate.modeling.cast_weights import cast_weights
from foveate.modeling.checkpoint import DTYPES, Checkpoint, release
from foveate.modeling.f_theta import FTheta
from foveate.modeling.families import torch_family
from foveate.modeling.random_weights import count_parameters

STAGES = (
    "weights", "reference", "vision", "embeddings", "compressor", "merge", "decoder", "parity", "seal",
)  # fmt: skip
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
ATTENTION = "eager"
VISUAL_TOKENS = 16384
NEW_TOKENS = 256
COMPARED = 1_000_000_000
"""Random weights are compared with transformers up to this many."""

Progress = Callable[[str, int, int], None]
"""Called as each stage begins: its name, its number from 1, how many there are."""


WriteGraph = Callable[[Path], tuple[dict[str, str], GraphSpec]]
"""Writes a graph into a folder: role to file name, and what the graph takes and gives."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user chooses.

    Attributes:
        compressor: "attention" ranks by A_v⁰ itself; a path is the weights of a trained f_θ.
        precision: What the graphs compute in; probe and f_θ always compute in float32.
        keep: The ratio of visual tokens kept where a request does not say, in (0, 1].
        visual_tokens: The most visual tokens of one request; None takes what the model's context allows.
        force: Replace a bundle that is already there.
        random_weights: Draw the weights at random and read only the checkpoint's configuration, to
            measure speed and memory; above `COMPARED` weights nothing is compared with transformers.
        operators: ONNX's own, which any engine takes, or also onnxruntime's contrib operators, faster there.
        quantization: What int8, fp8 and int4 are made from; see `QuantizationOptions`.
    """

    compressor: str | Path = "attention"
    precision: Precision = "fp32"
    keep: float = 0.25
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
    if not 0 < options.keep <= 1:
        raise KeepError(f"keep is {options.keep}; the default ratio must be in (0, 1]")
    check_options(options.precision, options.quantization)
    choose_questions(options.quantization)
    to = quantized(options.precision)
    base = options.quantization.base or "fp32" if to else options.precision
    if to and (options.operators != "standard" or options.random_weights):
        raise ExportError(
            f"{to} is made of standard operators and trained weights; leave out --operators and "
            "--random-weights, or export with --precision fp16"
        )
    checkpoint = Checkpoint.open(source)
    torch_half = torch_family(checkpoint.family)
    network, ranking = choose_compressor(options)

    names = STAGES if options.operators == "contrib" else [s for s in STAGES if s != "merge"]
    stages = (*names[:-1], *quantization_stages(options.precision, options.quantization), "seal")

    def stage(name: str) -> None:
        progress(name, stages.index(name) + 1, len(stages))

    with (
        BundleWriter(target, force=options.force) as writer,
        writing(writer.root),
        ExitStack() as stack,
    ):
        scratch = partial(
            TemporaryDirectory, dir=writer.path.parent, prefix=f".{writer.path.name}.scratch-"
        )
        stage("weights")
        preprocessing = families.settings_from_checkpoint(checkpoint.family, checkpoint.root)
        template = checkpoint.chat_template()
        tokenizer = Tokenizer.from_file(str(checkpoint.required("tokenizer.json")))
        dtype = DTYPES[base]
        if options.random_weights:
            model = torch_half.blank(checkpoint, dtype, ATTENTION)
        else:
            with scratch() as copies:
                cast = cast_weights(checkpoint, dtype, Path(copies))
                model = torch_half.load(cast, dtype, ATTENTION)
        compared = not options.random_weights or count_parameters(model) <= COMPARED
        facts = torch_half.facts(model)
        tokens = torch_half.tokens(checkpoint, model, tokenizer)
        limits = choose_limits(torch_half.context(model), options)
        generation = choose_generation(checkpoint)
        make_family = partial(
            families.create,
            checkpoint.family,
            preprocessing=preprocessing,
            tokenizer=tokenizer,
            chat_template=template,
            tokens=tokens,
        )
        family = make_family()

        cases: list[Case] = []
        if compared:
            stage("reference")
            cases = reference(torch_half, model, network, family)
            if options.operators == "contrib":
                cases = contrib_cases(cases, make_family(levels=True))

        files = {"tokenizer": "tokenizer.json", "chat_template": "chat_template.jinja"}
        (writer.root / files["tokenizer"]).write_bytes(
            checkpoint.required("tokenizer.json").read_bytes()
        )
        (writer.root / files["chat_template"]).write_text(template, encoding="utf-8")
        if network is not None:
            files["f_theta"] = "f_theta.safetensors"
            (writer.root / files["f_theta"]).write_bytes(Path(options.compressor).read_bytes())
        graphs: dict[str, GraphSpec] = {}
        folder = Path(stack.enter_context(scratch())) if to else writer.root
        axes: dict[str, AxisRange] = {}
        if options.operators == "contrib":
            writers = contrib_writers(torch_half, model, network, preprocessing)
        else:
            writers, axes = standard_writers(torch_half, model, network)
        for role in (name for name in STAGES if name in (*writers, embeddings.ROLE)):
            stage(role)
            if role == embeddings.ROLE:
                embeddings.write_embeddings(torch_half.language(model).embedding, folder)
                files[role] = embeddings.FILE
            else:
                written, graphs[role] = writers[role](folder)
                files |= written
        release(model)

        parity: dict[str, float] = {}
        if compared:
            stage("parity")
            paths = {role: folder / file for role, file in files.items()}
            with scratch() as copies:
                parity = compare(paths, base, options.operators, cases, Path(copies))

        manifest = Manifest(
            family=checkpoint.family,
            precision=options.precision,
            weights="random" if options.random_weights else "trained",
            operators=options.operators,
            model=facts,
            files={},
            graphs=graphs,
            vision_axes=axes,
            preprocessing=preprocessing,
            image_backend=ImageBackend(name="pillow", version=PIL.__version__),
            tokens=tokens,
            generation=generation,
            limits=limits,
            compressor=ranking,
            parity=parity,
            tools={
                "foveate": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in TOOLS},
            },
        )
        if to:
            draft = Draft(folder, manifest, family, tokenizer)
            made = quantize(draft, writer.root, to, base, options.quantization, cases, stage, say)
            files |= made.files
            manifest = replace(manifest, graphs=made.graphs, parity=made.parity)

        stage("seal")
        return writer.finish(replace(manifest, files=writer.entries(files)))


def standard_writers(
    torch_half: TorchFamily, model: Any, network: FTheta | None
) -> tuple[dict[str, WriteGraph], dict[str, AxisRange]]:
    """What writes each graph of standard operators, by role, and the vision graph's axes."""
    torch_half.set_attention(model, GROUPED)
    vision = torch_half.vision_module(model)
    made = plans(vision, torch_half.language(model), torch_half.facts(model), network)
    return {plan.role: partial(write_graph, plan) for plan in made}, vision.ranges


def contrib_writers(
    torch_half: TorchFamily, model: Any, network: FTheta | None, preprocessing: dict[str, Any]
) -> dict[str, WriteGraph]:
    """What writes each graph of contrib operators, by role; each is made at its turn: it copies weights."""
    language, facts, dtype = torch_half.language(model), torch_half.facts(model), model.dtype
    made: dict[str, Callable[[], ir.Model]] = {
        "vision": lambda: torch_half.contrib_vision(model, preprocessing),
        "compressor": lambda: compressor(language, facts, network, dtype),
        "merge": lambda: merge(facts.hidden_size, dtype),
        "decoder": lambda: decoder(language, facts, dtype),
    }

    def write(role: str, folder: Path) -> tuple[dict[str, str], GraphSpec]:
        """Make a graph and write it."""
        return save_graph(role, made[role](), folder, ".contrib")

    return {role: partial(write, role) for role in made}


def choose_compressor(options: ExportOptions) -> tuple[FTheta | None, CompressorFacts]:
    """The ranking network, if any, and what the manifest says of it."""
    if options.compressor == "attention":
        return None, CompressorFacts(
            kind="attention", keep=options.keep, trained_on=None, figures={}
        )
    network, header = FTheta.load(Path(options.compressor))
    figures = {
        name.removeprefix("figure."): float(value)
        for name, value in header.items()
        if name.startswith("figure.")
    }
    return network, CompressorFacts(
        kind="f_theta", keep=options.keep, trained_on=header.get("trained_on"), figures=figures
    )


def choose_limits(context: int, options: ExportOptions) -> Limits:
    """The bundle's limits: the model's context, and the visual tokens allowed in it."""
    wanted = (
        options.visual_tokens if options.visual_tokens is not None else min(context, VISUAL_TOKENS)
    )
    if not 1 <= wanted <= context:
        raise LimitError(
            f"{wanted} visual tokens do not fit the model's context of {context}; give fewer"
        )
    return Limits(visual_tokens=wanted, prompt_tokens=context)


def choose_generation(checkpoint: Checkpoint) -> Generation:
    """Stop tokens and penalties from generation_config.json, else from config.json."""
    penalty = {**checkpoint.config, **checkpoint.generation()}.get("repetition_penalty")
    return Generation(
        eos=checkpoint.stops(),
        repetition_penalty=float(penalty or 1.0),
        max_new_tokens=NEW_TOKENS,
    )
