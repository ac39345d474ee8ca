"""Checkpoint to bundle: load, note what transformers gives, write the graphs, compare, seal."""

import importlib
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast

import onnx_ir as ir
import PIL
import torch
from msgspec.structs import replace
from tokenizers import Tokenizer

from foveate import families
from foveate._version import __version__
from foveate.atomic_write import writing
from foveate.bundle.manifest import (
    CompressorFacts,
    Generation,
    GraphSpec,
    ImageBackend,
    Limits,
    Manifest,
    ModelFacts,
    Operators,
    Precision,
)
from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter
from foveate.errors import ExportError, KeepError, LimitError
from foveate.export.parity import Case, compare
from foveate.export.quantization.draft import Draft
from foveate.export.quantization.options import QuantizationOptions, check_options, quantized
from foveate.export.quantization.quantize import quantization_stages, quantize
from foveate.export.quantization.questions import choose_questions
from foveate.export.trace import GraphPlan, save_graph, write_graph
from foveate.families.base import Family
from foveate.modeling.cast_weights import recast
from foveate.modeling.checkpoint import DTYPES, Checkpoint, release
from foveate.modeling.f_theta import FTheta
from foveate.modeling.random_weights import count_parameters

STAGES = (
    "weights", "reference", "vision", "embeddings", "compressor", "merge", "decoder", "parity", "seal",
)  # fmt: skip
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
VISUAL_TOKENS = 16384
NEW_TOKENS = 256
COMPARED = 1_000_000_000
"""Random weights are compared with transformers up to this many."""

Progress = Callable[[str, int, int], None]
"""Called as each stage begins: its name, its number from 1, how many there are."""


class FamilyExport(Protocol):
    """The torch half of a model family: a module of these functions."""

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
        """Load the weights as `dtype`."""
        ...

    def blank(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
        """Build the model as `dtype` with random weights; only config.json is read."""
        ...

    def facts(self, model: Any) -> ModelFacts:
        """The sizes that the manifest records."""
        ...

    def context(self, model: Any) -> int:
        """The longest sequence the language model was made for, in tokens."""
        ...

    def tokens(self, checkpoint: Checkpoint, model: Any, tokenizer: Tokenizer) -> dict[str, int]:
        """Ids of the control tokens that the prompt layout needs."""
        ...

    def reference(self, model: Any, network: FTheta | None, family: Family) -> list[Case]:
        """What transformers' eager code gives on a fixed request, graph by graph."""
        ...

    def plans(self, model: Any, network: FTheta | None) -> list[GraphPlan]:
        """How each graph of a bundle is made."""
        ...

    def fused(
        self, model: Any, network: FTheta | None, preprocessing: dict[str, Any]
    ) -> dict[str, Callable[[], ir.Model]]:
        """How each graph is made of onnxruntime's own operators, by role."""
        ...

    def fused_cases(self, cases: list[Case], family: Family) -> list[Case]:
        """What `reference` gave, put as the fused graphs take and give it."""
        ...


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
        operators: ONNX's own, which any engine takes, or those that onnxruntime fuses, faster there.
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
    torch_half = family_export(checkpoint.family)
    network, compressor = choose_compressor(options)

    names = STAGES if options.operators == "onnxruntime" else [s for s in STAGES if s != "merge"]
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
            model = torch_half.blank(checkpoint, dtype)
        else:
            with scratch() as recasted:
                model = torch_half.load(recast(checkpoint, dtype, Path(recasted)), dtype)
        compared = not options.random_weights or count_parameters(model) <= COMPARED
        facts = torch_half.facts(model)
        tokens = torch_half.tokens(checkpoint, model, tokenizer)
        limits = choose_limits(torch_half.context(model), options)
        generation = choose_generation(checkpoint)
        family = families.create(
            checkpoint.family,
            preprocessing=preprocessing,
            tokenizer=tokenizer,
            chat_template=template,
            tokens=tokens,
        )

        cases: list[Case] = []
        if compared:
            stage("reference")
            cases = torch_half.reference(model, network, family)
            if options.operators == "onnxruntime":
                cases = torch_half.fused_cases(cases, family)

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
        for role, write in writers(torch_half, model, network, preprocessing, options).items():
            stage(role)
            written, graphs[role] = write(folder)
            files |= written
        release(model)

        parity: dict[str, float] = {}
        if compared:
            stage("parity")
            paths = {role: folder / files[role] for role in graphs}
            with scratch() as twins:
                parity = compare(paths, base, options.operators, cases, Path(twins))

        manifest = Manifest(
            family=checkpoint.family,
            precision=options.precision,
            weights="random" if options.random_weights else "trained",
            operators=options.operators,
            model=facts,
            files={},
            graphs=graphs,
            preprocessing=preprocessing,
            image_backend=ImageBackend(name="pillow", version=PIL.__version__),
            tokens=tokens,
            generation=generation,
            limits=limits,
            compressor=compressor,
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


def writers(
    torch_half: FamilyExport,
    model: Any,
    network: FTheta | None,
    preprocessing: dict[str, Any],
    options: ExportOptions,
) -> dict[str, Callable[[Path], tuple[dict[str, str], GraphSpec]]]:
    """What writes each graph into a folder, by role, in the order of the stages."""
    found: dict[str, Callable[[Path], tuple[dict[str, str], GraphSpec]]] = {
        plan.role: partial(write_graph, plan) for plan in torch_half.plans(model, network)
    }
    if options.operators == "onnxruntime":
        made = torch_half.fused(model, network, preprocessing)
        found |= {role: partial(_make_and_save, role, make) for role, make in made.items()}
    return {role: found[role] for role in STAGES if role in found}


def _make_and_save(
    role: str, make: Callable[[], ir.Model], folder: Path
) -> tuple[dict[str, str], GraphSpec]:
    """Make a graph only when it is its turn: it holds copies of weights."""
    return save_graph(role, make(), folder)


def family_export(family: str) -> FamilyExport:
    """The torch half of a family that `Checkpoint.open` knows."""
    return cast(FamilyExport, importlib.import_module(f"foveate.export.{family}"))


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
