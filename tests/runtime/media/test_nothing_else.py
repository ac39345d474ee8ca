"""A file is that file: whatever it holds or is called, no other is opened and nothing is requested."""

import http.server
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveate.errors import ImageError
from foveate.runtime import read_video
from foveate.runtime.media.container import open_container
from foveate.runtime.media.pictures import open_picture
from tests.runtime.media.films import number_of, numbered, seconds, write_film


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in a transport stream, which every kind of list can name."""
    return write_film(tmp_path_factory.mktemp("films") / "film.ts", seconds(60))


@pytest.fixture
def server(film: Path) -> Iterator[tuple[str, list[str]]]:
    """An address that serves the film, and what was requested of it."""
    asked: list[str] = []

    class Serve(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(film.read_bytes())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()


NAMES = ["{}/film.ts", "tcp:{}", "cache:{}/film.ts", "async:{}/film.ts", "crypto+{}/film.ts"]
NAMES += ["concat:{0}/a|{0}/b", "subfile,,start,0,end,0,,:{}", "ffconcat:{}", "tee:{}", "data:,x"]


@pytest.mark.parametrize("name", NAMES)
def test_addresses_are_no_files(server: tuple[str, list[str]], name: str) -> None:
    address, asked = server
    for reads in (read_video, open_picture):
        with pytest.raises(ImageError):
            reads(name.format(address))
    assert asked == []


def test_files_with_names_of_protocols_are_named_as_files(film: Path) -> None:
    for name in (f"file:{film}", f"concat:{film}|{film}", f"cache:{film}"):
        with pytest.raises(ImageError, match="There is no file"):
            read_video(name)


STRANGE = ["concat:a|b.ts", "http:film.ts", "data:,x", "-", "%03d.ts", "subfile,,start,0,end,1,,:x"]
STRANGE += ["pipe:0", "ünïcödé film.ts", "a\nb.ts", "*.ts"]


@pytest.mark.parametrize("name", STRANGE)
def test_files_of_strange_names_are_opened(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(film.read_bytes())
    assert [number_of(frame) for frame in read_video(name)] == [0, 15, 30, 45]


def lists(target: str) -> dict[str, bytes]:
    """Files that stand for another one, by their names."""
    return {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n".encode(),
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n".encode(),
        "list.txt": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
        "list.mpd": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp2t">'
            f'<Representation id="0" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>"
        ).encode(),
        "list.asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode(),
        "list.sdp": f"v=0\no=- 0 0 IN IP4 {target}\ns=x\nm=video 5000 RTP/AVP 96\n".encode(),
        "list.ffmeta": b";FFMETADATA1\ntitle=x\n",
        "list.svg": (
            '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">'
            f'<image href="{target}" width="9" height="9"/></svg>'
        ).encode(),
    }


@pytest.mark.parametrize("name", sorted(lists("")))
def test_lists_and_references_are_refused(
    film: Path, tmp_path: Path, server: tuple[str, list[str]], name: str
) -> None:
    address, asked = server
    for target in (str(film), film.name, f"{address}/film.ts"):
        path = film.parent / f"{os.getpid()}-{name}"
        path.write_bytes(lists(target)[name])
        for reads in (read_video, open_picture):
            with pytest.raises(ImageError, match=name):
                reads(path)
        path.unlink()
    assert asked == []


def alias(path: bytes) -> bytes:
    """A QuickTime data reference of kind "alis" that names a file."""
    name = path.rsplit(b"/", 1)[-1]
    volume = bytes(10) + b"\1" + b"x".ljust(27, b"\0") + bytes(12)
    levels = bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    records = struct.pack(">hh", 2, len(path)) + path + b"\0" * (len(path) % 2)
    whole = volume + bytes([len(name)]) + name.ljust(63, b"\0") + levels + records + b"\xff\xff\0\0"
    return struct.pack(">I4sI", 12 + len(whole), b"alis", 0) + whole


def test_a_container_whose_frames_lie_in_another_file_is_refused(tmp_path: Path) -> None:
    whole = write_film(tmp_path / "whole.mov", seconds(30))
    data = bytearray(whole.read_bytes())
    begin = data.index(b"dref") + 12
    own = struct.unpack_from(">I", data, begin)[0]
    entry = alias(str(whole).encode())
    data[begin : begin + own] = entry
    place = 0
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.index(box, place)
        size = struct.unpack_from(">I", data, place - 4)[0]
        struct.pack_into(">I", data, place - 4, size + len(entry) - own)
    (tmp_path / "outside.mov").write_bytes(data)
    with pytest.raises(ImageError, match=r"outside.mov"):
        read_video(tmp_path / "outside.mov")


def test_a_demuxer_that_asks_for_another_file_gets_none(film: Path) -> None:
    """Even one that were let through: the container's own way of opening files refuses."""
    with film.open("rb") as file, open_container(file, "film.ts") as container:
        assert container.io_open is not None
        with pytest.raises(PermissionError, match="nothing but the file itself"):
            container.io_open("/etc/passwd", 1, {})
        assert container.options["protocol_whitelist"] == "none"


def test_a_picture_is_no_film_and_a_film_no_picture(film: Path, tmp_path: Path) -> None:
    numbered(3).save(tmp_path / "still.png")
    with pytest.raises(ImageError, match=r"still.png is in no container"):
        read_video(tmp_path / "still.png")
    with pytest.raises(ImageError, match="in no format"):
        open_picture(film)
