"""`foveate demo`: the nano checkpoint on its own held-out questions, with all visual tokens and a quarter."""

from __future__ import annotations

import json
import os
import shlex
import statistics
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import option

from foveate.atomic_write import writing
from foveate.bundle.reader import Bundle
from foveate.commands.options import PATH, as_json, load_torch, verb
from foveate.commands.run import answer_facts
from foveate.errors import CheckpointError
from foveate.terminal import Progress, duration, size, table, tell, tell_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveate.runtime import Answer, Pipeline

NANO = Path(__file__).parent.parent.parent / "models" / "nano"
KEEP = 0.25
ROUNDS = 5
QUESTIONS = 40


@verb("foveate demo")
@option("--checkpoint", type=PATH, help="Default: models/nano.")
@option("--out", type=PATH, default=Path("demo"), help="Folder for the bundle and the heatmap.")
@as_json
def demo(checkpoint: Path | None, out: Path, as_json: bool) -> None:
    """Export the nano checkpoint, answer a question about a picture, and draw what was kept.

    One of its held-out questions is answered with all visual tokens and with a quarter of them.
    """
    with Progress() as progress:
        shown = run_demo(checkpoint, out, progress)
    tell_json(demo_facts(shown)) if as_json else tell(describe_demo(shown))


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out question."""

    image: Path
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demo did.

    Attributes:
        bundle: What was exported.
        sample: The question shown.
        full: The answer from all visual tokens.
        kept: The answer from a quarter of them.
        heatmap: The picture of what was kept.
        questions: How many held-out questions were answered to choose the one shown.
        right_full: How many of them it answered as expected with all visual tokens.
        right_kept: How many with a quarter.
    """

    bundle: Bundle
    sample: Sample
    full: Answer
    kept: Answer
    heatmap: Path
    questions: int
    right_full: int
    right_kept: int


def run_demo(checkpoint: Path | None, out: Path, progress: Progress) -> Demo:
    """Export the nano checkpoint into `out` and answer its own questions with all tokens and a quarter.

    Args:
        checkpoint: A checkpoint with samples/data.jsonl in it; None takes models/nano.
        out: A folder, made if need be; the demo replaces what it wrote there before.
        progress: Shows the stages as they begin.

    Raises:
        CheckpointError: No checkpoint, or none with questions.
        MissingDependencyError: A package that exporting needs is not installed.
        FoveateError: The export or the questions failed.
    """
    from foveate.runtime import Pipeline
    from foveate.runtime.heatmap import check_target, write_heatmap
    from foveate.runtime.media.pictures import open_picture

    root = find_checkpoint(checkpoint)
    samples = pick_samples(root / "samples" / "data.jsonl")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    heatmap = out / "heatmap.png"
    check_target(heatmap, force=True)
    load_torch(progress.begin)
    from foveate.export.exporter import ExportOptions, export

    trained = root / "f_theta.safetensors"
    # Contrib operators: written at once, where standard ones are traced, and faster on a CPU.
    options = ExportOptions(
        trained if trained.is_file() else "attention", keep=KEEP, force=True, operators="contrib"
    )
    bundle = export(root, out / "bundle", options, progress.begin)
    progress.begin("questions")
    with Pipeline.load(bundle.root) as pipe:
        right = [answers_rightly(pipe, sample) for sample in samples]
        sample = samples[right.index((True, True)) if (True, True) in right else 0]
        picture = open_picture(sample.image)
        full, kept = time_answers(pipe, sample, picture, (1.0, KEEP))
    write_heatmap(heatmap, [picture], kept.visual, force=True)
    right_full, right_kept = (sum(column) for column in zip(*right, strict=True))
    return Demo(bundle, sample, full, kept, heatmap, len(samples), right_full, right_kept)


def answers_rightly(pipe: Pipeline, sample: Sample) -> tuple[bool, bool]:
    """Whether a question is answered as expected with all visual tokens, and with a quarter."""
    full, kept = (
        pipe.generate(sample.question, images=[sample.image], keep=keep, temperature=0).text
        == sample.answer
        for keep in (1.0, KEEP)
    )
    return full, kept


def find_checkpoint(given: Path | None) -> Path:
    """The checkpoint's folder: the one given, or else models/nano.

    Raises:
        CheckpointError: There is none.
    """
    root = NANO if given is None else given
    if (root / "config.json").is_file():
        return root
    raise CheckpointError(
        f"{root}: there is no checkpoint; the demo's own, models/nano, comes with Foveate's "
        "repository: run the demo from a clone of that, or give --checkpoint"
    )


