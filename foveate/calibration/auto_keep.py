"""keep="auto", calibrated: what share of the relevance must be kept so that answers stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.bundle.manifest import AutoKeep
from foveate.bundle.words import UNTRAINED, attention_words
from foveate.calibration.answers import Rule, answer_worth
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.intervals import Score
from foveate.calibration.evaluation.rankings import Ranking, find_rankings, ranked
from foveate.calibration.processes import gather, join_processes, load_model, stopping
from foveate.calibration.progress import Meter
from foveate.calibration.relevance.answered import Asked, Judging, ask
from foveate.calibration.torch_model import NEW_TOKENS, TorchModel
from foveate.calibration.training.examples import split
from foveate.errors import CheckpointError, DataError, OutputExistsError
from foveate.modeling.f_theta import FTheta, auto_keep_facts, auto_keep_of
from foveate.runtime.keep import AUTO, Selection, check_auto, select
from foveate.terminal import plural, table

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)  # fmt: skip
"""The shares of relevance that are tried."""
RATIOS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5,
          0.6, 0.75, 1.0)  # fmt: skip
"""The fixed ratios that the count is held against."""


@dataclass(frozen=True, slots=True)
class AutoKeepOptions:
    """How keep="auto" is calibrated.

    Attributes:
        target: The share of answers that are to stay, in (0, 1].
        least: The smallest ratio of tokens kept.
        most: The largest.
        own_answers: Count every answer that stays the same, whatever the data say; otherwise those that
            are right and stay so, or describe as well as before.
        rule: When an answer is right.
        dtype: What the model computes in: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda"; under accelerate, the process's own of that kind.
        max_new_tokens: The longest answer.
        limit: Take only so many records, from the first.
        seed: Of the split by picture, half to calibrate and half to measure.
        force: Replace what the f_θ's file says already.
    """

    target: float = 0.99
    least: float = 0.02
    most: float = 0.5
    own_answers: bool = False
    rule: Rule = "exact"
    dtype: str = "fp32"
    device: str = "auto"
    max_new_tokens: int = NEW_TOKENS
    limit: int | None = None
    seed: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """One answer, with fewer visual tokens.

    Attributes:
        pictures: As the data set names them.
        shares: For each of `SHARES`, what ratio of the tokens was kept and whether the answer stayed.
        ratios: For each of `RATIOS` likewise.
    """

    pictures: tuple[str, ...]
    shares: tuple[tuple[float, bool], ...]
    ratios: tuple[tuple[float, bool], ...]


@dataclass(frozen=True, slots=True)
class AutoKeepResult:
    """What keep="auto" keeps, and what that is worth on other pictures.

    Attributes:
        compressor: The f_θ's file, or "attention" as export takes it.
        auto: What is kept.
        target: The share of answers that were to stay.
        calibrated: Answers that stayed, of those that it was calibrated on.
        measured: Answers that stayed, of those about other pictures.
        mean: The mean ratio of tokens kept, of the latter.
        fixed: The smallest of `RATIOS` that keeps as many of the latter, known only with hindsight.
        alike: The ratio that is chosen as the share is, on the same answers; None where none meets the
            target.
        alike_measured: Answers about other pictures that stay with it.
    """

    compressor: str
    auto: AutoKeep
    target: float
    calibrated: Score
    measured: Score
    mean: float
    fixed: float
    alike: float | None
    alike_measured: Score | None


def calibrate_auto_keep(
    source: str, data: Path, compressor: str, options: AutoKeepOptions, *, quiet: bool = True
) -> AutoKeepResult | None:
    """Find the smallest share of relevance that keeps the answers to a data set, and note it in f_θ's file.

    Pictures are split in two: the share is found on one half and measured on the other.

    Args:
        source: The checkpoint: a folder or a hub id.
        data: Questions that f_θ was not trained on, as JSON Lines.
        compressor: The file of a trained f_θ, or "attention" as export takes it, for which nothing is
            written.
        options: How.
        quiet: Do not show how far the run is.

    Returns:
        What was found; None in all processes of a run but the main one.

    Raises:
        CheckpointError: No checkpoint or no f_θ that can be loaded.
        DataError: No data set, nothing in it to calibrate on, or a target that is not reached.
        KeepError: Bounds that cannot be.
        OutputExistsError: The file is calibrated already, and `force` was not given.
        OutputError: The disk did not take it.
    """
    check_auto(AutoKeep(share=1, least=options.least, most=options.most))
    if not 0 < options.target <= 1:
        raise DataError(f"the target is {options.target}; give a share of answers in (0, 1]")
    check_compressor(compressor, force=options.force)
    (ranking,) = find_rankings([compressor])
    state = join_processes(options.device)
    meter = Meter(("tried", "wrong", "unreadable"), quiet or not state.is_main_process)
    records = read_records(data, not options.own_answers)[: options.limit]
    mine = records[state.process_index :: state.num_processes]
    tried: list[Tried] = []
    with stopping(state, meter, lambda: "stopped; the next run starts afresh"):
        if mine:
            model = load_model(source, options.dtype, state, meter, len(mine))
            for record in mine:
                found = try_keeps(model, record, ranking, options)
                if isinstance(found, Tried):
                    tried.append(found)
                meter.step(found if isinstance(found, str) else "tried")
        everything = gather(tried)
    if not state.is_main_process:
        return None
    result = choose_share(compressor, everything, options)
    if ranking.file is not None:
        network, facts = FTheta.load(ranking.file)
        network.save(ranking.file, facts | auto_keep_facts(result.auto) | figures(result))
    return result


def check_compressor(compressor: str, *, force: bool) -> None:
    """Refuse early what cannot be calibrated.

    Raises:
        CheckpointError: Neither attention nor the file of an f_θ.
        OutputExistsError: It is calibrated already, and `force` was not given.
    """
    if attention_words(compressor) is not None:
        return
    if not Path(compressor).is_file():
        raise CheckpointError(
            f"{compressor}: no such file; give the weights of a trained f_θ, or {', '.join(UNTRAINED)}"
        )
    if auto_keep_of(FTheta.load(Path(compressor))[1]) is not None and not force:
        raise OutputExistsError(
            f"{compressor} says already what keep='auto' keeps; calibrate it anew with --force"
        )


def try_keeps(
    model: TorchModel, record: Record, ranking: Ranking, options: AutoKeepOptions
) -> Tried | str:
    """Answer a question with what each share and each ratio keeps; or say that it is wrong or unreadable."""
    judging = Judging(options.rule, False, options.own_answers, options.max_new_tokens)
    asked = ask(model, record, judging)
    if isinstance(asked, str):
        return "unreadable"
    if not asked.usable:
        return "wrong"
    question = asked.question
    assert ranking.ranker is not None
    scores, relevance = ranked(ranking.ranker, model.attention(question))
    if not scores.isfinite().all():
        return "unreadable"
    given = scores.cpu().numpy(), relevance.cpu().numpy()
    answers: dict[bytes, bool] = {}
    bounds = {"least": options.least, "most": options.most}
    autos = (AutoKeep(share=share, **bounds) for share in SHARES)
    selected = partial(select, question.visual)
    tries = partial(tried_one, model, asked, options, given, answers)
    return Tried(
        record.names,
        tuple(tries(selected(AUTO, auto=auto)) for auto in autos),
        tuple(tries(selected(ratio)) for ratio in RATIOS),
    )


def tried_one(
    model: TorchModel,
    asked: Asked,
    options: AutoKeepOptions,
    given: tuple[NDArray[np.floating], NDArray[np.floating]],
    answers: dict[bytes, bool],
    selection: Selection,
) -> tuple[float, bool]:
    """What ratio of the tokens a selection keeps, and whether the answer stays; the same ones are tried once."""
    kept = selection.choose(*given) if selection.indices is None else selection.indices
    key = kept.tobytes()
    if key not in answers:
        said = model.answer(asked.question, kept, options.max_new_tokens)
        answers[key] = said == asked.tokens
        if not options.own_answers and not answers[key]:
            record, text = asked.record, model.text(said)
            worth = answer_worth(text, record.answers, record.measure, options.rule)
            answers[key] = worth >= asked.worth
    return len(kept) / selection.total, answers[key]


def choose_share(
    compressor: str, tried: Sequence[Tried], options: AutoKeepOptions
) -> AutoKeepResult:
    """Choose the smallest share from which on the target is met, on half of the pictures.

    Raises:
        DataError: Too few questions, or no share that meets it.
    """
    if not tried:
        raise DataError("there is no answer to calibrate on; give questions that the model answers")
    measured, calibrated = split(tried, 0.5, options.seed)
    stayed = count_stayed([one.shares for one in calibrated])
    place = first_met(stayed, options.target * len(calibrated))
    if place is None:
        raise DataError(
            f"with {options.most:.0%} of the visual tokens {stayed[-1]} of {len(calibrated)} answers stay, "
            f"fewer than {options.target:.1%}; give a larger --most or a smaller --target, or train a "
            "better f_θ"
        )
    auto = AutoKeep(share=SHARES[place], least=options.least, most=options.most)
    kept = count_stayed([one.shares for one in measured])[place]
    by_ratio = count_stayed([one.ratios for one in measured])
    fixed = next(
        (ratio for ratio, count in zip(RATIOS, by_ratio, strict=True) if count >= kept), 1.0
    )
    alike = first_met(
        count_stayed([one.ratios for one in calibrated]), options.target * len(calibrated)
    )
    return AutoKeepResult(
        compressor,
        auto,
        options.target,
        Score(len(calibrated), stayed[place]),
        Score(len(measured), kept),
        fmean(one.shares[place][0] for one in measured),
        fixed,
        None if alike is None else RATIOS[alike],
        None if alike is None else Score(len(measured), by_ratio[alike]),
    )


def count_stayed(tries: Sequence[tuple[tuple[float, bool], ...]]) -> list[int]:
    """How many answers stayed, for each share or ratio."""
    return [sum(stays for _, stays in column) for column in zip(*tries, strict=True)]


def first_met(stayed: Sequence[int], target: float) -> int | None:
    """The place from which on every count meets a target; None where the last does not."""
    place = next((number for number in range(len(stayed), 0, -1) if stayed[number - 1] < target), 0)
    return None if place == len(stayed) else place


def figures(result: AutoKeepResult) -> dict[str, str]:
    """What f_θ's header, and with it a bundle's manifest, says of keep="auto"."""
    return {
        "figure.auto_answers_kept": str(result.measured.right / result.measured.n),
        "figure.auto_mean_ratio": str(result.mean),
        "figure.auto_equal_fixed_ratio": str(result.fixed),
    }


def auto_keep_result_facts(result: AutoKeepResult) -> dict[str, Any]:
    """For JSON."""
    scores = {"calibrated": result.calibrated, "measured": result.measured}
    return {
        "compressor": result.compressor,
        "share": result.auto.share,
        "least": result.auto.least,
        "most": result.auto.most,
        "target": result.target,
        **{
            name: {"n": one.n, "kept": one.right, "interval": list(one.interval)}
            for name, one in scores.items()
        },
        "mean_ratio": result.mean,
        "equal_fixed_ratio": result.fixed,
        "fixed_ratio_chosen_alike": result.alike,
        "kept_by_it": None if result.alike_measured is None else result.alike_measured.right,
    }


def describe_auto_keep(result: AutoKeepResult) -> str:
    """For people."""
    auto, scores = result.auto, (result.calibrated, result.measured)
    names = ("answers it was calibrated on", "answers about other pictures")
    rows = [
        (
            name,
            f"{one.accuracy:.1f} % of {one.n} stay ({one.interval[0]:.1f}–{one.interval[1]:.1f})",
        )
        for name, one in zip(names, scores, strict=True)
    ]
    rows.append(("visual tokens kept of these", f"{100 * result.mean:.1f} % on average"))
    rows.append(("a fixed ratio that keeps as many", f"{100 * result.fixed:g} %, by hindsight"))
    if result.alike is not None and result.alike_measured is not None:
        other = result.alike_measured
        kept = f"{100 * result.alike:g} %, with which {other.accuracy:.1f} % of {other.n} stay"
        rows.append(("a fixed ratio chosen alike", kept))
    if result.mean >= (result.alike or 1.0):
        rows.append(("", "no fewer than the fixed ratio: keep='auto' is of no use with this f_θ"))
    numbers = f"{auto.share:g},{auto.least:g},{auto.most:g}"
    noted = (
        f"foveate export … --auto-keep {numbers}"
        if attention_words(result.compressor) is not None
        else f"noted in {result.compressor}"
    )
    return (
        f"keep='auto' keeps {auto.share:.1%} of the relevance, {auto.least:.0%} to {auto.most:.0%} of the "
        f"visual tokens, so that {result.target:.1%} of the answers stay; {noted}\n{table(rows)}\n"
        f"  split by picture: {plural(scores[0].n + scores[1].n, 'question')} in all"
    )
