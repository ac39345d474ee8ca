"""What of an export's options cannot be; needs no torch, so that it is said at once."""

from pathlib import Path

from foveate.bundle.manifest import AutoKeep, Operators, Precision, quantized
from foveate.bundle.words import UNTRAINED, attention_words
from foveate.errors import CheckpointError, ExportError, LimitError
from foveate.export.quantization.options import QuantizationOptions, check_options
from foveate.runtime.keep import Keep, check_auto, check_default


def check_choices(
    *,
    compressor: str | Path,
    precision: Precision,
    keep: Keep,
    auto_keep: AutoKeep | None,
    visual_tokens: int | None,
    random_weights: bool,
    operators: Operators,
    quantization: QuantizationOptions,
) -> None:
    """Refuse what cannot be or does not go together, before anything is read.

    Raises:
        KeepError, LimitError: Numbers out of range.
        CheckpointError: No file where the compressor is to be.
        DataError, ExportError: Options that do not go together.
    """
    check_default(keep)
    if visual_tokens is not None and visual_tokens < 1:
        raise LimitError(f"{visual_tokens} visual tokens are no limit; give at least 1")
    if auto_keep is not None:
        check_auto(auto_keep)
    if attention_words(compressor) is None and not Path(compressor).is_file():
        raise CheckpointError(
            f"{compressor}: no such file; give the weights of a trained f_θ, or {', '.join(UNTRAINED)}"
        )
    check_options(precision, quantization)
    to = quantized(precision)
    if to and (operators != "standard" or random_weights):
        raise ExportError(
            f"{to} is made of standard operators and trained weights; leave out --operators and "
            "--random-weights, or export with --precision fp16"
        )
