"""Reads a bundle: a folder of graphs, weights and texts, and the manifest.json that vouches for it.

docs/bundle-format.md is the specification.
"""

import glob
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from foveate.bundle import manifest as spec
from foveate.bundle.embeddings_file import TYPES, TableEntry, read_table
from foveate.bundle.manifest import (
    AGAIN,
    EMBEDDINGS,
    MANIFEST,
    FileEntry,
    GraphSpec,
    Manifest,
    TensorSpec,
)
from foveate.bundle.manifest_json import decode
from foveate.bundle.onnx_file import external_tensors, graph_spec
from foveate.bundle.reading import reading
from foveate.errors import BundleError, BundleNotFoundError

T = TypeVar("T")

_PARTIAL = re.compile(r"\..+\.partial-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle: its folder and a manifest whose promises were checked.

    Attributes:
        root: The folder, absolute.
        manifest: What manifest.json says.
    """

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, checksums: bool = True) -> "Bundle":
        """Read a bundle's manifest and check every file that it names.

        Args:
            path: The bundle's folder.
            checksums: Also read every file and compare its SHA-256; without it, paths and sizes.

        Raises:
            BundleNotFoundError: There is no such folder, or it is no bundle.
            BundleError: The bundle cannot be trusted.
        """
        root = Path(os.path.abspath(path))
        with reading(root):
            reason = _why_no_bundle(root)
        if reason:
            raise BundleNotFoundError(reason)
        return cls.read(root, checksums=checksums)

    @classmethod
    def read(cls, root: Path, *, checksums: bool) -> "Bundle":
        """Read a bundle as `open` does, but also one that is still being written."""
        manifest = decode(read_manifest(root), root / MANIFEST)
        for entry in manifest.files.values():
            _check_file(root, entry, checksums=checksums)
        _check_weights(root, {entry.path: entry.bytes for entry in manifest.files.values()})
        bundle = cls(root, manifest)
        for role in manifest.graphs:
            with reading(bundle.file(role), "a readable ONNX graph"):
                bundle._check_graph_file(role)
        bundle._check_embeddings()
        return bundle

    def file(self, role: str) -> Path:
        """The path of a role's file.

        Raises:
            BundleError: The bundle has no such role.
        """
        return self.root / self._of(self.manifest.files, role, "file").path

    def graph(self, role: str) -> GraphSpec:
        """What a role's graph takes and gives.

        Raises:
            BundleError: The bundle has no such graph.
        """
        return self._of(self.manifest.graphs, role, "graph")

    def embeddings(self) -> tuple[Path, TableEntry, int]:
        """The file of the embedding table, what it says of the table, and where the data begin.

        Raises:
            BundleError: The file does not hold one table of the manifest's sizes.
        """
        path = self.file(EMBEDDINGS)
        with reading(path, "the embedding table"):
            return path, *read_table(path, self.manifest.model)

    def _check_embeddings(self) -> None:
        """Compare the embedding table with the graphs that take its rows; BundleError where they differ."""
        path, entry, _ = self.embeddings()
        dtype = TYPES[entry.dtype][0]
        for role, graph in self.manifest.graphs.items():
            for tensor in graph.inputs:
                if tensor.name == "text_embeds" and tensor.dtype != dtype:
                    raise BundleError(
                        f"{path} holds {dtype}, and the graph {role!r} takes {tensor.dtype}. {AGAIN}"
                    )

    def _check_graph_file(self, role: str) -> None:
        """Compare a graph's file with what the manifest promises; BundleError where they differ."""
        found, promised, path = graph_spec(self.file(role)), self.graph(role), self.file(role)
        if found.opset != promised.opset:
            raise BundleError(
                f"{path}: opset {found.opset} in the graph and {promised.opset} in {MANIFEST}. "
                "Export the checkpoint again."
            )
        self.check_graph(role, found.inputs, found.outputs)

    def _of(self, entries: Mapping[str, T], role: str, what: str) -> T:
        """The entry of a role, or BundleError naming the roles there are."""
        if role not in entries:
            raise BundleError(
                f"{self.root} has no {what} for {role!r} (it has {', '.join(entries) or 'none'}). "
                "Export the checkpoint again with what writes it."
            )
        return entries[role]

    def check_graph(
        self, role: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        """Compare what an engine says of a loaded graph with what the manifest promises.

        Order does not count, nor do the names of free axes; a free axis must be free in both.

        Args:
            role: The graph.
            inputs: The loaded graph's inputs.
            outputs: The loaded graph's outputs.

        Raises:
            BundleError: They differ.
        """
        promised, path = self.graph(role), self.file(role)
        sides = {"input": (promised.inputs, inputs), "output": (promised.outputs, outputs)}
        for kind, both in sides.items():
            wanted, found = ({one.name: _signature(one) for one in tensors} for tensors in both)
            for name in sorted(wanted.keys() | found.keys()):
                promise, fact = (tensors.get(name, "absent") for tensors in (wanted, found))
                if promise != fact:
                    raise BundleError(
                        f"{path}: the {kind} '{spec.short(name)}' is {fact} in the graph and "
                        f"{promise} in {MANIFEST}. Export the checkpoint again."
                    )


def _signature(tensor: TensorSpec) -> str:
    """A tensor's type and shape in words, every free axis alike."""
    axes = ("free" if isinstance(axis, str) else str(axis) for axis in tensor.shape)
    return f"{tensor.dtype} [{', '.join(axes)}]"


def _why_no_bundle(root: Path) -> str | None:
    """Why a path is no bundle, and what to do; None for a folder with a manifest."""
    try:
        names = set(os.listdir(root))
    except FileNotFoundError:
        aside = next(root.parent.glob(f".{glob.escape(root.name)}.replaced-*"), None)
        if aside:
            return f"{root} is gone: its replacement was cut short. Rename {aside} back to it."
        return (
            f"{root} does not exist. Check the path, or write it: foveate export CHECKPOINT {root}"
        )
    except NotADirectoryError:
        return f"{root} is a file; a bundle is a folder. Give the folder that holds {MANIFEST}."
    if _PARTIAL.fullmatch(root.name):
        return f"{root} was left by an export that was cut short. Delete it and export again."
    if MANIFEST in names:
        return None
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return f"{root} is a checkpoint, not a bundle. Make one of it: foveate export {root} BUNDLE"
    if any(name.endswith(".onnx") for name in names):
        return (
            f"{root} has graphs but no {MANIFEST}: it was left by an export that was cut short, or "
            "copied in part. Delete it and export again, if a bundle is what was to be here."
        )
    return (
        f"{root} is no bundle: it has no {MANIFEST}. Check the path, or write one: foveate export"
    )


def read_manifest(root: Path) -> bytes:
    """The bytes of a folder's manifest.json: a plain file of reasonable size."""
    path = root / MANIFEST
    _status(root, MANIFEST)
    limit = spec.MANIFEST_LIMIT
    with reading(path), open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{path} is over {limit} bytes: it is no manifest. {AGAIN}")
    return data


def _status(root: Path, relative: str) -> os.stat_result:
    """The status of a plain file in the folder, with no link on the way to it."""
    path = root / relative
    folders = [root / part for part in PurePosixPath(relative).parents[:-1]]
    for step in [*reversed(folders), path]:
        with reading(step):
            status = step.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise BundleError(
                f"{step} is a symbolic link; a bundle holds plain files. Put the file itself in "
                "its place, or export the checkpoint again."
            )
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a plain file. {AGAIN}")
    return status


def _check_file(root: Path, entry: FileEntry, *, checksums: bool) -> None:
    """BundleError for a file that is not what the manifest says."""
    path, size = root / entry.path, _status(root, entry.path).st_size
    if size != entry.bytes:
        raise BundleError(
            f"{path} has {size} bytes where {MANIFEST} says {entry.bytes}: it was cut short or "
            f"changed. {AGAIN}"
        )
    if checksums:
        with reading(path):
            found = file_digest(path)
        if found != entry.sha256:
            raise BundleError(f"{path} does not match its checksum: it was changed. {AGAIN}")


def file_entry(root: Path, path: str) -> FileEntry:
    """Measure and hash a file of a folder; BundleError where it is missing or no plain file."""
    return FileEntry(path=path, bytes=_status(root, path).st_size, sha256=file_digest(root / path))


def file_digest(path: Path) -> str:
    """A file's SHA-256 in hex, read block by block."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1024 * 1024))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _check_weights(root: Path, listed: Mapping[str, int]) -> None:
    """BundleError for a graph that takes weights from where the manifest lists no file, or not so many.

    Some engines follow such a path wherever it leads, and no checksum covers what is there.
    """
    for path in (path for path in listed if path.lower().endswith(".onnx")):
        with reading(root / path, "a readable ONNX graph"):
            tensors = external_tensors(root / path)
        for tensor in tensors:
            size = listed.get(str(PurePosixPath(path).parent / tensor.location))
            if size is None:
                raise BundleError(
                    f"{root / path} takes weights from '{spec.short(tensor.location)}', which "
                    f"{MANIFEST} does not list. {AGAIN}"
                )
            if tensor.end > size:
                raise BundleError(
                    f"{root / path} takes {tensor.end} bytes of '{spec.short(tensor.location)}', which "
                    f"has {size}. {AGAIN}"
                )
