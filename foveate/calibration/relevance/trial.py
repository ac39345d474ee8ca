"""The choice among the modes of relevance: which keeps the most answers with few visual tokens."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from foveate.calibration.dataset import Record
from foveate.calibration.progress import Meter
from foveate.calibration.ranking import top
from foveate.calibration.relevance import manifest as manifests
from foveate.calibration.relevance.answered import Asked, Judging, ask
from foveate.calibration.relevance.manifest import Manifest, Trial
from foveate.calibration.relevance.propagation import MODES, Mode
from foveate.calibration.torch_model import TorchModel
from foveate.runtime.keep import kept_count
from foveate.terminal import note, plural, table

QUESTIONS = 32
"""How many answers the modes are measured on."""
KEEPS = (0.25, 0.1, 0.05)
"""The shares of visual tokens that the answers are to be kept with."""


def choose_mode(
    folder: Path, model: TorchModel, records: Sequence[Record], judging: Judging, *, quiet: bool
) -> None:
    """Measure the modes and write the best, with all figures, into a claimed store's manifest.

    Args:
        folder: The store.
        model: The checkpoint.
        records: The store's; a hash of their ids says which are tried first.
        judging: Which answers have maps, and so count.
        quiet: Do not show how far this is.
    """
    trial = try_modes(model, records, judging, quiet=quiet)
    before = manifests.read_manifest(folder)
    made = msgspec.structs.replace(before, mode=best_mode(trial), trial=trial)
    manifests.write_manifest(folder, made)
    if not quiet:
        note(describe_trial(made))


def try_modes(
    model: TorchModel, records: Sequence[Record], judging: Judging, *, quiet: bool = True
) -> Trial:
    """Count, of each mode, the answers that stay the same with its most relevant tokens alone."""
    meter = Meter(("tried",), quiet)
    meter.start(min(QUESTIONS, len(records)), 1)
    same = {mode: np.zeros(len(KEEPS), np.int64) for mode in MODES}
    tried = 0
    for record in sorted(records, key=lambda one: hashlib.sha256(one.id.encode()).digest()):
        if tried == QUESTIONS:
            break
        asked = ask(model, record, judging)
        if isinstance(asked, str) or not asked.usable:
            continue
        for mode in MODES:
            same[mode] += stays_same(model, asked, mode, judging.most)
        tried += 1
        meter.step("tried")
    counts: dict[str, tuple[int, ...]] = {
        mode: tuple(map(int, found)) for mode, found in same.items()
    }
    return Trial(tried, KEEPS, counts)


def stays_same(model: TorchModel, asked: Asked, mode: Mode, longest: int) -> list[bool]:
    """Whether an answer stays the same with its most relevant tokens, for each of `KEEPS`."""
    scores = model.relevance(asked.question, asked.tokens, mode).float()
    if not scores.isfinite().all():
        return [False] * len(KEEPS)
    ranked, most = scores.cpu().numpy(), min(len(asked.tokens) + 1, longest)
    found = []
    for keep in KEEPS:
        kept = top(ranked, kept_count(keep, len(ranked)))
        found.append(model.answer(asked.question, kept, most) == asked.tokens)
    return found


def best_mode(trial: Trial) -> Mode:
    """The mode that kept the most answers over all ratios; of equal ones the first of `MODES`."""
    return max(MODES, key=lambda mode: sum(trial.same[mode]))


def trial_facts(made: Manifest) -> dict[str, Any] | None:
    """How a store's mode was chosen, for JSON; None where the user gave it."""
    return None if made.trial is None else msgspec.to_builtins(made.trial)


def describe_trial(made: Manifest) -> str:
    """A store's mode for people, and the figures by which it was chosen."""
    trial = made.trial
    if trial is None:
        return f"mode {made.mode}, as given"
    if not trial.questions:
        return f"mode {made.mode}: there was no answer to measure the modes on"
    rows = [
        ("", *(f"{keep:.0%}" for keep in trial.keeps)),
        *(
            (mode, *(f"{count / trial.questions:.0%}" for count in counts))
            for mode, counts in trial.same.items()
        ),
    ]
    return (
        f"mode {made.mode}, which kept the most of {plural(trial.questions, 'answer')} the same "
        f"with few visual tokens, ranked by relevance itself:\n{table(rows)}"
    )
