"""How onnxruntime's sessions are opened, and that nothing outside them changes."""

import onnxruntime
import pytest

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.runtime.backends.ort.session import OnnxOptions, session_options
from tests.conftest import Sample


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_pool_of_threads_of_the_size_asked_for_that_stops_spinning(threads: int) -> None:
    settings = session_options(OnnxOptions(threads=threads))
    assert settings.intra_op_num_threads == threads
    assert settings.use_per_session_threads
    assert settings.get_session_config_entry("session.force_spinning_stop") == "1"


def test_pipelines_of_several_sizes_live_beside_an_apps_own_sessions(
    nano_bundle: Bundle, samples: list[Sample]
) -> None:
    graph = str(nano_bundle.file("vision"))
    before = onnxruntime.InferenceSession(graph)
    sample, found = samples[0], []
    for threads in (1, 2):
        with Pipeline.load(nano_bundle.root, device="cpu", threads=threads) as pipe:
            found.append(pipe.generate(sample.question, images=[sample.image], keep=0.25).token_ids)
            after = onnxruntime.InferenceSession(graph)
            assert [one.name for one in after.get_inputs()] == [
                one.name for one in before.get_inputs()
            ]
    assert found[0] == found[1]
