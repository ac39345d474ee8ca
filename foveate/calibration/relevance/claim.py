"""A store's folder, held by one run and made ready for it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from foveate.atomic_write import writing
from foveate.calibration.relevance import manifest as manifests
from foveate.calibration.relevance.manifest import AUTO, Manifest
from foveate.calibration.relevance.store import LEFTOVER, Store
from foveate.errors import OutputExistsError


@contextlib.contextmanager
def claimed(folder: Path, manifest: Manifest, force: bool) -> Iterator[None]:
    """Hold a folder for one run, made ready: a new store, or one of the same settings to go on with.

    Args:
        folder: Made if need be; its parent must exist.
        manifest: How the run makes samples.
        force: Delete the samples of a store that is there.

    Raises:
        DataError: The store that is there is damaged.
        OutputExistsError: Something else is there, a store of other settings, or another run's.
        OutputError: It cannot be written.
    """
    with writing(folder):
        if not os.path.lexists(folder):
            folder.mkdir()
        if not folder.is_dir():
            raise OutputExistsError(f"{folder} is not a folder. Give another path.")
    with locked(folder):
        with writing(folder):
            make_ready(folder, manifest, force)
        yield


def make_ready(folder: Path, manifest: Manifest, force: bool) -> None:
    """Check what a folder holds, clean up after a killed run, and write the manifest."""
    if not (folder / manifests.MANIFEST).exists():
        strangers = [name for name in os.listdir(folder) if not LEFTOVER.fullmatch(name)]
        if strangers:
            raise OutputExistsError(
                f"{folder} holds {min(strangers)} and no relevance maps. Give another path."
            )
    elif force:
        manifests.check_format(folder)
    else:
        before = Store.open(folder, complete=False).manifest
        if before.trial is not None and manifest.mode in (AUTO, before.mode):
            manifest = msgspec.structs.replace(manifest, mode=before.mode, trial=before.trial)
        for name, value in manifest.settings().items():
            if (was := getattr(before, name)) != value:
                raise OutputExistsError(
                    f"{folder} was made with another {name} ({was!r}, now {value!r}), and samples "
                    "of both do not mix. Give another path, or delete them with force (--force)."
                )
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) or (force and manifests.SHARD.fullmatch(path.name)):
            path.unlink()
    manifests.write_manifest(folder, manifest)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder for as long as this process lives, where the system can."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExistsError(
                f"{folder}: another run is writing there. Wait for it, or give another path."
            ) from None
        yield
    finally:
        os.close(descriptor)
