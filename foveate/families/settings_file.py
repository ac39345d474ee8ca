"""A checkpoint's small files, read so that whatever is wrong with one is a CheckpointError naming it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError, FoveateError, cause


@contextmanager
def reading(path: str | Path, kind: str, fix: str) -> Iterator[None]:
    """Turn whatever a library raises over a file into a CheckpointError that names the file.

    Args:
        path: The file, as the user knows it.
        kind: What it ought to be, with its article: "a tokenizer".
        fix: What the user can do.

    Raises:
        CheckpointError: The file is missing or is not of that kind.
    """
    try:
        yield
    except FoveateError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is missing; {fix}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: there is not enough memory to read it as {kind}") from error
    # Native code of tokenizers and safetensors panics with a BaseException of its own.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise CheckpointError(f"{path}: not readable as {kind} ({cause(error)}); {fix}") from error


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        CheckpointError: Missing, unreadable or in another encoding.
    """
    with reading(path, "text in UTF-8", "save the checkpoint again"):
        return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: Missing, unreadable or no object.
    """
    with reading(path, "JSON", "save the checkpoint again"):
        data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object; save the checkpoint again")
    return data
