"""What quantization costs the nano checkpoint: answers, bytes and speed on the CPU, as JSON.

python models/nano_quantization.py OUT.json --calibration CAL.jsonl --evaluate DATA.jsonl EASY.jsonl
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from foveate import Pipeline
from foveate.bundle.quantization_report import cost_facts
from foveate.bundle.reader import file_digest
from foveate.calibration.dataset import Record, read_records
from foveate.calibration.evaluation.intervals import Score
from foveate.export.exporter import ExportOptions, export
from foveate.export.quantization.options import QuantizationOptions
from foveate.export.quantization.questions import Questions, score_all

NANO = Path(__file__).parent / "nano"
KEEPS = (1.0, 0.5, 0.25)
PRECISIONS = ("fp32", "fp16", "int8", "fp8", "int4")
TIMED = 24


def main() -> None:
    """Export in every precision, ask, time and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluate", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, help="of each file to evaluate")
    options = parser.parse_args()
    records = [one for path in options.evaluate for one in read_records(path)[: options.limit]]
    document = {
        "command": " ".join(["python", "models/nano_quantization.py", *sys.argv[1:]]),
        "calibration": {
            "sha256": file_digest(options.calibration),
            "records": len(read_records(options.calibration)),
        },
        "evaluation": [{"sha256": file_digest(path)} for path in options.evaluate],
        "records": len(records),
        "tools": {name: version(name) for name in ("onnx", "onnxruntime", "torch", "transformers")},
        "cpu": {"machine": platform.machine(), "cores": os.cpu_count()},
        "precisions": {},
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pipes = {}
        for precision in PRECISIONS:
            pipe = pipes[precision] = stack.enter_context(open_as(precision, folder, options))
            document["precisions"][precision] = {
                "bytes": graph_bytes(pipe),
                "parity": pipe.bundle.manifest.parity,
                "answers": answers(pipe, options.evaluate[0], records),
                "quantization": cost_facts(pipe.bundle),
            }
            print(precision, json.dumps(document["precisions"][precision]["answers"]), flush=True)
        document["cpu_seconds_over_fp32"] = ratios(pipes, records[:: len(records) // TIMED][:TIMED])
    options.out.write_text(json.dumps(document, indent=2) + "\n")


def open_as(precision: str, folder: Path, options: argparse.Namespace) -> Pipeline:
    """Export the checkpoint and open it."""
    quantization = QuantizationOptions()
    if precision in ("int8", "fp8"):
        quantization = QuantizationOptions(options.calibration)
    chosen = ExportOptions(NANO / "f_theta.safetensors", precision, quantization=quantization)  # type: ignore[arg-type]
    return Pipeline.load(export(NANO, folder / precision, chosen).root, device="cpu")


def graph_bytes(pipe: Pipeline) -> dict[str, int]:
    """The size of each graph with its weights."""
    files = pipe.bundle.manifest.files
    return {
        role: files[role].bytes + files[f"{role}.weights"].bytes
        for role in pipe.bundle.manifest.graphs
    }


def answers(pipe: Pipeline, path: Path, records: list[Record]) -> dict[str, dict[str, object]]:
    """Right answers by keep, with the 95 % Wilson interval in percent."""
    _, scores = score_all(pipe, Questions(path, tuple(records)), KEEPS, lambda text: None)

    def facts(score: Score) -> dict[str, object]:
        interval = [round(bound, 2) for bound in score.interval]
        return {"n": score.n, "right": score.right, "interval": interval}

    return {f"{keep:g}": facts(score) for keep, score in scores.items()}


def ratios(pipes: dict[str, Pipeline], records: list[Record]) -> dict[str, dict[str, float]]:
    """Seconds of a request over those of the same request in fp32, asked in turn: the quartiles."""
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for record in [records[0], *records]:
        for name, pipe in pipes.items():
            began = time.perf_counter()
            pipe.generate(record.question, images=list(record.pictures), keep=1.0)
            seconds[name].append(time.perf_counter() - began)
    found = {}
    for name, taken in seconds.items():
        paired = [one / base for one, base in zip(taken[1:], seconds["fp32"][1:], strict=True)]
        low, middle, high = statistics.quantiles(paired, n=4)
        found[name] = {"n": len(paired), "q1": low, "median": middle, "q3": high}
    return found


if __name__ == "__main__":
    main()
