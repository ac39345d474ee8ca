"""The harness of the attacks: what damages a copy of the golden bundle, and what a refusal must be."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foveate.bundle.manifest_json import seal
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError

GOLDEN = Path(__file__).parent / "bundle"
AGAIN = "export the checkpoint again"

Attack = Callable[[Path], None]


def refused(call: Callable[[], object], kind: type[BundleError], name: str, fix: str) -> None:
    """The harness: one typed error, soon, fit to print, that names the file and the fix."""
    start = time.perf_counter()
    with pytest.raises(Exception) as caught:
        call()
    seconds = time.perf_counter() - start
    message = str(caught.value)
    assert type(caught.value) is kind, repr(caught.value)
    assert name in message
    assert fix in message
    assert message.isprintable()
    assert len(message) < 1000
    assert seconds < 1


def edit(change: Callable[[dict[str, Any]], object]) -> Attack:
    """An attack that changes the manifest as a JSON document."""

    def attack(bundle: Path) -> None:
        """Read, change, write."""
        document = json.loads((bundle / "manifest.json").read_bytes())
        change(document)
        (bundle / "manifest.json").write_bytes(resealed(json.dumps(document).encode()))

    return attack


def resealed(data: bytes) -> bytes:
    """A manifest with the right checksum of itself, as someone has who changes it on purpose."""
    stated = re.findall(rb'"checksum": "([0-9a-f]{64})"', data)
    return seal(data.replace(stated[-1], b"0" * 64)) if stated else data


def find(document: Any, keys: str) -> tuple[Any, Any]:
    """The object or list that holds a field, and its key there, by keys with '/' between."""
    *way, last = keys.split("/")
    for key in way:
        document = document[int(key) if isinstance(document, list) else key]
    return document, int(last) if isinstance(document, list) else last


def put(keys: str, value: object, **others: object) -> Attack:
    """An attack that sets one field of the manifest, and `others` of its outermost."""

    def change(document: dict[str, Any]) -> None:
        """Find the field and set it."""
        document.update(others)
        holder, key = find(document, keys)
        holder[key] = value

    return edit(change)


def drop(keys: str) -> Attack:
    """An attack that takes one field away."""

    def change(document: dict[str, Any]) -> None:
        """Find the field and delete it."""
        holder, key = find(document, keys)
        del holder[key]

    return edit(change)


def text(change: Callable[[bytes], bytes]) -> Attack:
    """An attack on the bytes of the manifest."""

    def attack(bundle: Path) -> None:
        """Read, change, write; the change must change something."""
        path = bundle / "manifest.json"
        before = path.read_bytes()
        path.write_bytes(resealed(change(before)))
        assert path.read_bytes() != before

    return attack


def data(name: str, change: Callable[[bytes], bytes]) -> Attack:
    """An attack on the bytes of a file."""

    def attack(bundle: Path) -> None:
        """Read, change, write."""
        (bundle / name).write_bytes(change((bundle / name).read_bytes()))

    return attack


def instead(name: str, make: Callable[[Path], object]) -> Attack:
    """An attack that puts something else in the place of a file or folder."""

    def attack(bundle: Path) -> None:
        """Take away, put in place."""
        path = bundle / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return attack


def vouch(bundle: Path, content: bytes, role: str = "vision") -> None:
    """Another content of a role's file, with a manifest that agrees to it."""
    document = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / document["files"][role]["path"]).write_bytes(content)
    put(f"files/{role}/bytes", len(content))(bundle)
    put(f"files/{role}/sha256", hashlib.sha256(content).hexdigest())(bundle)


def check_refused(bundle: Path, attack: Attack, named: str, fix: str) -> None:
    """Attack, and open: with checksums, and without where they are not what finds the attack."""
    attack(bundle)
    refused(lambda: Bundle.open(bundle), BundleError, named, fix)
    if not named.endswith("checksum"):
        refused(lambda: Bundle.open(bundle, checksums=False), BundleError, named, fix)
