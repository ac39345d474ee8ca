"""Bundles that are ready for tests on a GPU, where torch, which exports them, need not be installed.

    FOVEATE_TEST_BUNDLES=FOLDER python -m pytest -m gpu

FOLDER holds these bundles of models/nano, or some of them; a test whose bundle is missing is skipped:

    nano-fp32            foveate export models/nano nano-fp32
    nano-contrib-fp32    the same with --operators contrib
    nano-contrib-fp16    the same with --operators contrib --precision fp16
    nano-contrib-bf16    the same with --operators contrib --precision bf16
    nano-engines         nano-fp32 with engines for this GPU, of this version of TensorRT; where it is
                         missing or does not fit, engines are built from nano-fp32

It takes pytest and the slim half of Foveate with onnxruntime-gpu, or with TensorRT and cuda-bindings. What
compares with onnxruntime is skipped where that is not installed.
"""

import os
from pathlib import Path

import pytest

from foveate import machine
from foveate.bundle.reader import Bundle

VARIABLE = "FOVEATE_TEST_BUNDLES"


def need_gpu() -> str:
    """The GPU's compute capability; skips the test where there is none."""
    capability = machine.capability()
    if capability is None:
        pytest.skip("no GPU is to be seen")
    return capability


def need_cuda() -> None:
    """Skips the test where onnxruntime cannot use a GPU."""
    need_gpu()
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")


def ready_bundle(name: str) -> Bundle:
    """A bundle of the folder; skips the test where it is not there."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} names no folder with bundles")
    path = Path(folder) / name
    if not path.is_dir():
        pytest.skip(f"{folder} has no bundle {name}")
    return Bundle.open(path)
