"""Adds a target's engines to a bundle, which stays as it was until they are all there."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from foveate.atomic_write import replace_file, sync, writing
from foveate.bundle.manifest import MANIFEST, EngineVariant, FileEntry, outdated
from foveate.bundle.manifest_json import encode
from foveate.bundle.reader import Bundle, file_entry
from foveate.bundle.writer import FolderWriter
from foveate.errors import BundleError, OutputExistsError

ENGINES = "engines"


class EngineWriter(FolderWriter):
    """Writes engines into a hidden folder of the bundle, renames them, and then the manifest.

    Attributes:
        bundle: The bundle as it was opened.
        target: Whose engines are written.
    """

    def __init__(self, bundle: Bundle, target: str, *, force: bool = False) -> None:
        """Prepare to write; nothing is touched before the context is entered.

        Args:
            bundle: An open bundle.
            target: The target; engines of others stay.
            force: Replace engines that the bundle already has for the target.
        """
        super().__init__(bundle.root, bundle.root / ENGINES, force)
        self.bundle, self.target = bundle, target

    def check_existing(self) -> None:
        """Refuse engines of the target that may not be replaced.

        Raises:
            OutputExistsError: The bundle has some, and `force` was not given.
        """
        has = any(engine.target == self.target for engine in self.bundle.manifest.engines)
        if has and not self._force:
            raise OutputExistsError(
                f"{self.bundle.root} already has engines for {self.target}. Replace them with force "
                "(--force)."
            )

    def finish(self, engines: Sequence[EngineVariant], files: Mapping[str, Path]) -> Bundle:
        """Move the files into the bundle and then make its manifest name them.

        Args:
            engines: The target's engines, all of them.
            files: Role → path under `root`, for every file of the target.

        Raises:
            BundleError: The bundle was replaced while the engines were built.
            OutputError: The disk did not take it.
        """
        root, folder = self.path, self.path / ENGINES / self.target
        with writing(root):
            entries = {role: self._named(path) for role, path in files.items()}
            manifest = Bundle.open(root, checksums=False).manifest
            if any(outdated(manifest, engine) for engine in engines):
                raise BundleError(
                    f"{root} was replaced while engines were built from it. Build them again."
                )
            folder.mkdir(parents=True, exist_ok=True)
            for role, entry in entries.items():
                sync(files[role])
                os.replace(files[role], root / entry.path)
            sync(folder)
            others = [engine for engine in manifest.engines if engine.target != self.target]
            kept = {
                role: entry
                for role, entry in manifest.files.items()
                if Path(entry.path).parent.as_posix() != f"{ENGINES}/{self.target}"
            }
            manifest = msgspec.structs.replace(
                manifest, files={**kept, **entries}, engines=[*others, *engines]
            )
            replace_file(root / MANIFEST, encode(manifest), force=True)
            for path in {*folder.iterdir()} - {root / entry.path for entry in entries.values()}:
                with contextlib.suppress(OSError):
                    path.unlink()
        return Bundle(root, manifest)

    def _named(self, path: Path) -> FileEntry:
        """A written file measured, under a name that no other content has."""
        entry = file_entry(self.root, path.relative_to(self.root).as_posix())
        name = f"{path.stem}-{entry.sha256[:12]}{path.suffix}"
        return msgspec.structs.replace(entry, path=f"{ENGINES}/{self.target}/{name}")
