"""f_θ: the paper's form, its options, and many sequences in one batch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from foveate.calibration.training.examples import Example, pack, packs
from foveate.errors import CheckpointError, OutputExistsError
from foveate.modeling.f_theta import CHANNELS, SCALINGS, FTheta

LENGTHS = (64, 1, 150, 2, 97)
FORMS = [(channels, scaling) for channels in (1, 6) for scaling in SCALINGS]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two threads on so little only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(channels: int = 1, scaling: str = "none") -> FTheta:
    torch.manual_seed(3)
    return FTheta(channels, scaling).eval()  # type: ignore[arg-type]


def sequences(channels: int, lengths: Sequence[int] = LENGTHS) -> list[torch.Tensor]:
    torch.manual_seed(4)
    return [torch.rand(channels, length) / length for length in lengths]


def examples(channels: int) -> list[Example]:
    return [
        Example(("p",), part, torch.rand(part.shape[1]), np.empty(0), np.empty(0))
        for part in sequences(channels)
    ]


def test_the_papers_form_has_the_papers_size() -> None:
    """177,541 by appendix B; Eq. 6 counts the five layers' multiply-adds alone, 175,555 a token."""
    assert CHANNELS == (32, 64, 128, 256, 512)
    weights = dict(FTheta().named_parameters())
    assert sum(weight.numel() for weight in weights.values()) == 177_541
    layers = [
        name for name in weights if name.startswith(("depth", "point")) and "bias" not in name
    ]
    assert sum(weights[name].numel() for name in layers) == 175_555


def test_a_token_sees_five_to_either_side() -> None:
    """Five kernels of 3: fully convolutional, so any length goes in."""
    attention = torch.rand(1, 3000, requires_grad=True)
    logits = network()(attention)
    assert logits.shape == (1, 3000)
    logits[0, 1000].backward()
    assert attention.grad is not None
    seen = attention.grad[0].nonzero().flatten()
    assert seen.min() >= 995
    assert seen.max() <= 1005
    assert len(seen) == 11


@pytest.mark.parametrize(("channels", "scaling"), FORMS)
def test_a_padded_batch_gives_what_each_sequence_gives_alone(channels: int, scaling: str) -> None:
    """1e-6 of logits of about 0.1; what is in the padding does not count."""
    f_theta, alone = network(channels, scaling), sequences(channels)
    padded = torch.full((len(alone), channels, max(LENGTHS)), 1e3)
    mask = torch.zeros(len(alone), max(LENGTHS), dtype=torch.bool)
    for row, part in enumerate(alone):
        padded[row, :, : part.shape[1]] = part
        mask[row, : part.shape[1]] = True
    batch = f_theta(padded.squeeze(1) if channels == 1 else padded, mask)
    assert torch.isneginf(batch[~mask]).all()
    for row, part in enumerate(alone):
        wanted = f_theta(part if channels == 1 else part[None])[0]
        assert torch.allclose(batch[row, : len(wanted)], wanted, atol=1e-6, rtol=0)
        softmax = batch[row].softmax(-1)[: len(wanted)]
        assert torch.allclose(softmax, wanted.softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 6])
def test_a_pack_gives_what_each_sequence_gives_alone(channels: int) -> None:
    """Values to 1e-6, and in float64 the gradients too: one hole is padding to both its sides."""
    f_theta, several = network(channels), examples(channels)
    packed = pack(several)
    assert packed.features.shape == (1, channels, sum(LENGTHS) + len(LENGTHS))
    logits = f_theta.convolve_masked(packed.features, packed.mask)
    for row, inside, example in zip(
        packed.log_softmax(logits), packed.inside, several, strict=True
    ):
        wanted = f_theta.convolve(example.features[None])[0].log_softmax(-1)
        assert torch.allclose(row[inside], wanted, atol=1e-6, rtol=1e-6)
        assert not row[~inside].any()

    f_theta.double()
    features, labels = packed.features.double(), packed.labels.double()
    logs = packed.log_softmax(f_theta.convolve_masked(features, packed.mask))
    found = torch.autograd.grad((logs * labels).sum(), list(f_theta.parameters()))
    alone = [f_theta.convolve(example.features.double()[None])[0] for example in several]
    loss = sum(
        (one.log_softmax(-1) * example.label).sum()
        for one, example in zip(alone, several, strict=True)
    )
    assert isinstance(loss, torch.Tensor)
    wanted_gradients = torch.autograd.grad(loss, list(f_theta.parameters()))
    for gradient, wanted in zip(found, wanted_gradients, strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-12, rtol=1e-9)


def test_packs_hold_every_example_once_and_in_order() -> None:
    several = examples(1)
    parts = list(packs(several, most=100))
    assert [len(part.labels) for part in parts] == [2, 1, 1, 1]
    rows = [
        row[inside] for part in parts for row, inside in zip(part.labels, part.inside, strict=True)
    ]
    assert all(torch.equal(row, one.label) for row, one in zip(rows, several, strict=True))
    (whole,) = packs(several)
    assert len(whole.labels) == len(several)


def test_scalings_do_what_they_say() -> None:
    attention = torch.tensor([[0.25, 0.0, 0.5, 0.25]])
    assert torch.equal(FTheta(1, "none").scale(attention), attention)
    logs = FTheta(1, "log").scale(attention)
    assert torch.allclose(logs, torch.tensor([[1.0, 0.0, 2.0, 1.0]]).add(1e-4).log())


def test_pooling_averages_what_is_not_read_apart() -> None:
    attention = torch.rand(6, 4, 10)
    assert torch.equal(FTheta().pool(attention), attention.mean(dim=(0, 1)))
    assert torch.equal(FTheta(6).pool(attention), attention.mean(dim=1))
    with pytest.raises(CheckpointError, match="reads 8 heads and the model has 6"):
        FTheta(8).pool(attention)


@pytest.mark.parametrize(("channels", "scaling"), FORMS)
def test_a_file_brings_back_its_form(tmp_path: Path, channels: int, scaling: str) -> None:
    path = tmp_path / "f.safetensors"
    made = network(channels, scaling)
    made.save(path, {"trained_on": "nothing", "kind": "another"})
    with pytest.raises(OutputExistsError):
        made.save(path, {}, force=False)
    loaded, facts = FTheta.load(path)
    assert facts == {"trained_on": "nothing"}
    assert (loaded.channels_in, loaded.scaling, loaded.training) == (channels, scaling, False)
    for name, weight in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.safetensors"]


def test_a_file_without_a_form_is_the_papers(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file(network().state_dict(), str(path), {"kind": "f_theta"})
    loaded, _ = FTheta.load(path)
    assert (loaded.channels_in, loaded.scaling) == (1, "none")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"scaling": "square"}, "unknown scaling"),
        ({"channels_in": "many"}, "of many channels"),
        ({"channels_in": "99999999"}, "channels"),
        ({"channels_in": "2"}, "not the weights"),
        ({"kind": "bundle"}, "not an f_θ"),
    ],
)
def test_a_file_of_an_unknown_form_is_refused(
    tmp_path: Path, form: dict[str, str], message: str
) -> None:
    path = tmp_path / "f.safetensors"
    save_file(network().state_dict(), str(path), {"kind": "f_theta", **form})
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata()["kind"]
    with pytest.raises(CheckpointError, match=message):
        FTheta.load(path)
