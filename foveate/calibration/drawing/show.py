"""Seeing it: R_v and f_θ's prediction over the pictures of a question, and what answers survive them."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.atomic_write import replace_file
from foveate.calibration.drawing.sheet import Kept, Look, View, draw_sheet
from foveate.calibration.evaluation.rankings import predicted, top
from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.torch_model import TorchModel
from foveate.errors import BackendError, DataError, ImageError, PromptError
from foveate.modeling.f_theta import FTheta
from foveate.runtime.heatmap import check_target
from foveate.runtime.keep import kept_count, parse_keep
from foveate.runtime.media.pictures import open_picture
from foveate.terminal import one_line, table

Progress = Callable[[str, int, int], object]
ADVICE = "give --image and --question, or --data and --id"
MEANINGS: dict[Mode, str] = {
    "grad": "what the answer rests on (Eq. 1)",
    "grad-clamp": "what the answer rests on (Eq. 1, clamped)",
    "mean": "what the answer rests on (no gradients)",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A question to look at; `answers` are right ones, where known."""

    id: str
    pictures: tuple[Path, ...]
    question: str
    answers: tuple[str, ...] = ()


def show(
    checkpoint: str | Path,
    out: Path,
    samples: Sequence[Sample],
    *,
    compressor: Path | None = None,
    keep: str = "0.5,0.25",
    mode: Mode = "grad",
    dtype: str = "fp32",
    device: str = "auto",
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Look]:
    """Draw how a checkpoint looks at samples into a PNG file, whole or not at all.

    Args:
        checkpoint: A folder, or a hub id.
        out: The file.
        samples: At least one.
        compressor: The weights of a trained f_θ; None shows first-layer attention in its place.
        keep: As a person writes it: ratios or counts, with commas between.
        mode: How relevance is computed.
        dtype: What the model computes in: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
        force: Replace the file if it is there.
        progress: Told as each stage begins.

    Raises:
        FoveateError: Whatever was wrong with any of it.
    """
    check_target(out, force=force)
    keeps = [parse_keep(one) for one in keep.split(",")]
    for sample in samples:
        for path in sample.pictures:
            open_picture(path)
    network = None if compressor is None else FTheta.load(compressor)[0]
    progress("loading the checkpoint", 0, 0)
    model = TorchModel.load(checkpoint, dtype, pick_device(device))
    looks = []
    for number, sample in enumerate(samples, start=1):
        progress(f"looking: {one_line(sample.question, 60)}", number, len(samples))
        looks.append(look(model, sample, keeps, network, mode))
    progress("drawing", 0, 0)
    data = io.BytesIO()
    draw_sheet(looks).save(data, "PNG")
    replace_file(out, data.getvalue(), force=force)
    return looks


def look(
    model: TorchModel,
    sample: Sample,
    keeps: Sequence[float | int],
    network: FTheta | None = None,
    mode: Mode = "grad",
) -> Look:
    """See where a model looks for a question: by R_v, and by f_θ or first-layer attention.

    Raises:
        ImageError: A picture that cannot be read or taken.
        KeepError: A keep that is more tokens than there are.
        PromptError: A question that cannot be asked, or that gets an empty answer.
    """
    pictures = tuple(open_picture(path) for path in sample.pictures)
    question = model.prepare(sample.question, pictures)
    said = model.answer(question)
    if not said:
        raise PromptError(
            f"{sample.question!r} gets an empty answer, and nothing is relevant to that; ask another"
        )
    attention = model.attention(question)
    relevance = _array(model.relevance(question, said, mode))

    def view(
        name: str, meaning: str, scores: NDArray[np.float32], shown: NDArray[np.float32]
    ) -> View:
        kept = []
        for keep in keeps:
            count = kept_count(keep, len(scores))
            indices = top(scores, count)
            tokens = model.answer(question, indices)
            shared = len(np.intersect1d(indices, top(relevance, count))) / count
            overlap = None if scores is relevance else shared
            kept.append(Kept(keep, indices, model.text(tokens), tokens == said, overlap))
        return View(name, meaning, shown, tuple(kept))

    views = [view("R_v", MEANINGS[mode], relevance, relevance)]
    if network is None:
        mean = _array(attention.mean((0, 1)))
        views.append(view("A_v⁰", "first-layer attention, untrained", mean, mean))
    else:
        logits = predicted(network, attention)
        probable = _array(logits.softmax(-1))
        views.append(view("f_θ", "predicted before answering", _array(logits), probable))
    return Look(
        sample.question,
        pictures,
        tuple(path.name for path in sample.pictures),
        question.visual.grids,
        model.text(said),
        sample.answers,
        tuple(views),
    )


