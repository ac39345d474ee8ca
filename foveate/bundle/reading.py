"""Where errors of libraries that read a bundle's files become errors about these files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from foveate.bundle.manifest import AGAIN, short
from foveate.errors import BundleError, FoveateError


@contextlib.contextmanager
def reading(path: Path, what: str = "what it is to hold") -> Iterator[None]:
    """Turn whatever a library raises while it reads a file of a bundle into a BundleError.

    Libraries raise errors of any type: msgspec's and json's are ValueErrors, tokenizers' bare
    Exceptions, jinja2's its own. An error of Foveate passes, but where it knows no file.

    Args:
        path: The file, for the message.
        what: What the file is to hold, such as "a tokenizer".

    Raises:
        BundleError: The file is missing, cannot be read, or does not hold that.
    """
    try:
        yield
    except (FoveateError, MemoryError):
        raise
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. {AGAIN}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(f"{path} cannot be read: {reason}. Check its permissions.") from error
    except Exception as error:
        reason = short(error) or type(error).__name__
        raise BundleError(f"{path} does not hold {what}: {reason}. {AGAIN}") from error
