"""Calls of bound memory, and which of them are recorded."""

from typing import Any

import numpy as np
import pytest

from foveate.bundle.reader import Bundle
from foveate.runtime.backends.ort.session import OnnxOptions
from foveate.runtime.backends.ort_contrib import io_binding
from foveate.runtime.backends.ort_contrib.io_binding import BoundEngine


def test_calls_are_recorded_as_they_are_asked_for(
    fused_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BoundEngine(fused_bundle.file("merge"), OnnxOptions())
    runs: list[Any] = []
    repeat = engine.repeat
    engine.repeat = lambda *call: runs.append(call) or repeat(*call)  # type: ignore[assignment,func-returns-value]
    width = fused_bundle.manifest.model.hidden_size

    def run(count: int, record: bool | None) -> int:
        """Merge a prompt of so many tokens and say how many calls are recorded."""
        feeds = {
            "text_embeds": np.full((count, width), count, np.float32),
            "visual_embeds": np.zeros((1, width), np.float32),
            "order": np.arange(count + 1)[::-1],
        }
        given = engine.run(feeds, {"inputs_embeds": (1, count + 1, width)}, record=record)
        assert given["inputs_embeds"].numpy()[0, :, 0].tolist() == [0, *[count] * count]
        return len(engine.calls)

    assert run(1, True) == 0
    engine.captures = True
    monkeypatch.setattr(io_binding, "MOST_GRAPHS", 2)
    assert [run(2, False) for _ in range(3)] == [0, 0, 0]
    assert [run(3, True) for _ in range(2)] == [1, 1]
    assert [run(4, None) for _ in range(3)] == [1, 2, 2]
    assert run(3, False) == run(5, True) == 2
    assert len(runs) == 11
