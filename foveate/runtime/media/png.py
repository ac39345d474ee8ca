"""PNG files without what is no pixel: text, colour profiles, and metadata that nobody reads here."""

import io
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_TEXT = 1 << 20
"""The most bytes of text that may tell how a picture is turned."""

_OPTIONAL = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
"""Chunks that change pixels though a reader may skip them."""
_TURNED = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""Keywords of texts that may hold an orientation."""
_TEXTS = (b"iTXt", b"zTXt", b"tEXt")
_HEAD, _CHECKSUM = 8, 4


def essential(file: BinaryIO, *, pixels: bool) -> bytes:
    """A PNG file with what decides its pixels and how they are turned, and nothing else.

    Text may be as long as it likes, and be damaged: it is left out. What says how the picture is
    turned comes before the pixels, wherever it stood. A file that is cut stays cut.

    Args:
        file: Begins with `SIGNATURE`; is read from its beginning.
        pixels: Whether to take compressed pixels too, or the header alone.

    Raises:
        ValueError: Compressed pixels are taken, and a chunk does not match its checksum.
    """
    end = file.seek(0, io.SEEK_END)
    head: list[bytes] = []
    turned: dict[bytes, bytes] = {}
    body: list[bytes] = []
    place, kind = len(SIGNATURE), b""
    while place + _HEAD <= end and kind != b"IEND":
        file.seek(place)
        start = file.read(_HEAD)
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if not kind.isalpha():
            break
        place = min(place + _HEAD + length + _CHECKSUM, end)
        rest = place - file.tell()
        if kind in _TEXTS:
            turned |= _orientation(kind, file.read(min(rest, MOST_TEXT))[:length])
        elif kind == b"eXIf":
            turned[kind] = _chunk(kind, file.read(rest)[:length])
        elif kind in (b"IDAT", b"fdAT") and not pixels:
            body += [] if kind == b"fdAT" or _EMPTY in body else [_EMPTY]
        elif kind[:1].isupper() or kind in _OPTIONAL:
            begun = body or kind in (b"IDAT", b"fcTL")
            data = file.read(rest)
            if pixels:
                _check(kind, data, length)
            (body if begun else head).append(start + data)
    file.seek(place)
    broken = b"" if kind == b"IEND" else file.read(-1 if pixels else _HEAD)
    return b"".join((SIGNATURE, *head, *turned.values(), *body, broken))


def _check(kind: bytes, data: bytes, length: int) -> None:
    """Refuse a whole chunk's data and checksum that do not belong together, as Pillow does not for pixels."""
    checksum = int.from_bytes(data[length:], "big")
    if len(data) == length + _CHECKSUM and zlib.crc32(data[:length], zlib.crc32(kind)) != checksum:
        raise ValueError(f"wrong checksum of the chunk {kind.decode('ascii', 'replace')}")


def _chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its checksum."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _orientation(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """A text chunk by its keyword, uncompressed, where it may hold an orientation and is not too long."""
    keyword, _, text = data.partition(b"\0")
    if keyword not in _TURNED:
        return {}
    packed = kind == b"zTXt"
    if packed:
        text = text[1:]
    elif kind == b"iTXt":
        packed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        unpacking = zlib.decompressobj()
        try:
            text = unpacking.decompress(text, MOST_TEXT)
        except zlib.error:
            return {}
        if unpacking.unconsumed_tail:
            return {}
    if kind == b"iTXt":
        return {keyword: _chunk(kind, keyword + bytes(5) + text)}
    return {keyword: _chunk(b"tEXt", keyword + b"\0" + text)}


_EMPTY = _chunk(b"IDAT", b"")
