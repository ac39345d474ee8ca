"""Outputs: written whole or not at all, with errors that name path and fix."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from foveate.errors import FoveateError, OutputError, OutputExistsError

if os.name == "posix":
    import fcntl

EXISTS = "is already there. Give another path, or replace it with force (--force)."


def sibling(path: Path, state: str) -> Path:
    """A new name beside `path`, hidden, that says what it belongs to."""
    return path.with_name(f".{path.name}.{state}-{secrets.token_hex(4)}")


def new_folder(path: Path, state: str) -> tuple[Path, int]:
    """Make a hidden folder beside `path`, held so that `clear_dead` of other processes leaves it.

    Returns:
        The folder, and a descriptor that holds it until it is closed or the process ends.
    """
    while True:
        folder = sibling(path, state)
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):
            return folder, _hold(folder)


def _hold(folder: Path) -> int:
    """Open and lock a new folder; FileNotFoundError where another process was quicker to clear it."""
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else os.open(os.devnull, 0)
    try:
        _lock(descriptor)
        os.stat(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed, however its process ends; whether that went."""
    if os.name != "posix":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def clear_dead(path: Path, state: str) -> None:
    """Delete what killed processes left beside `path`: its siblings in `state` that nobody holds.

    Where locks cannot tell, as on some network disks, everything stays.
    """
    leftover = re.compile(rf"\.{re.escape(path.name)}\.{state}-[0-9a-f]{{8}}")
    with contextlib.suppress(OSError):
        for name in filter(leftover.fullmatch, os.listdir(path.parent)):
            with contextlib.suppress(OSError):
                _clear(path.parent / name)


def _clear(path: Path) -> None:
    """Delete a file or folder that no process holds."""
    kind = path.lstat().st_mode
    if os.name != "posix" or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if _lock(descriptor, wait=False):
            shutil.rmtree(path) if stat.S_ISDIR(kind) else path.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for large intermediate files, removed at the end of the block."""
    clear_dead(path, "scratch")
    folder, held = new_folder(path, "scratch")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sync(path: Path) -> None:
    """Have the disk keep a file or folder, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
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


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file another name, or copy it where the file system cannot."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


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


def check_file(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Say before long work what `replace_file` would refuse after it.

    Args:
        path: The file that is to be written.
        force: Whether a plain file that is already there may be replaced.

    Raises:
        OutputExistsError: Something is there that may not be replaced.
        OutputError: Its folder is not there, or may not be written to.
    """
    target = Path(path)
    with writing(target):
        check_parent(target)
        _check_replaceable(target, force)


def check_parent(target: Path) -> None:
    """OSError or OutputError where nothing can be written beside `target`."""
    os.stat(f"{target.parent}/.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{target.parent} may not be written to; give another folder")


def _check_replaceable(target: Path, force: bool) -> None:
    """OutputExistsError where something is there that may not be replaced."""
    if os.path.lexists(target):
        if not stat.S_ISREG(target.lstat().st_mode):
            raise OutputExistsError(f"{target} is not a plain file. Give another path.")
        if not force:
            raise OutputExistsError(f"{target} {EXISTS}")


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
    with writing(target):
        clear_dead(target, "partial")
        _check_replaceable(target, force)
        partial, file = _new_file(target)
        try:
            with file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                sync(partial)
                os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        sync(target.parent)


def _new_file(target: Path) -> tuple[Path, BinaryIO]:
    """A hidden file beside `target`, open and held so that `clear_dead` of other processes leaves it."""
    while True:
        partial = sibling(target, "partial")
        file = open(partial, "xb")  # noqa: SIM115
        _lock(file.fileno())
        if partial.exists():
            return partial, file
        file.close()
