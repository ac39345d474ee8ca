"""Answers that end before their time: by a deadline, cancelled or closed from any thread; on every engine."""

import dataclasses
import math
import threading
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from foveate import Pipeline, Request
from foveate.bundle.reader import Bundle
from foveate.errors import BusyError, ClosedError, LimitError
from foveate.runtime.answer import Answer
from foveate.runtime.language.decoder import DecoderRun
from foveate.runtime.request_check import REQUEST
from foveate.runtime.stopping import Stop
from tests.conftest import Sample
from tests.runtime.prompts import generation, kept_prompt
from tests.runtime.test_admission import SOON, until
from tests.runtime.watched import graph_of, watch

PAST = 1e-9
"""A deadline that has passed when anybody looks."""


@pytest.fixture(scope="module")
def scene(samples: list[Sample]) -> Sample:
    return next(sample for sample in samples if sample.task == "letter")


def asked(scene: Sample, most: int = 200) -> dict[str, Any]:
    """A long answer about a picture."""
    return {"images": [scene.image], "keep": 0.1, "max_new_tokens": most, "ignore_eos": True}


def check_unanswered(answer: Answer, reason: str, total: int) -> None:
    """An answer that ended before its first token."""
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [], reason)
    assert (answer.prompt_tokens, answer.cache_bytes, answer.timing.first_token) == (0, 0, 0)
    assert (answer.visual.kept, answer.visual.total, answer.visual.relevance) == (0, total, None)
    assert len(answer.visual.boxes) == len(answer.visual.picture) == total


# From other threads


@pytest.mark.parametrize("way", ["cancel", "close", "event"])
def test_another_thread_ends_a_stream_within_a_token(
    engine: Pipeline, scene: Sample, way: str
) -> None:
    watching, watched = watch(engine)
    event, pieces = threading.Event(), []
    stream = watching.stream("Describe the picture.", **asked(scene), cancel=event)
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    until(lambda: len(watched.seen) > 3)
    {"cancel": stream.cancel, "close": stream.close, "event": event.set}[way]()
    steps = len(watched.seen)
    if way == "close":
        assert watched.released == 1
    reader.join(SOON)
    assert not reader.is_alive()
    assert watched.released == 1
    answer = stream.answer
    assert answer.finish_reason == "cancelled"
    assert 3 < len(answer.token_ids) <= len(watched.seen) <= steps + 1 < 200
    assert answer.cache_bytes > 0 and answer.visual.kept > 0
    assert answer.text.startswith("".join(pieces))
    if way != "close":
        assert "".join(pieces) == answer.text
    assert list(stream) == []
    whole = engine.generate("Describe the picture.", **asked(scene, len(answer.token_ids)))
    assert whole.token_ids == answer.token_ids


