"""What the user chooses about quantization, and what of it cannot be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.bundle.manifest import Precision, quantized
from foveate.errors import DataError, ExportError

Base = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class QuantizationOptions:
    """How to quantize.

    Attributes:
        calibration: Questions about pictures, as JSON Lines, to take the ranges of activations from.
        evaluate: Questions with answers, as JSON Lines, to ask before and after; None for half of
            `calibration`, which then is not calibrated with.
        limit: Take only so many records of each file, from the first.
        base: What everything but the quantized matrix products computes in; None for fp32.
    """

    calibration: Path | None = None
    evaluate: Path | None = None
    limit: int | None = None
    base: Base | None = None


def check_options(precision: Precision, options: QuantizationOptions) -> None:
    """Refuse what does not go together, before anything is exported.

    Raises:
        DataError: int8 or fp8 without calibration data.
        ExportError: An option that would have no effect.
    """
    if quantized(precision) is None:
        if options != QuantizationOptions():
            raise ExportError(
                f"--calibration, --evaluate, --limit and --base are for --precision int8, fp8 or "
                f"int4, and {precision} was asked for; leave them out, or choose one of those"
            )
    elif precision == "int4":
        if options.calibration is not None:
            raise ExportError(
                "int4 quantizes weights alone and takes no calibration data; leave --calibration "
                "out, and give --evaluate DATA.jsonl to learn what it costs"
            )
    elif options.calibration is None:
        raise DataError(
            f"{precision} quantizes activations, whose ranges come from your own data; give "
            '--calibration DATA.jsonl with lines like {"id": "1", "image": "1.png", "question": '
            '"…", "answer": "…"}, or choose --precision int4, which needs none'
        )
    if options.limit is not None and options.limit < 2:
        raise ExportError(f"--limit is {options.limit}; give at least 2")
