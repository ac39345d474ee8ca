"""Training f_θ: it learns, repeats itself, goes on where it was cut short, and its file exports."""

import json
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foveate.bundle.words import WORDS
from foveate.calibration.ranking import RATIOS, overlap_at_ratios
from foveate.calibration.relevance.store import Sample, finish
from foveate.calibration.training import train as training
from foveate.calibration.training.examples import prepare, split
from foveate.calibration.training.options import TrainingOptions
from foveate.calibration.training.run import Status
from foveate.calibration.training.train import train
from foveate.errors import BackendError, DataError, OutputError, OutputExistsError
from foveate.modeling.f_theta import FTheta
from foveate.modeling.word_weights import WordWeights
from tests.calibration.stores import write_store
from tests.calibration.training.scenes import BY_RELEVANCE, HEADS, scene, scenes
from tests.command import invoke, refused

SHORT = TrainingOptions(epochs=2, batch=16)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first | second)


class Cut(Exception):
    """The power goes."""


def cut_in(number: int) -> Callable[[Status], None]:
    def progress(status: Status) -> None:
        if status.epoch == number:
            raise Cut

    return progress


def test_it_learns_and_takes_longer_sequences(tmp_path: Path) -> None:
    """Trained at sides 4 to 8, it beats attention itself by far, there and at twice the side."""
    options = TrainingOptions(epochs=25, batch=16, scaling="log")
    result = train(scenes(160), tmp_path / "f.safetensors", options)
    assert result.best.validation_kl < 0.5 * result.history[0].validation_kl
    assert min(result.best.overlaps) > 0.8
    for index in range(len(RATIOS)):
        assert result.best.overlaps[index] > result.attention[index] + 0.05
        assert result.attention[index] > result.chance[index] + 0.05
    network, _ = FTheta.load(result.path)
    found = []
    for number in range(20):
        large = scene(16, 1000 + number)
        attention = torch.from_numpy(large.attention)[:, None]
        scores = network(network.pool(attention)[None])[0].detach().numpy()
        found.append(
            overlap_at_ratios(scores, large.relevance)
            - overlap_at_ratios(large.attention.mean(0), large.relevance)
        )
    assert (np.mean(found, axis=0) > 0.05).all()


def test_the_file_holds_the_best_epoch_and_its_figures(tmp_path: Path) -> None:
    """A small set without a pattern: validation gets worse, so that best and last differ."""
    random = np.random.default_rng(0)
    noise = [
        replace(one, relevance=random.random(len(one.relevance)).astype(np.float32))
        for one in scenes(24)
    ]
    options = TrainingOptions(epochs=20, batch=2, scaling="log")
    result = train(noise, tmp_path / "f.safetensors", options, source="nano (grad)")
    assert result.best.number < result.last.number == 20
    network, facts = FTheta.load(result.path)
    assert facts["trained_on"] == result.trained_on == "nano (grad), 24 samples"
    assert facts["option.scaling"] == "log"
    figures = {name: float(facts[f"figure.{name}"]) for name in result.figures()}
    assert figures["validation_kl"] == result.best.validation_kl
    assert float(facts["last.validation_kl"]) == result.last.validation_kl
    assert result.last.validation_kl > result.best.validation_kl
    assert float(facts["attention.overlap_at_25"]) == result.attention[1]
    assert (figures["epochs"], figures["best_epoch"]) == (20, result.best.number)
    assert figures["samples"] + figures["validation_samples"] == 24

    _, validation = split(prepare(noise, "mean", "log", BY_RELEVANCE).all, 0.1, 0)
    divergence, overlaps = [], []
    for example in validation:
        scores = network.convolve(example.features[None])[0].detach().double()
        label = example.label.double()
        divergence.append(
            float(torch.special.xlogy(label, label).sum() - label @ scores.log_softmax(-1))
        )
        overlaps.append(overlap_at_ratios(scores.numpy(), example.relevance))
    assert figures["validation_kl"] == pytest.approx(np.mean(divergence), abs=1e-6)
    found = [figures[f"overlap_at_{percent}"] for percent in (50, 25, 10)]
    assert found == pytest.approx(np.mean(overlaps, axis=0), abs=1e-6)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("inputs", ["mean", "heads"])
