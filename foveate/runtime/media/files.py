"""Local files, opened as what they are, whatever their names look like."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from foveate.errors import ImageError

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")


def open_local(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file of this machine for reading.

    A name is a path and nothing else: one that looks like an address or a list is never followed,
    and a file that is called so is opened.

    Raises:
        ImageError: No such file, not a regular one, or one that cannot be read.
    """
    local_size(path)
    name = os.fsdecode(path)
    with _refusing(name):
        return open(name, "rb")


def local_size(
    path: str | os.PathLike[str], *, folder: str = "give a file", other: str = "give a file"
) -> int:
    """The bytes of a regular file of this machine, which is not opened.

    Args:
        path: The file.
        folder: What to do instead of giving a folder.
        other: What to do instead of giving a device, a pipe or the like.

    Raises:
        ImageError: No such file, or not a regular one.
    """
    name = os.fsdecode(path)
    with _refusing(name):
        status = os.stat(name)
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name!r} is a folder; {folder}.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name!r} is no regular file; {other}.")
    return status.st_size


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn the system's refusal of a file into an ImageError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        if _ADDRESS.match(name):
            raise ImageError(
                f"There is no file {name[:80]!r}, and addresses are not fetched; download it first "
                "and give the file."
            ) from error
        raise ImageError(f"There is no file {name!r}; check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"The file {name!r} cannot be read ({reason}); check the path.") from error
