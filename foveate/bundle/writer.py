"""Writes a bundle: aside first, then renamed into place when it is whole."""

import abc
import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from foveate.atomic_write import (
    EXISTS,
    FULL,
    check_parent,
    clear_dead,
    new_folder,
    sibling,
    sync,
    writing,
)
from foveate.bundle.manifest import FORMAT, MANIFEST, FileEntry, Manifest
from foveate.bundle.manifest_json import encode, parse
from foveate.bundle.reader import Bundle, file_entry, read_manifest
from foveate.errors import BundleError, FoveateError, OutputExistsError

Writer = TypeVar("Writer", bound="FolderWriter")


class FolderWriter(abc.ABC):
    """Writes into a hidden folder of its own.

    As a context manager: write files under `root`, then call `finish`; leaving without it, for
    whatever reason, removes what was written.

    Attributes:
        path: The bundle's folder, absolute.
        root: The folder to write in, once entered.
    """

    def __init__(self, path: Path, beside: Path, force: bool) -> None:
        """Prepare to write into a folder beside another; nothing is touched before entering."""
        self.path, self.root, self._force = path, beside, force
        self._beside, self._held = beside, -1

    def __enter__(self: Writer) -> Writer:
        """Make the folder to write in, and delete those of writers that were killed.

        Raises:
            OutputExistsError: Something is there that may not be replaced.
            OutputError: The folder cannot be made.
        """
        with writing(self.path):
            clear_dead(self._beside, "partial")
            self.check_existing()
            self.root, self._held = new_folder(self._beside, "partial")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Remove what was not finished; a failed write leaves as an OutputError."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._held)
        if isinstance(error, OSError) and not isinstance(error, FoveateError):
            inside = Path(str(error.filename)).is_relative_to(self.root)
            if inside or error.errno in FULL:
                with writing(self.path):
                    raise error

    def check(self) -> None:
        """Say before long work what entering would refuse.

        Raises:
            OutputExistsError: Something is there that may not be replaced.
            OutputError: The folder's parent is not there, or may not be written to.
        """
        with writing(self.path):
            self.check_existing()
            check_parent(self._beside)

    @abc.abstractmethod
    def check_existing(self) -> None:
        """Refuse anything in the way that may not be replaced.

        Raises:
            OutputExistsError: There is something.
        """


class BundleWriter(FolderWriter):
    """Writes a bundle beside its place and moves it there when it is whole."""

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Prepare to write; nothing is touched before the context is entered.

        Args:
            path: The bundle's folder; its parent must exist.
            force: Replace a bundle or an empty folder that is already there.
        """
        absolute = Path(os.path.abspath(path))
        super().__init__(absolute, absolute, force)

    def check_existing(self) -> None:
        """OutputExistsError for anything in the way that may not be replaced."""
        if not os.path.lexists(self.path):
            return
        if not self._force:
            raise OutputExistsError(f"{self.path} {EXISTS}")
        if not _is_replaceable(self.path):
            raise OutputExistsError(
                f"{self.path} is neither a bundle nor an empty folder, and force replaces nothing "
                "else. Give another path, or delete it yourself."
            )

    def entries(self, paths: Mapping[str, str]) -> dict[str, FileEntry]:
        """Measure and hash files that were written.

        Args:
            paths: Role → path from `root`, with '/' between parts.

        Raises:
            BundleError: A path is missing, or is a link or no plain file.
        """
        return {role: file_entry(self.root, path) for role, path in paths.items()}

    def finish(self, manifest: Manifest) -> Bundle:
        """Write the manifest, check the whole and move it into place.

        Args:
            manifest: It must list every file that was written.

        Raises:
            BundleError: The manifest and the files do not agree.
            OutputExistsError: Something came to the place while the bundle was written.
            OutputError: The disk did not take it.
        """
        with writing(self.path):
            (self.root / MANIFEST).write_bytes(encode(manifest))
            bundle = Bundle.read(self.root, checksums=False)
            listed = {MANIFEST, *(entry.path for entry in manifest.files.values())}
            for path in sorted(self.root.rglob("*")):
                plain = path.is_dir() and not path.is_symlink()
                if not plain and path.relative_to(self.root).as_posix() not in listed:
                    raise BundleError(f"{path} is not in {MANIFEST}. List it, or do not write it.")
                sync(path)
            sync(self.root)
            self._move()
        return Bundle(self.path, bundle.manifest)

    def _move(self) -> None:
        """Rename into place; what was there comes back if that fails, or else goes on exit."""
        self.check_existing()
        old = sibling(self.path, "replaced")
        try:
            if self.path.exists():
                self.path.rename(old)
            self.root.rename(self.path)
        except BaseException:
            if old.exists() and not self.path.exists():
                old.rename(self.path)
            raise
        sync(self.path.parent)
        if old.exists():
            old.rename(self.root)


def _is_replaceable(path: Path) -> bool:
    """Whether a path is an empty folder or a bundle of any version."""
    if path.is_symlink() or not path.is_dir():
        return False
    if not os.listdir(path):
        return True
    with contextlib.suppress(BundleError, ValueError, RecursionError):
        document = parse(read_manifest(path))
        return isinstance(document, dict) and document.get("format") == FORMAT
    return False
