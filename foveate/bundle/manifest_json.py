"""manifest.json: how a manifest is written, sealed with a checksum of itself, and read strictly."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from foveate._version import __version__
from foveate.bundle.manifest import AGAIN, FORMAT, MANIFEST, VERSION, Digest, Manifest, short
from foveate.bundle.problems import problems
from foveate.errors import BundleError

_UNSEALED = "0" * 64


class _Sealed(Manifest, frozen=True, kw_only=True):
    """A manifest as it stands in its file: with a checksum of that file, its own digits as zeros."""

    checksum: Digest


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: UTF-8, two spaces of indent, fields in their declared order.

    Raises:
        BundleError: A manifest that `decode` would refuse.
    """
    source = Path(MANIFEST)
    with _refusing(source):
        unsealed = _Sealed(**_fields(manifest), checksum=_UNSEALED)
        data = seal(msgspec.json.format(msgspec.json.encode(unsealed), indent=2) + b"\n")
    decode(data, source)
    return data


def _fields(manifest: Manifest) -> dict[str, Any]:
    """A manifest's fields by name, without the checksum of its file."""
    return {name: getattr(manifest, name) for name in Manifest.__struct_fields__}


def seal(data: bytes) -> bytes:
    """Write a manifest's checksum of itself in place of the 64 zeros, the last ones in `data`."""
    before, after = data.rsplit(_UNSEALED.encode(), 1)
    return before + hashlib.sha256(data).hexdigest().encode() + after


def decode(data: bytes, source: Path) -> Manifest:
    """Read a manifest strictly, without the files that it names.

    Args:
        data: The bytes of manifest.json.
        source: Where they came from, for messages.

    Raises:
        BundleError: Another format or version, or anything unknown, missing or out of range.
    """
    with _refusing(source):
        document = parse(data)
        _check_version(document, source)
        _check_seal(document, data, source)
        manifest = Manifest(**_fields(msgspec.json.decode(data, type=_Sealed)))
        for problem in problems(manifest):
            raise ValueError(problem)
    return manifest


@contextlib.contextmanager
def _refusing(source: Path) -> Iterator[None]:
    """Turn what is wrong with a manifest into a BundleError."""
    try:
        yield
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source} is not a valid manifest: {short(error)}. {AGAIN}") from None


def parse(data: bytes) -> Any:
    """JSON as plain Python, with the same key twice in an object an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object, or ValueError naming a key that it holds twice."""
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"the key {key!r} stands twice in one object")
        return dict(pairs)

    return json.loads(data.decode("utf-8"), object_pairs_hook=unique)


def _check_version(document: Any, source: Path) -> None:
    """BundleError for another format or version, before any other field is read."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f'{source} does not say "format": "{FORMAT}". {AGAIN}')
    version = document.get("version")
    fix = "To read it, upgrade foveate; or export the checkpoint again."
    if type(version) is int and 0 < version < VERSION:
        fix = (
            "Older bundles are not converted: export the checkpoint again (foveate export CHECKPOINT "
            "BUNDLE), and if the bundle had engines, build them again (foveate build)."
        )
    if version != VERSION:
        raise BundleError(
            f"{source} has version {short(version)} of the bundle format, and Foveate {__version__} "
            f"reads version {VERSION}. {fix}"
        )


def _check_seal(document: Any, data: bytes, source: Path) -> None:
    """BundleError for a manifest that was changed since it was written, be it by a bit."""
    stated = document.get("checksum")
    if not isinstance(stated, str) or len(stated) != len(_UNSEALED):
        raise BundleError(f"{source} has no checksum of itself. {AGAIN}")
    digits = stated.encode()
    found = hashlib.sha256(data.replace(digits, _UNSEALED.encode())).hexdigest()
    if data.count(digits) != 1 or found != stated:
        raise BundleError(f"{source} does not match its checksum: it was changed. {AGAIN}")
