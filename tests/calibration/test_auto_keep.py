"""keep="auto", calibrated: the smallest share that keeps the answers, and what it is worth."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.bundle.manifest import AutoKeep
from foveate.calibration import auto_keep
from foveate.calibration.auto_keep import (
    RATIOS,
    SHARES,
    AutoKeepOptions,
    Tried,
    choose_share,
    describe_auto_keep,
    try_keeps,
)
from foveate.calibration.dataset import Record
from foveate.calibration.evaluation.rankings import find_rankings
from foveate.calibration.torch_model import TorchModel
from foveate.errors import CheckpointError, DataError, KeepError
from foveate.modeling.f_theta import FTheta, auto_keep_of
from tests.calibration.conftest import DATA
from tests.command import invoke, refused
from tests.conftest import NANO

OPTIONS = AutoKeepOptions(device="cpu")


def tried(name: str, needed: float) -> Tried:
    """An answer that stays from a share and from a ratio on, on a picture of its own; a share keeps half of itself."""
    return Tried(
        (name,),
        tuple((share / 2, share >= needed) for share in SHARES),
        tuple((ratio, ratio >= needed / 2) for ratio in RATIOS),
    )


class TestChoice:
    def test_the_smallest_share_that_meets_the_target(self) -> None:
        several = [tried(f"{number}.png", 0.7) for number in range(40)]
        result = choose_share("attention", several, OPTIONS)
        assert result.auto == AutoKeep(share=0.7, least=0.02, most=0.5)
        assert result.calibrated.n + result.measured.n == 40
        assert (result.calibrated.accuracy, result.measured.accuracy) == (100, 100)
        assert (result.mean, result.fixed) == (pytest.approx(0.35), 0.35)
        assert (result.alike, result.alike_measured) == (0.35, result.measured)
        assert "keep='auto' is of no use" in describe_auto_keep(result)

    def test_it_is_told_when_it_keeps_fewer_than_a_fixed_ratio(self) -> None:
        """Half of the answers need far more tokens, and have their relevance on more."""
        several = []
        for number in range(40):
            hard = number % 2
            shares = tuple((0.4 if hard else 0.05, True) for _ in SHARES)
            ratios = tuple((ratio, ratio >= (0.4 if hard else 0.05)) for ratio in RATIOS)
            several.append(Tried((f"{number}.png",), shares, ratios))
        result = choose_share("attention", several, OPTIONS)
        assert (result.fixed, result.alike) == (0.4, 0.4)
        assert 0.1 < result.mean < 0.35
        told = describe_auto_keep(result)
        assert re.search(r"a fixed ratio chosen alike +40 %, with which 100\.0 %", told)
        assert "of no use" not in told

    def test_a_few_hard_answers_may_be_lost(self) -> None:
        several = [
            tried(f"{number}.png", 0.97 if number % 10 == 0 else 0.4) for number in range(200)
        ]
        assert choose_share("a", several, OPTIONS).auto.share == 0.97
        assert choose_share("a", several, replace(OPTIONS, target=0.8)).auto.share == 0.4

    def test_a_share_that_is_lucky_is_not_taken(self) -> None:
        """A larger one that loses answers shows that a smaller one kept them by chance."""
        stays = [True] * len(SHARES)
        stays[5] = False
        pairs = tuple((0.1, one) for one in stays)
        several = [
            Tried((f"{n}.png",), pairs, tuple((ratio, True) for ratio in RATIOS)) for n in range(8)
        ]
        assert choose_share("a", several, OPTIONS).auto.share == SHARES[6]

    def test_a_target_out_of_reach(self) -> None:
        several = [tried(f"{number}.png", 2.0) for number in range(10)]
        with pytest.raises(DataError, match=r"with 50% .* 0 of \d+ answers stay.*--most"):
            choose_share("a", several, OPTIONS)
        with pytest.raises(DataError, match="no answer to calibrate on"):
            choose_share("a", [], OPTIONS)


def test_each_share_keeps_what_a_bundle_would(model: TorchModel, records: list[Record]) -> None:
    (ranking,) = find_rankings(["attention:mean"])
    record = next(one for one in records if one.tags["task"] == "letter")
    found = try_keeps(model, record, ranking, OPTIONS)
    assert isinstance(found, Tried)
    question = model.prepare(record.question, model.open(record))
    attention = model.attention(question).mean((0, 1)).numpy()
    order = np.argsort(-attention, kind="stable")
    total = len(order)
    for share, (kept, stays) in zip(SHARES, found.shares, strict=True):
        count = round(kept * total)
        held = attention[order].cumsum(dtype=np.float64) / attention.sum(dtype=np.float64)
        least, most = max(1, int(0.02 * total + 0.5)), int(0.5 * total + 0.5)
        assert least <= count <= most
        assert count in (least, most) or held[count - 2] < share <= held[count - 1]
        answer = model.answer(question, np.sort(order[:count]))
        assert stays == (model.text(answer) == record.answers[0])
    assert [kept for kept, _ in found.ratios] == sorted(kept for kept, _ in found.ratios)
    caption = replace(record, answers=(f"{record.answers[0]} is",), measure="words")
    assert try_keeps(model, caption, ranking, OPTIONS) == found
    wrong = replace(record, answers=("something else",))
    assert try_keeps(model, wrong, ranking, OPTIONS) == "wrong"
    assert isinstance(try_keeps(model, wrong, ranking, replace(OPTIONS, own_answers=True)), Tried)
    assert (
        try_keeps(model, replace(record, pictures=(Path("gone"),)), ranking, OPTIONS)
        == "unreadable"
    )


class TestVerb:
    @pytest.fixture
    def weights(self, tmp_path: Path) -> Path:
        """The committed f_θ, not calibrated."""
        network, facts = FTheta.load(NANO / "f_theta.safetensors")
        path = tmp_path / "f_theta.safetensors"
        known = ("auto.", "figure.auto_")
        network.save(path, {name: facts[name] for name in facts if not name.startswith(known)})
        return path

    def test_it_is_noted_in_the_file_and_goes_into_a_manifest(
        self, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from foveate.export.exporter import ExportOptions, choose_compressor

        monkeypatch.setattr(auto_keep, "SHARES", (0.5, 1.0))
        monkeypatch.setattr(auto_keep, "RATIOS", (0.25, 1.0))
        arguments = ["calibrate", "auto-keep", NANO, DATA, weights, "--limit", 8, "--target", 0.7]
        before, facts = FTheta.load(weights)
        done = invoke(*arguments, "--device", "cpu", "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["calibrated"]["n"] + found["measured"]["n"] == 8
        after, noted = FTheta.load(weights)
        assert auto_keep_of(noted) == AutoKeep(share=found["share"], least=0.02, most=0.5)
        assert facts.items() <= noted.items()
        for name, value in before.state_dict().items():
            assert value.equal(after.state_dict()[name])
        manifest = choose_compressor(ExportOptions(compressor=weights, keep="auto"))[1]
        assert (manifest.keep, manifest.auto) == ("auto", auto_keep_of(noted))
        assert manifest.figures["auto_mean_ratio"] == pytest.approx(found["mean_ratio"])
        own = AutoKeep(share=0.3, least=0.1, most=0.2)
        chosen = ExportOptions(compressor=weights, auto_keep=own)
        assert choose_compressor(chosen)[1].auto == own
        refused(invoke(*arguments), "says already what keep='auto' keeps", "--force")

    def test_refusals(self, weights: Path) -> None:
        from foveate.export.exporter import ExportOptions, choose_compressor

        arguments = ["calibrate", "auto-keep", NANO, DATA]
        refused(invoke(*arguments, "none.safetensors"), "no such file", "attention")
        refused(invoke(*arguments, weights, "--least", 0.6), "least must not be over the most")
        with pytest.raises(KeepError, match="run `foveate calibrate auto-keep` on it"):
            choose_compressor(ExportOptions(compressor=weights, keep="auto"))
        network, facts = FTheta.load(weights)
        for damaged in (
            {"auto.share": "0.9"},
            {"auto.share": "x", "auto.least": "0.1", "auto.most": "1"},
        ):
            network.save(weights, facts | damaged)
            with pytest.raises(CheckpointError, match="auto-keep` again"):
                choose_compressor(ExportOptions(compressor=weights))
