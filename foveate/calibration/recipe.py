"""From a checkpoint and questions to a trained f_θ with its figures, step by step; each step is done once."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from foveate.atomic_write import replace_file, writing
from foveate.bundle.reader import file_digest
from foveate.calibration import held_out
from foveate.calibration.answers import Rule
from foveate.calibration.auto_keep import (
    AutoKeepOptions,
    auto_keep_result_facts,
    calibrate_auto_keep,
)
from foveate.calibration.dataset import read_records
from foveate.calibration.device import pick_device
from foveate.calibration.drawing.show import show
from foveate.calibration.evaluation.checkpoint import Checkpoint
from foveate.calibration.evaluation.evaluate import evaluate
from foveate.calibration.evaluation.options import EvaluateOptions
from foveate.calibration.evaluation.rankings import MODES
from foveate.calibration.evaluation.result import evaluation_facts
from foveate.calibration.held_out import HELD_OUT, TRAINING, Line
from foveate.calibration.progress import Meter
from foveate.calibration.provenance import checkpoint_facts
from foveate.calibration.recipe_figures import short_names
from foveate.calibration.relevance.answered import Judging, ask
from foveate.calibration.relevance.collect import CollectOptions, collect
from foveate.calibration.relevance.manifest import read_manifest
from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.torch_model import NEW_TOKENS, TorchModel
from foveate.calibration.training.options import TrainingOptions
from foveate.calibration.training.outputs import Outputs
from foveate.calibration.training.progress import TrainingProgress
from foveate.calibration.training.train import train_store
from foveate.errors import BackendError, DataError, OutputError, OutputExistsError
from foveate.modeling.f_theta import FTheta

SETTINGS, FIGURES = "settings.json", "figures.json"
MAPS, WEIGHTS, AUTO_KEEP = "maps", "f_theta.safetensors", "auto-keep.json"
EVALUATION, ANSWERS, PICTURE = "evaluation.json", "answers.jsonl", "relevance.png"
STEPS = ("questions", "relevance maps", "training", "keep=auto", "held-out answers", "picture")
MEASURED = ("own", "other", "random", "smaller")
"""What held-out answers are counted by; `foveate evaluate` has more."""
SHOWN = 4
"""How many held-out questions are drawn."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """How an f_θ is made; see the options of each step.

    Attributes:
        own_answers: Take the model's own answers as right: the questions need none.
        held_out: The share of pictures that is measured on and not trained on, in (0, 1).
        keep: Ratios or counts to measure at, with commas between.
        target: The share of answers that keep="auto" is to keep.
        training: How f_θ is trained; where it is written is the recipe's.
        mode: How relevance is computed.
        rule: When an answer is right.
        dtype: What the model computes in: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
        max_new_tokens: The longest answer.
        limit: Take only so many questions, from the first.
        force: Begin afresh where there is an f_θ of other settings.
    """

    own_answers: bool = False
    held_out: float = 0.2
    keep: str = "0.5,0.25,0.1"
    target: float = 0.99
    training: TrainingOptions = field(default_factory=TrainingOptions)
    mode: str = "auto"
    rule: Rule = "exact"
    dtype: str = "fp32"
    device: str = "auto"
    max_new_tokens: int = NEW_TOKENS
    limit: int | None = None
    force: bool = False

    def shared(self) -> dict[str, Any]:
        """What several steps take by the same name."""
        names = ("rule", "dtype", "device", "max_new_tokens")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """What must be the same for an earlier run to go on."""
        own = {name: value for name, value in asdict(self).items() if name not in LOOSE}
        return own | {"training": self.training.decisive()}


LOOSE = ("device", "force", "training")


def run_recipe(
    source: str,
    questions: Path,
    out: Path,
    options: RecipeOptions,
    *,
    quiet: bool = True,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Make an f_θ and measure it, or go on with what an earlier run left.

    Args:
        source: The checkpoint: a folder or a hub id.
        questions: A JSON Lines file, or a folder of them.
        out: The folder of all that is made; its parent must exist.
        options: How.
        quiet: Do not show how far the steps are.
        say: Told as each step begins.

    Returns:
        All figures: what FIGURES holds.

    Raises:
        FoveateError: What a step raises.
        OutputExistsError: Something else is at `out`, or a run of other settings.
        BackendError: Several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BackendError(
            "calibrate run is one process; under accelerate launch run calibrate relevance and "
            "evaluate, which share their work, and calibrate train by itself"
        )
    options.training.check()
    if not 0 < options.held_out < 1:
        raise DataError(f"held-out is {options.held_out}; give a share of pictures in (0, 1)")
    lines = held_out.read_lines(questions, not options.own_answers)
    claim(source, out, lines, options)

    def begin(step: str) -> None:
        say(f"[{STEPS.index(step) + 1}/{len(STEPS)}] {step}")

    begin("questions")
    part_questions(source, out, lines, options, quiet)
    begin("relevance maps")
    collecting = CollectOptions(
        mode=options.mode,  # type: ignore[arg-type]
        own_answers=options.own_answers,
        **options.shared(),
    )
    collect(source, out / TRAINING, out / MAPS, collecting, quiet=quiet)
    begin("training")
    train_once(out, options, quiet)
    begin("keep=auto")
    calibrate_once(source, out, options, quiet)
    begin("held-out answers")
    evaluation = evaluate_once(source, out, options, quiet)
    begin("picture")
    draw_once(source, out, options)
    figures = gather_figures(source, out, options, evaluation)
    write_json(out / FIGURES, figures)
    return figures


def claim(source: str, out: Path, lines: list[Line], options: RecipeOptions) -> None:
    """Make the folder ready: new, of the same settings, or cleared."""
    if "," in str(out):
        raise OutputError(f"{out} has a comma, which parts names of rankings. Give another path.")
    with writing(out):
        if not os.path.lexists(out):
            out.mkdir()
    asked = [[line.document, line.pictures] for line in lines[: options.limit]]
    settings = {
        **checkpoint_facts(source),
        "questions": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        **options.settings(),
    }
    name = out / SETTINGS
    if not out.is_dir() or (not name.is_file() and any(out.iterdir())):
        raise OutputExistsError(f"{out} is there and holds no run of this. Give another path.")
    if name.is_file():
        before = json.loads(name.read_bytes())
        changed = [key for key, value in settings.items() if before.get(key) != value]
        changed = [key for key in changed if key != "checkpoint"]
        if not changed:
            return
        if not options.force:
            raise OutputExistsError(
                f"{out} was made with another {changed[0]}. Give another path, or begin afresh with force "
                "(--force)."
            )
    clear(out)
    write_json(name, settings)


def clear(out: Path) -> None:
    """Delete what an earlier run made, and nothing else."""
    outputs = Outputs.of(out / WEIGHTS, None, None)
    with writing(out):
        for folder in (out / MAPS, outputs.log_dir):
            shutil.rmtree(folder, ignore_errors=True)
        names = (TRAINING, HELD_OUT, AUTO_KEEP, EVALUATION, ANSWERS, PICTURE, FIGURES, SETTINGS)
        for path in (*(out / name for name in names), outputs.weights, outputs.plot, outputs.state):
            path.unlink(missing_ok=True)


def part_questions(
    source: str, out: Path, lines: list[Line], options: RecipeOptions, quiet: bool
) -> None:
    """Write the two files of questions; the model's own answers stand in the one to measure on."""
    if (out / TRAINING).is_file():
        return
    training, measured = held_out.part(
        lines, options.held_out, options.training.seed, options.limit
    )
    answers: dict[str, str] = {}
    if options.own_answers:
        answers = own_answers(source, measured, options, quiet)
        measured = [line for line in measured if line.record.id in answers]
        if not measured:
            raise DataError("no held-out question gets an answer; give other questions")

    def answered(line: Line) -> dict[str, Any]:
        """What is changed of a held-out record."""
        return {"answers": [answers[line.record.id]]} if answers else {}

    held_out.write_lines(out / HELD_OUT, measured, answered)
    held_out.write_lines(out / TRAINING, training)