def pick_samples(path: Path) -> list[Sample]:
    """The questions to answer: those about a single place in the largest scenes first.

    Raises:
        CheckpointError: No questions, or none with its picture.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the demo's questions cannot be read ({error}); give a checkpoint with "
            "samples/data.jsonl in it, such as models/nano"
        ) from error
    found = [pair for line in lines for pair in _ranked_sample(line, path.parent)]
    if not found:
        raise CheckpointError(
            f"{path}: no line has a question and a picture that is there; give a checkpoint with "
            "questions in samples/data.jsonl, such as models/nano"
        )
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [sample for _, sample in found[:QUESTIONS]]


def _ranked_sample(line: str, folder: Path) -> list[tuple[tuple[bool, bool, bool, int], Sample]]:
    """A line's question with how well it suits the demo; nothing for a line that has none."""
    import PIL.Image

    try:
        record = json.loads(line)
        answers = record.get("answers") or [record["answer"]]
        sample = Sample(folder / record["image"], str(record["question"]), str(answers[0]))
        with PIL.Image.open(sample.image) as picture:
            area = picture.width * picture.height
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError):
        return []
    scene = str(record.get("id", "")).startswith("scene")
    rank = (record.get("scope") == "local", scene, record.get("task") == "letter", area)
    return [(rank, sample)]


def time_answers(
    pipe: Pipeline, sample: Sample, picture: Image, keeps: tuple[float, ...]
) -> list[Answer]:
    """Answer with each `keep` in turn, a few times over; each answer has its median seconds.

    The first round warms up and does not count.
    """
    from foveate.runtime import Timing

    rounds = [
        [
            pipe.generate(sample.question, images=[picture], keep=keep, temperature=0)
            for keep in keeps
        ]
        for _ in range(ROUNDS + 1)
    ]
    for number, answer in enumerate(rounds[-1]):
        for field in fields(Timing):
            seconds = [getattr(answers[number].timing, field.name) for answers in rounds[1:]]
            setattr(answer.timing, field.name, statistics.median(seconds))
    return rounds[-1]


def demo_facts(demo: Demo) -> dict[str, Any]:
    """What `foveate demo --json` says."""
    return {
        "bundle": str(demo.bundle.root),
        "heatmap": str(demo.heatmap),
        "image": str(demo.sample.image),
        "question": demo.sample.question,
        "expected": demo.sample.answer,
        "full": answer_facts(demo.full),
        "kept": answer_facts(demo.kept),
        "held_out": {
            "asked": demo.questions,
            "right_with_all_tokens": demo.right_full,
            "right_with_a_quarter": demo.right_kept,
        },
    }


def describe_demo(demo: Demo) -> str:
    """What `foveate demo` shows."""
    from foveate.runtime import Timing

    both = (demo.full, demo.kept)
    rows = [
        ("", "all tokens", "a quarter"),
        ("answer", *(_shown(answer.text) for answer in both)),
        ("visual tokens", *(f"{a.visual.kept} of {a.visual.total}" for a in both)),
        ("prompt tokens", *(str(answer.prompt_tokens) for answer in both)),
        ("KV cache", *(size(answer.cache_bytes) for answer in both)),
        *(
            (field.name.replace("_", " "), *(duration(getattr(a.timing, field.name)) for a in both))
            for field in fields(Timing)
        ),
    ]
    image = _relative(demo.sample.image)
    again = [
        "foveate", "run", _relative(demo.bundle.root), demo.sample.question, "--image", image
    ]  # fmt: skip
    return "\n".join(
        [
            "",
            f"  Q: {demo.sample.question}   ({image})",
            f"  A: {demo.sample.answer}   (expected)",
            "",
            table(rows, gap=4),
            f"  (times: median of {ROUNDS}; ranked by {demo.bundle.manifest.compressor.kind})",
            "",
            f"  Of {demo.questions} such held-out questions it answers {demo.right_full} with all tokens "
            f"and {demo.right_kept} with a quarter;",
            "  the one above is the first of those it answers both ways, where there is one.",
            "",
            f"  Heatmap:          {demo.heatmap}",
            f"  Run it yourself:  {shlex.join(again)}",
        ]
    )


def _shown(text: str) -> str:
    """An answer as one cell of a table."""
    flat = " ".join(text.split())
    return (flat if len(flat) <= 32 else f"{flat[:31]}…") or "(nothing)"


def _relative(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return os.fspath(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return os.fspath(path)