def pick_device(wanted: str) -> str:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        BackendError: CUDA was asked for and is not to be had.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "torch finds no CUDA device; install its CUDA build, or use --device cpu"
        )
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def gather_samples(
    images: Sequence[str], questions: Sequence[str], data: Path | None, ids: Sequence[str]
) -> list[Sample]:
    """The samples that a command line asks for: pictures with questions, or records of a data file.

    Raises:
        ImageError: No picture.
        PromptError: No question, or both ways at once.
        DataError: No readable data, no id, or one that the data do not have.
    """
    if data is not None:
        if images or questions:
            raise PromptError(f"the pictures and questions come from {data}; {ADVICE}")
        return _recorded(data, ids)
    if ids:
        raise PromptError(f"--id chooses from a data file; {ADVICE}")
    if not images:
        raise ImageError(f"there is no picture to look at; {ADVICE}")
    if not questions:
        raise PromptError(f"there is no question to look for; {ADVICE}")
    pictures = tuple(Path(image) for image in images)
    return [Sample(str(n), pictures, text) for n, text in enumerate(questions, start=1)]


def _recorded(data: Path, ids: Sequence[str]) -> list[Sample]:
    """The records of `data` with these ids, in their order."""
    from foveate.calibration.dataset import read_records

    records = {record.id: record for record in read_records(data, answers_needed=False)}
    some = ", ".join(list(records)[:3])
    if not ids:
        raise DataError(f"{data}: say which to look at with --id, such as {some}")
    for wanted in ids:
        if wanted not in records:
            raise DataError(f"{data} has no {wanted!r}; give --id one of its ids, such as {some}")
    chosen = (records[one] for one in ids)
    return [Sample(one.id, tuple(one.pictures), one.question, tuple(one.answers)) for one in chosen]


def show_facts(samples: Sequence[Sample], looks: Sequence[Look], out: Path) -> dict[str, Any]:
    """What was drawn, for JSON."""
    return {
        "sheet": str(out),
        "samples": [
            {
                "id": sample.id,
                "question": seen.question,
                "images": [str(path) for path in sample.pictures],
                "grids": [list(grid) for grid in seen.grids],
                "tokens": seen.tokens,
                "answer": seen.answer,
                "expected": list(seen.expected),
                "rankings": [
                    {"ranking": view.name, "keeps": [_kept_facts(kept) for kept in view.kept]}
                    for view in seen.views
                ],
            }
            for sample, seen in zip(samples, looks, strict=True)
        ],
    }


def describe_show(looks: Iterable[Look], out: Path) -> str:
    """What was drawn, for people."""
    parts = []
    for seen in looks:
        rows = [
            (
                view.name,
                f"{len(kept.indices)} of {seen.tokens} tokens",
                "" if kept.overlap is None else f"{100 * kept.overlap:.0f} % as R_v",
                "same" if kept.same else "another",
                one_line(kept.answer),
            )
            for view in seen.views
            for kept in view.kept
        ]
        everything = f"{seen.tokens} tokens"
        rows.insert(0, ("all", everything, "", "", one_line(seen.answer)))
        parts.append(f"{one_line(seen.question)}\n{table(rows)}")
    return "\n\n".join([*parts, f"drawn: {out}"])


def _kept_facts(kept: Kept) -> dict[str, Any]:
    """One keep, for JSON."""
    return {
        "keep": kept.keep,
        "kept": len(kept.indices),
        "overlap_with_relevance": kept.overlap,
        "answer": kept.answer,
        "same": kept.same,
    }


def _array(values: Tensor) -> NDArray[np.float32]:
    """Values as float32 on the host."""
    array: NDArray[np.float32] = values.detach().float().cpu().numpy()
    return array
