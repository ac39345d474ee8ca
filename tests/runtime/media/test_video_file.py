"""Video files to frames: which ones, how many, how much of the file is decoded."""

import struct
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from foveate.errors import ImageError
from foveate.families.base import FrameRule
from foveate.runtime import VideoFile, read_frames, read_video
from foveate.runtime.media.video import plan_frames
from tests.runtime.media.films import (
    HEIGHT,
    WIDTH,
    every_frame,
    joined,
    number_of,
    numbered,
    seconds,
    write_film,
)


def numbers(path: Path, **options: Any) -> list[int]:
    """The numbers of the frames that are taken of a file."""
    return [number_of(frame) for frame in read_video(path, **options)]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi", "flv"])
@pytest.mark.parametrize("start", [0, 10, 400])
def test_times_count_from_the_first_frame(tmp_path: Path, ending: str, start: int) -> None:
    film = write_film(tmp_path / f"late.{ending}", seconds(60, start=start), rate=30)
    assert numbers(film) == [0, 15, 30, 45]


@pytest.mark.parametrize(
    ("codec", "form"), [("libx264", "h264"), ("mpeg4", "m4v"), ("mpeg2video", "mpeg2video")]
)
@pytest.mark.parametrize("ahead", [0, 2])
def test_streams_without_a_container_go_by_their_rate(
    tmp_path: Path, codec: str, form: str, ahead: int
) -> None:
    film = write_film(tmp_path / "raw", seconds(60), codec, form=form, rate=30, ahead=ahead)
    assert numbers(film) == [0, 15, 30, 45]


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (1, [0]), (2, [0, 1]), (3, [0, 1]), (4, [0, 1, 2, 3]), (15, [0, 3, 7, 11]),
        (30, [0, 7, 15, 22]), (75, [0, 18, 37, 56]), (90, [0, 15, 30, 45, 60, 75]),
    ],
)  # fmt: skip
def test_how_many_frames_short_films_give(tmp_path: Path, count: int, wanted: list[int]) -> None:
    """As transformers' sample_frames(fps=2); of one frame, by which that divides by zero, the one."""
    film = write_film(tmp_path / "short.mp4", seconds(count))
    assert numbers(film) == wanted


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        (seconds(72, 24), [0, 12, 24, 36, 48, 60]),
        (seconds(60, Fraction(24000, 1001)), [0, 15, 30, 45]),
        (seconds(30) + seconds(30, start=5), [0, 15, *[29] * 8, 30, 45]),
        (seconds(30) + seconds(20, 10, start=1), [0, 22, 34, 42]),
        ([Fraction(t, 8) for t in (0, 1, 8, 20, 26, 32)], [0, 1, 2, 2, 3, 4]),
    ],
    ids=["24", "23.976", "gap", "two rates", "irregular"],
)
def test_the_frame_on_the_screen_is_taken(
    tmp_path: Path, ending: str, times: list[Fraction], wanted: list[int]
) -> None:
    assert numbers(write_film(tmp_path / f"film.{ending}", times)) == wanted


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("starts", [(0, 0), (5000, 0), (0, 5000)], ids=str)
def test_a_clock_that_jumps_goes_on(
    tmp_path: Path, codec: str, starts: tuple[float, float]
) -> None:
    parts = [
        write_film(
            tmp_path / f"{place}.ts", seconds(45, start=start), codec, first=45 * place, rate=30
        )
        for place, start in enumerate(starts)
    ]
    film = joined(tmp_path / "joined.ts", *parts)
    assert numbers(film) == [0, 15, 30, 45, 60, 75]


def test_a_clock_that_runs_over_goes_on(tmp_path: Path) -> None:
    start = Fraction(2**33, 90_000) - 1
    film = write_film(tmp_path / "over.ts", seconds(90, start=start))  # type: ignore[arg-type]
    assert numbers(film) == [0, 15, 30, 45, 60, 75]


