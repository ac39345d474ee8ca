"""Animated pictures as videos: which frames, and what is none."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline
from foveate.bundle.reader import Bundle
from foveate.errors import ImageError
from foveate.families.base import FrameRule, Video
from foveate.runtime.media.animation import Animation, find_animation
from foveate.runtime.media.sources import open_media
from foveate.runtime.media.video import VideoFile, choose
from tests.command import invoke, refused
from tests.runtime.media.made import animation, encoded, smooth

FORMS = ("GIF", "PNG", "WEBP", "AVIF")
FAMILY: Any = SimpleNamespace(frame_rule=FrameRule(), fit_frame=lambda frame, count: frame)
LEVELS = range(0, 240, 20)


def film(
    form: str, durations: list[int], size: tuple[int, int] = (112, 84), **options: Any
) -> bytes:
    """An animation whose frames get lighter by 20 levels; durations in milliseconds."""
    frames = [Image.new("RGB", size, (level,) * 3) for level in LEVELS[: len(durations)]]
    if form == "WEBP":
        options["lossless"] = True
    return encoded(
        frames[0], form, save_all=True, append_images=frames[1:], duration=durations, **options
    )


def found(data: bytes) -> Animation:
    animated = find_animation(data)
    assert animated is not None
    return animated


def chosen(animated: Animation, **options: Any) -> tuple[int, ...]:
    """The frames that are taken of it."""
    return choose(VideoFile("", **options), animated.times, FrameRule(), animated.name)


def numbers(pictures: list[Image.Image]) -> list[int]:
    """Which frames of `film` these are; AVIF is off by a level or two."""
    return [round(float(np.asarray(one).mean()) / 20) for one in pictures]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("durations", "fps", "wanted"),
    [
        ([250] * 12, 2, [0, 2, 4, 6, 8, 10]),
        ([250] * 12, 4, list(range(12))),
        ([250] * 12, 0.1, [0, 3, 6, 9]),
        ([1000, 500, 200, 300, 1000], 2, [0, 0, 2, 4]),
        ([100] * 2, 2, [0, 1]),
        ([100] * 3, 2, [0, 1]),
    ],
)  # fmt: skip
def test_frames_are_those_on_the_screen(
    form: str, durations: list[int], fps: float, wanted: list[int]
) -> None:
    animated = found(film(form, durations))
    assert animated.times.seconds == Fraction(sum(durations), 1000)
    assert numbers(animated.pictures(chosen(animated, fps=fps))) == wanted


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_frames_without_a_duration_last_a_tenth_of_a_second(form: str) -> None:
    assert found(film(form, [0] * 6)).times.seconds == Fraction(6, 10)


def test_the_picture_shown_in_place_of_an_animation_is_no_frame() -> None:
    frames = [Image.new("RGB", (20, 20), (level,) * 3) for level in (200, 0, 20)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=500,
                   default_image=True)  # fmt: skip
    animated = found(data)
    assert numbers(animated.pictures(chosen(animated))) == [0, 1]


def test_clear_parts_show_white_and_frames_are_whole() -> None:
    first = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    second = first.copy()
    second.paste((200, 0, 0, 255), (0, 0, 10, 20))
    data = encoded(
        first, "WEBP", save_all=True, append_images=[second], duration=500, lossless=True
    )
    pictures = found(data).pictures([0, 1])
    assert [one.getpixel((15, 5)) for one in pictures] == [(255, 255, 255)] * 2
    assert [one.getpixel((5, 5)) for one in pictures] == [(255, 255, 255), (200, 0, 0)]


def test_what_is_no_animation(tmp_path: Path) -> None:
    (tmp_path / "still.gif").write_bytes(encoded(smooth(), "GIF"))
    (tmp_path / "text.gif").write_bytes(b"GIF of my cat")
    for source in (tmp_path / "still.gif", tmp_path / "lost.gif", tmp_path, b"", b"abc", encoded(smooth()),
                   encoded(smooth(), "TIFF"), animation("TIFF")):  # fmt: skip
        assert find_animation(source) is None
        if source != tmp_path / "still.gif":
            with pytest.raises(ImageError, match=r"no animated picture|no file|is a folder"):
                open_media(None, source, FAMILY)
    (still,) = open_media(None, tmp_path / "still.gif", FAMILY)
    assert isinstance(still, Video) and len(still.frames) == 1
    for form in FORMS:
        data = film(form, [100] * 6)
        with pytest.raises(ImageError, match="cut short or damaged"):
            animated = find_animation(data[: len(data) * 3 // 4])
            assert animated is not None
            animated.pictures(range(6))
        with pytest.raises(ImageError, match="over the limit of 100"):
            find_animation(data, max_pixels=100)
        animated = find_animation(data, max_pixels=112 * 84 * 3)
        assert animated is not None
        with pytest.raises(ImageError, match="4 of them are over the limit"):
            animated.pictures(range(6))


def test_too_many_frames_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.runtime.media.animation.MOST_FRAMES", 5)
    with pytest.raises(ImageError, match="more than 5 frames"):
        find_animation(film("GIF", [100] * 6))


def test_an_animation_is_asked_about_as_a_video(tiny_bundle: Bundle, tmp_path: Path) -> None:
    data = film("GIF", [250] * 12)
    path = tmp_path / "a.gif"
    path.write_bytes(data)
    (video,) = open_media(None, data, FAMILY)
    assert isinstance(video, Video)
    frames: list[Any] = list(video.frames)
    assert numbers(frames) == [0, 2, 4, 6, 8, 10]
    with Pipeline.load(tiny_bundle.root, device="cpu") as pipe:
        wanted = pipe.generate("What?", video=frames, max_new_tokens=2)
        for source in (data, path, str(path)):
            found = pipe.generate("What?", video=source, max_new_tokens=2)  # type: ignore[arg-type]
            assert found.token_ids == wanted.token_ids
            assert found.visual.total == wanted.visual.total
    told = invoke("run", tiny_bundle.root, "What?", "--video", path, "--max-new-tokens", 1)
    assert told.exit_code == 0, told.stderr
    refused(invoke("run", tiny_bundle.root, "What?", "--image", path), "--video")
