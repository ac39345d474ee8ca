"""Compares a bundle's TensorRT engines with onnxruntime's CPU execution provider: answers and arrays.

    python benchmarks/tensorrt_parity.py BUNDLE --write-reference REFERENCE.npz   # where onnxruntime is
    python benchmarks/tensorrt_parity.py BUNDLE --reference REFERENCE.npz --target h100 --json OUT.json

The reference holds the pictures too, in sizes that need no resizing, so that the two environments may have
different versions of Pillow. The second command needs no onnxruntime, no torch and no network; it builds
the engines first where the bundle has none for the target. With --decoder static they have a KV cache of
fixed memory (TensorRT from 10.15 on, TensorRT for RTX).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from foveate import Pipeline, __version__
from foveate.bundle.reader import Bundle
from foveate.commands.stage_parity import BOUNDS, differences, run_stages
from foveate.families.base import user_turn
from foveate.machine import gpu_facts
from foveate.runtime.backends import open_backend
from foveate.runtime.backends.trt.backend import TensorRTBackend
from foveate.runtime.load import read_family, read_tokenizer
from foveate.terminal import table

KEEPS = (1.0, 0.5, 0.25)
SAMPLES = Path(__file__).parent.parent / "models" / "nano" / "samples"
TOKENS = 32
STAGES = ("vision", "compress", "prefill", "decode")


def write_reference(bundle: Bundle, samples: Path, count: int, out: Path) -> None:
    """Run the bundle's graphs on the CPU; write pictures, questions, answers and each stage's arrays."""
    lines = (samples / "data.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    records = records[:: max(1, len(records) // count)][:count]
    family: Any = read_family(bundle, read_tokenizer(bundle))
    arrays: dict[str, NDArray[Any]] = {}
    questions = []
    with Pipeline.load(bundle.root, backend="onnxruntime", device="cpu") as pipe:
        for number, record in enumerate(records):
            picture = Image.open(samples / record["image"]).convert("RGB")
            ((_, rows, columns),) = family.prepare([picture]).grids
            cell = family.settings.patch_size * family.settings.merge_size
            picture = picture.resize((columns * cell, rows * cell), Image.Resampling.BICUBIC)
            arrays[f"picture.{number}"] = np.asarray(picture)
            answers = {}
            for keep in KEEPS:
                answer = pipe.generate(
                    record["question"],
                    images=[picture],
                    keep=keep,
                    max_new_tokens=TOKENS,
                    temperature=0,
                )
                answers[str(keep)] = {
                    "token_ids": answer.token_ids,
                    "kept": answer.visual.indices.tolist(),
                }
            questions.append({"question": record["question"], "answers": answers})
    backend = open_backend(bundle, "onnxruntime", device="cpu")
    for keep in KEEPS[1:]:
        found = stages_of(bundle, backend, arrays["picture.0"], questions[0]["question"], keep, {})
        arrays |= {f"stage.{keep}.{name}": array for name, array in found.items()}
    backend.close()
    about = {
        "precision": bundle.manifest.precision,
        "asked": questions,
        "tools": bundle.manifest.tools,
    }
    np.savez_compressed(out, about=np.array(json.dumps(about)), **arrays)
    print(f"{out}: {len(questions)} questions, {out.stat().st_size / 1e6:.1f} MB")


def stages_of(
    bundle: Bundle, backend: Any, picture: NDArray[np.uint8], question: str, keep: float, given: Any
) -> dict[str, NDArray[Any]]:
    """The outputs of every stage of one request."""
    family = read_family(bundle, read_tokenizer(bundle))
    pictures = [Image.fromarray(picture)]
    visual = family.prepare(pictures)
    prompt = family.layout(user_turn(question, pictures), visual)
    return run_stages(backend, visual, prompt, max(1, round(visual.tokens * keep)), given)


def build(
    root: Path, target: str, targets: Path | None, precision: Any, decoder: Any, force: bool
) -> Any:
    """Build the target's engines where the bundle has none; the size and build time of each."""
    bundle = Bundle.open(root)
    built = [one for one in bundle.manifest.engines if one.target == target]
    other = decoder and any(one.decoder not in (None, decoder) for one in built)
    if other and not force:
        sys.exit(
            f"the bundle's engines for {target} have another decoder; build again with --force"
        )
    if built and not force:
        return []
    from foveate.export.tensorrt.build import build_engines

    def report(stage: str, number: int, total: int) -> None:
        """Print which engine is being built."""
        print(f"{time.strftime('%H:%M:%S')} {stage} {number}/{total}", flush=True)

    result = build_engines(
        root, [target], targets,
        precision=precision, decoder=decoder, force=force, progress=report,
    )  # fmt: skip
    return [
        {"role": one.engine.role, "bytes": one.bytes, "seconds": round(one.seconds, 2)}
        for one in result.built
    ]


