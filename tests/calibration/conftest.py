"""What the tests of calibration share: the nano checkpoint and its questions, loaded once."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from foveate.calibration.dataset import Record, read_records
from foveate.calibration.torch_model import TorchModel
from foveate.modeling.f_theta import FTheta
from tests.conftest import NANO, Sample

DATA = NANO / "samples" / "data.jsonl"
SCENE = NANO / "samples" / "scene-77-00004.png"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, here and in processes; and cores shared with others are no trap."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def loaded_once() -> Iterator[None]:
    """Checkpoints loaded once for all runs, since none changes a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchModel, "load", functools.cache(TorchModel.load))
        yield


@pytest.fixture(scope="session")
def model() -> TorchModel:
    """The nano checkpoint in float32."""
    return TorchModel.load(str(NANO), "fp32", "cpu")


@pytest.fixture(scope="session")
def eager() -> Qwen2VLForConditionalGeneration:
    """Transformers' own eager nano in float64."""
    eager = Qwen2VLForConditionalGeneration.from_pretrained(
        NANO, dtype=torch.float64, attn_implementation="eager"
    )
    return eager.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def records() -> list[Record]:
    """The nano checkpoint's held-out questions."""
    return read_records(DATA)


@pytest.fixture(scope="session")
def f_theta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an untrained f_θ."""
    path = tmp_path_factory.mktemp("f_theta") / "f_theta.safetensors"
    torch.manual_seed(0)
    FTheta().save(path, {"trained_on": "nothing"})
    return path


@pytest.fixture(scope="module", params=["letter", "two letters"])
def sample(request: pytest.FixtureRequest, samples: list[Sample]) -> Sample:
    """A question whose answer is one token, and one whose answer is several."""
    return next(sample for sample in samples if sample.task == request.param)
