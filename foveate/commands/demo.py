"""`foveate demo`: the nano checkpoint on its own held-out questions, with all visual tokens and a quarter."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import option

from foveate.atomic_write import writing
from foveate.bundle.reader import Bundle
from foveate.commands.options import PATH, as_json, load_torch, verb
from foveate.commands.run import answer_facts
from foveate.errors import CheckpointError
from foveate.terminal import Progress, duration, one_line, size, table, tell, tell_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveate.runtime import Answer, Pipeline

NANO = Path(__file__).parent.parent.parent / "models" / "nano"
KEEP = 0.25
KEEPS = (1.0, KEEP)
ROUNDS = 5
QUESTIONS = 40


@verb("foveate demo")
@option("--checkpoint", type=PATH, help="Default: models/nano.")
@option("--out", type=PATH, default=Path("demo"), help="Folder for the bundle and the heatmap.")
@as_json
def demo(checkpoint: Path | None, out: Path, as_json: bool) -> None:
    """Export the nano checkpoint, answer questions about a picture, and draw what was kept for each.

    One of its held-out questions is answered with all visual tokens and with a quarter of them. Another one
    about the same picture is drawn beside it.
    """
    with Progress() as progress:
        facts = run_demo(checkpoint, out, progress)
    tell_json(facts) if as_json else tell(describe_demo(facts))


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out question."""

    image: Path
    question: str
    answer: str


def run_demo(checkpoint: Path | None, out: Path, progress: Progress) -> dict[str, Any]:
    """Export the nano checkpoint into `out` and answer its own questions with all tokens and a quarter.

    Args:
        checkpoint: A checkpoint with samples/data.jsonl in it; None takes models/nano.
        out: A folder, made if need be; the demo replaces what it wrote there before.
        progress: Shows the stages as they begin.

    Returns:
        What `foveate demo --json` says: where the bundle and the heatmap are; the question shown and
        what is expected; the answers to it from all visual tokens and from a quarter of them; another
        question about the same picture, its expected answer and that from a quarter, or None; and how
        many held-out questions were asked to choose them, and answered as expected.

    Raises:
        CheckpointError: No checkpoint, or none with questions.
        MissingDependencyError: A package that exporting needs is not installed.
        FoveateError: The export or the questions failed.
    """
    from foveate.runtime import Pipeline
    from foveate.runtime.heatmap import check_target, write_picture
    from foveate.runtime.media.pictures import open_picture
    from foveate.runtime.question_sheet import Asked, draw_questions

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
        right = [[answers_rightly(pipe, one, keep) for keep in KEEPS] for one in samples]
        sample, other = choose_pair(samples, [all(both) for both in right])
        picture = open_picture(sample.image)
        full, kept = time_answers(pipe, sample, picture)
        beside = [] if other is None else [(other, answer_to(pipe, other, KEEP))]
    asked = [
        Asked(one.question, answer.text, answer.visual) for one, answer in [(sample, kept), *beside]
    ]
    write_picture(heatmap, draw_questions(picture, asked), force=True)
    right_full, right_kept = (sum(column) for column in zip(*right, strict=True))
    return {
        "bundle": str(bundle.root),
        "heatmap": str(heatmap),
        "image": str(sample.image),
        "question": sample.question,
        "expected": sample.answer,
        "full": answer_facts(full),
        "kept": answer_facts(kept),
        "other": None
        if not beside
        else {
            "question": beside[0][0].question,
            "expected": beside[0][0].answer,
            "kept": answer_facts(beside[0][1]),
        },
        "held_out": {
            "asked": len(samples),
            "right_with_all_tokens": right_full,
            "right_with_a_quarter": right_kept,
        },
    }


def answers_rightly(pipe: Pipeline, sample: Sample, keep: float) -> bool:
    """Whether a question is answered as expected with so many visual tokens."""
    return answer_to(pipe, sample, keep).text == sample.answer


def answer_to(pipe: Pipeline, sample: Sample, keep: float) -> Answer:
    """The answer to a question with so many visual tokens."""
    return pipe.generate(sample.question, images=[sample.image], keep=keep, temperature=0)


def choose_pair(samples: Sequence[Sample], right: Sequence[bool]) -> tuple[Sample, Sample | None]:
    """The question to show and another one about its picture: the first two of which both are right.

    Args:
        samples: Best first.
        right: Whether each is answered as expected with all visual tokens and with a quarter.

    Returns:
        Where no picture has two that are right, one that is right and any other of its picture, or None.
    """

    def others(sample: Sample) -> list[int]:
        return [
            place
            for place, one in enumerate(samples)
            if one.image == sample.image and one.question != sample.question
        ]

    def worth(place: int) -> tuple[bool, bool]:
        return right[place], any(right[other] for other in others(samples[place]))

    # Of those that are worth the same, `max` takes the first.
    best = max(range(len(samples)), key=worth)
    beside = sorted(others(samples[best]), key=lambda place: not right[place])
    return samples[best], samples[beside[0]] if beside else None


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


def time_answers(pipe: Pipeline, sample: Sample, picture: Image) -> list[Answer]:
    """Answer with each of `KEEPS` in turn, a few times over; each answer has its median seconds.

    The first round warms up and does not count.
    """
    from foveate.runtime import Timing

    rounds = [
        [
            pipe.generate(sample.question, images=[picture], keep=keep, temperature=0)
            for keep in KEEPS
        ]
        for _ in range(ROUNDS + 1)
    ]
    for number, answer in enumerate(rounds[-1]):
        for field in fields(Timing):
            seconds = [getattr(answers[number].timing, field.name) for answers in rounds[1:]]
            setattr(answer.timing, field.name, statistics.median(seconds))
    return rounds[-1]


def describe_demo(facts: dict[str, Any]) -> str:
    """What `foveate demo` shows."""
    both, asked = (facts["full"], facts["kept"]), facts["held_out"]
    ranking = Bundle.open(facts["bundle"], checksums=False).manifest.compressor.kind
    rows = [
        ("", "all tokens", "a quarter"),
        ("answer", *(one_line(one["text"], 32) or "(nothing)" for one in both)),
        ("visual tokens", *("{kept} of {total}".format(**one["visual"]) for one in both)),
        ("prompt tokens", *(str(one["prompt_tokens"]) for one in both)),
        ("KV cache", *(size(one["cache_bytes"]) for one in both)),
        *(
            (stage.replace("_", " "), *(duration(one["timing"][stage]) for one in both))
            for stage in facts["full"]["timing"]
        ),
    ]
    bundle, image, other = _relative(facts["bundle"]), _relative(facts["image"]), facts["other"]
    drawn = ""
    if other is not None:
        drawn = (
            f"  Drawn beside it:  {other['question']}   {one_line(other['kept']['text'], 32)}   "
            f"({other['expected']} expected)\n"
        )
    again = ["foveate", "run", bundle, facts["question"], "--image", image]
    return (
        f"\n  Q: {facts['question']}   ({image})\n"
        f"  A: {facts['expected']}   (expected)\n\n"
        f"{table(rows, gap=4)}\n"
        f"  (times: median of {ROUNDS}; ranked by {ranking})\n\n"
        f"  Of {asked['asked']} such held-out questions it answers {asked['right_with_all_tokens']} "
        f"with all tokens and {asked['right_with_a_quarter']} with a quarter;\n"
        "  the one above is the first of those it answers both ways, if possible with another one about\n"
        "  the same picture.\n\n"
        f"{drawn}"
        f"  Heatmap:          {facts['heatmap']}\n"
        f"  Run it yourself:  {shlex.join(again)}"
    )


def _relative(path: str) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path