def test_a_seed_decides_the_weights(tmp_path: Path, inputs: str, two_threads: None) -> None:
    options = replace(SHORT, inputs=inputs)
    torch.manual_seed(1)
    first = train(scenes(16), tmp_path / "first", options)
    torch.manual_seed(2)
    again = train(iter(scenes(16)), tmp_path / "again", options)
    other = train(scenes(16), tmp_path / "other", replace(options, seed=1))
    assert same(first.path, again.path)
    assert first.history == again.history
    assert not same(first.path, other.path)


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_cut_short_goes_on_to_the_same_weights(tmp_path: Path, number: int) -> None:
    options = replace(SHORT, epochs=4)
    whole = train(scenes(), tmp_path / "whole", options)
    out = tmp_path / "cut"
    with pytest.raises(Cut):
        train(scenes(), out, options, cut_in(number))
    assert not out.exists()
    seen: list[int] = []
    resumed = train(scenes(), out, options, lambda status: seen.append(status.epoch))
    assert min(seen) == number
    assert same(whole.path, resumed.path)
    assert whole.history == resumed.history
    assert {path.name for path in tmp_path.glob("cut*")} == {"cut", "cut.png", "cut.tensorboard"}
    assert len(curve(resumed.log_dir / "validation", "KL")) == 4


def test_anothers_state_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    with pytest.raises(Cut):
        train(scenes(), out, SHORT, cut_in(2))
    for samples, options in ((scenes(), replace(SHORT, seed=1)), (scenes(40), SHORT)):
        with pytest.raises(OutputExistsError, match="other options or samples"):
            train(samples, out, options)
    assert train(scenes(40), out, replace(SHORT, force=True)).last.number == 2
    with pytest.raises(Cut):
        train(scenes(), tmp_path / "g", SHORT, cut_in(2))
    (tmp_path / "g.state").write_bytes(b"junk")
    with pytest.raises(DataError, match="delete it"):
        train(scenes(), tmp_path / "g", SHORT)


@pytest.mark.parametrize("step", ["curves_png", "writing"])
def test_a_run_cut_short_between_its_outputs_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """After the result and before the plot, and after both and before the state is removed."""

    def cut(*_: object) -> None:
        raise Cut

    out = tmp_path / "f.safetensors"
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(training, step, cut)
        train(scenes(), out, SHORT)
    before = out.read_bytes()
    assert (tmp_path / "f.safetensors.state").exists()
    train(scenes(), out, SHORT)
    assert out.read_bytes() == before
    assert Image.open(tmp_path / "f.png").size[0] > 1000
    assert {path.name for path in tmp_path.iterdir()} == {
        "f.safetensors", "f.png", "f.tensorboard",
    }  # fmt: skip


def test_another_file_in_the_place_of_a_cut_runs_result_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.safetensors"
    with pytest.raises(Cut):
        train(scenes(), out, SHORT, cut_in(2))
    out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"f\.safetensors is already there"):
        train(scenes(), out, SHORT)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("limit", [0, 100, 3_000, 20_000])
def test_a_disk_that_fills_is_named(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for the disk: whatever is written first meets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match="could not be written: it is larger"):
            train(scenes(), tmp_path / "f.safetensors", SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob(".*"))
    train(scenes(), tmp_path / "f.safetensors", SHORT)


def curve(folder: Path, tag: str) -> list[float]:
    events = EventAccumulator(str(folder)).Reload()
    return [event.value for event in events.Scalars(tag)]


def test_curves_are_drawn_and_logged(tmp_path: Path) -> None:
    options = replace(SHORT, plot=tmp_path / "p.png", log_dir=tmp_path / "runs" / "a")
    result = train(scenes(), tmp_path / "f", options)
    assert Image.open(tmp_path / "p.png").size[0] > 1000
    runs = tmp_path / "runs" / "a"
    for run, name in (("train", "train_kl"), ("validation", "validation_kl")):
        wanted = [getattr(epoch, name) for epoch in result.history]
        assert curve(runs / run, "KL") == pytest.approx(wanted, rel=1e-6)
    for run, values in (("attention", result.attention), ("random", result.chance)):
        assert curve(runs / run, "overlap of top 10%") == pytest.approx([values[2]] * 2, rel=1e-6)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    first = train(scenes(), out, SHORT)
    before = out.read_bytes()
    with pytest.raises(OutputExistsError, match=r"f\.safetensors"):
        train(scenes(), out, SHORT)
    with pytest.raises(OutputExistsError, match=r"f\.png"):
        train(scenes(), tmp_path / "f.other", SHORT)
    with pytest.raises(OutputExistsError, match="curves of another"):
        train(scenes(), tmp_path / "g", replace(SHORT, log_dir=first.log_dir))
    with pytest.raises(OutputError, match="two files"):
        train(scenes(), tmp_path / "h.png", SHORT)
    with pytest.raises(OutputError, match="folder does not exist"):
        train(scenes(), tmp_path / "missing" / "f", SHORT)
    assert out.read_bytes() == before
    again = train(scenes(40), out, replace(SHORT, force=True))
    assert len(curve(again.log_dir / "train", "KL")) == 2
    assert out.read_bytes() != before


def spoiled(sample: Sample, value: float) -> Sample:
    relevance: NDArray[np.float32] = np.full_like(sample.relevance, value)
    return replace(sample, relevance=relevance)