def own_answers(
    source: str, lines: list[Line], options: RecipeOptions, quiet: bool
) -> dict[str, str]:
    """The model's answers with all visual tokens, by id; those that are empty are left out."""
    meter = Meter(("answered", "unanswered"), quiet)
    with meter.stage(f"loading {source}"):
        model = TorchModel.load(source, options.dtype, str(pick_device(options.device)))
    meter.start(len(lines), 1)
    judging = Judging(options.rule, False, True, options.max_new_tokens)
    found = {}
    for line in lines:
        asked = ask(model, line.record, judging)
        usable = not isinstance(asked, str) and asked.usable
        if not isinstance(asked, str) and usable:
            found[line.record.id] = asked.text
        meter.step("answered" if usable else "unanswered")
    return found


def train_once(out: Path, options: RecipeOptions, quiet: bool) -> None:
    """Train f_θ, or go on where its training was stopped."""
    if (out / WEIGHTS).is_file() and not Outputs.of(out / WEIGHTS, None, None).state.exists():
        return
    if quiet:
        train_store(out / MAPS, out / WEIGHTS, options.training)
        return
    with TrainingProgress() as shown:
        train_store(out / MAPS, out / WEIGHTS, options.training, shown)


def calibrate_once(source: str, out: Path, options: RecipeOptions, quiet: bool) -> None:
    """Calibrate keep="auto"; where the target is out of reach, what is written says why."""
    if (out / AUTO_KEEP).is_file():
        return
    how = AutoKeepOptions(
        target=options.target, seed=options.training.seed, force=True, **options.shared()
    )
    try:
        found = calibrate_auto_keep(source, out / HELD_OUT, str(out / WEIGHTS), how, quiet=quiet)
        assert found is not None
        facts = auto_keep_result_facts(found) | {"compressor": WEIGHTS}
    except DataError as error:
        facts = {"not_calibrated": str(error)}
    write_json(out / AUTO_KEEP, facts)


