"""Local files, opened as what they are, whatever their names look like."""

import os
import re
import stat
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
    name = os.fsdecode(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            kind = "a folder" if os.path.isdir(name) else "no regular file"
            raise ImageError(f"{name!r} is {kind}; give a file.")
        return open(name, "rb")
    except FileNotFoundError as error:
        if _ADDRESS.match(name):
            raise ImageError(
                f"There is no file {name[:80]!r}, and addresses are not fetched; download it first "
                "and give the file."
            ) from error
        raise ImageError(f"There is no file {name!r}; check the path.") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"The file {name!r} cannot be read ({reason}); check the path.") from error
