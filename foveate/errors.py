"""Every error Foveate raises on purpose: one base, each kind also the builtin a caller would expect."""

import contextlib
from collections.abc import Iterator


class FoveateError(Exception):
    """Base of all errors that Foveate raises on purpose; the message names the fix."""


class BundleError(FoveateError, ValueError):
    """A bundle that cannot be trusted: malformed manifest, wrong checksum, missing or odd file."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """The folder is not there, or is no bundle."""


class CheckpointError(FoveateError, ValueError):
    """A checkpoint that cannot be read or exported."""


class UnsupportedFamilyError(CheckpointError):
    """A model family that Foveate does not know."""


class ExportError(FoveateError, RuntimeError):
    """An export step that failed."""


class TargetError(FoveateError, ValueError):
    """A target that is unknown, or not described as a target must be."""


class ParityError(ExportError):
    """An exported graph that does not agree with the checkpoint."""


class DataError(FoveateError, ValueError):
    """A data set, or a store made from one, that cannot be read."""


class RequestError(FoveateError, TypeError):
    """What is no request, or no list of requests."""


class ImageError(FoveateError, ValueError):
    """A picture that cannot be read or that the model cannot take."""


class PromptError(FoveateError, ValueError):
    """A prompt that the model cannot take."""


class KeepError(FoveateError, ValueError):
    """A `keep` that is no ratio in (0, 1] and no possible token count."""


class LimitError(FoveateError, ValueError):
    """A request over the bundle's limits."""


class SamplingError(FoveateError, ValueError):
    """Sampling options out of range."""


class BackendError(FoveateError, RuntimeError):
    """An engine that cannot be opened, or not run as requested."""


class ClosedError(FoveateError, RuntimeError):
    """A pipeline or engine used after it was closed."""


class BusyError(FoveateError, RuntimeError):
    """A request that found too many others running or waiting, or waited past its deadline."""


class MissingDependencyError(FoveateError, ImportError):
    """An optional package that the call needs and that is not installed."""


@contextlib.contextmanager
def needed(message: str) -> Iterator[None]:
    """Say of what the block imports and is not installed `message`, whose {} stands for its name.

    Raises:
        MissingDependencyError: The block raised an ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(message.format(error.name)) from error


def cause(error: BaseException) -> str:
    """What an error of a library says, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


class OutputExistsError(FoveateError, FileExistsError):
    """An output that is already there and was not to be replaced."""


class OutputError(FoveateError, OSError):
    """An output that could not be written: full disk, no permission, no such folder."""
