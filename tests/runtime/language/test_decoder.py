"""A decoder graph as a language model: tokens step by step, runs that are cancelled, what is refused."""

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import KeepError, LimitError, SamplingError
from foveate.runtime.kept_prompt import KeptPrompt
from foveate.runtime.language.base import Generation
from tests.conftest import Sample
from tests.runtime.prompts import generation, kept_prompt, room_for
from tests.runtime.watched import graph_of, watch

LENGTHS = (12, 30, 7)


@pytest.fixture(scope="module", params=["standard", "contrib"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """The same model in graphs of either operators."""
    name = {"standard": "nano_bundle", "contrib": "contrib_bundle"}[request.param]
    bundle: Bundle = request.getfixturevalue(name)
    with Pipeline.load(bundle.root, device="cpu") as pipeline:
        yield pipeline


def prompts(pipe: Pipeline) -> list[KeptPrompt]:
    """Random prompts of several lengths."""
    width = pipe.bundle.manifest.model.hidden_size
    return [kept_prompt(count, width, count, after=count) for count in LENGTHS]


def settings(most: int = 10) -> list[Generation]:
    """Answers of `most` tokens to them."""
    return [generation(count, count + most, count) for count in LENGTHS]


def test_prefills_come_one_by_one_and_later_tokens_together(pipe: Pipeline) -> None:
    language, taken = pipe._language, []

    def taking() -> Iterator[KeptPrompt]:
        """Note when a prompt is taken."""
        for number, prompt in enumerate(prompts(pipe)):
            taken.append(number)
            yield prompt

    run = language.generate(taking(), settings(4))
    steps = iter(run)
    assert taken == []
    tokens: dict[int, list[int]] = {number: [] for number in range(3)}
    for number in range(3):
        step = next(steps)
        assert (list(step), taken) == ([number], list(range(number + 1)))
        tokens[number].append(step[number].id)
    later = list(steps)
    assert [list(step) for step in later] == [[0, 1, 2]] * 3
    reasons = [[token.finish_reason for token in step.values()] for step in later]
    assert reasons == [[None] * 3, [None] * 3, ["length"] * 3]
    bytes_of_token = graph_of(pipe).token_bytes
    for number, count in enumerate(LENGTHS):
        assert run.cache_bytes(number) == (count + 3) * bytes_of_token
        tokens[number] += [step[number].id for step in later]
        alone = language.generate([prompts(pipe)[number]], [settings(4)[number]])
        assert [step[0].id for step in alone] == tokens[number]
        alone.close()
    run.close()
    run.close()


def test_a_stop_token_ends_one_prompt_alone(pipe: Pipeline) -> None:
    language = pipe._language
    first = [step[0].id for step in language.generate(prompts(pipe)[:1], settings()[:1])]
    stop = first[2]
    first = first[: first.index(stop)]
    several = settings()
    several[0] = dataclasses.replace(several[0], stop_tokens=frozenset([stop]))
    found: dict[int, list[Any]] = {number: [] for number in range(3)}
    for step in language.generate(prompts(pipe), several):
        for number, token in step.items():
            found[number].append(token)
    assert [token.id for token in found[0]] == [*first, stop]
    assert [token.finish_reason for token in found[0]] == [None] * len(first) + ["stop"]
    assert [len(found[number]) for number in (1, 2)] == [10, 10]


def test_a_run_is_cancelled_from_another_thread(pipe: Pipeline) -> None:
    for taken in (1, 2, 5):
        watching, watched = watch(pipe)
        run = watching._language.generate(prompts(pipe)[:1], settings()[:1])
        steps = iter(run)
        for _ in range(taken):
            next(steps)
        thread = threading.Thread(target=run.cancel)
        thread.start()
        thread.join()
        assert list(steps) == []
        assert len(watched.seen) == taken
        assert watched.released == 0
        run.close()
        assert watched.released == 1


def test_a_run_that_is_cancelled_between_prompts_takes_no_more(pipe: Pipeline) -> None:
    watching, watched = watch(pipe)
    run = watching._language.generate(prompts(pipe), settings())
    steps = iter(run)
    assert list(next(steps)) == [0]
    run.close()
    assert list(steps) == []
    assert len(watched.prompts) == 1
    assert watched.released == 3


def test_more_tokens_than_the_decoder_takes(pipe: Pipeline) -> None:
    most = pipe._language.capabilities.most_tokens
    assert most == pipe.bundle.manifest.limits.prompt_tokens
    with pytest.raises(LimitError, match=rf"up to {most + 1} tokens, and the decoder takes {most}"):
        pipe._language.generate(prompts(pipe)[:1], room_for(most + 1))


# What a language model cannot do


def limited(pipe: Pipeline, **changes: Any) -> Pipeline:
    """The pipeline with a language model that can do less."""
    watching, _ = watch(pipe)
    watching._language.capabilities = dataclasses.replace(pipe._language.capabilities, **changes)
    return watching


def test_most_tokens_leave_less_for_the_answer(pipe: Pipeline, samples: list[Sample]) -> None:
    sample = samples[0]
    asked: dict[str, Any] = {"images": [sample.image], "keep": 0.25, "ignore_eos": True}
    prompt_tokens = pipe.generate(sample.question, **asked, max_new_tokens=1).prompt_tokens
    small = limited(pipe, most_tokens=prompt_tokens + 5)
    answer = small.generate(sample.question, **asked)
    assert (len(answer.token_ids), answer.finish_reason) == (5, "length")
    with pytest.raises(LimitError, match=r"leaves 5 for the answer"):
        small.generate(sample.question, **asked, max_new_tokens=6)
    with pytest.raises(LimitError, match=r"leaves 0 for the answer"):
        limited(pipe, most_tokens=prompt_tokens).generate(sample.question, **asked)


@pytest.mark.parametrize(
    ("field", "options"),
    [("temperature", {"temperature": 0.5}), ("top_p", {"top_p": 0.5}), ("top_k", {"top_k": 3}),
     ("seed", {"seed": 1}), ("repetition_penalty", {"repetition_penalty": 1.1})],
)  # fmt: skip
def test_sampling_fields_that_are_not_honoured_are_refused(
    pipe: Pipeline, samples: list[Sample], field: str, options: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"images": [samples[0].image], "max_new_tokens": 2}
    others = pipe._language.capabilities.sampling - {field}
    small = limited(pipe, sampling=others)
    with pytest.raises(SamplingError, match=rf"{field} is .* decoder does not"):
        small.generate(samples[0].question, **asked, **options)
    wanted = pipe.generate(samples[0].question, **asked).token_ids
    assert small.generate(samples[0].question, **asked).token_ids == wanted


def test_original_positions_that_cannot_be_kept_are_refused(
    pipe: Pipeline, samples: list[Sample]
) -> None:
    small, sample = limited(pipe, any_positions=False), samples[0]
    asked: dict[str, Any] = {"images": [sample.image], "max_new_tokens": 2}
    for keep in ({"keep": 0.5}, {"kept": [1, 2]}):
        with pytest.raises(KeepError, match=r"keep=1\.0"):
            small.generate(sample.question, **asked, **keep)
    wanted = pipe.generate(sample.question, **asked, keep=1.0)
    found = small.generate(sample.question, **asked, keep=1.0)
    assert found.token_ids == wanted.token_ids
    assert np.array_equal(found.visual.indices, wanted.visual.indices)
