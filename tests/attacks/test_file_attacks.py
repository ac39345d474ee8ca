"""Damaged folders: links, missing and changed files, and what is no bundle at all."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle
from foveate.errors import BundleNotFoundError
from tests.attacks.harness import AGAIN, Attack, check_refused, data, drop, instead, put, refused

DELETE = "Delete it and export again"


def link(target: str) -> Callable[[Path], object]:
    """A maker of symbolic links."""
    return lambda path: path.symlink_to(target)


def listen(path: Path) -> None:
    """A socket in the file system."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.fchdir(here)
    os.close(here)


def checkpoint(bundle: Path) -> None:
    """A checkpoint as Hugging Face has them, with a graph beside."""
    (bundle / "manifest.json").unlink()
    (bundle / "config.json").touch()
    (bundle / "model-00001-of-00002.safetensors").touch()


ATTACKS: dict[str, tuple[Attack, str, str]] = {
    # Links and things that are no plain files
    "link out of the folder": (
        instead("vision.onnx", link("../outside/vision.onnx")),
        "vision.onnx is a symbolic link",
        "Put the file itself in its place",
    ),
    "linked folder out of the folder": (
        instead("text", link("../outside/text")),
        "text is a symbolic link",
        "Put the file itself in its place",
    ),
    "link inside": (instead("vision.onnx", link("vision.onnx.data")), "vision.onnx", AGAIN),
    "dangling link": (instead("vision.onnx", link("nowhere")), "vision.onnx", AGAIN),
    "link to itself": (instead("vision.onnx", link("vision.onnx")), "vision.onnx", AGAIN),
    "FIFO": (instead("vision.onnx", os.mkfifo), "vision.onnx is not a plain file", AGAIN),
    "socket": (instead("vision.onnx", listen), "vision.onnx is not a plain file", AGAIN),
    "folder for a file": (instead("vision.onnx", Path.mkdir), "vision.onnx is not a plain", AGAIN),
    "file for a folder": (instead("text", Path.touch), "text/tokenizer.json", "Check its perm"),
    "manifest: link": (
        instead("manifest.json", link("../outside/manifest.json")),
        "manifest.json is a symbolic link",
        "Put the file itself in its place",
    ),
    "manifest: dangling link": (instead("manifest.json", link("no")), "manifest.json", AGAIN),
    "manifest: FIFO": (instead("manifest.json", os.mkfifo), "manifest.json is not a", AGAIN),
    "manifest: folder": (instead("manifest.json", Path.mkdir), "manifest.json is not a", AGAIN),
    # Damage
    "checksum: wrong": (
        put("files/vision/sha256", "0" * 64),
        "vision.onnx does not match its checksum",
        AGAIN,
    ),
    "checksum: missing": (drop("files/vision/sha256"), "manifest.json", AGAIN),
    "checksum: capitals": (put("files/vision/sha256", "A" * 64), "manifest.json", AGAIN),
    "graph: truncated": (data("vision.onnx", lambda old: old[:-1]), "vision.onnx has 191", AGAIN),
    "graph: emptied": (data("vision.onnx", lambda old: b""), "vision.onnx has 0 bytes", AGAIN),
    "graph: longer": (data("vision.onnx", lambda old: old + b"\0"), "vision.onnx has 193", AGAIN),
    "weights: truncated": (
        data("vision.onnx.data", lambda old: old[:8]),
        "vision.onnx.data has 8 bytes",
        AGAIN,
    ),
    "weights: a bit flipped": (
        data("vision.onnx.data", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        "vision.onnx.data does not match its checksum",
        AGAIN,
    ),
    "file: missing": (instead("text/tokenizer.json", str), "tokenizer.json is missing", AGAIN),
    "folder: missing": (instead("text", str), "text is missing", AGAIN),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(bundle: Path, name: str) -> None:
    check_refused(bundle, *ATTACKS[name])


NO_BUNDLES: dict[str, tuple[Attack, str, str]] = {
    "killed export": (
        lambda bundle: (bundle / "manifest.json").unlink(),
        "bundle has graphs but no manifest.json",
        DELETE,
    ),
    "checkpoint": (checkpoint, "bundle is a checkpoint", "Make one of it: foveate export"),
    "empty folder": (instead("", Path.mkdir), "bundle is no bundle", "Check the path"),
    "no folder": (instead("", str), "bundle does not exist", "Check the path"),
    "file": (instead("", Path.touch), "bundle is a file", "Give the folder"),
    "FIFO": (instead("", os.mkfifo), "bundle is a file", "Give the folder"),
}


@pytest.mark.parametrize("name", NO_BUNDLES)
def test_no_bundle(bundle: Path, name: str) -> None:
    attack, named, fix = NO_BUNDLES[name]
    attack(bundle)
    refused(lambda: Bundle.open(bundle), BundleNotFoundError, named, fix)


def test_partial_folder_with_everything_in_it(bundle: Path) -> None:
    partial = bundle.rename(bundle.with_name(".bundle.partial-00c0ffee"))
    refused(lambda: Bundle.open(partial), BundleNotFoundError, partial.name, DELETE)
