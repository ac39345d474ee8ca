"""The bundle: a folder of graphs, weights and texts, and the manifest.json that vouches for it.

Export writes it with `BundleWriter`, all else reads it with `Bundle.open`; docs/bundle-format.md
is the specification.
"""

import contextlib
import errno
import glob
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import msgspec

from foveate import __version__
from foveate.errors import (
    BundleError,
    BundleNotFoundError,
    FoveateError,
    OutputError,
    OutputExistsError,
)

FORMAT = "foveate-bundle"
VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 4 * 1024 * 1024

Precision = Literal["fp32", "fp16", "bf16"]
DType = Literal[
    "float32", "float16", "bfloat16", "float64",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
]  # fmt: skip
Count = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Role = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Scalar = bool | int | float | str
Shape = list[Natural]

T = TypeVar("T")

_PART = r"\w([\w.-]*[\w-])?"
_PATH = re.compile(rf"{_PART}(/{_PART})*", re.ASCII)
_PARTIAL = re.compile(r"\..+\.partial-[0-9a-f]{8}")
_EXISTS = "is already there. Give another path, or replace it with force (--force)."
_AGAIN = "Copy the bundle again from where it came, or export the checkpoint again."


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every object in the manifest: unknown and missing fields are errors."""


class Rope(Record, frozen=True, kw_only=True):
    """Rotary positions; `sections` splits a head among the axes of m-rope, empty for one axis."""

    theta: Positive
    sections: tuple[Count, ...]


class ModelFacts(Record, frozen=True, kw_only=True):
    """The language model's sizes."""

    hidden_size: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    tied_embeddings: bool
    rope: Rope


class FileEntry(Record, frozen=True, kw_only=True):
    """One file, by its path from the bundle's folder."""

    path: str
    sha256: Digest
    bytes: Natural


class TensorSpec(Record, frozen=True, kw_only=True):
    """A graph's input or output; an axis is a size, or a name where the size is free."""

    name: Text
    dtype: DType
    shape: list[Natural | Text]


class GraphSpec(Record, frozen=True, kw_only=True):
    """What an ONNX graph takes and gives."""

    opset: Count
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class EngineVariant(Record, frozen=True, kw_only=True):
    """A TensorRT engine for one target; `profiles` holds (min, opt, max) shapes by input."""

    target: Text
    role: Role
    file: Role
    compute_capability: Text
    tensorrt: Text
    precision: Precision
    profiles: dict[str, dict[str, tuple[Shape, Shape, Shape]]]


class ImageBackend(Record, frozen=True, kw_only=True):
    """The image library that the preprocessing parameters were checked with."""

    name: Literal["pillow"]
    version: Text


class Generation(Record, frozen=True, kw_only=True):
    """When and how the checkpoint wants its text generated."""

    eos: Annotated[list[Natural], msgspec.Meta(min_length=1)]
    repetition_penalty: Positive
    max_new_tokens: Count


class Limits(Record, frozen=True, kw_only=True):
    """The most that one request may hold."""

    visual_tokens: Count
    prompt_tokens: Count


class CompressorFacts(Record, frozen=True, kw_only=True):
    """How visual tokens are ranked; `keep` is the default ratio, `figures` what it measured."""

    kind: Literal["attention", "f_theta"]
    keep: Ratio
    trained_on: str | None
    figures: dict[str, float]


class Manifest(Record, frozen=True, kw_only=True):
    """manifest.json, field by field and in its order."""

    format: Literal["foveate-bundle"] = "foveate-bundle"
    version: Literal[1] = 1
    family: Text
    precision: Precision
    model: ModelFacts
    files: dict[Role, FileEntry]
    graphs: dict[Role, GraphSpec]
    engines: list[EngineVariant] = []
    preprocessing: dict[str, Scalar | list[Scalar]]
    image_backend: ImageBackend
    tokens: dict[str, Natural]
    generation: Generation
    limits: Limits
    compressor: CompressorFacts
    parity: dict[str, float]
    tools: dict[str, str]


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: UTF-8, two spaces of indent, fields in their declared order.

    Raises:
        BundleError: A manifest that `decode` would refuse.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode(data, Path(MANIFEST))
    return data


def decode(data: bytes, source: Path) -> Manifest:
    """Read a manifest, strictly; the files it names are not looked at.

    Args:
        data: The bytes of manifest.json.
        source: Where they came from, for messages.

    Raises:
        BundleError: Another format or version, or anything unknown, missing or out of range.
    """
    try:
        _check_version(_parse(data), source)
        manifest = msgspec.json.decode(data, type=Manifest)
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source} is not a valid manifest: {_short(error)}. {_AGAIN}") from None
    problem = next(_problems(manifest), None)
    if problem:
        raise BundleError(f"{source} is not a valid manifest: {problem}. {_AGAIN}")
    return manifest


