"""Sheets of questions: R_v and f_θ's prediction over their pictures, and answers from what they keep."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from foveate.atomic_write import replace_file
from foveate.bundle.words import Words, attention_words
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.device import pick_device
from foveate.calibration.drawing.entry import KeptAnswer, RankedTokens, SheetEntry
from foveate.calibration.drawing.sheet import draw_sheet
from foveate.calibration.drawing.words import Word
from foveate.calibration.ranking import overlap, top
from foveate.calibration.relevance.propagation import Mode
from foveate.calibration.torch_model import PreparedQuestion, TorchModel
from foveate.errors import DataError, ImageError, PromptError
from foveate.modeling.f_theta import FTheta
from foveate.modeling.ranker import Ranker
from foveate.runtime.contact_sheet import FRAME_PIXELS
from foveate.runtime.heatmap import check_target
from foveate.runtime.keep import kept_count, parse_keep
from foveate.runtime.media.files import open_local
from foveate.runtime.media.pictures import open_picture
from foveate.runtime.media.video import VideoFile, VideoWarning, read_frames
from foveate.terminal import one_line, table

Progress = Callable[[str, int, int], object]
ADVICE = "give --image or --video, and --question; or --data and --id"
MEANINGS: dict[Mode, str] = {
    "grad": "what the answer rests on (Eq. 1)",
    "grad-clamp": "what the answer rests on (Eq. 1, clamped)",
    "mean": "what the answer rests on (no gradients)",
}
UNTRAINED: dict[Words, str] = {
    "mean": "first-layer attention, untrained",
    "unusual": "first-layer attention of unusual words, untrained",
}


def show(
    checkpoint: str | Path,
    out: Path,
    samples: Sequence[Record],
    *,
    compressor: str | Path = "attention",
    keep: str = "0.5,0.25",
    mode: Mode = "grad",
    dtype: str = "fp32",
    device: str = "auto",
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> list[SheetEntry]:
    """Draw what is relevant to a checkpoint's answers into a PNG file, whole or not at all.

    Args:
        checkpoint: A folder, or a hub id.
        out: The file.
        samples: At least one.
        compressor: The weights of a trained f_θ, or "attention", "attention:mean" or "attention:unusual".
        keep: As a person writes it: ratios or counts, with commas between.
        mode: How relevance is computed.
        dtype: What the model computes in: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
        force: Replace the file if it is there.
        progress: Told as each stage begins: its name, and its number of how many.

    Returns:
        What was drawn, in the order of the samples.

    Raises:
        FoveateError: Whatever was wrong with any of it.
    """
    check_target(out, force=force)
    keeps = [parse_keep(one) for one in keep.split(",")]
    for sample in samples:
        for path in sample.pictures:
            if sample.moving:
                open_local(path).close()
            else:
                open_picture(path)
    words = attention_words(compressor)
    ranker = Ranker(FTheta.load(Path(compressor))[0]) if words is None else Ranker(words=words)
    progress("loading the checkpoint", 0, 0)
    model = TorchModel.load(checkpoint, dtype, str(pick_device(device)))
    entries = []
    for number, sample in enumerate(samples, start=1):
        progress(f"answering: {one_line(sample.question, 60)}", number, len(samples))
        entries.append(sheet_entry(model, sample, keeps, ranker, mode))
    progress("drawing", 0, 0)
    sheet = draw_sheet(entries)
    replace_file(out, lambda file: sheet.save(file, "PNG"), force=force)
    return entries


def sheet_entry(
    model: TorchModel,
    sample: Record,
    keeps: Sequence[float | int],
    ranker: Ranker | None = None,
    mode: Mode = "grad",
) -> SheetEntry:
    """Rank one question's visual tokens by R_v, and by f_θ or first-layer attention.

    Args:
        model: Answers the question, with all visual tokens and with those that are kept.
        sample: The question and its pictures.
        keeps: Ratios and counts of tokens.
        ranker: A trained f_θ, or attention; None takes A_v⁰.
        mode: How R_v is computed.

    Raises:
        ImageError: A picture that cannot be read or taken.
        KeepError: A keep that is more tokens than there are.
        PromptError: A question that the model cannot take, or that gets an empty answer.
    """
    question = model.prepare(sample.question, model.open(sample))
    pictures, seconds = _drawn(model, sample)
    answer = model.answer(question)
    if not answer:
        raise PromptError(
            f"{sample.question!r} gets an empty answer, and nothing is relevant to that; give another "
            "question"
        )
    attention = model.attention(question)
    relevance = _array(model.relevance(question, answer, mode))
    competing = question.visual.candidates

    def ranked(name: str, meaning: str, scores: NDArray[Any], shown: NDArray[Any]) -> RankedTokens:
        kept = []
        for keep in keeps:
            count = kept_count(keep, int(competing.sum()))
            indices = top(scores, count, competing)
            tokens = model.answer(question, indices)
            ranked_alike = overlap(scores[competing], relevance[competing], [count])
            shared = None if scores is relevance else float(ranked_alike[0])
            kept.append(KeptAnswer(keep, indices, model.text(tokens), tokens == answer, shared))
        return RankedTokens(name, meaning, shown, tuple(kept))

    rankings = [ranked("R_v", MEANINGS[mode], relevance, relevance)]
    ranker = (ranker or Ranker()).to(attention.device)
    with torch.no_grad():
        scores, probable = map(_array, ranker(attention))
        weights = ranker.words(attention.mean(0))
    if ranker.network is None:
        rankings.append(ranked("A_v⁰", UNTRAINED[ranker.words.form], scores, scores))
    else:
        rankings.append(ranked("f_θ", "predicted before answering", scores, probable))
    words, text = _words(model, question, weights.tolist()), model.text(answer)
    return SheetEntry(sample, pictures, question.visual, text, tuple(rankings), seconds, words)


def _drawn(model: TorchModel, sample: Record) -> tuple[tuple[Image, ...], tuple[float, ...]]:
    """What is drawn on: the pictures; or the frames of a video, and when each is shown."""
    if not sample.moving:
        return tuple(map(open_picture, sample.pictures)), ()
    file, rule = VideoFile(sample.pictures[0]), model.family.frame_rule
    with warnings.catch_warnings():
        # They were shown when the model was given the frames.
        warnings.simplefilter("ignore", VideoWarning)
        frames = read_frames(file, rule=rule, max_pixels=FRAME_PIXELS)
    return tuple(frames.pictures), tuple(frames.seconds)


def _words(
    model: TorchModel, question: PreparedQuestion, weights: Sequence[float]
) -> tuple[Word, ...]:
    """The instruction's tokens as text, each with its weight."""
    ids = question.prompt.token_ids[question.prompt.instruction_index]
    texts = (model.tokenizer.decode([one], skip_special_tokens=False) for one in ids.tolist())
    return tuple(map(Word, texts, weights))


