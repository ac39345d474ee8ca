"""Outputs: written whole or not at all, with errors that name path and fix."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from foveate.errors import FoveateError, OutputError, OutputExistsError

EXISTS = "is already there. Give another path, or replace it with force (--force)."


def sibling(path: Path, state: str) -> Path:
    """A new name beside `path`, hidden, that says what it belongs to."""
    return path.with_name(f".{path.name}.{state}-{secrets.token_hex(4)}")


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
        os.stat(f"{target.parent}/.")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{target.parent} may not be written to; give another folder")
        _check_replaceable(target, force)


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
    partial = sibling(target, "partial")
    with writing(target):
        _check_replaceable(target, force)
        try:
            with open(partial, "xb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
            sync(partial)
            os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        sync(target.parent)