def compare(root: Path, reference: Any, target: str, runs: int) -> dict[str, Any]:
    """Run all of the reference on the engines, compare the results, and time the stages."""
    about = json.loads(str(reference["about"]))
    bundle = Bundle.open(root, checksums=False)
    engines = {one.role: one for one in bundle.manifest.engines if one.target == target}
    bound = max(BOUNDS[one.precision] for one in engines.values())
    backend = TensorRTBackend.open(bundle, target)
    parity = {}
    for keep in KEEPS[1:]:
        head = f"stage.{keep}."
        given = {name[len(head) :]: reference[name] for name in reference if name.startswith(head)}
        question, picture = about["asked"][0]["question"], reference["picture.0"]
        for attempt in ("first", "second", "third, by CUDA graph"):
            found = stages_of(bundle, backend, picture, question, keep, given)
            for stage, distance in differences(found, given).items():
                parity[f"{stage} keep {keep} {attempt}"] = distance
    backend.close()

    answers, timings = [], {}
    with Pipeline.load(root, backend="tensorrt", target=target) as pipe:
        for number, question in enumerate(about["asked"]):
            picture = reference[f"picture.{number}"]
            for keep in KEEPS:
                wanted = question["answers"][str(keep)]
                answer = pipe.generate(
                    question["question"],
                    images=[picture],
                    keep=keep,
                    max_new_tokens=TOKENS,
                    temperature=0,
                )
                answers.append(
                    {
                        "question": question["question"],
                        "keep": keep,
                        "same_tokens": answer.token_ids == wanted["token_ids"],
                        "same_kept": answer.visual.indices.tolist() == wanted["kept"],
                        "token_ids": answer.token_ids,
                        "wanted": wanted["token_ids"],
                    }
                )
        for keep in KEEPS:
            timings[str(keep)] = time_stages(
                pipe, reference["picture.0"], about["asked"][0]["question"], keep, runs
            )
        graphs = {
            role: {"launched": engine.graphs.launched, "refusal": engine.graphs.refusal}
            for role, engine in pipe._backend.engines.items()  # type: ignore[attr-defined]
        }
        free, total = pipe._backend.gpu.memory()  # type: ignore[attr-defined]
    same = sum(answer["same_tokens"] for answer in answers)
    exact = bundle.manifest.precision == "fp32" and engines["decoder"].precision == "fp32"
    return {
        "bound": bound,
        "parity": parity,
        "worst": max(parity.values()),
        "answers": {"asked": len(answers), "same_tokens": same,
                    "same_kept": sum(answer["same_kept"] for answer in answers),
                    "differing": [one for one in answers if not one["same_tokens"]][:10]},
        "milliseconds": timings,
        "cuda_graphs": graphs,
        "gpu_memory_used_mib": round((total - free) / 2**20),
        "ok": max(parity.values()) <= bound and (same == len(answers) or not exact),
    }  # fmt: skip


def time_stages(
    pipe: Pipeline, picture: NDArray[np.uint8], question: str, keep: float, runs: int
) -> dict[str, float]:
    """Median milliseconds of each stage, after a warm-up; those of decode are for one token."""
    found: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "first_token")}
    for number in range(runs + 5):
        answer = pipe.generate(
            question, images=[picture], keep=keep, max_new_tokens=TOKENS, temperature=2.0, seed=1
        )
        steps = max(1, len(answer.token_ids))
        if number >= 5:
            for stage, values in found.items():
                seconds = getattr(answer.timing, stage)
                values.append(seconds / steps if stage == "decode" else seconds)
    return {stage: round(statistics.median(values) * 1000, 3) for stage, values in found.items()}


def describe(result: dict[str, Any]) -> str:
    """The result in a few lines of text."""
    rows = [
        (f"keep {keep}", *(f"{stage} {stages[stage]:.3f}" for stage in (*STAGES, "first_token")))
        for keep, stages in result["milliseconds"].items()
    ]
    answers = result["answers"]
    built = [
        (one["role"], f"{one['bytes'] / 1e6:.1f} MB", f"{one['seconds']:.1f} s")
        for one in result["engines"]
    ]
    return "\n".join(
        [
            f"{result['library']} on {result['gpu']}, engines in {result['precision']}, "
            f"{result['decoder']} decoder",
            table(built),
            table((name, f"{distance:.2e}") for name, distance in result["parity"].items()),
            f"largest difference {result['worst']:.2e}, allowed {result['bound']:g}; "
            f"{answers['same_tokens']} of {answers['asked']} answers have the same tokens, "
            f"{answers['same_kept']} the same kept tokens",
            "median milliseconds:",
            table(rows),
            f"CUDA graphs: {result['cuda_graphs']}",
            "ok" if result["ok"] else "NOT OK",
        ]
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--write-reference", type=Path, metavar="FILE.npz")
    parser.add_argument("--reference", type=Path, metavar="FILE.npz")
    parser.add_argument("--samples", type=Path, default=SAMPLES)
    parser.add_argument("--count", type=int, default=24, help="questions in the reference")
    parser.add_argument("--target", default="h100")
    parser.add_argument("--targets", type=Path, metavar="FILE.toml")
    parser.add_argument("--precision", choices=["fp32", "fp16"])
    parser.add_argument("--decoder", choices=["concat", "static"], help="default: the target's")
    parser.add_argument("--force", action="store_true", help="build engines again")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    options = parser.parse_args()
    if options.write_reference:
        write_reference(
            Bundle.open(options.bundle), options.samples, options.count, options.write_reference
        )
        return
    if options.reference is None:
        parser.error("give --reference, or --write-reference first")
    began = time.perf_counter()
    built = build(
        options.bundle, options.target, options.targets, options.precision, options.decoder,
        options.force,
    )  # fmt: skip
    reference = np.load(options.reference, allow_pickle=False)
    engines = [
        one for one in Bundle.open(options.bundle, checksums=False).manifest.engines
        if one.target == options.target
    ]  # fmt: skip
    result = {
        "foveate": __version__,
        "python": platform.python_version(),
        "library": f"{engines[0].library} {engines[0].version}",
        "gpu": gpu_facts()["name"],
        "precision": engines[0].precision,
        "decoder": next(one.decoder for one in engines if one.role == "decoder"),
        "engines": built,
        **compare(options.bundle, reference, options.target, options.runs),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(describe(result))
    sys.exit(not result["ok"])


if __name__ == "__main__":
    main()