def _parse(data: bytes) -> Any:
    """JSON as plain Python, with the same key twice in an object an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object, or ValueError naming a key that it holds twice."""
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} stands twice in one object")
            found[key] = value
        return found

    return json.loads(data.decode("utf-8"), object_pairs_hook=unique)


def _check_version(document: Any, source: Path) -> None:
    """BundleError for another format or version, before the fields of this one are asked for."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f'{source} does not say "format": "{FORMAT}". {_AGAIN}')
    version = document.get("version")
    if version != VERSION:
        raise BundleError(
            f"{source} has version {_short(version)} of the format; Foveate {__version__} reads "
            f"version {VERSION}. Export the checkpoint again, or upgrade foveate."
        )


def _short(value: object) -> str:
    """Text from a file made fit for a message: no control characters, no more than 200."""
    text = repr(str(value))[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}…"


def _problems(manifest: Manifest) -> Iterator[str]:
    """What the types alone do not refuse, as sentences."""
    taken = {MANIFEST}
    for role, entry in manifest.files.items():
        path = _short(entry.path)
        if len(entry.path) > 255 or not _PATH.fullmatch(entry.path):
            yield (
                f"the path '{path}' of {role!r} leaves the folder or is not plain (at most 255 "
                "letters, digits, '.', '_' and '-', with '/' between parts)"
            )
        if entry.path.lower() in taken:
            yield f"the path '{path}' of {role!r} is taken by another file"
        taken.add(entry.path.lower())
    for role, graph in manifest.graphs.items():
        if role not in manifest.files:
            yield f"the graph {role!r} is not among the files"
        elif not manifest.files[role].path.endswith(".onnx"):
            yield f"the graph {role!r} is no .onnx file"
        for tensors in (graph.inputs, graph.outputs):
            if len({tensor.name for tensor in tensors}) < len(tensors):
                yield f"the graph {role!r} names a tensor twice"
    for engine in manifest.engines:
        if engine.file not in manifest.files:
            yield f"the engine {engine.file!r} is not among the files"


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
        with _reading(root):
            reason = _why_no_bundle(root)
        if reason:
            raise BundleNotFoundError(reason)
        return cls._load(root, checksums=checksums)

    @classmethod
    def _load(cls, root: Path, *, checksums: bool) -> "Bundle":
        """`open`, without asking whether the folder is still being written."""
        manifest = decode(_read_manifest(root), root / MANIFEST)
        for entry in manifest.files.values():
            _check_file(root, entry, checksums=checksums)
        _check_weights(root, [entry.path for entry in manifest.files.values()])
        return cls(root, manifest)

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
        for kind, ours, theirs in (
            ("input", promised.inputs, inputs),
            ("output", promised.outputs, outputs),
        ):
            wanted = {tensor.name: tensor for tensor in ours}
            found = {tensor.name: tensor for tensor in theirs}
            for name in sorted(wanted.keys() | found.keys()):
                promise, fact = _signature(wanted.get(name)), _signature(found.get(name))
                if promise != fact:
                    raise BundleError(
                        f"{path}: the {kind} '{_short(name)}' is {fact} in the graph and "
                        f"{promise} in {MANIFEST}. Export the checkpoint again."
                    )


def _signature(tensor: TensorSpec | None) -> str:
    """A tensor's type and shape in words, every free axis alike."""
    if tensor is None:
        return "absent"
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
            "copied in part. Delete it and export again."
        )
    return (
        f"{root} is no bundle: it has no {MANIFEST}. Check the path, or write one: foveate export"
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an OSError into a BundleError about `path`."""
    try:
        yield
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. {_AGAIN}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(f"{path} cannot be read: {reason}. Check its permissions.") from error


def _read_manifest(root: Path) -> bytes:
    """The bytes of a folder's manifest.json: a plain file of reasonable size."""
    path = root / MANIFEST
    _status(root, MANIFEST)
    with _reading(path), open(path, "rb") as file:
        data = file.read(MANIFEST_LIMIT + 1)
    if len(data) > MANIFEST_LIMIT:
        raise BundleError(f"{path} is over {MANIFEST_LIMIT} bytes: it is no manifest. {_AGAIN}")
    return data


def _status(root: Path, relative: str) -> os.stat_result:
    """The status of a plain file in the folder, with no link on the way to it."""
    path = root / relative
    folders = [root / part for part in PurePosixPath(relative).parents[:-1]]
    for step in [*reversed(folders), path]:
        with _reading(step):
            status = step.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise BundleError(
                f"{step} is a symbolic link; a bundle holds plain files. Put the file itself in "
                "its place, or export the checkpoint again."
            )
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a plain file. {_AGAIN}")
    return status


def _check_file(root: Path, entry: FileEntry, *, checksums: bool) -> None:
    """BundleError for a file that is not what the manifest says."""
    path, size = root / entry.path, _status(root, entry.path).st_size
    if size != entry.bytes:
        raise BundleError(
            f"{path} has {size} bytes where {MANIFEST} says {entry.bytes}: it was cut short or "
            f"changed. {_AGAIN}"
        )
    if checksums:
        with _reading(path):
            found = _sha256(path)
        if found != entry.sha256:
            raise BundleError(f"{path} does not match its checksum: it was changed. {_AGAIN}")


def _sha256(path: Path) -> str:
    """A file's SHA-256 in hex, read block by block."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1024 * 1024))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _check_weights(root: Path, listed: list[str]) -> None:
    """BundleError for a graph that takes weights from a file that the manifest does not list.

    Some engines follow such a path wherever it leads, and no checksum covers what is there.
    """
    for path in (path for path in listed if path.lower().endswith(".onnx")):
        try:
            with _reading(root / path):
                locations = _external_data(root / path)
        except BundleError:
            raise
        except ValueError:
            raise BundleError(f"{root / path} is not a readable ONNX graph. {_AGAIN}") from None
        for location in locations:
            if str(PurePosixPath(path).parent / location) not in listed:
                raise BundleError(
                    f"{root / path} takes weights from '{_short(location)}', which {MANIFEST} does "
                    f"not list. {_AGAIN}"
                )


# The messages of ONNX that lead to its tensors: field number → message, by message.
_ONNX = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}


def _external_data(graph: Path) -> set[str]:
    """Where an ONNX graph keeps weights outside itself; ValueError when it cannot be parsed."""
    locations: set[str] = set()
    with open(graph, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        todo = [("model", 0, len(data))]
        while todo:
            message, start, end = todo.pop()
            fields = _fields(data, start, end)
            if message == "external":
                pair = {number: data[start:end] for number, start, end in fields}
                if pair.get(1) == b"location":
                    locations.add(pair.get(2, b"").decode())
                continue
            inner = _ONNX[message]
            todo += [(inner[field], start, end) for field, start, end in fields if field in inner]
    return locations


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a protobuf message that have a length, as (number, start, end)."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2 and tag < 1 << 32:
            size, at = _varint(data, at)
            yield tag >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("a field that ONNX does not have")
    if at != end:
        raise ValueError("a field that goes past its message")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A protobuf integer, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("an integer without an end")


class BundleWriter:
    """Writes a bundle beside its place and moves it there when it is whole.

    As a context manager: write files under `root`, then call `finish`; leaving without it, for
    whatever reason, removes what was written.

    Attributes:
        path: Where the bundle will be, absolute.
        root: The folder to write in until then.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Prepare to write; nothing is touched before the context is entered.

        Args:
            path: The bundle's folder; its parent must exist.
            force: Replace a bundle or an empty folder that is already there.
        """
        self.path = Path(os.path.abspath(path))
        self.root = _sibling(self.path, "partial")
        self._force = force

    def __enter__(self) -> "BundleWriter":
        """Make the folder to write in.

        Raises:
            OutputExistsError: Something is there that may not be replaced.
            OutputError: The folder cannot be made.
        """
        with writing(self.path):
            self._refuse_existing()
            self.root.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what was not finished; a failed write leaves as an OutputError."""
        shutil.rmtree(self.root, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, FoveateError):
            inside = Path(str(error.filename)).is_relative_to(self.root)
            if inside or error.errno in _FULL:
                with writing(self.path):
                    raise error

    def entries(self, paths: Mapping[str, str]) -> dict[str, FileEntry]:
        """Measure and hash files that were written.

        Args:
            paths: Role → path from `root`, with '/' between parts.

        Raises:
            BundleError: A path is missing, or is a link or no plain file.
        """
        return {
            role: FileEntry(
                path=path,
                bytes=_status(self.root, path).st_size,
                sha256=_sha256(self.root / path),
            )
            for role, path in paths.items()
        }

    def finish(self, manifest: Manifest) -> Bundle:
        """Write the manifest, check the whole and move it into place.

        Args:
            manifest: It must list every file that was written.

        Raises:
            BundleError: The manifest and the files do not agree.
            OutputExistsError: Something came to the place meanwhile.
            OutputError: The disk did not take it.
        """
        with writing(self.path):
            (self.root / MANIFEST).write_bytes(encode(manifest))
            bundle = Bundle._load(self.root, checksums=False)
            listed = {MANIFEST, *(entry.path for entry in manifest.files.values())}
            for path in sorted(self.root.rglob("*")):
                plain = path.is_dir() and not path.is_symlink()
                if not plain and path.relative_to(self.root).as_posix() not in listed:
                    raise BundleError(f"{path} is not in {MANIFEST}. List it, or do not write it.")
                _sync(path)
            _sync(self.root)
            self._move()
        return Bundle(self.path, bundle.manifest)

    def _move(self) -> None:
        """Rename into place; what was there comes back if that fails, or else goes on exit."""
        self._refuse_existing()
        old = _sibling(self.path, "replaced")
        try:
            if self.path.exists():
                self.path.rename(old)
            self.root.rename(self.path)
        except BaseException:
            if old.exists() and not self.path.exists():
                old.rename(self.path)
            raise
        _sync(self.path.parent)
        if old.exists():
            old.rename(self.root)

    def _refuse_existing(self) -> None:
        """OutputExistsError for anything in the way that may not be replaced."""
        if not os.path.lexists(self.path):
            return
        if not self._force:
            raise OutputExistsError(f"{self.path} {_EXISTS}")
        if not _is_replaceable(self.path):
            raise OutputExistsError(
                f"{self.path} is neither a bundle nor an empty folder, and force replaces nothing "
                "else. Give another path, or delete it yourself."
            )


def _is_replaceable(path: Path) -> bool:
    """Whether a path is an empty folder or a bundle of any version."""
    if path.is_symlink() or not path.is_dir():
        return False
    if not os.listdir(path):
        return True
    with contextlib.suppress(BundleError, ValueError, RecursionError):
        document = _parse(_read_manifest(path))
        return isinstance(document, dict) and document.get("format") == FORMAT
    return False


def _sibling(path: Path, state: str) -> Path:
    """A new name beside `path`, hidden, that says what it belongs to."""
    return path.with_name(f".{path.name}.{state}-{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    """Have the disk keep a file or folder, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FIXES = {
    errno.ENOSPC: "the disk is full. Free some space, or give a path on another disk.",
    errno.EDQUOT: "the disk quota is used up. Free some space, or give a path on another disk.",
    errno.EFBIG: "it is larger than the file system or `ulimit -f` allows. Give another path.",
    errno.EROFS: "the file system is read-only. Give a path on another disk.",
    errno.EACCES: "there is no permission. Give a path that you may write to.",
    errno.EPERM: "there is no permission. Give a path that you may write to.",
    errno.ENOENT: "its folder does not exist. Make that first, or give another path.",
    errno.ENOTDIR: "its folder is a file. Give another path.",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names `path` and a fix.

    Args:
        path: What the block writes.

    Raises:
        OutputError: The block raised an OSError that is no error of Foveate.
    """
    try:
        yield
    except FoveateError:
        raise
    except OSError as error:
        reason = f"{error.strerror or error}. Check the disk, or give another path."
        failure = OutputError(
            f"{os.fspath(path)} could not be written: {_FIXES.get(error.errno or 0, reason)}"
        )
        failure.errno = error.errno
        raise failure from error


def replace_file(
    path: str | os.PathLike[str],
    content: bytes | Callable[[BinaryIO], object],
    *,
    force: bool = False,
) -> None:
    """Write one file whole or not at all.

    Args:
        path: The file; its folder must exist.
        content: Its bytes, or a function that writes them to the open file it is given.
        force: Replace a plain file that is already there.

    Raises:
        OutputExistsError: Something is there that may not be replaced.
        OutputError: The disk did not take it.
    """
    target = Path(os.path.abspath(path))
    partial = _sibling(target, "partial")
    with writing(target):
        if os.path.lexists(target):
            if not force:
                raise OutputExistsError(f"{target} {_EXISTS}")
            if not stat.S_ISREG(target.lstat().st_mode):
                raise OutputExistsError(f"{target} is not a plain file. Give another path.")
        try:
            with open(partial, "xb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
            _sync(partial)
            os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        _sync(target.parent)