def test_a_stream_that_is_closed_within_its_own_step_ends_after_it(
    engine: Pipeline, scene: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler may: it runs in the midst of what it interrupts."""
    watching, watched = watch(engine)
    stream = watching.stream("Describe the picture.", **asked(scene))
    cache = stream._run._cache  # type: ignore[union-attr]
    decode = cache.decode

    def interrupted(tokens: Any) -> Any:
        stream.close()
        return decode(tokens)

    monkeypatch.setattr(cache, "decode", interrupted)
    "".join(stream)
    assert (stream.answer.finish_reason, len(stream.answer.token_ids)) == ("cancelled", 2)
    assert watched.released == 1


def test_cancelling_what_has_ended_changes_nothing(engine: Pipeline, scene: Sample) -> None:
    stream = engine.stream("Describe the picture.", **asked(scene, 3))
    text = "".join(stream)
    stream.cancel()
    stream.close()
    assert (stream.answer.finish_reason, stream.answer.text) == ("length", text)


# Deadlines


def test_a_deadline_ends_an_answer_with_what_there_is(engine: Pipeline, scene: Sample) -> None:
    watching, watched = watch(engine)
    began = time.perf_counter()
    stream = watching.stream("Describe the picture.", **asked(scene), deadline=SOON)
    next(stream)
    stream._text.stop.deadline = time.perf_counter()
    pieces = list(stream)
    answer = stream.answer
    assert answer.finish_reason == "deadline"
    assert 0 < len(answer.token_ids) == len(watched.seen) < 200
    assert answer.text.endswith("".join(pieces))
    assert watched.released == 1
    assert answer.timing.total <= time.perf_counter() - began


def test_a_deadline_is_counted_from_the_call(engine: Pipeline, scene: Sample) -> None:
    quick = engine.generate("Describe the picture.", **asked(scene, 1)).timing.total
    answer = engine.generate("Describe the picture.", **asked(scene), deadline=quick + 0.05)
    assert answer.finish_reason == "deadline"
    assert answer.timing.total < quick + 0.05 + SOON / 2


def test_what_ends_before_its_first_token_is_not_answered(
    engine: Pipeline, scene: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = engine.generate("What?", **asked(scene, 1)).visual.total
    event, backend = threading.Event(), engine._backend
    ended: list[str] = []

    def ending(stage: str) -> Any:
        """Cancel in the midst of a stage."""
        work = getattr(backend, stage)

        def run(*given: Any, **named: Any) -> Any:
            ended.append(stage)
            event.set()
            return work(*given, **named)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(backend, "encode", None)
        late = engine.generate("What?", **asked(scene), deadline=PAST)
    check_unanswered(late, "deadline", total)
    for stage, after in (("encode", "compress"), ("compress", None)):
        watching, watched = watch(engine)
        with monkeypatch.context() as patch:
            patch.setattr(backend, stage, ending(stage))
            if after:
                patch.setattr(backend, after, None)
            stream = watching.stream("What?", **asked(scene), cancel=event)
        assert list(stream) == []
        check_unanswered(stream.answer, "cancelled", total)
        assert (watched.seen, watched.released) == ([], 1)
        event.clear()
    assert ended == ["encode", "compress"]
    assert engine.generate("What?", **asked(scene, 2), cancel=event).finish_reason == "length"


@pytest.mark.parametrize(
    "deadline", [0, -1, math.nan, math.inf, True, "2", Decimal(2), [1], b"1", 1j]
)
def test_deadlines_that_are_none(deadline: Any) -> None:
    with pytest.raises(LimitError, match="give seconds above 0"):
        REQUEST["deadline"]("deadline", deadline)


def test_what_may_be_given(engine: Pipeline, scene: Sample) -> None:
    for cancel in (True, threading.Event, lambda: True):
        with pytest.raises(LimitError, match=r"threading\.Event"):
            engine.stream("What?", **asked(scene), cancel=cancel)  # type: ignore[arg-type]
    if graph_of(engine).capabilities.batch is None:
        with pytest.raises(LimitError, match=r"requests\[1\]: deadline is 0"):
            engine.generate_batch([Request("What?"), Request("What?", deadline=0)])
    for deadline in (np.float32(1), 3, np.int64(2)):
        assert Stop.of(deadline, None, 1.0).deadline == 1.0 + float(deadline)
    event = threading.Event()
    stop = Stop.of(None, event, 0.0)
    event.set()
    assert stop.reason() == "cancelled"
    event.clear()
    assert stop.reason() == "cancelled"


# Batches


@pytest.mark.parametrize("operators", ["standard", "contrib"])
def test_one_of_a_batch_ends_and_the_others_go_on(open_engine: Any, operators: str) -> None:
    pipe: Pipeline = open_engine(operators)
    width, counts = pipe.bundle.manifest.model.hidden_size, (12, 30, 7, 9)
    prompts = [kept_prompt(count, width, count, after=count) for count in counts]
    settings = [generation(count, count + 8, count) for count in counts]
    alone = [
        [step[0].id for step in pipe._language.generate([prompt], [one])]
        for prompt, one in zip(prompts, settings, strict=True)
    ]
    stops = [Stop() for _ in counts]
    stopped = [
        dataclasses.replace(one, stop=stop) for one, stop in zip(settings, stops, strict=True)
    ]
    run = pipe._language.generate([prompts[0], prompts[1], None, prompts[3]], stopped)
    assert isinstance(run, DecoderRun)
    found: dict[int, list[int]] = {0: [], 1: [], 3: []}
    ends: dict[int, tuple[int, str]] = {}
    stops[2].cancel()
    for number, step in enumerate(run):
        for place, token in step.items():
            if token.id is not None:
                found[place].append(token.id)
            if token.finish_reason is not None:
                ends[place] = (number, token.finish_reason)
                assert place not in run._cache.open  # type: ignore[attr-defined]
        if number == 2:
            # Between the prompts of the others.
            stops[1].cancel()
        if number == 6:
            stops[0].deadline = time.perf_counter()
    assert ends[2] == (2, "cancelled")
    assert ends[1] == (3, "cancelled")
    assert ends[0] == (7, "deadline")
    assert ends[3][1] == "length"
    assert found[3] == alone[3]
    for place in (0, 1):
        assert found[place] == alone[place][: len(found[place])]
    assert [len(found[place]) for place in (0, 1, 3)] == [3, 1, 8]
    run.close()


@pytest.mark.parametrize("operators", ["standard", "contrib"])
def test_answers_of_a_batch_whose_requests_end_early(
    open_engine: Any, operators: str, scene: Sample
) -> None:
    pipe: Pipeline = open_engine(operators)
    one, event = {"prompt": "Describe the picture.", **asked(scene, 5)}, threading.Event()
    event.set()
    wanted = pipe.generate(**one)
    late, whole, cancelled, other = pipe.generate_batch(
        [
            Request(**one, deadline=PAST),
            Request(**one),
            Request(**one, cancel=event),
            Request(**one, deadline=100.0, cancel=threading.Event()),
        ]
    )
    check_unanswered(late, "deadline", wanted.visual.total)
    check_unanswered(cancelled, "cancelled", wanted.visual.total)
    for answer in (whole, other):
        assert (answer.token_ids, answer.finish_reason) == (wanted.token_ids, "length")


# Pipelines that are shared


@pytest.fixture
def narrow(contrib_bundle: Bundle) -> Any:
    """Opens pipelines that run one request at a time."""
    opened = []

    def load(**limits: Any) -> Pipeline:
        opened.append(Pipeline.load(contrib_bundle.root, device="cpu", checksums=False, **limits))
        return opened[-1]

    yield load
    for pipe in opened:
        pipe.close()


def test_requests_wait_for_those_that_run(narrow: Any, scene: Sample) -> None:
    pipe: Pipeline = narrow(most_requests=1, most_waiting=1)
    usual = asked(scene, 4)
    wanted = pipe.generate("What?", **usual).token_ids
    stream = pipe.stream("What?", **usual)
    found: list[list[int]] = []
    waiting = threading.Thread(
        target=lambda: found.append(pipe.generate("What?", **usual).token_ids)
    )
    waiting.start()
    until(lambda: len(pipe._admission._line) == 1)
    for refused in (
        lambda: pipe.generate("What?", **usual),
        lambda: pipe.encode(images=[scene.image]),
        lambda: pipe.generate_batch([Request("What?", **usual)]),
    ):
        with pytest.raises(BusyError, match="1 requests run and 1 wait"):
            refused()
    with pytest.raises(LimitError, match="2 requests were asked at once and the pipeline runs 1"):
        pipe.generate_batch([Request("What?", **usual)] * 2)
    assert "".join(stream) == stream.answer.text
    waiting.join(SOON)
    assert found == [stream.answer.token_ids] == [wanted]
    with pipe.stream("What?", **usual), pytest.raises(BusyError, match="the deadline passed"):
        pipe.generate("What?", **usual, deadline=0.02)
    event = threading.Event()
    event.set()
    with pipe.stream("What?", **usual):
        check_unanswered(pipe.generate("What?", **usual, cancel=event), "cancelled", 0)
        batch = pipe.generate_batch([Request("What?", **usual, cancel=event)])
        check_unanswered(batch[0], "cancelled", 0)
    # Whatever fails leaves its place.
    with pytest.raises(LimitError):
        pipe.generate("What?", **{**usual, "max_new_tokens": 10**6})
    with pytest.raises(LimitError):
        pipe.generate_batch([Request("What?", **{**usual, "max_new_tokens": 10**6})])
    assert pipe.generate("What?", **usual).token_ids == wanted
    assert pipe._admission._running == 0


def test_a_pipeline_that_is_closed_answers_what_is_under_way(narrow: Any, scene: Sample) -> None:
    pipe: Pipeline = narrow(most_requests=3)
    usual = asked(scene, 8)
    wanted = pipe.generate("What?", **usual).token_ids
    streams = [pipe.stream("What?", **usual) for _ in range(3)]
    next(streams[0])
    errors: list[BaseException] = []

    def late() -> None:
        try:
            pipe.generate("What?", **usual)
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=late)
    waiting.start()
    until(lambda: len(pipe._admission._line) == 1)
    pipe.close()
    pipe.close()
    waiting.join(SOON)
    assert [type(error) for error in errors] == [ClosedError]
    with pytest.raises(ClosedError):
        pipe.generate("What?", **usual)
    engine = graph_of(pipe).engine
    reader = threading.Thread(target=lambda: list(streams[1]))
    reader.start()
    list(streams[0])
    reader.join(SOON)
    assert [stream.answer.token_ids for stream in streams[:2]] == [wanted] * 2
    assert engine.session is not None
    streams[2].close()
    assert engine.session is None
