"""Video files that are cut short, damaged, or no video: an error or a counted warning, never less."""

import re
from pathlib import Path
from typing import Any

import pytest

from foveate.errors import ImageError
from foveate.runtime import read_video
from foveate.runtime.media.video import VideoWarning
from tests.runtime.media.films import joined, number_of, seconds, write_film

FORMS: list[tuple[str, str, dict[str, Any]]] = [
    ("webm", "libvpx-vp9", {}),
    ("mkv", "libx264", {}),
    ("mp4", "libx264", {"muxing": {"movflags": "faststart"}}),
    ("mov", "libx264", {}),
    ("flv", "libx264", {"rate": 30}),
    ("avi", "libx264", {"rate": 30}),
    ("gif", "gif", {"pixels": "rgb8", "rate": 25}),
    ("ivf", "libvpx", {"rate": 30}),
]


def refused(path: Path, *words: str) -> str:
    """The message of the ImageError that a file gives, which names it."""
    with pytest.raises(ImageError) as caught:
        read_video(path)
    message = str(caught.value)
    assert path.name in message
    for word in words:
        assert re.search(word, message), message
    return message


@pytest.mark.parametrize(("ending", "codec", "how"), FORMS, ids=[form[0] for form in FORMS])
def test_cut_files_are_refused(
    tmp_path: Path, ending: str, codec: str, how: dict[str, Any]
) -> None:
    whole = write_film(tmp_path / f"whole.{ending}", seconds(50, 25), codec, **how)
    assert [number_of(frame) for frame in read_video(whole)] == [0, 12, 25, 37]
    data = whole.read_bytes()
    for share in (3, 6):
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(data[: len(data) * share // 10])
        for _ in range(2):  # FFmpeg's complaint comes the second time as well.
            refused(cut, "cut short|damaged|cannot be read")


def test_what_a_cut_film_still_has_can_be_asked_for(tmp_path: Path) -> None:
    """An AVI's index is at its end; what is before the cut is whole."""
    whole = write_film(tmp_path / "whole.avi", seconds(60), "mjpeg", rate=30, pixels="yuvj420p")
    (tmp_path / "cut.avi").write_bytes(whole.read_bytes()[:-20])
    assert len(read_video(tmp_path / "cut.avi", end=1)) == 4


@pytest.mark.parametrize("ending", ["webm", "mkv"])
def test_zeroed_bytes_that_lose_packets_are_refused(tmp_path: Path, ending: str) -> None:
    codec = "libvpx-vp9" if ending == "webm" else "libx264"
    data = bytearray(write_film(tmp_path / f"film.{ending}", seconds(60), codec).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    (tmp_path / f"zeroed.{ending}").write_bytes(data)
    refused(tmp_path / f"zeroed.{ending}", "damaged")


def test_a_frame_that_cannot_be_decoded_is_refused_and_others_are_not(tmp_path: Path) -> None:
    """The damage is in the second group of frames, which the second and third wanted frame are made of."""
    film = write_film(tmp_path / "film.mp4", seconds(60), every=20)
    data = bytearray(film.read_bytes())
    import av

    with av.open(str(film)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
    assert packet.pos is not None
    data[packet.pos + 40 : packet.pos + packet.size] = bytes(packet.size - 40)
    (tmp_path / "hurt.mp4").write_bytes(data)
    refused(tmp_path / "hurt.mp4", "is damaged: frame 31 of 60 cannot be decoded")
    first = read_video(tmp_path / "hurt.mp4", end=0.6)
    assert [number_of(frame) for frame in first] == [0, 4, 9, 13]


def test_packets_that_are_marked_as_damaged_are_counted(tmp_path: Path) -> None:
    """A transport stream of which packets were lost."""
    film = write_film(tmp_path / "film.ts", seconds(60), every=60)
    data = film.read_bytes()
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    # The first packet of a frame's data in the middle, without which its times are lost as well.
    places = [n for n, one in enumerate(packets) if one[1] & 0x40 and one[2] == 0 and one[1] & 1]
    del packets[places[40]]
    (tmp_path / "lossy.ts").write_bytes(b"".join(packets))
    with pytest.warns(VideoWarning, match=r"lossy.ts: \d of \d+ packets are marked as damaged"):
        assert len(read_video(tmp_path / "lossy.ts", fps=1)) == 4


def test_what_comes_before_the_first_key_is_left_out(tmp_path: Path) -> None:
    """A recording that was switched on in the middle of a broadcast."""
    film = write_film(tmp_path / "film.ts", seconds(120), every=40)
    data = film.read_bytes()
    (tmp_path / "late.ts").write_bytes(data[188 * (len(data) // 188 // 4) :])
    assert [number_of(frame) for frame in read_video(tmp_path / "late.ts")] == [40, 60, 80, 100]


@pytest.mark.parametrize(
    "content", [b"", b"no video", bytes(100), b"\x89PNG\r\n\x1a\n" + bytes(90), b"ftypisom" * 9]
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "none.mp4").write_bytes(content)
    refused(tmp_path / "none.mp4")


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "missing.mp4", "There is no file")
    (tmp_path / "folder.mp4").mkdir()
    refused(tmp_path / "folder.mp4", "is a folder")
    with pytest.raises(ImageError, match="no path"):
        read_video(b"film.mp4")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="cannot be read"):
        read_video("a\0b.mp4")


def test_frames_beyond_the_limit_on_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.y4m", seconds(4), "rawvideo", form="yuv4mpegpipe", rate=30)
    header = film.read_bytes().replace(b"W96 H64", b"W60000 H60000", 1)
    (tmp_path / "huge.y4m").write_bytes(header)
    refused(tmp_path / "huge.y4m")


def test_two_films_joined_are_no_damage(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    one = write_film(tmp_path / "one.ts", seconds(30), rate=30)
    two = write_film(tmp_path / "two.ts", seconds(30), rate=30, first=30)
    frames = read_video(joined(tmp_path / "both.ts", one, two))
    assert [number_of(frame) for frame in frames] == [0, 15, 30, 45]
    assert not [one for one in recwarn if one.category is VideoWarning]


def test_a_transport_stream_that_ends_within_a_packet_is_counted(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.ts", seconds(60), every=60)
    film.write_bytes(film.read_bytes()[:-100])
    with pytest.warns(VideoWarning, match=r"film.ts: 1 of \d+ packets are marked as damaged"):
        read_video(film, end=1)