def evaluate_once(source: str, out: Path, options: RecipeOptions, quiet: bool) -> dict[str, Any]:
    """Measure f_θ on the held-out questions against what it has to beat."""
    path = out / EVALUATION
    if not path.is_file():
        mode = read_manifest(out / MAPS).mode
        relevance = next(name for name, one in MODES.items() if one == mode)
        how = EvaluateOptions(
            options.keep,
            MEASURED,
            seed=options.training.seed,
            rule=options.rule,
            max_new_tokens=options.max_new_tokens,
            answers=out / ANSWERS,
        )
        checkpoint = Checkpoint(
            source,
            (str(out / WEIGHTS), relevance, "attention"),
            dtype=options.dtype,
            device=options.device,
            max_new_tokens=how.max_new_tokens,
            batch=how.batch,
        )
        evaluation = evaluate(checkpoint, [out / HELD_OUT], how, quiet=quiet)
        assert evaluation is not None
        write_json(path, evaluation_facts(evaluation))
    with writing(out):
        (out / ANSWERS).unlink(missing_ok=True)
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def draw_once(source: str, out: Path, options: RecipeOptions) -> None:
    """Draw relevance and its prediction for some held-out questions about pictures."""
    records = read_records(out / HELD_OUT)
    pictures = [record for record in records if not record.moving][:SHOWN]
    if pictures and not (out / PICTURE).is_file():
        mode: Mode = read_manifest(out / MAPS).mode  # type: ignore[assignment]
        show(
            source, out / PICTURE, pictures, compressor=out / WEIGHTS, mode=mode,
            dtype=options.dtype, device=options.device,
        )  # fmt: skip


def gather_figures(
    source: str, out: Path, options: RecipeOptions, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """All figures of a run, from the files that its steps wrote."""
    made, (_, facts) = read_manifest(out / MAPS), FTheta.load(out / WEIGHTS)
    totals = [group for group in evaluation["groups"] if group["kind"] == "all"]
    return {
        "checkpoint": source,
        "own_answers": options.own_answers,
        "mode": made.mode,
        "trial": msgspec.to_builtins(made.trial),
        "maps": made.counts,
        "f_theta": {"path": str(out / WEIGHTS), "sha256": file_digest(out / WEIGHTS), **facts},
        "auto_keep": json.loads((out / AUTO_KEEP).read_bytes()),
        "held_out": [short_names(group) for group in totals],
        "picture": str(out / PICTURE) if (out / PICTURE).is_file() else None,
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    replace_file(path, f"{text}\n".encode(), force=True)
