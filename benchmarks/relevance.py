"""Relevance of long prompts: memory and time of `foveate.calibration` against Eq. 1 written out.

    python benchmarks/relevance.py --shape 7b --device cuda --dtype bf16 --json OUT.json
    python benchmarks/relevance.py --shape nano --limit-gb 12

Random weights: neither depends on what they are. "plain" keeps every layer's attention map and its
gradient, as the published implementations do; a limit on the CPU's memory is a limit on the process.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

sys.path.insert(0, str(Path(__file__).parent.parent))
from foveate.calibration.relevance.propagation import MODES, relevance
from foveate.modeling.language_model import TRACED, Language
from tests.calibration.plain import plain_relevance

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "nano": {
        "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 640,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
    },
}  # fmt: skip
TEXT = 40


def build(shape: str, device: str, dtype: torch.dtype) -> tuple[Qwen2VLTextModel, torch.nn.Linear]:
    """A language model of random weights, and its head."""
    config = Qwen2VLConfig(text_config={**SHAPES[shape], "max_position_embeddings": 32768})
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Qwen2VLTextModel(config.text_config)
        head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, False)
        for weight in [*model.parameters(), *head.parameters()]:
            if weight.dim() > 1:
                weight.data.normal_(std=0.02)
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False), head.requires_grad_(False)


def one(
    model: Qwen2VLTextModel, head: torch.nn.Linear, method: str, visual: int, answer: int
) -> Callable[[], Tensor]:
    """A call of one method on a prompt of `visual` visual tokens and its answer."""
    device, width = head.weight.device, head.weight.shape[1]
    generator = torch.Generator(device).manual_seed(visual)
    length = visual + TEXT + answer
    embeds = torch.randn(
        1, length, width, generator=generator, device=device, dtype=head.weight.dtype
    )
    positions = torch.arange(length, device=device).expand(3, -1)
    tokens = torch.arange(answer, device=device)
    if method == "plain":
        model.set_attn_implementation("eager")
        return lambda: plain_relevance(
            model, head, embeds, positions[:, None], tokens.tolist(), "grad"
        )
    model.set_attn_implementation(TRACED)
    language = Language(model.embed_tokens, model.rotary_emb, model.layers, model.norm, head)
    return lambda: relevance(language, embeds, positions, tokens, method)


def on_gpu(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method at every length, in one process."""
    model, head = build(options.shape, options.device, getattr(torch, DTYPES[options.dtype]))
    rows = []
    for visual in options.visual:
        for method in options.methods:
            call = one(model, head, method, visual, options.answer)
            row: dict[str, Any] = {"visual": visual, "method": method}
            try:
                held = torch.cuda.memory_allocated()
                times = []
                for _ in range(1 + options.repeats):
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    began = time.perf_counter()
                    call()
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - began)
                peak = torch.cuda.max_memory_allocated() - held
                row |= {"seconds": statistics.median(times[1:]), "gigabytes": peak / 1e9}
            except torch.OutOfMemoryError:
                row["died"] = "out of memory"
            del call
            gc.collect()
            torch.cuda.empty_cache()
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def on_cpu(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method at every length, each in a process of its own with limited memory."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for visual in options.visual:
        for method in options.methods:
            reader, writer = context.Pipe(False)
            process = context.Process(target=alone, args=(options, method, visual, writer))
            process.start()
            writer.close()
            row: dict[str, Any] = {"visual": visual, "method": method}
            try:
                row |= reader.recv()
            except EOFError:
                row["died"] = "killed"
            process.join()
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def alone(options: argparse.Namespace, method: str, visual: int, writer: Any) -> None:
    """One method at one length; peak resident memory over that of the loaded model."""
    model, head = build(options.shape, "cpu", getattr(torch, DTYPES[options.dtype]))
    one(model, head, method, 60, options.answer)()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = int(options.limit_gb * 1e9)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
    call = one(model, head, method, visual, options.answer)
    began = time.perf_counter()
    try:
        call()
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        writer.send({"died": f"over {options.limit_gb:g} GB"})
        return
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    writer.send({"seconds": seconds, "gigabytes": peak * 1024 / 1e9})


DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a length, a column a method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| visual tokens | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for visual in dict.fromkeys(row["visual"] for row in rows):
        cells = []
        for method in methods:
            row = next(r for r in rows if (r["visual"], r["method"]) == (visual, method))
            cells.append(row.get("died") or f"{row['gigabytes']:.2f} GB, {row['seconds']:.2f} s")
        lines.append(f"| {visual} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--visual", default="500,1500,6000,16000")
    parser.add_argument("--methods", default=",".join([*MODES, "plain"]))
    parser.add_argument("--answer", type=int, default=4, help="generated tokens")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit-gb", type=float, default=12.0, help="on the CPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.visual = [int(part) for part in options.visual.split(",")]
    options.methods = options.methods.split(",")
    rows = on_gpu(options) if options.device == "cuda" else on_cpu(options)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
    facts = {
        "machine": machine or platform.machine(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "shape": options.shape, "dtype": options.dtype,
        "answer": options.answer, "limit_gb": options.limit_gb, "rows": rows,
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
