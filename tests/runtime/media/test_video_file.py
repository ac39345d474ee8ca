"""Video files to frames: which ones, how many, and what cannot be read."""

from pathlib import Path

import av
import numpy as np
import pytest

from foveate.errors import ImageError
from foveate.runtime.media.video import read_video
from tests.command import invoke, refused
from tests.conftest import NANO

LEVELS = range(0, 240, 20)
RATE = 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of grey that gets lighter four times a second."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 168, 140, "yuv420p"
        for level in LEVELS:
            picture = np.full((140, 168, 3), level, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("fps", "wanted"),
    [(2.0, [0, 2, 4, 6, 8, 10]), (4.0, list(range(12))), (0.5, [0, 8]), (99, list(range(12)))],
)
def test_frames_are_evenly_apart_in_time(clip: Path, fps: float, wanted: list[int]) -> None:
    frames = read_video(clip, fps)
    assert [frame.size for frame in frames] == [(168, 140)] * len(wanted)
    greys = [float(np.asarray(frame).mean()) for frame in frames]
    # Compression and colour conversion shift greys by a few levels; neighbours are 20 apart.
    np.testing.assert_allclose(greys, [LEVELS[place] for place in wanted], atol=6)


def test_what_cannot_be_read(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    for path in (tmp_path / "no.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(ImageError, match="cannot be read as a video"):
            read_video(path)
    with pytest.raises(ImageError, match="more than 0"):
        read_video(clip, 0)


def test_run_asks_about_a_video(nano_bundle: object, clip: Path) -> None:
    root = nano_bundle.root  # type: ignore[attr-defined]
    told = invoke(
        "run",
        root,
        "What is there?",
        "--video",
        clip,
        "--fps",
        "1",
        "--keep",
        "0.5",
        "--max-new-tokens",
        "2",
    )
    assert told.exit_code == 0, told.stderr
    assert "visual tokens" in told.stderr
    picture = NANO / "samples" / "scene-77-00000.png"
    assert "--image FILE or --video FILE" in invoke("run", root, "What?").stderr
    refused(invoke("run", root, "What?", "--video", clip, "--image", picture), "one or the other")
    refused(invoke("run", root, "What?", "--video", clip, "--heatmap", "x.png"), "heatmap")
