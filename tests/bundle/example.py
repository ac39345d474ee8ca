"""An example bundle with something in every field, and what tests of bundles share.

`attacks/bundle` holds the same bundle, written once: the golden bundle.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper

from foveate.bundle.generation import Generation
from foveate.bundle.manifest import (
    AutoKeep,
    AxisRange,
    CompressorFacts,
    EngineVariant,
    FileEntry,
    GraphSpec,
    ImageBackend,
    Limits,
    Manifest,
    ModelFacts,
    Profile,
    Rope,
    TensorSpec,
)
from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter

GOLDEN = Path(__file__).parents[1] / "attacks" / "bundle"
FILES = {
    "vision": "vision.onnx",
    "vision.weights": "vision.onnx.data",
    "embeddings": "embeddings.safetensors",
    "tokenizer": "text/tokenizer.json",
    "engine.jetson-orin.vision": "engines/jetson-orin/vision.engine",
}


def vision_graph() -> bytes:
    """y = pixels + w, with w in vision.onnx.data."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "vision.onnx.data"), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["pixels", "w"], ["features"])],
        "vision",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["patches", 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["patches", 4])],
        [weights],
    )
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)], producer_name="foveate"
    )
    return bytes(model.SerializeToString(deterministic=True))


def embeddings() -> bytes:
    """A table float16 [8, 4] that counts up from 0."""
    header = b'{"embeddings": {"dtype": "F16", "shape": [8, 4], "data_offsets": [0, 64]}}'
    header += b" " * (-len(header) % 8)
    table = np.arange(32, dtype="<f2").tobytes()
    return len(header).to_bytes(8, "little") + header + table


def tensor(name: str, shape: list[int | str], dtype: str = "float32") -> TensorSpec:
    """A tensor as an engine or an export describes it."""
    return msgspec.convert({"name": name, "dtype": dtype, "shape": shape}, TensorSpec)


def generation(**changes: Any) -> Generation:
    """Settings with something in every field, some of them changed."""
    settings: dict[str, Any] = {
        "eos": [2, 3], "max_new_tokens": 256, "max_length": None, "min_new_tokens": 1,
        "min_length": 0, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
        "min_p": 0.05, "typical_p": 0.95, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "top_h": None,
        "repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "sequence_bias": [([1, 4], -2.0)],
        "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [0], "begin_suppress_tokens": [2],
        "forced_eos_token_id": [3], "exponential_decay_length_penalty": (64, 1.1),
    }  # fmt: skip
    return Generation(**settings | changes)


def example(files: dict[str, FileEntry]) -> Manifest:
    """A manifest with something in every field."""
    return Manifest(
        family="qwen2_vl",
        precision="fp32",
        weights="trained",
        operators="standard",
        model=ModelFacts(
            hidden_size=4,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocabulary=8,
            tied_embeddings=True,
            rope=Rope(theta=1e6, sections=(2, 3, 3)),
        ),
        files=files,
        graphs={
            "vision": GraphSpec(
                opset=18,
                inputs=[tensor("pixels", ["patches", 4])],
                outputs=[tensor("features", ["patches", 4])],
            )
        },
        engines=[
            EngineVariant(
                target="jetson-orin",
                role="vision",
                file="engine.jetson-orin.vision",
                library="tensorrt",
                version="10.3.0",
                compute_capabilities=["8.7"],
                precision="fp32",
                decoder=None,
                profiles={
                    "default": Profile(shapes={"pixels": ([1, 4], [64, 4], [256, 4])}, values={})
                },
                built_from={
                    role: files[role].sha256 for role in files if role.startswith("vision")
                },
            )
        ],
        vision_axes={"patches": AxisRange(per_token=4.0)},
        preprocessing={
            "images": {"patch_size": 14, "image_mean": [0.48, 0.46, 0.41], "resample": "bicubic"},
            "videos": {"seconds": [None, {"most": 2.5}], "sampled": True},
        },
        image_backend=ImageBackend(name="pillow", version="13.0.0"),
        tokens={"image": 5, "vision_start": 6, "vision_end": 7},
        generation=generation(),
        limits=Limits(visual_tokens=1296, prompt_tokens=32768),
        compressor=CompressorFacts(
            kind="f_theta",
            words="learned",
            keep=0.25,
            auto=AutoKeep(share=0.9, least=0.02, most=0.5),
            trained_on="nano scenes",
            figures={"accuracy": 0.97},
        ),
        parity={"vision": 2.1e-7},
        tools={"foveate": "0.1.0", "torch": "2.13.0"},
    )


def fill(root: Path) -> None:
    """Write the example's files."""
    (root / "text").mkdir()
    (root / "vision.onnx").write_bytes(vision_graph())
    (root / "vision.onnx.data").write_bytes(bytes(range(16)))
    (root / "embeddings.safetensors").write_bytes(embeddings())
    (root / "text" / "tokenizer.json").write_bytes(b'{"version": "1.0"}\n')
    (root / "engines" / "jetson-orin").mkdir(parents=True)
    (root / "engines" / "jetson-orin" / "vision.engine").write_bytes(b"engine")


def write(path: Path, *, force: bool = False) -> Bundle:
    """Write the example bundle."""
    with BundleWriter(path, force=force) as writer:
        fill(writer.root)
        return writer.finish(example(writer.entries(FILES)))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's rights for a while, so that permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program with the package at hand."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