def test_samples_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    samples = scenes()
    samples[3], samples[7] = spoiled(samples[3], 0), spoiled(samples[7], np.nan)
    samples[9] = replace(samples[9], attention=np.full_like(samples[9].attention, np.nan))
    result = train(samples, tmp_path / "f", SHORT)
    assert (result.skipped, result.training + result.validation) == (3, 45)
    assert result.background()["skipped_samples"] == 3
    with pytest.raises(DataError, match="nothing to train on: no samples but 2"):
        train([samples[3], samples[7]], tmp_path / "g", SHORT)
    other = replace(samples[0], attention=samples[0].attention[:2])
    with pytest.raises(DataError, match="2 heads and others have 4"):
        train([*scenes(), other], tmp_path / "g", SHORT)


def drowned(sample: Sample) -> Sample:
    """The same, but for one token all attend alike, and not as relevance asks."""
    words = sample.words.copy()
    words[[0, 1, 3, 4]] = np.random.default_rng(len(sample.relevance)).permutation(words[2])
    attention = np.repeat(words.mean(0, keepdims=True), HEADS, 0)
    return replace(sample, words=words, attention=attention)


def test_weights_of_words_are_trained_with_the_network(tmp_path: Path) -> None:
    """Relevance follows one token, which the others drown: only weighed words find it.

    An interrupted run goes on with the slopes too.
    """
    options = TrainingOptions(epochs=4, batch=16, scaling="log")
    losses = {}
    for words in WORDS:
        one = train(
            map(drowned, scenes(96)), tmp_path / f"{words}.f", replace(options, words=words)
        )
        losses[words] = one.best.validation_kl
        assert FTheta.load(one.path)[0].words.form == words
    assert max(losses["unusual"], losses["learned"]) < 0.92 * losses["mean"]
    slopes = weights(tmp_path / "learned.f")["words.slopes"]
    assert not torch.equal(slopes, WordWeights("learned").slopes)
    assert "words.slopes" not in weights(tmp_path / "unusual.f")
    learned, whole = replace(SHORT, words="learned"), tmp_path / "whole.f"
    train(scenes(), whole, learned)
    with pytest.raises(Cut):
        train(scenes(), tmp_path / "cut.f", learned, cut_in(2))
    assert same(whole, train(scenes(), tmp_path / "cut.f", learned).path)


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    apart = {"inputs": "heads", "words": "unusual"}
    for wrong in ({"epochs": 0}, {"batch": 0}, {"seed": -1}, {"validation": 0.0}, apart):
        with pytest.raises(DataError):
            train(scenes(), tmp_path / "f", replace(SHORT, **wrong))  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="--device cpu"):
            train(scenes(), tmp_path / "f", replace(SHORT, device="cuda"))
    assert not list(tmp_path.iterdir())


def test_the_verb_trains_from_a_store(tmp_path: Path) -> None:
    store, out = tmp_path / "maps", tmp_path / "f.safetensors"
    write_store(store, scenes())
    finish(store)
    told = invoke("calibrate", "train", store, out, "--epochs", 2, "--batch", 16, "--json")
    assert told.exit_code == 0, told.stderr
    facts = json.loads(told.stdout)
    assert facts["trained_on"] == "nano (grad), 48 samples"
    assert facts["figures"]["validation_kl"] > 0
    assert "epoch 2/2, 100%" in told.stderr
    assert same(out, train(scenes(), tmp_path / "direct", SHORT).path)
    refused(invoke("calibrate", "train", store, out), "f.safetensors", "--force")
    again = invoke("calibrate", "train", store, out, "--epochs", 1, "--inputs", "heads", "--force")
    assert again.exit_code == 0, again.stderr
    assert "validation KL" in again.stdout
    assert "top 10%" in again.stdout
    assert FTheta.load(out)[0].channels_in == HEADS
    refused(invoke("calibrate", "train", tmp_path / "none", tmp_path / "g"), "none")


def test_contrast_is_another_training_of_the_same_samples(tmp_path: Path) -> None:
    """It reads the samples twice, also where they can be read once."""
    contrast = replace(SHORT, label="contrast")
    sides = [replace(scene(5, number), pictures=(f"p{number // 4}.png",)) for number in range(24)]
    train(iter(sides), tmp_path / "one.safetensors", contrast)
    train(sides, tmp_path / "again.safetensors", contrast)
    train(sides, tmp_path / "relevance.safetensors", SHORT)
    assert same(tmp_path / "one.safetensors", tmp_path / "again.safetensors")
    assert not same(tmp_path / "one.safetensors", tmp_path / "relevance.safetensors")
    assert FTheta.load(tmp_path / "one.safetensors")[1]["option.label"] == "contrast"
