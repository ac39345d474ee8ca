"""What a request is about: pictures or a video's frames, in any of their forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.errors import ImageError, LimitError
from foveate.families.base import FrameRule, UnopenedPicture, Video
from foveate.families.qwen2_vl_pixels import Pixels
from foveate.families.qwen2_vl_settings import Settings, VideoSettings
from foveate.runtime.media import sources
from foveate.runtime.media.video import VideoFile
from tests.runtime.media.films import number_of, seconds, write_film
from tests.runtime.media.made import encoded, smooth


class Small(Pixels):
    """Preprocessing that makes films of 3,136 pixels at most a frame: 4 tokens."""

    frame_rule = FrameRule()


FAMILY: Any = Small(Settings(), VideoSettings(min_pixels=784, max_pixels=3136))


def open_media(images: Any, video: Any, most: int = 500) -> list[Any]:
    """Look at pictures or a film, with room for so many visual tokens."""

    def check(media: Any) -> None:
        tokens = FAMILY.plan(media).tokens
        if tokens > most:
            raise LimitError(f"{tokens} visual tokens")

    return sources.open_media(images, video, FAMILY, check=check)


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
        assert [frame.size for frame in found.frames] == [smooth().size] * 3


@pytest.mark.parametrize(
    ("images", "video", "words"),
    [
        (None, None, "no picture was given"),
        ([], None, "no picture was given"),
        ([smooth()], [smooth()], "one or the other"),
        ([], [smooth()], "one or the other"),
        (None, [], "the video has no frame"),
        (None, smooth(), "no list of frames"),
        (None, "clip.mp4", "There is no file 'clip.mp4'"),
        (None, VideoFile("clip.mp4", frames=0), "frames is 0"),
        (None, [smooth(), smooth(5, 5)], "frames of one size"),
        (None, b"bytes", "no animated picture"),
        (None, np.asarray(smooth()), "no list of frames"),
        (smooth(), None, "images is one picture"),
        ("a.png", None, "images is one picture"),
        (Path("a.png"), None, "images is one picture"),
        (b"bytes", None, "images is one picture"),
        (np.asarray(smooth()), None, "images is one picture"),
        ([smooth(), b"no picture"], None, "Picture 2"),
        (None, [smooth(), b"no picture"], "Picture 2"),
    ],
    ids=range(18),
)
def test_what_is_neither_is_refused(images: Any, video: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        open_media(images, video)


def test_a_file_gives_the_familys_frames_at_its_size(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", seconds(60))
    for video in (film, str(film), VideoFile(film), VideoFile(film, frames=4)):
        (found,) = open_media(None, video)
        assert [frame.size for frame in found.frames] == [(56, 28)] * 4
    (part,) = open_media(None, VideoFile(film, start=1, frames=2))
    large: Any = Small(Settings(), VideoSettings(min_pixels=784, max_pixels=96 * 64))
    (wide,) = sources.open_media(None, VideoFile(film, fps=1), large)
    assert len(part.frames) == 2
    assert [number_of(frame) for frame in wide.frames] == [0, 15, 30, 45]


def test_prepared_frames_are_those_of_whole_ones(tmp_path: Path) -> None:
    """Frames are resized once, as soon as they are there, and not once more."""
    film = write_film(tmp_path / "film.mp4", seconds(60))
    whole = [
        frame
        for _, frame in zip(
            range(4), sources.plan_frames(VideoFile(film), FrameRule()).pictures(), strict=True
        )
    ]
    (found,) = open_media(None, film)
    ours, theirs = FAMILY.prepare([found]), FAMILY.prepare([Video(tuple(whole))])
    np.testing.assert_array_equal(
        ours.calls[0].inputs["pixel_values"], theirs.calls[0].inputs["pixel_values"]
    )
    assert FAMILY.plan([found]).tokens == ours.tokens == 4


def test_too_many_tokens_are_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_film(tmp_path / "film.mp4", seconds(60))
    decoded: list[object] = []
    monkeypatch.setattr("foveate.runtime.media.video.decode", lambda *some: decoded.append(some))
    with pytest.raises(LimitError, match="60 visual tokens"):
        open_media(None, VideoFile(film, fps=30), most=59)
    assert not decoded


def test_a_list_without_end_is_read_as_far_as_there_is_room() -> None:
    given = 0

    def endless() -> Any:
        nonlocal given
        while True:
            given += 1
            yield smooth()

    with pytest.raises(LimitError, match="128 visual tokens"):
        open_media(None, endless(), most=100)
    assert given == 128


def test_many_frames_are_not_opened_before_they_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encoded(smooth(100, 100).resize((1000, 500))))
    with pytest.raises(LimitError, match="visual tokens"):
        open_media(None, [tmp_path / "large.png"] * 2000)
    (found,) = open_media(None, [tmp_path / "large.png"] * 20)
    assert {type(frame) for frame in found.frames} == {UnopenedPicture}
