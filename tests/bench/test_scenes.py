"""Scenes: what is read of a command line, and the noise that is measured with."""

import pytest

from foveate.bench.scenes import (
    Scene,
    parse_batches,
    parse_keeps,
    parse_list,
    parse_picture,
    parse_video,
)
from foveate.errors import ImageError, KeepError, LimitError
from foveate.families.base import Video


def test_scenes_and_keeps_are_read() -> None:
    assert parse_list("28x56, 28x56,1x2", parse_picture) == (Scene(28, 56), Scene(1, 2))
    assert parse_video("32x728x392") == Scene(728, 392, 32)
    assert parse_batches("8,1, 4,1") == (1, 4, 8)
    assert parse_keeps("1,0.5,64,0.5") == (1.0, 0.5, 64)
    for text in ("28", "0x28", "28x99999", "x", "28x28x28", "-1x2"):
        with pytest.raises(ImageError):
            parse_picture(text)
    for text in ("28x28", "0x28x28", "9999x28x28", "2x0x2"):
        with pytest.raises(ImageError):
            parse_video(text)
    for text in ("", ",", "a", "0", "1.5", "-1", "1,x"):
        with pytest.raises(LimitError, match="batch is"):
            parse_batches(text)
    for text in ("", ",", "a"):
        with pytest.raises(KeepError):
            parse_keeps(text)
    scene = Scene(20, 10, 2)
    assert scene.levels().shape == (2, 10, 20, 3)
    assert (scene.levels() == scene.levels()).all()
    assert scene.levels().std() > 50


def test_a_video_is_one_medium() -> None:
    video, picture = Scene(20, 10, 3), Scene(20, 10)
    (medium,) = video.media(video.pictures())
    assert isinstance(medium, Video)
    assert [frame.size for frame in medium.frames] == [(20, 10)] * 3
    (medium,) = picture.media(picture.pictures())
    assert not isinstance(medium, Video)
    assert medium.size == (20, 10)
