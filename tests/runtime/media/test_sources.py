"""What a request is about: pictures or a video's frames, in any of their forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.errors import ImageError
from foveate.families.base import UnopenedPicture, Video
from foveate.runtime.media.sources import open_media
from tests.runtime.media.made import encoded, smooth


def test_pictures_stay_in_order_and_frames_become_one_video(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(smooth(20, 30)))
    sources: list[Any] = [
        tmp_path / "a.png",
        encoded(smooth(8, 9)),
        smooth(5, 6),
        np.asarray(smooth(3, 4)),
    ]
    sizes = [(30, 20), (9, 8), (6, 5), (4, 3)]
    media = open_media(sources, None)
    pictures = [one for one in media if isinstance(one, UnopenedPicture)]
    assert [one.size for one in pictures] == [one.open().size for one in pictures] == sizes
    for video in (np.stack([np.asarray(smooth())] * 3), [smooth()] * 3, iter([smooth()] * 3)):
        (found,) = open_media(None, video)
        assert isinstance(found, Video)
        assert [frame.size for frame in found.frames] == [(60, 40)] * 3


@pytest.mark.parametrize(
    ("images", "video", "words"),
    [
        (None, None, "no picture was given"),
        ([], None, "no picture was given"),
        ([smooth()], [smooth()], "one or the other"),
        ([], [smooth()], "one or the other"),
        (None, [], "the video has no frame"),
        (None, smooth(), "no list of frames"),
        (None, "clip.mp4", "no list of frames"),
        (None, np.asarray(smooth()), "no list of frames"),
        (smooth(), None, "images is one picture"),
        ("a.png", None, "images is one picture"),
        (Path("a.png"), None, "images is one picture"),
        (b"bytes", None, "images is one picture"),
        (np.asarray(smooth()), None, "images is one picture"),
        ([smooth(), b"no picture"], None, "Picture 2"),
        (None, [smooth(), b"no picture"], "Picture 2"),
    ],
    ids=range(15),
)
def test_what_is_neither_is_refused(images: Any, video: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        open_media(images, video)