CODED = [
    ("mp4", "libx264", {"ahead": 3, "every": 23}),
    ("mkv", "libx264", {"ahead": 3, "every": 23, "options": {"x264-params": "open-gop=1"}}),
    ("ts", "libx264", {"ahead": 3, "every": 23, "options": {"x264-params": "open-gop=1"}}),
    ("avi", "libx264", {"ahead": 3, "every": 23, "rate": 30}),
    ("mpg", "mpeg2video", {"ahead": 2, "every": 12, "rate": 30}),
    ("mp4", "mpeg4", {"ahead": 2, "every": 12, "rate": 30}),
    ("webm", "libvpx", {"every": 23, "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
    ("webm", "libvpx-vp9", {"every": 23, "options": {"lag-in-frames": "16"}}),
    ("mp4", "libx264", {"options": {"x264-params": "intra-refresh=1:keyint=30"}, "every": 30}),
]


@pytest.mark.parametrize(("ending", "codec", "how"), CODED, ids=str)
def test_frames_between_keys_come_as_when_all_is_decoded(
    tmp_path: Path, ending: str, codec: str, how: dict[str, Any]
) -> None:
    """Not a level off: nothing that a frame is made of is left out, B-frames and open groups included."""
    film = write_film(tmp_path / f"film.{ending}", seconds(90), codec, **how)
    whole = every_frame(film)
    for fps in (3.7, 11.3):
        count = int(3 * fps) // 2 * 2
        chosen = [90 * place // count for place in range(count)]
        frames = read_video(film, fps)
        assert [number_of(frame) for frame in frames] == chosen
        for frame, place in zip(frames, chosen, strict=True):
            np.testing.assert_array_equal(np.asarray(frame), np.asarray(whole[place]))


def test_a_part_of_a_film(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", seconds(90), ahead=2, every=40)
    assert numbers(film, start=20 / 30, end=41 / 30, frames=3) == [20, 27, 34]
    assert numbers(film, start=1, end=2) == [30, 37, 45, 52]
    assert numbers(film, start=2.5) == [75, 78, 82, 86]
    assert numbers(film, end=3.02, fps=1) == [0, 22, 45, 67]
    assert numbers(film, frames=5) == [0, 18, 36, 54, 72]
    assert numbers(film, frames=np.int64(1)) == [0]
    assert numbers(film, start=2.99, frames=1) == [89]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": 0}, "more than 0"), ({"fps": -1}, "more than 0"), ({"fps": "2"}, "fps is '2'"),
        ({"fps": float("nan")}, "fps is nan"), ({"fps": float("inf")}, "fps is inf"),
        ({"fps": True}, "fps is True"), ({"fps": 1, "frames": 4}, "not both"),
        ({"frames": 0}, "frames is 0"), ({"frames": 2.5}, "frames is 2.5"),
        ({"max_pixels": 0}, "max_pixels is 0"), ({"max_pixels": "1"}, "max_pixels is '1'"),
        ({"frames": True}, "frames is True"), ({"frames": 91}, "91 frames were asked for"),
        ({"start": -1}, "start is -1"), ({"start": None}, "start is None"),
        ({"start": 3}, "lasts 3.000 seconds"), ({"end": 4}, "lasts 3.000 seconds"),
        ({"start": 2, "end": 1}, "not after start"), ({"end": "1"}, "end is '1'"),
        ({"start": 1, "end": 1.1, "frames": 4}, "has 3 there"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_taken_is_refused(film: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_video(film, **options)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds, 30 frames each."""
    return write_film(tmp_path_factory.mktemp("video") / "film.mp4", seconds(90))


def test_frames_are_shrunk_with_their_aspect_kept(film: Path) -> None:
    whole, small = (read_video(film, frames=3, max_pixels=most) for most in (96 * 64, 48 * 32))
    assert [frame.size for frame in whole] == [(96, 64)] * 3
    assert [frame.size for frame in small] == [(48, 32)] * 3
    assert [number_of(frame) for frame in small] == [0, 30, 60]


def test_a_family_may_count_otherwise(film: Path) -> None:
    assert numbers(film, rule=FrameRule(fps=1, least=3, multiple=1)) == [0, 30, 60]
    assert numbers(film, rule=FrameRule(most=4)) == [0, 22, 45, 67]
    assert numbers(film, rule=FrameRule(frames=9, multiple=1)) == [10 * n for n in range(9)]
    assert numbers(film, fps=1, rule=FrameRule(frames=9)) == [0, 22, 45, 67]


MATRICES = {
    "upright": ((1, 0, 0, 1), None),
    "quarter": ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
    "half": ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
    "three quarters": ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
    "mirrored": ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
    "head down": ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
    "diagonal": ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
    "other diagonal": ((0, -1, -1, 0), Image.Transpose.TRANSVERSE),
}


@pytest.mark.parametrize("frames", [1, 7, 32, 90])
def test_frames_may_be_evenly_apart_by_their_number(tmp_path: Path, frames: int) -> None:
    """Whatever their times are; of a part of the film from its first frame on."""
    times = seconds(60) + seconds(30, 10, start=3)
    film = write_film(tmp_path / "uneven.mkv", times)
    rule = FrameRule(frames=frames, least=1, multiple=1, by_number=True)
    there = (np.arange(frames) * len(times) // frames).tolist()
    assert numbers(film, rule=rule) == there
    part = min(frames, 30)
    later = (60 + np.arange(part) * 30 // part).tolist()
    assert numbers(film, rule=rule, start=3) == later


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_and_mirrored_as_the_file_says(
    film: Path, tmp_path: Path, name: str
) -> None:
    (a, b, c, d), way = MATRICES[name]
    data = bytearray(film.read_bytes())
    place = data.index(b"tkhd") + 44
    matrix = [part << 16 for part in (a, b, 0, c, d, 0, 0, 0)]
    data[place : place + 36] = struct.pack(">9i", *matrix, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    plain = read_video(film, frames=1)[0]
    turned = read_video(tmp_path / "turned.mp4", frames=1)[0]
    expected = plain if way is None else plain.transpose(way)
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(expected))


def test_covers_and_other_streams_are_not_the_film(tmp_path: Path) -> None:
    """A cover picture stands first; of two films the default one is taken, wherever it stands."""
    path = tmp_path / "several.mp4"
    with av.open(str(path), "w") as out:
        streams: list[Any] = [out.add_stream(codec, rate=30) for codec in ("png", *["libx264"] * 2)]
        streams[0].pix_fmt, streams[0].disposition = "rgb24", av.stream.Disposition.attached_pic
        streams[2].disposition = av.stream.Disposition.default
        for stream in streams:
            stream.width, stream.height = WIDTH, HEIGHT
        for number in range(60):
            for place, stream in enumerate(streams[1:] if number else streams):
                frame = av.VideoFrame.from_image(numbered(number if place else 1000 + number))
                frame.pts, frame.time_base = number, Fraction(1, 30)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode())
    assert [n % 1000 for n in numbers(path)] == [0, 15, 30, 45]


def test_a_file_of_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(ImageError, match=r"sound.mp4 holds no video"):
        read_video(tmp_path / "sound.mp4")


@pytest.mark.parametrize(
    ("ending", "codec", "pixels"),
    [("mp4", "libx264", "yuv420p10le"), ("mov", "prores_ks", "yuv422p10le"), ("gif", "gif", "rgb8"),
     ("mkv", "ffv1", "gray"), ("mkv", "ffv1", "yuv444p"), ("avi", "mjpeg", "yuvj420p")],
)  # fmt: skip
def test_other_pixel_formats_become_rgb(
    tmp_path: Path, ending: str, codec: str, pixels: str
) -> None:
    film = write_film(tmp_path / f"film.{ending}", seconds(50, 25), codec, pixels=pixels, rate=25)
    frames = read_video(film)
    assert [number_of(frame) for frame in frames] == [0, 12, 25, 37]
    assert {frame.mode for frame in frames} == {"RGB"}


def test_what_is_transparent_shows_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (WIDTH, HEIGHT), (200, 10, 10, 0))
    clear.paste((10, 10, 200, 255), (0, 0, WIDTH // 2, HEIGHT))
    with av.open(str(tmp_path / "clear.mov"), "w") as out:
        stream: Any = out.add_stream("qtrle", rate=4)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "argb"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(clear), format="rgba")))
        out.mux(stream.encode())
    (frame,) = read_video(tmp_path / "clear.mov")
    assert (frame.getpixel((5, 5)), frame.getpixel((90, 5))) == ((10, 10, 200), (255,) * 3)


def test_a_film_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    parts = []
    for place, side in enumerate((64, 128)):
        grey = [Image.new("L", (side, side), 128)] * 30
        path = tmp_path / f"{place}.ts"
        with av.open(str(path), "w") as out:
            stream: Any = out.add_stream("mpeg2video", rate=30)
            stream.width = stream.height = side
            for picture in grey:
                out.mux(stream.encode(av.VideoFrame.from_image(picture.convert("RGB"))))
            out.mux(stream.encode())
        parts.append(path)
    film = joined(tmp_path / "two.ts", *parts)
    with pytest.raises(ImageError, match="changes its size from 64 x 64 to 128 x 128"):
        read_video(film)
    assert {frame.size for frame in read_video(film, end=1)} == {(64, 64)}


def test_long_films_are_not_decoded_nor_held_whole(tmp_path: Path) -> None:
    """Forty minutes: of 2,400 frames, those chosen and what they build on, and one at a time."""
    still = numbered(5)
    film = write_film(
        tmp_path / "long.mkv",
        seconds(2400, 1),
        every=48,
        options={"preset": "ultrafast", "x264-params": "bframes=2:b-adapt=0:scenecut=0"},
        pictures=[still] * 2400,
    )
    whole: list[weakref.ref[Image.Image]] = []
    most = 0

    def fit(frame: Image.Image) -> Image.Image:
        """Make a frame small, and count those that are still there."""
        nonlocal most
        whole.append(weakref.ref(frame))
        most = max(most, sum(one() is not None for one in whole[-9:]))
        return frame.resize((6, 4))

    plan = plan_frames(VideoFile(film), FrameRule())
    assert len(plan.chosen) == 768
    assert {frame.size for frame in plan.pictures(fit)} == {(6, 4)}
    assert most <= 2
    # Frames that others do not build on are decoded only where they are wanted.
    assert plan.tally.decoded < 2000
    few = plan_frames(VideoFile(film, frames=8, start=10), FrameRule())
    few.pictures()
    assert few.tally.decoded < 8 * 48


def test_an_hour_at_any_rate_gives_no_more_than_the_most(tmp_path: Path) -> None:
    film = write_film(tmp_path / "hour.mkv", seconds(800, 1), options={"preset": "ultrafast"})
    assert len(plan_frames(VideoFile(film), FrameRule()).chosen) == 768
    assert len(plan_frames(VideoFile(film, fps=1e9), FrameRule()).chosen) == 768
    assert len(plan_frames(VideoFile(film, fps=1e-9), FrameRule()).chosen) == 4


def test_sound_that_ends_later_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=30)
        video.width, video.height = WIDTH, HEIGHT
        sound: Any = out.add_stream("pcm_s16le", rate=8000)
        for number in range(30):
            out.mux(video.encode(av.VideoFrame.from_image(numbered(number))))
        out.mux(video.encode())
        for number in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 8000, 1000 * number
            out.mux(sound.encode(frame))
        out.mux(sound.encode())
    assert numbers(path) == [0, 7, 15, 22]


def test_frames_come_with_their_times(tmp_path: Path) -> None:
    """Times count from the first frame, whatever the file's clock says; a long frame comes several times."""
    times = [Fraction(one, 10) + 3 for one in (0, 1, 2, 9, 10, 11)]
    film = write_film(tmp_path / "film.mp4", times)
    found = read_frames(VideoFile(film, fps=10))
    shown = [number_of(picture) for picture in found.pictures]
    assert (shown[:2], shown.count(2)) == ([0, 1], 3)
    assert found.seconds == pytest.approx([float(times[number]) - 3 for number in shown])
    few = read_frames(VideoFile(film, frames=3, start=0.1), max_pixels=64)
    assert few.seconds == [
        float(times[number_of(one)] - 3) for one in read_video(film, frames=3, start=0.1)
    ]
    assert all(picture.width * picture.height <= 64 for picture in few.pictures)
    numbered(0).save(
        tmp_path / "film.gif",
        save_all=True,
        append_images=[numbered(1), numbered(2)],
        duration=[200, 500, 300],
    )
    assert read_frames(VideoFile(tmp_path / "film.gif", frames=3)).seconds == [0, 0.2, 0.2]
