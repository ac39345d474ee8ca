"""Outputs of long runs, checked before the run rather than after it."""

import os
from pathlib import Path

from foveate.atomic_write import EXISTS, writing
from foveate.errors import OutputError, OutputExistsError


def check_output(path: Path, force: bool) -> None:
    """Say early that a file could not be written at the end.

    Raises:
        OutputExistsError: It is there and `force` was not given, or it is no plain file.
        OutputError: Its folder is not there, or may not be written to.
    """
    with writing(path):
        os.stat(path.parent / ".")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path.parent} may not be written to; give another folder")
        if os.path.lexists(path):
            if not path.is_file() or path.is_symlink():
                raise OutputExistsError(f"{path} is not a plain file. Give another path.")
            if not force:
                raise OutputExistsError(f"{path} {EXISTS}")
