"""Calls of bound memory, and which of them are captured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.bundle.reader import Bundle
from foveate.errors import BackendError
from foveate.runtime.backends.ort.memory import zeros
from foveate.runtime.backends.ort.session import OnnxOptions
from foveate.runtime.backends.ort_contrib.io_binding import IoBoundEngine


@pytest.fixture
def engine(contrib_bundle: Bundle) -> IoBoundEngine:
    return IoBoundEngine(contrib_bundle.file("merge"), OnnxOptions())


@pytest.fixture
def runs(engine: IoBoundEngine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that were run."""
    noted: list[Any] = []
    repeat = engine.repeat

    def noting(call: Any) -> None:
        """Note a call, and run it."""
        noted.append(call)
        repeat(call)

    monkeypatch.setattr(engine, "repeat", noting)
    return noted


def test_calls_are_captured_as_they_are_asked_for(
    contrib_bundle: Bundle, engine: IoBoundEngine, runs: list[Any]
) -> None:
    width = contrib_bundle.manifest.model.hidden_size

    def run(count: int, capture: bool | None) -> int:
        """Merge a prompt of so many tokens and say how many calls are captured."""
        feeds = {
            "text_embeds": np.full((count, width), count, np.float32),
            "visual_embeds": np.zeros((1, width), np.float32),
            "order": np.arange(count + 1)[::-1],
        }
        given = engine.run(feeds, {"inputs_embeds": (1, count + 1, width)}, capture=capture)
        assert given["inputs_embeds"].numpy()[0, :, 0].tolist() == [0, *[count] * count]
        return len(engine.graphs)

    assert run(1, True) == 0
    engine.captures, engine.graphs.most = True, 2
    assert [run(2, False) for _ in range(3)] == [0, 0, 0]
    assert [run(3, True) for _ in range(2)] == [1, 1]
    assert [run(4, None) for _ in range(3)] == [1, 2, 2]
    assert run(3, False) == run(5, True) == 2
    assert len(runs) == 11


def test_a_call_runs_once_also_when_it_is_captured(
    contrib_bundle: Bundle, engine: IoBoundEngine, runs: list[Any]
) -> None:
    engine.captures = True
    width = contrib_bundle.manifest.model.hidden_size
    feeds = {
        "text_embeds": np.ones((2, width), np.float32),
        "visual_embeds": np.zeros((1, width), np.float32),
        "order": np.array([0, 2, 1]),
    }
    into = {"inputs_embeds": zeros((1, 3, width), "float32", "cpu")}
    for number in range(1, 5):
        given = engine.run(feeds, {}, into)
        assert (len(runs), len(engine.graphs)) == (number, min(number - 1, 1))
        assert given["inputs_embeds"].numpy()[0, :, 0].tolist() == [1, 0, 1]


def test_enqueued_runs_are_waited_for_once_and_by_whoever_reads(
    contrib_bundle: Bundle, engine: IoBoundEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.captures = True
    width = contrib_bundle.manifest.model.hidden_size
    other = IoBoundEngine(contrib_bundle.file("merge"), OnnxOptions())

    def merge(engine: IoBoundEngine, visual: Any) -> Mapping[str, Any]:
        """One visual token after two of text."""
        feeds = {
            "text_embeds": np.ones((2, width), np.float32),
            "visual_embeds": visual,
            "order": np.array([0, 1, 2]),
        }
        return engine.run(feeds, {"inputs_embeds": (1, 3, width)}, capture=False)

    first = merge(engine, np.zeros((1, width), np.float32))["inputs_embeds"]
    second = merge(engine, first.viewed((1, width)))["inputs_embeds"]
    assert len(engine.pending) == 2
    # A run of the same engine is in order after those before; another engine's has to wait.
    merge(other, second.viewed((1, width)))
    assert engine.pending == []
    waits: list[int] = []
    monkeypatch.setattr(engine, "wait", lambda: waits.append(1))
    for _ in range(2):
        assert second.numpy()[0, :, 0].tolist() == [1, 1, 1]
    assert waits == [1, 1]


def test_a_graph_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="cannot open it"):
        IoBoundEngine(tmp_path / "decoder.onnx", OnnxOptions())