def gather_samples(
    images: Sequence[str],
    questions: Sequence[str],
    data: Path | None,
    ids: Sequence[str],
    video: Path | None = None,
) -> list[Record]:
    """Gather what a command line names: pictures or a video with questions, or records of a data set.

    Raises:
        ImageError: No picture and no video, or both.
        PromptError: No question, or both ways at once.
        DataError: No readable data set, no id, or one that it does not have.
    """
    if data is not None:
        if images or questions or video:
            raise PromptError(f"the pictures and questions come from {data}; {ADVICE}")
        records = {record.id: record for record in read_records(data, answers_needed=False)}
        some = ", ".join(list(records)[:3])
        if not ids:
            raise DataError(f"{data}: choose questions with --id, such as {some}")
        for one in ids:
            if one not in records:
                raise DataError(f"{data} has no {one!r}; give --id one of its ids, such as {some}")
        return [records[one] for one in ids]
    if ids:
        raise PromptError(f"--id chooses from a data file; {ADVICE}")
    if images and video:
        raise ImageError("pictures and a video were given; draw one or the other")
    if not images and not video:
        raise ImageError(f"there is no picture and no video; {ADVICE}")
    if not questions:
        raise PromptError(f"there is no question; {ADVICE}")
    pictures = (video,) if video else tuple(Path(image) for image in images)
    return [
        Record(str(n), pictures, text, (), moving=video is not None)
        for n, text in enumerate(questions, start=1)
    ]


def show_facts(entries: Iterable[SheetEntry], out: Path) -> dict[str, Any]:
    """What was drawn, for JSON."""
    return {"sheet": str(out), "samples": [_entry_facts(entry) for entry in entries]}


def _entry_facts(entry: SheetEntry) -> dict[str, Any]:
    """One question, for JSON."""
    record = entry.record
    by_image = np.bincount(entry.visual.picture, minlength=len(entry.pictures))
    return {
        "id": record.id,
        "question": record.question,
        "images": [str(path) for path in record.pictures],
        "tokens": entry.tokens,
        "tokens_by_image": by_image.tolist(),
        "answer": entry.answer,
        "expected": list(record.answers),
        "words": [{"text": one.text, "weight": round(one.weight, 6)} for one in entry.words],
        "rankings": [
            {"ranking": one.name, "keeps": [_kept_facts(kept) for kept in one.kept]}
            for one in entry.rankings
        ],
    }


def describe_show(entries: Iterable[SheetEntry], out: Path) -> str:
    """What was drawn, for people."""
    parts = []
    for entry in entries:
        rows = [("all", f"{entry.tokens} tokens", "", "", one_line(entry.answer))]
        for ranking, kept in ((one, kept) for one in entry.rankings for kept in one.kept):
            count = f"{len(kept.indices)} of {entry.tokens} tokens"
            shared = "" if kept.overlap is None else f"{100 * kept.overlap:.0f} % as R_v"
            same = "same" if kept.same else "another"
            rows.append((ranking.name, count, shared, same, one_line(kept.answer)))
        parts.append(f"{one_line(entry.record.question)}\n{table(rows)}")
    return "\n\n".join([*parts, f"drawn: {out}"])


def _kept_facts(kept: KeptAnswer) -> dict[str, Any]:
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
    return np.asarray(values.detach().float().cpu(), np.float32)
