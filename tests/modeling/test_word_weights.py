"""Weights of an instruction's tokens: by how far their attention is from what is usual for them."""

import pytest
import torch
from torch import Tensor

from foveate.bundle.words import WORDS, Words
from foveate.modeling.f_theta import FTheta
from foveate.modeling.ranker import Ranker
from foveate.modeling.word_weights import NOISE, SHARPNESS, WordWeights

VISUAL = 48
FORMS = [form for form in WORDS if form != "mean"]


def asked(place: int = 3, words: int = 6, heads: int = 2) -> Tensor:
    """Attention [heads, words, VISUAL] of tokens that look about alike, but for one that looks at token 7."""
    torch.manual_seed(5)
    usual = torch.rand(VISUAL) + 0.1
    attention = usual * (1 + 0.1 * torch.rand(heads, words, VISUAL))
    attention[:, place] = 0.1
    attention[:, place, 7] = 10.0
    return attention / attention.sum(-1, keepdim=True) * torch.rand(heads, words, 1)


def test_the_papers_form_is_the_mean() -> None:
    attention, words = asked(), WordWeights("mean")
    assert torch.equal(words.pool(attention), attention.mean((0, 1)))
    assert torch.equal(words.pool(attention, apart=True), attention.mean(1))
    assert torch.equal(words(attention[0]), torch.full((6,), 1 / 6))


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_looks_elsewhere_counts_most(form: Words) -> None:
    """It has more than nine tenths of the weight wherever it stands, and its token the highest score."""
    for place in (0, 3, 5):
        attention = asked(place)
        weights = WordWeights(form)(attention.mean(0)).detach()
        assert weights.argmax() == place
        assert weights[place] > 0.9
        assert weights.sum().item() == pytest.approx(1)
        scores = WordWeights(form).pool(attention)
        assert scores.argmax() == 7
        assert scores.sum().item() == pytest.approx(1)


def test_weights_are_the_divergence_to_a_power() -> None:
    """In float64, by the definition; 1e-3 for what is added before logarithms."""
    attention = asked().mean(0).double()
    attention[0] = attention[1] ** 2
    shares = attention / attention.sum(1, keepdim=True)
    far = (shares * (shares / shares.mean(0)).log()).sum(1)
    assert (far > NOISE * far.mean()).sum() == 1
    far = far.clamp(min=NOISE * float(far.mean())) ** SHARPNESS
    weights = WordWeights("unusual")(attention)
    torch.testing.assert_close(weights, far / far.sum(), rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_how_much_a_token_looks_at_pictures_at_all_does_not_count_in_what_it_sees(
    form: Words,
) -> None:
    """Nor does the number of heads that one averages over; heads apart average to the whole."""
    words, attention = WordWeights(form), asked()
    apart = words.pool(attention, apart=True)
    torch.testing.assert_close(apart.mean(0), words.pool(attention))
    if form == "unusual":
        dimmed = attention * torch.rand(1, 6, 1)
        torch.testing.assert_close(words.pool(dimmed), words.pool(attention))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 40])
def test_tokens_that_all_look_alike_count_alike(form: Words, count: int) -> None:
    """One token alone too: there is nothing unusual about any, and the ranking is the paper's."""
    attention = asked(words=8)[:, :1].expand(-1, count, -1)
    words = WordWeights(form)
    torch.testing.assert_close(words(attention.mean(0)), torch.full((count,), 1 / count))
    order = words.pool(attention).argsort()
    assert torch.equal(order, attention.mean((0, 1)).argsort())


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_sees_no_picture_takes_no_part(form: Words) -> None:
    attention = asked()
    attention[:, 1] = 0
    scores = WordWeights(form).pool(attention)
    assert bool(scores.isfinite().all())
    assert scores.argmax() == 7


def test_slopes_are_trained_and_begin_as_unusual() -> None:
    attention, words = asked(), WordWeights("learned")
    torch.testing.assert_close(words.pool(attention), WordWeights("unusual").pool(attention))
    words.pool(attention)[0].backward()
    assert words.slopes.grad is not None and bool((words.slopes.grad != 0).all())
    assert [list(WordWeights(form).parameters()) for form in WORDS[:2]] == [[], []]


@pytest.mark.parametrize("words", WORDS)
def test_a_ranker_takes_the_networks_own_weights_of_words(words: Words) -> None:
    attention, network = asked(), FTheta(1, "log", words).eval()
    scores, relevance = Ranker(network)(attention)
    wanted = network(network.words.pool(attention)[None])[0]
    assert torch.equal(scores, wanted)
    torch.testing.assert_close(relevance, scores.softmax(-1))
    bare, share = Ranker(words="unusual")(attention)
    assert torch.equal(bare, WordWeights("unusual").pool(attention))
    assert share.sum().item() == pytest.approx(1)
