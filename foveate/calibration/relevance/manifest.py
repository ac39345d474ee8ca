"""The manifest of a store of relevance maps: how it was made (docs/relevance-format.md)."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from foveate.atomic_write import replace_file
from foveate.errors import DataError

FORMAT: Final = "foveate-relevance"
VERSION: Final = 3
MANIFEST = "manifest.json"

Outcome = Literal["kept", "wrong", "unreadable"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Natural = Annotated[int, msgspec.Meta(ge=0)]

AUTO: Final = "auto"
"""The mode of a store whose mode is still to be chosen."""

SHARD = re.compile(r"part-(\d+)-(\d+)\.arrow", re.ASCII)


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished store's shard."""

    sha256: Digest
    bytes: Natural


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a store's mode was chosen: answers that stayed the same with the most relevant tokens alone.

    Attributes:
        questions: How many answers were tried.
        keeps: The ratios of visual tokens kept.
        same: Of each mode, how many answers stayed the same, for each ratio.
    """

    questions: Natural
    keeps: tuple[float, ...]
    same: dict[str, tuple[Natural, ...]]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a store was made; `counts` and `shards` are there once it is finished.

    `mode` is "auto" until it is chosen, and `trial` says how it was.
    """

    format: Literal["foveate-relevance"] = FORMAT
    version: Literal[3] = VERSION
    checkpoint: str
    checkpoint_sha256: Digest
    family: str
    mode: str
    dtype: str
    rule: str
    keep_wrong: bool
    own_answers: bool
    max_new_tokens: Natural
    data: str
    data_sha256: Digest
    tools: dict[str, str]
    trial: Trial | None = None
    counts: dict[str, Natural] | None = None
    shards: dict[str, ShardEntry] | None = None

    def settings(self) -> dict[str, Any]:
        """What must be the same wherever samples go into one store."""
        loose = ("checkpoint", "data", "tools", "trial", "counts", "shards")
        return {name: getattr(self, name) for name in self.__struct_fields__ if name not in loose}

    def key(self) -> str:
        """The settings' SHA-256, which each shard carries."""
        return hashlib.sha256(msgspec.json.encode(self.settings(), order="sorted")).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a store's manifest, in place of one that is there.

    Raises:
        OutputError: The disk did not take it.
    """
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    replace_file(folder / MANIFEST, content, force=True)


def read_manifest(folder: Path) -> Manifest:
    """How a store was made.

    Raises:
        DataError: No store there, or a manifest that is damaged or of another version.
    """
    version = check_format(folder).get("version")
    path = folder / MANIFEST
    if version != VERSION:
        raise DataError(
            f"{path}: version {version!r} of the format, and this Foveate reads {VERSION}; "
            "make the relevance maps again with `foveate calibrate relevance` (--force replaces "
            "these), or use the Foveate that made them"
        )
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.ValidationError as error:
        raise DataError(f"{path} is damaged ({error}); copy the folder again") from error
    for name in manifest.shards or {}:
        if not SHARD.fullmatch(name):
            raise DataError(f"{path} is damaged: {name!r} names no shard; copy the folder again")
    return manifest


def check_format(folder: Path) -> dict[str, Any]:
    """The manifest as far as it says that it is one."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder}: no relevance maps there; make some with `foveate calibrate relevance`"
        )
    try:
        document = msgspec.json.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy the folder again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path} is not that of relevance maps; give a folder of these")
    return document
